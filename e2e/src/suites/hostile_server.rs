//! Pools whose `github.url` names servers that mean ill: nobody else waits for their runners, and the operator lives on
//! in little memory and says what it met in plain words.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use futures::{future::try_join_all, try_join};
use serde_json::json;

use super::{
    Ctx, SOON,
    neighbour::{self, Neighbour, nothing_hidden},
};
use crate::{
    example,
    ill_server::{self, FORGED, Ill, IllServer},
    simulator,
};

/// Pools of each server.
const POOLS: usize = 2;
/// How often one of them asks, in the minute or two that the suite takes: what fails is asked again ever later.
const TIMES: usize = 8;
/// Pages of a list of runners, at most.
const PAGES: usize = 200;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let machine = ctx
        .cluster
        .link
        .as_ref()
        .context("there is no link")?
        .machine;
    let machine = IpAddr::from(machine);
    let (keys, authority) = ill_server::keys(&ctx.cluster.dir.join("ill"), machine)?;
    // The agents of one pool register with GitHub itself, past the server that the pool names.
    let github = simulator::authority(&ctx.cluster.dir)?;
    let authorities = format!("{authority}{github}");
    let (client, namespace) = (&ctx.client, &ctx.namespace);
    example::authority(client, namespace, "ill-ca", &authorities).await?;
    example::secret(client, namespace, "token", &json!({"token": "somebody"})).await?;
    let start = async |name, ill| {
        let server = IllServer::start(machine, &keys, ill).await?;
        anyhow::Ok((name, server))
    };
    let (_, trap) = start("trap", Ill::Trap).await?;
    let servers = try_join_all([
        start("crowd", Ill::Crowd),
        start("endless", Ill::Endless),
        start("long", Ill::LongRefusal),
        start("trickle", Ill::Trickle),
        start("stall", Ill::Stall),
        start("silent", Ill::Silent),
        start("deep", Ill::Deep),
        start("escapes", Ill::Escapes),
        start("before", Ill::Limits("-1")),
        start("never", Ill::Limits("99999999999999999999")),
        start("elsewhere", Ill::Redirect(format!("{}/o/r", trap.url))),
        start(
            "loopback",
            Ill::Redirect("https://127.0.0.1:8080/metrics".to_owned()),
        ),
        start(
            "apiserver",
            Ill::Redirect("https://10.96.0.1/api/v1/secrets".to_owned()),
        ),
    ])
    .await?;
    let (_, forger) = start("forger", Ill::Forger(Box::new(ctx.github.clone()))).await?;
    let ill = async |other: &Neighbour| {
        try_join!(
            meet(ctx, &servers),
            forged(ctx, &forger),
            other.is_unharmed(),
        )?;
        ensure!(trap.asked() == 0, "credentials were carried elsewhere");
        nothing_hidden(ctx, FORGED).await
    };
    Box::pin(neighbour::beside(ctx, ill)).await
}

/// Each pool says what its server did, and the server is left alone.
async fn meet(ctx: &Ctx, servers: &[(&str, IllServer)]) -> Result<()> {
    let names = servers.iter().flat_map(|(name, server)| {
        (0..POOLS).map(move |number| (format!("{name}-{number}"), server))
    });
    let all = names.map(async |(name, server)| {
        let github = json!({
            "url": format!("{}/ill/{name}", server.url),
            "credentialsRef": {"name": "token"},
            "caBundleRef": {"name": "ill-ca", "key": "ca.crt"},
        });
        let spec = json!({
            "github": github, "labels": ["nobody"], "replicas": 0, "teardownTimeout": "1s",
        });
        ctx.apply(&ctx.pool(&name, spec)).await?;
        ctx.wait_for(
            &format!("{name} to say what its server did"),
            SOON,
            async || {
                let mut all = ctx.status(&name).await?.conditions.into_iter();
                Ok(all.find(|c| {
                    c.type_ == "CredentialsValid" && c.status != "True" && c.reason != "NotChecked"
                }))
            },
        )
        .await
    });
    let reported = try_join_all(all).await?;
    for (name, server) in servers {
        println!("hostile-server: {name} was asked {} times", server.asked());
        ensure!(server.asked() > 0, "{name} was not asked");
        let pages = if *name == "endless" { PAGES } else { 1 };
        let most = TIMES * POOLS * pages;
        ensure!(
            server.asked() <= most,
            "{name} was asked {} times, more than {most}",
            server.asked()
        );
    }
    for condition in reported.iter().step_by(POOLS) {
        println!(
            "hostile-server: {}: {}",
            condition.reason, condition.message
        );
    }
    Ok(())
}

/// A job whose end a server puts into the year 9999, and whose name moves cursors: the pool goes on.
async fn forged(ctx: &Ctx, forger: &IllServer) -> Result<()> {
    let github = json!({
        "url": format!("{}/{}", forger.url, ctx.repository),
        "caBundleRef": {"name": "ill-ca", "key": "ca.crt"},
    });
    let labels = ["self-hosted", "forged"];
    let spec = json!({"github": github, "labels": labels, "preflight": null});
    ctx.apply(&ctx.pool("forged", spec)).await?;
    let runner = ctx.idle("forged", 1).await?.remove(0);
    let job = ctx.queue_for("job", &labels, "true", false).await?;
    ctx.succeeded(job).await?;
    let jobs = ctx.concluded("forged", 1).await?;
    ensure!(jobs[0].runner == runner, "{jobs:?}");
    ctx.other_ready("forged", &runner).await?;
    // And one that waits for a pool that is not there
    ctx.queue_for("lost", &["self-hosted", "forged", "absent"], "true", false)
        .await?;
    ctx.annotate("forged", cudarunner_crds::LOOK_AGAIN, "queue")
        .await?;
    ctx.condition("forged", "QueueServed", "False", "LabelMissing")
        .await?;
    // And it goes while its server is there, which takes its runner's entry away
    ctx.delete("forged").await
}
