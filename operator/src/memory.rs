//! What the process remembers of each pool between two reconciles.
//!
//! All of it can be lost at any moment: after a restart what is needed of it is read again, from the stores and from GitHub.

mod hook;
mod moments;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use hook::{HookMemory, Unremoved};
pub use moments::Moments;

use cudarunner_crds::{CudaRunnerStatus, FailureStatus, RunnerPhase};
use jiff::{SignedDuration, Timestamp};

use crate::clock::Clock;
use crate::github::{Held, HeldLabels, QueuedJobs};
use crate::per_pool::PerPool;
use cuda_runner_plan::model::checks::CheckFacts;
use cuda_runner_plan::model::claim::ClaimTemplate;
use cuda_runner_plan::model::github::NewScaleSet;
use cuda_runner_plan::model::hung::Doubt;
use cuda_runner_plan::model::jobs::JobFacts;
use cuda_runner_plan::model::left::Left;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::rerun::RerunFacts;
use cuda_runner_plan::model::runner::{Job, Runner, Told};
use cuda_runner_plan::model::scale_set::{Known, Trouble};
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::model::verification::VerificationFacts;
use cuda_runner_plan::model::webhook::Heard;
use cuda_runner_plan::shares::Claim;
use cuda_runner_plan::{Access, Listing, Observed, Queue, hung};

/// For so long the watch is waited for; then the API server itself is asked whether a pod is there.
const PATIENCE: SignedDuration = SignedDuration::from_secs(3);
/// After this time a creation that got no answer cannot be carried out any more: the API server gives up on a request
/// after a minute.
const IN_FLIGHT: SignedDuration = SignedDuration::from_secs(90);
/// How long a reconcile is put off after the last one, for each runner that the last one looked at: it takes a few
/// microseconds for each, so that pools whose runners come up by the thousand leave the processor to what starts them.
const EACH_RUNNER: Duration = Duration::from_micros(200);
/// The longest that a reconcile is put off.
const LONGEST_REST: Duration = Duration::from_millis(250);

/// Names of pods that have gone are kept until GitHub's list is read. What is beyond them GitHub itself removes.
const MOST_GONE: usize = 1000;

/// A pod that was created and that the watch does not show yet. It counts until the watch shows it, or until the API server
/// itself says that it is not there: a watch that is silent proves nothing, and neither does time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expectation {
    /// When it was created.
    pub created: Timestamp,
    /// What the API server said of it.
    pub answer: Answer,
    /// When the API server is asked for it.
    pub ask: Timestamp,
}

/// What the API server said of a creation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Nothing: the pod may be there, or still come.
    Lost,
    /// It was created.
    Created,
    /// The answer was lost, and the pod is not there. It may still come, so its name is the next one to be used: of a name
    /// there is only one pod.
    Absent,
}

impl Expectation {
    /// One of a pod that is being created.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            created: now,
            answer: Answer::Lost,
            ask: now.after(PATIENCE),
        }
    }

    /// Takes in what the API server says; `false` when nothing is expected any more.
    fn found(&mut self, is_there: bool, now: Timestamp) -> bool {
        self.ask = now.after(PATIENCE);
        match (is_there, self.answer) {
            (true, _) => self.answer = Answer::Created,
            (false, Answer::Created) => return false,
            (false, Answer::Lost | Answer::Absent) => self.answer = Answer::Absent,
        }
        true
    }
}

/// A request that got no answer does not arrive later than this after it was sent: proxies and kernels have given up.
const ARRIVES_WITHIN: SignedDuration = SignedDuration::from_secs(60);
/// GitHub's lists show what was made a moment ago within this time.
const LISTED_WITHIN: SignedDuration = SignedDuration::from_secs(5);

/// What is remembered of all pools.
pub type Memory = PerPool<PoolMemory>;

