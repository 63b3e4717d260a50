//! Which metrics there are: name, type, labels and help of each.
//!
//! A label holds a namespace, the name of a pool, a word of ours, an opaque hash, or one of a few names of products: no
//! runner, node, device or message. Repositories are named only where that is switched on.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::{encoding::EncodeMetric as _, metrics::exemplar::Exemplar};

/// What every name starts with.
pub const PREFIX: &str = "cudarunner";

/// A metric with `N` labels.
#[derive(Debug)]
pub struct Metric<const N: usize> {
    name: &'static str,
    kind: Kind,
    labels: [&'static str; N],
    help: &'static str,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only grows, until the process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts, by upper bound.
    Histogram,
    /// Always 1; the labels are what it says.
    Info,
}

/// A metric, as the reference and the tests see it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

impl Kind {
    const fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }

    /// The name, as in `# TYPE`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }

    /// What is added to a metric's name in its samples.
    const fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter => &["_total"],
            Self::Gauge => &[""],
            Self::Histogram => &["_bucket", "_sum", "_count"],
            Self::Info => &["_info"],
        }
    }
}

impl Entry {
    /// The name by which it is found in Prometheus; a histogram's lacks `_bucket`, `_sum` and `_count`.
    #[must_use]
    pub fn name(&self) -> String {
        let suffix = match self.kind {
            Kind::Counter | Kind::Info => self.kind.suffixes()[0],
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{PREFIX}_{}{suffix}", self.name)
    }

    /// The names of its samples.
    #[must_use]
    pub fn samples(&self) -> Vec<String> {
        let suffixes = self.kind.suffixes().iter();
        suffixes
            .map(|suffix| format!("{PREFIX}_{}{suffix}", self.name))
            .collect()
    }
}

impl<const N: usize> Metric<N> {
    const fn entry(&'static self) -> Entry {
        Entry {
            name: self.name,
            kind: self.kind,
            labels: &self.labels,
            help: self.help,
        }
    }

    /// Writes its header; its samples follow.
    pub(super) fn open<'a>(
        &'static self,
        encoder: &'a mut DescriptorEncoder,
    ) -> Result<Series<'a, N>, fmt::Error> {
        let kind = self.kind.metric_type();
        let encoder = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        Ok(Series {
            encoder,
            labels: self.labels,
        })
    }
}

/// Writes the samples of a metric with `N` labels.
pub(super) struct Series<'a, const N: usize> {
    encoder: MetricEncoder<'a>,
    labels: [&'static str; N],
}

impl<const N: usize> Series<'_, N> {
    fn labelled<'v>(&self, values: [&'v str; N]) -> [(&'static str, &'v str); N] {
        std::array::from_fn(|i| (self.labels[i], values[i]))
    }

    pub(super) fn info(&mut self, values: [&str; N]) -> fmt::Result {
        let labels = self.labelled(values);
        self.encoder.encode_info(&labels)
    }

    pub(super) fn gauge(&mut self, values: [&str; N], value: u64) -> fmt::Result {
        let labels = self.labelled(values);
        self.encoder.encode_family(&labels)?.encode_gauge(&value)
    }

    pub(super) fn counter(&mut self, values: [&str; N], value: u64) -> fmt::Result {
        let labels = self.labelled(values);
        let none: Option<&Exemplar<NoLabelSet, u64>> = None;
        self.encoder
            .encode_family(&labels)?
            .encode_counter(&value, none)
    }

    /// A counter of which labels without a value are left out.
    pub(super) fn counter_without_empty(&mut self, values: [&str; N], value: u64) -> fmt::Result {
        let labels = self.labelled(values).into_iter();
        let labels: Vec<_> = labels.filter(|(_, value)| !value.is_empty()).collect();
        let none: Option<&Exemplar<NoLabelSet, u64>> = None;
        self.encoder
            .encode_family(&labels)?
            .encode_counter(&value, none)
    }

    pub(super) fn histogram(&mut self, values: [&str; N], value: &Histogram) -> fmt::Result {
        let labels = self.labelled(values);
        value.encode(self.encoder.encode_family(&labels)?)
    }
}

