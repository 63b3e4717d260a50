//! A failure of the gate, as it is reported.

use serde::{Deserialize, Serialize};

use crate::{Class, Confidence, Step};

/// Why the gate failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Who has to act.
    pub class: Class,
    /// Where it happened.
    pub step: Step,
    /// The driver's code, where the driver gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// `CUDA_ERROR_…`, or the gate's own name for what it found, such as `WrongResult`.
    pub code_name: String,
    /// The driver's function that failed, such as `cuInit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// Ordinal of the device, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
    /// UUID of the device, where it was one and is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What happened and what it means.
    pub message: String,
    /// What to do.
    pub advice: String,
    /// How sure the class is.
    pub confidence: Confidence,
    /// Whether other pods use the device too (time slicing, MPS), as far as the gate knows: what is busy or late may be
    /// their doing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}