/// What is remembered of one pool.
#[derive(Default)]
pub struct PoolMemory {
    /// Looked at when a reconcile begins.
    clock: Clock,
    /// When the last reconcile had looked at the pool's runners.
    looked: Option<Instant>,
    /// Pods that were created and not yet seen, by name.
    pub expected: BTreeMap<String, Expectation>,
    /// Uids of pods whose removal was asked for.
    pub removed: BTreeSet<String>,
    /// Uids of pods that have ended, and whose entries on GitHub are gone.
    pub unregistered: BTreeSet<String>,
    /// Uids of pods whose gate has brought its report.
    pub reported: BTreeSet<String>,
    /// Pods that a scheduling gate has held, by uid, and when they were first seen without one.
    pub gated: BTreeMap<String, Option<Timestamp>>,
    /// What the pool would have of the GPUs that it shares, as last planned.
    pub claim: Option<Claim>,
    /// When it was first seen that a container waits for something, by the pod's uid, the container and the reason. A
    /// container that goes on in between is a new beginning.
    pub waiting: BTreeMap<(String, String, String), Timestamp>,
    /// Where GitHub and a pod contradict one another, by the pod's uid.
    pub doubts: BTreeMap<String, Doubt>,
    /// By how much the clocks of the runners' nodes are off.
    pub moments: Moments,
    /// Names and uids of the pods seen at the last reconcile.
    pub known: BTreeMap<String, String>,
    /// Whether GitHub's list is to be read again.
    pub refresh: bool,
    /// When something that GitHub's list would show was last made or removed.
    pub last_change: Option<Timestamp>,
    /// Until when GitHub's list may not show an entry that was looked for in vain.
    pub unlisted: Option<Timestamp>,
    /// Registrations without an answer, which may yet arrive at GitHub: when each began, and the pod's uid.
    pub in_flight: BTreeSet<(Timestamp, String)>,
    /// The way to GitHub.
    pub github: GitHubMemory,
    /// What came by the webhook.
    pub webhook: Heard,
    /// The webhook itself.
    pub hook: HookMemory,
    /// What was seen at addresses that the pool has left.
    pub left: BTreeMap<String, Left>,
    /// The status as we last found it, ahead of what the store shows. What must be stored before anything is done because
    /// of it, is; what is only shown may still be on its way.
    pub status: Option<CudaRunnerStatus>,
    /// When the status was last written.
    pub status_written: Option<Timestamp>,
    /// The last version of the resource whose status was compared with ours.
    pub compared: Option<String>,
    /// When it was last said that the CRD is too old for the status.
    pub said_of_crd: Option<Timestamp>,
    /// What was told of runners, by the uids of their pods; unknown before this process has stored a status.
    pub told: Option<BTreeMap<String, Told>>,
    /// Failures of lately, newest first and without their messages.
    pub failures: Vec<FailureStatus>,
    /// Whether this process has asked for the finalizer to be taken off.
    pub lets_go: bool,
    /// Why Kubernetes last refused to create a pod; cleared by the next success.
    pub pod_refused: Option<String>,
    /// Reconciles in a row that ended with an error.
    pub errors: i32,
    /// The verification that this process has decided on.
    pub intent: Option<Timestamp>,
    /// The run of the verification, as last read.
    pub verification: VerificationFacts,
    /// The required checks, as last read.
    pub checks: ChecksMemory,
    /// Jobs that a GPU or a node may have ended.
    pub reruns: RerunMemory,
    /// The template of the pool's claims, by its name, and when it was read.
    pub claim_template: Option<(String, ClaimTemplate, Timestamp)>,
}

/// What is remembered of jobs that are run again.
#[derive(Clone, Default)]
pub struct RerunMemory {
    /// What is known of them.
    pub facts: RerunFacts,
    /// The boot ids of the nodes of the pods whose agents run, or ran, by their uids: as they were when that was first seen.
    pub boots: BTreeMap<String, String>,
    /// The credentials may not write checks; not tried again before.
    pub untold_until: Option<Timestamp>,
}

