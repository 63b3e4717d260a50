//! The page that Prometheus reads.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;

use super::catalogue as metric;
use super::{Metrics, PoolGauges, PoolSeries, hours};
use crate::github::Fingerprint;
use crate::github::budget::Usage;
use cuda_runner_plan::model::life::seconds;
use cuda_runner_plan::usage::JobsUsage;

/// The type of the page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One reading: what is counted, and what is known only now.
#[derive(Debug)]
struct Page {
    metrics: Metrics,
    credentials: BTreeMap<String, Usage>,
}

/// Writes the page.
pub(super) fn write(metrics: &Metrics, credentials: Vec<(Fingerprint, Usage)>) -> String {
    let mut registry = Registry::with_prefix(metric::PREFIX);
    registry.register_collector(Box::new(Page {
        metrics: metrics.clone(),
        credentials: credentials
            .into_iter()
            .map(|(id, usage)| (id.to_string(), usage))
            .collect(),
    }));
    let mut text = String::new();
    if let Err(error) = text::encode(&mut text, &registry) {
        // A string takes everything.
        tracing::error!(%error, "the metrics could not be written");
    }
    text
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        metric::BUILD
            .open(&mut encoder)?
            .info([env!("CARGO_PKG_VERSION")])?;
        self.pools(&mut encoder)?;
        self.operator(&mut encoder)?;
        self.github(&mut encoder)
    }
}

impl Page {
    fn pools(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let state = self.metrics.lock();
        let pools: Vec<Labelled> = state
            .pools
            .iter()
            .map(|(key, series)| ([key.namespace.as_str(), key.name.as_str()], series))
            .collect();
        seen(&pools, encoder)?;
        counted(&pools, encoder)?;
        metric::FIRST_ONLINE
            .open(encoder)?
            .histogram([], &state.first_online)?;
        let mut samples = metric::QUEUED.open(encoder)?;
        for (pool, series) in &pools {
            if let Some(histogram) = &series.queued {
                samples.histogram(*pool, histogram)?;
            }
        }
        Ok(())
    }

    fn operator(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let state = self.metrics.lock();
        metric::RECONCILES
            .open(encoder)?
            .histogram([], &state.reconciles)?;
        let mut samples = metric::ERRORS.open(encoder)?;
        for (pool, series) in &state.pools {
            for (category, count) in &series.errors {
                samples.counter([&pool.namespace, &pool.name, category], *count)?;
            }
        }
        let mut samples = metric::DELIVERIES.open(encoder)?;
        for (outcome, count) in &state.deliveries {
            samples.counter([outcome], *count)?;
        }
        Ok(())
    }

    fn github(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut samples = metric::REQUESTS.open(encoder)?;
        for (credential, usage) in &self.credentials {
            for ((cost, ending), count) in &usage.endings {
                samples.counter([credential, cost.word(), ending.word()], *count)?;
            }
        }
        let mut samples = metric::HELD_BACK.open(encoder)?;
        for (credential, usage) in &self.credentials {
            samples.counter([credential], usage.held_back)?;
        }
        let mut samples = metric::LIMIT.open(encoder)?;
        for (credential, usage) in &self.credentials {
            if let Some(limit) = usage.limit {
                samples.gauge([credential], limit)?;
            }
        }
        let mut samples = metric::REMAINING.open(encoder)?;
        for (credential, usage) in &self.credentials {
            if let Some(remaining) = usage.remaining {
                samples.gauge([credential], remaining)?;
            }
        }
        let mut samples = metric::PAUSED.open(encoder)?;
        for (credential, usage) in &self.credentials {
            samples.gauge([credential], u64::from(usage.paused_until.is_some()))?;
        }
        Ok(())
    }
}

/// A pool's namespace and name, and what is counted of it.
type Labelled<'a> = ([&'a str; 2], &'a PoolSeries);

/// How the last reconciles have seen the pools.
fn seen(pools: &[Labelled], encoder: &mut DescriptorEncoder) -> fmt::Result {
    let with_gauges = || {
        pools
            .iter()
            .filter_map(|(pool, series)| Some((*pool, series.gauges.as_ref()?)))
    };
    let mut samples = metric::POOL.open(encoder)?;
    for ([namespace, pool], gauges) in with_gauges() {
        if let Some((credential, address)) = gauges.credential.zip(gauges.address) {
            let hashes = [credential, address].map(|hash| hash.to_string());
            samples.info([namespace, pool, &hashes[0], &hashes[1]])?;
        }
    }
    let mut samples = metric::RUNNERS.open(encoder)?;
    for ([namespace, pool], gauges) in with_gauges() {
        for (phase, count) in &gauges.phases {
            samples.gauge([namespace, pool, super::word(*phase)], *count)?;
        }
    }
    let mut samples = metric::WANTED.open(encoder)?;
    for (pool, gauges) in with_gauges() {
        if let Some(wanted) = gauges.wanted {
            samples.gauge(pool, wanted)?;
        }
    }
    let mut samples = metric::CONDITION.open(encoder)?;
    for ([namespace, pool], gauges) in with_gauges() {
        for (condition, holds) in &gauges.conditions {
            samples.gauge([namespace, pool, condition], u64::from(*holds))?;
        }
    }
    let mut samples = metric::QUARANTINED.open(encoder)?;
    for (pool, gauges) in with_gauges() {
        samples.gauge(pool, gauges.quarantined)?;
    }
    let mut samples = metric::BREAKER.open(encoder)?;
    for (pool, gauges) in with_gauges() {
        samples.gauge(pool, u64::from(gauges.breaker_open))?;
    }
    let mut samples = metric::VERIFIED.open(encoder)?;
    for (pool, gauges) in with_gauges() {
        if let Some(passed) = gauges.verified {
            samples.gauge(pool, u64::from(passed))?;
        }
    }
    queues(with_gauges, encoder)
}

