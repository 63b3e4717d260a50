//! Runners that have ended: the last ones, and those that are told of once it is known how their jobs ended.
//!
//! All of it can be lost: the log has what was told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use cuda_runner_plan::hours::RunnerHours;
use cuda_runner_plan::model::key::PoolKey;

/// So many of the last runners are kept, of all pools together.
pub const KEPT: usize = 1000;

/// Runners that have ended.
#[derive(Debug)]
pub struct EndedRunners {
    since: Timestamp,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: VecDeque<Arc<RunnerHours>>,
    /// By the pod's uid.
    waiting: BTreeMap<String, RunnerHours>,
}

impl Default for EndedRunners {
    fn default() -> Self {
        Self {
            since: Timestamp::now(),
            state: Mutex::default(),
        }
    }
}

impl EndedRunners {
    /// From when on this process has seen runners end.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// The last runners that have ended, of all pools, the newest first.
    #[must_use]
    pub fn last(&self) -> Vec<Arc<RunnerHours>> {
        self.lock().last.iter().rev().cloned().collect()
    }

    /// Keeps a runner that waits for GitHub's word on its job.
    pub(crate) fn waits(&self, hours: RunnerHours) {
        self.lock().waiting.insert(hours.uid.clone(), hours);
    }

    /// Takes in a runner that is told of; `false` where it was before: a list of the API server may be an old one, in
    /// which a pod is not there yet.
    pub(crate) fn is_new(&self, hours: &Arc<RunnerHours>) -> bool {
        let mut state = self.lock();
        state.waiting.remove(&hours.uid);
        if state.last.iter().any(|told| told.uid == hours.uid) {
            return false;
        }
        if state.last.len() >= KEPT {
            state.last.pop_front();
        }
        state.last.push_back(Arc::clone(hours));
        true
    }

    /// Forgets who waits of a pool that is gone: nobody asks how their jobs ended.
    pub(crate) fn forget(&self, pool: &PoolKey) {
        let mut state = self.lock();
        state.waiting.retain(|_, hours| hours.pool_key() != *pool);
    }

    /// Those that wait, and do no more.
    pub(crate) fn take_waiting(&self) -> Vec<RunnerHours> {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.into_values().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole values, none of them half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(uid: usize) -> Arc<RunnerHours> {
        Arc::new(RunnerHours {
            namespace: "ci".to_owned(),
            pool: "pool".to_owned(),
            runner: format!("pool-{uid}"),
            uid: uid.to_string(),
            node: None,
            gpus: 1,
            devices: vec![],
            product: None,
            held_from: None,
            held_until: Timestamp::UNIX_EPOCH,
            seconds: cuda_runner_plan::hours::Seconds::default(),
            reason: None,
            job: None,
        })
    }

    #[test]
    fn the_last_thousand_are_kept_and_each_is_told_of_once() {
        let ended = EndedRunners::default();
        for uid in 0..KEPT + 10 {
            assert!(ended.is_new(&hours(uid)));
        }
        assert!(!ended.is_new(&hours(KEPT)));
        let last = ended.last();
        assert_eq!(last.len(), KEPT);
        assert_eq!(last[0].uid, (KEPT + 9).to_string());
    }

    #[test]
    fn who_was_told_of_waits_no_more() {
        let ended = EndedRunners::default();
        for uid in [1, 2] {
            ended.waits((*hours(uid)).clone());
        }
        assert!(ended.is_new(&hours(1)));
        let waiting = ended.take_waiting();
        assert_eq!(waiting.len(), 1);
        assert_eq!(waiting[0].uid, "2");
        assert!(ended.take_waiting().is_empty());
    }
}
