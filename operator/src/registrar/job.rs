//! The two requests of a job with a container of its own, which the agent's hook makes: bring it, and how far is it?

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use gate_report::wire::{ContainerState, JobContainer, JobContainerState, MAX_BODY};
use http::StatusCode;
use serde_json::json;
use tracing::Span;

use super::desk::{
    Refused, bad, holder, known, not_registered, refuse, take, too_often, was_admitted,
};
use super::ledger::Digest;
use super::server::Shared;
use super::{Backend, PodIdentity, Purpose};

/// Brings a job's container, once for a pod: a job that asks again for the same has lost the answer.
pub(super) async fn bring<D: Backend>(
    shared: &Shared<D>,
    request: Request,
) -> Result<Response, Refused> {
    let pod = asks(shared, &request)?;
    let backend = &shared.parts.backend;
    let runner = known(backend.job_runner(&pod).await, &pod)?;
    take(shared, &runner.pool)?;
    let wanted = read(request).await?;
    was_admitted(shared, &pod, runner.let_in)?;
    if !wanted.services.is_empty() && !runner.containers.services {
        let message = "this pool's jobs may have no services (spec.jobContainers.services): remove them from the job, or let it run elsewhere";
        return Err(refuse(
            StatusCode::FORBIDDEN,
            "ServicesNotAllowed",
            message.to_owned(),
        ));
    }
    let is_other = runner
        .pod
        .image
        .as_ref()
        .is_some_and(|image| *image != wanted.image);
    let digest = Digest::of(&serde_json::to_vec(&wanted).unwrap_or_default());
    if is_other || !shared.parts.ledger.choose(&pod.uid, digest) {
        let message = format!(
            "the pod {} has had its job's container; each gets one",
            pod.name
        );
        return Err(refuse(StatusCode::FORBIDDEN, "JobContainerChosen", message));
    }
    let brought = backend.bring(&pod, &runner, &wanted).await;
    brought.map_err(not_registered)?;
    Ok(axum::Json(json!({})).into_response())
}

/// How far a job's containers are, as the watch shows them.
pub(super) async fn look<D: Backend>(
    shared: &Shared<D>,
    request: Request,
) -> Result<Response, Refused> {
    let pod = asks(shared, &request)?;
    let found = shared.parts.backend.job_runner(&pod).await;
    let runner = known(found, &pod)?;
    let looked = shared
        .parts
        .ledger
        .look(&pod.uid, shared.parts.limits.looks);
    looked.map_err(|wait| too_often("the job asks too often", wait))?;
    let state = JobContainerState {
        container: runner.pod.container.unwrap_or(ContainerState::Pulling),
        services: runner.pod.services.into_iter().map(|(_, s)| s).collect(),
    };
    Ok(axum::Json(state).into_response())
}

/// The pod whose job asks.
fn asks<D>(shared: &Shared<D>, request: &Request) -> Result<PodIdentity, Refused> {
    let shown = holder(shared, request.headers(), Purpose::Job);
    let (pod, _) = shown?;
    Span::current().record("k8s.pod.name", &pod.name);
    Ok(pod)
}

async fn read(request: Request) -> Result<JobContainer, Refused> {
    let bytes = axum::body::to_bytes(request.into_body(), MAX_BODY)
        .await
        .map_err(|_| {
            bad(
                "JobContainerNotRead",
                format!("the request broke off, or is longer than {MAX_BODY} bytes: shorten the environment of the job's services"),
            )
        })?;
    // What serde says of a mistake may repeat a part of the body, which has secrets.
    let wanted: JobContainer = serde_json::from_slice(&bytes).map_err(|_| {
        let message =
            "the request cannot be understood; use the gate image of the operator's own version";
        bad("JobContainerInvalid", message.to_owned())
    })?;
    wanted
        .check()
        .map_err(|message| bad("JobContainerInvalid", message))?;
    Ok(wanted)
}
