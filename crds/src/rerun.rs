//! Jobs that a GPU or a node ended: when they are run again, and what became of that.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Word, schema};

/// Jobs that [`CudaRunnerStatus::reruns`](crate::CudaRunnerStatus::reruns) keeps at most.
pub const MAX_RERUNS: usize = 20;

/// Which jobs are run again by themselves.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.onGpuFault || self.onNodeLoss").message("nothing is run again with both switched off: set rerun.onGpuFault or rerun.onNodeLoss to true, or remove spec.rerun"))]
pub struct Rerun {
    /// Runs a job again that ended red, where the next gate on its device finds the device broken.
    #[serde(default)]
    pub on_gpu_fault: bool,
    /// Runs a job again whose pod was evicted, or whose node was lost.
    #[serde(default)]
    pub on_node_loss: bool,
    /// The highest attempt of a workflow run that is re-run: with 1, only the first. GitHub counts; re-runs by people count
    /// too.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10))]
    pub limit: i32,
}

const fn one() -> i32 {
    1
}

/// A job that a GPU or a node ended.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RerunStatus {
    /// The job: its id in the workflow, and its name once GitHub has said it.
    pub job: String,
    /// Repository of the workflow, `OWNER/NAME`.
    pub repository: String,
    /// GitHub's number for the run.
    pub run_id: i64,
    /// The attempt of the run in which the job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// GitHub's number for the job in that attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<i64>,
    /// Address of that attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The runner that ran it.
    pub runner: String,
    /// Node that the runner was on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// UUID of the device at fault, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What ended the job: `GpuFault` or `NodeLoss`.
    pub cause: Word<RerunCause>,
    /// The driver's code, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Name of the driver's code, of what the gate found, or of what became of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_name: Option<String>,
    /// What was seen, and by whom.
    pub evidence: String,
    /// When that was seen.
    #[schemars(schema_with = "schema::time")]
    pub at: Time,
    /// How far it has come: `Waiting`, `Requested`, `Started` or `Skipped`.
    pub state: Word<RerunState>,
    /// One word for why the job is not run again, as in the Event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why the job is not run again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Since when nothing more is to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub ended: Option<Time>,
}

impl RerunStatus {
    /// Whether more is to come of it. An entry with another version's word is left to that version: what is not understood
    /// runs no job again.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let state = self.state.known().filter(|_| self.cause.known().is_some());
        state.is_some_and(|state| !state.has_ended())
    }
}

/// What ended a job.
#[derive(
    JsonSchema, Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum RerunCause {
    /// The next gate on its device found the device broken.
    GpuFault,
    /// Its node was lost, or its pod evicted.
    NodeLoss,
}

/// How far it has come with running a job again.
#[derive(
    JsonSchema, Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum RerunState {
    /// The workflow run is not over, or was not read yet.
    Waiting,
    /// GitHub is being asked.
    Requested,
    /// GitHub runs it again.
    Started,
    /// It is not run again; `reason` and `message` say why.
    Skipped,
}

impl RerunCause {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GpuFault => "GpuFault",
            Self::NodeLoss => "NodeLoss",
        }
    }
}

impl RerunState {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Requested => "Requested",
            Self::Started => "Started",
            Self::Skipped => "Skipped",
        }
    }

    /// Whether nothing more is to come of it.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Started | Self::Skipped)
    }
}
