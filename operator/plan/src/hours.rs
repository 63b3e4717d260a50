//! What the GPUs of a runner that has ended were held for.
//!
//! A pod holds its GPUs from the moment when the scheduler gives it a node to the end of its last container. Each of these
//! seconds has one use, so that the four add up to the pod's life.

use std::sync::Arc;

use cudarunner_crds::{JobStatus, RunnerPhase};
use gate_report::clean;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{Observed, Plan, jobs, usage};
use crate::model::key::PoolKey;
use crate::model::life::seconds;
use crate::model::pool::{GpuRequest, Pool};
use crate::model::runner::{End, Failure, Gone, Runner};
use crate::model::time::Shift as _;
use crate::reason::Reason;

/// How long a job's conclusion is waited for. The status gives up before.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_mins(6);
/// The longest name of a product or a device that is kept, in bytes.
const LONGEST: usize = 80;
/// No pod has more devices.
const MOST_DEVICES: usize = 64;

/// What the GPUs of one runner were held for: one line of the operator's log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunnerHours {
    /// Namespace of the pool.
    pub namespace: String,
    /// Name of the pool.
    pub pool: String,
    /// Name of the pod, and of the runner on GitHub.
    pub runner: String,
    /// Uid of the pod: no two lines have the same.
    pub uid: String,
    /// Node that it was on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How many GPUs it held.
    pub gpus: u32,
    /// Their UUIDs, as the gate saw them.
    pub devices: Vec<String>,
    /// Name of the first one's product, as the gate saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// From when on it held them: the moment when it got its node. Absent where it got none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_from: Option<Timestamp>,
    /// Until when: its last container's end.
    pub held_until: Timestamp,
    /// What for.
    pub seconds: Seconds,
    /// Why it failed, where it did: a reason of the catalogue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Its job, or its last one.
    #[serde(flatten)]
    pub job: Option<JobOfRunner>,
}

impl RunnerHours {
    /// The pool that it was of.
    #[must_use]
    pub fn pool_key(&self) -> PoolKey {
        PoolKey {
            namespace: self.namespace.clone(),
            name: self.pool.clone(),
        }
    }
}

/// What the seconds of a runner were used for. Their sum is the time for which it held its GPUs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Seconds {
    /// Until its agent was online: images, the gate, the registration.
    pub gate: u64,
    /// Online without a job.
    pub idle: u64,
    /// In a job, and in ending after it.
    pub job: u64,
    /// In whatever it failed in: the start of a runner that was never online, a job that was cut short, the wait of an
    /// agent that broke.
    pub lost: u64,
}

impl Seconds {
    /// The uses and their seconds, each by the word that metrics have for it.
    #[must_use]
    pub fn by_use(self) -> [(&'static str, u64); 4] {
        [
            ("gate", self.gate),
            ("idle", self.idle),
            ("job", self.job),
            ("lost", self.lost),
        ]
    }

    /// All of them.
    #[must_use]
    pub fn sum(self) -> u64 {
        let all = self.by_use();
        all.iter()
            .fold(0, |sum, (_, part)| sum.saturating_add(*part))
    }
}

/// The job of a runner that has ended. Its names are GitHub's and the job's own, cut to a bound.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobOfRunner {
    /// Repository of the workflow, `OWNER/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Name of the workflow.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workflow: String,
    /// GitHub's number for the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<i64>,
    /// Which attempt of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// The job: its name, or its id in the workflow where GitHub has not said the name.
    pub job: String,
    /// How it ended, in GitHub's word; absent where GitHub has not said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conclusion: Option<String>,
    /// Whether the pool did not let it in: it was ended before its first step.
    #[serde(skip)]
    pub refused: bool,
    /// Seconds from queued to its start; absent where GitHub has not said when it was queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_seconds: Option<u64>,
    /// Seconds from its start to its end, as the hooks noted them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_seconds: Option<u64>,
    /// What the runner's GPUs took while the job ran, in joules; absent where no telemetry says it of each of them. The job
    /// could have written it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<u64>,
}

/// A runner that has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// Its hours.
    pub hours: RunnerHours,
    /// Whether nothing is waited for: they can be reported.
    pub is_whole: bool,
}

/// Counts the hours of the runners whose pods are gone.
pub(super) fn plan(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let is_there = |gone: &&Arc<Gone>| {
        let mut there = observed.runners.iter();
        // What the watch has just taken away may be seen in both.
        there.any(|runner| runner.uid == gone.runner.uid)
    };
    // Of pods that only look like the pool's own nothing is believed.
    let ours = observed.gone.iter().filter(|g| g.runner.owner == pool.uid);
    for gone in ours.filter(|gone| !is_there(gone)) {
        let job = job_of(pool, &gone.runner, &plan.status.last_jobs);
        let awaits = job.as_ref().is_some_and(|job| job.awaits_conclusion);
        let by = gone.at.after(LONGEST_WAIT);
        let is_whole = !awaits || pool.deleting.is_some() || now >= by;
        if !is_whole {
            plan.wake_at(by, now);
        }
        let job = job.map(|job| told(&job, observed));
        plan.ended.push(Ended {
            hours: hours(pool, gone, job),
            is_whole,
        });
    }
}

