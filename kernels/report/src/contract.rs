//! The names that all who meet in a runner's pod must write alike: the operator, which makes the pod; the gate; the hooks
//! of the agent; and whoever plays one of them in a test or a benchmark.
//!
//! The scripts (`kernels/hooks`, `kernels/report/src/preflight.sh`, the agent's start and its probes) cannot read these
//! constants. Tests beside them compare. Names of the agent's own, such as `ACTIONS_RUNNER_HOOK_JOB_STARTED`, are
//! GitHub's and not here: the simulated agent has them a second time, so that a wrong one is noticed.

/// The container of a template that describes the agent's: what it says goes to [`GPU`].
pub const RUNNER: &str = "runner";

/// The init container that has the pod's token and no GPU: it brings what the others need.
pub const PREPARE: &str = "prepare";
/// The restartable init container that has the GPU: first the gate's image, then the runner's.
pub const GPU: &str = "gpu";
/// The main container: it ends as the agent did.
pub const MAIN: &str = "main";

/// The gate's program in its own image. No other image has a file there: by that [`GPU`] knows which one it is in.
pub const GATE_PROGRAM: &str = "/cuda-smoke";
/// In the gate's image, what becomes [`file::RUNNER_INIT`].
pub const RUNNER_INIT_PROGRAM: &str = "/runner-init";
/// Folder of the agent's jobs; its disk is asked for free space.
pub const WORK_DIR: &str = "/home/runner/_work";

/// Memory-backed folder that these containers share. The pod's mount; the hooks have it as their default.
pub const REGISTRATION_DIR: &str = "/run/cuda-runner";
/// Memory-backed folder in [`PREPARE`] and [`MAIN`] alone, of a pod whose jobs name their own image: what the agent runs and
/// knows is here, where no code of a job comes.
pub const AGENT_DIR: &str = "/run/cuda-runner-agent";
/// In [`MAIN`] of such a pod, the volume that is `/__e` in [`GPU`]: the hook copies there what actions need of the agent's.
pub const EXTERNALS_DIR: &str = "/run/cuda-runner-externals";
/// Folder of the pod's service-account token, in [`PREPARE`] alone.
pub const TOKEN_DIR: &str = "/var/run/secrets/cudarunner.dev";
/// The token's name in [`TOKEN_DIR`].
pub const TOKEN_NAME: &str = "token";
/// Both together. The kubelet writes and renews it, [`PREPARE`] reads it for each request.
pub const TOKEN_FILE: &str = "/var/run/secrets/cudarunner.dev/token";
/// The container's termination message, by Kubernetes' default. The gate and the hooks write it, the operator reads it.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// Files in [`REGISTRATION_DIR`] and, where there is one, in [`AGENT_DIR`].
pub mod file {
    /// The first process of [`GPU`](super::GPU) and [`MAIN`](super::MAIN). [`PREPARE`](super::PREPARE) brings it.
    pub const RUNNER_INIT: &str = "bin/runner-init";
    /// The gate's environment, a JSON object, from [`PREPARE`](super::PREPARE): the gate has this and nothing else, so
    /// that nothing in a template's reaches it.
    pub const SETTINGS: &str = "gate.json";
    /// What [`PREPARE`](super::PREPARE) got for the pod's token. Gone before the agent starts.
    pub const TICKET: &str = "ticket";
    /// The gate's summary: every device passed. Written before the registrar is told, because the change of the image
    /// may come before its answer.
    pub const PASSED: &str = "passed";
    /// The agent has been online. The readiness probe of [`GPU`](super::GPU) writes it.
    pub const ONLINE: &str = "online";
    /// The agent was started. Who finds it at its own start was cut off.
    pub const STARTED: &str = "started";
    /// The exit code of the gate that failed, or of the agent, as text. [`MAIN`](super::MAIN) ends with it.
    pub const EXIT: &str = "exit";
    /// The termination message that went with [`EXIT`]: a container that is restarted before the pod ends says it again.
    pub const MESSAGE: &str = "message";
    /// What the look at the runner's image found.
    pub const PREFLIGHT: &str = "preflight";
    /// A just-in-time configuration. Our program writes it, the agent's start reads and removes it.
    pub const JIT_CONFIG: &str = "jitconfig";
    /// A registration token; as [`JIT_CONFIG`].
    pub const TOKEN: &str = "token";
    /// There for as long as a job runs. The hooks make and remove it, the readiness probe looks.
    pub const BUSY: &str = "busy";
    /// The hook before a job. [`PREPARE`](super::PREPARE) brings this and the other scripts.
    pub const JOB_STARTED: &str = "job-started.sh";
    /// The hook before a job of a pool that does not take every job: it asks, and goes on with [`JOB_STARTED`].
    pub const ALLOW: &str = "allow.sh";
    /// The hook after a job.
    pub const JOB_COMPLETED: &str = "job-completed.sh";
    /// Runs the team's own hook, for ours.
    pub const TEAM_HOOK: &str = "team-hook.sh";
    /// What the agent calls for jobs with a container of their own, in [`AGENT_DIR`](super::AGENT_DIR).
    pub const CONTAINERS: &str = "containers.sh";
    /// With which that hook asks for the job's container, in [`AGENT_DIR`](super::AGENT_DIR).
    pub const JOB_TICKET: &str = "job-ticket";
    /// Where the job's container takes steps, in [`REGISTRATION_DIR`](super::REGISTRATION_DIR).
    pub const JOB_SOCKET: &str = "job.sock";
    /// Watches the GPUs while a job runs: the gate's own program, which [`PREPARE`](super::PREPARE) copies. Not there where
    /// `spec.jobs.telemetry` is `Disabled`.
    pub const SAMPLER: &str = "bin/cuda-smoke";
    /// Where it says what it saw, in [`REGISTRATION_DIR`](super::REGISTRATION_DIR).
    pub const SAMPLER_SOCKET: &str = "sampler.sock";
    /// What it said before the job's container was cleaned, in [`AGENT_DIR`](super::AGENT_DIR).
    pub const USAGE: &str = "gpu-usage";
    /// Looks at the GPU, for the agent's start, the readiness probe and the hooks.
    pub const GPU: &str = "gpu.sh";
}

