//! When what nodes say happened, by this machine's clock.
//!
//! A kubelet says when a container began or ended by its node's clock, in whole seconds, and a node's clock may be minutes or
//! hours off: one that has just booted, or whose time service is broken. What is seen for the first time has happened since the
//! last look, and that is what pauses, limits and comparisons with other clocks go by.

use std::collections::BTreeMap;

use cuda_runner_plan::model::runner::{End, Runner};
use cudarunner_crds::RunnerPhase;
use jiff::Timestamp;

/// What is remembered of the last look at a pool's runners.
#[derive(Debug, Default)]
pub struct Moments {
    looked: Option<Timestamp>,
    by_uid: BTreeMap<String, Moment>,
}

#[derive(Clone, Copy, Debug)]
struct Moment {
    phase: RunnerPhase,
    /// By the node's clock.
    said: Timestamp,
    /// By ours.
    since: Timestamp,
}

impl Moments {
    /// Puts the times of the runners within what can be: since the last look at them, or since their pods were made.
    pub fn correct<'a>(&mut self, runners: impl Iterator<Item = &'a mut Runner>, now: Timestamp) {
        let before = std::mem::take(&mut self.by_uid);
        let looked = self.looked.replace(now);
        for runner in runners {
            let said = runner.since;
            let last = before.get(&runner.uid);
            let since = match last {
                Some(last) if (last.phase, last.said) == (runner.phase, said) => last.since,
                last => {
                    let earliest = last.and(looked).unwrap_or(runner.created);
                    said.clamp(earliest.min(now), now)
                }
            };
            runner.since = since;
            if let Some(End::Failed(failure)) = &mut runner.end {
                failure.at = if failure.at == said {
                    since
                } else {
                    failure.at.clamp(runner.created.min(now), now)
                };
            }
            let moment = Moment {
                phase: runner.phase,
                said,
                since,
            };
            self.by_uid.insert(runner.uid.clone(), moment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::fixture;
    use jiff::SignedDuration;

    /// Since when a runner is in a phase, as the node and then as this machine says it, at a look so many seconds after the
    /// pod was made.
    fn look(moments: &mut Moments, phase: RunnerPhase, said: i64, at: i64) -> i64 {
        let after = |seconds| fixture::NOW + SignedDuration::from_secs(seconds);
        let mut runner = fixture::runner(&fixture::pool(1), "pool-aaaaa", phase);
        (runner.created, runner.since) = (fixture::NOW, after(said));
        if let Some(End::Failed(failure)) = &mut runner.end {
            failure.at = after(said);
        }
        moments.correct(std::iter::once(&mut runner), after(at));
        if let Some(End::Failed(failure)) = &runner.end {
            assert_eq!(failure.at, runner.since);
        }
        runner.since.duration_since(fixture::NOW).as_secs()
    }

    #[test]
    fn what_a_node_says_by_another_clock_has_happened_since_the_last_look() {
        use RunnerPhase::{Busy, Failed, Gated, Idle};
        // Given nodes whose clocks are right, an hour ahead, and an hour behind
        for off in [0, 3600, -3600] {
            let mut moments = Moments::default();
            let mut look = |phase, said: i64, at| look(&mut moments, phase, said + off, at);
            // Then a phase has begun since the pod was made, or since the last look, and by now
            let expected = |right, ahead, behind| match off {
                0 => right,
                1.. => ahead,
                _ => behind,
            };
            assert_eq!(look(Gated, 5, 7), expected(5, 7, 0));
            assert_eq!(look(Idle, 19, 20), expected(19, 20, 7));
            // ... the same at each look
            assert_eq!(look(Idle, 19, 60), expected(19, 20, 7));
            assert_eq!(look(Busy, 60, 61), expected(60, 61, 60));
            assert_eq!(look(Failed, 90, 92), expected(90, 92, 61));
            assert_eq!(look(Failed, 90, 192), expected(90, 92, 61));
        }
    }

    #[test]
    fn nothing_is_kept_of_runners_that_are_gone() {
        let mut moments = Moments::default();
        look(&mut moments, RunnerPhase::Idle, 1, 2);
        moments.correct(std::iter::empty(), fixture::NOW);
        assert!(moments.by_uid.is_empty());
    }
}
