//! The three requests of a runner's pod: a ticket for its token, the image for its report, the registration for its ticket.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use gate_report::Report;
use gate_report::wire::{self, MAX_BODY, Refusal};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use tracing::{Instrument as _, Span};

use super::admit::sentence;
use super::door::Guest;
use super::ledger::{Claim, Digest, Granted};
use super::server::Shared;
use super::{
    Backend, Decision, IdentityError, KnownRunner, PodIdentity, PoolKey, Purpose, RegisterError,
    Registration, RunnerLookup, admit, claims,
};

/// An answer other than the one that was asked for. It is large, and most requests have none.
pub(super) struct Refused(Box<Response>);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

/// When a pod asks again that the stores do not show yet as it is, or whose other request is under way.
pub(super) const SOON: Duration = Duration::from_secs(1);
/// When it asks again after a failure of ours.
const LATER: Duration = Duration::from_secs(3);

/// A ticket for a pod's token, which the API server reviews.
pub(super) async fn ticket<D: Backend>(
    shared: &Shared<D>,
    guest: &Guest,
    request: Request,
) -> Result<Response, Refused> {
    let token = bearer(request.headers()).ok_or_else(no_token)?;
    let pod = identify(shared, guest, &token).await?;
    let runner = admitted_at_the_door(shared, &pod).await?;
    let key = shared.parts.ca.ticket_key();
    let issue = |purpose| {
        let ticket = key.issue(&pod, purpose, Timestamp::now());
        ticket.expose_secret().to_owned()
    };
    let ticket = wire::Ticket {
        ticket: issue(Purpose::Runner),
        job: runner.takes_containers.then(|| issue(Purpose::Job)),
        shared: runner.shared,
    };
    Ok(axum::Json(ticket).into_response())
}

/// The agent's image for a gate's report. Nothing of the body is read before it is known who asks.
pub(super) async fn report<D: Backend>(
    shared: &Shared<D>,
    request: Request,
) -> Result<Response, Refused> {
    let (pod, _) = holder(shared, request.headers(), Purpose::Runner)?;
    let runner = admitted_at_the_door(shared, &pod).await?;
    let report = read(request.into_body()).await?;
    let decision = admit(&report, &runner.policy);
    shared
        .parts
        .backend
        .note_report(&pod, &runner, &report, &decision)
        .await;
    // It may be large, and what follows may take long.
    let summary = report.summary();
    drop(report);
    match decision {
        Decision::Failed => Ok(StatusCode::ACCEPTED.into_response()),
        Decision::Refuse { reason, message } => Err(refuse(StatusCode::FORBIDDEN, reason, message)),
        Decision::Admit if shared.parts.ledger.is_closed(&pod.uid) => Err(closing(&pod)),
        Decision::Admit => {
            shared.parts.ledger.admit(&pod.uid);
            let let_in = shared.parts.backend.let_in(&pod, &runner, &summary).await;
            let_in.map_err(not_registered)?;
            Ok(axum::Json(json!({})).into_response())
        }
    }
}

/// The registration for a ticket, where the pod's report was admitted.
pub(super) async fn registration<D: Backend>(
    shared: &Shared<D>,
    request: Request,
) -> Result<Response, Refused> {
    let (pod, ticket) = holder(shared, request.headers(), Purpose::Runner)?;
    let runner = admitted_at_the_door(shared, &pod).await?;
    was_admitted(shared, &pod, runner.let_in)?;
    register(shared, pod, runner, ticket).await
}

/// Whether a pod's report was admitted, by this process or by the word of the watch.
pub(super) fn was_admitted<D>(
    shared: &Shared<D>,
    pod: &PodIdentity,
    shown: bool,
) -> Result<(), Refused> {
    if shown || shared.parts.ledger.was_admitted(&pod.uid) {
        return Ok(());
    }
    Err(retry(
        StatusCode::SERVICE_UNAVAILABLE,
        "NotAdmitted",
        "no report of this pod has been admitted, as far as this replica knows yet",
        SOON,
    ))
}

