//! Runners of nodes whose clocks are off.
//!
//! A kubelet says by its node's clock when a container began or ended, and that clock may be minutes or hours off: of a node that
//! has just booted, or whose time service is broken. Pauses, limits, GitHub and the API server go by others. What is seen for
//! the first time has happened since the last look: where a node says something else, its times are put right by that much, all
//! of them alike, so that they still agree with one another.

use std::collections::BTreeMap;

use cuda_runner_plan::model::runner::{End, Runner};
use cuda_runner_plan::model::time::Shift as _;
use cudarunner_crds::RunnerPhase;
use jiff::{SignedDuration, Timestamp};

/// A clock that is ahead by no more is not off: what is said may be of this moment.
const AHEAD: SignedDuration = SignedDuration::from_secs(5);
/// The same of one that is behind: a kubelet may be late with what it says, and so may the API server.
const BEHIND: SignedDuration = SignedDuration::from_secs(30);

/// What is remembered of the last look at a pool's runners.
#[derive(Debug, Default)]
pub struct Moments {
    looked: Option<Timestamp>,
    by_uid: BTreeMap<String, Moment>,
}

#[derive(Clone, Copy, Debug)]
struct Moment {
    /// Since when the runner is in its phase, by the node's clock.
    said: Timestamp,
    /// What makes it right.
    shift: SignedDuration,
}

impl Moments {
    /// Puts the times right of runners whose nodes' clocks are off.
    pub fn correct<'a>(&mut self, runners: impl Iterator<Item = &'a mut Runner>, now: Timestamp) {
        let before = std::mem::take(&mut self.by_uid);
        let looked = self.looked.replace(now);
        for runner in runners {
            let last = before.get(&runner.uid);
            let moment = match last {
                // A time that was seen before is no news, whatever has begun with it by now.
                Some(last) if last.said == runner.since => *last,
                last => Moment {
                    said: runner.since,
                    shift: shift(runner, last.copied(), looked, now),
                },
            };
            put_right(runner, moment.shift);
            self.by_uid.insert(runner.uid.clone(), moment);
        }
    }
}

/// How far a runner's phase has begun from when its node says so.
fn shift(
    runner: &Runner,
    last: Option<Moment>,
    looked: Option<Timestamp>,
    now: Timestamp,
) -> SignedDuration {
    let of_node = match runner.phase {
        // It begins when the API server says: with the pod, or where the pod's time to go ends, which is yet to come.
        RunnerPhase::Unscheduled => return SignedDuration::ZERO,
        RunnerPhase::Terminating => return last.map_or(SignedDuration::ZERO, |last| last.shift),
        _ => runner.since,
    };
    let bound = runner.life.bound.unwrap_or(runner.created);
    let earliest = last.and(looked).unwrap_or(bound);
    let is_off = now.after(AHEAD) < of_node || of_node.after(BEHIND) < earliest;
    if !is_off {
        return SignedDuration::ZERO;
    }
    // In whole seconds, as Kubernetes tells times: what the status has of them stays the same.
    SignedDuration::from_secs(now.as_second().saturating_sub(of_node.as_second()))
}

fn moved(at: Timestamp, shift: SignedDuration) -> Timestamp {
    at.checked_add(shift).unwrap_or(at)
}

