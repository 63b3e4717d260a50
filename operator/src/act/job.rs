//! What a job with a container of its own has in its runner's pod: its image, its services, and what both need to be pulled
//! and started. The registrar asks for it, as for [the image](super::image).

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cuda_runner_plan::model::pool::owned::{NO_DEVICES, VISIBLE_DEVICES};
use cuda_runner_plan::model::runner::SERVICE_PREFIX;
use cuda_runner_plan::pod::job_secret;
use cuda_runner_plan::pod::jobs::pull_policy;
use gate_report::wire::{Credentials, JobContainer, Service};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    EnvVar, EnvVarSource, EphemeralContainer, Pod, Secret, SecretKeySelector,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::image;
use crate::registrar::{JobRunner, PodIdentity};

/// Docker's name for its own registry, in credentials.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// The type of a Secret with credentials of registries, and its key.
const DOCKER_CONFIG: (&str, &str) = ("kubernetes.io/dockerconfigjson", ".dockerconfigjson");
/// How long a kubelet may take to see a Secret that a pod of its own has named before.
const SEEN: Duration = Duration::from_millis(500);
/// The API server's code for a name that is taken.
const CONFLICT: u16 = 409;

/// Which of the writes has failed, in the reason's word, and how.
#[derive(Debug)]
pub struct NotBrought {
    /// One word in `PascalCase`.
    pub reason: &'static str,
    what: &'static str,
    done: &'static str,
    /// What the API server said.
    pub error: kube::Error,
}

impl NotBrought {
    /// What has not been done, as the beginning of a sentence.
    #[must_use]
    pub fn what(&self) -> String {
        format!("{} could not be {}", self.what, self.done)
    }
}

/// Brings all of it, the image last: a pod that shows that has the rest. Safe to repeat.
pub async fn bring(
    client: Client,
    pod: &PodIdentity,
    runner: &JobRunner,
    wanted: &JobContainer,
) -> Result<(), NotBrought> {
    if runner.pod.image.as_ref() == Some(&wanted.image) {
        return Ok(());
    }
    let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
    if let Some(secret) = secret(pod, wanted) {
        let made = Api::<Secret>::namespaced(client.clone(), &pod.namespace)
            .create(&PostParams::default(), &secret)
            .await;
        match made {
            Ok(_) => tokio::time::sleep(SEEN).await,
            // An attempt before has made it. The operator may not look, or overwrite what is not its own.
            Err(kube::Error::Api(said)) if said.code == CONFLICT => {}
            Err(error) => {
                return Err(NotBrought {
                    reason: "SecretRefused",
                    what: "the Secret with the job's credentials and its services' environment",
                    done: "made (rbac.jobContainers of the operator's chart gives the right)",
                    error,
                });
            }
        }
    }
    if wanted.services.len() > runner.pod.services.len() {
        let patch = json!({
            "metadata": {"uid": pod.uid},
            "spec": {"ephemeralContainers": services(pod, runner, wanted)},
        });
        let params = PatchParams::default();
        let added = api
            .patch_ephemeral_containers(&pod.name, &params, &Patch::Strategic(patch))
            .await;
        added.map_err(|error| NotBrought {
            reason: "ServicesRefused",
            what: "the job's services",
            done: "started (rbac.jobContainers of the operator's chart gives the right)",
            error,
        })?;
    }
    let changed = image::change_for_job(client, pod, &wanted.image, runner.pod.starts).await;
    changed.map_err(|error| NotBrought {
        reason: "ImageNotChanged",
        what: "the image of the container gpu",
        done: "changed to the job's",
        error,
    })
}

/// What no object but a Secret may hold: credentials, and the services' environment. Gone with the pod.
fn secret(pod: &PodIdentity, wanted: &JobContainer) -> Option<Secret> {
    let of_services = wanted
        .services
        .iter()
        .filter_map(|s| s.credentials.as_ref());
    // The job's own come last, and count where both name a registry.
    let credentials: Vec<&Credentials> = of_services.chain(&wanted.credentials).collect();
    let values = wanted
        .services
        .iter()
        .enumerate()
        .flat_map(|(service, of)| {
            let values = of.env.values().enumerate();
            values.map(move |(number, value)| (key(service, number), value))
        });
    let values: Vec<(String, &String)> = values.collect();
    if credentials.is_empty() && values.is_empty() {
        return None;
    }
    let auths: BTreeMap<&str, _> = credentials.into_iter().map(of_registry).collect();
    let config = json!({"auths": auths}).to_string();
    let (type_, config_key) = DOCKER_CONFIG;
    let data = values
        .into_iter()
        .map(|(key, value)| (key, ByteString(value.clone().into_bytes())))
        .chain([(config_key.to_owned(), ByteString(config.into_bytes()))]);
    Some(Secret {
        metadata: ObjectMeta {
            name: Some(job_secret(&pod.name)),
            namespace: Some(pod.namespace.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        type_: Some(type_.to_owned()),
        data: Some(data.collect()),
        immutable: Some(true),
        ..Secret::default()
    })
}

fn of_registry(credentials: &Credentials) -> (&str, serde_json::Value) {
    let Credentials {
        username,
        password,
        server_url,
    } = credentials;
    let auth = STANDARD.encode(format!("{username}:{password}"));
    (
        server_url.as_deref().unwrap_or(DOCKER_HUB),
        json!({"username": username, "password": password, "auth": auth}),
    )
}

/// Where the Secret has the value of a service's variable. The variable's own name may be none of a Secret's.
fn key(service: usize, number: usize) -> String {
    format!("{SERVICE_PREFIX}{service}-{number}")
}

fn services(
    pod: &PodIdentity,
    runner: &JobRunner,
    wanted: &JobContainer,
) -> Vec<EphemeralContainer> {
    let all = wanted.services.iter().enumerate();
    all.map(|(number, service)| container(pod, runner, number, service))
        .collect()
}

/// A service as a container that gets no device, whatever its image asks for.
fn container(
    pod: &PodIdentity,
    runner: &JobRunner,
    number: usize,
    service: &Service,
) -> EphemeralContainer {
    let theirs = service.env.keys().enumerate();
    let theirs = theirs.filter(|(_, name)| *name != VISIBLE_DEVICES);
    let theirs = theirs.map(|(of, name)| EnvVar {
        name: name.clone(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: job_secret(&pod.name),
                key: key(number, of),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    });
    let no_devices = EnvVar {
        name: VISIBLE_DEVICES.to_owned(),
        value: Some(NO_DEVICES.to_owned()),
        value_from: None,
    };
    EphemeralContainer {
        name: format!("{SERVICE_PREFIX}{number}"),
        image: Some(service.image.clone()),
        image_pull_policy: Some(pull_policy(&runner.containers).to_owned()),
        command: words(&service.command),
        args: words(&service.args),
        working_dir: service.working_dir.clone(),
        env: Some(theirs.chain([no_devices]).collect()),
        security_context: runner.rights.clone(),
        ..EphemeralContainer::default()
    }
}

/// Words as they are: Kubernetes would put variables into them.
fn words(of: &[String]) -> Option<Vec<String>> {
    let words: Vec<String> = of.iter().map(|word| word.replace("$(", "$$(")).collect();
    Some(words).filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests;
