//! Why jobs wait, as far as a resource tells: what stands in the way, the most urgent first, each thing once.

pub mod job;
mod lack;
pub mod operator;

use cudarunner_crds::{CudaRunner, CudaRunnerStatus, DeletionPolicy, LeftStatus, RunnerPhase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use crate::condition::{bad_status, kind};
use crate::model::pool::Pool;
use crate::model::time::Shift as _;
use crate::reason::{Reason, Stored};
use crate::scale_set;
use lack::Lack;

/// Something that stands in the way of jobs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Cause {
    /// A word or two for what it is about: a condition and its reason, or a part of the resource.
    pub about: String,
    /// What it is and what to do, in sentences without a full stop at the end.
    pub message: String,
}

impl Cause {
    fn new(about: impl Into<String>, message: impl Into<String>) -> Self {
        let (about, message) = (about.into(), message.into());
        Self { about, message }
    }
}

/// What stands in the way of a pool's jobs; nothing where they run, or could. What holds those that wait comes first, then
/// what holds others, then trouble that holds none.
#[must_use]
pub fn causes(resource: &CudaRunner) -> Vec<Cause> {
    let status = match seen(resource) {
        Ok(status) => status,
        Err(instead) => return vec![instead],
    };
    let mut all = holding(resource, status, Jobs::Wait(status.queued));
    let troubles = speaking(status);
    let (of_others, rest): (Vec<_>, Vec<_>) = troubles.iter().partition(|c| lack::is_of_others(c));
    for condition in of_others.into_iter().chain(rest) {
        add(&mut all, condition);
    }
    all.extend(status.left_at.iter().filter_map(left_behind));
    all
}

/// An address that the pool has left, and where it is not known what it still has.
fn left_behind(left: &LeftStatus) -> Option<Cause> {
    let why = left.message.as_deref()?.trim_end_matches('.');
    let message = format!(
        "The pool may still have runners or a scale set at {}, which could not be asked: {why}. It is asked again. Let the pool's credentials reach it until it has gone from status.leftAt",
        left.url
    );
    Some(Cause::new("Left behind", message))
}

/// What is to be said where nothing is known to stand in the way, and jobs may wait all the same: GitHub tells a scale set of
/// no more jobs than it is offered runners.
#[must_use]
pub fn unheard(resource: &CudaRunner) -> Option<String> {
    let status = seen(resource).ok()?;
    let set = status.scale_set.as_ref();
    let set = set.filter(|set| scale_set::number(set).is_some() && set.capacity <= status.busy)?;
    if status.queued > 0 {
        return None;
    }
    let lack = Lack::of(resource, status, 1);
    let cause = waited_for(resource, status, Jobs::MayCome, lack)?;
    Some(format!(
        "Nothing is known to hold this pool. Jobs may wait all the same: GitHub assigns a scale set no more jobs than it is offered runners, here {}. {}",
        set.capacity, cause.message
    ))
}

/// The most urgent of what holds so many jobs that wait for a pool's own runners. Trouble with other jobs and with checks holds
/// none of them, nor does a quarantine while all the runners are busy that the spec allows.
#[must_use]
pub fn of_waiting(resource: &CudaRunner, jobs: i32) -> Option<Cause> {
    match seen(resource) {
        Ok(status) => holding(resource, status, Jobs::Wait(jobs))
            .into_iter()
            .next(),
        Err(instead) => Some(instead),
    }
}

/// What holds the jobs that wait for a pool, or would hold one of which nobody knows yet; and jobs that no pool takes.
#[must_use]
pub fn of_any_job(resource: &CudaRunner) -> Vec<Cause> {
    let status = match seen(resource) {
        Ok(status) => status,
        Err(instead) => return vec![instead],
    };
    let jobs = if status.queued > 0 {
        Jobs::Wait(status.queued)
    } else {
        Jobs::MayCome
    };
    let mut all = holding(resource, status, jobs);
    for condition in speaking(status) {
        if lack::is_of_others(condition) {
            add(&mut all, condition);
        }
    }
    all
}

