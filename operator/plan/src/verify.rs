//! The verification: when a workflow is run to prove the pool, and what its run proves.
//!
//! The intent is in the status before anything is sent. A crash in between leaves an intent whose run is looked for
//! before another one is started, so that there are never two.

use std::collections::BTreeSet;

use cudarunner_crds::{
    MAX_HARDWARE, MAX_VERIFICATIONS, RunnerPhase, VerificationRecord, VerificationState,
    VerificationStatus, VerifiedJob, VerifiedJobStatus, Verify,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::condition::{ConditionState, condition_state};
use super::{Access, Action, Case, Notice, Observed, Plan};
use crate::model::github::{Repository, RunJob, Workflow};
use crate::model::pool::{Pool, Spec, fingerprint};
use crate::model::runner::Runner;
use crate::model::time::Shift as _;
use crate::model::verification::{Dispatch, VerificationFacts};
use crate::reason::{Reason, Stored};

mod judge;

/// How often a run is looked at.
pub const POLL: SignedDuration = SignedDuration::from_secs(5);
/// How often one is looked at that will not come to a good end any more.
pub const SLOW_POLL: SignedDuration = SignedDuration::from_secs(15);
/// After this time a run must show in GitHub's list.
pub const SURELY_LISTED: SignedDuration = SignedDuration::from_secs(20);
/// When a workflow that could not be started is tried again.
const START_AGAIN: SignedDuration = SignedDuration::from_mins(10);
/// A workflow is sent so often for one verification. Answers get lost in outages; more than some in a row do not.
const MOST_SENT: u32 = 5;
/// How long a log may take to appear.
const LOG: SignedDuration = SignedDuration::from_secs(60);

/// The workflow of `spec.verify`, where it can be said.
#[must_use]
pub fn workflow(pool: &Pool) -> Option<Workflow> {
    let spec = pool.spec.as_ref().ok()?;
    let verify = spec.verify.as_ref()?;
    Some(Workflow {
        repository: spec.repository.clone()?,
        file: verify.workflow.clone(),
        git_ref: verify.git_ref.clone(),
    })
}

/// Whether a verification is of the repository that the spec names now. One that names none was made before they did.
#[must_use]
pub fn is_here(status: &VerificationStatus, spec: &Spec) -> bool {
    let here = spec.repository.as_ref().map(Repository::full_name);
    let named = status.repository.as_deref();
    named.is_none_or(|named| Some(named) == here) && is_at(status, spec)
}

/// The same of its server.
fn is_at(status: &VerificationStatus, spec: &Spec) -> bool {
    let origin = status.origin.as_ref();
    origin.is_none_or(|origin| *origin == spec.url.origin())
}

/// Jobs that have ended and whose log has yet to be read.
#[must_use]
pub fn logs_wanted(pool: &Pool, facts: &VerificationFacts) -> Vec<u64> {
    let verify = pool.spec.as_ref().ok().and_then(|s| s.verify.as_ref());
    let wanted = verify.iter().flat_map(|verify| &verify.jobs);
    let wanted = wanted.filter(|job| job.tests.is_some());
    let jobs = wanted.flat_map(|job| named(&job.name, &facts.jobs));
    let ids: BTreeSet<u64> = jobs
        .filter(|job| job.conclusion.as_deref() == Some("success"))
        .map(|job| job.id)
        .filter(|id| !facts.sums.contains_key(id))
        .collect();
    ids.into_iter().collect()
}

/// The jobs that a name of the spec stands for: those of that very name; else those that a reusable workflow reports
/// as `caller / name`; else those that a matrix reports as `name (…)`.
fn named<'a>(name: &str, jobs: &'a [RunJob]) -> Vec<&'a RunJob> {
    let among = |test: &dyn Fn(&str) -> bool| -> Vec<&'a RunJob> {
        jobs.iter().filter(|job| test(&job.name)).collect()
    };
    let called = format!(" / {name}");
    let of_matrix = format!("{name} (");
    let mut found = among(&|n| n == name);
    if found.is_empty() {
        found = among(&|n| n.ends_with(&called));
    }
    if found.is_empty() {
        found = among(&|n| n.starts_with(&of_matrix));
    }
    found
}

/// What a decision on a verification depends on.
struct Verification<'a> {
    case: Case<'a>,
    verify: &'a Verify,
}

