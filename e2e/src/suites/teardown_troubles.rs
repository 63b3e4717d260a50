//! A pool goes whatever has gone before it, and says what it had to leave.

use anyhow::{Context as _, Result, ensure};
use github_simulator::{
    control::NewRepository,
    faults::{Action, Fault},
};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, api::DeleteParams};
use serde_json::json;

use super::{Ctx, SOON};
use crate::example;

/// Longer than GitHub is asked for in vain, shorter than anyone wants to wait here.
const TIMEOUT: &str = "10s";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    the_credentials_are_gone(ctx).await?;
    github_does_not_answer(ctx).await?;
    the_repository_is_gone(ctx).await?;
    the_namespace_goes(ctx).await
}

/// What was known of them lasts until the pool is gone.
async fn the_credentials_are_gone(ctx: &Ctx) -> Result<()> {
    let keys = example::app(&ctx.github, &ctx.namespace, &ctx.repository).await?;
    example::secret(&ctx.client, &ctx.namespace, "own", &keys).await?;
    let spec = json!({"github": {"credentialsRef": {"name": "own"}}});
    ctx.apply(&ctx.pool("without-secret", spec)).await?;
    ctx.idle("without-secret", 1).await?;
    let secrets: Api<Secret> = ctx.api();
    // Both at once, as a tool that prunes does it
    tokio::try_join!(ctx.delete("without-secret"), async {
        secrets.delete("own", &DeleteParams::default()).await?;
        Ok(())
    })?;
    ensure!(ctx.entries().await?.is_empty(), "entries are left");
    Ok(())
}

async fn github_does_not_answer(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("unheard", json!({"teardownTimeout": TIMEOUT})))
        .await?;
    ctx.idle("unheard", 1).await?;
    let fault = Fault {
        path: Some(format!("/{}/", ctx.repository)),
        action: Action::DropBefore,
        ..Fault::default()
    };
    ctx.github.inject(&fault).await?;
    ctx.delete("unheard").await?;
    told_what_is_left(ctx, "unheard").await?;
    ctx.github.clear_faults().await?;
    // By hand, as it was told
    for runner in ctx.runners().await? {
        let id = runner["id"].as_u64().context("a runner without an id")?;
        ctx.github.delete_runner(id).await?;
    }
    Ok(())
}

async fn the_repository_is_gone(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("homeless", json!({"teardownTimeout": TIMEOUT})))
        .await?;
    ctx.idle("homeless", 1).await?;
    ctx.github.delete_repository(&ctx.repository).await?;
    ctx.delete("homeless").await?;
    told_what_is_left(ctx, "homeless").await?;
    let again = NewRepository {
        full_name: ctx.repository.clone(),
        ..NewRepository::default()
    };
    ctx.github.create_repository(&again).await?;
    Ok(())
}

/// Pool, credentials and authority go in any order.
async fn the_namespace_goes(ctx: &Ctx) -> Result<()> {
    let other = Ctx::new(&ctx.cluster, "teardown-namespace").await?;
    other.apply(&other.pool("pool", json!({}))).await?;
    other.idle("pool", 1).await?;
    example::delete_namespace(&other.client, &other.namespace).await?;
    let namespaces: Api<Namespace> = Api::all(other.client.clone());
    ctx.wait_for("the namespace to be gone", SOON, async || {
        let left = namespaces.get_opt(&other.namespace).await?;
        Ok(left.is_none().then_some(()))
    })
    .await?;
    ensure!(other.entries().await?.is_empty(), "entries are left");
    other.github.delete_repository(&other.repository).await?;
    Ok(())
}

/// An Event names what may be left, and where.
async fn told_what_is_left(ctx: &Ctx, pool: &str) -> Result<()> {
    let mut notes = vec![];
    let told = ctx
        .wait_for("an Event of what is left", SOON, async || {
            let mut reported = ctx.events("TeardownIncomplete").await?;
            reported.retain(|event| {
                let regarding = event.regarding.as_ref();
                regarding.is_some_and(|r| r.name.as_deref() == Some(pool))
            });
            notes = reported.into_iter().filter_map(|e| e.note).collect();
            let is_whole = |note: &String| note.contains(&ctx.repository) && note.contains(pool);
            Ok(notes.iter().any(is_whole).then_some(()))
        })
        .await;
    told.with_context(|| format!("{notes:#?}"))
}
