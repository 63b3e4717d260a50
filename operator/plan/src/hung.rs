//! Agents that hang. GitHub and the runner's pod contradict one another, and do not stop: each is seen by itself, GitHub's
//! word at two looks at least, and the pod's all the time.
//!
//! Nobody whose job may still run is ended: either GitHub itself says that there is none, and is asked once more when the
//! runner's entry is removed, or the pod says that none has begun, and is read once more when it is removed.

use std::collections::BTreeMap;

use cudarunner_crds::{FailureStatus, RunnerPhase};
use gate_report::Class;
use jiff::{SignedDuration, Timestamp};

use super::{Access, Case, Observed, Plan, health};
use crate::model::github::Entry;
use crate::model::hung::{Contradiction, Doubt};
use crate::model::pool::Pool;
use crate::model::runner::{Failure, Runner};
use crate::model::time::Shift as _;
use crate::reason::{Reason, Stored};

/// What GitHub says of a runner.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Word {
    /// It has a job.
    HasJob,
    /// It has had its only job.
    HadJob,
    /// It waits for a job.
    Idle,
    /// It has no job, and is not heard of.
    Offline,
    /// There is no such runner.
    Unknown,
}

/// Where GitHub's word and a pod's contradict one another, by the pod's uid, going on from what was seen `before`.
#[must_use]
pub fn doubts(
    pool: &Pool,
    observed: &Observed,
    before: &BTreeMap<String, Doubt>,
    now: Timestamp,
) -> BTreeMap<String, Doubt> {
    let Ok(spec) = &pool.spec else {
        return BTreeMap::new();
    };
    let words = Words::of(observed, now);
    let here = observed.runners.iter().filter(|r| !r.is_elsewhere(spec));
    let doubts = here.filter_map(|runner| {
        let (word, at) = words.on(runner)?;
        let about = contradiction(runner.phase, word)?;
        // A word from before the pod changed says nothing of it.
        let seen = Some(at).filter(|at| *at >= runner.since)?;
        let goes_on = |doubt: &&Doubt| doubt.about == about && doubt.since >= runner.since;
        let since = before.get(&runner.uid).filter(goes_on);
        let since = since.map_or(seen, |doubt| doubt.since);
        Some((runner.uid.clone(), Doubt { about, since, seen }))
    });
    doubts.collect()
}

/// What GitHub says, by its list and by what a scale set tells.
struct Words<'a> {
    observed: &'a Observed,
    listed: BTreeMap<&'a str, &'a Entry>,
    now: Timestamp,
}

impl<'a> Words<'a> {
    fn of(observed: &'a Observed, now: Timestamp) -> Self {
        let entries = observed.listing.iter().flat_map(|l| &l.entries);
        Self {
            observed,
            listed: entries.map(|entry| (entry.name.as_str(), entry)).collect(),
            now,
        }
    }

    /// What is said of a runner, and when. A scale set's messages hold until another one comes.
    fn on(&self, runner: &Runner) -> Option<(Word, Timestamp)> {
        if let Some(facts) = &self.observed.scale_set {
            if facts.finishing.contains(&runner.name) {
                return Some((Word::HadJob, self.now));
            }
            if facts.listening.is_some() && runner.heard.is_some() {
                return Some((Word::HasJob, self.now));
            }
        }
        let at = self.observed.listing.as_ref()?.at;
        let word = match self.listed.get(runner.name.as_str()) {
            None => Word::Unknown,
            Some(entry) if entry.busy => Word::HasJob,
            Some(entry) if entry.online? => Word::Idle,
            Some(_) => Word::Offline,
        };
        Some((word, at))
    }
}

