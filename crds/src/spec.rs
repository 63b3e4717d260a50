//! What a user asks for.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Arch, JobContainers, JobsSpec, Rerun, ScheduleWindow, Webhook, schema};

/// A pool of GitHub Actions runners on GPU nodes: each one proves its GPUs with a CUDA kernel before GitHub hears of it.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "cudarunner.dev",
    version = "v1alpha1",
    kind = "CudaRunner",
    namespaced,
    shortname = "cudar",
    category = "ci",
    status = "crate::CudaRunnerStatus",
    derive = "PartialEq",
    doc = "A pool of GitHub Actions runners on GPU nodes: each one proves its GPUs with a CUDA kernel before GitHub hears of it.",
    validation = Rule::new("self.metadata.name.size() <= 57").message("the name is the start of every runner's name, which may have 63 characters: use at most 57"),
    selectable = ".status.quarantinedNodes",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Online", type_ = "integer", json_path = ".status.online", description = "Runners that wait for a job or run one"),
    printcolumn(name = "Busy", type_ = "integer", json_path = ".status.busy", description = "Runners that run a job"),
    printcolumn(name = "Queued", type_ = "integer", json_path = ".status.queued", description = "Jobs known to wait for this pool"),
    printcolumn(name = "GPU", type_ = "string", json_path = ".status.gpu", description = "GPUs of one runner"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = 1),
    printcolumn(name = "Verified", type_ = "string", json_path = ".status.conditions[?(@.type=='WorkflowVerified')].status", priority = 1)
)]
#[x_kube(validation = Rule::new("!(has(self.replicas) && has(self.scaling))").message("set spec.replicas for a fixed number of runners or spec.scaling for a range, not both"))]
#[x_kube(validation = Rule::new("!(has(self.scaling) && self.scaling.source == 'ScaleSet' && self.registration == 'RegistrationToken')").message("spec.scaling.source ScaleSet takes its runners from a scale set: set spec.registration to ScaleSet or leave it out, or set scaling.source to Poll"))]
#[x_kube(validation = Rule::new("!(has(self.scaling) && self.scaling.source != 'ScaleSet' && self.registration == 'ScaleSet')").message("a scale set says itself how long its queue is: set spec.scaling.source to ScaleSet or leave it out"))]
#[x_kube(validation = Rule::new("!(self.lifetime == 'Persistent' && (self.registration == 'ScaleSet' || (has(self.scaling) && self.scaling.source == 'ScaleSet')))").message("a runner of a scale set takes one job: set spec.lifetime to Ephemeral; or register persistent runners by RegistrationToken, with scaling.source Poll or Webhook"))]
#[x_kube(validation = Rule::new("!(has(self.jobContainers) && self.lifetime == 'Persistent')").message("the container of a job is not cleared for the next job: set spec.lifetime to Ephemeral, or remove spec.jobContainers"))]
#[x_kube(validation = Rule::new("!has(self.jobContainers) || !has(self.preflight) || !has(self.preflight.cudaToolkit) && !has(self.preflight.rustToolchain)").message("jobs with containers bring their toolkits in their own images, and spec.preflight looks at the runner's: remove its cudaToolkit and rustToolchain, or spec.jobContainers"))]
#[x_kube(validation = Rule::new("!has(self.sharedMemory) || !has(self.jobContainers) || !has(self.jobContainers.shmSize) || self.jobContainers.shmSize == '64Mi' || self.jobContainers.shmSize == self.sharedMemory").message("spec.sharedMemory and spec.jobContainers.shmSize both say the size of /dev/shm: remove spec.jobContainers.shmSize"))]
#[x_kube(validation = Rule::new("!(has(self.jobs) && has(self.jobs.allow) && self.lifetime == 'Persistent')").message("on a persistent runner an earlier job can change what later ones are asked by: set spec.lifetime to Ephemeral, or remove spec.jobs.allow"))]
#[x_kube(validation = Rule::new("!has(self.requiredChecks) || has(self.verify)").message("spec.requiredChecks acts only after a green verification: add spec.verify with the workflow and its jobs"))]
pub struct CudaRunnerSpec {
    /// Where the runners register, and with which credentials.
    pub github: GitHubSpec,

