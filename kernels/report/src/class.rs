//! Classes of failure and their exit codes. Both are stable: scripts and the operator rely on them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Exit codes of `cuda-smoke`. A [`Class`] has one each; the others stand for no class of their own.
pub mod exit {
    /// Every device passed (and, for the gate, the registration was obtained).
    pub const PASSED: u8 = 0;
    /// The command line or an environment variable could not be understood.
    pub const USAGE: u8 = 2;
    /// [`Class::Config`](super::Class::Config).
    pub const CONFIG: u8 = 10;
    /// [`Class::Transient`](super::Class::Transient).
    pub const TRANSIENT: u8 = 11;
    /// [`Class::Device`](super::Class::Device).
    pub const DEVICE: u8 = 12;
    /// [`Class::Node`](super::Class::Node).
    pub const NODE: u8 = 13;
    /// [`Class::Unsupported`](super::Class::Unsupported).
    pub const UNSUPPORTED: u8 = 14;
    /// [`Class::Refused`](super::Class::Refused).
    pub const REFUSED: u8 = 15;
    /// The GPUs are fine, but the registrar did not answer within its deadline.
    pub const UNREACHABLE: u8 = 16;
    /// [`Class::Unknown`](super::Class::Unknown).
    pub const UNKNOWN: u8 = 17;
    /// [`Class::Internal`](super::Class::Internal).
    pub const INTERNAL: u8 = 70;
}

/// Who has to act on a failure, and so what becomes of the runner, the device and the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Class {
    /// The pod, its image or the cluster is set up so that this cannot work. The hardware is not to blame.
    Config,
    /// It may well work in a moment: try again, with backoff.
    Transient,
    /// This device is broken; others on the node may be fine.
    Device,
    /// The node's driver or service is broken; every device on it is suspect.
    Node,
    /// The device is healthy but cannot do what is asked of it.
    Unsupported,
    /// The registrar refused the registration.
    Refused,
    /// The driver gave a code that nobody has listed. It blames nothing by itself.
    Unknown,
    /// A fault of ours.
    Internal,
}

impl Class {
    /// All classes, in the order of their exit codes.
    pub const ALL: [Self; 8] = [
        Self::Config,
        Self::Transient,
        Self::Device,
        Self::Node,
        Self::Unsupported,
        Self::Refused,
        Self::Unknown,
        Self::Internal,
    ];

    /// The exit code that stands for this class.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Config => exit::CONFIG,
            Self::Transient => exit::TRANSIENT,
            Self::Device => exit::DEVICE,
            Self::Node => exit::NODE,
            Self::Unsupported => exit::UNSUPPORTED,
            Self::Refused => exit::REFUSED,
            Self::Unknown => exit::UNKNOWN,
            Self::Internal => exit::INTERNAL,
        }
    }

    /// The class that an exit code stands for; `None` for success and for codes that the gate never returns
    /// (a container killed from outside, say).
    ///
    /// An unreachable registrar (16) is transient. A command line that was not understood (2) is internal,
    /// because the operator wrote it.
    #[must_use]
    pub fn from_exit_code(code: i32) -> Option<Self> {
        let code = u8::try_from(code).ok()?;
        match code {
            exit::UNREACHABLE => Some(Self::Transient),
            exit::USAGE => Some(Self::Internal),
            _ => Self::ALL
                .into_iter()
                .find(|class| class.exit_code() == code),
        }
    }

    /// The name as in JSON, metrics and documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Transient => "transient",
            Self::Device => "device",
            Self::Node => "node",
            Self::Unsupported => "unsupported",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How sure a class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Confidence {
    /// The code has this one meaning.
    High,
    /// Usually so.
    Medium,
    /// The best guess.
    Low,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_and_classes_are_inverse() {
        for class in Class::ALL {
            assert_eq!(
                Class::from_exit_code(i32::from(class.exit_code())),
                Some(class)
            );
        }
    }

    #[test]
    fn codes_without_a_class_of_their_own() {
        assert_eq!(Class::from_exit_code(0), None);
        assert_eq!(Class::from_exit_code(137), None);
        assert_eq!(Class::from_exit_code(-1), None);
        assert_eq!(Class::from_exit_code(16), Some(Class::Transient));
        assert_eq!(Class::from_exit_code(2), Some(Class::Internal));
    }

    #[test]
    fn the_name_is_the_same_in_json() {
        for class in Class::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
    }
}
