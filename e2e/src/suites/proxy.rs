//! A pool with a proxy: operator, gate and agent reach GitHub through it alone, or past it where it is told so.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Ctx;
use crate::{proxy::ForwardProxy, simulator::HIDDEN_NAME};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let link = ctx.cluster.link.as_ref().context("there is no link")?;
    let machine = IpAddr::from(link.machine);
    let address = ctx.cluster.github.trim_start_matches("https://");
    let server: SocketAddr = address.parse()?;
    let proxy = ForwardProxy::start(machine, HIDDEN_NAME, server).await?;
    let pool = |name: &str, github: &str, no_proxy: Value| {
        let github_spec = json!({
            "url": format!("{github}/{}", ctx.repository),
            "proxy": {"url": proxy.url, "noProxy": no_proxy},
        });
        let spec = json!({
            "github": github_spec,
            "registration": "RegistrationToken",
            "preflight": {"egress": [github]},
        });
        ctx.pool(name, spec)
    };

    // Given a GitHub whose name only the proxy knows, and a job
    let hidden = format!("https://{HIDDEN_NAME}:{}", server.port());
    let mark = ctx.last_call().await?;
    ctx.apply(&pool("through", &hidden, json!([]))).await?;
    // Then the gate reaches it, a runner comes, and its agent takes the job
    ctx.idle("through", 1).await?;
    let job = ctx.queue("job", "true").await?;
    ctx.succeeded(job).await?;
    ctx.delete("through").await?;
    // And whatever the operator has asked came from the proxy
    ensure!(
        came_from(ctx, mark).await? == BTreeSet::from([machine]),
        "{:#?}",
        ctx.own_calls(mark).await?
    );

    // When a pool with the proxy has GitHub among the exceptions
    let (mark, before) = (ctx.last_call().await?, proxy.connections());
    let exceptions = json!([server.ip().to_string()]);
    ctx.apply(&pool("past", &ctx.cluster.github, exceptions))
        .await?;
    ctx.idle("past", 1).await?;
    ctx.delete("past").await?;
    // Then nobody asks the proxy
    ensure!(
        !came_from(ctx, mark).await?.contains(&machine),
        "{:#?}",
        ctx.own_calls(mark).await?
    );
    let more = proxy.connections() - before;
    ensure!(more == 0, "{more} connections through the proxy");
    Ok(())
}

async fn came_from(ctx: &Ctx, since: u64) -> Result<BTreeSet<IpAddr>> {
    let calls = ctx.own_calls(since).await?;
    Ok(calls.into_iter().map(|call| call.from).collect())
}