    /// The labels that a job asks for with `runs-on`. A job comes here when every label it asks for is among these. Where
    /// absent: the pool's name, `self-hosted`, `Linux`, `X64` or `ARM64`, and `cuda`. Case does not matter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 90), inner(length(min = 1, max = 256)))]
    #[x_kube(validation = Rule::new("self.size() > 0").message("name at least one label, or leave spec.labels out for the pool's name, cuda and the labels that GitHub adds"))]
    #[x_kube(validation = Rule::new("self.all(l, l.matches('^[^,\\\\s\\\\p{Cc}\\\\p{Cf}]+$'))").message("a label has no spaces, no commas and no invisible characters"))]
    pub labels: Vec<String>,

    /// `Ephemeral`: one job for each runner, then a fresh pod. `Persistent`: a runner that keeps its name from job to job.
    #[serde(default)]
    pub lifetime: Lifetime,

    /// How a runner obtains its registration.
    #[serde(default)]
    pub registration: RegistrationMode,

    /// The number of runners to keep, 1 where neither this nor `scaling` is given. `kubectl scale` and budgets in percent
    /// need it written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: Option<i32>,

    /// A range of runners that follows the queue, instead of `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,

    /// The architecture of the pool's nodes, and so of the runner's image.
    #[serde(default)]
    pub arch: Arch,

    /// The GPUs that each runner gets.
    #[serde(default)]
    pub gpu: Gpu,

    /// The test that a runner's GPUs pass before it registers.
    #[serde(default)]
    pub smoke: Smoke,

    /// The size of `/dev/shm` where jobs run, for example `8Gi`: PyTorch's data loaders and NCCL want more than the node's 64
    /// MiB. It is a volume in memory: what lies there counts as the container's memory, also against its limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,5}(Mi|Gi|Ti|M|G|T)$"))]
    pub shared_memory: Option<String>,

    /// The jobs that the pool takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs: Option<JobsSpec>,

    /// Has jobs with `container:` run in their own images, on the proven GPU. Where it is absent, jobs run in the runner's
    /// image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_containers: Option<JobContainers>,

    /// What the runner's image and network must offer, tried before the GPU is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Preflight>,

    /// A workflow that proves the whole path: it is started, watched and judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,

    /// Makes the verified jobs required status checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_checks: Option<RequiredChecks>,

    /// Runs jobs again that a GPU or a node ended. Where it is absent, none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<Rerun>,

    /// What happens to running jobs when this resource is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// How long a deletion may take, for example `10m`, at most `120h`: GitHub lets no job run longer. After that the
    /// resource goes, and an Event names what was left.
    #[serde(default = "default_teardown_timeout")]
    #[schemars(
        regex(pattern = r"^([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h))+$"),
        length(max = 32)
    )]
    #[x_kube(validation = Rule::new("duration(self) <= duration('120h')").message("a deletion waits for at most 120h, as long as GitHub lets a job run: give less"))]
    pub teardown_timeout: String,

    /// A pod template merged over the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pod_template")]
    pub template: Option<serde_json::Value>,
}

/// Where runners register.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GitHubSpec {
    /// The repository, organization or enterprise, as in the browser: `https://github.com/OWNER/REPO`,
    /// `https://github.com/ORG`, `https://github.com/enterprises/NAME`, on github.com, ghe.com or an Enterprise Server.
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('^https?://[^/@\\s?#]+/[^/\\s?#]+(/[^/\\s?#]+)?/?$')").message("give the address of a repository (https://github.com/OWNER/REPO), an organization (https://github.com/ORG) or an enterprise (https://github.com/enterprises/NAME), without user, query or further path"))]
    pub url: String,

    /// The Secret, in this namespace, with the keys `app-id`, `private-key` and, where GitHub is not to be asked for it,
    /// `installation-id` of a GitHub App, or with `token`. Secrets of Actions Runner Controller are read as they are.
    pub credentials_ref: SecretReference,

    /// The runner group, for organizations and enterprises. The default group where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[^\p{Cc}\p{Cf}]+$"))]
    pub runner_group: Option<String>,

    /// A proxy for the way to GitHub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,

    /// A ConfigMap, in this namespace, with the certificate authorities (PEM) of an Enterprise Server or a proxy that inspects TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<KeyReference>,
}

