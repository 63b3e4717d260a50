//! How many runners there should be, and how many jobs GitHub may assign to the pool.

use cudarunner_crds::RunnerPhase;
use jiff::{SignedDuration, Timestamp};

use super::health::Health;
use super::{Access, Case, Observed, jobs::noted, schedule};
use crate::model::pool::{GpuRequest, Pool, RegistrationKind, Size, Spec};
use crate::model::runner::Runner;
use crate::model::time::Shift as _;
use crate::shares::{Claim, most};

/// How often the queue is read where the number of runners follows it.
pub const POLL: SignedDuration = SignedDuration::from_secs(30);
/// The end of a message that [`gate_report::clean`] has cut.
const CUT: char = '…';
/// A pod that has had no node for so long shows that there is no room for it.
const NO_ROOM: SignedDuration = SignedDuration::from_secs(15);

/// Runners that the pool should have; `have` where its demand is not known yet.
pub(super) fn desired(case: Case, have: usize) -> usize {
    let Case {
        pool,
        spec,
        observed,
        now,
        ..
    } = case;
    let by_time = schedule::minimum(&spec.schedule, now);
    let size = Size {
        min: spec.size.min.max(by_time).min(spec.size.max),
        ..spec.size
    };
    if !spec.size.is_elastic() {
        return size.max;
    }
    let wanted = jobs(pool, spec, observed);
    let kept = have.clamp(size.min, size.max);
    let Some(jobs) = wanted else { return kept };
    let wanted = size.min.saturating_add(jobs).min(size.max);
    let wanted = wanted.max(kept.min(wanted.saturating_add(on_their_way(spec, observed))));
    if is_settled(spec, observed) {
        wanted
    } else {
        wanted.max(kept)
    }
}

/// Runners that are not online yet, and will be wanted: an image may take longer than GitHub waits for a runner. Then the
/// job is taken back, and is available, or is assigned again a while later.
fn on_their_way(spec: &Spec, observed: &Observed) -> usize {
    let facts = observed.scale_set.as_ref();
    let Some(facts) = facts.filter(|_| spec.registration == RegistrationKind::ScaleSet) else {
        return 0;
    };
    let heard = facts.listening.as_ref().map(|listening| &listening.heard);
    let waiting = heard.and_then(|heard| heard.statistics);
    let waiting = waiting.is_some_and(|statistics| statistics.available > 0);
    if !waiting && facts.awaited_until.is_none() {
        return 0;
    }
    let is_coming = |r: &&Runner| {
        matches!(
            r.phase,
            RunnerPhase::Unscheduled
                | RunnerPhase::Preparing
                | RunnerPhase::Gated
                | RunnerPhase::Starting
        )
    };
    observed.runners.iter().filter(is_coming).count()
}

/// Jobs that wait or run, where that is known.
fn jobs(pool: &Pool, spec: &Spec, observed: &Observed) -> Option<usize> {
    match spec.registration {
        RegistrationKind::ScaleSet => assigned(spec, observed),
        RegistrationKind::JitConfig | RegistrationKind::Token => queued(pool, spec, observed),
    }
}

/// Whether it is known how many runners there should be.
pub(super) fn is_known(pool: &Pool, spec: &Spec, observed: &Observed) -> bool {
    !spec.size.is_elastic() || jobs(pool, spec, observed).is_some()
}

/// A session that has just been opened may not be assigned its jobs again before the first poll says what can run: until
/// then no runner is given up.
fn is_settled(spec: &Spec, observed: &Observed) -> bool {
    let listening = observed
        .scale_set
        .as_ref()
        .and_then(|v| v.listening.as_ref());
    spec.registration != RegistrationKind::ScaleSet
        || listening.is_some_and(|listening| listening.heard.is_settled)
}