const fn metric<const N: usize>(
    kind: Kind,
    name: &'static str,
    labels: [&'static str; N],
    help: &'static str,
) -> Metric<N> {
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

use Kind::{Counter, Gauge, Histogram as Buckets, Info};

pub(super) static BUILD: Metric<1> = metric(Info, "build", ["version"], "The operator's version");
pub(super) static POOL: Metric<4> = metric(
    Info,
    "pool",
    ["namespace", "pool", "credential", "address"],
    "The credential that a pool uses, and its address on GitHub, each as an opaque hash",
);
pub(super) static RUNNERS: Metric<3> = metric(
    Gauge,
    "runners",
    ["namespace", "pool", "phase"],
    "Runners of a pool by phase, as in the resource's status",
);
pub(super) static WANTED: Metric<2> = metric(
    Gauge,
    "runners_wanted",
    ["namespace", "pool"],
    "Runners that a pool is to have: spec.replicas, or what the queue asks for within spec.scaling; and 0 once it is being deleted",
);
pub(super) static CONDITION: Metric<3> = metric(
    Gauge,
    "pool_condition",
    ["namespace", "pool", "condition"],
    "1 where the condition is True, 0 where it is False, absent where it is Unknown",
);
pub(super) static QUARANTINED: Metric<2> = metric(
    Gauge,
    "nodes_quarantined",
    ["namespace", "pool"],
    "Nodes that are quarantined because they failed this pool's gate",
);
pub(super) static BREAKER: Metric<2> = metric(
    Gauge,
    "breaker_open",
    ["namespace", "pool"],
    "1 while so many nodes fail the gate that no further one is quarantined",
);
pub(super) static VERIFIED: Metric<2> = metric(
    Gauge,
    "verification_passed",
    ["namespace", "pool"],
    "1 where the pool's last verification that has ended was green, 0 where it was not",
);
pub(super) static GATES: Metric<5> = metric(
    Counter,
    "gate_outcomes",
    ["namespace", "pool", "class", "code", "product"],
    "Gates that brought their report; class and code are empty where the gate passed, product where it reached no device",
);
pub(super) static GATE_SECONDS: Metric<2> = metric(
    Buckets,
    "gate_duration_seconds",
    ["namespace", "pool"],
    "Time from the gate's start to its verdict, as it reports it",
);
pub(super) static REGISTRATIONS: Metric<3> = metric(
    Counter,
    "registrations",
    ["namespace", "pool", "result"],
    "Registrations asked of GitHub for gates that had passed: ok, or the category of the error",
);
pub(super) static FAILURES: Metric<4> = metric(
    Counter,
    "runner_failures",
    ["namespace", "pool", "class", "reason"],
    "Runners that ended without a job done, as in status.lastFailures",
);
pub(super) static REFUSED_JOBS: Metric<2> = metric(
    Counter,
    "refused_jobs",
    ["namespace", "pool"],
    "Jobs that were ended before their first step, because spec.jobs.allow does not let them use the GPUs",
);
pub(super) static JOB_ENERGY: Metric<2> = metric(
    Counter,
    "job_gpu_energy_joules",
    ["namespace", "pool"],
    "Energy that GPUs took during jobs, as the jobs' pods say it: information, and no evidence",
);
pub(super) static JOB_WATCHED: Metric<2> = metric(
    Counter,
    "job_gpu_watched_seconds",
    ["namespace", "pool"],
    "Seconds for which it was watched how busy GPUs were during jobs, as the jobs' pods say it",
);
pub(super) static JOB_BUSY: Metric<2> = metric(
    Counter,
    "job_gpu_busy_seconds",
    ["namespace", "pool"],
    "How many of these GPUs were busy",
);
pub(super) static JOB_THROTTLED: Metric<2> = metric(
    Counter,
    "job_gpu_throttled_seconds",
    ["namespace", "pool"],
    "Seconds for which heat or the power supply held GPUs back during jobs, as the jobs' pods say it",
);
pub(super) static JOB_ERRORS: Metric<3> = metric(
    Counter,
    "job_gpu_errors",
    ["namespace", "pool", "kind"],
    "Errors that GPUs counted during jobs, as the jobs' pods say it: ecc-corrected, ecc-uncorrected, pcie-replay, xid",
);
pub(super) static JOB_MEMORY: Metric<2> = metric(
    Gauge,
    "job_gpu_memory_peak_bytes",
    ["namespace", "pool"],
    "The most memory of a GPU that the last jobs took, as the jobs' pods say it",
);
pub(super) static UNUSED: Metric<2> = metric(
    Counter,
    "jobs_without_gpu_use",
    ["namespace", "pool"],
    "Jobs that used none of their GPUs, as the jobs' pods say it",
);
pub(super) static TIMED_OUT_JOBS: Metric<2> = metric(
    Counter,
    "timed_out_jobs",
    ["namespace", "pool"],
    "Jobs that were ended because they took longer than spec.jobs.maxMinutes",
);
pub(super) static RERUNS: Metric<4> = metric(
    Counter,
    "reruns",
    ["namespace", "pool", "cause", "result"],
    "Jobs that a GPU or a node ended, as in status.reruns: Started where GitHub runs them again, Skipped where it does not",
);
pub(super) static GPU_SECONDS: Metric<4> = metric(
    Counter,
    "gpu_seconds",
    ["namespace", "pool", "use", "repository"],
    "Seconds for which GPUs were held by runners that have ended, times their GPUs, by use: gate, idle, job, lost; repository only with --metrics-by-repository",
);
pub(super) static JOBS: Metric<3> = metric(
    Counter,
    "jobs",
    ["namespace", "pool", "conclusion"],
    "Jobs of runners that have ended, by GitHub's word for how the job ended; unknown where GitHub has not said it",
);
pub(super) static JOB_QUEUED: Metric<2> = metric(
    Buckets,
    "job_queued_seconds",
    ["namespace", "pool"],
    "Time from queued to started, of jobs of runners that have ended",
);
pub(super) static JOB_RUN: Metric<2> = metric(
    Buckets,
    "job_duration_seconds",
    ["namespace", "pool"],
    "Time from started to ended, of jobs of runners that have ended",
);
pub(super) static QUEUED_JOBS: Metric<2> = metric(
    Gauge,
    "queued_jobs",
    ["namespace", "pool"],
    "Jobs known to wait for a pool, as in the resource's status; pools with the same labels count the same jobs",
);
pub(super) static OLDEST_QUEUED: Metric<2> = metric(
    Gauge,
    "oldest_queued_job_seconds",
    ["namespace", "pool"],
    "Age of the oldest of these jobs, where GitHub lists them; absent where none waits",
);
pub(super) static CAPACITY: Metric<2> = metric(
    Gauge,
    "job_capacity",
    ["namespace", "pool"],
    "Jobs that can run at a time on what is there and well",
);
pub(super) static CAPACITY_LIMIT: Metric<3> = metric(
    Gauge,
    "job_capacity_limit",
    ["namespace", "pool", "limit"],
    "1 for what limits that: MaxRunners is the spec, GPUs are those of the nodes, Unscheduled is a pod without room, SchedulingGates one that a scheduling gate holds, Backoff the pause after a failure, Breaker too many bad nodes, GitHub no access",
);
pub(super) static FIRST_ONLINE: Metric<0> = metric(
    Buckets,
    "first_online_seconds",
    [],
    "Time from a pool's creation to its first runner online, where nothing was in its way",
);
pub(super) static QUEUED: Metric<2> = metric(
    Buckets,
    "verified_job_queued_seconds",
    ["namespace", "pool"],
    "Time from queued to picked up, of the jobs of verifications",
);
pub(super) static RECONCILES: Metric<0> = metric(
    Buckets,
    "reconcile_duration_seconds",
    [],
    "Time that the operator takes for one reconcile of a pool, GitHub's answers included",
);
pub(super) static ERRORS: Metric<3> = metric(
    Counter,
    "reconcile_errors",
    ["namespace", "pool", "category"],
    "Reconciles that did not come to their end and are tried again",
);
pub(super) static DELIVERIES: Metric<1> = metric(
    Counter,
    "webhook_deliveries",
    ["result"],
    "Deliveries of webhooks: accepted woke a pool, ignored changes nothing, replayed had come before; bad_signature and unknown_hook are not GitHub's or of no pool, too_large, not_json and overloaded were refused",
);
pub(super) static REQUESTS: Metric<3> = metric(
    Counter,
    "github_requests",
    ["credential", "kind", "status"],
    "Requests sent to GitHub by kind (read, write, registration) and class of the answer; none is no answer, and 304 costs nothing",
);
pub(super) static HELD_BACK: Metric<1> = metric(
    Counter,
    "github_requests_held_back",
    ["credential"],
    "Requests that were not sent, because of a limit of GitHub's",
);
pub(super) static LIMIT: Metric<1> = metric(
    Gauge,
    "github_budget_limit",
    ["credential"],
    "Requests that GitHub grants the credential each hour",
);
pub(super) static REMAINING: Metric<1> = metric(
    Gauge,
    "github_budget_remaining",
    ["credential"],
    "Requests that the credential has left of its hour, by GitHub's last answer",
);
pub(super) static PAUSED: Metric<1> = metric(
    Gauge,
    "github_paused",
    ["credential"],
    "1 while nothing is sent with the credential, because of a limit of GitHub's",
);

/// All metrics, in the order in which they are shown.
pub static ALL: [Entry; 40] = [
    BUILD.entry(),
    POOL.entry(),
    RUNNERS.entry(),
    WANTED.entry(),
    CONDITION.entry(),
    QUARANTINED.entry(),
    BREAKER.entry(),
    VERIFIED.entry(),
    QUEUED_JOBS.entry(),
    OLDEST_QUEUED.entry(),
    CAPACITY.entry(),
    CAPACITY_LIMIT.entry(),
    GATES.entry(),
    GATE_SECONDS.entry(),
    REGISTRATIONS.entry(),
    FAILURES.entry(),
    REFUSED_JOBS.entry(),
    JOB_ENERGY.entry(),
    JOB_WATCHED.entry(),
    JOB_BUSY.entry(),
    JOB_THROTTLED.entry(),
    UNUSED.entry(),
    JOB_ERRORS.entry(),
    JOB_MEMORY.entry(),
    TIMED_OUT_JOBS.entry(),
    RERUNS.entry(),
    GPU_SECONDS.entry(),
    JOBS.entry(),
    JOB_QUEUED.entry(),
    JOB_RUN.entry(),
    FIRST_ONLINE.entry(),
    QUEUED.entry(),
    RECONCILES.entry(),
    ERRORS.entry(),
    DELIVERIES.entry(),
    REQUESTS.entry(),
    HELD_BACK.entry(),
    LIMIT.entry(),
    REMAINING.entry(),
    PAUSED.entry(),
];
