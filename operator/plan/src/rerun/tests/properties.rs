//! What holds whatever happens.

use proptest::prelude::*;

use super::*;

/// A GitHub with one run of three jobs, which are run again as often as it is asked.
struct GitHub {
    attempt: u32,
    is_over: bool,
    /// Attempts that the operator has started.
    started: BTreeSet<u32>,
}

impl GitHub {
    fn name(&self, number: u8) -> String {
        format!("pool-{}{number:04}", self.attempt)
    }

    fn read(&self) -> RunFacts {
        let jobs = (0..3_u8).map(|number| RunJob {
            attempt: self.attempt,
            ..job(u64::from(number), &self.name(number), "failure")
        });
        let status = if self.is_over {
            "completed"
        } else {
            "in_progress"
        };
        RunFacts {
            run: Some(run(status, self.attempt)),
            jobs: if self.is_over { jobs.collect() } else { vec![] },
            ..over(vec![])
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: no attempt is followed by two of ours, none beyond the limit, and none without
    /// somebody's word that no job can forge.
    #[test]
    fn never_twice_never_beyond_the_limit_never_without_proof(
        limit in 1..4_i32,
        dice in proptest::collection::vec((0..9_u8, 0..3_u8), 1..60),
    ) {
        let mut pool = wishing(limit);
        let mut github = GitHub { attempt: 1, is_over: false, started: BTreeSet::new() };
        let mut observed = observed(vec![]);
        observed.reruns.passes = Some(passes(vec![]));
        let mut proven = BTreeSet::new();
        let mut now = NOW;
        for (die, number) in dice {
            let device = format!("GPU-{number}");
            match die {
                // A job ends red
                0 => observed.reruns.ended.push(Ended {
                    runner: github.name(number),
                    devices: vec![device],
                    at: now,
                    job: NamedJob { attempt: i32::try_from(github.attempt).ok(), ..ended().job },
                    ..ended()
                }),
                // A gate finds a device broken, or its pool's settings too high
                1 | 2 => {
                    let class = if die == 1 { Class::Device } else { Class::Unsupported };
                    let gate = Failure { device: Some(device.clone()), class, at: now, ..broken() };
                    let is_meant = |job: &Ended| job.devices[0] == device;
                    if die == 1 && observed.reruns.ended.iter().any(is_meant) {
                        proven.insert(github.attempt);
                    }
                    observed.runners.push(failed(&pool, &format!("gate-{}", now.as_second()), gate));
                }
                // A runner goes with its node, or by itself
                3 | 4 => {
                    let reason = if die == 3 { Reason::Evicted } else { Reason::JobCutShort };
                    let mut gone = taken(&pool, &github.name(number), reason, 0);
                    if let Some(End::Failed(failure)) = &mut gone.end {
                        failure.at = now;
                    }
                    gone.under_way = Some(Box::new(Job { attempt: github.attempt.to_string(), ..named() }));
                    if die == 3 {
                        proven.insert(github.attempt);
                    }
                    observed.runners.push(gone);
                }
                5 => github.is_over = true,
                6 => { observed.reruns.runs.insert(key(), github.read()); }
                // The operator is killed: what is not in the status is gone
                7 => {
                    let passes = Some(Passes { since: now, all: vec![] });
                    observed.reruns = RerunFacts { passes, ..RerunFacts::default() };
                }
                // Somebody runs it again
                _ => if github.is_over {
                    (github.attempt, github.is_over) = (github.attempt + 1, false);
                    observed.reruns.runs.remove(&key());
                },
            }
            let plan = crate::plan(&pool, &observed, now);
            pool.status = plan.status.clone();
            prop_assert!(pool.status.reruns.len() <= MAX_RERUNS);
            for new in asked(&plan) {
                prop_assert!(i64::from(github.attempt) <= i64::from(limit));
                prop_assert!(proven.contains(&github.attempt), "{:?}", pool.status.reruns);
                prop_assert!(github.started.insert(github.attempt), "{:?}", pool.status.reruns);
                prop_assert_eq!(new.run, 17);
                (github.attempt, github.is_over) = (github.attempt + 1, false);
                observed.reruns.runs.remove(&key());
                // Every other answer is lost
                if number > 0 {
                    observed.reruns.answers.insert(key(), Answer::Started);
                }
            }
            // As observe does it: an answer is for those that were asked for
            let is_requested = |e: &RerunStatus| e.state == RerunState::Requested;
            if !pool.status.reruns.iter().any(is_requested) {
                observed.reruns.answers.clear();
            }
            now = now.after(SignedDuration::from_secs(20));
        }
    }
}
