//! The document itself: `GET /api/fleet`, and what `kubectl cudarunner top` shows.
//!
//! Its fields are an interface. New ones may come; a reader passes over what it does not know.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a reader compares before it reads on.
pub const API_VERSION: &str = "cudarunner.dev/fleet/v1";

/// Nodes that are listed at most.
pub const MAX_NODES: usize = 1_000;
/// Devices of one node that are listed at most: shared GPUs count once for each share.
pub const MAX_DEVICES: usize = 64;
/// Pools that are listed at most.
pub const MAX_POOLS: usize = 1_000;
/// Gates and jobs that are listed at most, of all pools together.
pub const MAX_HISTORY: usize = 2_000;
/// Jobs that wait for one pool that are listed at most, and those that no pool serves.
pub const MAX_WAITING: usize = 100;
/// Jobs that wait that are listed at most, of all pools together.
pub const MAX_WAITING_OF_ALL: usize = 2_000;

/// The fleet at one moment.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fleet {
    /// `cudarunner.dev/fleet/v1`.
    pub api_version: String,
    /// When this was put together.
    #[schemars(schema_with = "time")]
    pub generated_at: Timestamp,
    /// The operator that knows it; absent where the resources alone were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<Operator>,
    /// Those of the other operators, where several answered `kubectl cudarunner` and their documents were put together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_operators: Vec<Operator>,
    /// What `kubectl cudarunner` could not read, and what that means for this, in sentences without a full stop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_read: Vec<String>,
    /// The pools that no operator serves, as far as `kubectl cudarunner` can tell, in a sentence without a full stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_served: Option<String>,
    /// How many devices are in each state, of all nodes, also of those beyond the list.
    pub devices: BTreeMap<DeviceState, u32>,
    /// Whether nodes could be read. Where they could not, only those are listed on which runners are.
    pub nodes_visible: bool,
    /// Whether pods of others could be read. Where they could not, what they hold looks free.
    pub others_visible: bool,
    /// The nodes with GPUs, by name, at most 1,000.
    pub nodes: Vec<Node>,
    /// Nodes beyond those listed.
    pub nodes_not_listed: u32,
    /// The pools, by namespace and name, at most 1,000.
    pub pools: Vec<Pool>,
    /// Pools beyond those listed.
    pub pools_not_listed: u32,
    /// Jobs that wait for a runner that no pool has, the oldest first, at most 100. Of repositories alone, whose jobs GitHub
    /// lists; a job is meant that asks for `self-hosted`, or for a label that a pool there has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unserved: Vec<WaitingJob>,
    /// Such jobs beyond those listed.
    #[serde(default)]
    pub unserved_not_listed: u32,
    /// The last gates and jobs of all pools, newest first, at most 2,000.
    pub history: Vec<Event>,
    /// GPU-hours of the last runners that ended; absent where nobody has counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<Hours>,
}

/// The operator's replica that answered.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operator {
    /// Its name in the leader election.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Since when this process knows anything: what it remembers by itself begins then.
    #[schemars(schema_with = "time")]
    pub since: Timestamp,
    /// Whether it acts. One that stands by does not know which jobs wait and which job a runner has, and counts no hours.
    pub leads: bool,
}

/// What a device is used for.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum DeviceState {
    /// No pod holds it.
    Free,
    /// A runner comes up on it: images, the gate, the agent.
    Gate,
    /// A runner on it waits for a job.
    Idle,
    /// A runner on it runs a job.
    Job,
    /// A runner on it has ended, and its pod still holds the device.
    Ending,
    /// No pod holds it, and the last gate on it failed; or a failed runner still holds it.
    Failed,
    /// No pod holds it, and it or its node is quarantined.
    Quarantined,
    /// A pod holds it that is no runner of a pool shown here.
    NotOurs,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

impl DeviceState {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Job,
        Self::Idle,
        Self::Gate,
        Self::Ending,
        Self::Free,
        Self::NotOurs,
        Self::Failed,
        Self::Quarantined,
    ];

    /// In words.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Gate => "gate",
            Self::Idle => "idle",
            Self::Job => "job",
            Self::Ending => "ending",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
            Self::NotOurs => "not ours",
            Self::Unknown => "unknown",
        }
    }
}

/// A node with GPUs.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it is ready; unknown where nodes could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Whether it takes no new pods.
    #[serde(default)]
    pub cordoned: bool,
    /// GPUs that it offers to pods, as a count: a node tells no UUIDs. Absent where devices are claimed, or nodes could not
    /// be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// What kind of GPU it has, as its label or a gate says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// One entry for each GPU that is known, at most 64.
    pub devices: Vec<Device>,
}

/// A device, or a place of one whose UUID nobody has seen yet.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its UUID, where a gate has seen it and it is certain that it is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What it is used for.
    pub state: DeviceState,
    /// Since when, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub since: Option<Timestamp>,
    /// The pool, `NAMESPACE/NAME`: of the runner, or of the quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The runner that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// The job that runs on it, where GitHub has said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// Why it is quarantined or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Until when it is quarantined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub until: Option<Timestamp>,
}

impl Device {
    /// One of which no more is known.
    #[must_use]
    pub fn new(state: DeviceState) -> Self {
        Self {
            uuid: None,
            state,
            since: None,
            pool: None,
            runner: None,
            job: None,
            message: None,
            until: None,
        }
    }
}

