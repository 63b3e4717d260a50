//! What has come of one case: which requests there were, and how far its fault is.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::{fault::Fault, pace::Pace, request::Kind};

/// What is to happen, and to the how-manieth of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) number: usize,
    pub(super) fault: Fault,
}

/// How far the fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has not happened.
    Before,
    /// It lasts.
    During,
    /// It is over, since the clock of the run showed this.
    After(Duration),
}

/// What has been counted, and what is to come.
struct State {
    counts: BTreeMap<Kind, usize>,
    seen: Vec<String>,
    plan: Option<Plan>,
}

/// Counts requests and events, and says which of them is to meet the fault.
pub(super) struct Progress {
    state: Mutex<State>,
    pace: Pace,
    phase: watch::Sender<Phase>,
}

impl Progress {
    pub(super) fn new(plan: Option<Plan>, pace: &Pace) -> Self {
        Self {
            state: Mutex::new(State {
                counts: BTreeMap::new(),
                seen: vec![],
                plan,
            }),
            pace: pace.clone(),
            phase: watch::Sender::new(Phase::Before),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often each kind has come.
    pub(super) fn counts(&self) -> BTreeMap<Kind, usize> {
        self.state().counts.clone()
    }

    /// All requests, in their order.
    pub(super) fn seen(&self) -> Vec<String> {
        self.state().seen.clone()
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The fault is over.
    pub(super) fn over(&self) {
        self.phase.send_replace(Phase::After(self.pace.now()));
    }

    /// Counts it; gives the fault that it is to meet.
    pub(super) fn meet(&self, kind: &Kind) -> Option<Fault> {
        let mut state = self.state();
        let count = state.counts.entry(kind.clone()).or_default();
        *count += 1;
        let number = *count;
        if !kind.is_event() {
            state.seen.push(format!("{kind}#{number}"));
        }
        let hit = state
            .plan
            .take_if(|plan| plan.kind == *kind && plan.number == number)?;
        self.phase.send_replace(Phase::During);
        Some(hit.fault)
    }
}
