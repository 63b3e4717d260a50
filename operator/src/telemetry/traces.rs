//! Traces, by OTLP over HTTP: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>.

use std::time::Duration;

use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use rustls::crypto::aws_lc_rs;
use tokio::runtime::Handle;

use super::error::TelemetryError;

/// From the first byte of a batch to the last one of its answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// A collector answers with a few bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Sends batches of spans to `ENDPOINT/v1/traces`.
///
/// Headers, such as a key, are taken from `OTEL_EXPORTER_OTLP_HEADERS`, and what else describes this process from
/// `OTEL_RESOURCE_ATTRIBUTES`:
/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/#configuration-options>.
pub(super) fn provider(endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let unusable = |why: String| TelemetryError::Traces {
        endpoint: endpoint.to_owned(),
        why,
    };
    let is_url = endpoint
        .parse::<Uri>()
        .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    if !is_url {
        return Err(unusable("it is no http or https URL".to_owned()));
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Sender::new().map_err(|error| unusable(error.to_string()))?)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(DEADLINE)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let resource = Resource::builder()
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

/// Sends on our runtime: the SDK exports from a thread of its own that has none.
#[derive(Debug)]
struct Sender {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
}

impl Sender {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(aws_lc_rs::default_provider())?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            runtime: Handle::try_current()?,
        })
    }
}

#[async_trait::async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.client.request(request.map(Full::new));
        let exchange = async {
            let (head, body) = answer.await?.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER).collect().await?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        // A timer has to begin on the runtime, too.
        let bounded = async { tokio::time::timeout(DEADLINE, exchange).await };
        self.runtime.spawn(bounded).await??
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Tracer as _, TracerProvider as _};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_reach_a_collector() {
        // Given a collector that takes one batch
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (taken, mut batch) = tokio::sync::mpsc::channel(1);
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().route(
            "/v1/traces",
            axum::routing::post(async move |body: Bytes| {
                taken.send(body).await.is_ok().to_string()
            }),
        );
        tokio::spawn(async { axum::serve(listener, router).await });

        // When a span ends, and the process with it
        let provider = provider(&format!("http://{address}/")).unwrap();
        provider.tracer("test").start("a-reconcile");
        tokio::task::spawn_blocking(move || provider.shutdown())
            .await
            .unwrap()
            .unwrap();

        // Then it is there
        let batch = batch.recv().await.unwrap();
        let has = |text: &str| {
            batch
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        assert!(has("a-reconcile") && has("cuda-runner-operator"));
    }
}
