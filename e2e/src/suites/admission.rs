//! What can never work is refused at apply, in words that say what to write instead.

use anyhow::{Result, bail, ensure};
use cudarunner_crds::CudaRunner;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use serde_json::{Value, json};

use super::Ctx;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let refused: &[(Value, &str)] = &[
        (json!({"labels": []}), "name at least one label"),
        (json!({"labels": ["a b"]}), "no spaces"),
        (
            json!({"github": {"url": "https://github.com"}}),
            "give the address of a repository",
        ),
        (
            json!({"github": {"url": "https://user@github.com/a/b"}}),
            "give the address of a repository",
        ),
        (
            json!({"gpu": {"count": 1, "claimTemplate": "gpus"}}),
            "not both",
        ),
        (
            json!({"replicas": 2, "scaling": {"minRunners": 0, "maxRunners": 3}}),
            "not both",
        ),
        (
            json!({"scaling": {"minRunners": 4, "maxRunners": 3}}),
            "minRunners may not be larger",
        ),
        (
            json!({"scaling": {"maxRunners": 3}, "registration": "RegistrationToken"}),
            "set spec.registration to ScaleSet",
        ),
        (
            json!({"scaling": {"maxRunners": 3, "source": "Poll"}, "registration": "ScaleSet"}),
            "set spec.scaling.source to ScaleSet",
        ),
        (
            json!({"registration": "ScaleSet", "lifetime": "Persistent"}),
            "set spec.lifetime to Ephemeral",
        ),
        (
            json!({"requiredChecks": {"branches": [{"name": "main"}]}}),
            "spec.verify",
        ),
        (json!({"replicas": -1}), "replicas"),
        (json!({"replica": 1}), "replica"),
    ];
    for (spec, words) in refused.iter().chain(&of_job_containers()) {
        match ctx.apply(&ctx.pool("refused", spec.clone())).await {
            Ok(()) => bail!("{spec} was taken"),
            Err(error) => ensure!(
                format!("{error:#}").contains(words),
                "{words:?} is not in: {error:#}"
            ),
        }
    }
    let pools: Api<CudaRunner> = ctx.api();
    ensure!(
        pools.get_opt("refused").await?.is_none(),
        "a refused resource exists"
    );
    explained(ctx).await
}

fn of_job_containers() -> [(Value, &'static str); 6] {
    [
        (json!({"sharedMemory": "8"}), "sharedMemory"),
        (
            json!({"sharedMemory": "8Gi", "jobContainers": {"shmSize": "4Gi"}}),
            "remove spec.jobContainers.shmSize",
        ),
        (
            json!({"jobContainers": {}, "lifetime": "Persistent"}),
            "is not cleared for the next job",
        ),
        (json!({"jobContainers": {"shmSize": "0"}}), "shmSize"),
        (json!({"jobContainers": {"shmSize": "-1Gi"}}), "shmSize"),
        (json!({"jobContainers": {"shmSize": "much"}}), "shmSize"),
    ]
}

/// Every field has a description, for `kubectl explain`.
async fn explained(ctx: &Ctx) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(ctx.client.clone());
    let definition = definitions.get("cudarunners.cudarunner.dev").await?;
    let schema = serde_json::to_value(&definition.spec.versions[0].schema)?;
    let mut bare = Vec::new();
    for part in ["spec", "status"] {
        undescribed(
            part,
            &schema["openAPIV3Schema"]["properties"][part],
            &mut bare,
        );
    }
    ensure!(bare.is_empty(), "without a description: {bare:?}");
    Ok(())
}

fn undescribed(path: &str, schema: &Value, bare: &mut Vec<String>) {
    if schema["description"].as_str().is_none_or(str::is_empty) {
        bare.push(path.to_owned());
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        undescribed(&format!("{path}.{name}"), inner, bare);
    }
    for (name, inner) in schema["items"]["properties"]
        .as_object()
        .into_iter()
        .flatten()
    {
        undescribed(&format!("{path}[].{name}"), inner, bare);
    }
}
