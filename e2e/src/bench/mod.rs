//! `cargo e2e bench`: the product's figures, each beside the least that it could be, measured in the same run.

mod bed;
mod figure;
mod fleet;
mod hostile;
mod node;
mod page;
pub(crate) mod player;
mod pods;
mod queue;
mod requests;
mod scale_out;
mod size;
mod slow_github;
mod smoke;
mod steady;
mod week;
mod why;

use std::{fmt::Write as _, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures::future::LocalBoxFuture;
use serde_json::{Value, json};

use crate::{
    images, paths, process,
    tools::{KUBERNETES, Tools},
};
pub use bed::Run;
pub(crate) use bed::gated_pool;
use bed::{Bed, PROFILE};
use figure::Figure;
use fleet::Size;
use requests::Pace;

/// A row of the bench; some give several figures.
struct Row {
    name: &'static str,
    /// Whether it is left out unless it is named: it takes minutes.
    long: bool,
    about: &'static str,
    measure: for<'a> fn(&'a Run) -> LocalBoxFuture<'a, Result<Vec<Figure>>>,
}

/// An entry of the table. `long` ones are left out unless they are named: they take many minutes.
macro_rules! row {
    ($name:literal, $about:literal, $run:ident => $measure:expr) => {
        row!(@ $name, false, $about, $run => $measure)
    };
    (long $name:literal, $about:literal, $run:ident => $measure:expr) => {
        row!(@ $name, true, $about, $run => $measure)
    };
    (@ $name:literal, $long:literal, $about:literal, $run:ident => $measure:expr) => {
        Row { name: $name, long: $long, about: $about, measure: |$run| Box::pin($measure) }
    };
}

/// One pool with many runners.
const WIDE: Size = Size {
    pools: 1,
    each: 500,
};
/// Many pools.
const MANY: Size = Size {
    pools: 100,
    each: 5,
};
/// As many as one operator should hold.
const MOST: Size = Size {
    pools: 1000,
    each: 5,
};

const ROWS: &[Row] = &[
    row!("scale-out", "0 → 500 runners, beside a bare client that makes the same pods",
        run => scale_out::run(run, 500)),
    row!("requests", "requests and calls for a runner, where many end at a time",
        run => requests::run(run, Pace::Together)),
    row!("requests-slow", "the same, where one ends after the other",
        run => requests::run(run, Pace::OneByOne)),
    row!("idle", "requests and calls of an idle pool in a minute",
        run => requests::idle(run)),
    row!("queue", "a job that is queued to the pod that a scale set's pool makes for it",
        run => queue::run(run)),
    row!("restart-500", "restart to the first action: 500 runners in 100 pools",
        run => fleet::restart(run, MANY)),
    row!("memory-1", "memory of an operator with one idle pool",
        run => fleet::memory(run, Size { pools: 1, each: 1 }, 16.0)),
    row!("memory-500", "memory with 500 runners in one pool",
        run => fleet::memory(run, WIDE, 32.0)),
    row!("slow-github", "0 → 100 runners beside 64 pools whose GitHub takes 2 s for each answer",
        run => slow_github::run(run)),
    row!("hostile", "0 → 100 runners, and memory, beside 100 pools at a server that answers with whatever it likes",
        run => hostile::run(run)),
    row!("smoke", "`cuda-smoke check` of one and of eight devices, without the driver's own time",
        run => smoke::run(run)),
    row!("gate", "a whole `cuda-smoke gate`, its preparation included, without the driver's own time",
        run => smoke::gate(run)),
    row!("why", "`kubectl cudarunner why` about a pool of 500 runners, about a job, and about all pools, with 1,000 devices",
        run => why::run(run)),
    row!("page", "the fleet page with 1,000 devices",
        run => page::run(run)),
    row!("size", "what the images add to their bases",
        run => std::future::ready(size::run(run))),
    row!("first-runner", "`kubectl apply` of a plain pool to its idle runner, on a real node",
        run => node::idle(run)),
    row!("busy", "a job's start and end to the status that shows its runner as busy, and not, on a real node",
        run => node::busy(run)),
    row!("container-job", "a container job: from the agent's call of the hook to the first step, beside the pull",
        run => node::container_job(run)),
    row!(long "steady", "500 runners, one job a second for five minutes: from its end to the next pod",
        run => steady::run(run, WIDE, Duration::from_mins(5))),
    row!(long "churn", "the same for an hour, with 50 runners: does memory grow?",
        run => steady::churn(run, Size { pools: 1, each: 50 }, Duration::from_hours(1))),
    row!(long "restart-5000", "restart to the first action: 5,000 runners in 1,000 pools",
        run => fleet::restart(run, MOST)),
    row!(long "memory-sets", "memory with 1,000 pools that have a scale set each",
        run => fleet::scale_sets(run, MOST.pools, 100.0)),
    row!(long "memory-5000", "memory with 5,000 runners in 1,000 pools",
        run => fleet::memory(run, MOST, 100.0)),
    row!(long "memory-page", "the same while the fleet page is read by many, beside the same without the page",
        run => page::memory(run, MOST, 100.0)),
    row!(long "week", "a week of two fleets whose GPUs fail, in half an hour: jobs lost with the gate and without",
        run => week::run(run)),
];

