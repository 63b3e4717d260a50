//! What shows that a job did not end by itself: only what the kubelet, the API server or another pod's gate says. A job can
//! write into its own pod's termination message, and nowhere else; what stands there names it, and proves nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use cudarunner_crds::{Rerun, RerunCause, RerunState, RerunStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::model::github::Repository;
use crate::model::jobs::RunKey;
use crate::model::pool::{GpuRequest, Pool, Spec};
use crate::model::rerun::{Cut, Ended, NamedJob, Pass};
use crate::model::runner::{End, Job, Runner, unconfirmed};
use crate::model::time::Shift as _;
use crate::quarantine::{facts, is_proof};
use crate::reason::Reason;
use crate::{Case, jobs};

/// A gate that finds a device broken speaks of the job that ended on it so long before at most.
const WITHIN: SignedDuration = SignedDuration::from_mins(10);
/// What is older was seen by an operator before this one, or too late to be of use.
pub const RECENT: SignedDuration = SignedDuration::from_mins(30);
/// How far the clocks of a node and of the API server may differ.
const SKEW: SignedDuration = SignedDuration::from_secs(1);
/// How long after an agent's end its node may tell of its reboot. A kubelet that comes up tells both at about the same time;
/// a job that kills its own agent cannot have its node rebooted by then.
const REBOOT: SignedDuration = SignedDuration::from_secs(30);
/// Jobs that are remembered of a pool.
const MOST: usize = 512;

/// A job, and what ended it.
pub(super) struct Blamed {
    pub(super) runner: String,
    pub(super) job: NamedJob,
    node: Option<String>,
    device: Option<String>,
    cause: RerunCause,
    code: Option<i32>,
    code_name: Option<String>,
    evidence: String,
    at: Timestamp,
    /// Whether it was seen before, and told.
    pub(super) is_told: bool,
}

impl Blamed {
    /// The same in the status.
    pub(super) fn entry(self, case: Case) -> RerunStatus {
        let (repository, run) = self.job.run;
        let attempt = self.job.attempt.and_then(|n| u32::try_from(n).ok());
        let page = Repository::new(&repository);
        let page = page.map(|page| page.run_page(&case.spec.url, run, attempt));
        RerunStatus {
            job: self.job.name,
            repository,
            run_id: i64::try_from(run).unwrap_or_default(),
            attempt: self.job.attempt,
            job_id: None,
            url: page,
            runner: self.runner,
            node: self.node,
            device: self.device,
            cause: self.cause.into(),
            code: self.code,
            code_name: self.code_name,
            evidence: self.evidence,
            // A clock of another machine may be ahead of ours.
            at: Time(self.at.min(case.now)),
            state: RerunState::Waiting.into(),
            reason: None,
            message: None,
            ended: None,
        }
    }
}

/// All jobs that something else ended than themselves, as far as the pool is to run such jobs again.
pub(super) fn blamed(case: Case, wish: &Rerun) -> Vec<Blamed> {
    let mut all = vec![];
    if wish.on_node_loss {
        let runners = case.observed.runners.iter();
        let runners = runners.chain(&case.observed.vanished);
        all.extend(runners.filter_map(|runner| by_node(case, runner)));
        let ended = case.observed.reruns.ended.iter();
        all.extend(ended.filter_map(|job| by_reboot(case, job)));
    }
    if wish.on_gpu_fault {
        let found = faults(case);
        all.extend(found.iter().flat_map(|fault| by_device(case, fault)));
    }
    all.retain(|blamed| case.now < blamed.at.after(RECENT));
    all
}

/// A runner's job that its node took with it.
fn by_node(case: Case, runner: &Runner) -> Option<Blamed> {
    let (word, evidence, at) = loss(case, runner)?;
    let job = job_of(runner)?;
    Some(Blamed {
        runner: runner.name.clone(),
        job: named(case.pool, case.spec, runner, job)?,
        node: runner.node.clone(),
        device: None,
        cause: RerunCause::NodeLoss,
        code: None,
        code_name: Some(word.word().to_owned()),
        evidence,
        at,
        is_told: runner.told.is_some_and(|told| told.end),
    })
}

