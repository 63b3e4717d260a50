//! Each field of the spec: what it may not be is refused, or reported where only the operator can know it; from one
//! value to another and back it leaves a pool as a fresh one is, and an operator with nothing left to do.
//!
//! The rows are held against the CRD's own schema: a new field needs a row. A run of all suites takes a sample,
//! `SAMPLE=all` takes all.

mod reported;
mod rows;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::CudaRunner;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, CustomResourceExt as _, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{Ctx, SOON, context::agent_with, sample::sample};
use crate::{audit::Audit, example};
use rows::{Row, invalid, leaves, rows};

/// Rows of a sample.
const SAMPLE: usize = 20;
/// By then the operator has been quiet for ten seconds. What it gathers it writes up to half a minute after the last change,
/// and later on a busy machine. One that always has something left to do is never quiet for so long.
const QUIET: Duration = Duration::from_mins(2);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let all = rows(&ctx.cluster.github, &ctx.repository);
    refused(ctx, &all).await?;
    furnish(ctx).await?;
    let outcome = async {
        let rows = sample(&ctx.namespace, all, SAMPLE, |row| &row.path);
        changed(ctx, &rows).await?;
        told_of(ctx).await
    }
    .await;
    let other = format!("{}-other", ctx.repository);
    ctx.github.delete_repository(&other).await?;
    outcome
}

/// What the rows name beside what every suite has.
async fn furnish(ctx: &Ctx) -> Result<()> {
    let repository = github_simulator::control::NewRepository {
        full_name: format!("{}-other", ctx.repository),
        ..Default::default()
    };
    ctx.github.create_repository(&repository).await?;
    let app = example::app(&ctx.github, "spec-changes-other", &ctx.repository).await?;
    example::secret(&ctx.client, &ctx.namespace, "other", &app).await?;
    let maps: Api<ConfigMap> = ctx.api();
    let mut bundle = maps.get(example::AUTHORITY).await?;
    let data = bundle.data.take();
    let copy = json!({"metadata": {"name": "other"}, "data": data});
    maps.create(&PostParams::default(), &serde_json::from_value(copy)?)
        .await?;
    Ok(())
}

/// What the schema forbids, the API server refuses: nothing of it is made.
async fn refused(ctx: &Ctx, rows: &[Row]) -> Result<()> {
    let definition = serde_json::to_value(CudaRunner::crd())?;
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let fields = leaves(&schema["spec"]);
    let pools: Api<CudaRunner> = ctx.api();
    let params = PatchParams::apply("user").force().dry_run();
    for row in rows {
        let (_, field) = fields
            .iter()
            .find(|(path, _)| *path == row.path)
            .with_context(|| format!("the CRD has no {}", row.path))?;
        let tries = invalid(field).into_iter().map(|value| {
            let mut pool = ctx.pool("refused", row.spec(&row.one));
            rows::set(&mut pool["spec"], &row.path, &value);
            (pool, value)
        });
        try_join_all(tries.map(async |(pool, value)| {
            let answer = pools.patch("refused", &params, &Patch::Apply(&pool)).await;
            let Err(kube::Error::Api(refusal)) = answer else {
                anyhow::bail!("{} may be {value}: {answer:?}", row.path);
            };
            ensure!(
                [400, 422, 500].contains(&refusal.code),
                "{} = {value}: {refusal:?}",
                row.path
            );
            Ok(())
        }))
        .await?;
    }
    Ok(())
}

/// What leads nowhere, and what the API server cannot know, is in a condition; and no pod comes of it that has a node.
async fn told_of(ctx: &Ctx) -> Result<()> {
    let all = reported::reported(&ctx.cluster.github, &ctx.repository);
    try_join_all(all.iter().enumerate().map(async |(number, reported)| {
        let name = format!("reported-{number:02}");
        ctx.apply(&ctx.pool(&name, reported.spec())).await?;
        let mut last = vec![];
        let said = ctx
            .wait_for("a condition that says so", SOON, async || {
                last = ctx.status(&name).await?.conditions;
                let has_reason = last
                    .iter()
                    .any(|condition| condition.reason == reported.reason);
                Ok(has_reason.then_some(()))
            })
            .await;
        said.with_context(|| format!("{}, {}: {last:#?}", reported.path, reported.reason))
    }))
    .await?;
    Ok(())
}

