//! Who comes from Actions Runner Controller: its Secrets are read as they are, its files become pools, and jobs find them
//! by name.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use cuda_runner_plan::{NewRunner, PodSettings, model::pool::Pool, pod};
use cudarunner_crds::CudaRunner;
use github_simulator::control::{NewApp, PublishedApp};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::PostParams};
use serde_json::{Value, json};

use super::{Ctx, SOON};
use crate::{
    example,
    images::{Profile, artifact},
    paths,
};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    secrets(ctx).await?;
    labels(ctx).await?;
    files(ctx).await?;
    values(ctx).await
}

async fn app(ctx: &Ctx, slug: &str, install_on: &str) -> Result<PublishedApp> {
    let new = NewApp {
        slug: format!("{slug}-{}", ctx.namespace),
        owner: owner(ctx).to_owned(),
        install_on: install_on.to_owned(),
        ..NewApp::default()
    };
    Ok(ctx.github.create_app(&new).await?)
}

fn owner(ctx: &Ctx) -> &str {
    ctx.repository.split('/').next().unwrap_or_default()
}

/// The keys of Actions Runner Controller, without an installation and with a client id.
async fn secrets(ctx: &Ctx) -> Result<()> {
    let github = json!({"github": {"credentialsRef": {"name": "arc-app"}}});
    let write =
        async |data: Value| example::secret(&ctx.client, &ctx.namespace, "arc-app", &data).await;
    let says = async |reason: &str, word: &str| {
        let said = ctx.condition("moved", "CredentialsValid", "False", reason);
        let said = said.await?;
        ensure!(said.contains(word), "{word} is not in: {said}");
        anyhow::Ok(())
    };
    // Given an App that is installed nowhere, then that is said
    let nowhere = app(ctx, "nowhere", "").await?;
    let keys = |app: &PublishedApp| json!({"github_app_id": app.client_id, "github_app_private_key": app.private_key});
    write(keys(&nowhere)).await?;
    ctx.apply(&ctx.pool("moved", github)).await?;
    says("NotFound", &nowhere.client_id).await?;
    // Given two names of one thing that differ
    let installed = app(ctx, "moved", owner(ctx)).await?;
    let mut both = keys(&installed);
    both["app-id"] = json!("1");
    write(both).await?;
    says("SecretInvalid", "both app-id and github_app_id").await?;
    // When the Secret is as it was, then a runner comes, and the App was asked where it is installed once
    let mark = ctx.last_call().await?;
    write(keys(&installed)).await?;
    ctx.condition("moved", "CredentialsValid", "True", "Accepted")
        .await?;
    ctx.idle("moved", 1).await?;
    let calls = ctx.calls(mark).await?;
    let lookups = calls
        .iter()
        .filter(|call| call.path.ends_with("/installation"));
    let lookups: Vec<_> = lookups.map(|call| call.path.clone()).collect();
    ensure!(lookups.len() == 1, "{lookups:?}");
    // And jobs find it by its name, and by what GitHub gives to runners that register by hand
    for (job, labels) in [
        ("by-name", &["moved"][..]),
        ("by-labels", &["self-hosted", "linux", "x64", "cuda"]),
    ] {
        let job = ctx.queue_for(job, labels, "true", false).await?;
        ctx.succeeded(job).await?;
    }
    ctx.delete("moved").await
}

/// A pool whose labels are written down takes no job by its name, and says so.
async fn labels(ctx: &Ctx) -> Result<()> {
    let labels = json!({"labels": ["self-hosted", "explicit"]});
    ctx.apply(&ctx.pool("named", labels)).await?;
    ctx.idle("named", 1).await?;
    let job = ctx.queue_for("by-name", &["named"], "true", false).await?;
    ctx.annotate("named", cudarunner_crds::LOOK_AGAIN, "first")
        .await?;
    let said = ctx
        .condition("named", "QueueServed", "False", "LabelMissing")
        .await?;
    ensure!(said.contains("lacks named"), "{said}");
    // Until it has the label
    let labels = json!({"labels": ["self-hosted", "explicit", "named"]});
    ctx.apply(&ctx.pool("named", labels)).await?;
    ctx.succeeded(job).await?;
    ctx.delete("named").await
}

