//! From a driver's code, and the circumstances, to what it means.

use crate::codes::{self, Rule};
use crate::{Class, Confidence, Step};

/// The circumstances of a fault that change its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that do not depend on each other"
)]
pub struct Context {
    /// Where it happened.
    pub step: Step,
    /// The GPU is shared with other pods (time slicing, MPS).
    pub shared: bool,
    /// The device is a MIG slice: it has little memory, and that is its own.
    pub slice: bool,
    /// It is shared by MPS: what others run on it is waited for.
    pub mps: bool,
    /// Any `/dev/nvidia<N>` is in the container.
    pub device_files: bool,
    /// The fault was met before, in an earlier process or on an earlier try: what may pass by itself did not.
    pub retried: bool,
}

impl Context {
    /// The plain case: exclusive device, device files in place, first try.
    #[must_use]
    pub const fn at(step: Step) -> Self {
        Self {
            step,
            shared: false,
            slice: false,
            mps: false,
            device_files: true,
            retried: false,
        }
    }
}

/// Whether a fault is worth another try, in a new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// No: it stands.
    No,
    /// One more at once, before anything is blamed.
    Once,
    /// As long as the gate is patient, after a pause: a moment may fix it.
    Wait,
}

/// What a fault means, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who has to act.
    pub class: Class,
    /// `CUDA_ERROR_…`, or the gate's own name for what it found.
    pub name: &'static str,
    /// One sentence: what it means.
    pub meaning: &'static str,
    /// One sentence or two: what to do.
    pub advice: &'static str,
    /// How sure the class is.
    pub confidence: Confidence,
    /// Whether another try may tell more.
    pub again: Again,
    /// Only an optional feature is missing: note it and go on.
    pub skip: bool,
}

