//! The architecture of a pool's nodes, and of what runs there.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The label by which a kubelet tells its node's architecture.
pub const ARCH_LABEL: &str = "kubernetes.io/arch";

/// An architecture, in Kubernetes' words.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86-64.
    #[default]
    Amd64,
    /// 64-bit Arm: GH200, GB200, DGX Spark.
    Arm64,
}

impl Arch {
    /// As nodes and images are labelled.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The label that GitHub gives to a runner of this architecture.
    #[must_use]
    pub const fn github_label(self) -> &'static str {
        match self {
            Self::Amd64 => "X64",
            Self::Arm64 => "ARM64",
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Amd64 => Self::Arm64,
            Self::Arm64 => Self::Amd64,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
