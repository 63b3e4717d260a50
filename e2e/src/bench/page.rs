//! The fleet page: how long it takes, and what it costs while people read it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::CudaRunner;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::Instant,
};

use super::{
    Bed, Run,
    bed::pool,
    figure::{Budget, Figure},
    fleet::{AT_ONCE, Entry, Fleet, Size, in_mib, register_one, settled, words},
    player::{finished_with, idle, report},
};
use crate::{deploy::is_ready, gpu, suites::Ctx, wait::wait_for};

/// Runners of the one pool: half of the devices are in use.
pub(super) const RUNNERS: usize = 500;
pub(super) const DEVICES: usize = 1_000;
/// Jobs that have ended: as many as a status keeps.
const ENDED: usize = 10;
/// How often it is asked for, in a run.
const ASKED: usize = 10;
const LIMIT: Duration = Duration::from_mins(5);
/// Readers that ask again as soon as they have an answer, readers that take an answer in small pieces, and pages that wait for
/// changes.
const FAST: usize = 4;
const SLOW: usize = 8;
const OPEN: usize = 8;
/// Answers that the fast ones are to have had.
const READ: usize = 40;
/// What a slow reader takes at a time, and how long it waits then: a document of a megabyte is cut off before its end.
const PIECE: usize = 4 << 10;
const PAUSE: Duration = Duration::from_millis(200);

/// From the connection to the last byte of the page with all devices. The floor is a file that the same server has ready.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let (mut ours, mut document, mut floor) = (vec![], vec![], vec![]);
    Bed::with(DEVICES, async |bed| {
        let page = bed.started_with_page().await?;
        let ctx = bed.ctx("page").await?;
        in_use(&ctx, page).await?;
        for _ in 0..run.runs * ASKED {
            floor.push(timed(page, "/style.css").await?.0);
            let (took, said) = timed(page, "/").await?;
            let squares = said.matches("class=\"d ").count();
            ensure!(squares >= DEVICES, "{squares} devices are on the page");
            let links = said.matches("href=\"device?uuid=").count();
            ensure!(links >= RUNNERS, "{links} devices have a page");
            ours.push(took);
            document.push(timed(page, "/api/fleet").await?.0);
        }
        Ok(())
    })
    .await?;
    let figure = |what: &str, ours| Figure {
        name: format!("{what}, {DEVICES} devices; floor: a file"),
        unit: "s",
        ours,
        floor: floor.clone(),
        budget: Some(Budget::AtMost(1.0)),
    };
    Ok(vec![
        figure("the fleet page", ours),
        figure("`/api/fleet`", document),
    ])
}

/// A pool whose runners have a report of their gate each, with the UUID of their device, and whose last jobs have ended;
/// until the page knows of all that.
pub(super) async fn in_use(ctx: &Ctx, page: SocketAddr) -> Result<()> {
    ctx.apply(&ctx.pool("pool", pool(RUNNERS))).await?;
    let pools: Api<CudaRunner> = ctx.api();
    let owner = pools.get("pool").await?.uid().unwrap_or_default();
    let mut runners = vec![];
    wait_for("all runners to be ready", LIMIT, async || {
        runners.extend(reported(ctx, &owner).await?);
        Ok((runners.len() >= RUNNERS).then_some(()))
    })
    .await?;
    let pods: Api<Pod> = ctx.api();
    for (number, runner) in runners.iter().take(ENDED).enumerate() {
        ctx.github.delete_runner(runner.id).await?;
        let status = json!({"status": finished_with(&ctx.repository, number + 1)});
        pods.patch_status(
            &runner.name,
            &PatchParams::default(),
            &Patch::Strategic(status),
        )
        .await?;
    }
    wait_for("the page to know all devices and jobs", LIMIT, async || {
        // Those that came for the ones that have ended.
        reported(ctx, &owner).await?;
        let (_, answer) = timed(page, "/api/fleet").await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no document")?;
        let document: Value = serde_json::from_str(body)?;
        let all = |list: &str| document[list].as_array().cloned().unwrap_or_default();
        let nodes = all("nodes");
        let devices = nodes.iter().filter_map(|node| node["devices"].as_array());
        let named = devices
            .flatten()
            .filter(|device| device["uuid"].is_string());
        let jobs = all("history")
            .into_iter()
            .filter(|entry| entry["kind"] == "Job");
        Ok((named.count() >= RUNNERS && jobs.count() >= ENDED).then_some(()))
    })
    .await
}