/// The rows, for people.
pub fn list() -> String {
    ROWS.iter().fold(String::new(), |mut text, row| {
        let long = if row.long { " (only when named)" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:16} {}{long}", row.name, row.about);
        text
    })
}

/// Measures the rows that are named, or all that do not take long; prints the table as it grows to its end.
pub async fn run(run: &Run, only: &[String], json: Option<&Path>) -> Result<()> {
    if let Some(unknown) = only
        .iter()
        .find(|name| ROWS.iter().all(|row| row.name != **name))
    {
        bail!("there is no row `{unknown}`; `cargo e2e bench --list` shows them all");
    }
    run.story
        .step("building what is measured, as it is published");
    let story = run.story.clone();
    tokio::task::spawn_blocking(move || images::build_binaries(PROFILE, &story)).await??;
    Tools::ensure(KUBERNETES[0], &run.story)?;
    let before = load()?;
    let mut figures = vec![];
    let mut failed = vec![];
    for row in ROWS {
        let wanted = if only.is_empty() {
            !row.long
        } else {
            only.iter().any(|name| name == row.name)
        };
        if !wanted {
            continue;
        }
        match (row.measure)(run).await {
            Ok(new) => figures.extend(new),
            Err(error) => {
                run.story.step(&format!("{}: {error:#}", row.name));
                failed.push(row.name);
            }
        }
    }
    let machine = machine(&before)?;
    println!("{}", machine["text"].as_str().unwrap_or_default());
    println!("\n{}", figure::table(&figures));
    if let Some(file) = json {
        let rows: Vec<Value> = figures.iter().map(Figure::json).collect();
        let whole = json!({"machine": machine, "runs": run.runs, "figures": rows});
        fs::write(file, format!("{whole:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(())
}

/// Where and of what the figures are. The load says whether the machine had other things to do.
fn machine(load_before: &str) -> Result<Value> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        process::output(command.args(arguments).current_dir(paths::repository()))
    };
    let commit = git(&["rev-parse", "--short", "HEAD"]);
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    let commit = match (commit, changed) {
        (Ok(commit), Ok(changed)) if changed.trim().is_empty() => commit.trim().to_owned(),
        (Ok(commit), _) => format!("{}, changed", commit.trim()),
        (Err(_), _) => "unknown".to_owned(),
    };
    let cores = std::thread::available_parallelism()?.get();
    let memory = fs::read_to_string("/proc/meminfo")?
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .split_ascii_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .map_or(0, |kib: u64| kib / 1024 / 1024);
    let load_after = load()?;
    let text = format!(
        "commit {commit}; {cores} cores, {memory} GiB; load average {load_before} before, {load_after} after"
    );
    Ok(json!({
        "text": text, "commit": commit, "cores": cores, "memoryGiB": memory,
        "loadBefore": load_before, "loadAfter": load_after,
    }))
}

/// The average over one minute.
fn load() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(load.split(' ').next().unwrap_or_default().to_owned())
}
