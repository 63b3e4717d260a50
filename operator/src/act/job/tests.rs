use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use cuda_runner_plan::model::key::PoolKey;
use cuda_runner_plan::model::runner::JobPod;
use cudarunner_crds::JobContainers;
use gate_report::wire::ContainerState;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

fn pod() -> PodIdentity {
    PodIdentity {
        namespace: "ci".to_owned(),
        name: "pool-aaaaa".to_owned(),
        uid: "u".to_owned(),
        node: None,
    }
}

fn runner(pod: JobPod) -> JobRunner {
    JobRunner {
        pool: PoolKey {
            namespace: "ci".to_owned(),
            name: "pool".to_owned(),
        },
        let_in: true,
        pod,
        containers: JobContainers::default(),
        rights: serde_json::from_value(json!({"allowPrivilegeEscalation": false})).ok(),
    }
}

fn wanted() -> JobContainer {
    serde_json::from_value(json!({
        "image": "ghcr.io/acme/cuda:1",
        "credentials": {"username": "me", "password": "s3cret-1", "serverUrl": "ghcr.io"},
        "services": [
            {"image": "redis:7"},
            {
                "image": "acme/db:1",
                "credentials": {"username": "you", "password": "s3cret-2"},
                "env": {"PASSWORD": "s3cret-3", "NVIDIA_VISIBLE_DEVICES": "all"},
                "command": ["/run.sh"], "args": ["--user=$(USER)"], "workingDir": "/db",
            },
        ],
    }))
    .unwrap()
}

type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// An API server that answers the request of this path's end with this code, and all others with success.
fn server(failing: &'static str, code: u16) -> (Client, Asked) {
    let asked = Asked::default();
    let all = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        let all = Arc::clone(&all);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let line = format!("{} {}", head.method, head.uri.path());
            let fails = head.uri.path().ends_with(failing);
            all.lock()
                .unwrap()
                .push((line, serde_json::from_slice(&body).unwrap()));
            let (code, answer) = if fails {
                (
                    code,
                    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "its own words", "reason": "x", "code": code}),
                )
            } else {
                let (version, kind) = match head.uri.path() {
                    path if path.ends_with("/secrets") => ("v1", "Secret"),
                    path if path.ends_with("/ephemeralcontainers") => ("v1", "Pod"),
                    _ => ("meta.k8s.io/v1", "PartialObjectMetadata"),
                };
                (
                    200,
                    json!({"kind": kind, "apiVersion": version, "metadata": {}}),
                )
            };
            let answer = Body::from(answer.to_string().into_bytes());
            Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
        }
    });
    (Client::new(service, "default"), asked)
}

const SECRET: &str = "POST /api/v1/namespaces/ci/secrets";
const SERVICES: &str = "PATCH /api/v1/namespaces/ci/pods/pool-aaaaa/ephemeralcontainers";
const IMAGE: &str = "PATCH /api/v1/namespaces/ci/pods/pool-aaaaa";

fn lines(asked: &Asked) -> Vec<String> {
    asked
        .lock()
        .unwrap()
        .iter()
        .map(|(line, _)| line.clone())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_job_brings_its_image_last_and_every_secret_in_one_secret_of_the_pods() {
    let (client, asked) = server("nothing", 500);
    bring(client, &pod(), &runner(JobPod::default()), &wanted())
        .await
        .unwrap();
    assert_eq!(lines(&asked), [SECRET, SERVICES, IMAGE]);
    let bodies: Vec<Value> = asked
        .lock()
        .unwrap()
        .iter()
        .map(|(_, body)| body.clone())
        .collect();
    // The Secret is the pod's, and gone with it
    let secret: Secret = serde_json::from_value(bodies[0].clone()).unwrap();
    assert_eq!(secret.metadata.name.as_deref(), Some("pool-aaaaa-job"));
    let owner = &secret.metadata.owner_references.unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Pod", "u"));
    let data = secret.data.unwrap();
    let config: Value = serde_json::from_slice(&data[".dockerconfigjson"].0).unwrap();
    assert_eq!(
        config["auths"]["ghcr.io"]["auth"],
        STANDARD.encode("me:s3cret-1")
    );
    assert_eq!(config["auths"][DOCKER_HUB]["password"], "s3cret-2");
    assert_eq!(data["svc-1-1"].0, b"s3cret-3");
    // No other object has anything of it
    for body in &bodies[1..] {
        assert!(!body.to_string().contains("s3cret"), "{body:#}");
    }
    // The services have no device, and the rights of the job's container
    let rights = json!({"allowPrivilegeEscalation": false});
    let void = json!({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"});
    let password = json!({"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "pool-aaaaa-job", "key": "svc-1-1"}}});
    assert_eq!(
        bodies[1],
        json!({"metadata": {"uid": "u"}, "spec": {"ephemeralContainers": [
            {"name": "svc-0", "image": "redis:7", "imagePullPolicy": "IfNotPresent", "env": [void], "securityContext": rights},
            {
                "name": "svc-1", "image": "acme/db:1", "imagePullPolicy": "IfNotPresent", "env": [password, void],
                "command": ["/run.sh"], "args": ["--user=$$(USER)"], "workingDir": "/db", "securityContext": rights,
            },
        ]}})
    );
    assert_eq!(
        bodies[2],
        json!({
            "metadata": {"uid": "u", "annotations": {"cudarunner.dev/job-start": "1"}},
            "spec": {"initContainers": [{"name": "gpu", "image": "ghcr.io/acme/cuda:1"}]},
        })
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_not_asked_for_again() {
    let plain = JobContainer {
        credentials: None,
        services: vec![],
        ..wanted()
    };
    let shown = |image: Option<&str>, services: usize, starts: i32| JobPod {
        image: image.map(str::to_owned),
        services: vec![("svc".to_owned(), ContainerState::Running); services],
        starts,
        container: None,
    };
    let ours = Some("ghcr.io/acme/cuda:1");
    for (wanted, shown, expected) in [
        (&plain, shown(None, 0, 0), &[IMAGE][..]),
        (&plain, shown(ours, 0, 0), &[]),
        (&wanted(), shown(ours, 2, 0), &[]),
        // An operator was killed in between
        (&wanted(), shown(None, 2, 0), &[SECRET, IMAGE]),
    ] {
        let (client, asked) = server("/secrets", 409);
        bring(client, &pod(), &runner(shown), wanted).await.unwrap();
        assert_eq!(lines(&asked), expected);
    }
    // A container that was started again before the job is counted
    let (client, asked) = server("nothing", 500);
    bring(client, &pod(), &runner(shown(None, 0, 3)), &plain)
        .await
        .unwrap();
    let patch = asked.lock().unwrap()[0].1.clone();
    assert_eq!(
        patch["metadata"]["annotations"]["cudarunner.dev/job-start"],
        "4"
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_named_and_nothing_comes_after_it() {
    for (failing, code, reason, requests) in [
        ("/secrets", 403, "SecretRefused", 1),
        ("/ephemeralcontainers", 403, "ServicesRefused", 2),
        ("/pool-aaaaa", 422, "ImageNotChanged", 3),
        ("/pool-aaaaa", 500, "ImageNotChanged", 3),
    ] {
        let (client, asked) = server(failing, code);
        let failed = bring(client, &pod(), &runner(JobPod::default()), &wanted()).await;
        let failed = failed.unwrap_err();
        assert_eq!(failed.reason, reason);
        assert!(failed.error.to_string().contains("its own words"));
        assert_eq!(lines(&asked).len(), requests, "{failing}");
    }
}
