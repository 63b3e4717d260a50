//! Runs the suites one after the other on one cluster, which is started when the first of them needs it.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures::FutureExt as _;
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::runtime::Handle;

use super::{Ctx, SUITES, Suite, context, recorder};
use crate::{
    cluster::{Cluster, Options, may_have_node},
    deploy,
    report::Story,
};

/// The longest that one suite may take.
const LIMIT: Duration = Duration::from_mins(10);

/// The cluster of all suites, or why there is none.
#[derive(Debug)]
struct Shared {
    options: Options,
    story: Story,
    cluster: Mutex<Option<Result<Cluster, String>>>,
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
        cluster: Mutex::default(),
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
    // One after the other, on the machine's two cores and on one node.
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::default()
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    let cluster = shared
        .cluster
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(Ok(cluster)) = cluster {
        cluster
            .down()
            .context("the suites are done, but their cluster could not be taken down")?;
    }
    Ok(conclusion)
}

impl Shared {
    async fn run(&self, suite: &Suite) -> Result<(), String> {
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
        let tidied = ctx.tidy().await;
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
        if let Some(cluster) = self
            .cluster
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
        {
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
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = Some(started.clone());
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
