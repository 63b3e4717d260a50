//! The example manifest of the documentation, made ready for the local cluster.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use cudarunner_crds::CudaRunner;
use github_simulator::control::{Client as GitHub, NewApp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{cluster::Cluster, paths, simulator};

/// Name of the Secret with the App's credentials.
pub const SECRET: &str = "github-app";
/// Name of the ConfigMap with GitHub's authority, key `ca.crt`.
pub const AUTHORITY: &str = "github-ca";
/// The image of the simulated agent.
pub const AGENT: &str = "localhost/simulated-agent:dev";
/// The same with another user than that of GitHub's image.
pub const UID_1000_AGENT: &str = "localhost/simulated-agent-uid-1000:dev";
/// The same on an image for CUDA projects: toolkit 12.4 and the example's Rust toolchain.
pub const CUDA_AGENT: &str = "localhost/simulated-agent-cuda-12.4:dev";
/// What a job for CUDA brings with it.
pub const JOB_CUDA: &str = "localhost/job-cuda:dev";

/// The example: from the documentation, with this cluster's GitHub, image and sizes.
pub fn manifest(github: &str) -> Result<CudaRunner> {
    let path = paths::repository().join("docs/examples/tensor-wasm.yaml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut example: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("{} is no YAML", path.display()))?;
    let spec = example["spec"]
        .as_object_mut()
        .context("the example has no spec")?;
    spec["github"]["url"] = json!(format!("{github}/{}", simulator::REPOSITORY));
    spec["github"]["caBundleRef"] = json!({"name": AUTHORITY, "key": "ca.crt"});
    // The addresses of the example are on the real internet.
    spec["preflight"]["egress"] = json!([github]);
    let container = &mut spec["template"]["spec"]["containers"][0];
    container["image"] = json!(CUDA_AGENT);
    container["resources"] = json!({"requests": {"cpu": "100m", "memory": "64Mi"}});
    serde_json::from_value(example).context("the example is no CudaRunner")
}

/// What a user has before applying it: the namespace, an App installed on the repository, its Secret, and GitHub's
/// authority. Gives the path of the manifest, ready to apply.
pub async fn prepare(cluster: &Cluster, client: &Client, github: &GitHub) -> Result<PathBuf> {
    let manifest = manifest(&cluster.github)?;
    let namespace = manifest
        .metadata
        .namespace
        .clone()
        .context("the example names no namespace")?;
    create_namespace(client, &namespace).await?;
    credentials(cluster, client, github, &namespace, simulator::REPOSITORY).await?;
    let path = cluster.dir.join("example.yaml");
    fs::write(&path, serde_saphyr::to_string(&manifest)?)?;
    Ok(path)
}

/// Makes a namespace, or leaves it as it is.
pub async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .patch(
            name,
            &PatchParams::apply("cargo-e2e"),
            &Patch::Apply(namespace),
        )
        .await?;
    Ok(())
}

/// Deletes a namespace; does not wait.
pub async fn delete_namespace(client: &Client, name: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// An App on the repository's owner as [`SECRET`], and GitHub's authority as [`AUTHORITY`].
pub async fn credentials(
    cluster: &Cluster,
    client: &Client,
    github: &GitHub,
    namespace: &str,
    repository: &str,
) -> Result<()> {
    let data = app(github, namespace, repository).await?;
    secret(client, namespace, SECRET, &data).await?;
    let pem = simulator::authority(&cluster.dir)?;
    authority(client, namespace, AUTHORITY, &pem).await
}

/// Makes or changes a ConfigMap with authorities, key `ca.crt`.
pub async fn authority(client: &Client, namespace: &str, name: &str, pem: &str) -> Result<()> {
    let authority = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"ca.crt": pem},
    });
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply("cargo-e2e");
    maps.patch(name, &params, &Patch::Apply(authority)).await?;
    Ok(())
}

/// The keys of a Secret for a new App that is installed at the repository's owner.
pub async fn app(github: &GitHub, slug: &str, repository: &str) -> Result<Value> {
    let owner = repository.split('/').next().unwrap_or_default().to_owned();
    let app = github
        .create_app(&NewApp {
            slug: format!("runners-{slug}"),
            owner: owner.clone(),
            install_on: owner,
            ..NewApp::default()
        })
        .await?;
    let installation = app.installation.context("the App was not installed")?;
    Ok(json!({
        "app-id": app.id.to_string(),
        "installation-id": installation.to_string(),
        "private-key": app.private_key,
    }))
}

/// Makes or changes a Secret; a key that is absent from `data` goes.
pub async fn secret(client: &Client, namespace: &str, name: &str, data: &Value) -> Result<()> {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    // Replaced, not applied: stringData is write-only, and keys of another manager would stay.
    let _ = secrets.delete(name, &DeleteParams::default()).await;
    secrets
        .create(
            &kube::api::PostParams::default(),
            &serde_json::from_value(secret)?,
        )
        .await?;
    Ok(())
}
