//! What is counted, for Prometheus: each fact where it is known, and nothing is asked for it.
//!
//! - [`catalogue`]: which metrics there are.
//! - `page`: how they are written.
//! - `hours`: what runners that have ended come to.

pub mod catalogue;
mod hours;
mod page;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cudarunner_crds::{RerunCause, RerunState, RunnerPhase, VerificationState, VerificationStatus};
use gate_report::{Class, Context as Circumstances, Failure, Finding, Report, Step};
use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::histogram::Histogram;

use crate::github::budget::Usage;
use crate::github::{Client, Fingerprint};
use crate::registrar::Decision;
use cuda_runner_plan::condition::kind;
use cuda_runner_plan::demand::Capacity;
use cuda_runner_plan::hours::RunnerHours;
use cuda_runner_plan::model::pool::{Pool, PoolKey};
use cuda_runner_plan::quarantine::{is_active, is_of_node};
use cuda_runner_plan::reason::{Reason, Stored};
use cuda_runner_plan::rerun;
use cuda_runner_plan::usage::JobsUsage;
use cuda_runner_plan::{Observed, Plan};

pub use page::CONTENT_TYPE;

/// The word for what is not in our own tables: a label's values stay few.
const OTHER: &str = "other";
/// So many products of one pool are told apart.
const PRODUCTS: usize = 8;
/// The longest name of a product, in bytes.
const PRODUCT: usize = 64;
const GATE_BUCKETS: [f64; 11] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];
const WAIT_BUCKETS: [f64; 11] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
];
const RECONCILE_BUCKETS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

/// What this process has counted. A copy counts into the same.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    pools: BTreeMap<PoolKey, PoolSeries>,
    first_online: Histogram,
    reconciles: Histogram,
    by_repository: bool,
    /// Deliveries of webhooks, by what became of them.
    deliveries: BTreeMap<&'static str, u64>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            pools: BTreeMap::new(),
            first_online: Histogram::new(WAIT_BUCKETS),
            reconciles: Histogram::new(RECONCILE_BUCKETS),
            by_repository: false,
            deliveries: BTreeMap::new(),
        }
    }
}

