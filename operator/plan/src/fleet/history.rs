//! The last gates and jobs, as far as statuses and runners tell.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use cudarunner_crds::{CudaRunnerStatus, FailureStatus, JobStatus};
use gate_report::clean;

use super::{Event, EventKind, Job, LONGEST, MAX_HISTORY};
use crate::devices::is_failure;
use crate::hours::RunnerHours;
use crate::model::runner::Runner;
use crate::reason::{Reason, Stored};

/// What happened, in the order in which it was found.
#[derive(Default)]
pub(super) struct History {
    events: Vec<Event>,
    /// What the operator remembers of runners that have ended. Statuses have some of it, too.
    remembered: Vec<Event>,
}

/// What runners fail of in their gate; of all else they fail before it, or after it.
const OF_GATE: [Reason; 3] = [
    Reason::GateFailed,
    Reason::GateOverdue,
    Reason::NodeWarmingUp,
];

/// The word for the end of a job of which GitHub has not said it.
const UNKNOWN: &str = "unknown";

/// Devices by node, each with what is said of it.
pub(super) type ByNode<T> = BTreeMap<String, BTreeMap<String, T>>;

impl History {
    /// Adds what a pool's status has kept.
    pub(super) fn pool(&mut self, pool: &str, status: &CudaRunnerStatus) {
        let jobs = status.last_jobs.iter().map(|job| Event::of_job(pool, job));
        self.events.extend(jobs);
        let failures = status.last_failures.iter();
        self.events
            .extend(failures.map(|failure| Event::of_failure(pool, failure)));
        self.bound();
    }

    /// Adds the gate of a runner that is there.
    pub(super) fn runner(&mut self, pool: &str, runner: &Runner) {
        if !runner.gate_passed || runner.devices.is_empty() {
            return;
        }
        self.events.push(Event {
            at: runner.created,
            kind: EventKind::Gate,
            result: "passed".to_owned(),
            failed: false,
            pool: pool.to_owned(),
            runner: runner.name.clone(),
            node: runner.node.clone(),
            devices: runner.devices.clone(),
            job: None,
            message: None,
        });
        self.bound();
    }

    /// Adds the gate and the job of a runner that has ended.
    pub(super) fn ended(&mut self, runner: &RunnerHours) {
        let event = |kind, at, result: &str, failed| Event {
            at,
            kind,
            result: clean(result, LONGEST),
            failed,
            pool: runner.pool_key().to_string(),
            runner: runner.runner.clone(),
            node: runner.node.clone(),
            devices: runner.devices.clone(),
            job: None,
            message: None,
        };
        let was_online = runner.seconds.idle > 0 || runner.job.is_some();
        if was_online && let Some(from) = runner.held_from {
            self.remembered
                .push(event(EventKind::Gate, from, "passed", false));
        }
        if let Some(job) = &runner.job {
            let conclusion = job.conclusion.as_deref();
            let ended = event(
                EventKind::Job,
                runner.held_until,
                conclusion.unwrap_or(UNKNOWN),
                is_failure(conclusion) && !job.refused,
            );
            self.remembered.push(Event {
                job: Some(Job {
                    id: None,
                    name: clean(&job.job, LONGEST),
                    repository: job.repository.clone(),
                    workflow: Some(job.workflow.clone()).filter(|name| !name.is_empty()),
                    run_id: job.run_id,
                    url: None,
                }),
                ..ended
            });
        } else if let Some(reason) = runner.reason.filter(|_| !was_online)
            && is_of_gate(reason)
        {
            let mut failed = event(EventKind::Gate, runner.held_until, reason, true);
            // Which of several was at fault is not remembered.
            if failed.devices.len() > 1 {
                failed.devices.clear();
            }
            self.remembered.push(failed);
        }
    }

    /// Takes in what is remembered and no status says.
    pub(super) fn merge(&mut self) {
        let remembered = std::mem::take(&mut self.remembered);
        let new: Vec<Event> = {
            let known: HashSet<_> = self.events.iter().map(identity).collect();
            let new = remembered
                .into_iter()
                .filter(|event| !known.contains(&identity(event)));
            new.collect()
        };
        self.events.extend(new);
    }

