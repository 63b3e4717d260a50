//! Why jobs wait, as far as a resource tells: what stands in the way, the most urgent first, each thing once.

pub mod job;

use cudarunner_crds::{CudaRunner, CudaRunnerStatus, DeletionPolicy, RunnerPhase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use crate::condition::{bad_status, kind};
use crate::model::pool::Pool;
use crate::model::time::Shift as _;
use crate::reason::{Reason, Stored};

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

/// What stands in the way of a pool's jobs; nothing where they run, or could.
#[must_use]
pub fn causes(resource: &CudaRunner) -> Vec<Cause> {
    causes_where(resource, |_| true)
}

/// The most urgent of what stands in the way of the jobs that wait for a pool's own runners: trouble with other jobs and with
/// checks holds none of them.
#[must_use]
pub fn of_waiting(resource: &CudaRunner) -> Option<Cause> {
    let concerns = |condition: &Condition| match condition.type_.as_str() {
        kind::WORKFLOW_VERIFIED | kind::CHECKS_REQUIRED => false,
        kind::QUEUE_SERVED => Stored::parse(&condition.reason) != Reason::LabelMissing,
        _ => true,
    };
    causes_where(resource, concerns).into_iter().next()
}

/// The same of the conditions that concern somebody.
fn causes_where(resource: &CudaRunner, concerns: impl Fn(&Condition) -> bool) -> Vec<Cause> {
    let status = resource.status.as_ref();
    let Some(status) = status.filter(|status| is_seen(status)) else {
        return vec![Cause::new(
            "No status",
            "No operator has looked at this pool yet. Does one run (kubectl get deployment --all-namespaces --selector app.kubernetes.io/name=cuda-runner-operator), is this namespace among those that it watches, and does its --pool-selector, where it has one, take in the labels of this CudaRunner?",
        )];
    };
    if let Some(since) = &resource.metadata.deletion_timestamp {
        return vec![leaving(resource, status, since.0)];
    }
    let mut all: Vec<Cause> = behind(resource, status).into_iter().collect();
    for condition in speaking(status).into_iter().filter(|c| concerns(c)) {
        let is_known = |known: &Cause| condition.message.contains(&known.message);
        if !all.iter().any(is_known) {
            let about = format!("{} ({})", condition.type_, condition.reason);
            all.push(Cause::new(about, condition.message.clone()));
        }
    }
    let is_free = all.is_empty();
    all.extend(queue(resource, status, is_free));
    all
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

/// Why jobs wait for a number; and, where nothing else stands in the way, what they wait for.
fn queue(resource: &CudaRunner, status: &CudaRunnerStatus, is_free: bool) -> Option<Cause> {
    if status.queued <= 0 {
        return None;
    }
    let wait = if status.queued == 1 {
        "1 job waits".to_owned()
    } else {
        format!("{} jobs wait", status.queued)
    };
    let (field, most) = match &resource.spec.scaling {
        Some(scaling) => ("spec.scaling.maxRunners", scaling.max_runners),
        None => ("spec.replicas", resource.spec.replicas.unwrap_or(1)),
    };
    if most == 0 {
        let name = resource.metadata.name.as_deref().unwrap_or_default();
        let namespace = resource.metadata.namespace.as_deref().unwrap_or_default();
        return Some(Cause::new(
            field,
            format!(
                "{wait}, and {field} is 0: no runner comes. `kubectl scale cudarunner {name} --replicas 1 --namespace {namespace}` gives it one"
            ),
        ));
    }
    if status.busy >= most {
        return Some(Cause::new(
            field,
            format!("{wait} until a runner has ended its job: {field} is {most}, and all are busy"),
        ));
    }
    let capacity = status.scale_set.as_ref().map(|set| set.capacity);
    let capacity = capacity.filter(|capacity| *capacity < most && status.busy >= *capacity);
    if let Some(capacity) = capacity {
        return Some(Cause::new(
            "GPUs",
            format!(
                "{wait} for a GPU: those that are there and free for this pool suffice for {capacity} of {most} runners, and {} are busy. Add nodes, or look who else holds GPUs (kubectl describe nodes)",
                status.busy
            ),
        ));
    }
    if !is_free {
        return None;
    }
    if status.online > status.busy {
        return Some(Cause::new(
            "Queue",
            format!(
                "{wait}, and {} of the runners are idle: GitHub gives a job to an idle runner within seconds. Where it does not, the run is held by its own concurrency group or environment, or its repository is not in the runner group",
                status.online.saturating_sub(status.busy)
            ),
        ));
    }
    Some(Cause::new(
        "Queue",
        format!(
            "{wait} for runners that start: {} at the gate, {} before it",
            status.gated, status.pending
        ),
    ))
}

#[cfg(test)]
mod tests;