/// Variables of the gate. The operator sets them in the pod unless a line says otherwise; the command line comes first.
pub mod gate {
    /// What the names of the gate's own variables begin with. A template may set none of them.
    pub const PREFIX: &str = "CUDA_SMOKE_";
    /// The registrar's address.
    pub const REGISTRAR_URL: &str = "CUDA_SMOKE_REGISTRAR_URL";
    /// The registrar's authority, as PEM.
    pub const REGISTRAR_CA: &str = "CUDA_SMOKE_REGISTRAR_CA";
    /// Another [`TOKEN_FILE`](super::TOKEN_FILE).
    pub const TOKEN_FILE: &str = "CUDA_SMOKE_TOKEN_FILE";
    /// Another [`REGISTRATION_DIR`](super::REGISTRATION_DIR).
    pub const REGISTRATION_DIR: &str = "CUDA_SMOKE_REGISTRATION_DIR";
    /// Another [`TERMINATION_LOG`](super::TERMINATION_LOG). Set by tests and benchmarks.
    pub const TERMINATION_LOG: &str = "CUDA_SMOKE_TERMINATION_LOG";
    /// Another [`GATE_PROGRAM`](super::GATE_PROGRAM). Set by tests.
    pub const PROGRAM: &str = "CUDA_SMOKE_PROGRAM";
    /// Another [`RUNNER_INIT_PROGRAM`](super::RUNNER_INIT_PROGRAM). Set by tests.
    pub const RUNNER_INIT: &str = "CUDA_SMOKE_RUNNER_INIT";
    /// Seconds for which the registrar is asked. Set by tests.
    pub const REGISTRATION_TIMEOUT_SECONDS: &str = "CUDA_SMOKE_REGISTRATION_TIMEOUT_SECONDS";
    /// The pod has an [`AGENT_DIR`](super::AGENT_DIR), and this is it: its jobs name their own image.
    pub const AGENT_DIR: &str = "CUDA_SMOKE_AGENT_DIR";
    /// Paths of the template's volumes in [`GPU`](super::GPU), with a colon between: a job may name them.
    pub const JOB_VOLUMES: &str = "CUDA_SMOKE_JOB_VOLUMES";
    /// Size of `/dev/shm` in [`GPU`](super::GPU), in bytes.
    pub const JOB_SHM_BYTES: &str = "CUDA_SMOKE_JOB_SHM_BYTES";
    /// Another [`EXTERNALS_DIR`](super::EXTERNALS_DIR). Set by tests.
    pub const EXTERNALS_DIR: &str = "CUDA_SMOKE_EXTERNALS_DIR";
    /// [`Wanted`](crate::preflight::Wanted) as JSON.
    pub const PREFLIGHT: &str = "CUDA_SMOKE_PREFLIGHT";
    /// [`Policy`](crate::allow::Policy) as JSON.
    pub const ALLOW: &str = "CUDA_SMOKE_ALLOW";
    /// `Disabled` where nobody is to watch the GPUs during jobs.
    pub const TELEMETRY: &str = "CUDA_SMOKE_TELEMETRY";
    /// How many seconds a job may take.
    pub const MAX_JOB_SECONDS: &str = "CUDA_SMOKE_MAX_JOB_SECONDS";
    /// How many devices the pod has.
    pub const EXPECTED_DEVICES: &str = "CUDA_SMOKE_EXPECTED_DEVICES";
    /// The lowest compute capability, a [`Version`](crate::Version).
    pub const MIN_COMPUTE_CAPABILITY: &str = "CUDA_SMOKE_MIN_COMPUTE_CAPABILITY";
    /// The lowest CUDA version, a [`Version`](crate::Version).
    pub const MIN_CUDA_VERSION: &str = "CUDA_SMOKE_MIN_CUDA_VERSION";
    /// `Report` or `Require`.
    pub const MANAGED_MEMORY: &str = "CUDA_SMOKE_MANAGED_MEMORY";
    /// Percent of an exclusive device's memory that must be free; 0 asks for none.
    pub const MIN_FREE_MEMORY_PERCENT: &str = "CUDA_SMOKE_MIN_FREE_MEMORY_PERCENT";
    /// `Report` or `Require`.
    pub const PEER_ACCESS: &str = "CUDA_SMOKE_PEER_ACCESS";
    /// Seconds for the whole test.
    pub const TIMEOUT_SECONDS: &str = "CUDA_SMOKE_TIMEOUT_SECONDS";
    /// `true` where the GPUs are shared with other pods. `prepare` sets it, as the registrar says of the pod's node.
    pub const SHARED: &str = "CUDA_SMOKE_SHARED";
    /// The pod's node, from the downward API.
    pub const NODE: &str = "NODE_NAME";
    /// The pod's name, from the downward API.
    pub const POD: &str = "POD_NAME";
    /// The pod's namespace, from the downward API.
    pub const NAMESPACE: &str = "POD_NAMESPACE";