/// There and back, all fields side by side, and a pool with a runner among them.
async fn changed(ctx: &Ctx, rows: &[Row]) -> Result<()> {
    let pool = |kind: &str, number: usize, value: &Value| {
        ctx.pool(&format!("{kind}-{number:02}"), rows[number].spec(value))
    };
    let apply = async |kind: &str, value: fn(&Row) -> &Value| {
        let applied = rows.iter().enumerate().map(async |(number, row)| {
            let pool = pool(kind, number, value(row));
            ctx.apply(&pool).await.with_context(|| row.path.clone())?;
            seen(ctx, &format!("{kind}-{number:02}"))
                .await
                .with_context(|| row.path.clone())
        });
        try_join_all(applied).await
    };
    let there_and_back = async {
        // Given pools whose pods wait for a node
        apply("changed", |row| &row.one).await?;
        // When a field of each becomes something else, and what it was again
        apply("changed", |row| &row.other).await?;
        apply("changed", |row| &row.one).await?;
        apply("fresh", |row| &row.one).await
    };
    futures::try_join!(there_and_back, a_runner(ctx))?;
    let mut audit = Audit::from_now(&ctx.cluster)?;
    // Then each is as one that never was anything else
    for (number, row) in rows.iter().enumerate() {
        let mut last = (Value::Null, Value::Null);
        let alike = ctx
            .wait_for("a changed pool to be as a fresh one", SOON, async || {
                let name = |kind| format!("{kind}-{number:02}");
                last = (
                    shown(ctx, &name("changed")).await?,
                    shown(ctx, &name("fresh")).await?,
                );
                Ok((last.0 == last.1).then_some(()))
            })
            .await;
        alike.with_context(|| format!("{}: {:#}\nis not {:#}", row.path, last.0, last.1))?;
    }
    // And nobody has anything left to do
    audit.settled(QUIET, async || Ok(true)).await?;
    Ok(())
}

/// Waits until the operator has looked at what was applied.
async fn seen(ctx: &Ctx, name: &str) -> Result<()> {
    let pools: Api<CudaRunner> = ctx.api();
    ctx.wait_for("the change to be seen", SOON, async || {
        let pool = pools.get(name).await?;
        let seen = pool
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        Ok((seen == pool.metadata.generation).then_some(()))
    })
    .await
}

/// What there is to see of a pool, with other names for what is its own: conditions, counts, pods.
async fn shown(ctx: &Ctx, name: &str) -> Result<Value> {
    let status = ctx.status(name).await?;
    let of = ListParams::default().labels(&format!("cudarunner.dev/pool={name}"));
    let pods = ctx.api::<Pod>().list(&of).await?.items;
    let mut conditions = json!(status.conditions);
    for condition in conditions.as_array_mut().into_iter().flatten() {
        condition["lastTransitionTime"] = Value::Null;
        condition["observedGeneration"] = Value::Null;
    }
    let mut alike: Vec<Value> = pods.iter().map(without_names).collect();
    alike.sort_by_cached_key(Value::to_string);
    let all = json!({
        "conditions": conditions,
        "replicas": status.replicas,
        "failures": status.last_failures.len(),
        "scaleSet": status.scale_set.is_some(),
        "pods": alike,
    });
    Ok(serde_json::from_str(
        &all.to_string().replace(name, "NAME"),
    )?)
}

/// A pod without what Kubernetes gives it, and without its name.
fn without_names(pod: &Pod) -> Value {
    let spec = json!([pod.spec, pod.metadata.annotations, pod.metadata.labels]);
    let gone = pod.metadata.deletion_timestamp.is_some();
    let mut reported =
        serde_json::from_str(&spec.to_string().replace(&pod.name_any(), "POD")).unwrap_or_default();
    if gone {
        reported = json!("on its way out");
    }
    reported
}

/// A runner that is there is replaced for what concerns it, comes back as it was, and works.
async fn a_runner(ctx: &Ctx) -> Result<()> {
    let one = json!({"labels": ["self-hosted", "live"]});
    let other = json!({
        "labels": ["self-hosted", "other"],
        "smoke": {"timeoutSeconds": 60, "managedMemory": "Require"},
        "gpu": {"minCudaVersion": "12.1"},
        "template": agent_with("OTHER", "value"),
    });
    ctx.apply(&ctx.pool("live", one.clone())).await?;
    let first = ctx.idle("live", 1).await?.remove(0);
    ctx.apply(&ctx.pool("live", other)).await?;
    let second = ctx.other_idle("live", &first).await?;
    ctx.apply(&ctx.pool("live", one)).await?;
    ctx.other_idle("live", &second).await?;
    ctx.gone(&second).await?;
    let job = ctx
        .queue_for("live", &["self-hosted", "live"], "true", false)
        .await?;
    ctx.succeeded(job).await?;
    ctx.idle("live", 1).await?;
    let failures = ctx.status("live").await?.last_failures;
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(())
}
