//! After a failed try: another one, or the verdict.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Again, Context, Fault, Finding, Step, fault, finding};

/// The first pause before a device or a service that was not ready is tried again. Each pause is twice as long as the one
/// before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// So many faults may each ask for one more try at once: one, and another that the next try meets in its place.
const ONCE_MORE: usize = 2;

/// The driver's code, or what the gate saw itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// A code that one of the driver's functions returned.
    Code(i32),
    /// Anything else.
    Finding(Finding),
}

impl Cause {
    /// What it means in its circumstances.
    #[must_use]
    pub fn meaning(self, context: Context) -> Fault {
        match self {
            Self::Code(code) => fault(code, context),
            Self::Finding(found) => finding(found, context),
        }
    }
}

/// Whose failure it is that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one before the last: what a device was seen to do in the try before.
    First,
    /// The last one.
    Last,
}

/// What follows a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another try in a new process, after a pause.
    Again(Duration),
    /// A verdict.
    Stands(Which, Fault),
}

/// The failed tries of one gate.
///
/// A fault that may be over with its process is met in a second one before it blames anything, and one that a moment may
/// fix is waited for. What a device was seen to do is not forgotten because the next try fails in another way: after a
/// launch failed on it, a device that needs a reset is called busy by the driver.
#[derive(Debug)]
pub struct Tries {
    patience: Duration,
    waited: Duration,
    pause: Duration,
    /// What has asked for one more try at once.
    seen: Vec<(Cause, Context)>,
}

impl Tries {
    /// None yet. What a moment may fix is waited for as long as `patience`, counted from the gate's start.
    #[must_use]
    pub const fn new(patience: Duration) -> Self {
        Self {
            patience,
            waited: Duration::ZERO,
            pause: FIRST_PAUSE,
            seen: Vec::new(),
        }
    }

    /// One more has failed; `elapsed` is the time since the gate's start. `context.retried` is known here.
    pub fn failed(&mut self, cause: Cause, context: Context, elapsed: Duration) -> Next {
        if let Some((first, at)) = self.seen.last() {
            let fault = first.meaning(retried(*at));
            if outlasts(*first, *at, fault) {
                return Next::Stands(Which::First, fault);
            }
        }
        let context = Context {
            retried: self.has_met(cause),
            ..context
        };
        let fault = cause.meaning(context);
        match fault.again {
            Again::Once if self.may_try_once_more(elapsed) => {
                self.seen.push((cause, context));
                Next::Again(Duration::ZERO)
            }
            Again::Wait => match self.next_pause(elapsed) {
                Some(pause) => Next::Again(pause),
                None => Next::Stands(Which::Last, fault),
            },
            Again::Once | Again::No => Next::Stands(Which::Last, fault),
        }
    }

    /// Whether a fault is met for the second time: itself, or another one that came after a launch. What failed before a
    /// launch says nothing of what fails after it.
    fn has_met(&self, cause: Cause) -> bool {
        let mut seen = self.seen.iter();
        seen.any(|(first, at)| {
            let is_slow = *first == Cause::Finding(Finding::SlowCopy);
            *first == cause || had_work(*at) && !is_slow
        })
    }

    /// Whether there is one more try at once. The first fault always has one; another that comes in its place has one while the
    /// gate is patient, which leaves a whole try its time.
    fn may_try_once_more(&self, elapsed: Duration) -> bool {
        self.seen.is_empty() || self.seen.len() < ONCE_MORE && elapsed < self.patience
    }