/// What `kubectl cudarunner migrate` makes of files is accepted by an API server, and so are the pods.
async fn files(ctx: &Ctx) -> Result<()> {
    let folder = "operator/src/bin/kubectl-cudarunner/migrate/files";
    let folder = paths::repository().join(folder);
    let pools: Api<CudaRunner> = ctx.api();
    let pods: Api<Pod> = ctx.api();
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut seen = 0;
    for file in fs::read_dir(&folder)? {
        let path = file?.path();
        let yaml = migrate(&path, &["--name", "of-the-release"]).await?;
        for mut pool in serde_saphyr::from_multiple::<CudaRunner>(&yaml)? {
            let named = format!("{}: {}", path.display(), pool.name_any());
            pool.metadata.namespace = Some(ctx.namespace.clone());
            let taken = pools.create(&dry, &pool).await;
            let taken = taken.with_context(|| named.clone())?;
            let pod = pod_of(&taken).with_context(|| named.clone())?;
            let made = pods.create(&dry, &pod).await;
            made.with_context(|| format!("{named}: its pod"))?;
            seen += 1;
        }
    }
    ensure!(seen >= 10, "{seen} pools of {}", folder.display());
    Ok(())
}

/// The pod that the operator makes for a pool, without the names of what an administrator of its cluster has made.
fn pod_of(pool: &CudaRunner) -> Result<Pod> {
    let pool = Pool::read(pool, false);
    let spec = pool.spec.clone()?;
    let settings = PodSettings {
        gate_image: example::AGENT.to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        registrar_url: "https://10.96.0.7:8443".to_owned(),
        registrar_ca: String::new(),
    };
    let runner = NewRunner {
        name: "of-a-file".to_owned(),
        avoids: BTreeSet::new(),
        shuns: BTreeSet::new(),
        retest: None,
    };
    let mut pod = pod::build(&pool, &spec, &settings, &runner);
    let of_pod = pod.spec.as_mut().context("a pod has a spec")?;
    of_pod.priority_class_name = None;
    of_pod.runtime_class_name = None;
    of_pod.service_account_name = None;
    Ok(pod)
}

/// What is migrated and applied takes the jobs of the scale set.
async fn values(ctx: &Ctx) -> Result<()> {
    let authority = json!({"configMapKeyRef": {"name": example::AUTHORITY, "key": "ca.crt"}});
    let values = json!({
        "githubConfigUrl": format!("{}/{}", ctx.cluster.github, ctx.repository),
        "githubConfigSecret": example::SECRET,
        "githubServerTLS": {"certificateFrom": authority},
        "runnerScaleSetName": "scaled",
        "maxRunners": 1,
        "template": {"spec": {"containers": [{
            "name": "runner", "image": example::AGENT, "command": ["/home/runner/run.sh"],
            "resources": {"limits": {"nvidia.com/gpu": 1}},
        }]}},
    });
    let path = ctx.cluster.dir.join("arc-values.yaml");
    fs::write(&path, serde_saphyr::to_string(&values)?)?;
    let yaml = migrate(&path, &["--namespace", &ctx.namespace]).await?;
    ctx.apply(&serde_saphyr::from_str(&yaml)?).await?;
    ctx.wait_for("a scale set", SOON, async || {
        let sets = ctx.scale_sets().await?;
        let is_there = sets.iter().any(|set| set.labels == ["scaled"]);
        Ok(is_there.then_some(()))
    })
    .await?;
    let job = ctx.queue_for("scaled", &["scaled"], "true", false).await?;
    ctx.succeeded(job).await?;
    ctx.delete("scaled").await
}

/// The resources that the plugin makes of a file.
async fn migrate(file: &Path, more: &[&str]) -> Result<String> {
    let mut command = Command::new(artifact(Profile::Dev, "kubectl-cudarunner"));
    command.arg("migrate").arg(file).args(more);
    let done = tokio::task::spawn_blocking(move || command.output()).await??;
    let notes = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "{}: {notes}", file.display());
    Ok(String::from_utf8(done.stdout)?)
}
