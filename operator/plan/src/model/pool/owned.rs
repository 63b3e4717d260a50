//! What in a runner's pod is ours, by name. A template may take none of it; [the pod](crate::pod)
//! is built from the same names.

pub use gate_report::contract::{
    AGENT_DIR, EXTERNALS_DIR, REGISTRATION_DIR, TERMINATION_LOG, TOKEN_DIR, WORK_DIR,
};
use gate_report::contract::{GATE_PROGRAM, GPU, MAIN, PREPARE, RUNNER_INIT_PROGRAM, script};

/// Folder of the certificate authorities for GitHub.
pub const CA_DIR: &str = "/etc/cuda-runner/github-ca";
/// Our folders in containers, and the file of the hooks' marks.
pub const PATHS: [&str; 4] = [REGISTRATION_DIR, TOKEN_DIR, CA_DIR, TERMINATION_LOG];
/// What the gate runs from, in the container that is the agent's later: programs and libraries of its image, and what the
/// node shows of itself and of the driver. A star stands for the rest of a name. Nothing of a template's is mounted there,
/// beneath, or over it; toolkits, caches and certificates have other places.
pub const OF_THE_GATE: [&str; 15] = [
    GATE_PROGRAM,
    RUNNER_INIT_PROGRAM,
    "/bin",
    "/dev/null",
    "/dev/nvidia*",
    "/etc/ld.so*",
    "/lib*",
    "/proc",
    "/sbin",
    "/sys",
    "/usr/bin",
    "/usr/lib*",
    "/usr/local/lib*",
    "/usr/local/nvidia",
    "/usr/sbin",
];

/// How the kubelet reads the hooks' marks.
pub const TERMINATION_POLICY: &str = "FallbackToLogsOnError";

/// The volume behind [`REGISTRATION_DIR`].
pub const REGISTRATION: &str = "registration";
/// The volume behind [`TOKEN_DIR`].
pub const REGISTRAR_TOKEN: &str = "registrar-token";
/// The volume behind [`CA_DIR`].
pub const GITHUB_CA: &str = "github-ca";
/// Our volumes.
pub const VOLUMES: [&str; 3] = [REGISTRATION, REGISTRAR_TOKEN, GITHUB_CA];

/// Where a job's container has the agent's [`WORK_DIR`], as on GitHub's own machines.
pub const JOB_WORK_DIR: &str = "/__w";
/// Where it has what actions need of the agent.
pub const JOB_EXTERNALS_DIR: &str = "/__e";
/// Where a job has its shared memory.
pub const SHM_DIR: &str = "/dev/shm";
/// Folders that are ours as well where jobs bring their containers: the agent's or the job's, or common to both.
pub const JOB_PATHS: [&str; 8] = [
    AGENT_DIR,
    EXTERNALS_DIR,
    WORK_DIR,
    JOB_WORK_DIR,
    JOB_EXTERNALS_DIR,
    "/__t",
    "/github",
    SHM_DIR,
];

/// The volume behind [`AGENT_DIR`].
pub const AGENT_FILES: &str = "agent-files";
/// The volume behind [`WORK_DIR`].
pub const JOB_WORK: &str = "job-work";
/// The volume behind [`EXTERNALS_DIR`].
pub const JOB_EXTERNALS: &str = "job-externals";
/// The volume behind [`SHM_DIR`].
pub const JOB_SHM: &str = "job-shm";
/// Our volumes beside [`VOLUMES`], where jobs bring their containers. Without those, the last is there for
/// `spec.sharedMemory`.
pub const JOB_VOLUMES: [&str; 4] = [AGENT_FILES, JOB_WORK, JOB_EXTERNALS, JOB_SHM];

/// The pod's name for its claim of GPUs.
pub const CLAIM: &str = "gpu";

/// What the name of a runner's pod is followed by in that of the Secret with what its job's containers need. Only a job
/// makes one.
pub const JOB_SECRET: &str = "-job";

/// Our containers, by the names that they have in a pod.
pub const CONTAINERS: [&str; 3] = [PREPARE, GPU, MAIN];

/// The agent's variables for job hooks, and ours by which our hooks find the team's.
pub const HOOKS: [(&str, &str); 2] = [
    ("ACTIONS_RUNNER_HOOK_JOB_STARTED", script::TEAM_STARTED),
    ("ACTIONS_RUNNER_HOOK_JOB_COMPLETED", script::TEAM_COMPLETED),
];

/// Has the agent say by its exit code that GitHub refused its version.
pub const DEPRECATED_EXIT_CODE: &str = "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE";
/// Has `run.sh` pass a signal on to the agent. GitHub's own image sets it.
pub const TRAP_SIGNALS: &str = "RUNNER_MANUALLY_TRAP_SIG";
/// What the agent calls for a job's containers, instead of Docker.
pub const CONTAINER_HOOKS: &str = "ACTIONS_RUNNER_CONTAINER_HOOKS";
/// Has the agent fail a job without `container:` while it is set up.
pub const REQUIRE_JOB_CONTAINER: &str = "ACTIONS_RUNNER_REQUIRE_JOB_CONTAINER";
/// Variables by which other images register a runner. Here the operator does, and no job sees them: one is a token.
pub const WITHOUT_EFFECT: [&str; 7] = [
    "RUNNER_NAME",
    "RUNNER_URL",
    "RUNNER_TOKEN",
    "RUNNER_LABELS",
    "RUNNER_GROUP",
    "RUNNER_EPHEMERAL",
    "RUNNER_WORKDIR",
];

/// Which devices the container runtime shows.
pub const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
/// The value of [`VISIBLE_DEVICES`] with which there are none, whatever the image asks for.
pub const NO_DEVICES: &str = "void";
/// Where programs look for the proxy; each in capitals, too.
pub const PROXY: [&str; 3] = ["http_proxy", "https_proxy", "no_proxy"];
/// What the name and the password of the proxy's user are called, from which the kubelet makes the values of [`PROXY`].
pub const PROXY_USER: [&str; 2] = ["CUDA_RUNNER_PROXY_USERNAME", "CUDA_RUNNER_PROXY_PASSWORD"];
/// Where programs look for certificate authorities.
pub const AUTHORITIES: [&str; 2] = ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"];

/// Label: who manages a pod, by Kubernetes' convention.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Whether a label or an annotation is the project's own.
#[must_use]
pub fn is_own_key(key: &str) -> bool {
    let domain = key.split_once('/').map(|(domain, _)| domain);
    domain.is_some_and(|d| {
        d == cudarunner_crds::GROUP || d.ends_with(&format!(".{}", cudarunner_crds::GROUP))
    })
}
