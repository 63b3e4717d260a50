//! The names that all who meet in a runner's pod must write alike: the operator, which makes the pod; the gate; the hooks
//! of the agent; and whoever plays one of them in a test or a benchmark.
//!
//! The scripts (`kernels/hooks`, `operator/plan/src/preflight.sh`, the agent's start and its probes) cannot read these
//! constants. Tests beside them compare. Names of the agent's own, such as `ACTIONS_RUNNER_HOOK_JOB_STARTED`, are
//! GitHub's and not here: the simulated agent has them a second time, so that a wrong one is noticed.

/// The init container that looks at the runner's image, before all others.
pub const PREFLIGHT: &str = "preflight";
/// The init container that proves the GPUs.
pub const GATE: &str = "gate";
/// The agent's container. A template names it so, too.
pub const RUNNER: &str = "runner";

/// Memory-backed folder that these three containers share. The pod's mount; the hooks have it as their default.
pub const REGISTRATION_DIR: &str = "/run/cuda-runner";
/// Folder of the gate's service-account token.
pub const TOKEN_DIR: &str = "/var/run/secrets/cudarunner.dev";
/// The token's name in [`TOKEN_DIR`].
pub const TOKEN_NAME: &str = "token";
/// Both together. The kubelet writes and renews it, the gate reads it for each request.
pub const TOKEN_FILE: &str = "/var/run/secrets/cudarunner.dev/token";
/// The container's termination message, by Kubernetes' default. The gate and the hooks write it, the operator reads it.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// Files in [`REGISTRATION_DIR`].
pub mod file {
    /// What the preflight container found. The gate reads it.
    pub const PREFLIGHT: &str = "preflight";
    /// A just-in-time configuration. The gate writes it, the agent's start reads and removes it.
    pub const JIT_CONFIG: &str = "jitconfig";
    /// A registration token; as [`JIT_CONFIG`].
    pub const TOKEN: &str = "token";
    /// There for as long as a job runs. The hooks make and remove it, the readiness probe looks.
    pub const BUSY: &str = "busy";
    /// The hook before a job. The gate writes this and the other scripts.
    pub const JOB_STARTED: &str = "job-started.sh";
    /// The hook after a job.
    pub const JOB_COMPLETED: &str = "job-completed.sh";
    /// Runs the team's own hook, for ours.
    pub const TEAM_HOOK: &str = "team-hook.sh";
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
    /// Seconds for which the registrar is asked. Set by tests.
    pub const REGISTRATION_TIMEOUT_SECONDS: &str = "CUDA_SMOKE_REGISTRATION_TIMEOUT_SECONDS";
    /// [`Wanted`](crate::preflight::Wanted) as JSON.
    pub const PREFLIGHT: &str = "CUDA_SMOKE_PREFLIGHT";
    /// How many devices the pod has.
    pub const EXPECTED_DEVICES: &str = "CUDA_SMOKE_EXPECTED_DEVICES";
    /// The lowest compute capability, a [`Version`](crate::Version).
    pub const MIN_COMPUTE_CAPABILITY: &str = "CUDA_SMOKE_MIN_COMPUTE_CAPABILITY";
    /// The lowest CUDA version, a [`Version`](crate::Version).
    pub const MIN_CUDA_VERSION: &str = "CUDA_SMOKE_MIN_CUDA_VERSION";
    /// `Report` or `Require`.
    pub const MANAGED_MEMORY: &str = "CUDA_SMOKE_MANAGED_MEMORY";
    /// Seconds for the whole test.
    pub const TIMEOUT_SECONDS: &str = "CUDA_SMOKE_TIMEOUT_SECONDS";
    /// The pod's node, from the downward API.
    pub const NODE: &str = "NODE_NAME";
    /// The pod's name, from the downward API.
    pub const POD: &str = "POD_NAME";
    /// The pod's namespace, from the downward API.
    pub const NAMESPACE: &str = "POD_NAMESPACE";
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
    /// Preflight: commands to look for, with spaces between. The operator sets this and the following ones.
    pub const COMMANDS: &str = "CUDA_RUNNER_COMMANDS";
    /// Preflight: set where a CUDA toolkit is to be looked for.
    pub const TOOLKIT: &str = "CUDA_RUNNER_TOOLKIT";
    /// Preflight: the Rust toolchain to look for.
    pub const TOOLCHAIN: &str = "CUDA_RUNNER_TOOLCHAIN";
    /// Preflight: the folder whose disk is asked for free space.
    pub const WORK: &str = "CUDA_RUNNER_WORK";
}

/// Values of `mark` in the lines of the runner's termination message. Hooks and probes write them, the operator reads them.
pub mod mark {
    /// A job has begun.
    pub const STARTED: &str = "started";
    /// A job has ended.
    pub const COMPLETED: &str = "completed";
    /// The GPU was found gone.
    pub const GPU_LOST: &str = "gpu-lost";
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
