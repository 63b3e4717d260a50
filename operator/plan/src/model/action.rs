//! What may be done, and said.

use std::collections::{BTreeMap, BTreeSet};

use cudarunner_crds::{CudaRunnerStatus, FailureStatus, JobStatus};
use gate_report::Class;
use jiff::{SignedDuration, Timestamp};

use super::claim::Retest;
use super::github::{Entry, NewScaleSet, Repository, Ruleset, Workflow};
use super::rerun::{NewAttempt, Untold};
use super::runner::{Runner, Told};
use crate::demand::Capacity;
use crate::hours::Ended;
use crate::queue::Waiting;
use crate::reason::{Reason, Stored};
use crate::shares::Claim;

/// What the pods need to know of the operator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodSettings {
    /// Image of the gate.
    pub gate_image: String,
    /// Pull policy of that image.
    pub image_pull_policy: String,
    /// Address of the registrar.
    pub registrar_url: String,
    /// Certificate authorities of the registrar, PEM.
    pub registrar_ca: String,
}

/// One write. Each is safe to repeat.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put our finalizer on the resource.
    AddFinalizer,
    /// Let the resource go.
    RemoveFinalizer,
    /// Create a runner pod, see [`crate::pod::build`].
    CreatePod(NewRunner),
    /// Remove a pod whose entry on GitHub is gone by itself: it has ended after a job.
    DeletePod(Target),
    /// Remove the entry on GitHub, where there may be one, then the pod. A busy runner is left alone. That there is no entry
    /// is believed of the registrar's books and of GitHub, never of what a watch shows: it may be behind.
    Drain(Target),
    /// Remove the entry on GitHub of a pod that has ended and is kept for a look.
    DeleteEntryOf(Target),
    /// The same as [`Action::Drain`], but a busy runner's pod goes too: its job is cancelled.
    Evict(Target),
    /// Remove a runner that GitHub calls busy though no job has begun in its pod: the entry, if GitHub lets us, and then the
    /// pod, if the API server still shows it without a job. What was begun meanwhile stays.
    EndUnstarted(Target),
    /// Remove an idle pod if GitHub knows no runner of its name.
    ReplaceUnregistered(Target),
    /// Remove an entry on GitHub that has no pod.
    DeleteEntry(Entry),
    /// The same at an address that the pool has left.
    DeleteEntryAt(String, Entry),
    /// Remove the scale set that the pool had at an address that it has left.
    DeleteScaleSetAt(String, u64),
    /// Make the pool's scale set.
    CreateScaleSet(NewScaleSet),
    /// Make the pool's scale set what it should be.
    UpdateScaleSet(u64, NewScaleSet),
    /// Remove the pool's scale set where it has neither jobs nor runners: it is made anew.
    DeleteUnusedScaleSet(u64),
    /// Remove the pool's scale set.
    DeleteScaleSet(u64),
    /// Listen for jobs of the scale set, and let so many be assigned to it at a time.
    Listen {
        /// The scale set.
        set: u64,
        /// How many.
        capacity: usize,
        /// A session of ours that a process before this one may have left open.
        session: Option<String>,
    },
    /// Listen no more.
    StopListening,
    /// Make the webhook that delivers to this address.
    CreateWebhook(String),
    /// Make the webhook what it should be, and give it its secret.
    UpdateWebhook(u64, String),
    /// Remove the webhook, at this address of GitHub's, that delivers to this one.
    RemoveWebhook(String, String),
    /// Start the workflow of the verification.
    DispatchWorkflow(Workflow),
    /// Stop a run of ours that nobody takes.
    CancelRun(Repository, u64),
    /// Run jobs again that a GPU or a node ended.
    RunAgain(NewAttempt),
    /// Tell the commit that they are run again, unless it was told.
    TellCommit(Untold),
    /// Add contexts to what a branch requires.
    RequireChecks(Repository, String, Vec<String>),
    /// Take contexts off what a branch requires.
    UnrequireChecks(Repository, String, Vec<String>),
    /// Make the pool's own ruleset.
    CreateRuleset(Repository, Ruleset),
    /// Make the pool's own ruleset what it should be.
    UpdateRuleset(Repository, i64, Ruleset),
    /// Remove the pool's own ruleset.
    DeleteRuleset(Repository, i64),
}

impl Action {
    /// The pod that it removes, if it may remove one.
    pub(crate) fn removes(&self) -> Option<&Target> {
        match self {
            Self::DeletePod(pod)
            | Self::Drain(pod)
            | Self::Evict(pod)
            | Self::EndUnstarted(pod)
            | Self::ReplaceUnregistered(pod) => Some(pod),
            _ => None,
        }
    }
}