/// Jobs that are assigned to the scale set; and, where it may not be assigned what it could take, those that wait for
/// more GPUs: their pods ask a cluster autoscaler for nodes.
fn assigned(spec: &Spec, observed: &Observed) -> Option<usize> {
    let facts = observed.scale_set.as_ref()?;
    let listening = facts.listening.as_ref()?;
    // What was heard before nothing could be heard any more is no guide.
    let is_current = listening.heard.trouble.is_none();
    let statistics = listening.heard.statistics.filter(|_| is_current)?;
    let assigned = statistics.assigned.saturating_sub(facts.ended);
    let is_full = assigned >= listening.capacity && listening.capacity < spec.size.max;
    let waiting = if is_full { statistics.available } else { 0 };
    // Jobs at an address that the pool has left are of another set, and their runners count all the same.
    let elsewhere = observed.runners.iter();
    let elsewhere = elsewhere
        .filter(|r| r.phase == RunnerPhase::Busy && r.is_elsewhere(spec))
        .count();
    Some(assigned.saturating_add(waiting).saturating_add(elsewhere))
}

/// Jobs that wait in the queue, as last read, and those that run.
fn queued(pool: &Pool, spec: &Spec, observed: &Observed) -> Option<usize> {
    let queue = observed.queue.as_ref()?;
    let Ok(Some(waiting)) = &queue.jobs else {
        return None;
    };
    let waiting = waiting
        .iter()
        .filter(|job| job.is_served_by(&spec.labels))
        .count();
    let busy: Vec<&Runner> = observed
        .runners
        .iter()
        .filter(|r| r.phase == RunnerPhase::Busy)
        .collect();
    // What was picked up since the queue was read waits no more.
    let begun = busy.iter().filter(|r| r.since > queue.at).count();
    let all = observed.runners.iter().chain(&observed.vanished);
    let over = noted(pool, all)
        .iter()
        .filter(|job| job.started_at.as_ref().is_some_and(|at| at.0 > queue.at))
        .count();
    Some(
        waiting
            .saturating_sub(begun.saturating_add(over))
            .saturating_add(busy.len()),
    )
}

/// How many jobs can run at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// How many.
    pub jobs: usize,
    /// Why no more.
    pub limit: Limit,
}

impl Capacity {
    fn bound(&mut self, jobs: usize, limit: Limit) {
        if jobs < self.jobs {
            *self = Self { jobs, limit };
        }
    }
}

/// What limits how many jobs can run at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// What the spec says.
    MaxRunners,
    /// The GPUs of the nodes that are there and well.
    Gpus,
    /// A pod finds no room.
    Unscheduled,
    /// A scheduling gate holds a pod.
    SchedulingGates,
    /// The pause after a failure.
    Backoff,
    /// Too many nodes fail.
    Breaker,
    /// GitHub does not let us in.
    GitHub,
}

impl Limit {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::MaxRunners => "MaxRunners",
            Self::Gpus => "GPUs",
            Self::Unscheduled => "Unscheduled",
            Self::SchedulingGates => "SchedulingGates",
            Self::Backoff => "Backoff",
            Self::Breaker => "Breaker",
            Self::GitHub => "GitHub",
        }
    }
}

/// Jobs that GitHub may assign to the pool at a time: what can run, so that others wait where another pool finds them.
pub(super) fn capacity(
    spec: &Spec,
    observed: &Observed,
    health: &Health,
    now: Timestamp,
) -> Capacity {
    let max = spec.size.max;
    let count =
        |wanted: &dyn Fn(&Runner) -> bool| observed.runners.iter().filter(|r| wanted(r)).count();
    if let Some(limit) = held(observed, health, now) {
        let jobs = count(&Runner::is_online).min(max);
        return Capacity { jobs, limit };
    }
    // A pod that waits shows that GPUs are in use by others than runners, too.
    let placed = count(&|r| r.is_active(now) && r.node.is_some());
    let stuck = count(&|r| is_stuck(r, now) && !r.is_gated());
    let mut capacity = Capacity {
        jobs: max,
        limit: Limit::MaxRunners,
    };
    if stuck > 0 {
        capacity.bound(placed, Limit::Unscheduled);
    }
    if count(&Runner::is_gated) > 0 {
        capacity.bound(placed, Limit::SchedulingGates);
    }
    if let Some(share) = &observed.share {
        capacity.bound(share.runners, Limit::Gpus);
    }
    capacity
}

/// What keeps the pool from new runners, whatever there is.
fn held(observed: &Observed, health: &Health, now: Timestamp) -> Option<Limit> {
    if observed.access != Access::Granted {
        return Some(Limit::GitHub);
    }
    if health.quarantine.breaker.is_some() {
        return Some(Limit::Breaker);
    }
    let pauses = health.not_before.is_some_and(|moment| now < moment);
    pauses.then_some(Limit::Backoff)
}

