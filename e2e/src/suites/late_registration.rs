//! A runner's image that takes its time: the GPU is proven meanwhile, and GitHub hears nothing before the agent can start.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Ctx, SOON, context::agent_with};
use crate::{example, gpu, node::Machine};

/// The image that is not there yet.
const IMAGE: &str = "localhost/late-agent:dev";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a job, and a pool whose image is not there yet
    let mark = ctx.last_call().await?;
    let job = ctx.hold("patient").await?;
    ctx.apply(&pool(ctx, "late", IMAGE)).await?;

    // When the gate has passed
    let pod = waits_for_its_image(ctx).await?;

    // Then the pool says what it waits for, nobody is blamed, and GitHub has not heard of a runner
    ctx.wait_for("the image to be missed", SOON, async || {
        let conditions = ctx.status("late").await?.conditions;
        let mut online = conditions.iter().filter(|c| c.type_ == "RunnersOnline");
        let missed = online.any(|c| c.message.contains("image cannot be pulled"));
        Ok(missed.then_some(()))
    })
    .await?;
    nobody_is_blamed(ctx, "late").await?;
    ensure!(
        ctx.registrations(mark).await? == 0 && ctx.entries().await?.is_empty(),
        "a runner was registered without an agent"
    );
    let waiting = ctx.github.job(job).await?;
    ensure!(waiting.started_at.is_none(), "{waiting:?}");

    // When the image is there, then that very pod registers, once, and takes the job
    arrives(ctx, IMAGE)?;
    let view = ctx.picked_up(job).await?;
    ensure!(
        view.runner == pod.metadata.name,
        "{view:?} is not on {:?}",
        pod.metadata.name
    );
    let registrations = ctx.registrations(mark).await?;
    ensure!(registrations == 1, "{registrations} registrations");
    ctx.github.release(job).await?;
    ctx.succeeded(job).await?;
    ctx.delete("late").await
}

/// A pool whose agents have this image.
pub(super) fn pool(ctx: &Ctx, name: &str, image: &str) -> Value {
    let mut template = agent_with("SETTING", name);
    template["spec"]["containers"][0]["image"] = json!(image);
    ctx.pool(name, json!({"template": template}))
}

/// Waits for a pod that was let in, and whose agent cannot start yet.
pub(super) async fn waits_for_its_image(ctx: &Ctx) -> Result<Pod> {
    let waits = |pod: &Pod| {
        let state = gpu::status(pod).and_then(|status| status.state.as_ref());
        gpu::is_let_in(pod) && state.is_some_and(|state| state.waiting.is_some())
    };
    ctx.wait_for("a pod that waits for its image", SOON, async || {
        Ok(ctx.pods().await?.into_iter().find(waits))
    })
    .await
}

/// The node has the agent's image by this name from now on.
pub(super) fn arrives(ctx: &Ctx, image: &str) -> Result<()> {
    Machine::first(&ctx.cluster.dir).tag(&ctx.cluster.tools, example::AGENT, image)
}

/// Neither a GPU nor its node is said to be broken.
pub(super) async fn nobody_is_blamed(ctx: &Ctx, pool: &str) -> Result<()> {
    let status = ctx.status(pool).await?;
    ensure!(status.quarantine.is_empty(), "{:?}", status.quarantine);
    let mut failures = status.last_failures.iter();
    let blamed = failures
        .find(|failure| ["device", "node", "unsupported"].contains(&failure.class.as_str()));
    ensure!(blamed.is_none(), "{blamed:?}");
    Ok(())
}