    /// The next pause. The last one ends with the patience; a rest that is shorter than the first pause would change nothing.
    fn next_pause(&mut self, elapsed: Duration) -> Option<Duration> {
        let left = self.patience.saturating_sub(self.waited.max(elapsed));
        if left < FIRST_PAUSE {
            return None;
        }
        let pause = self.pause.min(left);
        self.waited = self.waited.saturating_add(pause);
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

const fn retried(context: Context) -> Context {
    Context {
        retried: true,
        ..context
    }
}

/// Whether a fault stands, whatever the next try fails of. A slow copy does not: it says nothing unless it is met twice.
/// What kernels on two devices did to each other does: they were launched.
fn outlasts(cause: Cause, at: Context, fault: Fault) -> bool {
    match cause {
        Cause::Finding(Finding::SlowCopy) => false,
        Cause::Finding(Finding::PeerCopy | Finding::PeerHang) => true,
        Cause::Code(_) if fault.class == crate::Class::Device => true,
        _ => had_work(at) && fault.class.blames_hardware(),
    }
}

/// Whether devices had been given work by then. They talk to one another when each has been tested.
fn had_work(at: Context) -> bool {
    at.step.is_after_launch() || at.step == Step::Peers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Class, listed};

    const PATIENCE: Duration = Duration::from_secs(15);

    fn on(step: Step) -> Context {
        Context::at(step)
    }

    /// What stands after these failures, one for each try, and how many tries there were.
    fn verdict(patience: Duration, failures: &[(Cause, Context)]) -> (Which, Cause, Fault, usize) {
        let mut tries = Tries::new(patience);
        let mut first = None;
        for (index, (cause, context)) in failures.iter().enumerate() {
            match tries.failed(*cause, *context, Duration::ZERO) {
                Next::Again(_) => first = Some(*cause),
                Next::Stands(which, fault) => {
                    let cause = match which {
                        Which::First => first.unwrap(),
                        Which::Last => *cause,
                    };
                    return (which, cause, fault, index + 1);
                }
            }
        }
        panic!("{failures:?} came to no end")
    }

    #[test]
    fn a_fault_after_a_launch_stands_whatever_comes_second() {
        let first = (Cause::Code(719), on(Step::Synchronize));
        for second in [
            (Cause::Code(46), on(Step::Context)),
            (Cause::Code(802), on(Step::Init)),
            (Cause::Code(999), on(Step::Init)),
            (Cause::Code(4711), on(Step::Init)),
            (Cause::Finding(Finding::Hang), on(Step::Init)),
            (Cause::Finding(Finding::Starved), on(Step::Init)),
            (Cause::Finding(Finding::OutOfMemoryKill), on(Step::Init)),
            (Cause::Finding(Finding::NodeOutOfMemory), on(Step::Init)),
        ] {
            let (which, cause, fault, tries) = verdict(PATIENCE, &[first, second]);
            assert_eq!(
                (which, cause, fault.class, tries),
                (Which::First, Cause::Code(719), Class::Device, 2),
                "{second:?}"
            );
        }
    }

    #[test]
    fn what_devices_did_to_each_other_stands_whatever_comes_second() {
        for (found, second) in [
            (
                Cause::Finding(Finding::PeerHang),
                (Cause::Code(46), on(Step::Context)),
            ),
            (
                Cause::Finding(Finding::PeerCopy),
                (Cause::Code(802), on(Step::Init)),
            ),
            (
                Cause::Finding(Finding::Crash),
                (Cause::Code(46), on(Step::Context)),
            ),
            (Cause::Code(999), (Cause::Code(46), on(Step::Context))),
        ] {
            // Given a bad pair, and devices that later processes find busy or not ready
            let first = (found, on(Step::Peers));
            // When
            let (which, cause, fault, tries) = verdict(PATIENCE, &[first, second]);
            // Then
            assert_eq!(
                (which, cause, fault.class, tries),
                (Which::First, first.0, Class::Node, 2)
            );
        }
    }

    #[test]
    fn before_a_launch_the_second_try_is_believed() {
        for (first, second, class) in [
            (999, 34, Class::Config),
            (3, 803, Class::Node),
            (4711, 4711, Class::Unknown),
        ] {
            let failures = [first, second].map(|code| (Cause::Code(code), on(Step::Init)));
            let (which, cause, fault, _) = verdict(PATIENCE, &failures);
            assert_eq!(
                (which, cause, fault.class),
                (Which::Last, Cause::Code(second), class)
            );
        }
        let slow = (Cause::Finding(Finding::SlowCopy), on(Step::CopyToHost));
        let other = (Cause::Code(34), on(Step::Init));
        assert_eq!(verdict(PATIENCE, &[slow, other]).2.class, Class::Config);
        assert_eq!(verdict(PATIENCE, &[slow, slow]).2.class, Class::Device);
    }

    #[test]
    fn another_fault_in_the_place_of_the_first_is_met_twice_before_it_blames() {
        let kernel = (Cause::Code(719), on(Step::Synchronize));
        let init = |code| (Cause::Code(code), on(Step::Init));
        let slow = (Cause::Finding(Finding::SlowCopy), on(Step::CopyToHost));
        let pair = (Cause::Finding(Finding::PeerHang), on(Step::Peers));
        let crash = |step| (Cause::Finding(Finding::Crash), on(step));
        for (first, second, class) in [
            (init(999), kernel, Class::Device),
            (init(3), kernel, Class::Device),
            (init(4711), kernel, Class::Device),
            (crash(Step::Init), kernel, Class::Device),
            (slow, kernel, Class::Device),
            (slow, pair, Class::Node),
            (init(999), pair, Class::Node),
            (init(3), init(999), Class::Node),
            (init(3), crash(Step::Init), Class::Node),
        ] {
            // When it comes again, it is believed
            let (_, cause, fault, tries) = verdict(PATIENCE, &[first, second, second]);
            assert_eq!(
                (cause, fault.class, tries),
                (second.0, class, 3),
                "{first:?}, {second:?}"
            );
        }
        // Where each try fails of something else, nothing is blamed
        let all = [init(3), init(999), crash(Step::Init)];
        let (.., fault, tries) = verdict(PATIENCE, &all);
        assert_eq!((fault.class, tries), (Class::Transient, 3));
        // ... and neither where there is no time for one more
        let (.., fault, tries) = verdict(Duration::ZERO, &[init(999), kernel]);
        assert_eq!((fault.class, tries), (Class::Transient, 2));
        // The same again is believed, whatever the time; so is what follows another fault after a launch
        let (.., fault, tries) = verdict(Duration::ZERO, &[init(999), init(999)]);
        assert_eq!((fault.class, tries), (Class::Node, 2));
        let unlisted = (Cause::Code(4711), on(Step::Synchronize));
        let (.., fault, tries) = verdict(PATIENCE, &[unlisted, kernel]);
        assert_eq!((fault.class, tries), (Class::Device, 2));
    }

    #[test]
    fn the_gate_waits_with_growing_pauses_as_long_as_it_is_patient() {
        let mut tries = Tries::new(PATIENCE);
        let mut pauses = vec![];
        loop {
            match tries.failed(Cause::Code(46), on(Step::Context), Duration::ZERO) {
                Next::Again(pause) => pauses.push(pause.as_millis()),
                Next::Stands(_, fault) => {
                    assert_eq!(fault.class, Class::Transient);
                    break;
                }
            }
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 4000, 3250]);
        assert_eq!(pauses.iter().sum::<u128>(), PATIENCE.as_millis());
    }