/// The job that a runner had, or was given. One that the pool did not let in ended by that, and by nothing else.
fn job_of(runner: &Runner) -> Option<&Job> {
    if let Some(under_way) = &runner.under_way {
        return Some(under_way);
    }
    match &runner.done {
        Some(done) if done.refused.is_some() => None,
        Some(done) => Some(&done.job),
        None => runner.heard.as_deref(),
    }
}

/// How Kubernetes took a runner away, and when. A job can have its own pod evicted, by what it uses: that proves nothing.
fn loss(case: Case, runner: &Runner) -> Option<(Reason, String, Timestamp)> {
    let disruption = runner.disruption.as_ref().filter(|d| !d.by_own_use);
    match (&runner.end, disruption) {
        (None, Some(_)) => {
            let failure = unconfirmed(runner, case.observed, case.now)?;
            Some((failure.reason, failure.message, failure.at))
        }
        (Some(End::Failed(failure)), disruption) => {
            let is_loss = match failure.reason {
                Reason::NodeLost | Reason::PodRejected => true,
                Reason::Evicted => disruption.is_some(),
                _ => false,
            };
            // The agent may take its time to end: what came before that is not what came before its pod was taken.
            let began = disruption.and_then(|d| d.at).unwrap_or(failure.at);
            is_loss.then(|| {
                (
                    failure.reason,
                    failure.message.clone(),
                    began.min(failure.at),
                )
            })
        }
        // The agent was told to end, and ended its job first.
        (Some(End::JobDone(_)), Some(disruption)) => {
            let (at, done) = (disruption.at?, runner.done.as_ref()?);
            let message = format!(
                "Kubernetes removed the pod from its node ({}: {}).",
                disruption.reason, disruption.message
            );
            (at <= done.finished.after(SKEW)).then_some((Reason::Evicted, message, at))
        }
        _ => None,
    }
}

/// A job that ended with its node, which is back in another boot before Kubernetes has missed it.
fn by_reboot(case: Case, job: &Ended) -> Option<Blamed> {
    let cut = job
        .cut
        .as_ref()
        .filter(|cut| may_be_reboot(cut, case.now))?;
    let boot = case.observed.reruns.boots.get(&job.node)?;
    (*boot != cut.boot).then(|| Blamed {
        runner: job.runner.clone(),
        job: job.job.clone(),
        node: Some(job.node.clone()),
        device: None,
        cause: RerunCause::NodeLoss,
        code: None,
        code_name: Some(Reason::NodeLost.word().to_owned()),
        evidence: format!(
            "The node was rebooted while the job ran: its boot id was {}, and is {boot}.",
            cut.boot
        ),
        at: cut.seen,
        is_told: true,
    })
}

fn may_be_reboot(cut: &Cut, now: Timestamp) -> bool {
    now < cut.seen.after(REBOOT)
}

/// Whether a node may yet tell that a reboot ended a job.
pub(super) fn may_tell(case: Case, wish: &Rerun) -> bool {
    let mut ended = case.observed.reruns.ended.iter();
    let is_open = |job: &Ended| {
        let cut = job.cut.as_ref();
        cut.is_some_and(|cut| may_be_reboot(cut, case.now))
    };
    wish.on_node_loss && ended.any(is_open)
}

/// A job by its name, of the pool's own GitHub. One at a server that the pool has left cannot be asked for any more.
fn named(pool: &Pool, spec: &Spec, runner: &Runner, job: &Job) -> Option<NamedJob> {
    let home = jobs::home(pool, spec, runner);
    let is_here = home.origin() == spec.url.origin();
    let repository = Repository::within(&home, &job.repository).filter(|_| is_here)?;
    let (run, attempt) = jobs::numbers(job);
    let run = u64::try_from(run?).ok()?;
    Some(NamedJob {
        name: job.job.clone(),
        run: (repository.full_name().to_owned(), run),
        attempt,
    })
}

