//! The operator's own state: `/healthz` while the process works, `/readyz` once it has seen the cluster, `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::context::Context;
use crate::metrics::CONTENT_TYPE;

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
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready).with_state(readiness))
        .route("/metrics", get(metrics).with_state(ctx));
    axum::serve(listener, router).await
}

async fn metrics(State(ctx): State<Arc<Context>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], ctx.metrics_page())
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