/// What is remembered of the required checks.
#[derive(Clone, Default)]
pub struct ChecksMemory {
    /// Server and name of the repository that this is of.
    pub place: Option<(String, String)>,
    /// What GitHub says.
    pub facts: CheckFacts,
    /// The generation, and the request by annotation, for which everything was read.
    pub asked: Option<(i64, Option<String>)>,
}

/// What is remembered of a pool's way to GitHub.
#[derive(Default)]
pub struct GitHubMemory {
    /// Changes with the address, the credentials and the certificate authorities.
    pub identity: String,
    /// What came of the last attempt.
    pub access: Access,
    /// Attempts in a row that failed.
    pub failures: i32,
    /// No attempt before.
    pub not_before: Option<Timestamp>,
    /// Our entries, as last listed.
    pub listing: Option<Listing>,
    /// Their place in the room for what is kept of answers.
    pub listing_held: Option<Held<()>>,
    /// Names of pods that have gone since then though nobody here asked for it.
    pub gone: BTreeSet<String>,
    /// Whether all runners that the pool may have there are of a name that is asked for, where they cannot all be listed.
    pub knows_names: bool,
    /// The queue, as last read.
    pub queue: Option<Arc<Queue>>,
    /// What it holds of answers, with its place in their room.
    pub queue_held: Option<(Option<QueuedJobs>, HeldLabels)>,
    /// The jobs that the pool's runners were seen with in the repository's list of those that run, by runner.
    pub given: BTreeMap<String, Job>,
    /// How jobs ended, as last read.
    pub jobs: JobFacts,
    /// The scale set.
    pub scale_set: ScaleSetMemory,
}

/// What is remembered of a pool's scale set.
#[derive(Default)]
pub struct ScaleSetMemory {
    /// The scale set, as last read or written.
    pub known: Known,
    /// Why it could not be read or changed; cleared by the next success.
    pub trouble: Option<Trouble>,
    /// Attempts in a row that failed.
    pub failures: i32,
    /// What it was last asked to be, by this process.
    pub asked: Option<NewScaleSet>,
    /// Whether the last change of it failed.
    pub is_unwritten: bool,
    /// When it was last found to have vanished.
    pub vanished: Option<Timestamp>,
    /// When it was last tried to make it anew, for a session that is lost.
    pub remade: Option<Timestamp>,
    /// No attempt before.
    pub not_before: Option<Timestamp>,
    /// Runners whose job has ended here, and since when: GitHub still counts those jobs until it tells of their end.
    pub ended: BTreeMap<String, Timestamp>,
}

impl PoolMemory {
    /// A reconcile begins, at `tick` of a clock that nobody sets: where the other one was set back since the last, no moment
    /// counts that was noted by then.
    pub fn begins(&mut self, now: Timestamp, tick: Instant) {
        if self.clock.is_set_back(now, tick) {
            self.start_afresh(now);
        }
    }

    /// How long the next reconcile is put off: each looks at every runner, and each change of a pod asks for one.
    #[must_use]
    pub fn rest(&self, now: Instant) -> Duration {
        let runners = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        let rest = EACH_RUNNER.saturating_mul(runners).min(LONGEST_REST);
        let over = self.looked.map(|looked| now.duration_since(looked));
        over.map_or(Duration::ZERO, |over| rest.saturating_sub(over))
    }

    /// The runners have been looked at.
    pub fn has_looked(&mut self, now: Instant) {
        self.looked = Some(now);
    }