/// A gate that found a device, or a whole node, broken.
struct Fault<'a> {
    /// The gate's runner, where it was one of this pool's.
    runner: Option<&'a str>,
    node: &'a str,
    device: Option<&'a str>,
    code: Option<i32>,
    code_name: Option<&'a str>,
    message: &'a str,
    at: Timestamp,
}

/// What gates found, of this pool and of others: facts alone, which no pool's settings can cause.
fn faults(case: Case) -> Vec<Fault> {
    // The new ones, however many there are at a time: the status has no room for all.
    let new = case.health.new.iter();
    let own = new
        .chain(&case.pool.status.last_failures)
        .filter_map(|failure| {
            let is_fact = is_proof(&failure.class, failure.code, failure.code_name.as_deref());
            is_fact.then_some(())?;
            Some(Fault {
                runner: Some(&failure.runner),
                node: failure.node.as_deref()?,
                device: failure.device.as_deref(),
                code: failure.code,
                code_name: failure.code_name.as_deref(),
                message: &failure.message,
                at: failure.at.0,
            })
        });
    let others = facts(case.observed).map(|held| Fault {
        runner: None,
        node: &held.entry.node,
        device: held.entry.device.as_deref(),
        code: held.entry.code,
        code_name: held.entry.code_name.as_deref(),
        message: &held.entry.message,
        at: held.entry.since.0,
    });
    own.chain(others).collect()
}

/// The jobs that a broken device speaks of: the last ones that ended on it, a short while before.
fn by_device(case: Case, fault: &Fault) -> Vec<Blamed> {
    let ended = &case.observed.reruns.ended;
    let is_meant = |job: &&Ended| {
        job.node == fault.node
            && fault.runner != Some(job.runner.as_str())
            && job.at < fault.at
            && fault.at <= job.at.after(WITHIN)
            && covers(case, job, fault)
            && !is_cleared(case, job, fault)
    };
    let blamed = |job: &Ended| Blamed {
        runner: job.runner.clone(),
        job: job.job.clone(),
        node: Some(job.node.clone()),
        device: fault.device.map(str::to_owned),
        cause: RerunCause::GpuFault,
        code: fault.code,
        code_name: fault.code_name.map(str::to_owned),
        evidence: format!(
            "The next gate on the job's device failed: {}",
            fault.message
        ),
        at: fault.at,
        is_told: true,
    };
    ended.iter().filter(is_meant).map(blamed).collect()
}

/// Whether a fault is of the job's own device. One that names no device is, where the job had all that the node offers.
fn covers(case: Case, job: &Ended, fault: &Fault) -> bool {
    if let Some(device) = fault.device {
        return job.devices.iter().any(|d| d == device);
    }
    let GpuRequest::Resource { name, .. } = &case.spec.gpu else {
        return false;
    };
    let node = case.observed.node(&job.node);
    let offers = node.and_then(|node| node.offers.get(name).copied());
    offers.is_some_and(|n| usize::try_from(n).is_ok_and(|n| n <= job.devices.len()))
}

/// Whether a device computed well between a job's end and the fault: a gate passed there, or another job had it. As good as
/// that is that nobody can say so, because nobody watched since the job's end.
fn is_cleared(case: Case, job: &Ended, fault: &Fault) -> bool {
    let known = case.observed.reruns.passes.as_ref();
    let Some(known) = known.filter(|known| known.since < job.at) else {
        return true;
    };
    let shares = |devices: &[String]| match fault.device {
        Some(device) => devices.iter().any(|d| d == device),
        None => devices.iter().any(|d| job.devices.contains(d)),
    };
    let is_between = |at: Timestamp| job.at < at && at < fault.at;
    let mut passed = known.all.iter().filter(|pass| pass.node == job.node);
    let later = case.observed.reruns.ended.iter();
    let mut later = later.filter(|other| other.node == job.node && shares(&other.devices));
    passed.any(|p| is_between(p.bound) && (p.devices.is_empty() || shares(&p.devices)))
        || later.any(|other| is_between(other.at))
}

