//! From a driver's code, and the circumstances, to what it means.

use crate::codes::{self, Rule};
use crate::{Class, Confidence, Step};

/// The circumstances of a fault that change its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Where it happened.
    pub step: Step,
    /// The GPU is shared with other pods (time slicing, MPS).
    pub shared: bool,
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
            device_files: true,
            retried: false,
        }
    }
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
    /// Worth one more try in a new process before anything is blamed.
    pub retry: bool,
    /// Only an optional feature is missing: note it and go on.
    pub skip: bool,
}

/// What a driver's code means in its circumstances. Knows every code: an unlisted one makes the node suspect.
#[must_use]
pub fn fault(code: i32, context: Context) -> Fault {
    let entry = codes::entry(code);
    let mut fault = Fault {
        class: Class::Node,
        name: entry.name,
        meaning: entry.meaning,
        advice: entry.advice,
        confidence: entry.confidence,
        retry: false,
        skip: false,
    };
    match entry.rule {
        Rule::Always(class) => fault.class = class,
        Rule::TransientThen(class) => {
            fault.class = if context.retried {
                class
            } else {
                Class::Transient
            }
        }
        Rule::OnceMoreThen(class) => {
            fault.class = if context.retried {
                class
            } else {
                Class::Transient
            };
            fault.retry = !context.retried;
        }
        Rule::OutOfMemory => {
            if context.shared {
                fault.class = Class::Transient;
                fault.meaning = "The GPU is shared, and its other users hold its memory.";
                fault.advice = "Nothing to do if it passes; otherwise put fewer pods on one GPU.";
            }
        }
        Rule::NoDevice => {
            if !context.device_files {
                fault.class = Class::Config;
                fault.meaning = "The driver is there, but no GPU was given to this container.";
                fault.advice = "Set runtimeClassName: nvidia, request the GPU as a resource limit, and leave NVIDIA_VISIBLE_DEVICES out of the image.";
            }
        }
        Rule::Feature => {
            fault.class = Class::Config;
            if context.step == Step::ManagedMemory {
                fault.class = Class::Unsupported;
                fault.skip = true;
                fault.meaning = "This platform has no managed-memory hints (WDDM, WSL2, some vGPU profiles); that is no defect.";
                fault.advice = "Expect unified-memory tests to fail here, or ask for managedMemory: Require to keep them off.";
            }
        }
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;
    use Class::{Config, Device, Node, Transient, Unsupported};

    fn class(code: i32, context: Context) -> Class {
        fault(code, context).class
    }

    #[test]
    fn codes_with_one_class() {
        let table = [
            (Config, &[34, 101, 221, 222, 223, 800, 801, 804][..]),
            (Unsupported, &[209, 218, 300][..]),
            (Device, &[214, 220][..]),
            (Node, &[803][..]),
            (Transient, &[46][..]),
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
    fn codes_that_may_pass_are_transient_first() {
        let table = [
            (3, Node),
            (226, Device),
            (802, Node),
            (805, Node),
            (806, Node),
            (807, Node),
            (808, Node),
            (809, Node),
            (999, Node),
        ];
        for (code, then) in table {
            let first = Context::at(Step::Init);
            assert_eq!(class(code, first), Transient, "code {code}");
            let again = Context {
                retried: true,
                ..first
            };
            assert_eq!(class(code, again), then, "code {code}");
        }
    }

    #[test]
    fn a_kernel_fault_is_tried_again_before_the_device_is_blamed() {
        for code in [700, 702, 716, 718, 719] {
            let first = fault(code, Context::at(Step::Synchronize));
            assert!(first.retry, "code {code}");
            let again = fault(
                code,
                Context {
                    retried: true,
                    ..Context::at(Step::Synchronize)
                },
            );
            assert_eq!((again.class, again.retry), (Device, false), "code {code}");
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
    fn managed_memory_that_a_platform_lacks_is_skipped() {
        for code in [101, 800, 801] {
            assert!(
                fault(code, Context::at(Step::ManagedMemory)).skip,
                "code {code}"
            );
            assert!(!fault(code, Context::at(Step::Context)).skip, "code {code}");
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
        assert_eq!(fault(4711, Context::at(Step::Launch)).class, Node);
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