/// Decides on the verification.
pub(super) fn plan(case: Case, plan: &mut Plan) {
    let Case {
        pool,
        spec,
        observed,
        ..
    } = case;
    let Some(verify) = &spec.verify else {
        abandon(pool, observed, plan);
        plan.status.verification = None;
        return;
    };
    if spec.repository.is_none() || observed.access != Access::Granted {
        return;
    }
    let verification = Verification { case, verify };
    let status = match pool.status.verification.clone() {
        None => verification.request(None, plan),
        Some(before) if before.stage().has_ended() => {
            if !verification.due(&before, plan) {
                return;
            }
            verification.request(Some(before), plan)
        }
        Some(mut before) if !is_here(&before, spec) => {
            abandon(pool, observed, plan);
            let why = "The spec names another repository by now".to_owned();
            end(&mut before, Some((Reason::Failed, why)), case.now);
            plan.wake_in(SignedDuration::ZERO);
            Some(before)
        }
        Some(before) => Some(verification.advance(before, plan)),
    };
    if status.is_some() {
        plan.status.verification = status;
    }
}

/// Cancels a run that is to prove nothing any more. One whose jobs wait would wait on, for a runner that does not come; a job
/// that runs, or has run, is its user's.
fn abandon(pool: &Pool, observed: &Observed, plan: &mut Plan) {
    let facts = &observed.verification;
    let status = pool.status.verification.as_ref();
    let status = status.filter(|v| !v.stage().has_ended() && facts.since == Some(v.since.0));
    // Of one that was not read yet nobody knows whether a job has begun.
    let (Some(status), Ok(spec), Some(run)) = (status, &pool.spec, &facts.run) else {
        return;
    };
    let named = status.repository.as_deref().and_then(Repository::new);
    let repository = named.or_else(|| spec.repository.clone());
    // Another server's cannot be asked any more.
    let has_begun = |job: &RunJob| matches!(&*job.status, "in_progress" | "completed");
    // What was read is some seconds old.
    let is_busy = |r: &Runner| r.phase == RunnerPhase::Busy;
    let may_have_begun = facts.jobs.iter().any(has_begun) || observed.runners.iter().any(is_busy);
    if let Some(repository) = repository.filter(|_| is_at(status, spec))
        && !may_have_begun
    {
        plan.actions.push(Action::CancelRun(repository, run.id));
    }
}

/// Gives up one that is on its way, with its pool.
pub(super) fn give_up(pool: &Pool, observed: &Observed, plan: &mut Plan) {
    let status = &mut plan.status.verification;
    if status.take_if(|v| !v.stage().has_ended()).is_some() {
        abandon(pool, observed, plan);
    }
}

