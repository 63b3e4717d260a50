//! The types of a pool's conditions.

/// The pool does what was asked. Read by kstatus.
pub const READY: &str = "Ready";
/// Somebody has to change something. Read by kstatus.
pub const STALLED: &str = "Stalled";
/// GitHub accepts the credentials.
pub const CREDENTIALS_VALID: &str = "CredentialsValid";
/// The gate passes.
pub const GPU_HEALTHY: &str = "GpuHealthy";
/// Runners are connected to GitHub.
pub const RUNNERS_ONLINE: &str = "RunnersOnline";
/// Every queued job that looks for runners like ours finds some.
pub const QUEUE_SERVED: &str = "QueueServed";
/// The verification is green.
pub const WORKFLOW_VERIFIED: &str = "WorkflowVerified";
/// The verified jobs are required.
pub const CHECKS_REQUIRED: &str = "ChecksRequired";
/// Every field of the spec is acted on.
pub const SPEC_SUPPORTED: &str = "SpecSupported";
/// GitHub's webhook reaches the operator.
pub const WEBHOOK_READY: &str = "WebhookReady";
/// All of them.
pub const ALL: [&str; 10] = [
    READY,
    STALLED,
    CREDENTIALS_VALID,
    GPU_HEALTHY,
    RUNNERS_ONLINE,
    QUEUE_SERVED,
    WORKFLOW_VERIFIED,
    CHECKS_REQUIRED,
    SPEC_SUPPORTED,
    WEBHOOK_READY,
];
