//! What the operator says of the workflow that it runs to prove a pool.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Word, schema};

/// Verifications that [`VerificationStatus::history`] keeps at most.
pub const MAX_VERIFICATIONS: usize = 5;
/// Kinds of hardware that [`VerificationStatus::hardware`] keeps at most.
pub const MAX_HARDWARE: usize = 16;

/// The newest verification of a pool, and those before it.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    /// How far it has come: `Requested`, `Running`, `Succeeded` or `Failed`.
    pub state: Word<VerificationState>,
    /// Fingerprint of what is verified: `spec.verify` and everything that shapes the runners.
    pub fingerprint: String,
    /// GPU and driver of the runners for which this fingerprint was verified.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hardware: Vec<String>,
    /// The last value of the annotation `cudarunner.dev/verify` that was followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// When the operator decided on it.
    #[schemars(schema_with = "schema::time")]
    pub since: Time,
    /// The repository with the workflow, `OWNER/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The server that it is on, for example `https://github.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// GitHub's number for the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<i64>,
    /// Address of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// When it was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub ended: Option<Time>,
    /// One word for what is wrong, as in the condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong, the likely cause, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The jobs of `spec.verify` under the names that GitHub reports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<VerifiedJobStatus>,
    /// Verifications that have ended, newest first, at most 5.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<VerificationRecord>,
}

/// How far a verification has come.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum VerificationState {
    /// It is decided on; the run may have been started or not.
    Requested,
    /// The run is watched.
    Running,
    /// Every job did what it should.
    Succeeded,
    /// It did not come to a good end.
    Failed,
}

/// A job of a verification.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedJobStatus {
    /// Its name, as GitHub reports it: the context of a required check.
    pub name: String,
    /// Address of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The runner that picked it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Seconds from queued to picked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_seconds: Option<i64>,
    /// Seconds of those in which a runner of the pool could have been free for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pickup_seconds: Option<i64>,
    /// How it ended, in GitHub's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conclusion: Option<String>,
    /// Sum of the passed tests in its log, where one is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<i64>,
}

/// A verification that has ended.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationRecord {
    /// GitHub's number for the run, where one was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<i64>,
    /// Address of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// How it ended: `Succeeded` or `Failed`.
    pub state: Word<VerificationState>,
    /// One word for what was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was decided on.
    #[schemars(schema_with = "schema::time")]
    pub since: Time,
    /// When it was judged.
    #[schemars(schema_with = "schema::time")]
    pub ended: Time,
}

impl VerificationStatus {
    /// How far it has come, in words of this version. Of one in another version's word nothing says that it has ended: its run
    /// is watched, or looked for, and judged. Two runs at a time would take GPUs for nothing; one that is judged twice harms
    /// nobody.
    #[must_use]
    pub const fn stage(&self) -> VerificationState {
        match (&self.state, self.run_id) {
            (Word::Known(state), _) => *state,
            (Word::Other(_), Some(_)) => VerificationState::Running,
            (Word::Other(_), None) => VerificationState::Requested,
        }
    }
}

impl VerificationState {
    /// Whether nothing more is to come of it.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}
