//! What the operator says of jobs that have ended.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Jobs that [`CudaRunnerStatus::last_jobs`](crate::CudaRunnerStatus::last_jobs) keeps at most.
pub const MAX_LAST_JOBS: usize = 10;

/// A job that a runner ran to its end.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// The job: its id in the workflow, and its name once GitHub has said it.
    pub job: String,
    /// How it ended, in GitHub's word; absent until GitHub has said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conclusion: Option<String>,
    /// The runner that ran it.
    pub runner: String,
    /// Node that the runner was on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// UUIDs of the runner's devices, as the gate saw them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[schemars(schema_with = "schema::time")]
    pub finished_at: Time,
    /// Name of its workflow.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workflow: String,
    /// Repository of the workflow, `OWNER/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// GitHub's number for the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<i64>,
    /// Which attempt of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// Address of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Why `spec.jobs.allow` refused it before its first step; absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What each of its GPUs did meanwhile, where that was seen. Information, and no evidence: the job could have written it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu: Vec<crate::JobGpuStatus>,
    /// The minutes that `spec.jobs.maxMinutes` allowed it, where it was ended because it took longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exceeded_minutes: Option<i32>,
    /// Whether GitHub is still to be asked for the conclusion.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awaits_conclusion: bool,
}