    /// What two operators know, newest first, each thing once.
    pub(super) fn joined(events: Vec<Event>, remembered: Vec<Event>) -> Vec<Event> {
        let mut all = Self { events, remembered };
        all.merge();
        all.sort();
        all.events
    }

    /// So many pools and runners there may be that not all is kept until the end.
    fn bound(&mut self) {
        if self.events.len() >= MAX_HISTORY.saturating_mul(2) {
            self.sort();
        }
    }

    fn sort(&mut self) {
        self.events.sort_by_key(|event| Reverse(event.at));
        self.events.truncate(MAX_HISTORY);
    }

    /// Devices of which the last thing known is a gate that failed, and why.
    pub(super) fn failed_last(&self) -> ByNode<String> {
        let mut last: BTreeMap<(&str, &str), &Event> = BTreeMap::new();
        for event in &self.events {
            for device in &event.devices {
                let known = last.entry((event.node.as_deref().unwrap_or_default(), device));
                let known = known.or_insert(event);
                if known.at < event.at {
                    *known = event;
                }
            }
        }
        let mut failed = ByNode::<String>::new();
        for ((node, device), event) in last {
            if event.failed && event.kind == EventKind::Gate {
                let said = event.message.clone().unwrap_or_default();
                let devices = failed.entry(node.to_owned()).or_default();
                devices.insert(device.to_owned(), said);
            }
        }
        failed
    }

    /// The devices that gates have seen, by node.
    pub(super) fn seen(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut seen = BTreeMap::<String, BTreeSet<String>>::new();
        for event in &self.events {
            if let Some(node) = &event.node {
                let devices = seen.entry(node.clone()).or_default();
                devices.extend(event.devices.iter().cloned());
            }
        }
        seen
    }

    /// The newest of it, newest first.
    pub(super) fn finish(mut self) -> Vec<Event> {
        self.sort();
        self.events
    }
}

fn is_of_gate(reason: &str) -> bool {
    Stored::parse(reason).is_one_of(&OF_GATE)
}

/// What makes two events the same: one status tells of it, and the operator remembers it.
fn identity(event: &Event) -> (&str, &str, EventKind, bool, Option<i64>) {
    let run = event.job.as_ref().and_then(|job| job.run_id);
    (
        &event.pool,
        &event.runner,
        event.kind,
        event.kind == EventKind::Gate && event.failed,
        run,
    )
}

impl Event {
    fn of_job(pool: &str, job: &JobStatus) -> Self {
        let conclusion = job.conclusion.as_deref();
        Self {
            at: job.finished_at.0,
            kind: EventKind::Job,
            result: clean(conclusion.unwrap_or(UNKNOWN), LONGEST),
            // One that was not let in ran nothing that could fail.
            failed: is_failure(conclusion) && job.refused.is_none(),
            pool: pool.to_owned(),
            runner: job.runner.clone(),
            node: job.node.clone(),
            devices: job.devices.clone(),
            message: job.refused.as_deref().map(|why| clean(why, LONGEST)),
            job: Some(Job {
                id: None,
                name: clean(&job.job, LONGEST),
                repository: job.repository.clone(),
                workflow: Some(job.workflow.clone()).filter(|name| !name.is_empty()),
                run_id: job.run_id,
                url: job.url.clone(),
            }),
        }
    }

    fn of_failure(pool: &str, failure: &FailureStatus) -> Self {
        Self {
            at: failure.at.0,
            kind: if is_of_gate(&failure.reason) {
                EventKind::Gate
            } else {
                EventKind::Runner
            },
            result: failure.reason.clone(),
            failed: true,
            pool: pool.to_owned(),
            runner: failure.runner.clone(),
            node: failure.node.clone(),
            devices: failure.device.iter().cloned().collect(),
            job: None,
            message: Some(clean(&failure.message, LONGEST)),
        }
    }
}