    /// What the gate is told by variables that are not its own: they and all with [`PREFIX`] are in
    /// [`SETTINGS`](super::file::SETTINGS).
    pub const OTHERS: [&str; 11] = [
        NODE,
        POD,
        NAMESPACE,
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    ];
    /// What device plugins and drivers of claims tell programs of a GPU that is shared by MPS. They set it in
    /// [`GPU`](super::GPU) alone, so the gate has it from there.
    pub const OF_THE_DEVICE: [&str; 4] = [
        "CUDA_MPS_PIPE_DIRECTORY",
        "CUDA_MPS_LOG_DIRECTORY",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT",
    ];
}

/// Variables of our scripts in the runner's image.
pub mod script {
    /// What their names begin with. A template may set none of them.
    pub const PREFIX: &str = "CUDA_RUNNER_";
    /// Another [`REGISTRATION_DIR`](super::REGISTRATION_DIR). Set by tests.
    pub const DIR: &str = "CUDA_RUNNER_DIR";
    /// The team's own hook before a job: the operator moves it here from the agent's variable, our hook calls it.
    pub const TEAM_STARTED: &str = "CUDA_RUNNER_HOOK_JOB_STARTED";
    /// The team's own hook after a job.
    pub const TEAM_COMPLETED: &str = "CUDA_RUNNER_HOOK_JOB_COMPLETED";
    /// Another device file than `/dev/nvidiactl`. Set by tests.
    pub const GPU_FILE: &str = "CUDA_RUNNER_GPU_FILE";
    /// Another file than `/etc/hosts`. Set by tests.
    pub const HOSTS_FILE: &str = "CUDA_RUNNER_HOSTS_FILE";
    /// Preflight: commands to look for, with spaces between. The operator sets this and the following ones.
    pub const COMMANDS: &str = "CUDA_RUNNER_COMMANDS";
    /// Preflight: set where a CUDA toolkit is to be looked for.
    pub const TOOLKIT: &str = "CUDA_RUNNER_TOOLKIT";
    /// Preflight: the Rust toolchain to look for.
    pub const TOOLCHAIN: &str = "CUDA_RUNNER_TOOLCHAIN";
    /// Preflight: the folder whose disk is asked for free space.
    pub const WORK: &str = "CUDA_RUNNER_WORK";
}

