//! A server that answers with whatever it likes costs its own pools their runners, and no others anything.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use futures::{TryStreamExt as _, future::try_join_all, stream};
use serde_json::json;
use tokio::time::sleep;

use super::{
    Bed, Run,
    bed::pool,
    figure::{Budget, Figure},
    slow_github::{RUNNERS, scale_out},
};
use crate::{
    example,
    ill_server::{self, Ill, IllServer},
    suites::Ctx,
};

/// Pools, a sixth for each of the ways in which such a server answers.
const POOLS: usize = 100;
/// Well-behaved pools that are made, one after the other, without those and beside them.
const ROUNDS: usize = 5;
/// For so long the operator has asked these servers, and asked again, before its memory is read.
const WHILE: Duration = Duration::from_mins(1);
/// What the names of the Secret and of the ConfigMap of its pools begin with.
const NAME: &str = "hostile";

/// The operator's memory at its peak, and what a well-behaved pool has to wait. The floors are the memory with the
/// well-behaved pools alone, and what they wait then.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let (mut ours, mut floor) = (vec![], vec![]);
    let (mut peak, mut before) = (vec![], vec![]);
    for number in 0..run.runs {
        run.story.step(&format!(
            "beside a server that answers with whatever it likes: run {} of {}",
            number + 1,
            run.runs
        ));
        Bed::with(2 * ROUNDS * RUNNERS, async |bed| {
            bed.started().await?;
            floor.extend(rounds(bed, "alone").await?);
            before.push(bed.memory()?.1);
            let hostile = bed.ctx(NAME).await?;
            let servers = start(&hostile).await?;
            apply_all(&hostile, &servers).await?;
            ours.extend(rounds(bed, "beside").await?);
            sleep(WHILE).await;
            peak.push(bed.memory()?.1);
            drop(servers);
            Ok(())
        })
        .await?;
    }
    Ok(vec![
        Figure {
            name: format!(
                "memory at its peak, {POOLS} pools at a server that answers with whatever it likes"
            ),
            unit: "MiB",
            ours: peak,
            floor: before,
            budget: Some(Budget::AtMost(128.0)),
        },
        Figure {
            name: format!("a new pool's {RUNNERS} pods beside them"),
            unit: "s",
            ours,
            floor,
            budget: Some(Budget::TimesFloor(1.25)),
        },
    ])
}

/// Makes well-behaved pools, one after the other; what each took.
async fn rounds(bed: &Bed, name: &str) -> Result<Vec<f64>> {
    let mut times = vec![];
    for number in 0..ROUNDS {
        times.push(scale_out(&bed.ctx(&format!("{name}-{number}")).await?).await?);
    }
    Ok(times)
}

/// Makes the pools of these servers.
async fn apply_all(ctx: &Ctx, servers: &[IllServer]) -> Result<()> {
    stream::iter((0..POOLS).map(anyhow::Ok))
        .try_for_each_concurrent(16, async |number| {
            let server = &servers[number % servers.len()];
            // What a server may cost, it costs without a runner, too.
            let mut spec = pool(0);
            spec["github"] = json!({
                "url": format!("{}/{NAME}/{number}", server.url),
                "credentialsRef": {"name": NAME},
                "caBundleRef": {"name": NAME},
            });
            ctx.apply(&ctx.pool(&format!("{NAME}-{number}"), spec))
                .await
        })
        .await
}

/// Starts one server for each way, beside the simulated GitHub; what pools need to ask them lies in the namespace.
async fn start(ctx: &Ctx) -> Result<Vec<IllServer>> {
    let github = ctx.cluster.github.trim_start_matches("https://");
    let address = github.parse::<SocketAddr>().context("GitHub's address")?;
    let (keys, authority) = ill_server::keys(&ctx.cluster.dir.join(NAME), address.ip())?;
    let (client, namespace) = (&ctx.client, &ctx.namespace);
    example::secret(client, namespace, NAME, &json!({"token": "token"})).await?;
    example::authority(client, namespace, NAME, &authority).await?;
    let ways = [
        Ill::Endless,
        Ill::Long,
        Ill::Crowd,
        Ill::Trickle,
        Ill::Stall,
        Ill::Heavy,
    ];
    try_join_all(ways.map(|ill| IllServer::start(address.ip(), &keys, ill))).await
}
