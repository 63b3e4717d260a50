//! What the operator says of a pool.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{FailureClass, Word, schema};

/// Runners that [`CudaRunnerStatus::runners`] lists at most.
pub const MAX_LISTED_RUNNERS: usize = 100;
/// Failures that [`CudaRunnerStatus::last_failures`] keeps at most.
pub const MAX_LAST_FAILURES: usize = 10;

/// Devices that [`CudaRunnerStatus::devices`] lists at most.
pub const MAX_DEVICES: usize = 50;

/// Devices that [`CudaRunnerStatus::tainted_devices`] lists at most.
pub const MAX_TAINTED_DEVICES: usize = 20;

/// Labels that [`CudaRunnerStatus::stale_labels`] lists at most.
pub const MAX_STALE_LABELS: usize = 20;

/// What the operator says of a pool.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CudaRunnerStatus {
    /// The `metadata.uid` of the resource that this status speaks of. One of another resource, as a restored backup may have
    /// it, is not believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The `metadata.generation` that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Runner pods that have not ended.
    pub replicas: i32,
    /// Runners whose pod waits for a node, an image or a GPU.
    pub pending: i32,
    /// Runners whose gate is at work.
    pub gated: i32,
    /// Runners that wait for a job or run one.
    pub online: i32,
    /// Runners that run a job.
    pub busy: i32,
    /// Failed runner pods that are kept for inspection.
    pub failed: i32,
    /// Jobs known to wait for this pool.
    pub queued: i32,
    /// GPUs of one runner, for example `1 x nvidia.com/gpu`.
    pub gpu: String,
    /// Label selector of the runner pods.
    pub selector: String,
    /// The runners, at most 100.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runners: Vec<RunnerStatus>,
    /// Runners beyond those listed.
    pub runners_not_listed: i32,
    /// The last failures, newest first; they stay when the pods are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub last_failures: Vec<FailureStatus>,
    /// The last jobs that have ended, newest first, at most 10.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub last_jobs: Vec<crate::JobStatus>,
    /// How jobs ended on each device, the one of the last job last, at most 50. Nothing follows from it: whoever may run a
    /// job decides how it ends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceStatus>,
    /// How jobs ended on devices that have left that list: those on which fewest failed leave it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_devices: Option<OtherDevicesStatus>,
    /// Jobs that a GPU or a node ended, newest first, at most 20. Only with `spec.rerun`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reruns: Vec<crate::RerunStatus>,
    /// Failures in a row since a runner last came online: what the pause before the next attempt grows with.
    pub consecutive_failures: i32,
    /// Nodes and devices that are quarantined for a while.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quarantine: Vec<QuarantineStatus>,
    /// How many those are. By it other operators watch for quarantines alone.
    pub quarantined_nodes: i32,
    /// Devices of the pool's nodes that their own DRA driver taints, at most 20. Only where the operator watches slices, with
    /// the chart's `deviceTaints.enabled`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tainted_devices: Vec<TaintedDeviceStatus>,
    /// Labels of feature discovery that say something else than the gate found, at most 20. A warning: nothing follows
    /// from it, and pods that select nodes by such a label may go to the wrong ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stale_labels: Vec<StaleLabelStatus>,
    /// The last value of the annotation `cudarunner.dev/release` that was followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released: Option<String>,
    /// Version of the agent that the runners last reported; the oldest, where they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_version: Option<String>,
    /// From when on GitHub gives an agent of that version no jobs, where GitHub says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub runner_version_ends: Option<Time>,
    /// The address at which runners were last registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<String>,
    /// What the pool has left at addresses that its spec does not name any more, until it is gone. Of more than 10 without
    /// pods the oldest are given up, and so is one that GitHub does not show any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_at: Vec<LeftStatus>,
    /// The last value of the annotation `cudarunner.dev/look-again` that was followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked_again: Option<String>,
    /// The pool's scale set on GitHub, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_set: Option<ScaleSetStatus>,
    /// The webhook of `scaling.source: Webhook`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<crate::WebhookStatus>,
    /// The workflow run that proves the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<crate::VerificationStatus>,
    /// The required checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_checks: Option<crate::RequiredChecksStatus>,
    /// The operator that serves the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<crate::OperatorStatus>,
    /// What the pool would have of the GPUs that it shares with pools of other operators: these go by it. Absent where there
    /// are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demand: Option<DemandStatus>,
    /// What is true of the pool now.
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What a pool would have of the GPUs that it shares.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DemandStatus {
    /// Runners that it wants, those that are there included. No more than are there where GPUs are not what it lacks.
    #[schemars(range(min = 0))]
    pub wanted: i32,
    /// Runners up to which it takes what nobody wants.
    #[schemars(range(min = 0))]
    pub most: i32,
}

/// What a pool has left at an address that its spec does not name any more.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftStatus {
    /// The address: of a repository, an organization or an enterprise.
    pub url: String,
    /// The pool's scale set there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_set: Option<ScaleSetStatus>,
    /// Why the address could not be asked, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A scale set on GitHub: what jobs are assigned to before a runner of it takes them.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleSetStatus {
    /// GitHub's number for it; 0 until that is known, because it is on record before it is made.
    pub id: i64,
    /// Its name: the pool's, and the first part of the resource's uid.
    pub name: String,
    /// Its labels, as GitHub has them. Where they are not those of the spec, the condition `QueueServed` says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The runner group that was asked for; the default group where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_group: Option<String>,
    /// The session by which the operator learns of jobs. Nobody can use it without the pool's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Jobs that GitHub may assign to the pool at a time: what can run on the GPUs that are there, at most `maxRunners`. One
    /// more is shown when that has lasted for 12 seconds.
    #[serde(default)]
    pub capacity: i32,
}

