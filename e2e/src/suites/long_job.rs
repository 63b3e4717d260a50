//! A job is never cancelled by the operator, whatever happens to its pool meanwhile.

use anyhow::{Result, ensure};
use cudarunner_crds::CudaRunner;
use kube::{Api, api::DeleteParams};
use serde_json::{Value, json};

use super::{Ctx, SOON, context::agent_with};
use crate::{deploy, example};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a pool of two, one of them busy
    let pool = |replicas: usize, value: &str| -> Value {
        let template = agent_with("SETTING", value);
        ctx.pool("pool", json!({"replicas": replicas, "template": template}))
    };
    ctx.apply(&pool(2, "old")).await?;
    ctx.idle("pool", 2).await?;
    let job = ctx.hold("long").await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();

    // When the template is another one: the idle runner is replaced
    let old = ctx.idle("pool", 1).await?;
    ctx.apply(&pool(2, "new")).await?;
    ctx.wait_for("the idle runner to be replaced", SOON, async || {
        Ok((ctx.idle("pool", 1).await? != old).then_some(()))
    })
    .await?;
    // When none is wanted: the idle runner goes
    ctx.apply(&pool(0, "new")).await?;
    ctx.wait_for("the idle runner to go", SOON, async || {
        Ok((ctx.entries().await? == [runner.clone()]).then_some(()))
    })
    .await?;
    // When the credentials are others, and the operator is killed
    let app = example::app(&ctx.github, "long-job-2", &ctx.repository).await?;
    example::secret(&ctx.client, &ctx.namespace, example::SECRET, &app).await?;
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    ctx.condition("pool", "CredentialsValid", "True", "Accepted")
        .await?;
    // When the pool is deleted
    let pools: Api<CudaRunner> = ctx.api();
    pools.delete("pool", &DeleteParams::default()).await?;

    // Then the job is still there, on the same runner, and ends well
    ensure!(
        ctx.entries().await? == [runner.clone()],
        "the runner is gone"
    );
    ctx.github.release(job).await?;
    let view = ctx.succeeded(job).await?;
    ensure!(
        view.assignments == 1 && view.runner.as_deref() == Some(&runner),
        "{view:?}"
    );
    ctx.wait_for("the pool to be gone", SOON, async || {
        Ok(pools.get_opt("pool").await?.is_none().then_some(()))
    })
    .await
}
