//! What is counted of runners that have ended, and of their jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cuda_runner_plan::hours::{JobOfRunner, RunnerHours};
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::histogram::Histogram;

use super::{OTHER, catalogue as metric};

/// How GitHub says that a job ended. See <https://docs.github.com/en/rest/actions/workflow-jobs?apiVersion=2022-11-28>.
const CONCLUSIONS: [&str; 8] = [
    "success",
    "failure",
    "cancelled",
    "timed_out",
    "skipped",
    "neutral",
    "action_required",
    "stale",
];
/// The word for a job of which GitHub has not said how it ended.
const UNKNOWN: &str = "unknown";
/// So many repositories of one pool are told apart.
const REPOSITORIES: usize = 100;
const QUEUED_BUCKETS: [f64; 11] = [
    1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10800.0,
];
const RUN_BUCKETS: [f64; 12] = [
    10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14400.0, 43200.0,
];

/// What is counted of the runners of one pool that have ended.
#[derive(Debug, Default)]
pub(super) struct HoursSeries {
    /// By use and repository; that is empty where repositories are not told apart, and of a runner without a job.
    gpu_seconds: BTreeMap<(&'static str, String), u64>,
    jobs: BTreeMap<&'static str, u64>,
    queued: Option<Histogram>,
    ran: Option<Histogram>,
}

impl HoursSeries {
    pub(super) fn add(&mut self, hours: &RunnerHours, by_repository: bool) {
        let repository = hours.job.as_ref().and_then(|job| job.repository.as_deref());
        let repository = self.repository(repository.filter(|_| by_repository));
        for (used, seconds) in hours.seconds.by_use() {
            let key = (used, repository.clone());
            *self.gpu_seconds.entry(key).or_default() += seconds * u64::from(hours.gpus);
        }
        if let Some(job) = &hours.job {
            self.add_job(job);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds, not nanoseconds")]
    fn add_job(&mut self, job: &JobOfRunner) {
        let said = job.conclusion.as_deref();
        let known = |said| CONCLUSIONS.into_iter().find(|word| *word == said);
        let conclusion = said.map_or(UNKNOWN, |said| known(said).unwrap_or(OTHER));
        *self.jobs.entry(conclusion).or_default() += 1;
        let observe = |histogram: &mut Option<Histogram>, buckets: &[f64], seconds: Option<u64>| {
            let Some(seconds) = seconds else { return };
            let histogram =
                histogram.get_or_insert_with(|| Histogram::new(buckets.iter().copied()));
            histogram.observe(seconds as f64);
        };
        observe(&mut self.queued, &QUEUED_BUCKETS, job.queued_seconds);
        observe(&mut self.ran, &RUN_BUCKETS, job.run_seconds);
    }

    /// The repository under which a runner is counted. An organization may have any number of them.
    fn repository(&self, name: Option<&str>) -> String {
        let Some(name) = name else {
            return String::new();
        };
        let counted = self.gpu_seconds.keys().map(|(_, name)| name.as_str());
        let counted: BTreeSet<&str> = counted.filter(|n| ![OTHER, ""].contains(n)).collect();
        let has_room = counted.len() < REPOSITORIES || counted.contains(name);
        if has_room { name } else { OTHER }.to_owned()
    }
}

/// Writes what is counted of pools, each with its namespace and name.
pub(super) fn write(
    pools: &[([&str; 2], &HoursSeries)],
    encoder: &mut DescriptorEncoder,
) -> fmt::Result {
    let mut samples = metric::GPU_SECONDS.open(encoder)?;
    for ([namespace, pool], series) in pools {
        for ((used, repository), seconds) in &series.gpu_seconds {
            samples.counter_without_empty([namespace, pool, used, repository], *seconds)?;
        }
    }
    let mut samples = metric::JOBS.open(encoder)?;
    for ([namespace, pool], series) in pools {
        for (conclusion, count) in &series.jobs {
            samples.counter([namespace, pool, conclusion], *count)?;
        }
    }
    let mut samples = metric::JOB_QUEUED.open(encoder)?;
    for (pool, series) in pools {
        if let Some(histogram) = &series.queued {
            samples.histogram(*pool, histogram)?;
        }
    }
    let mut samples = metric::JOB_RUN.open(encoder)?;
    for (pool, series) in pools {
        if let Some(histogram) = &series.ran {
            samples.histogram(*pool, histogram)?;
        }
    }
    Ok(())
}
