//! A pool with a proxy: operator, gate and agent reach GitHub through it alone, or past it where it is told so.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::Ctx;
use crate::{
    example, ill_server,
    proxy::{Door, ForwardProxy},
    simulator::{self, HIDDEN_NAME},
};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let link = ctx.cluster.link.as_ref().context("there is no link")?;
    let machine = IpAddr::from(link.machine);
    let address = ctx.cluster.github.trim_start_matches("https://");
    let server: SocketAddr = address.parse()?;
    let proxy = ForwardProxy::start(machine, (HIDDEN_NAME, server), Door::default()).await?;
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
    by_tls_for_a_user(ctx, machine, server).await
}

/// A proxy that is reached by TLS, and asks for a user.
async fn by_tls_for_a_user(ctx: &Ctx, machine: IpAddr, server: SocketAddr) -> Result<()> {
    // Given a password that the suite `secrets` finds wherever it is written, with what has a meaning in addresses
    let secret = format!("ghp_{}", "proxy".repeat(5));
    let basic = STANDARD.encode(format!("runners:{secret}@"));
    let keys = ctx.cluster.dir.join("proxy");
    let (tls, authority) = ill_server::keys(&keys, machine)?;
    let door = Door {
        user: Some(format!("Basic {basic}")),
        tls: Some(tls),
    };
    let proxy = ForwardProxy::start(machine, (HIDDEN_NAME, server), door).await?;
    let both = format!("{}{authority}", simulator::authority(&ctx.cluster.dir)?);
    example::authority(&ctx.client, &ctx.namespace, "both", &both).await?;
    let hidden = format!("https://{HIDDEN_NAME}:{}", server.port());
    let pool = |user: &str| {
        let through = json!({"url": proxy.url, "credentialsRef": {"name": user}});
        let spec = json!({
            "github": {
                "url": format!("{hidden}/{}", ctx.repository),
                "proxy": through,
                "caBundleRef": {"name": "both"},
            },
            "registration": "RegistrationToken",
            "preflight": {"egress": [hidden]},
        });
        ctx.pool("user", spec)
    };
    let user = async |password: &str| {
        let data = json!({"username": "runners", "password": password});
        example::secret(&ctx.client, &ctx.namespace, "proxy-user", &data).await
    };
    let says = async |reason: &str, word: &str| {
        let said = ctx.condition("user", "CredentialsValid", "False", reason);
        let said = said.await?;
        ensure!(said.contains(word), "{word} is not in: {said}");
        anyhow::Ok(())
    };

    // When the Secret is not there, or holds what no address can, then that is said
    ctx.apply(&pool("proxy-user")).await?;
    says("SecretNotFound", "proxy-user").await?;
    user(&format!("{secret}@")).await?;
    says("SecretInvalid", "%40").await?;
    // When it is right, then a runner comes through the proxy, and its job runs
    let mark = ctx.last_call().await?;
    user(&format!("{secret}%40")).await?;
    ctx.idle("user", 1).await?;
    let job = ctx.queue("with-a-user", "true").await?;
    ctx.succeeded(job).await?;
    ctx.delete("user").await?;
    ensure!(
        came_from(ctx, mark).await? == BTreeSet::from([machine]),
        "{:#?}",
        ctx.own_calls(mark).await?
    );
    Ok(())
}

async fn came_from(ctx: &Ctx, since: u64) -> Result<BTreeSet<IpAddr>> {
    let calls = ctx.own_calls(since).await?;
    Ok(calls.into_iter().map(|call| call.from).collect())
}