/// The pod whose ticket for this purpose is shown, and the ticket in short.
pub(super) fn holder<D>(
    shared: &Shared<D>,
    headers: &HeaderMap,
    purpose: Purpose,
) -> Result<(PodIdentity, Digest), Refused> {
    let ticket = bearer(headers).ok_or_else(no_token)?;
    let ticket = ticket.expose_secret();
    let key = shared.parts.ca.ticket_key();
    let pod = key.pod_of(ticket, purpose, Timestamp::now());
    let pod = pod.map_err(|error| not_known(shared, &error))?;
    Ok((pod, Digest::of(ticket.as_bytes())))
}

/// The runner that a pod is, if it may ask at all, and not too often.
async fn admitted_at_the_door<D: Backend>(
    shared: &Shared<D>,
    pod: &PodIdentity,
) -> Result<KnownRunner, Refused> {
    Span::current().record("k8s.pod.name", &pod.name);
    let runner = find(shared, pod).await?;
    take(shared, &runner.pool)?;
    Ok(runner)
}

/// Takes one request from what a pool may ask.
pub(super) fn take<D>(shared: &Shared<D>, pool: &PoolKey) -> Result<(), Refused> {
    let taken = shared.parts.ledger.take(pool, shared.parts.limits.pool);
    taken.map_err(|wait| too_often("the pool's runners ask too often", wait))
}

pub(super) fn too_often(message: &str, wait: Duration) -> Refused {
    retry(
        StatusCode::TOO_MANY_REQUESTS,
        "TooManyRequests",
        message,
        wait,
    )
}

fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned().into())
}

fn no_token() -> Refused {
    let message = "the request has no bearer token".to_owned();
    refuse(StatusCode::UNAUTHORIZED, "NoToken", message)
}

/// Which pod asks. The API server is asked of a token only where it says of itself that it is a runner's.
async fn identify<D: Backend>(
    shared: &Shared<D>,
    guest: &Guest,
    token: &SecretString,
) -> Result<PodIdentity, Refused> {
    if let Some(known) = shared.parts.reviewer.known(token) {
        return Ok(known);
    }
    let claimed = claims::pod_of(token.expose_secret(), Timestamp::now())
        .map_err(|error| not_known(shared, &error))?;
    find(shared, &claimed).await?;
    guest
        .may_show_a_token()
        .map_err(|wait| too_often("too many tokens from this address were refused", wait))?;
    let _turn = shared.reviews.acquire().await;
    let reviewed = shared.parts.reviewer.pod_of(token).await;
    reviewed.map_err(|error| {
        if !matches!(error, IdentityError::Unavailable(_)) {
            guest.was_refused();
        }
        not_known(shared, &error)
    })
}

fn not_known<D>(shared: &Shared<D>, error: &IdentityError) -> Refused {
    let message = sentence(&error.to_string());
    if let Some(held_back) = shared.reported.lets_through() {
        tracing::info!(
            error = message,
            held_back,
            "the registrar does not know who asks"
        );
    }
    match error {
        IdentityError::NotAccepted(_) => {
            refuse(StatusCode::UNAUTHORIZED, "TokenNotAccepted", message)
        }
        IdentityError::NoPod(_) => refuse(StatusCode::FORBIDDEN, "NoPod", message),
        IdentityError::Unavailable(_) => retry(
            StatusCode::SERVICE_UNAVAILABLE,
            "IdentityUnavailable",
            &message,
            LATER,
        ),
    }
}

async fn find<D: Backend>(shared: &Shared<D>, pod: &PodIdentity) -> Result<KnownRunner, Refused> {
    let found = shared.parts.backend.runner(pod).await;
    known(found, pod)
}

/// What is known of a pod that may ask.
pub(super) fn known<T>(found: RunnerLookup<T>, pod: &PodIdentity) -> Result<T, Refused> {
    Err(match found {
        RunnerLookup::Known(runner) => return Ok(runner),
        RunnerLookup::NotYetKnown => retry(
            StatusCode::SERVICE_UNAVAILABLE,
            "NotYetKnown",
            "the operator has not seen this pod yet",
            SOON,
        ),
        RunnerLookup::Unknown => refuse(
            StatusCode::FORBIDDEN,
            "NoRunner",
            format!("the pod {} is no runner of this operator", pod.name),
        ),
        RunnerLookup::Served => already_registered(pod),
        RunnerLookup::Closing => closing(pod),
    })
}