/// A job.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// GitHub's number for it, where it is known: while it waits in the queue of a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<i64>,
    /// Its name, or its id in the workflow.
    pub name: String,
    /// Repository of the workflow, `OWNER/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Name of the workflow, or of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// GitHub's number for the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<i64>,
    /// Address of the job, or of its run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A pool.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Address on GitHub of the repository, organization or enterprise.
    pub url: String,
    /// Labels of its runners: a job comes to them that asks for none but these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Whether it does what was asked.
    pub ready: bool,
    /// The conditions that are not as wished, most urgent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Held>,
    /// GPUs of one runner, for example `1 x nvidia.com/gpu`.
    pub gpu: String,
    /// Runner pods that have not ended.
    pub runners: i32,
    /// Runners whose pod waits for a node, an image or a GPU.
    pub pending: i32,
    /// Runners whose gate is at work.
    pub gated: i32,
    /// Runners that wait for a job or run one.
    pub online: i32,
    /// Runners that run a job.
    pub busy: i32,
    /// How jobs ended on its devices, as far as its status keeps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceJobs>,
    /// How jobs ended on devices for which that list has no place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_devices: Option<OtherDevices>,
    /// Entries in its quarantine.
    pub quarantined: u32,
    /// The jobs that wait for it.
    pub queue: Waiting,
}

impl Pool {
    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A condition that is not as wished.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Type of the condition.
    #[serde(rename = "type")]
    pub type_: String,
    /// Its reason.
    pub reason: String,
    /// What is the matter, and what to do.
    pub message: String,
}

/// How the jobs of a pool ended on one device.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceJobs {
    /// UUID of the device.
    pub uuid: String,
    /// Node that it was last seen on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Jobs that ended well or failed there; at 100 this and `failed` are halved.
    pub jobs: i32,
    /// Those of them that failed, or ran out of time.
    pub failed: i32,
    /// Whether that is more than chance explains, by the pool's other devices.
    pub suspect: bool,
}

/// How the jobs of a pool ended on several devices.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherDevices {
    /// Jobs that ended well or failed there; at 10,000 this and `failed` are halved.
    pub jobs: i32,
    /// Those of them that failed, or ran out of time.
    pub failed: i32,
}

/// The jobs that wait for a pool.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// How many.
    pub jobs: i32,
    /// The one of the oldest run, where GitHub lists them and this process has read the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Job>,
    /// Why it waits, in the words of `kubectl cudarunner why`; absent where no job waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When these were listed; absent where nobody has listed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub as_of: Option<Timestamp>,
    /// The jobs that are known by name, the oldest first, at most 100, and 2,000 of all pools together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<WaitingJob>,
    /// Jobs beyond those listed.
    #[serde(default)]
    pub waiting_not_listed: u32,
}

/// A job that waits for a runner.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingJob {
    /// The job.
    #[serde(flatten)]
    pub job: Job,
    /// The labels that its `runs-on` asks for.
    pub labels: Vec<String>,
    /// Since when it waits, where GitHub says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub since: Option<Timestamp>,
}

/// A gate, a job or a runner that has ended.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When. Of a gate that passed, when its pod was made.
    #[schemars(schema_with = "time")]
    pub at: Timestamp,
    /// What it was.
    pub kind: EventKind,
    /// How it ended: `passed`, the reason of a failure, or a job's conclusion; `unknown` until GitHub has said that.
    pub result: String,
    /// Whether that is a failure.
    pub failed: bool,
    /// The pool, `NAMESPACE/NAME`.
    pub pool: String,
    /// The runner.
    pub runner: String,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// UUIDs of the devices that it was on, or that is at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// The job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// What happened, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum EventKind {
    /// A gate.
    Gate,
    /// A job.
    Job,
    /// A runner that failed, and not in its gate: it never came so far, or its agent, its pod or its node ended.
    Runner,
    /// A kind of a later version.
    #[serde(other)]
    Unknown,
}

/// GPU-hours of runners that ended.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hours {
    /// When the first of these runners ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub from: Option<Timestamp>,
    /// How many runners these are. The operator keeps the last 1,000.
    pub runners: u32,
    /// GPU-seconds, by pool and repository.
    pub rows: Vec<HoursRow>,
}

/// GPU-seconds: seconds, times the devices that the runners held.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HoursRow {
    /// The pool, `NAMESPACE/NAME`.
    pub pool: String,
    /// Repository of the jobs; absent for runners that ended without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Runners that ended.
    pub runners: u32,
    /// Until the runner was online.
    pub gate_seconds: u64,
    /// Online, without a job.
    pub idle_seconds: u64,
    /// With a job.
    pub job_seconds: u64,
    /// Of runners that came to nothing.
    pub lost_seconds: u64,
}

fn time(_: &mut schemars::SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// The document's JSON schema. A field without a value is left out, never null.
#[must_use]
pub fn schema() -> Schema {
    let mut schema = schemars::generate::SchemaSettings::draft2020_12()
        .with_transform(schemars::transform::RecursiveTransform(without_null))
        .into_generator()
        .into_root_schema_for::<Fleet>();
    schema.insert("title".to_owned(), API_VERSION.into());
    schema
}

fn without_null(schema: &mut Schema) {
    schema.remove("default");
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice["type"] != "null");
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            for (key, value) in only {
                schema.insert(key, value);
            }
        }
    }
}
