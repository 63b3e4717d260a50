//! Runs the suites on one cluster, which is started when the first of them needs it: two at a time where both keep to
//! themselves, the others alone.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures::FutureExt as _;
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::{runtime::Handle, sync::RwLock};

use super::{Ctx, SUITES, Suite, context, recorder};
use crate::{
    cluster::{Cluster, Options, may_have_node},
    deploy,
    report::Story,
};

/// Suites at a time: the machine has two cores.
const AT_ONCE: usize = 2;
/// The longest that one suite may take.
const LIMIT: Duration = Duration::from_mins(10);

/// The cluster of all suites, or why there is none.
#[derive(Debug)]
struct Shared {
    options: Options,
    story: Story,
    cluster: tokio::sync::Mutex<Option<Result<Cluster, String>>>,
    /// Read by suites that may run beside others, written by those that run alone.
    floor: RwLock<()>,
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
    let shared = Arc::new(Shared {
        options,
        story: story.clone(),
        cluster: tokio::sync::Mutex::default(),
        floor: RwLock::default(),
    });
    let trials = SUITES
        .iter()
        .filter(|suite| names.is_empty() || names.iter().any(|name| name == suite.name))
        .map(|suite| {
            let (shared, runtime) = (Arc::clone(&shared), runtime.clone());
            Trial::test(suite.name, move || {
                runtime.block_on(shared.run(suite)).map_err(Failed::from)
            })
            .with_ignored_flag(suite.node && !may_have_node())
        })
        .collect();
    let arguments = Arguments {
        test_threads: Some(AT_ONCE),
        ..Arguments::default()
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    let cluster = runtime.block_on(shared.cluster.lock()).take();
    if let Some(Ok(cluster)) = cluster {
        cluster
            .down()
            .context("the suites are done, but their cluster could not be taken down")?;
    }
    Ok(conclusion)
}

impl Shared {
    async fn run(&self, suite: &Suite) -> Result<(), String> {
        if suite.beside {
            let _floor = self.floor.read().await;
            self.on_the_floor(suite).await
        } else {
            let _floor = self.floor.write().await;
            self.on_the_floor(suite).await
        }
    }

    async fn on_the_floor(&self, suite: &Suite) -> Result<(), String> {
        let started = Instant::now();
        let cluster = self.cluster().await?;
        let ctx = Ctx::new(&cluster, suite.name)
            .await
            .map_err(|error| format!("cannot prepare the suite: {error:#}"))?;
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
            // Before anything is tidied away.
            Err(error) => Some(format!("{error:#}\n\n{}", context::diagnosis(&ctx).await)),
        };
        let tidied = ctx.tidy(!suite.beside).await;
        let took = started.elapsed().as_secs();
        self.story.step(&format!("suite {}: {took} s", suite.name));
        match (failure, tidied) {
            (None, Ok(())) => Ok(()),
            (None, Err(error)) => Err(format!(
                "it passed, but left something behind: {error:#}\n\n{}",
                context::diagnosis(&ctx).await
            )),
            (Some(failure), _) => Err(failure),
        }
    }

    /// Starts the cluster, the first time.
    async fn cluster(&self) -> Result<Cluster, String> {
        let mut cluster = self.cluster.lock().await;
        if let Some(cluster) = cluster.clone() {
            return cluster;
        }
        let name = format!("test-{}", std::process::id());
        let started = async {
            let cluster = Cluster::up(&name, self.options, &self.story).await?;
            if let Err(error) = deploy::install(&cluster, self.options.profile).await {
                let why = deploy::system(&cluster).await;
                cluster.down()?;
                return Err(error.context(why));
            }
            recorder::start(&cluster).await?;
            self.story.step("operator installed");
            anyhow::Ok(cluster)
        }
        .await
        .map_err(|error| format!("there is no cluster to run on: {error:#}"));
        *cluster = Some(started.clone());
        started
    }
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without words")
}