/// What the pool would have of the GPUs that it shares with others, where it wants so many runners.
pub(super) fn claim(case: Case, wanted: usize) -> Claim {
    let Case {
        spec,
        observed,
        health,
        now,
        ..
    } = case;
    let runners = observed.runners.iter();
    let there = runners.filter(|r| r.is_active(now) && r.phase != RunnerPhase::Unscheduled);
    let there = there.count();
    // Where it is not others who keep it from runners, it must not keep GPUs from others.
    let more = match held(observed, health, now) {
        _ if is_barred(spec, observed, now) => 0,
        // One runner at a time is tried.
        Some(Limit::Breaker) => 1,
        Some(_) => 0,
        None => usize::MAX,
    };
    // A runner that has just ended leaves its place to the next one.
    let vain = observed.share.as_ref().map(|share| share.vain);
    let had = vain.filter(|vain| vain.rests(now)).map(|vain| vain.had);
    let limit = there.saturating_add(more).max(had.unwrap_or_default());
    let assigned = known(observed).filter(|_| spec.registration == RegistrationKind::ScaleSet);
    // Whatever is offered now: else a share would change what is wanted, and that the share.
    let wanted = wanted.max(could_run(spec, observed).min(spec.size.max));
    Claim {
        wanted: wanted.min(limit),
        most: most(spec.registration, spec.size.max, wanted).min(limit),
        is_full: assigned.is_some_and(|(assigned, _)| assigned >= there),
        avoids: health.quarantine.avoided().clone(),
    }
}

/// Runners for all jobs of a scale set, those included that GitHub has assigned to nobody.
fn could_run(spec: &Spec, observed: &Observed) -> usize {
    known(observed).map_or(0, |(assigned, available)| {
        let jobs = assigned.saturating_add(available);
        spec.size.min.saturating_add(jobs)
    })
}

/// Jobs that are assigned to the scale set and have not ended, and those that wait and could be, as far as it was heard.
fn known(observed: &Observed) -> Option<(usize, usize)> {
    let facts = observed.scale_set.as_ref()?;
    let heard = &facts.listening.as_ref()?.heard;
    let statistics = heard.statistics.filter(|_| heard.trouble.is_none())?;
    let assigned = statistics.assigned.saturating_sub(facts.ended);
    let available = if heard.is_quiet {
        0
    } else {
        statistics.available
    };
    Some((assigned, available))
}

/// Whether a pod waits for a node, and not for GPUs: for another resource, a volume, a scheduling gate. The scheduler says so,
/// or has left alone those that were free. So it is where the API server refuses the pods that would have taken these.
pub(super) fn is_barred(spec: &Spec, observed: &Observed, now: Timestamp) -> bool {
    let is_vain = observed
        .share
        .as_ref()
        .is_some_and(|share| share.vain.rests(now));
    let lacks = |r: &Runner| is_vain || lacks_others(&spec.gpu, r);
    let mut runners = observed.runners.iter();
    is_vain && observed.pod_refused.is_some()
        || runners.any(|r| r.is_gated() || is_stuck(r, now) && lacks(r))
}

/// Whether a pod has waited for a node for so long that there is none for it.
#[must_use]
pub fn is_stuck(runner: &Runner, now: Timestamp) -> bool {
    runner.phase == RunnerPhase::Unscheduled && runner.since.after(NO_ROOM) <= now
}

/// Whether the scheduler says why there is no node for a pod, and names no lack of GPUs. Of a long list of reasons only the
/// beginning is known: the GPUs may be in the rest.
fn lacks_others(gpu: &GpuRequest, runner: &Runner) -> bool {
    let said = runner.waiting.as_ref().map(|waiting| &waiting.message);
    let is_short = |said: &str| match gpu {
        GpuRequest::Resource { name, .. } => said.contains(&format!("Insufficient {name}")),
        GpuRequest::Claim(_) => false,
    };
    said.is_some_and(|said| !said.is_empty() && !said.ends_with(CUT) && !is_short(said))
}

#[cfg(test)]
mod tests;
