//! The operator goes first: its pools can still be deleted, and those that are kept are served by the next one.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::CudaRunner;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use serde_json::json;

use super::{Ctx, SOON, plugin::plugin};
use crate::{
    deploy,
    helm::{self, Helm, NAMESPACE, RELEASE},
};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given two pools with a runner each
    for name in ["kept", "gone"] {
        ctx.apply(&ctx.pool(name, json!({}))).await?;
        ctx.idle(name, 1).await?;
    }
    let before = uids(ctx, "kept").await?;

    // When the operator's chart is uninstalled
    let cluster = ctx.cluster.clone();
    let uninstall = tokio::task::spawn_blocking(move || {
        Helm::new(&cluster.tools, &cluster.dir).uninstall(RELEASE, NAMESPACE)
    });
    let outcome = async {
        uninstall.await??;
        without_an_operator(ctx).await
    }
    .await;
    // Whatever came of it: the suites after this one need an operator
    deploy::upgrade_from(&ctx.cluster, &helm::charts(), &[]).await?;
    outcome?;

    // Then the next operator takes over what is there, and undoes all of it
    ctx.wait_for("the finalizer to be back", SOON, async || {
        Ok((!finalizers(ctx, "kept").await?.is_empty()).then_some(()))
    })
    .await?;
    ctx.idle("kept", 1).await?;
    ensure!(uids(ctx, "kept").await? == before, "the runner changed");
    ctx.delete("kept").await?;
    ensure!(ctx.entries().await?.is_empty(), "entries are left");
    Ok(())
}

/// Both pools are let go, and say so; one is deleted.
async fn without_an_operator(ctx: &Ctx) -> Result<()> {
    for name in ["kept", "gone"] {
        ensure!(finalizers(ctx, name).await?.is_empty(), "{name} is held");
    }
    let reported = ctx.events("OperatorUninstalled").await?;
    ensure!(
        reported.len() == 2
            && reported.iter().all(|event| {
                let note = event.note.as_deref().unwrap_or_default();
                note.contains(&ctx.repository) && note.contains("by hand")
            }),
        "{reported:#?}"
    );
    let why = plugin(ctx, 0, &["why", "kept"]).await?;
    let words: Vec<&str> = why.split_whitespace().collect();
    let said = words.join(" ");
    ensure!(said.contains("is gone: there is no Lease of it"), "{why}");
    let pools: Api<CudaRunner> = ctx.api();
    pools.delete("gone", &DeleteParams::default()).await?;
    ensure!(pools.get_opt("gone").await?.is_none(), "the pool hangs");
    ctx.wait_for("the pool's pod to go", SOON, async || {
        Ok(uids(ctx, "gone").await?.is_empty().then_some(()))
    })
    .await?;
    // As the Event says, what it had on GitHub is left
    let mut left = ctx.runners().await?;
    left.retain(|runner| {
        runner["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("gone-"))
    });
    ensure!(left.len() == 1, "{left:#?}");
    let id = left[0]["id"].as_u64().context("a runner without an id")?;
    ctx.github.delete_runner(id).await?;
    Ok(())
}

/// The pods of a pool.
async fn uids(ctx: &Ctx, pool: &str) -> Result<Vec<String>> {
    let pods = ctx.pods().await?.into_iter();
    let own = pods.filter(|pod| pod.name_any().starts_with(&format!("{pool}-")));
    Ok(own.filter_map(|pod| pod.uid()).collect())
}

async fn finalizers(ctx: &Ctx, pool: &str) -> Result<Vec<String>> {
    let pools: Api<CudaRunner> = ctx.api();
    Ok(pools.get(pool).await?.finalizers().to_vec())
}
