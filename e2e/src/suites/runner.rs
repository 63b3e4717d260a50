//! Runs the suites, three at a time, each on a cluster of its own: a cluster is started when the first suite needs it, and
//! serves one after the other.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures::FutureExt as _;
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::{runtime::Handle, sync::watch};

use super::{Ctx, SUITES, Suite, diagnosis, recorder};
use crate::{
    cluster::{Cluster, Options, may_have_node},
    deploy,
    report::Story,
};

/// Suites at a time, and clusters. Most of a suite is waiting, for agents, kubelets and back-offs: two cores carry three.
const LANES: [char; 3] = ['a', 'b', 'c'];
/// The longest that one suite may take, on a machine that has other things to do.
const LIMIT: Duration = Duration::from_mins(20);

/// What all suites share.
#[derive(Debug)]
struct Shared {
    options: Options,
    story: Story,
    /// Those that no suite is on.
    lanes: Mutex<Vec<Lane>>,
    /// Every cluster that was started.
    clusters: Mutex<Vec<Cluster>>,
    /// Suites that have not ended, but for those that wait for all others.
    left: watch::Sender<usize>,
}

/// A cluster that takes one suite after the other, or why there is none; nothing before the first.
#[derive(Debug)]
struct Lane {
    letter: char,
    cluster: Option<Result<Cluster, String>>,
}

/// Runs the suites whose names are given, all where none is.
pub fn run(
    runtime: &Handle,
    names: &[String],
    options: Options,
    story: &Story,
) -> Result<Conclusion> {
    if let Some(unknown) = names
        .iter()
        .find(|name| SUITES.iter().all(|suite| suite.name != **name))
    {
        bail!("there is no suite `{unknown}`; `cargo e2e test --list` shows them all");
    }
    let left_out = SUITES
        .iter()
        .filter(|suite| names.is_empty() && suite.by_name.is_some());
    for suite in left_out {
        story.step(&format!("NOT RUN: suite {}: {}", suite.name, suite.about));
    }
    let chosen: Vec<&Suite> = SUITES
        .iter()
        .filter(|suite| {
            let by_default = names.is_empty() && suite.by_name.is_none();
            by_default || names.iter().any(|name| name == suite.name)
        })
        .collect();
    let shared = Arc::new(Shared {
        options,
        story: story.clone(),
        lanes: Mutex::new(LANES.map(Lane::new).into()),
        clusters: Mutex::default(),
        left: watch::Sender::new(0),
    });
    let trials = chosen
        .into_iter()
        .map(|suite| {
            let lacks = suite.by_name.and_then(|lacks| lacks());
            if let Some(why) = &lacks {
                story.step(&format!("SKIPPED: suite {}: {why}", suite.name));
            }
            let is_ignored = lacks.is_some() || suite.node && !may_have_node();
            if !is_ignored && !suite.last {
                shared.left.send_modify(|left| *left += 1);
            }
            let (shared, runtime) = (Arc::clone(&shared), runtime.clone());
            Trial::test(suite.name, move || {
                runtime.block_on(shared.run(suite)).map_err(Failed::from)
            })
            .with_ignored_flag(is_ignored)
        })
        .collect();
    let arguments = Arguments {
        test_threads: Some(LANES.len()),
        ..Arguments::default()
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    for cluster in locked(&shared.clusters).drain(..) {
        cluster
            .down()
            .context("the suites are done, but a cluster could not be taken down")?;
    }
    Ok(conclusion)
}

impl Lane {
    fn new(letter: char) -> Self {
        Self {
            letter,
            cluster: None,
        }
    }
}

impl Shared {
    async fn run(&self, suite: &Suite) -> Result<(), String> {
        if suite.last {
            let mut left = self.left.subscribe();
            // The sender is here, so there is an answer.
            let _ = left.wait_for(|left| *left == 0).await;
        }
        let mut lane = locked(&self.lanes).pop().ok_or("every cluster is taken")?;
        let outcome = self.on(&mut lane, suite).await;
        locked(&self.lanes).push(lane);
        if !suite.last {
            self.left.send_modify(|left| *left -= 1);
        }
        outcome
    }

    async fn on(&self, lane: &mut Lane, suite: &Suite) -> Result<(), String> {
        let started = Instant::now();
        let cluster = self.cluster(lane).await?;
        let mut ctx = Ctx::new(&cluster, suite.name)
            .await
            .map_err(|error| format!("cannot prepare the suite: {error:#}"))?;
        ctx.clusters.clone_from(&locked(&self.clusters));
        let attempt = AssertUnwindSafe(tokio::time::timeout(LIMIT, (suite.run)(&ctx)))
            .catch_unwind()
            .await;
        let outcome = match attempt {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(anyhow::anyhow!(
                "it did not end within {} s",
                LIMIT.as_secs()
            )),
            Err(panic) => Err(anyhow::anyhow!("it panicked: {}", words(panic.as_ref()))),
        };
        // GitHub's description holds in every suite, whatever else it shows.
        let outcome = match outcome {
            Ok(()) => ctx.no_violations().await,
            error => error,
        };
        let failure = match outcome {
            Ok(()) => None,
            Err(error) => {
                let why = format!("{error:#}");
                // The whole is shown when all suites are done.
                self.story
                    .step(&format!("suite {} failed: {why}", suite.name));
                // Before anything is tidied away.
                Some(failed(&why, &ctx).await)
            }
        };
        let tidied = ctx.tidy().await;
        let took = started.elapsed().as_secs();
        self.story.step(&format!("suite {}: {took} s", suite.name));
        match (failure, tidied) {
            (None, Ok(())) => Ok(()),
            (None, Err(error)) => {
                let why = format!("it passed, but left something behind: {error:#}");
                Err(failed(&why, &ctx).await)
            }
            (Some(failure), _) => Err(failure),
        }
    }

    /// The cluster of a lane, which is started where there is none. One failure may be the machine's: it is tried twice.
    async fn cluster(&self, lane: &mut Lane) -> Result<Cluster, String> {
        if let Some(known) = &lane.cluster {
            return known.clone();
        }
        let mut started = self.start(lane.letter).await;
        if let Err(error) = &started {
            let what = format!("cluster {} did not start, and is tried again", lane.letter);
            self.story.step(&format!("{what}: {error}"));
            started = self.start(lane.letter).await;
        }
        lane.cluster.insert(started).clone()
    }

    /// Starts a lane's cluster.
    async fn start(&self, letter: char) -> Result<Cluster, String> {
        let name = format!("test-{}{letter}", std::process::id());
        let started = async {
            let cluster = Cluster::up(&name, self.options, &self.story).await?;
            if let Err(error) = deploy::install(&cluster, self.options.profile, &[]).await {
                let error = deploy::failed(&cluster, error).await;
                cluster.down()?;
                return Err(error);
            }
            if let Err(error) = recorder::start(&cluster).await {
                cluster.down()?;
                return Err(error);
            }
            self.story.step("operator installed");
            anyhow::Ok(cluster)
        };
        let cluster = started
            .await
            .map_err(|error| format!("there is no cluster to run on: {error:#}"))?;
        locked(&self.clusters).push(cluster.clone());
        Ok(cluster)
    }
}

/// Why a suite failed, before and after all that there is to see: of a long output either end may be cut.
async fn failed(why: &str, ctx: &Ctx) -> String {
    let shown = diagnosis::diagnosis(ctx).await;
    format!("{why}\n\n{shown}--- why it failed\n{why}\n")
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without words")
}
