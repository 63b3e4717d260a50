//! What can be wrong with the log and the traces.

use tracing_subscriber::{filter::ParseError, reload, util::TryInitError};

/// Why the log or the traces did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter makes no sense.
    #[error(
        "the log filter {filter:?} is none ({source}); write a level, or pairs such as info,cuda_runner_operator=debug"
    )]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Traces cannot be sent.
    #[error(
        "traces cannot be sent to {endpoint}: {why}; give --otlp-endpoint a URL such as http://collector:4318"
    )]
    Traces {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// The process has a subscriber already.
    #[error("the log was started twice")]
    Twice(#[from] TryInitError),
    /// The subscriber is gone, which it never is while the process runs.
    #[error("the log cannot be changed any more: {0}")]
    Gone(#[from] reload::Error),
}
