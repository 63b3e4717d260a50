//! The operator's own state: `/livez` while the process works, `/readyz` once it has seen the cluster, `/metrics`; and,
//! on an address of its own, `/log`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::context::Context;
use crate::metrics::CONTENT_TYPE;
use crate::telemetry::{LogSettings, Telemetry};

/// Bytes of a change of the log.
const LONGEST_CHANGE: usize = 4096;

/// What must have happened before the operator is ready, each with its name.
#[derive(Clone)]
pub struct Readiness(pub Vec<(&'static str, watch::Receiver<bool>)>);

/// Answers until the process ends.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    ctx: Arc<Context>,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready).with_state(readiness))
        .route("/metrics", get(metrics).with_state(ctx));
    axum::serve(listener, router).await
}

async fn metrics(State(ctx): State<Arc<Context>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], ctx.metrics_page())
}

/// Shows and changes the log, until the process ends; without a listener it does nothing until then.
pub async fn serve_admin(
    listener: Option<TcpListener>,
    telemetry: Arc<Telemetry>,
) -> std::io::Result<()> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    axum::serve(listener, admin(telemetry)).await
}

fn admin(telemetry: Arc<Telemetry>) -> Router {
    Router::new()
        .route("/log", get(log).put(change_log))
        .layer(DefaultBodyLimit::max(LONGEST_CHANGE))
        .with_state(telemetry)
}

async fn log(State(telemetry): State<Arc<Telemetry>>) -> Json<LogSettings> {
    Json(telemetry.log())
}

/// Takes JSON by whatever name its sender gives it, and answers as `GET` does.
async fn change_log(State(telemetry): State<Arc<Telemetry>>, body: Bytes) -> Response {
    let change = serde_json::from_slice(&body).map_err(|error| error.to_string());
    let changed = change.and_then(|change| {
        let changed = telemetry.change_log(change);
        changed.map_err(|error| error.to_string())
    });
    match changed {
        Ok(()) => log(State(telemetry)).await.into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, why).into_response(),
    }
}

/// Names what is waited for.
async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let waits = readiness.0.iter().filter(|(_, done)| !*done.borrow());
    let names: Vec<&str> = waits.map(|(name, _)| *name).collect();
    if names.is_empty() {
        return (StatusCode::OK, "ok".to_owned());
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("waiting for {}", names.join(", ")),
    )
}