/// Whether GitHub's word and the pod's exclude one another. That an idle runner is unknown is the sweep's concern.
fn contradiction(phase: RunnerPhase, word: Word) -> Option<Contradiction> {
    match (phase, word) {
        (RunnerPhase::Idle, Word::HasJob) => Some(Contradiction::JobNotBegun),
        (RunnerPhase::Idle, Word::Offline) => Some(Contradiction::Offline),
        (RunnerPhase::Idle, Word::HadJob)
        | (RunnerPhase::Busy, Word::HadJob | Word::Idle | Word::Offline | Word::Unknown) => {
            Some(Contradiction::JobOver)
        }
        _ => None,
    }
}

/// The runners that have hung for long enough, by their names, and what is told of each.
pub(super) fn overdue(
    pool: &Pool,
    observed: &Observed,
    now: Timestamp,
) -> BTreeMap<String, Failure> {
    let limit = observed.hung_after;
    let mut offline = most_offline(pool, observed, now);
    let mut all = BTreeMap::new();
    for runner in &observed.runners {
        let doubt = runner.doubt;
        let Some(doubt) = doubt.filter(|doubt| doubt.seen >= doubt.since.after(limit)) else {
            continue;
        };
        // Whoever the status tells of is the one whose turn it is.
        let is_told = runner.told.is_some_and(|told| told.late)
            || health::is_known(&pool.status.last_failures, runner);
        if doubt.about == Contradiction::Offline && !is_told {
            let Some(left) = offline.checked_sub(1) else {
                continue;
            };
            offline = left;
        }
        all.insert(runner.name.clone(), failure(doubt.about, limit, now));
    }
    all
}

/// How many may be ended that GitHub does not hear. Where it hears nobody, the way there is more likely to blame than an
/// agent: the next one shows, and others only after that.
fn most_offline(pool: &Pool, observed: &Observed, now: Timestamp) -> usize {
    let mut entries = observed.listing.iter().flat_map(|l| &l.entries);
    if entries.any(|entry| entry.online == Some(true)) {
        return usize::MAX;
    }
    let is_recent = |failure: &FailureStatus| {
        Stored::parse(&failure.reason).is_one_of(&[Reason::AgentOffline])
            && now < failure.at.0.after(observed.hung_after)
    };
    let has_ended_one = pool.status.last_failures.iter().any(is_recent);
    usize::from(!has_ended_one)
}

fn failure(about: Contradiction, limit: SignedDuration, now: Timestamp) -> Failure {
    let limit = match limit.as_mins() {
        0 => format!("{} seconds", limit.as_secs()),
        minutes => format!("{minutes} minutes"),
    };
    let (reason, message) = match about {
        Contradiction::JobNotBegun => (
            Reason::JobNeverStarted,
            format!(
                "GitHub gave the runner a job, and for {limit} none has begun in its pod: its agent hangs. It is ended, and the job with it; none of its steps has run, so run it again."
            ),
        ),
        Contradiction::JobOver => (
            Reason::JobOverAgentRunning,
            format!(
                "GitHub says that the runner has no job any more, and for {limit} its agent has not ended: it hangs, or something does that the job has left. It is ended."
            ),
        ),
        Contradiction::Offline => (
            Reason::AgentOffline,
            format!(
                "The agent listens for jobs, and for {limit} GitHub has called it offline: it has lost its way there, as after a move to an address that cannot be reached. It is ended. Let runner pods reach *.actions.githubusercontent.com by network policy, firewall and proxy."
            ),
        ),
    };
    Failure::new(reason, Class::Transient, message, now, true)
}

/// Looks again when a doubt will have lasted for long enough, and at GitHub where its list is older than that.
pub(super) fn plan(case: Case, plan: &mut Plan) {
    let Case { observed, now, .. } = case;
    for doubt in observed.runners.iter().filter_map(|r| r.doubt) {
        let due = doubt.since.after(observed.hung_after);
        if now < due {
            plan.wake_at(due, now);
        } else if doubt.seen < due {
            plan.refresh |= observed.access == Access::Granted;
        } else {
            // It was asked to go, or another one comes first.
            plan.wake_in(observed.hung_after);
        }
    }
}

#[cfg(test)]
mod tests;