    /// Forgets what is read again, as with a restart. What was done a moment ago and may not show yet was done now.
    fn start_afresh(&mut self, now: Timestamp) {
        let before = std::mem::take(self);
        let expected = before.expected.into_iter();
        let expected = expected.map(|(name, expectation)| {
            let answer = expectation.answer;
            (
                name,
                Expectation {
                    answer,
                    ..Expectation::new(now)
                },
            )
        });
        let in_flight = before.in_flight.into_iter();
        let gated = before.gated.into_iter();
        *self = Self {
            clock: before.clock,
            expected: expected.collect(),
            removed: before.removed,
            unregistered: before.unregistered,
            reported: before.reported,
            gated: gated
                .map(|(uid, since)| (uid, since.map(|_| now)))
                .collect(),
            claim: before.claim,
            known: before.known,
            last_change: Some(now),
            in_flight: in_flight.map(|(_, uid)| (now, uid)).collect(),
            webhook: Heard {
                at: before.webhook.at.map(|_| now),
                read_at: None,
            },
            status: before.status,
            told: before.told,
            failures: before.failures,
            lets_go: before.lets_go,
            pod_refused: before.pod_refused,
            errors: before.errors,
            ..Self::default()
        };
    }

    /// Whether a pod's gate has brought its report for the first time. Of pods that are not `there` any more nothing is kept:
    /// a replica that stands by reconciles nothing that would forget them.
    pub fn is_first_report(&mut self, uid: &str, there: &BTreeSet<String>) -> bool {
        self.reported
            .retain(|known| known == uid || there.contains(known));
        self.reported.insert(uid.to_owned())
    }

    /// Registers a pod's runner from now on. Whoever asks may be gone before the answer is there, and ask once more.
    pub fn registers(&mut self, uid: &str, now: Timestamp) {
        self.in_flight.insert((now, uid.to_owned()));
    }

    /// The registration that `begun` then has its answer; `in_doubt` where one of its requests has none.
    pub fn registered(&mut self, uid: &str, begun: Timestamp, in_doubt: bool, now: Timestamp) {
        if !in_doubt {
            self.in_flight.remove(&(begun, uid.to_owned()));
        }
        self.last_change = Some(now);
    }

    /// The moment from which on GitHub's list shows all that we did: it may lie ahead.
    #[must_use]
    pub fn settled_at(&self) -> Option<Timestamp> {
        let latest = self.in_flight.last();
        let arrived = latest.map(|(begun, _)| begun.after(ARRIVES_WITHIN));
        arrived.max(self.last_change).max(self.unlisted)
    }

    /// An entry was not found of a runner that may have been registered a moment ago: GitHub's lists are behind.
    pub fn not_listed(&mut self, now: Timestamp) {
        self.unlisted = Some(now.after(LISTED_WITHIN));
    }

    /// The pods that the API server is to be asked for, because the watch shows nothing of them.
    #[must_use]
    pub fn overdue(&self, now: Timestamp) -> Vec<String> {
        let overdue = self.expected.iter().filter(|(_, e)| e.ask <= now);
        overdue.map(|(name, _)| name.clone()).collect()
    }

    /// Notes that the API server could not be asked for a pod that is expected.
    pub fn not_found_out(&mut self, name: &str, now: Timestamp) {
        if let Some(expectation) = self.expected.get_mut(name) {
            expectation.ask = now.after(PATIENCE);
        }
    }

    /// Takes in whether a pod that is expected is there.
    pub fn found(&mut self, name: &str, is_there: bool, now: Timestamp) {
        if let Some(expectation) = self.expected.get_mut(name)
            && !expectation.found(is_there, now)
        {
            self.expected.remove(name);
        }
    }

    /// The time for which a scheduling gate has held a pod is nobody's: the runner waits for a node from when that was over.
    pub fn release(&mut self, runners: &mut [Runner], now: Timestamp) {
        let there: BTreeSet<&String> = runners.iter().map(|runner| &runner.uid).collect();
        self.gated.retain(|uid, _| there.contains(uid));
        for runner in runners {
            if runner.is_gated() {
                self.gated.insert(runner.uid.clone(), None);
            } else if runner.phase == RunnerPhase::Unscheduled
                && let Some(released) = self.gated.get_mut(&runner.uid)
            {
                runner.since = runner.since.max(*released.get_or_insert(now));
            }
        }
    }