/// What `runner-init` is told to be or to do. [`GPU`] and [`MAIN`] are such words as well.
pub mod command {
    /// In [`MAIN`](super::MAIN) of a pod whose jobs name their own image: the agent's first process.
    pub const AGENT: &str = "agent";
    /// In [`GPU`](super::GPU) of such a pod: the gate, and then the job's first process.
    pub const JOB: &str = "job";
    /// In [`MAIN`](super::MAIN) of such a pod: what the agent calls for a job. The script `containers.sh` has it, too.
    pub const CONTAINER_HOOK: &str = "container-hook";
    /// What the agent calls before a job of a pool that does not take every job. The script `allow.sh` has it, too.
    pub const ALLOW: &str = "allow";
    /// Beside the agent, after a job: tells what its GPUs did. The script `job-completed.sh` has it, too.
    pub const TELEMETRY: &str = "telemetry";
    /// A hook or a probe of the template's, for its image only.
    pub const HOOK: &str = "hook";
    /// Whether the agent has been online.
    pub const ONLINE: &str = "online";
}

/// Values of `mark` in the lines of the runner's termination message. Hooks and probes write them, the operator reads them.
pub mod mark {
    /// A job has begun.
    pub const STARTED: &str = "started";
    /// A job was refused before its first step.
    pub const REFUSED: &str = "refused";
    /// A job was ended because it took too long.
    pub const TIMED_OUT: &str = "timed-out";
    /// A job has ended.
    pub const COMPLETED: &str = "completed";
    /// What a GPU did during the job that ended last: one line for each, see [`GpuUsage`](crate::usage::GpuUsage).
    pub const GPU: &str = "gpu";
    /// The GPU was found gone.
    pub const GPU_LOST: &str = "gpu-lost";
    /// The agent was online.
    pub const ONLINE: &str = "online";
    /// Another agent holds the runner's session.
    pub const SESSION_CONFLICT: &str = "session-conflict";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_in_its_folder() {
        assert_eq!(TOKEN_FILE, format!("{TOKEN_DIR}/{TOKEN_NAME}"));
    }
}