/// What a gate reports is put into each pod that is ready without it, and its runner is registered; gives those.
async fn reported(ctx: &Ctx, owner: &str) -> Result<Vec<Entry>> {
    let pods: Api<Pod> = ctx.api();
    let pods = &pods;
    let mut all = ctx.pods().await?;
    all.retain(|pod| is_ready(pod) && gpu::report(pod).is_none());
    stream::iter(all)
        .map(|pod| async move {
            let status = json!({"status": idle(&report(&pod).summary())});
            let name = pod.name_any();
            pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status))
                .await?;
            register_one(ctx, name, owner).await
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Resident memory while the page is read by many, some of them slow. The floor is the same operator without the page.
pub(super) async fn memory(run: &Run, size: Size, budget: f64) -> Result<Vec<Figure>> {
    let what = format!("{}, with the fleet page read by many", words(size));
    run.story.step(&format!("memory: {what}"));
    let (mut now, mut peak, mut floor, mut floor_peak) = (vec![], vec![], vec![], vec![]);
    Bed::with(size.runners(), async |bed| {
        bed.started().await?;
        let _fleet = Fleet::make(bed, size).await?;
        for _ in 0..run.runs {
            bed.kill().await?;
            bed.started().await?;
            settled(bed).await?;
            let (at_rest, most) = bed.memory()?;
            floor.push(at_rest);
            floor_peak.push(most);
            bed.kill().await?;
            let page = bed.started_with_page().await?;
            settled(bed).await?;
            read(page).await?;
            let (at_rest, most) = bed.memory()?;
            now.push(at_rest);
            peak.push(most);
        }
        Ok(())
    })
    .await?;
    Ok(vec![
        in_mib("while it is read", &what, (now, floor), Some(budget)),
        in_mib("at its peak", &what, (peak, floor_peak), Some(budget)),
    ])
}

/// Until the fast readers have had their answers, beside slow ones and pages that wait.
async fn read(page: SocketAddr) -> Result<()> {
    let (count, mut read) = watch::channel(0_usize);
    let mut readers = JoinSet::new();
    for number in 0..FAST {
        let count = count.clone();
        readers.spawn(async move {
            let path = if number % 2 == 0 { "/" } else { "/api/fleet" };
            loop {
                timed(page, path).await?;
                count.send_modify(|count| *count += 1);
            }
        });
    }
    for _ in 0..SLOW {
        readers.spawn(slowly(page, "/api/fleet"));
    }
    for _ in 0..OPEN {
        readers.spawn(slowly(page, "/events"));
    }
    let enough = read.wait_for(|count| *count >= READ);
    tokio::select! {
        enough = tokio::time::timeout(LIMIT, enough) => {
            enough.context("the readers had too few answers")??;
            Ok(())
        }
        Some(ended) = readers.join_next() => ended?,
    }
}

/// Asks for it again and again, and takes each answer in small pieces. Who is too slow is cut off.
async fn slowly(page: SocketAddr, path: &'static str) -> Result<()> {
    loop {
        let mut stream = asked(page, path).await?;
        let mut piece = vec![0; PIECE];
        while matches!(stream.read(&mut piece).await, Ok(1..)) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn asked(page: SocketAddr, path: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(page).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// How long an answer takes, in seconds, and the answer.
async fn timed(page: SocketAddr, path: &str) -> Result<(f64, String)> {
    let start = Instant::now();
    let mut stream = asked(page, path).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(
        answer.starts_with("HTTP/1.1 200 "),
        "{path}: {}",
        answer.lines().next().unwrap_or_default()
    );
    Ok((start.elapsed().as_secs_f64(), answer))
}