/// What is counted of one pool; it goes with the pool.
#[derive(Debug, Default)]
struct PoolSeries {
    gauges: Option<PoolGauges>,
    /// By class, code and product.
    gates: BTreeMap<(&'static str, &'static str, String), u64>,
    gate_seconds: Option<Histogram>,
    registrations: BTreeMap<&'static str, u64>,
    failures: BTreeMap<(Class, &'static str), u64>,
    refused_jobs: u64,
    usage: JobsUsage,
    timed_out_jobs: u64,
    reruns: BTreeMap<(&'static str, &'static str), u64>,
    queued: Option<Histogram>,
    hours: hours::HoursSeries,
    errors: BTreeMap<&'static str, u64>,
}

impl PoolSeries {
    /// The product under which a gate is counted: that of the device at fault, or the first. A report comes from a pod,
    /// and may say anything.
    fn product(&self, report: &Report) -> String {
        let at_fault = report.failure.as_ref().and_then(|failure| failure.device);
        let mut devices = report.devices.iter();
        let Some(device) = devices
            .find(|device| at_fault == Some(device.ordinal))
            .or(report.devices.first())
        else {
            return String::new();
        };
        let name = device.name.as_str();
        let products = self.gates.keys().map(|(_, _, product)| product.as_str());
        let counted: BTreeSet<&str> = products.filter(|p| ![OTHER, ""].contains(p)).collect();
        let is_text = name.chars().all(|c| c == ' ' || c.is_ascii_graphic());
        let is_new = counted.len() < PRODUCTS && name.len() <= PRODUCT && is_text;
        if is_new || counted.contains(name) {
            name.to_owned()
        } else {
            OTHER.to_owned()
        }
    }
}

/// A pool as a reconcile has seen it.
#[derive(Debug)]
pub struct PoolGauges {
    phases: BTreeMap<RunnerPhase, u64>,
    wanted: Option<u64>,
    conditions: Vec<(&'static str, bool)>,
    quarantined: u64,
    breaker_open: bool,
    verified: Option<bool>,
    credential: Option<Fingerprint>,
    address: Option<Fingerprint>,
    queued: Option<u64>,
    oldest_queued: Option<Timestamp>,
    capacity: Option<Capacity>,
}

impl PoolGauges {
    /// Reads what a reconcile has observed and planned.
    #[must_use]
    pub fn of(
        pool: &Pool,
        observed: &Observed,
        plan: &Plan,
        client: Option<&Client>,
        now: Timestamp,
    ) -> Self {
        let status = &plan.status;
        let mut phases: BTreeMap<_, _> = PHASES.into_iter().map(|phase| (phase, 0)).collect();
        for runner in &observed.runners {
            *phases.entry(runner.phase).or_default() += 1;
        }
        let condition = |type_| status.conditions.iter().find(|c| c.type_ == type_);
        let quarantined = status.quarantine.iter();
        let quarantined = quarantined.filter(|e| is_of_node(e) && is_active(e, now));
        Self {
            phases,
            wanted: match &pool.spec {
                _ if pool.deleting.is_some() => Some(0),
                Ok(_) => u64::try_from(plan.desired).ok(),
                Err(_) => None,
            },
            conditions: kind::ALL
                .into_iter()
                .filter_map(|type_| match condition(type_)?.status.as_str() {
                    "True" => Some((type_, true)),
                    "False" => Some((type_, false)),
                    _ => None,
                })
                .collect(),
            quarantined: quarantined.map(|_| 1).sum(),
            breaker_open: condition(kind::GPU_HEALTHY)
                .is_some_and(|c| Stored::parse(&c.reason) == Reason::BreakerOpen),
            verified: status.verification.as_ref().and_then(last_result),
            credential: client.map(Client::credential),
            address: address(pool),
            queued: plan.queue.and_then(|queue| u64::try_from(queue.jobs).ok()),
            oldest_queued: plan.queue.and_then(|queue| queue.oldest),
            capacity: plan.capacity,
        }
    }
}

/// A hash of the address at which a pool registers: pools of one repository have the same.
fn address(pool: &Pool) -> Option<Fingerprint> {
    let url = pool.spec.as_ref().ok()?.url.to_string();
    Some(Fingerprint::of(&[url.as_bytes()]))
}

/// Whether the last verification that has ended was green.
fn last_result(verification: &VerificationStatus) -> Option<bool> {
    let now = verification.stage();
    let mut before = verification.history.iter();
    let last = if now.has_ended() {
        now
    } else {
        before.find_map(|record| record.state.known())?
    };
    Some(last == VerificationState::Succeeded)
}

/// What a reconcile has found out once and for all. It is counted when the status holds it, so that nothing is twice.
#[derive(Debug, Default)]
pub struct News {
    failed: Vec<(Class, Reason)>,
    refused_jobs: usize,
    usage: JobsUsage,
    timed_out_jobs: usize,
    first_online: Option<SignedDuration>,
    reruns: Vec<(RerunCause, RerunState)>,
    /// Seconds from queued to picked up.
    queued: Vec<i64>,
}

impl News {
    /// Reads a plan.
    #[must_use]
    pub fn of(pool: &Pool, plan: &Plan) -> Self {
        let (before, after) = (&pool.status.verification, &plan.status.verification);
        let counted = |now: &VerificationStatus| {
            before
                .as_ref()
                .is_some_and(|b| b.since == now.since && b.stage().has_ended())
        };
        let ended = after
            .iter()
            .filter(|now| now.stage().has_ended() && !counted(now));
        Self {
            failed: plan.failed.clone(),
            refused_jobs: plan.refused_jobs,
            usage: JobsUsage::of(&plan.watched_jobs),
            timed_out_jobs: plan.timed_out_jobs,
            first_online: plan.first_online,
            reruns: rerun::ended_since(&pool.status.reruns, &plan.status.reruns),
            queued: ended
                .flat_map(|verification| &verification.jobs)
                .filter_map(|job| job.queued_seconds)
                .collect(),
        }
    }
}

impl Metrics {
    /// Tells repositories apart from now on.
    #[must_use]
    pub fn by_repository(self, by_repository: bool) -> Self {
        self.lock().by_repository = by_repository;
        self
    }

    /// Counts a delivery of a webhook by what became of it.
    pub fn delivered(&self, outcome: &'static str) {
        let count = &mut self.lock().deliveries;
        *count.entry(outcome).or_default() += 1;
    }

    /// Counts a runner that has ended.
    pub fn ended(&self, hours: &RunnerHours) {
        let by_repository = self.lock().by_repository;
        self.pool(&hours.pool_key(), |series| {
            series.hours.add(hours, by_repository);
        });
    }

    /// Takes in how a reconcile has seen a pool.
    pub fn saw(&self, pool: &PoolKey, gauges: PoolGauges) {
        self.pool(pool, |series| series.gauges = Some(gauges));
    }