fn closing(pod: &PodIdentity) -> Refused {
    refuse(
        StatusCode::FORBIDDEN,
        "Closing",
        format!("the runner {} or its pool is being removed", pod.name),
    )
}

async fn read(body: Body) -> Result<Report, Refused> {
    let bytes: Bytes = axum::body::to_bytes(body, MAX_BODY).await.map_err(|_| {
        bad(
            "ReportNotRead",
            format!("the report broke off, or is longer than {MAX_BODY} bytes"),
        )
    })?;
    Report::read(&bytes).map_err(|error| {
        bad(
            "ReportInvalid",
            format!("the report cannot be understood: {error}"),
        )
    })
}

pub(super) fn bad(reason: &str, message: String) -> Refused {
    refuse(StatusCode::BAD_REQUEST, reason, message)
}

async fn register<D: Backend>(
    shared: &Shared<D>,
    pod: PodIdentity,
    runner: KnownRunner,
    ticket: Digest,
) -> Result<Response, Refused> {
    match shared.parts.ledger.claim(&pod.uid, ticket) {
        Claim::Granted(granted) => attempt(shared, pod, runner, granted).await,
        Claim::UnderWay => Err(retry(
            StatusCode::SERVICE_UNAVAILABLE,
            "UnderWay",
            "another request of this pod is being answered",
            SOON,
        )),
        Claim::Again(registration) => {
            tracing::info!(runner = %pod.name, "the registration is given once more: its pod asks again");
            Ok(hand_over(&registration))
        }
        Claim::Done => Err(already_registered(&pod)),
        Claim::Closed => Err(closing(&pod)),
    }
}

fn already_registered(pod: &PodIdentity) -> Refused {
    let message = format!(
        "the pod {} has had its registration; each pod gets one",
        pod.name
    );
    refuse(StatusCode::FORBIDDEN, "AlreadyRegistered", message)
}

/// In a task of its own: the pod may hang up meanwhile, and finds the registration when it asks again.
async fn attempt<D: Backend>(
    shared: &Shared<D>,
    pod: PodIdentity,
    runner: KnownRunner,
    granted: Granted,
) -> Result<Response, Refused> {
    let (backend, limit) = (
        Arc::clone(&shared.parts.backend),
        shared.parts.limits.request_timeout,
    );
    let attempt = async move {
        let made = tokio::time::timeout(limit, backend.register(&pod, &runner)).await;
        if let Ok(Ok(registration)) = &made {
            granted.done(registration.clone());
        }
        made
    };
    match tokio::spawn(attempt.in_current_span()).await {
        Ok(Ok(Ok(registration))) => Ok(hand_over(&registration)),
        Ok(Ok(Err(error))) => Err(not_registered(error)),
        Ok(Err(_)) | Err(_) => Err(timeout()),
    }
}

fn hand_over(registration: &Registration) -> Response {
    let registration = match registration {
        Registration::JitConfig(encoded) => wire::Registration::JitConfig {
            encoded_jit_config: encoded.expose_secret().to_owned(),
        },
        Registration::RegistrationToken(token) => wire::Registration::RegistrationToken {
            token: token.expose_secret().to_owned(),
        },
    };
    axum::Json(registration).into_response()
}

pub(super) fn not_registered(error: RegisterError) -> Refused {
    match error {
        RegisterError::Retry {
            after,
            reason,
            message,
        } => retry(StatusCode::SERVICE_UNAVAILABLE, &reason, &message, after),
        RegisterError::Refused { reason, message } => {
            refuse(StatusCode::FORBIDDEN, &reason, message)
        }
    }
}

pub(super) fn timeout() -> Refused {
    retry(
        StatusCode::SERVICE_UNAVAILABLE,
        "Timeout",
        "the registrar did not come to an end in time",
        LATER,
    )
}

pub(super) fn refuse(status: StatusCode, reason: &str, message: String) -> Refused {
    let refusal = Refusal {
        reason: reason.to_owned(),
        message,
    };
    Refused(Box::new((status, axum::Json(refusal)).into_response()))
}

/// A refusal that time may fix.
pub(super) fn retry(status: StatusCode, reason: &str, message: &str, after: Duration) -> Refused {
    let mut refused = refuse(status, reason, message.to_owned());
    // Whole seconds, and never none: a client would ask again at once.
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    let headers = refused.0.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    refused
}
