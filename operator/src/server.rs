//! The operator's own state: `/livez` while the process works, `/readyz` once it has seen the cluster, `/metrics`; and,
//! on an address of its own, `/log`.

use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;

use crate::context::Context;
use crate::metrics::CONTENT_TYPE;
use crate::telemetry::{LogSettings, Telemetry};
use crate::watch::stores::Filled;

/// What the operator asks the cluster for before anything else.
const STARTS: &str = "the registrar's Service and certificate authority";
/// Bytes of a change of the log.
const LONGEST_CHANGE: usize = 4096;

/// What must have happened before the operator is ready, each with its name.
pub type Waits = Vec<Filled>;

/// The operator once it has started.
pub struct Started {
    /// What it waits for to be ready.
    pub waits: Waits,
    /// What its metrics are about.
    pub ctx: Arc<Context>,
}

/// Answers until the process ends, also before the operator has started.
pub async fn serve(listener: TcpListener, started: Arc<OnceLock<Started>>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(started);
    axum::serve(listener, router).await
}

async fn metrics(State(started): State<Arc<OnceLock<Started>>>) -> Response {
    match started.get() {
        Some(started) => {
            let page = started.ctx.metrics_page();
            ([(header::CONTENT_TYPE, CONTENT_TYPE)], page).into_response()
        }
        None => waiting(STARTS).into_response(),
    }
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
async fn ready(State(started): State<Arc<OnceLock<Started>>>) -> Response {
    let Some(started) = started.get() else {
        return waiting(STARTS).into_response();
    };
    let waits = started.waits.iter().filter(|(_, done)| !*done.borrow());
    let names: Vec<&str> = waits.map(|(name, _)| *name).collect();
    if names.is_empty() {
        return "ok".into_response();
    }
    waiting(&names.join(", ")).into_response()
}

fn waiting(what: &str) -> (StatusCode, String) {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("waiting for {what}"),
    )
}