impl Verification<'_> {
    /// Changes with everything that a verification speaks of.
    fn key(&self) -> String {
        let what = Verify {
            every: None,
            ..self.verify.clone()
        };
        let text = serde_json::to_string(&what).unwrap_or_default();
        fingerprint(&format!("{text} {}", self.case.spec.template_hash))
    }

    /// Whether another verification is to follow one that has ended.
    fn due(&self, last: &VerificationStatus, plan: &mut Plan) -> bool {
        let Case {
            pool,
            observed,
            now,
            ..
        } = self.case;
        let ended = last.ended.as_ref().map_or(last.since.0, |t| t.0);
        let asked = pool.verify_asked.is_some() && pool.verify_asked != last.asked;
        if asked || last.fingerprint != self.key() {
            return true;
        }
        let never_started = last.state == VerificationState::Failed && last.run_id.is_none();
        let again = [
            never_started.then_some(START_AGAIN),
            self.case.spec.verify_every,
        ];
        if let Some(at) = again
            .into_iter()
            .flatten()
            .map(|wait| ended.after(wait))
            .min()
        {
            if now >= at {
                return true;
            }
            plan.wake_at(at, now);
        }
        hardware(observed)
            .iter()
            .any(|kind| !last.hardware.contains(kind))
    }

    /// Writes down the intent, once a runner of the pool as it should be can take a job.
    fn request(
        &self,
        before: Option<VerificationStatus>,
        plan: &mut Plan,
    ) -> Option<VerificationStatus> {
        let Case {
            pool,
            spec,
            observed,
            now,
            ..
        } = self.case;
        let key = self.key();
        let is_new = |r: &&Runner| r.template == spec.template_hash;
        let mut online = observed.runners.iter().filter(|r| r.is_online());
        let old_may_take_it = observed
            .runners
            .iter()
            .any(|r| r.phase == RunnerPhase::Idle && !is_new(&r));
        if old_may_take_it || !online.any(|r| is_new(&r)) || !pool.finalizer {
            return None;
        }
        let history = before.as_ref().map(|b| b.history.clone());
        let mut kinds: Vec<String> = before
            .filter(|b| b.fingerprint == key)
            .map(|b| b.hardware)
            .unwrap_or_default();
        for kind in hardware(observed) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let surplus = kinds.len().saturating_sub(MAX_HARDWARE);
        kinds.drain(..surplus);
        plan.intent = Some(now);
        plan.wake_in(SignedDuration::ZERO);
        Some(VerificationStatus {
            state: VerificationState::Requested.into(),
            fingerprint: key,
            hardware: kinds,
            asked: pool.verify_asked.clone(),
            since: Time(now),
            repository: spec.repository.as_ref().map(|r| r.full_name().to_owned()),
            origin: Some(spec.url.origin()),
            run_id: None,
            url: None,
            ended: None,
            reason: None,
            message: None,
            jobs: vec![],
            history: history.unwrap_or_default(),
        })
    }

    /// Brings one forward that is on its way.
    fn advance(&self, mut status: VerificationStatus, plan: &mut Plan) -> VerificationStatus {
        let Case {
            spec,
            observed,
            now,
            ..
        } = self.case;
        let verify = self.verify;
        let facts = &observed.verification;
        if facts.since != Some(status.since.0) {
            plan.wake_in(SignedDuration::ZERO);
            return status;
        }
        let wait = facts.next_look.map_or(SignedDuration::from_secs(1), |at| {
            at.duration_since(now).max(SignedDuration::from_millis(500))
        });
        plan.wake_in(wait);
        if let (Some(id), VerificationState::Requested) = (facts.run_id, status.stage()) {
            status.state = VerificationState::Running.into();
            status.run_id = i64::try_from(id).ok();
            if let Some(repository) = &spec.repository {
                status.url = Some(repository.run_page(&spec.url, id, None));
            }
            announce(plan, false, Reason::VerificationStarted, &status, verify);
            return status;
        }
        if status.stage() == VerificationState::Requested {
            self.start(&mut status, plan);
        } else if facts.run.is_some() || facts.is_gone {
            self.judge_run(&mut status, plan);
        }
        status
    }

    /// Starts the workflow of one that was asked for, or ends it where GitHub has refused to.
    fn start(&self, status: &mut VerificationStatus, plan: &mut Plan) {
        let facts = &self.case.observed.verification;
        match &facts.dispatch {
            Dispatch::Open if facts.times_sent >= MOST_SENT => {
                let why = format!(
                    "The workflow {} was started {MOST_SENT} times on {}, and GitHub lists no run of it; look at its runs there",
                    self.verify.workflow, self.verify.git_ref
                );
                end(status, Some((Reason::Failed, why)), self.case.now);
            }
            Dispatch::Open if facts.next_look.is_none_or(|at| self.case.now >= at) => {
                if let Some(workflow) = workflow(self.case.pool) {
                    plan.actions.push(Action::DispatchWorkflow(workflow));
                    plan.wake_in(SignedDuration::from_millis(500));
                }
            }
            Dispatch::Refused { reason, message } => {
                end(status, Some((*reason, message.clone())), self.case.now);
            }
            _ => {}
        }
    }

    /// Takes in what the run has come to.
    fn judge_run(&self, status: &mut VerificationStatus, plan: &mut Plan) {
        let Case {
            pool, spec, now, ..
        } = self.case;
        let facts = &self.case.observed.verification;
        let judged = judge::judge(self);
        status.jobs = judged.jobs;
        match judged.verdict {
            judge::Verdict::Open(Some((reason, message))) => {
                status.reason = Some(reason.into());
                status.message = Some(message);
                let replaced = status.fingerprint != self.key()
                    || pool.verify_asked.is_some() && pool.verify_asked != status.asked;
                let started = facts.jobs.iter().any(|job| job.status == "in_progress");
                if replaced
                    && judged.overdue
                    && !started
                    && let (Some(repository), Some(id)) = (&spec.repository, facts.run_id)
                {
                    // Nobody takes its jobs, and another one is to follow.
                    plan.actions.push(Action::CancelRun(repository.clone(), id));
                }
            }
            judge::Verdict::Open(None) => {
                // What held it may be over; a job that came too late stays too late.
                if !is_late(status) {
                    status.reason = None;
                    status.message = None;
                }
            }
            judge::Verdict::Failed(reason, message) => {
                end(status, Some((reason, message)), now);
            }
            judge::Verdict::Succeeded => {
                // By GitHub's own times all were in time: our clock was ahead of its.
                let limit = i64::from(self.verify.pickup_seconds);
                let mut jobs = status.jobs.iter();
                let were_prompt = jobs.all(|job| job.queued_seconds.is_some_and(|s| s <= limit));
                let is_late = is_late(status) && !were_prompt;
                let late = status.message.clone().filter(|_| is_late);
                end(status, late.map(|m| (Reason::JobNotPickedUp, m)), now);
            }
        }
    }
}

/// Whether a job was not picked up in time: it stays too late.
#[must_use]
pub fn is_late(status: &VerificationStatus) -> bool {
    let reason = status.reason.as_deref().map(Stored::parse);
    reason.is_some_and(|reason| reason == Reason::JobNotPickedUp)
}