/// What a driver's code means in its circumstances. Knows every code: an unlisted one blames nothing.
#[must_use]
pub fn fault(code: i32, context: Context) -> Fault {
    let entry = codes::entry(code);
    let mut fault = Fault {
        class: Class::Transient,
        name: entry.name,
        meaning: entry.meaning,
        advice: entry.advice,
        confidence: entry.confidence,
        again: Again::No,
        skip: false,
    };
    match entry.rule {
        Rule::Always(class) => fault.class = class,
        Rule::Wait => fault.again = Again::Wait,
        Rule::OnceMoreThen(class) if context.retried => fault.class = class,
        Rule::OnceMoreThen(_) => fault.again = Again::Once,
        Rule::OutOfMemory => {
            fault.again = Again::Wait;
            if context.shared {
                fault.meaning = "The GPU is shared, and its other users hold its memory.";
                fault.advice = "Nothing to do if it passes; otherwise put fewer pods on one GPU.";
            } else if context.slice {
                fault.meaning = "A slice has memory of its own, and there is not enough of it for a small test: an earlier process did not let go of it, or the slice is very small.";
                fault.advice = "Nothing to do if it passes; otherwise find the process with nvidia-smi on the node and end it, or give the pool larger slices.";
            } else {
                fault.class = Class::Node;
            }
        }
        Rule::NoDevice if context.device_files => fault.class = Class::Node,
        Rule::NoDevice => {
            fault.class = Class::Config;
            fault.meaning = "The driver is there, but no GPU was given to this container.";
            fault.advice = "Set runtimeClassName: nvidia, request the GPU as a resource limit, and leave NVIDIA_VISIBLE_DEVICES out of the image.";
        }
        Rule::Feature => match context.step {
            Step::ManagedMemory => {
                fault.class = Class::Unsupported;
                fault.skip = true;
                fault.meaning = "This platform has no managed-memory hints (WDDM, WSL2, some vGPU profiles); that is no defect.";
                fault.advice = "Expect unified-memory tests to fail here, or ask for managedMemory: Require to keep them off.";
            }
            Step::Peers => {
                fault.class = Class::Unsupported;
                fault.skip = true;
                fault.meaning = "This platform gives its devices no access to one another's memory (some vGPU profiles, WSL2); that is no defect.";
                fault.advice = "Expect programs that need peer access to fail here, or ask for gpu.peerAccess: Require to keep them off.";
            }
            _ => fault.class = Class::Config,
        },
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;
    use Class::{Config, Device, Internal, Node, Transient, Unknown, Unsupported};

    fn class(code: i32, context: Context) -> Class {
        fault(code, context).class
    }

    #[test]
    fn codes_with_one_class() {
        let table = [
            (
                Config,
                &[
                    34, 36, 101, 102, 221, 222, 223, 227, 302, 303, 304, 800, 801, 804,
                ][..],
            ),
            (Unsupported, &[209, 218, 300][..]),
            (Device, &[214, 220][..]),
            (Node, &[2, 803][..]),
            (
                Transient,
                &[46, 802, 805, 806, 807, 808, 809, 810, 916, 919][..],
            ),
            (Internal, &[1, 200, 201, 400, 401, 500, 600, 709][..]),
        ];
        for (expected, codes) in table {
            for code in codes {
                for retried in [false, true] {
                    let context = Context {
                        retried,
                        ..Context::at(Step::Context)
                    };
                    assert_eq!(
                        class(*code, context),
                        expected,
                        "code {code}, retried {retried}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_may_be_over_at_once_is_tried_again_before_anything_is_blamed() {
        let kernel = [700, 702, 710, 714, 715, 716, 717, 718, 719, 226];
        let kernel = kernel.map(|code| (code, Device));
        let others = [(3, Node), (999, Node), (4711, Unknown), (-1, Unknown)];
        for (code, then) in kernel.into_iter().chain(others) {
            let first = Context::at(Step::Synchronize);
            assert_eq!(fault(code, first).again, Again::Once, "code {code}");
            assert_eq!(class(code, first), Transient, "code {code}");
            let again = Context {
                retried: true,
                ..first
            };
            let found = fault(code, again);
            assert_eq!((found.class, found.again), (then, Again::No), "code {code}");
        }
    }

    #[test]
    fn what_a_moment_may_fix_is_waited_for() {
        for code in [2, 46, 802, 805, 806, 807, 808, 809, 810, 916, 919] {
            for retried in [false, true] {
                let context = Context {
                    retried,
                    ..Context::at(Step::Init)
                };
                assert_eq!(fault(code, context).again, Again::Wait, "code {code}");
            }
        }
    }

    #[test]
    fn out_of_memory_depends_on_sharing() {
        let exclusive = Context::at(Step::Allocate);
        assert_eq!(class(2, exclusive), Node);
        let shared = Context {
            shared: true,
            ..exclusive
        };
        assert_eq!(class(2, shared), Transient);
        let slice = Context {
            slice: true,
            ..exclusive
        };
        assert_eq!(class(2, slice), Transient);
        assert_ne!(fault(2, slice).meaning, fault(2, shared).meaning);
    }

    #[test]
    fn no_device_depends_on_the_device_files() {
        let with = Context::at(Step::Init);
        assert_eq!(class(100, with), Node);
        let without = Context {
            device_files: false,
            ..with
        };
        assert_eq!(class(100, without), Config);
    }

    #[test]
    fn a_feature_that_a_platform_lacks_is_skipped() {
        for code in [101, 800, 801] {
            let at = |step| fault(code, Context::at(step));
            let skipped = [Step::ManagedMemory, Step::Peers].map(at);
            for fault in skipped {
                assert_eq!(
                    (fault.class, fault.skip),
                    (Unsupported, true),
                    "code {code}"
                );
            }
            assert_ne!(skipped[0].meaning, skipped[1].meaning);
            assert!(!at(Step::Context).skip, "code {code}");
        }
    }

    #[test]
    fn every_code_at_all_has_a_meaning_and_advice() {
        for code in (-2..1100).chain([i32::MIN, i32::MAX]) {
            for retried in [false, true] {
                let fault = fault(
                    code,
                    Context {
                        retried,
                        ..Context::at(Step::Launch)
                    },
                );
                assert!(
                    !fault.meaning.is_empty() && !fault.advice.is_empty(),
                    "code {code}"
                );
            }
        }
    }

    #[test]
    fn the_three_ptx_codes_have_their_own_sentences() {
        let sentences =
            [209, 218, 222].map(|code| fault(code, Context::at(Step::ModuleLoad)).meaning);
        assert_ne!(sentences[0], sentences[1]);
        assert_ne!(sentences[1], sentences[2]);
        assert_ne!(sentences[0], sentences[2]);
    }
}