/// The status, where an operator has written it and the pool stays; else what is to be said instead.
fn seen(resource: &CudaRunner) -> Result<&CudaRunnerStatus, Cause> {
    let status = resource.status.as_ref();
    let Some(status) = status.filter(|status| is_seen(status)) else {
        return Err(Cause::new(
            "No status",
            "No operator has looked at this pool yet. Does one run (kubectl get deployment --all-namespaces --selector app.kubernetes.io/name=cuda-runner-operator), is this namespace among those that it watches, and does its --pool-selector, where it has one, take in the labels of this CudaRunner?",
        ));
    };
    match &resource.metadata.deletion_timestamp {
        Some(since) => Err(leaving(resource, status, since.0)),
        None => Ok(status),
    }
}

/// The jobs that are asked about.
#[derive(Clone, Copy)]
enum Jobs {
    /// So many wait.
    Wait(i32),
    /// None is known to wait, and one may come.
    MayCome,
}

/// What holds jobs, the most urgent first: conditions, and the number that they wait for.
fn holding(resource: &CudaRunner, status: &CudaRunnerStatus, jobs: Jobs) -> Vec<Cause> {
    let mut all: Vec<Cause> = behind(resource, status).into_iter().collect();
    let count = match jobs {
        Jobs::Wait(count) => count,
        Jobs::MayCome => 1,
    };
    if count <= 0 {
        return all;
    }
    let lack = Lack::of(resource, status, count);
    let mut conditions = speaking(status);
    conditions.retain(|condition| lack.is_because_of(condition, status));
    // Of a runner without a node the scheduler's word says more: it counts what is taken, too.
    conditions.sort_by_key(|condition| lack::is_quarantine(condition));
    for condition in &conditions {
        add(&mut all, condition);
    }
    let is_said = match lack {
        Lack::Number => true,
        Lack::Gpus { .. } => conditions.iter().all(|c| lack::is_quarantine(c)),
        Lack::Nothing | Lack::Runner { .. } => all.is_empty(),
    };
    if is_said {
        all.extend(waited_for(resource, status, jobs, lack));
    }
    all
}

/// Adds a condition, unless what it says is there already.
fn add(all: &mut Vec<Cause>, condition: &Condition) {
    let is_known = |known: &Cause| condition.message.contains(&known.message);
    if !all.iter().any(is_known) {
        let about = format!("{} ({})", condition.type_, condition.reason);
        all.push(Cause::new(about, condition.message.clone()));
    }
}

/// Whether an operator has written it: a resource that is new has a word of the CRD's.
fn is_seen(status: &CudaRunnerStatus) -> bool {
    let mut conditions = status.conditions.iter();
    conditions.any(|condition| Stored::parse(&condition.reason) != Reason::NotSeen)
}

/// A spec that the operator has not read yet: all that follows is about the one before.
fn behind(resource: &CudaRunner, status: &CudaRunnerStatus) -> Option<Cause> {
    let generation = resource.metadata.generation?;
    (status.observed_generation < Some(generation)).then(|| {
        Cause::new(
            "Old status",
            "The operator has not read the last change of the spec yet; what the status says is about the one before. It reads a change within seconds: does it run?",
        )
    })
}

/// The conditions that report trouble, most urgent first. `Ready` sums up the others, and speaks where none does.
#[must_use]
pub fn troubles(status: &CudaRunnerStatus) -> Vec<&Condition> {
    let (ready, others): (Vec<_>, Vec<_>) = status
        .conditions
        .iter()
        .filter(|condition| is_trouble(condition))
        .partition(|condition| condition.type_ == kind::READY);
    if others.is_empty() { ready } else { others }
}

/// The same without what follows from it that the pool waits for a person.
fn speaking(status: &CudaRunnerStatus) -> Vec<&Condition> {
    let all = troubles(status);
    let stalled = all.iter().find(|c| c.type_ == kind::STALLED);
    stalled.map(|stalled| vec![*stalled]).unwrap_or(all)
}