/// A runner to make. Its pod is built when its turn comes: hundreds of whole pods at once weigh more than all that the
/// operator keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRunner {
    /// Name of the pod, and of the runner.
    pub name: String,
    /// Nodes that the pod keeps off.
    pub avoids: BTreeSet<String>,
    /// Nodes where it goes only if no other has room.
    pub shuns: BTreeSet<String>,
    /// The device that it tries again; others get what the scheduler chooses.
    pub retest: Option<Retest>,
}

/// A pod to remove: by uid, so that a namesake is never hit.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// The address at which it registers, where its pod says so.
    pub url: Option<String>,
    /// Whether another operator's registrar has answered it, whose books are not ours.
    pub is_stranded: bool,
}

impl From<&Runner> for Target {
    fn from(runner: &Runner) -> Self {
        Self {
            name: runner.name.clone(),
            uid: runner.uid.clone(),
            url: runner.url.clone(),
            is_stranded: runner.is_stranded,
        }
    }
}

/// The longest note of an Event, in bytes; the API server refuses more.
pub const NOTE: usize = 1024;

/// Something that a person should hear.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// Whether it is a warning.
    pub warning: bool,
    /// One word.
    pub reason: Stored,
    /// A sentence.
    pub note: String,
    /// Whom it is about, beside the pool. Events of one reason are told apart by it: of others, only the first one's
    /// sentence is kept for some minutes, with a count, as long as not too many others come in between.
    pub about: Option<About>,
}

impl Notice {
    /// The note, as much of it as the API server takes.
    #[must_use]
    pub fn cut(&self) -> String {
        const ELLIPSIS: &str = "…";
        if self.note.len() <= NOTE {
            return self.note.clone();
        }
        let end = self
            .note
            .floor_char_boundary(NOTE.saturating_sub(ELLIPSIS.len()));
        format!("{}{ELLIPSIS}", &self.note[..end])
    }
}

/// Whom a notice is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum About {
    /// A runner, by its name.
    Runner(String),
    /// A node, by its name.
    Node(String),
}

/// What to do, what to say, and when to look again.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Writes, in order of urgency; they do not depend on one another.
    pub actions: Vec<Action>,
    /// The status as it should be.
    pub status: CudaRunnerStatus,
    /// Events.
    pub notices: Vec<Notice>,
    /// Events for what the status tells for the first time: they wait until it is written.
    pub news: Vec<Notice>,
    /// Runners whose pods are to go, and of whose end the stored status does not tell yet: they go when it does.
    pub unrecorded: BTreeSet<String>,
    /// What was told of runners, by the uids of their pods, once the status is stored.
    pub told: BTreeMap<String, Told>,
    /// Failures of lately, newest first and without their messages, to be remembered once the status is stored.
    pub failures: Vec<FailureStatus>,
    /// When to look again, where nothing else wakes the pool.
    pub wake: Option<SignedDuration>,
    /// Whether GitHub's list should be read again soon.
    pub refresh: bool,
    /// The verification that is decided on at this reconcile.
    pub intent: Option<Timestamp>,
    /// Runners that the pool should have.
    pub desired: usize,
    /// What it would have of the GPUs that it shares with others; of a pool that goes, or cannot be carried out, nothing.
    pub claim: Claim,
    /// Jobs that wait for the pool, where that is known.
    pub queue: Option<Waiting>,
    /// Jobs that can run at a time.
    pub capacity: Option<Capacity>,
    /// The scale set, and up to which number what was heard of it is acted on with this.
    pub acted_on: Option<(u64, u64)>,
    /// The failures that the status did not have yet, in a class and a reason each.
    pub failed: Vec<(Class, Reason)>,
    /// Jobs that the pool did not take, and that the status did not have yet.
    pub refused_jobs: usize,
    /// The hours of runners whose pods are gone.
    pub ended: Vec<Ended>,
    /// Jobs whose GPUs were watched, and that the status did not have yet.
    pub watched_jobs: Vec<JobStatus>,
    /// Jobs that took longer than the pool lets them, and that the status did not have yet.
    pub timed_out_jobs: usize,
    /// How long the pool's first runner took to come online, at the reconcile that sees it.
    pub first_online: Option<SignedDuration>,
}

/// What came of a plan's status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Recorded {
    /// The API server has it, or will in a moment.
    Now,
    /// It is written when so much time has passed.
    In(SignedDuration),
    /// The resource was let go: it has no status any more.
    LetGo,
}

/// Without another reason a pool is reconciled so often.
const AT_LEAST: SignedDuration = SignedDuration::from_hours(24);
/// How soon a runner that was busy when it was to go is looked at again.
const BUSY_AGAIN: SignedDuration = SignedDuration::from_secs(10);
/// How soon a list of GitHub's is read again that has changed.
const REFRESH: SignedDuration = SignedDuration::from_millis(200);

/// Pods beyond a pool's runners that may wait for a status.
const UNRECORDED: usize = 20;

