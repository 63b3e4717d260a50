//! Persistent runners: `POOL-0` to `POOL-(n-1)`, each at most once, the highest leaving first.

use std::collections::BTreeSet;

use cudarunner_crds::RunnerPhase;

use super::{Action, Observed, Plan};
use crate::model::pool::Pool;
use crate::model::runner::Runner;

fn name(pool: &Pool, index: usize) -> String {
    format!("{}-{index}", pool.key.name)
}

/// The number in a runner's name; `None` where it is the name of another kind of runner.
fn index(pool: &Pool, runner: &Runner) -> Option<usize> {
    let suffix = runner
        .name
        .strip_prefix(&pool.key.name)?
        .strip_prefix('-')?;
    let index = suffix.parse().ok()?;
    // `007` and `+7` parse, too.
    (name(pool, index) == runner.name).then_some(index)
}

/// Takes out idle runners beyond the number that is wanted; true if there were any. A busy one is waited for: another
/// would keep its name, and the numbers would have a gap.
pub(super) fn retire(
    pool: &Pool,
    desired: usize,
    active: &[&Runner],
    have: usize,
    plan: &mut Plan,
) -> bool {
    let beyond = |runner: &Runner| match index(pool, runner) {
        Some(index) => index >= desired,
        // Left over from before the pool became persistent; unless they are too many, they leave as the new ones come.
        None => have > desired,
    };
    let before = plan.actions.len();
    plan.actions.extend(
        active
            .iter()
            .filter(|r| !matches!(r.phase, RunnerPhase::Busy | RunnerPhase::Terminating))
            .filter(|r| beyond(r))
            .map(|r| Action::Drain((*r).into())),
    );
    plan.actions.len() > before
}

/// The lowest names that are free, at most `missing`. A name is free when no pod has it, not even one that has ended.
pub(super) fn free_names(
    pool: &Pool,
    desired: usize,
    observed: &Observed,
    missing: usize,
) -> Vec<String> {
    let taken: BTreeSet<&str> = observed
        .runners
        .iter()
        .map(|r| r.name.as_str())
        .chain(observed.expected.iter().map(String::as_str))
        .collect();
    (0..desired)
        .map(|index| name(pool, index))
        .filter(|name| !taken.contains(name.as_str()))
        .take(missing)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{NOW, observed, resource, runner};
    use super::super::{Action, plan};
    use super::*;
    use cudarunner_crds::{Lifetime, RunnerPhase::*};

    fn pool(replicas: i32) -> Pool {
        let mut resource = resource();
        resource.spec.lifetime = Lifetime::Persistent;
        resource.spec.replicas = Some(replicas);
        let mut pool = Pool::read(&resource, false);
        pool.status.observed_generation = Some(1);
        pool
    }

    /// What is created and what is removed, by name.
    fn outcome(pool: &Pool, runners: &[(&str, RunnerPhase)]) -> (Vec<String>, Vec<String>) {
        let runners = runners.iter().map(|(n, p)| runner(pool, n, *p)).collect();
        let (mut created, mut removed) = (vec![], vec![]);
        for action in plan(pool, &observed(runners), NOW).actions {
            match action {
                Action::CreatePod(new) => created.push(new.name),
                Action::DeletePod(t) | Action::Drain(t) | Action::Evict(t) => removed.push(t.name),
                _ => {}
            }
        }
        (created, removed)
    }

    #[test]
    fn names_are_numbers_and_the_lowest_free_one_is_next() {
        let pool = pool(3);
        assert_eq!(outcome(&pool, &[]).0, ["pool-0", "pool-1", "pool-2"]);
        assert_eq!(
            outcome(&pool, &[("pool-0", Idle), ("pool-2", Busy)]).0,
            ["pool-1"]
        );
    }

    #[test]
    fn a_name_is_free_only_when_its_pod_is_gone() {
        let pool = pool(1);
        for phase in [Terminating, Failed] {
            assert_eq!(outcome(&pool, &[("pool-0", phase)]).0, [] as [&str; 0]);
        }
    }

    #[test]
    fn the_highest_leaves_and_a_busy_one_is_waited_for() {
        let pool = pool(1);
        assert_eq!(
            outcome(&pool, &[("pool-0", Idle), ("pool-1", Idle)]).1,
            ["pool-1"]
        );
        let (created, removed) = outcome(&pool, &[("pool-0", Idle), ("pool-1", Busy)]);
        assert!(created.is_empty() && removed.is_empty());
    }

    #[test]
    fn a_runner_beyond_the_number_leaves_though_one_below_is_missing_and_its_place_is_filled_after()
    {
        let (created, removed) = outcome(&pool(2), &[("pool-1", Idle), ("pool-2", Idle)]);
        assert_eq!((created, removed), (vec![], vec!["pool-2".to_owned()]));
    }
}