/// One runner.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunnerStatus {
    /// Name of the pod and of the entry on GitHub.
    pub name: String,
    /// Node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// UUIDs of its devices, as the gate saw them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// How far it has come: `Unscheduled`, `Preparing`, `Gated`, `Starting`, `Idle`, `Busy`, `Finished`, `Failed` or
    /// `Terminating`.
    pub phase: Word<RunnerPhase>,
    /// What it waits for, in Kubernetes' words: a scheduler's, or a container's with its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Since when its pod exists.
    #[schemars(schema_with = "schema::time")]
    pub since: Time,
}

/// How far a runner has come.
#[derive(
    JsonSchema, Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum RunnerPhase {
    /// Its pod waits for a node.
    Unscheduled,
    /// Its pod has a node and waits for volumes or images.
    Preparing,
    /// The gate is at work.
    Gated,
    /// The gate has passed and the agent starts.
    Starting,
    /// It waits for a job.
    Idle,
    /// It runs a job.
    Busy,
    /// Its job is done.
    Finished,
    /// It ended otherwise.
    Failed,
    /// Its pod is being removed.
    Terminating,
}

/// Why a runner ended without a job done.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    /// Name of the runner.
    pub runner: String,
    /// Node that it was on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// UUID of the device at fault, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Class of the failure, for example `config` or `device`.
    pub class: FailureClass,
    /// The driver's code or a container's exit code, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Name of the driver's code, or of what the gate found, for example `WrongResult`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_name: Option<String>,
    /// Whether other pods use the device too, as the gate saw: what is busy or late may be their doing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// One word for it, as in Events.
    pub reason: String,
    /// What happened, and what to do.
    pub message: String,
    /// When.
    #[schemars(schema_with = "schema::time")]
    pub at: Time,
}

/// A node or device that is quarantined for a while.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineStatus {
    /// The node.
    pub node: String,
    /// UUID of the device, where one is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What is set aside: `Node`, or `Device` for the device alone. Without it the node is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Word<QuarantineScope>>,
    /// Class of the failure.
    pub class: FailureClass,
    /// The driver's code, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Name of the driver's code, or of what the gate found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_name: Option<String>,
    /// What was found.
    #[serde(default)]
    pub message: String,
    /// How often in a row the node has failed: the time doubles with each.
    #[serde(default)]
    pub failures: i32,
    /// The node's boot id then. Another one ends the quarantine: the node was restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Whether the device stays tainted when its time is over, until one runner whose claim tolerates the taint has tried it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retest: bool,
    /// Since when.
    #[schemars(schema_with = "schema::time")]
    pub since: Time,
    /// Until when. Then one runner tries the node; where none does, the entry goes after the same time again, with `retest` after a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_time")]
    pub until: Option<Time>,
}

impl QuarantineStatus {
    /// Whether the device alone is set aside. By another version's word the node is: no runner goes where one may not.
    #[must_use]
    pub fn is_of_device(&self) -> bool {
        let scope = self.scope.as_ref();
        scope.is_some_and(|scope| *scope == QuarantineScope::Device)
    }
}

/// A device that its own driver taints.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaintedDeviceStatus {
    /// The node.
    pub node: String,
    /// The device's name in its pool.
    pub name: String,
    /// UUID of the device, where the driver publishes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The driver.
    pub driver: String,
    /// The taints, as `KEY=VALUE:EFFECT`, or `KEY:EFFECT` where there is no value. NVIDIA's driver gives `gpu.nvidia.com/xid`
    /// with the number of the error, `gpu.nvidia.com/gpu-lost` and `gpu.nvidia.com/unmonitored`.
    #[serde(default)]
    pub taints: Vec<String>,
}

/// What of a node is set aside.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum QuarantineScope {
    /// The node: no runner goes there.
    Node,
    /// The device alone, by a `DeviceTaintRule`: the node's other devices are used on.
    Device,
}

/// How jobs ended on a device.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// UUID of the device.
    pub uuid: String,
    /// Node that it was last seen on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Jobs that ended well or failed there. At 100 this and `failed` are halved, so that old jobs weigh less.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub jobs: i32,
    /// Those of them that failed, or ran out of time.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed: i32,
    /// Whether that is more than chance explains, by the pool's other devices.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspect: bool,
}

/// How jobs ended on several devices.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct OtherDevicesStatus {
    /// Jobs that ended well or failed there. At 10,000 this and `failed` are halved.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub jobs: i32,
    /// Those of them that failed, or ran out of time.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed: i32,
}

/// A label of a node that says something else than the gate found.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StaleLabelStatus {
    /// The node.
    pub node: String,
    /// UUID of the device, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The label.
    pub label: String,
    /// What it says.
    pub value: String,
    /// What the gate found.
    pub found: String,
}