/// The job of a runner: as the status has it, or as the runner says.
fn job_of(pool: &Pool, runner: &Runner, listed: &[JobStatus]) -> Option<JobStatus> {
    let is_its =
        |job: &&JobStatus| job.runner == runner.name && job.finished_at.0 >= runner.created;
    let unlisted = || {
        let job = jobs::of_runner(pool, runner)?;
        // Nobody asks for what is not listed.
        Some(JobStatus {
            awaits_conclusion: false,
            ..job
        })
    };
    listed.iter().find(is_its).cloned().or_else(unlisted)
}

fn told(job: &JobStatus, observed: &Observed) -> JobOfRunner {
    let read = jobs::read(job, observed);
    let queued = read.and_then(|read| read.created_at);
    let started = job.started_at.as_ref().map(|at| at.0);
    JobOfRunner {
        repository: job.repository.clone(),
        workflow: job.workflow.clone(),
        run_id: job.run_id,
        attempt: job.attempt,
        job: job.job.clone(),
        conclusion: job.conclusion.clone(),
        refused: job.refused.is_some(),
        queued_seconds: queued.zip(started).map(|(from, to)| seconds(from, to)),
        run_seconds: started.map(|from| seconds(from, job.finished_at.0)),
        energy_joules: usage::energy(job),
    }
}

fn hours(pool: &Pool, gone: &Gone, job: Option<JobOfRunner>) -> RunnerHours {
    let runner = &gone.runner;
    let devices = runner.devices.iter().take(MOST_DEVICES);
    let product = runner.hardware.as_ref().and_then(|h| h.devices.first());
    RunnerHours {
        namespace: pool.key.namespace.clone(),
        pool: pool.key.name.clone(),
        runner: runner.name.clone(),
        uid: runner.uid.clone(),
        node: runner.node.clone(),
        gpus: gpus(pool, runner),
        devices: devices.map(|uuid| clean(uuid, LONGEST)).collect(),
        product: product.map(|product| clean(&product.name, LONGEST)),
        held_from: runner.life.bound,
        held_until: held_until(gone),
        seconds: used(gone),
        reason: failure(runner).map(Reason::word),
        job,
    }
}

/// How many GPUs a pod held: what the scheduler granted, or what the gate saw of a claim.
fn gpus(pool: &Pool, runner: &Runner) -> u32 {
    let granted = match pool.spec.as_ref().map(|spec| &spec.gpu) {
        Ok(GpuRequest::Resource { name, .. }) => runner.devices_held.get(name).copied(),
        Ok(GpuRequest::Claim(_)) | Err(_) => None,
    };
    let seen = u32::try_from(runner.devices.len()).unwrap_or(u32::MAX);
    granted.unwrap_or_else(|| seen.max(1))
}

fn held_until(gone: &Gone) -> Timestamp {
    gone.runner.life.over.unwrap_or(gone.at)
}

/// What a runner's time was used for.
fn used(gone: &Gone) -> Seconds {
    let (runner, life) = (&gone.runner, &gone.runner.life);
    let end = held_until(gone);
    let Some(bound) = life.bound else {
        return Seconds::default();
    };
    let held = seconds(bound, end);
    let has_failed = failure(runner).is_some();
    let Some(online) = life.online else {
        return if has_failed {
            Seconds {
                lost: held,
                ..Seconds::default()
            }
        } else {
            Seconds {
                gate: held,
                ..Seconds::default()
            }
        };
    };
    let gate = seconds(bound, online).min(held);
    let served = held.saturating_sub(gate);
    let last = last_job(runner, end).min(served);
    let before = life.was_busy.min(served.saturating_sub(last));
    let before = if life.is_persistent || last == 0 {
        before
    } else {
        0
    };
    let idle = served.saturating_sub(last).saturating_sub(before);
    let is_cut = has_failed && last > 0;
    let has_broken = has_failed && last == 0 && before == 0 && !is_unasked(runner);
    Seconds {
        gate,
        idle: if has_broken { 0 } else { idle },
        job: if is_cut {
            before
        } else {
            before.saturating_add(last)
        },
        lost: match (is_cut, has_broken) {
            (true, _) => last,
            (_, true) => idle,
            _ => 0,
        },
    }
}

/// Seconds from the start of the job in which a runner ended to its end; 0 where it ended in none.
fn last_job(runner: &Runner, end: Timestamp) -> u64 {
    let life = &runner.life;
    // Where there are many jobs, what was seen of them is more than the last one's marks.
    let done = runner.done.as_ref().filter(|_| !life.is_persistent);
    let done = done.map(|done| done.started.or(life.busy).unwrap_or(done.finished));
    let under_way = runner.under_way.as_ref();
    let under_way = || under_way?.time(runner.created, end);
    let started = done.or_else(under_way).or(life.busy);
    started.map_or(0, |started| seconds(started, end))
}

/// Why a runner failed. One that was asked to go, and had no job, has done as it was told.
fn failure(runner: &Runner) -> Option<Reason> {
    match &runner.end {
        Some(End::JobDone(_)) => None,
        Some(End::Failed(failure)) => {
            (!runner.life.asked || failure.is_unasked()).then_some(failure.reason)
        }
        None if runner.life.asked && runner.reached != RunnerPhase::Busy => None,
        None => Failure::deleted(runner, runner.created).map(|failure| failure.reason),
    }
}

/// Whether something else ended it.
fn is_unasked(runner: &Runner) -> bool {
    match &runner.end {
        Some(End::Failed(failure)) => failure.is_unasked(),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