/// Shifts what a node has told of a runner.
fn put_right(runner: &mut Runner, shift: SignedDuration) {
    if shift.is_zero() {
        return;
    }
    if runner.phase != RunnerPhase::Terminating {
        runner.since = moved(runner.since, shift);
    }
    if let Some(End::Failed(failure)) = &mut runner.end {
        failure.at = moved(failure.at, shift);
    }
    if let Some(done) = &mut runner.done {
        done.started = done.started.map(|at| moved(at, shift));
        done.finished = moved(done.finished, shift);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::fixture;

    fn after(seconds: i64) -> Timestamp {
        fixture::NOW + SignedDuration::from_secs(seconds)
    }

    fn seconds(at: Timestamp) -> i64 {
        at.duration_since(fixture::NOW).as_secs()
    }

    /// A runner whose pod was bound when it was made, in a phase since a moment that its node says.
    fn said(phase: RunnerPhase, said: i64) -> Runner {
        let mut runner = fixture::runner(&fixture::pool(1), "pool-aaaaa", phase);
        (runner.created, runner.since) = (fixture::NOW, after(said));
        runner.life.bound = Some(fixture::NOW);
        if let Some(End::Failed(failure)) = &mut runner.end {
            failure.at = after(said);
        }
        runner
    }

    /// The same, as it is read at a look so many seconds after the pod was made.
    fn look(moments: &mut Moments, mut runner: Runner, at: i64) -> Runner {
        moments.correct(std::iter::once(&mut runner), after(at));
        runner
    }

    #[test]
    fn what_a_node_says_by_a_clock_that_is_off_has_happened_when_it_was_first_seen() {
        use RunnerPhase::{Busy, Failed, Gated, Idle};
        // Given nodes whose clocks are right, a little off, an hour ahead, and an hour behind
        for off in [0, 3, -20, 3600, -3600] {
            let mut moments = Moments::default();
            let mut since = |phase, begun: i64, at: i64| {
                let runner = look(&mut moments, said(phase, begun + off), at);
                if let Some(End::Failed(failure)) = &runner.end {
                    assert_eq!(failure.at, runner.since);
                }
                seconds(runner.since)
            };
            // Then a phase has begun when the node says, or when it was first seen; the same at each look
            let is_right = off.abs() < 60;
            let expected = |begun: i64, seen: i64| if is_right { begun + off } else { seen };
            for (phase, begun, seen) in [
                (Gated, 35, 37),
                (Idle, 49, 50),
                (Busy, 90, 91),
                (Failed, 120, 122),
            ] {
                assert_eq!(since(phase, begun, seen), expected(begun, seen), "{off}");
                assert_eq!(
                    since(phase, begun, seen + 20),
                    expected(begun, seen),
                    "{off}"
                );
            }
        }
    }

    #[test]
    fn after_a_restart_a_phase_has_begun_since_the_pod_had_its_node() {
        // Given a gate that began a moment before, by a clock that is ten minutes behind, of a pod that waited for a node
        let mut runner = said(RunnerPhase::Gated, 720 - 600);
        runner.life.bound = Some(after(715));
        // When the first look of this process is at it, then it has just begun
        let runner = look(&mut Moments::default(), runner, 722);
        assert_eq!(seconds(runner.since), 722);
    }

    #[test]
    fn a_job_and_its_end_are_put_right_alike_and_the_time_to_go_not_at_all() {
        let mut moments = Moments::default();
        // Given a busy runner of a node that is an hour ahead, and whose pod is evicted
        look(&mut moments, said(RunnerPhase::Busy, 3650), 50);
        let job = cuda_runner_plan::model::runner::EndedJob {
            job: cuda_runner_plan::model::runner::Job::default(),
            started: Some(after(3650)),
            finished: after(3670),
            refused: None,
            gpus: vec![],
            exceeded_minutes: None,
        };
        let mut leaving = said(RunnerPhase::Failed, 3672);
        (leaving.phase, leaving.since) = (RunnerPhase::Terminating, after(100));
        leaving.done = Some(Box::new(job));
        let leaving = look(&mut moments, leaving, 75);
        let done = leaving.done.as_ref().unwrap();
        let times = [done.started.unwrap(), done.finished, leaving.since].map(seconds);
        assert_eq!(times, [50, 70, 100]);
        let Some(End::Failed(failure)) = &leaving.end else {
            panic!("{leaving:?}")
        };
        assert_eq!(seconds(failure.at), 72);
    }

    #[test]
    fn a_phase_that_begins_with_an_older_time_says_nothing_of_the_clock() {
        let mut moments = Moments::default();
        look(&mut moments, said(RunnerPhase::Gated, 5), 95);
        // Given a runner that was let in, whose gate's end the kubelet does not show yet
        let runner = look(&mut moments, said(RunnerPhase::Starting, 5), 96);
        assert_eq!(seconds(runner.since), 5);
        // When it is asked to go, and fails, then that was when its node says
        let mut leaving = said(RunnerPhase::Failed, 100);
        (leaving.phase, leaving.since) = (RunnerPhase::Terminating, after(130));
        let leaving = look(&mut moments, leaving, 101);
        let Some(End::Failed(failure)) = &leaving.end else {
            panic!("{leaving:?}")
        };
        assert_eq!(seconds(failure.at), 100);
    }

    #[test]
    fn nothing_is_kept_of_runners_that_are_gone() {
        let mut moments = Moments::default();
        look(&mut moments, said(RunnerPhase::Idle, 1), 2);
        moments.correct(std::iter::empty(), fixture::NOW);
        assert!(moments.by_uid.is_empty());
    }
}