/// How many jobs wait, and how many can run.
fn queues<'a, I>(pools: impl Fn() -> I, encoder: &mut DescriptorEncoder) -> fmt::Result
where
    I: Iterator<Item = ([&'a str; 2], &'a PoolGauges)>,
{
    let mut samples = metric::QUEUED_JOBS.open(encoder)?;
    for (pool, gauges) in pools() {
        if let Some(queued) = gauges.queued {
            samples.gauge(pool, queued)?;
        }
    }
    let now = Timestamp::now();
    let mut samples = metric::OLDEST_QUEUED.open(encoder)?;
    for (pool, gauges) in pools() {
        if let Some(oldest) = gauges.oldest_queued {
            samples.gauge(pool, seconds(oldest, now))?;
        }
    }
    let mut samples = metric::CAPACITY.open(encoder)?;
    for (pool, gauges) in pools() {
        if let Some(capacity) = gauges.capacity {
            samples.gauge(pool, capacity.jobs as u64)?;
        }
    }
    let mut samples = metric::CAPACITY_LIMIT.open(encoder)?;
    for ([namespace, pool], gauges) in pools() {
        if let Some(capacity) = gauges.capacity {
            samples.gauge([namespace, pool, capacity.limit.word()], 1)?;
        }
    }
    Ok(())
}

/// Reads a number of what GPUs did during jobs.
type Count = fn(&JobsUsage) -> u64;

/// What GPUs did during jobs, of pools that know anything of it.
fn used(pools: &[Labelled], encoder: &mut DescriptorEncoder) -> fmt::Result {
    let counts: [(_, Count); 5] = [
        (&metric::JOB_ENERGY, |usage| usage.joules),
        (&metric::JOB_WATCHED, |usage| usage.watched),
        (&metric::JOB_BUSY, |usage| usage.busy_hundredths / 100),
        (&metric::JOB_THROTTLED, |usage| usage.throttled),
        (&metric::UNUSED, |usage| usage.unused),
    ];
    for (metric, count) in counts {
        let mut samples = metric.open(encoder)?;
        for (pool, series) in pools {
            let count = count(&series.usage);
            if count > 0 {
                samples.counter(*pool, count)?;
            }
        }
    }
    let mut samples = metric::JOB_ERRORS.open(encoder)?;
    for ([namespace, pool], series) in pools {
        for (kind, count) in series.usage.errors() {
            if count > 0 {
                samples.counter([namespace, pool, kind], count)?;
            }
        }
    }
    let mut samples = metric::JOB_MEMORY.open(encoder)?;
    for (pool, series) in pools {
        if let Some(mib) = series.usage.peak_mib {
            samples.gauge(*pool, mib.saturating_mul(1 << 20))?;
        }
    }
    Ok(())
}

/// What gates, registrations and runners have come to.
fn counted(pools: &[Labelled], encoder: &mut DescriptorEncoder) -> fmt::Result {
    let mut samples = metric::GATES.open(encoder)?;
    for ([namespace, pool], series) in pools {
        for ((class, code, product), count) in &series.gates {
            samples.counter([namespace, pool, class, code, product], *count)?;
        }
    }
    let mut samples = metric::GATE_SECONDS.open(encoder)?;
    for (pool, series) in pools {
        if let Some(histogram) = &series.gate_seconds {
            samples.histogram(*pool, histogram)?;
        }
    }
    let mut samples = metric::REGISTRATIONS.open(encoder)?;
    for ([namespace, pool], series) in pools {
        for (result, count) in &series.registrations {
            samples.counter([namespace, pool, result], *count)?;
        }
    }
    let mut samples = metric::FAILURES.open(encoder)?;
    for ([namespace, pool], series) in pools {
        for ((class, reason), count) in &series.failures {
            samples.counter([namespace, pool, class.as_str(), reason], *count)?;
        }
    }
    let mut samples = metric::REFUSED_JOBS.open(encoder)?;
    for (pool, series) in pools {
        if series.refused_jobs > 0 {
            samples.counter(*pool, series.refused_jobs)?;
        }
    }
    used(pools, encoder)?;
    let mut samples = metric::TIMED_OUT_JOBS.open(encoder)?;
    for (pool, series) in pools {
        if series.timed_out_jobs > 0 {
            samples.counter(*pool, series.timed_out_jobs)?;
        }
    }
    let mut samples = metric::RERUNS.open(encoder)?;
    for ([namespace, pool], series) in pools {
        for ((cause, result), count) in &series.reruns {
            samples.counter([namespace, pool, cause, result], *count)?;
        }
    }
    let ended: Vec<_> = pools.iter().map(|(p, s)| (*p, &s.hours)).collect();
    hours::write(&ended, encoder)
}
