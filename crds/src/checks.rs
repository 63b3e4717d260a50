//! What the operator says of the checks that it has made required.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The checks of a pool, and where they are required for its sake.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequiredChecksStatus {
    /// The repository, `OWNER/NAME`.
    pub repository: String,
    /// The server that it is on, for example `https://github.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The verified jobs under the names that GitHub reports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<ProvenCheck>,
    /// The verification run from which these names are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<i64>,
    /// What the operator has added to the protection of branches, and takes away again. Written down before it is added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<BranchChecks>,
    /// Name of the pool's own ruleset. Written down before it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ruleset: Option<String>,
}

/// A check that was green.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvenCheck {
    /// Its name, the context of a required check.
    pub context: String,
    /// GitHub's number for the App that reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<i64>,
    /// Whether a pull request has reported it.
    pub seen: bool,
}

/// What the operator has added to a branch.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BranchChecks {
    /// Name of the branch.
    pub name: String,
    /// The contexts. What was required before is not among them.
    pub contexts: Vec<String>,
}