/// A Secret by name, in the resource's own namespace.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
}

/// One key of an object, in the resource's own namespace.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct KeyReference {
    /// Name of the object.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A proxy and the hosts that are reached without it.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Address of the proxy, `http://HOST:PORT` or `https://HOST:PORT`, without user and password.
    #[schemars(length(max = 512), regex(pattern = r"^https?://[^/@\s]+/?$"))]
    pub url: String,
    /// The Secret, in this namespace, with the keys `username` and `password` that the proxy asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<SecretReference>,
    /// Hosts and domain suffixes that are reached directly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(max = 253)))]
    pub no_proxy: Vec<String>,
}

/// How long a runner lives.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Lifetime {
    /// One job for each runner.
    #[default]
    Ephemeral,
    /// Many jobs for each runner, under one name.
    Persistent,
}

/// How a runner obtains its registration.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum RegistrationMode {
    /// A just-in-time configuration, made when the gate has passed.
    #[default]
    JitConfig,
    /// A registration token and `config.sh`, for persistent runners and old servers.
    RegistrationToken,
    /// GitHub's scale-set service: jobs are assigned to the pool as a whole, and its runners take them.
    ScaleSet,
}

/// A range of runners that follows the queue: `minRunners` and one for each job that waits or runs, up to `maxRunners`.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.minRunners <= self.maxRunners").message("minRunners may not be larger than maxRunners"))]
#[x_kube(validation = Rule::new("!has(self.schedule) || self.schedule.all(w, w.minRunners <= self.maxRunners)").message("minRunners of a window in scaling.schedule may not be larger than maxRunners"))]
#[x_kube(validation = Rule::new("!has(self.webhook) || self.source == 'Webhook'").message("scaling.webhook is for scaling.source Webhook: set the source, or remove scaling.webhook"))]
pub struct Scaling {
    /// Runners that wait even when nothing is queued.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_runners: i32,
    /// Runners at most.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_runners: i32,
    /// From where the length of the queue is known.
    #[serde(default)]
    pub source: ScalingSource,
    /// The webhook of `source: Webhook`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// Windows of time with runners that wait. Of `minRunners` and the windows that are open the largest counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub schedule: Vec<ScheduleWindow>,
    /// What the pool gets of GPUs that are short, beside the other pools of its namespace: twice the weight is twice the
    /// runners. Namespaces share them evenly, unless the operator's `namespaceWeights` say otherwise.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 10))]
    pub weight: i32,
}

fn default_weight() -> i32 {
    1
}

/// From where the length of the queue is known.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum ScalingSource {
    /// GitHub's scale-set service, by long poll. Runners then register as those of a scale set, too.
    #[default]
    ScaleSet,
    /// Reading the queue of a repository when a `workflow_job` webhook comes.
    Webhook,
    /// Reading the queue of a repository twice a minute.
    Poll,
}

/// The GPUs of one runner.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.count) && has(self.claimTemplate))").message("ask for GPUs by gpu.count of gpu.resource, or by gpu.claimTemplate, not both"))]
pub struct Gpu {
    /// The extended resource that stands for a GPU or a slice of one, for example `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb` or `nvidia.com/gpu.shared`.
    #[serde(default = "default_resource")]
    #[schemars(
        length(max = 253),
        regex(
            pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
        )
    )]
    pub resource: String,

    /// How many of them each runner gets, 1 where neither this nor `claimTemplate` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub count: Option<i32>,

    /// A ResourceClaimTemplate, in this namespace, for clusters with dynamic resource allocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub claim_template: Option<String>,

    /// The lowest compute capability that will do, for example `7.0`. The gate compares it with the device itself.
    #[serde(default = "default_compute_capability")]
    #[schemars(length(max = 8), regex(pattern = r"^[0-9]{1,2}\.[0-9]$"))]
    pub min_compute_capability: String,

    /// The lowest CUDA version that the driver must support, for example `12.0`.
    #[serde(default = "default_cuda_version")]
    #[schemars(length(max = 8), regex(pattern = r"^[0-9]{1,2}\.[0-9]{1,2}$"))]
    pub min_cuda_version: String,

    /// Whether the GPUs of a runner with several must reach one another's memory.
    #[serde(default)]
    pub peer_access: Enforcement,
}