/// Whether a condition reports trouble: it is not as wished, or it is for now, or it cannot be known.
fn is_trouble(condition: &Condition) -> bool {
    let reason = Stored::parse(&condition.reason);
    match condition.type_.as_str() {
        // It is no trouble by itself that the first ones start; and some may be online while others cannot be.
        kind::RUNNERS_ONLINE if reason == Reason::Starting => false,
        kind::RUNNERS_ONLINE if condition.status == "True" => {
            !reason.is_one_of(&[Reason::Online, Reason::ScaledToZero])
        }
        // GitHub does not answer.
        kind::CREDENTIALS_VALID if condition.status == "Unknown" => reason != Reason::NotChecked,
        kind::QUEUE_SERVED if condition.status == "Unknown" => reason == Reason::NotReadable,
        type_ => condition.status == bad_status(type_),
    }
}

/// A pool that goes: what it waits for, and until when.
fn leaving(resource: &CudaRunner, status: &CudaRunnerStatus, since: jiff::Timestamp) -> Cause {
    let pool = Pool::read(resource, false);
    let limit = since.after(pool.teardown_timeout);
    let busy: Vec<&str> = status
        .runners
        .iter()
        .filter(|runner| runner.phase == RunnerPhase::Busy)
        .map(|runner| runner.name.as_str())
        .collect();
    let rest = match (busy.is_empty(), pool.deletion_policy) {
        (false, DeletionPolicy::WaitForJobs) => format!(
            "The jobs on {} are waited for (spec.deletionPolicy: WaitForJobs), until {limit} at the latest (spec.teardownTimeout)",
            busy.join(", ")
        ),
        (false, DeletionPolicy::Now) => format!(
            "The jobs on {} are being ended (spec.deletionPolicy: Now)",
            busy.join(", ")
        ),
        (true, _) => format!(
            "What it made is being removed from GitHub and the cluster. At {limit} the resource goes in any case (spec.teardownTimeout), and an Event says what is left where"
        ),
    };
    let message = format!(
        "The pool has been in deletion since {since} and takes no new jobs: those that wait need another pool with their labels. {rest}"
    );
    Cause::new("Deletion", message)
}

/// What jobs wait for, in numbers.
fn waited_for(
    resource: &CudaRunner,
    status: &CudaRunnerStatus,
    jobs: Jobs,
    lack: Lack,
) -> Option<Cause> {
    let wait = match jobs {
        Jobs::MayCome => "A job that comes waits".to_owned(),
        Jobs::Wait(1) => "1 job waits".to_owned(),
        Jobs::Wait(count) => format!("{count} jobs wait"),
    };
    let (field, most) = lack::most(resource);
    Some(match lack {
        Lack::Number if most == 0 => {
            let name = resource.metadata.name.as_deref().unwrap_or_default();
            let namespace = resource.metadata.namespace.as_deref().unwrap_or_default();
            Cause::new(
                field,
                format!(
                    "{wait}, and {field} is 0: no runner comes. `kubectl scale cudarunner {name} --replicas 1 --namespace {namespace}` gives it one"
                ),
            )
        }
        Lack::Number => Cause::new(
            field,
            format!("{wait} until a runner has ended its job: {field} is {most}, and all are busy"),
        ),
        Lack::Gpus { capacity } => Cause::new(
            "GPUs",
            format!(
                "{wait} for a GPU: those that are there and free for this pool suffice for {capacity} of {most} runners (busy: {}). Add nodes, or look who else holds GPUs (kubectl describe nodes)",
                status.busy
            ),
        ),
        Lack::Nothing => {
            let Jobs::Wait(_) = jobs else { return None };
            let idle = match status.online.saturating_sub(status.busy) {
                1 => "1 runner is idle".to_owned(),
                idle => format!("{idle} runners are idle"),
            };
            Cause::new(
                "Queue",
                format!(
                    "{wait}, and {idle}: GitHub gives a job to an idle runner within seconds. Where it does not, the run is held by its own concurrency group or environment, or its repository is not in the runner group"
                ),
            )
        }
        Lack::Runner { .. } => Cause::new(
            "Queue",
            format!(
                "{wait} for runners that start: {} at the gate, {} before it",
                status.gated, status.pending
            ),
        ),
    })
}

#[cfg(test)]
mod tests;