/// GPU and driver of the runners that are online.
fn hardware(observed: &Observed) -> BTreeSet<String> {
    let online = observed.runners.iter().filter(|r| r.is_online());
    online
        .filter_map(|r| r.hardware.as_ref().map(ToString::to_string))
        .collect()
}

/// Ends a verification, and puts it on record.
fn end(status: &mut VerificationStatus, trouble: Option<(Reason, String)>, now: Timestamp) {
    status.state = match trouble {
        None => VerificationState::Succeeded.into(),
        Some(_) => VerificationState::Failed.into(),
    };
    (status.reason, status.message) = trouble.map(|(r, m)| (r.into(), m)).unzip();
    status.ended = Some(Time(now));
    status.history.insert(
        0,
        VerificationRecord {
            run_id: status.run_id,
            url: status.url.clone(),
            state: status.state.clone(),
            reason: status.reason.clone(),
            since: status.since.clone(),
            ended: Time(now),
        },
    );
    status.history.truncate(MAX_VERIFICATIONS);
}

fn announce(
    plan: &mut Plan,
    warning: bool,
    reason: Reason,
    status: &VerificationStatus,
    verify: &Verify,
) {
    plan.notices.push(Notice {
        warning,
        reason: reason.into(),
        note: format!(
            "{} runs on {} to verify the pool: {}",
            verify.workflow,
            verify.git_ref,
            status.url.as_deref().unwrap_or_default()
        ),
        about: None,
    });
}

/// What the condition `WorkflowVerified` says.
pub(super) fn verified(
    pool: &Pool,
    status: Option<&VerificationStatus>,
    observed: &Observed,
) -> ConditionState {
    let Ok(spec) = &pool.spec else {
        return condition_state(
            "Unknown",
            Reason::NotStarted,
            "The spec cannot be carried out",
        );
    };
    let Some(verify) = &spec.verify else {
        return condition_state("Unknown", Reason::NotAsked, "spec.verify is not set");
    };
    if spec.repository.is_none() {
        return condition_state(
            "False",
            Reason::RepositoryMissing,
            "spec.github.url is no repository: name the one with the workflow in spec.verify.repository, as OWNER/NAME",
        );
    }
    let Some(status) = status else {
        return condition_state(
            "Unknown",
            Reason::WaitsForRunner,
            "The workflow is started when a runner is online",
        );
    };
    come_to(verify, status, observed)
}

/// What a verification has come to.
fn come_to(verify: &Verify, status: &VerificationStatus, observed: &Observed) -> ConditionState {
    let link = status.url.as_deref().unwrap_or("no run");
    let reported = status.message.clone().unwrap_or_default();
    let reason = status.reason.as_deref().map(Stored::parse);
    match (status.stage(), reason) {
        (VerificationState::Succeeded, _) => condition_state(
            "True",
            Reason::Verified,
            success_message(verify, status, link),
        ),
        (VerificationState::Failed, reason) => condition_state(
            "False",
            reason.unwrap_or(Reason::Failed.into()),
            match status.run_id {
                Some(_) => format!(
                    "{reported}. Run: {link}. Annotate the resource with {}=ANYTHING_NEW to run it again",
                    cudarunner_crds::VERIFY
                ),
                None => format!(
                    "{reported}. It is tried again every {} minutes",
                    START_AGAIN.as_mins()
                ),
            },
        ),
        (VerificationState::Running, Some(reason)) if reason == Reason::JobNotPickedUp => {
            condition_state("False", reason, format!("{reported}. Run: {link}"))
        }
        (VerificationState::Running, Some(reason)) => {
            condition_state("Unknown", reason, format!("{reported}. Run: {link}"))
        }
        (VerificationState::Running, None) => condition_state(
            "Unknown",
            Reason::Running,
            format!("The run is watched: {link}"),
        ),
        (VerificationState::Requested, _) => match &observed.verification.trouble {
            Some(trouble) => condition_state("Unknown", Reason::NotStarted, trouble.clone()),
            None => condition_state(
                "Unknown",
                Reason::Requested,
                "The workflow is about to be started",
            ),
        },
    }
}

fn success_message(verify: &Verify, status: &VerificationStatus, link: &str) -> String {
    let jobs: Vec<String> = status
        .jobs
        .iter()
        .map(|job| match job.passed {
            Some(passed) => format!("{} ({passed} tests)", job.name),
            None => job.name.clone(),
        })
        .collect();
    format!(
        "{} on {} succeeded on runners of this pool: {}. Run: {link}",
        verify.workflow,
        verify.git_ref,
        jobs.join(", ")
    )
}

#[cfg(test)]
mod tests;