    #[test]
    fn time_that_the_tries_took_counts() {
        let mut tries = Tries::new(PATIENCE);
        let mut next = |left: u64| {
            let late = PATIENCE.saturating_sub(Duration::from_millis(left));
            tries.failed(Cause::Code(802), on(Step::Init), late)
        };
        // What is left is used up, unless it is too little to change anything.
        assert_eq!(next(900), Next::Again(FIRST_PAUSE));
        assert_eq!(next(300), Next::Again(Duration::from_millis(300)));
        assert!(matches!(next(249), Next::Stands(Which::Last, _)));
    }

    fn cause() -> impl Strategy<Value = Cause> {
        let listed: Vec<i32> = listed().collect();
        prop_oneof![
            4 => proptest::sample::select(listed).prop_map(Cause::Code),
            1 => any::<i32>().prop_map(Cause::Code),
            3 => proptest::sample::select(Finding::ALL.to_vec()).prop_map(Cause::Finding),
        ]
    }

    fn context() -> impl Strategy<Value = Context> {
        let step = proptest::sample::select(vec![
            Step::Init,
            Step::Context,
            Step::Allocate,
            Step::Synchronize,
            Step::MemoryWalk,
            Step::Peers,
        ]);
        (step, any::<[bool; 4]>()).prop_map(|(step, [shared, slice, mps, device_files])| Context {
            shared,
            slice,
            mps,
            device_files,
            ..Context::at(step)
        })
    }

    /// No cause among these is a fault of hardware.
    fn harmless() -> impl Strategy<Value = Cause> {
        let codes = [
            1, 34, 36, 46, 101, 102, 200, 201, 221, 222, 223, 227, 302, 303, 304, 400, 401, 500,
            600, 709, 800, 801, 802, 804, 805, 806, 807, 808, 809, 810, 916, 919,
        ];
        let findings = [
            Finding::NoDriver,
            Finding::BrokenDriver,
            Finding::MissingSymbol,
            Finding::SliceHidden,
            Finding::HiddenDevices,
            Finding::ExcludedDevice,
            Finding::DeviceFileMode,
            Finding::OutOfMemoryKill,
            Finding::NodeOutOfMemory,
            Finding::Starved,
            Finding::Internal,
        ];
        let is_listed = |code: &i32| listed().any(|listed| listed == *code);
        let unlisted = any::<i32>().prop_filter("listed", move |code| !is_listed(code));
        prop_oneof![
            proptest::sample::select(codes.to_vec()).prop_map(Cause::Code),
            unlisted.prop_map(Cause::Code),
            proptest::sample::select(findings.to_vec()).prop_map(Cause::Finding),
        ]
    }

    proptest! {
        /// Whatever fails, and however often: there is a verdict, after no more tries than patience allows.
        #[test]
        fn there_is_always_a_verdict(
            failures in proptest::collection::vec((cause(), context()), 12),
            seconds in 0..20_u64,
        ) {
            let (.., tries) = verdict(Duration::from_secs(seconds), &failures);
            // Eight pauses fit into nineteen seconds, and two tries may ask for another at once.
            prop_assert!(tries <= 11, "{}", tries);
        }

        /// What is the pod's, ours, nobody's or of a moment blames no hardware, in whatever order it is met.
        #[test]
        fn what_is_not_the_hardwares_never_becomes_it(
            failures in proptest::collection::vec((harmless(), context()), 12),
        ) {
            let (.., fault, _) = verdict(PATIENCE, &failures);
            prop_assert!(!fault.class.blames_hardware(), "{:?}", fault);
        }
    }
}