    /// Counts what a reconcile has found out.
    #[expect(clippy::cast_precision_loss, reason = "seconds, not nanoseconds")]
    pub fn learned(&self, pool: &PoolKey, news: &News) {
        if let Some(took) = news.first_online {
            self.lock().first_online.observe(took.as_secs_f64());
        }
        if news.failed.is_empty()
            && news.queued.is_empty()
            && news.refused_jobs == 0
            && news.usage == JobsUsage::default()
            && news.timed_out_jobs == 0
            && news.reruns.is_empty()
        {
            return;
        }
        self.pool(pool, |series| {
            for (class, reason) in &news.failed {
                *series.failures.entry((*class, reason.word())).or_default() += 1;
            }
            series.refused_jobs += news.refused_jobs as u64;
            series.usage.add(news.usage);
            series.timed_out_jobs += news.timed_out_jobs as u64;
            for (cause, state) in &news.reruns {
                let labels = (cause.as_str(), state.as_str());
                *series.reruns.entry(labels).or_default() += 1;
            }
            for seconds in &news.queued {
                let histogram = &mut series.queued;
                let histogram = histogram.get_or_insert_with(|| Histogram::new(WAIT_BUCKETS));
                histogram.observe(*seconds as f64);
            }
        });
    }

    /// Counts a reconcile; with the category of its error, where it did not come to its end.
    pub fn reconciled(&self, pool: &PoolKey, took: Duration, error: Option<&'static str>) {
        self.lock().reconciles.observe(took.as_secs_f64());
        if let Some(category) = error {
            self.pool(pool, |series| {
                *series.errors.entry(category).or_default() += 1;
            });
        }
    }

    /// Counts a gate that brought its report.
    pub fn gate(&self, pool: &PoolKey, report: &Report, decision: &Decision) {
        let (class, code) = match decision {
            Decision::Admit => ("", ""),
            Decision::Refuse { reason, .. } => (Class::Refused.as_str(), *reason),
            Decision::Failed => report
                .failure
                .as_ref()
                .map_or((Class::Internal.as_str(), OTHER), |failure| {
                    (failure.class.as_str(), code_of(failure))
                }),
        };
        self.pool(pool, |series| {
            let product = series.product(report);
            *series.gates.entry((class, code, product)).or_default() += 1;
            let histogram = &mut series.gate_seconds;
            let histogram = histogram.get_or_insert_with(|| Histogram::new(GATE_BUCKETS));
            histogram.observe(report.timings.total_ms.max(0.0) / 1000.0);
        });
    }

    /// Counts an attempt to register a runner: `ok`, or the category of the error.
    pub fn registered(&self, pool: &PoolKey, result: &'static str) {
        self.pool(pool, |series| {
            *series.registrations.entry(result).or_default() += 1;
        });
    }

    /// Forgets a pool.
    pub fn forget(&self, pool: &PoolKey) {
        self.lock().pools.remove(pool);
    }

    /// The page for Prometheus, with the pools that still exist.
    #[must_use]
    pub fn page(
        &self,
        exists: impl Fn(&PoolKey) -> bool,
        credentials: Vec<(Fingerprint, Usage)>,
    ) -> String {
        self.lock().pools.retain(|pool, _| exists(pool));
        page::write(self, credentials)
    }

    fn pool(&self, pool: &PoolKey, work: impl FnOnce(&mut PoolSeries)) {
        let mut state = self.lock();
        match state.pools.get_mut(pool) {
            Some(series) => work(series),
            None => work(state.pools.entry(pool.clone()).or_default()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves plain numbers behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All phases: those with no runner are shown, too.
const PHASES: [RunnerPhase; 9] = [
    RunnerPhase::Unscheduled,
    RunnerPhase::Preparing,
    RunnerPhase::Gated,
    RunnerPhase::Starting,
    RunnerPhase::Idle,
    RunnerPhase::Busy,
    RunnerPhase::Finished,
    RunnerPhase::Failed,
    RunnerPhase::Terminating,
];

/// A phase, as in the status.
const fn word(phase: RunnerPhase) -> &'static str {
    match phase {
        RunnerPhase::Unscheduled => "Unscheduled",
        RunnerPhase::Preparing => "Preparing",
        RunnerPhase::Gated => "Gated",
        RunnerPhase::Starting => "Starting",
        RunnerPhase::Idle => "Idle",
        RunnerPhase::Busy => "Busy",
        RunnerPhase::Finished => "Finished",
        RunnerPhase::Failed => "Failed",
        RunnerPhase::Terminating => "Terminating",
    }
}

/// The name of what a gate found, out of our own tables: the report comes from a pod, and may say anything.
fn code_of(failure: &Failure) -> &'static str {
    let at = Circumstances::at(Step::Unknown);
    if let Some(code) = failure.code {
        let known = gate_report::listed().any(|listed| listed == code);
        return if known {
            gate_report::fault(code, at).name
        } else {
            OTHER
        };
    }
    Finding::ALL
        .into_iter()
        .map(Finding::name)
        .chain([gate_report::preflight::FAILED])
        .find(|name| *name == failure.code_name)
        .unwrap_or(OTHER)
}