/// Whether the devices of a job that ended are known to be well: gates passed there since.
pub(super) fn is_acquitted(case: Case, runner: &str, run: &RunKey) -> bool {
    let facts = &case.observed.reruns;
    let is_it = |job: &&Ended| job.runner == runner && job.job.run == *run;
    let (Some(job), Some(passes)) = (facts.ended.iter().find(is_it), &facts.passes) else {
        return false;
    };
    let is_later = |pass: &&Pass| pass.node == job.node && job.at < pass.bound;
    let is_well = |device: &String| {
        let mut later = passes.all.iter().filter(is_later);
        later.any(|pass| pass.devices.contains(device))
    };
    !job.devices.is_empty() && job.devices.iter().all(is_well)
}

/// The jobs that ended on the pool's runners lately, for a gate that may yet fail: those that were known, and those whose
/// end is new. After a restart, those that the status has. `boots` has the boot ids of the nodes, while the agents ran, by
/// the uids of the pods.
#[must_use]
pub fn remember<'a>(
    pool: &Pool,
    runners: impl Iterator<Item = &'a Runner>,
    boots: &BTreeMap<String, String>,
    mut known: Vec<Ended>,
    now: Timestamp,
) -> Vec<Ended> {
    let Ok(spec) = &pool.spec else {
        return vec![];
    };
    let may_be_blamed = pool.status.last_jobs.iter();
    let may_be_blamed = may_be_blamed.filter(|job| job.refused.is_none());
    let listed = may_be_blamed.filter_map(|job| {
        let attempt = job.attempt;
        let name = job.job.clone();
        let run = jobs::run_of(job)?;
        Some(Ended {
            runner: job.runner.clone(),
            node: job.node.clone()?,
            devices: job.devices.clone(),
            job: NamedJob { name, run, attempt },
            at: job.finished_at.0,
            cut: None,
        })
    });
    let seen = runners.filter_map(|runner| {
        let boot = boots.get(&runner.uid).filter(|_| is_cut(runner));
        let boot = boot.cloned();
        let cut = boot.map(|boot| Cut { boot, seen: now });
        Some(Ended {
            cut,
            ..ended(pool, spec, runner)?
        })
    });
    for job in listed.chain(seen) {
        let is_it = |k: &Ended| k.runner == job.runner && k.job.run == job.job.run;
        let matters = !job.devices.is_empty() || job.cut.is_some();
        if matters && !known.iter().any(is_it) {
            known.push(job);
        }
    }
    known.retain(|job| now < job.at.after(RECENT));
    known.sort_by_key(|job| Reverse(job.at));
    known.truncate(MOST);
    known
}

/// Whether a runner's agent ended in the middle of a job, or of what may have been one, and neither Kubernetes nor the agent
/// says why.
fn is_cut(runner: &Runner) -> bool {
    let Some(End::Failed(failure)) = &runner.end else {
        return false;
    };
    matches!(
        failure.reason,
        Reason::JobCutShort | Reason::EndedWithoutJob | Reason::AgentEnded
    )
}

/// The job that ended on a runner, or with it. A persistent runner's last one may have gone well before.
fn ended(pool: &Pool, spec: &Spec, runner: &Runner) -> Option<Ended> {
    let failed = match &runner.end {
        Some(End::Failed(failure)) => Some(failure.at),
        _ => None,
    };
    let under_way = runner.under_way.as_deref().zip(failed);
    let (job, at) = match &runner.done {
        _ if under_way.is_some() => under_way,
        Some(done) if done.refused.is_some() => None,
        Some(done) => Some((&done.job, done.finished)),
        None => runner.heard.as_deref().zip(failed),
    }?;
    Some(Ended {
        runner: runner.name.clone(),
        node: runner.node.clone()?,
        devices: runner.devices.clone(),
        job: named(pool, spec, runner, job)?,
        at,
        cut: None,
    })
}