    /// Notes since when containers wait for what they wait for now, and tells the runners.
    pub fn wait(&mut self, runners: &mut [Runner], now: Timestamp) {
        let troubled: BTreeSet<(String, String)> = runners.iter().filter_map(waits).collect();
        self.waiting
            .retain(|(uid, container, _), _| troubled.contains(&(uid.clone(), container.clone())));
        for runner in runners {
            let reason = runner.container_trouble().map(|w| w.reason.to_string());
            let Some(((uid, container), reason)) = waits(runner).zip(reason) else {
                continue;
            };
            let since = self.waiting.entry((uid, container, reason));
            runner.waiting_since = Some(*since.or_insert(now));
        }
    }

    /// Notes where GitHub and the pods contradict one another, and tells the runners.
    pub fn doubt(&mut self, pool: &Pool, observed: &mut Observed, now: Timestamp) {
        self.doubts = hung::doubts(pool, observed, &self.doubts, now);
        for runner in &mut observed.runners {
            runner.doubt = self.doubts.get(&runner.uid).copied();
        }
    }

    /// Forgets expectations that were met, removals that were done, and what GitHub said of pods that have gone since.
    pub fn settle(&mut self, seen: &BTreeMap<String, String>, now: Timestamp) {
        self.in_flight
            .retain(|(begun, _)| now < begun.after(ARRIVES_WITHIN));
        self.expected.retain(|name, expectation| {
            let is_over =
                expectation.answer == Answer::Absent && expectation.created.after(IN_FLIGHT) <= now;
            !seen.contains_key(name) && !is_over
        });
        let gone_unasked: Vec<&String> = self
            .known
            .iter()
            .filter(|(name, uid)| !seen.contains_key(*name) && !self.removed.contains(*uid))
            .map(|(name, _)| name)
            .collect();
        if !gone_unasked.is_empty() {
            self.refresh = true;
            self.last_change = Some(now);
        }
        let gone = &mut self.github.gone;
        gone.extend(gone_unasked.into_iter().cloned());
        while gone.len() > MOST_GONE {
            gone.pop_first();
            self.github.knows_names = false;
        }
        // Of a pod that has gone since, an older list says nothing: GitHub has mostly removed the entry by itself.
        if let Some(listing) = &mut self.github.listing {
            let has_gone =
                |name: &String| self.known.contains_key(name) && !seen.contains_key(name);
            listing.entries.retain(|entry| !has_gone(&entry.name));
        }
        let uids: BTreeSet<&String> = seen.values().collect();
        self.removed.retain(|uid| uids.contains(uid));
        self.unregistered.retain(|uid| uids.contains(uid));
        self.reported.retain(|uid| uids.contains(uid));
        self.known.clone_from(seen);
    }
}

