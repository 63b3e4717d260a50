//! The log, whose filter and form can change while the operator runs, and traces on request.

mod error;
mod traces;

use std::io::{IsTerminal as _, stderr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt};

use crate::config::LogFormat;
pub use error::TelemetryError;

/// What is traced, whatever is logged: the reconciles, by kube's controller; our own steps in them and the requests to
/// GitHub; the requests to Kubernetes, by kube's client.
const TRACED: [(&str, Level); 3] = [
    ("kube_runtime::controller", Level::INFO),
    ("cuda_runner_operator", Level::INFO),
    ("kube_client", Level::DEBUG),
];

type Lines = Box<dyn Layer<Registry> + Send + Sync>;

/// How the log is written: what `GET /log` answers.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LogSettings {
    /// What is written, as in `info,cuda_runner_operator=debug`.
    pub filter: String,
    /// In which form.
    pub format: LogFormat,
}

/// What of it is to change: the body of `PUT /log`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogChange {
    /// Another filter.
    pub filter: Option<String>,
    /// Another form.
    pub format: Option<LogFormat>,
}

/// The log and the traces of this process.
pub struct Telemetry {
    filter: Handle<EnvFilter, Registry>,
    lines: Handle<Lines, Registry>,
    log: Mutex<LogSettings>,
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts logging to standard error, and tracing where an OTLP endpoint is given.
    ///
    /// Traces leave on the Tokio runtime that this is called in.
    pub fn start(
        format: LogFormat,
        filter: &str,
        otlp_endpoint: Option<&str>,
    ) -> Result<Self, TelemetryError> {
        let (filters, filter_handle) = reload::Layer::new(parse(filter)?);
        let (lines, lines_handle) = reload::Layer::new(lines(format));
        let traces = otlp_endpoint.map(traces::provider).transpose()?;
        tracing_subscriber::registry()
            .with(lines.with_filter(filters))
            .with(traces.as_ref().map(spans))
            .try_init()?;
        let log = LogSettings {
            filter: filter.to_owned(),
            format,
        };
        Ok(Self {
            filter: filter_handle,
            lines: lines_handle,
            log: log.into(),
            traces,
        })
    }

    /// How the log is written now.
    pub fn log(&self) -> LogSettings {
        self.settings().clone()
    }

    /// Writes the log otherwise from now on. A change that makes no sense changes nothing.
    pub fn change_log(&self, change: LogChange) -> Result<(), TelemetryError> {
        let mut now = self.settings();
        if let Some(filter) = change.filter {
            self.filter.reload(parse(&filter)?)?;
            now.filter = filter;
        }
        if let Some(format) = change.format {
            self.lines.reload(lines(format))?;
            now.format = format;
        }
        Ok(())
    }

    fn settings(&self) -> MutexGuard<'_, LogSettings> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what has been traced and not been sent. It waits for the collector, for some seconds at most.
    pub fn end(&self) {
        if let Some(traces) = &self.traces
            && let Err(error) = traces.shutdown()
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter {
        filter: filter.to_owned(),
        source,
    })
}

/// Hands spans to the provider.
fn spans<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(env!("CARGO_PKG_NAME")))
        .with_filter(Targets::new().with_targets(TRACED))
}

fn lines(format: LogFormat) -> Lines {
    let lines = fmt::layer()
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr);
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_said_with_a_way_out() {
        let why = parse("a=b=c").unwrap_err().to_string();
        assert!(
            why.contains("\"a=b=c\"") && why.contains("write a level"),
            "{why}"
        );
        for endpoint in ["collector:4318", "grpc://collector:4317", ""] {
            let why = traces::provider(endpoint).unwrap_err().to_string();
            assert!(why.contains("such as http://collector:4318"), "{why}");
        }
    }
}