impl Plan {
    /// Removes no pod of which the status tells something for the first time: until that is stored, an operator after this
    /// one has no other proof of it.
    pub(crate) fn keep_unrecorded(&mut self) {
        let untold = std::mem::take(&mut self.unrecorded);
        let kept = &mut self.unrecorded;
        self.actions.retain(|action| {
            let pod = action.removes().filter(|pod| untold.contains(&pod.name));
            kept.extend(pod.map(|pod| pod.name.clone()));
            pod.is_none()
        });
    }

    /// Makes no pod while more stay unrecorded than `most` runners and some leave behind at once: no status is stored, and each
    /// new pod would be one more that stays.
    pub(crate) fn hold_creations(&mut self, most: usize) {
        if self.unrecorded.len() > most.saturating_add(UNRECORDED) {
            self.actions
                .retain(|action| !matches!(action, Action::CreatePod(_)));
        }
    }

    /// Notes what was told of runners by this plan, once its status is stored.
    #[cfg(test)]
    pub(crate) fn are_told(&self, runners: &mut [Runner]) {
        for runner in runners {
            runner.told = Some(self.told.get(&runner.uid).copied().unwrap_or_default());
        }
    }

    /// Looks again when GitHub's list can be read, where it should be.
    pub(crate) fn wake_for_refresh(&mut self, not_before: Option<Timestamp>, now: Timestamp) {
        if self.refresh {
            let wait = not_before.map_or(REFRESH, |moment| moment.duration_since(now));
            self.wake_in(wait.max(REFRESH));
        }
    }

    /// When to look again, where nothing else wakes the pool: after a plan that found a runner `busy` that was to go, or
    /// not, and whose status was recorded so.
    #[must_use]
    pub fn next(&self, busy: bool, status: Recorded) -> Option<SignedDuration> {
        let status = match status {
            Recorded::In(wait) => Some(wait),
            // The pods of these runners may go now.
            Recorded::Now if !self.unrecorded.is_empty() => Some(SignedDuration::ZERO),
            Recorded::Now | Recorded::LetGo => None,
        };
        let busy = busy.then_some(BUSY_AGAIN);
        let next = [self.wake, busy, status].into_iter().flatten().min()?;
        Some(next.min(AT_LEAST))
    }

    /// Looks again after `wait`, or sooner.
    pub fn wake_in(&mut self, wait: SignedDuration) {
        let wait = wait.max(SignedDuration::ZERO);
        self.wake = Some(self.wake.map_or(wait, |w| w.min(wait)));
    }

    /// Looks again at `moment`, or sooner.
    pub fn wake_at(&mut self, moment: Timestamp, now: Timestamp) {
        self.wake_in(moment.duration_since(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_is_the_first_for_which_there_is_a_reason() {
        let seconds = SignedDuration::from_secs;
        let plan = |wake: Option<i64>, unrecorded: &[&str]| Plan {
            wake: wake.map(seconds),
            unrecorded: unrecorded.iter().map(|name| (*name).to_owned()).collect(),
            ..Plan::default()
        };
        let in_five = Recorded::In(seconds(5));
        let cases = [
            (plan(None, &[]), false, Recorded::Now, None),
            (plan(Some(60), &[]), false, Recorded::Now, Some(60)),
            // A runner that was to go is busy
            (plan(Some(60), &[]), true, Recorded::Now, Some(10)),
            (plan(Some(1), &[]), true, Recorded::LetGo, Some(1)),
            // Counts are gathered before they are written
            (plan(Some(60), &[]), true, in_five, Some(5)),
            // The job of a runner is stored now, or is not
            (plan(Some(60), &["a"]), true, Recorded::Now, Some(0)),
            (plan(Some(60), &["a"]), false, in_five, Some(5)),
            (plan(Some(60), &["a"]), false, Recorded::LetGo, Some(60)),
            // Once a day at least
            (plan(Some(90_000), &[]), false, Recorded::Now, Some(86_400)),
        ];
        for (plan, busy, status, expected) in cases {
            let next = plan.next(busy, status);
            assert_eq!(next, expected.map(seconds), "{plan:?} {busy} {status:?}");
        }
    }

    #[test]
    fn a_list_that_has_changed_is_read_again_when_github_may_be_asked() {
        let now = Timestamp::constant(1_000, 0);
        let wake = |refresh: bool, not_before: Option<i64>| {
            let mut plan = Plan {
                refresh,
                ..Plan::default()
            };
            let not_before = not_before.map(|second| Timestamp::constant(second, 0));
            plan.wake_for_refresh(not_before, now);
            plan.wake.map(|wait| wait.as_millis())
        };
        assert_eq!(wake(false, Some(1_030)), None);
        assert_eq!(wake(true, None), Some(200));
        assert_eq!(wake(true, Some(1_030)), Some(30_000));
        assert_eq!(wake(true, Some(900)), Some(200), "that is over");
    }
}