/// The test that a runner's GPUs pass before it registers.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Smoke {
    /// Seconds that the test of one device may take, the driver's start included. Each further device adds a third of it,
    /// at least ten seconds, or all of it where it is less than ten.
    #[serde(default = "default_smoke_timeout")]
    #[schemars(range(min = 1, max = 600))]
    pub timeout_seconds: i32,

    /// Whether a device must offer concurrent access to managed memory.
    #[serde(default)]
    pub managed_memory: Enforcement,

    /// Percent of a device's memory that must be free, 0 for any. Shared devices, slices, and GPUs that share the host's
    /// memory are not held to it.
    #[serde(default = "default_free_memory")]
    #[schemars(range(min = 0, max = 100))]
    pub min_free_memory_percent: i32,

    /// Minutes for which a node that failed is quarantined; doubled each time it fails again, up to a day.
    #[serde(default = "default_quarantine")]
    #[schemars(range(min = 1, max = 1440))]
    pub quarantine_minutes: i32,

    /// What the containers `prepare` and `main` may use, each, instead of the operator's own numbers. `main` has it for as
    /// long as the runner is there, and only waits. For namespaces whose quota, `LimitRange` or policy has its own idea. The
    /// gate has what `spec.template` gives the container `runner`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ContainerResources>,
}

/// What a container may use beside devices.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ContainerResources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// The most that it gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

/// What becomes of a device that lacks something.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Enforcement {
    /// The report says so.
    #[default]
    Report,
    /// It fails the gate.
    Require,
}

impl Enforcement {
    /// The word, as in the spec.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Report => "Report",
            Self::Require => "Require",
        }
    }
}

/// What the runner's image and network must offer.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// Commands that must be on the PATH.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 100),
        inner(
            length(min = 1, max = 128),
            regex(pattern = r"^[A-Za-z0-9._+][A-Za-z0-9._+-]*$")
        )
    )]
    pub commands: Vec<String>,
    /// The CUDA toolkit that the image must hold, for example `>=12.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^(>=)?[0-9]{1,2}\.[0-9]{1,2}$"))]
    pub cuda_toolkit: Option<String>,
    /// The Rust toolchain that should be installed already. A missing one is a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    pub rust_toolchain: Option<String>,
    /// MiB that must be free where the agent keeps the files of jobs, 512 where absent and anything else of the image is asked for.
    #[serde(
        default,
        rename = "minDiskMiB",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 0, max = 16_777_216))]
    pub min_disk_mib: Option<i32>,
    /// Addresses that must answer, over HTTP and in any way, within 5 seconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 50),
        inner(length(max = 512), regex(pattern = r"^https?://[^\s]+$"))
    )]
    pub egress: Vec<String>,
}

/// A workflow that proves the whole path.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verify {
    /// File name of the workflow, for example `cuda.yml`. It needs the trigger `workflow_dispatch`.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[^/\\\p{Cc}\p{Cf}]+$"))]
    pub workflow: String,
    /// The branch or tag to run it on.
    #[serde(rename = "ref")]
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = r"^[^\p{Cc}\p{Cf}\s~^:?*\[\\]+$")
    )]
    pub git_ref: String,
    /// Seconds within which each job must be picked up by a runner of this pool.
    #[serde(default = "default_pickup")]
    #[schemars(range(min = 1, max = 3600))]
    pub pickup_seconds: i32,
    /// The repository with the workflow, `OWNER/NAME`. Needed only where `spec.github.url` is an organization or an
    /// enterprise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 256),
        regex(pattern = r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")
    )]
    pub repository: Option<String>,
    /// How long after a verification the next one runs, for example `24h`. At least `10m`, because each is a run of the
    /// workflow on a GPU, and at most `8760h`. Without it one runs only after a change, or on request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        regex(pattern = r"^([0-9]{1,6}(\.[0-9]{1,3})?(m|h))+$"),
        length(max = 32)
    )]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10m') && duration(self) <= duration('8760h')").message("each verification is a run of the workflow on a GPU: give at least 10m and at most 8760h"))]
    pub every: Option<String>,
    /// The jobs that must succeed on this pool.
    #[schemars(length(min = 1, max = 100))]
    pub jobs: Vec<VerifiedJob>,
}

