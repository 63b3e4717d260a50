//! What a pod template may not say, and what to write instead: refused at apply where CEL can see it, by the operator
//! everywhere else, in the same words.

/// `metadata.name` and the like.
pub const METADATA: &str = "the operator names its pods, and owns them: a template's metadata has labels and annotations only, so remove everything else";

/// Labels and annotations of the project's own.
pub const OWN_KEYS: &str = "labels and annotations of cudarunner.dev are the operator's own: remove them, or choose another prefix";

/// `restartPolicy` of the pod or of the runner.
pub const RESTART_POLICY: &str = "a runner ends with its pod, and the operator makes the next one: remove restartPolicy; it is Never";

/// `nodeName`.
pub const NODE_NAME: &str = "nodeName goes around the scheduler, which counts the GPUs: remove it, and write nodeSelector: {kubernetes.io/hostname: NODE}";

/// `activeDeadlineSeconds`.
pub const DEADLINE: &str = "activeDeadlineSeconds ends idle runners and running jobs alike: remove it, and limit jobs by spec.jobs.maxMinutes, or by timeout-minutes in the workflow";

/// `shareProcessNamespace`.
pub const SHARED_PROCESSES: &str = "with shareProcessNamespace the agent is not process 1 of its container, and sees no signal: remove it";

/// `automountServiceAccountToken`.
pub const ACCOUNT_TOKEN: &str = "jobs get no service-account token by default: remove automountServiceAccountToken, and mount a projected volume with a serviceAccountToken where a job needs one";

/// A container beside the runner, or one of another name.
pub const OTHER_CONTAINER: &str = "the agent's container is named runner, and it is the only one here, since the pod ends with it: rename the container if it is the agent's, or move it to initContainers with restartPolicy: Always, where it runs beside the runner and ends with it";

/// `command` and `args` of the runner.
pub const COMMAND: &str = "the operator starts the agent itself, with the registration that the gate has fetched: remove command and args; the image needs /home/runner/run.sh";

/// Probes of the runner.
pub const PROBE: &str = "by its own readiness probe the operator sees whether a runner is idle, and a startup probe would keep Kubernetes from changing the gate's image for the runner's: remove yours; livenessProbe is free, as exec";