/// The pod and the container that waits for something, if one does.
fn waits(runner: &Runner) -> Option<(String, String)> {
    let waiting = runner.container_trouble()?;
    Some((runner.uid.clone(), waiting.container.clone()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::model::runner::Waiting;
    use cuda_runner_plan::{Entry, fixture, health};

    #[test]
    fn the_more_runners_a_pool_has_the_longer_its_next_reconcile_is_put_off() {
        let mut memory = PoolMemory::default();
        let now = Instant::now();
        let ms = Duration::from_millis;
        assert_eq!(memory.rest(now), ms(0));
        for (runners, rest) in [(0, 0), (5, 1), (500, 100), (50_000, 250)] {
            let names = (0..runners).map(|n| (n.to_string(), String::new()));
            memory.known = names.collect();
            memory.has_looked(now);
            assert_eq!(memory.rest(now), ms(rest), "{runners}");
            assert_eq!(memory.rest(now + ms(rest)), ms(0), "{runners}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_up() {
        let (start, tick) = (fixture::NOW, Instant::now());
        let hour = SignedDuration::from_hours(1);
        let pool = fixture::pool(1);
        // Given a pool of which all moments are noted that there are
        let noted = || {
            let mut memory = PoolMemory::default();
            memory.begins(start, tick);
            let error = crate::github::Error::Malformed {
                action: String::new(),
                message: String::new(),
            };
            crate::observe::github::refused(&mut memory.github, &error, "pool", start);
            memory.hook.failed(&error, "pool", start);
            memory.left.insert("there".to_owned(), Left::default());
            memory
                .expected
                .insert("pool-a".to_owned(), Expectation::new(start));
            memory.registers("pool-a", start);
            memory.not_listed(start);
            memory.gated.insert("pool-a".to_owned(), Some(start));
            memory
        };
        let minute = std::time::Duration::from_mins(1);

        // When a minute passes, or the clock is set forward, then they hold
        for passed in [SignedDuration::from_mins(1), hour] {
            let mut memory = noted();
            memory.begins(start.after(passed), tick + minute);
            assert!(memory.github.not_before.is_some() && !memory.left.is_empty());
            assert_eq!(memory.expected["pool-a"].created, start);
        }

        // When it is set back, then there is none that lies ahead further than any pause
        for passed in [-hour, SignedDuration::ZERO] {
            let (mut memory, now) = (noted(), start.after(passed));
            memory.begins(now, tick + minute);
            assert_eq!(memory.github.not_before, None);
            assert!(memory.hook.is_due(&pool, now));
            assert!(memory.left.is_empty());
            assert!(memory.settled_at().unwrap() <= now.after(ARRIVES_WITHIN));
            assert_eq!(memory.gated["pool-a"], Some(now));
            // ... and a pod that does not show yet is waited for as before, so that none is made in its place
            assert_eq!(memory.overdue(now.after(PATIENCE)), ["pool-a"]);
        }
    }

    #[test]
    fn who_was_looked_for_in_vain_may_be_in_a_list_soon() {
        // Given a runner that is removed, and that GitHub's list does not show
        let now = fixture::NOW;
        let mut memory = PoolMemory::default();
        memory.not_listed(now);
        memory.last_change = Some(now);
        // Then no list of before some seconds later proves that it has no entry
        assert_eq!(memory.settled_at(), Some(now.after(LISTED_WITHIN)));
    }

    #[test]
    fn a_container_is_waited_for_from_when_its_trouble_was_first_seen() {
        // Given a runner whose image takes a quarter of an hour to pull
        let (pool, start) = (fixture::pool(1), fixture::NOW);
        let mut memory = PoolMemory::default();
        let mut reconcile = |minute: i64, reason: Option<&str>| {
            let mut runner = fixture::runner(&pool, "pool-aaaaa", RunnerPhase::Preparing);
            runner.since = start;
            runner.waiting = reason.map(|reason| Waiting {
                reason: reason.into(),
                message: String::new(),
                container: Some("runner".to_owned()),
                image: None,
            });
            let mut runners = [runner];
            memory.wait(&mut runners, start + SignedDuration::from_mins(minute));
            let by = health::deadline(&runners[0], pool.spec.as_ref().unwrap()).unwrap();
            by.duration_since(start).as_mins()
        };
        // When a fault shows, then it has five minutes from then on, at each reconcile the same
        assert_eq!(reconcile(1, None), 20);
        assert_eq!(reconcile(15, Some("RegistryUnavailable")), 20);
        assert_eq!(reconcile(16, Some("RegistryUnavailable")), 20);
        // ... whatever the kubelet calls it in between; another fault has its own
        assert_eq!(reconcile(17, Some("ImagePullBackOff")), 22);
        assert_eq!(reconcile(18, Some("RegistryUnavailable")), 20);
        // ... and one that comes again has them once more
        assert_eq!(reconcile(19, None), 20);
        assert_eq!(reconcile(19, Some("RegistryUnavailable")), 24);
        memory.wait(&mut [], start);
        assert!(
            memory.waiting.is_empty(),
            "nothing is kept of pods that are gone"
        );
    }

    #[test]
    fn a_pod_waits_for_a_node_from_when_its_scheduling_gate_is_gone() {
        // Given a pod that a gate holds for an hour
        let (pool, start) = (fixture::pool(1), fixture::NOW);
        let mut memory = PoolMemory::default();
        let mut since = |minute: i64, reason: &str| {
            let mut runner = fixture::runner(&pool, "pool-aaaaa", RunnerPhase::Unscheduled);
            runner.since = start;
            runner.waiting = Some(Waiting {
                reason: reason.into(),
                message: String::new(),
                container: None,
                image: None,
            });
            let mut runners = [runner];
            memory.release(&mut runners, start + SignedDuration::from_mins(minute));
            runners[0].since.duration_since(start).as_mins()
        };
        assert_eq!(since(0, "SchedulingGated"), 0);
        assert_eq!(since(60, "SchedulingGated"), 0);
        // Then its time begins when the gate is gone, at each reconcile the same
        assert_eq!(since(61, "Unschedulable"), 61);
        assert_eq!(since(62, "Unschedulable"), 61);
        memory.release(&mut [], start);
        assert!(memory.gated.is_empty());
    }

    #[test]
    fn reports_of_pods_that_are_gone_are_not_kept_where_nothing_is_reconciled() {
        // Given a replica that stands by, to which the gates of ten thousand pods come, two at a time
        let mut memory = PoolMemory::default();
        for number in 0..10_000 {
            let there = BTreeSet::from([number, number + 1].map(|n: i32| n.to_string()));
            // Then each report is new once
            assert!(memory.is_first_report(&(number + 1).to_string(), &there));
            assert!(!memory.is_first_report(&(number + 1).to_string(), &there));
            // ... and no more is kept than there are pods
            assert!(memory.reported.len() <= 2);
        }
    }

    #[test]
    fn an_old_list_says_nothing_of_a_pod_that_has_gone_since() {
        // Given a list of GitHub's with two runners' entries, and one whose pod nobody has seen
        let now = Timestamp::constant(1_000, 0);
        let mut memory = PoolMemory::default();
        let both = BTreeMap::from(["a", "b"].map(|name| (name.to_owned(), name.to_owned())));
        memory.settle(&both, now);
        let entries = ["a", "b", "leftover"].into_iter().zip(1..);
        memory.github.listing = Some(Listing {
            at: now,
            entries: entries
                .map(|(name, id)| Entry {
                    id,
                    name: name.to_owned(),
                    busy: false,
                    online: Some(true),
                    version: None,
                    of_scale_set: false,
                })
                .collect(),
            is_whole: true,
        });

        // When a runner's pod has gone after its job
        let mut one = both;
        one.remove("a");
        memory.removed.insert("a".to_owned());
        memory.settle(&one, now);

        // Then what is left of the list is the other's entry, and the one that is to be removed
        let names = memory.github.listing.iter().flat_map(|l| &l.entries);
        let names: Vec<&str> = names.map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["b", "leftover"]);
    }

    #[test]
    fn a_registration_without_an_answer_may_arrive_for_a_minute() {
        // Given two registrations, of which one gets its answer
        let now = Timestamp::constant(1_000, 0);
        let mut memory = PoolMemory::default();
        memory.registers("one", now);
        memory.registers("other", now);
        memory.registered("one", now, false, now);
        // Then GitHub's list is whole when the other must have arrived
        let arrived = now + SignedDuration::from_secs(60);
        assert_eq!(memory.settled_at(), Some(arrived));
        // Also where a later request of it was answered
        memory.registered("other", now, true, now);
        assert_eq!(memory.settled_at(), Some(arrived));
        // And where its gate hung up, asked once more, and that was answered
        let again = now + SignedDuration::from_secs(30);
        memory.registers("other", again);
        memory.registered("other", again, false, now);
        assert_eq!(memory.settled_at(), Some(arrived));
        memory.settle(&BTreeMap::new(), arrived);
        assert_eq!(memory.settled_at(), Some(now));
    }
}