/// A job that must succeed.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedJob {
    /// Name of the job in the workflow.
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = r"^[^\p{Cc}\x{202A}-\x{202E}\x{2066}-\x{2069}]+$")
    )]
    pub name: String,
    /// What its log must report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tests: Option<ExpectedTests>,
}

/// Counts that a job's log must report in lines of the form `test result: ok. N passed`.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ExpectedTests {
    /// Sum of the passed tests.
    #[schemars(range(min = 0))]
    pub passed: i32,
}

/// Makes the verified jobs required status checks.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequiredChecks {
    /// Where the requirement is written.
    #[serde(default)]
    pub mode: ChecksMode,
    /// The branches that require the checks.
    #[schemars(length(min = 1, max = 50))]
    pub branches: Vec<CheckedBranch>,
    /// Require a name even before a pull request has reported it.
    #[serde(default)]
    pub allow_unseen: bool,
}

/// Where a requirement is written.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum ChecksMode {
    /// Added to the protection that the branch has.
    #[default]
    BranchProtection,
    /// A ruleset of the pool's own.
    Ruleset,
}

/// A branch that requires the checks.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedBranch {
    /// Name of the branch.
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = r"^[^\p{Cc}\p{Cf}\s~^:?*\[\\]+$")
    )]
    pub name: String,
    /// Leave the branch alone while it has no protection.
    #[serde(default)]
    pub if_protected: bool,
}

/// What happens to running jobs when the resource is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum DeletionPolicy {
    /// Busy runners finish their job first, within `teardownTimeout`.
    #[default]
    WaitForJobs,
    /// Busy runners are stopped, which cancels their jobs.
    Now,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            resource: default_resource(),
            count: None,
            claim_template: None,
            min_compute_capability: default_compute_capability(),
            min_cuda_version: default_cuda_version(),
            peer_access: Enforcement::default(),
        }
    }
}

impl Default for Smoke {
    fn default() -> Self {
        Self {
            timeout_seconds: default_smoke_timeout(),
            managed_memory: Enforcement::default(),
            min_free_memory_percent: default_free_memory(),
            quarantine_minutes: default_quarantine(),
            resources: None,
        }
    }
}

impl Default for CudaRunnerSpec {
    /// The defaults of every field, with an empty address and no credentials: a start for tests and tools.
    fn default() -> Self {
        Self {
            github: GitHubSpec {
                url: String::new(),
                credentials_ref: SecretReference {
                    name: String::new(),
                },
                runner_group: None,
                proxy: None,
                ca_bundle_ref: None,
            },
            labels: vec![],
            lifetime: Lifetime::default(),
            registration: RegistrationMode::default(),
            replicas: None,
            scaling: None,
            arch: Arch::default(),
            gpu: Gpu::default(),
            smoke: Smoke::default(),
            shared_memory: None,
            jobs: None,
            job_containers: None,
            preflight: None,
            verify: None,
            required_checks: None,
            rerun: None,
            deletion_policy: DeletionPolicy::default(),
            teardown_timeout: default_teardown_timeout(),
            template: None,
        }
    }
}

/// The labels of a [`CudaRunner`] as a Kubernetes label selector's match, `cudarunner.dev/pool=NAME`.
#[must_use]
pub fn pod_labels(pool: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (crate::POOL_LABEL.to_owned(), pool.to_owned()),
        (
            "app.kubernetes.io/managed-by".to_owned(),
            "cuda-runner-operator".to_owned(),
        ),
    ])
}

fn default_resource() -> String {
    "nvidia.com/gpu".to_owned()
}

fn default_compute_capability() -> String {
    "7.0".to_owned()
}

fn default_cuda_version() -> String {
    "12.0".to_owned()
}

fn default_smoke_timeout() -> i32 {
    30
}

fn default_free_memory() -> i32 {
    90
}

fn default_quarantine() -> i32 {
    30
}

fn default_pickup() -> i32 {
    30
}

fn default_teardown_timeout() -> String {
    "10m".to_owned()
}
