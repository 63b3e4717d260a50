//! What the operator tells of its work while it runs: traces to a collector, and a log that can be asked to say more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span,
};
use prost::Message as _;
use serde_json::{Value, json};

use super::{Ctx, SOON, port_forward::PortForward, recorder};
use crate::{deploy, helm::RELEASE};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a collector, and an operator that is told of it
    let collector = Collector::start(ctx).await?;
    let endpoint = format!("tracing.endpoint={}", collector.address);
    let on = [endpoint.as_str()];
    let work = async || reported(ctx, &collector).await;
    let outcome = deploy::with_values(&ctx.cluster, &on, work).await;
    // For the search for secrets.
    let record = recorder::folder(&ctx.cluster).join("traces");
    let spans = collector.spans();
    std::fs::write(record, format!("{spans:#?}"))?;
    outcome.with_context(|| format!("the collector was given {:#?}", ways(&spans)))
}

async fn reported(ctx: &Ctx, collector: &Collector) -> Result<()> {
    traces(ctx, collector).await?;
    log(ctx).await
}

async fn traces(ctx: &Ctx, collector: &Collector) -> Result<()> {
    // When a runner comes up
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    let runner = ctx.idle("pool", 1).await?.remove(0);

    // Then the trace of a reconcile leads from the pool to the pod that was made
    let pool = format!("CudaRunner.v1alpha1.cudarunner.dev/pool.{}", ctx.namespace);
    ctx.wait_for("the trace of a reconcile", SOON, async || {
        let spans = collector.spans();
        let made = spans.values().find(|span| {
            let way = way(&spans, span);
            let names: Vec<_> = way.iter().map(|span| span.name.as_str()).collect();
            names == ["create", "act", "reconciling object"]
                && attribute(way[2], "object.ref") == Some(pool.clone())
        });
        Ok(made.map(drop))
    })
    .await?;
    // And the trace of its gate's report to the registration at GitHub
    ctx.wait_for("the trace of a report", SOON, async || {
        let spans = collector.spans();
        let registered = spans.values().find(|span| {
            let way = way(&spans, span);
            let is_registration = attribute(span, "url.path")
                .is_some_and(|path| path.ends_with("/generate-jitconfig"));
            is_registration
                && attribute(span, "http.response.status_code") == Some("201".to_owned())
                && way
                    .last()
                    .is_some_and(|root| attribute(root, "k8s.pod.name") == Some(runner.clone()))
        });
        Ok(registered.map(drop))
    })
    .await
}

async fn log(ctx: &Ctx) -> Result<()> {
    // When the log is asked for more, as JSON
    let admin = PortForward::start(&ctx.cluster, &format!("deployment/{RELEASE}"), 8081).await?;
    let before = asked(&admin, None).await?;
    ensure!(
        before
            == (
                200,
                json!({"filter": "info,cuda_runner_operator=debug", "format": "text"})
            ),
        "the log is {before:?}"
    );
    let refused = asked(&admin, Some(json!({"filter": "a=b=c"}))).await?;
    ensure!(refused.0 == 400, "it took nonsense: {refused:?}");
    let wanted = json!({"filter": "warn,kube_client=debug", "format": "json"});
    let after = asked(&admin, Some(wanted.clone())).await?;
    ensure!(after == (200, wanted), "the log is {after:?}");

    // Then it says so
    ctx.annotate("pool", "example.com/look", "again").await?;
    ctx.delete("pool").await?;
    ctx.wait_for("requests in the log, as JSON", SOON, async || {
        let logs = deploy::operator_log(&ctx.client, None).await?;
        let mut lines = logs.iter().flat_map(|log| log.lines());
        let said = lines.any(|line| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            line["level"] == "DEBUG"
                && line["target"]
                    .as_str()
                    .is_some_and(|t| t.starts_with("kube_client"))
        });
        Ok(said.then_some(()))
    })
    .await
}

/// A span and those that it is in, the outermost last.
fn way<'a>(spans: &'a BTreeMap<Vec<u8>, Span>, span: &'a Span) -> Vec<&'a Span> {
    let parent = |span: &&'a Span| spans.get(&span.parent_span_id);
    std::iter::successors(Some(span), parent).collect()
}

/// All of them by their names, each once.
fn ways(spans: &BTreeMap<Vec<u8>, Span>) -> BTreeSet<String> {
    let names = |span| {
        way(spans, span)
            .iter()
            .map(|span| span.name.clone())
            .collect()
    };
    let all = spans.values().map(|span| -> Vec<String> { names(span) });
    all.map(|names| names.join(" in ")).collect()
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value::{IntValue, StringValue};
    let attribute = span.attributes.iter().find(|pair| pair.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        StringValue(text) => Some(text.clone()),
        IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Takes traces as the protocol has it.
struct Collector {
    address: String,
    spans: Spans,
}

/// By their ids.
type Spans = Arc<Mutex<BTreeMap<Vec<u8>, Span>>>;

impl Collector {
    async fn start(ctx: &Ctx) -> Result<Self> {
        let link = ctx.cluster.link.as_ref().context("no link to pods")?;
        let listener = tokio::net::TcpListener::bind((link.machine, 0)).await?;
        let address = format!("http://{}", listener.local_addr()?);
        let spans = Spans::default();
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&spans));
        tokio::spawn(async { axum::serve(listener, router).await });
        Ok(Self { address, spans })
    }

    fn spans(&self) -> BTreeMap<Vec<u8>, Span> {
        let spans = self.spans.lock();
        spans.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn take(State(kept): State<Spans>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let scopes = request
        .resource_spans
        .into_iter()
        .flat_map(|r| r.scope_spans);
    let spans = scopes.flat_map(|scope| scope.spans);
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.extend(spans.map(|span| (span.span_id.clone(), span)));
    StatusCode::OK
}

/// Asks how the log is written, or changes that; gives the status and the answer.
async fn asked(admin: &PortForward, change: Option<Value>) -> Result<(u16, Value)> {
    let url = format!("http://{}/log", admin.local);
    let answer = tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build();
        let agent = ureq::Agent::new_with_config(agent);
        let mut answer = match change {
            None => agent.get(&url).call()?,
            Some(change) => agent.put(&url).send(change.to_string())?,
        };
        let text = answer.body_mut().read_to_string()?;
        anyhow::Ok((answer.status().as_u16(), text))
    });
    let (status, text) = answer.await??;
    Ok((status, serde_json::from_str(&text).unwrap_or(json!(text))))
}
