//! The way of one REST request: fault, validation, credential, limit, handler, tag, validation.

use std::{net::SocketAddr, sync::Arc};

use axum::body::Body as HttpBody;
use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::Value;

use crate::{
    answer::Answer,
    auth,
    call::{Call, Principal},
    engine, etag,
    exchange::{self, Arrived, Dropped, ENTERPRISE_PREFIX, Notice, Outcome},
    faults::{self, Target},
    limits,
    openapi::{Body, Match},
    operations,
    shared::Shared,
    state::{Side, Violation, World},
};

/// What is known once the request was looked at.
struct Judged<'a> {
    notice: Notice,
    found: Option<Match<'a>>,
    principal: Result<Principal, Answer>,
}

pub(crate) async fn handle(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<HttpBody>, Dropped> {
    let incoming = exchange::read(request, peer.ip()).await?;
    let judged = judge(&shared, &incoming);
    if let Some(replaced) = exchange::before(&shared, &incoming, &judged.notice).await? {
        return Ok(replaced);
    }
    let outcome = carry_out(&shared, &incoming, &judged);
    exchange::after(&shared, &incoming, &judged.notice, outcome)
}

fn judge<'a>(shared: &'a Shared, incoming: &Arrived) -> Judged<'a> {
    let mut world = shared.world();
    let now = world.now();
    let number = world.next_request();
    let found = shared.description.find(&incoming.method, &incoming.path);
    let principal = auth::identify(&world, incoming.header("authorization"), now);
    let credential = principal
        .as_ref()
        .map_or_else(|_| "unknown".to_owned(), Principal::label);
    let fault = faults::take(
        &mut world.faults,
        Target {
            method: &incoming.method,
            path: &incoming.path,
            operation_id: found.as_ref().map(|found| found.operation.id.as_str()),
            credential: &credential,
        },
    );
    let complaints = match &found {
        Some(found) => {
            found
                .operation
                .check_request(&found.parameters, &incoming.query, &incoming.body)
        }
        None => vec![format!(
            "GitHub's description has no such operation, or it is not simulated ({})",
            if shared.description.knows_path(&incoming.path) {
                "the path exists with another method"
            } else {
                "unknown path"
            }
        )],
    };
    let judged = Judged {
        notice: Notice {
            number,
            now,
            operation_id: found.as_ref().map(|found| found.operation.id.clone()),
            credential,
            fault,
            counts: true,
        },
        found,
        principal,
    };
    violate(&mut world, incoming, &judged, Side::Request, complaints);
    judged
}

fn violate(
    world: &mut World,
    incoming: &Arrived,
    judged: &Judged<'_>,
    side: Side,
    complaints: Vec<String>,
) {
    for complaint in complaints {
        let what = format!("{} {}", incoming.method, incoming.target);
        tracing::error!(?side, what, complaint, "violates GitHub's description");
        world.violations.push(Violation {
            request: judged.notice.number,
            side,
            what,
            operation_id: judged.notice.operation_id.clone(),
            complaint,
        });
    }
}

/// Carries out a request; gives the answer, its tag, and whether it counts.
fn carry_out(shared: &Shared, incoming: &Arrived, judged: &Judged<'_>) -> Outcome {
    let mut world = shared.world();
    let world = &mut *world;
    let (mut answer, mut counted) = match decide(world, incoming, judged) {
        Ok(answer) => (answer, true),
        Err(answer) => {
            let counted = answer.status != 401;
            (answer, counted)
        }
    };
    let id = judged
        .found
        .as_ref()
        .map(|found| found.operation.id.as_str());
    counted &= id != Some("rate-limit/get");
    let mut tag = None;
    if incoming.method == "GET" && answer.status == 200 && id != Some("rate-limit/get") {
        tag = Some(tagged(incoming, judged, &mut answer));
        counted &= answer.status != 304;
    }
    if let Some(found) = &judged.found {
        let body = answer.body.clone().map_or(Body::Empty, Body::Json);
        let complaints = shared
            .description
            .check_answer(found.operation, answer.status, &body);
        violate(world, incoming, judged, Side::Answer, complaints);
    }
    if judged.principal.is_ok() {
        let budget = limits::budget(world, &judged.notice.credential, judged.notice.now);
        if counted {
            budget.used = budget.used.saturating_add(1).min(budget.limit);
        }
        answer.headers.extend(budget.headers());
    }
    answer.headers.push((
        "x-github-request-id".into(),
        format!("SIM:{}", judged.notice.number),
    ));
    if incoming.enterprise && !world.settings.server_version.is_empty() {
        answer.headers.push((
            "x-github-enterprise-version".into(),
            world.settings.server_version.clone(),
        ));
    }
    engine::pump(world, judged.notice.now);
    Outcome {
        answer,
        tag,
        counted,
    }
}

/// The answer's tag. Whoever has the same answer already gets no body.
fn tagged(incoming: &Arrived, judged: &Judged<'_>, answer: &mut Answer) -> String {
    let body = answer
        .body
        .as_ref()
        .map(Value::to_string)
        .unwrap_or_default();
    let fresh = etag::of(body.as_bytes(), &judged.notice.credential);
    let known = incoming
        .header("if-none-match")
        .is_some_and(|header| etag::matches(header, &fresh));
    if known {
        answer.status = 304;
        answer.body = None;
    }
    fresh
}

fn decide(world: &mut World, incoming: &Arrived, judged: &Judged<'_>) -> Result<Answer, Answer> {
    if incoming.header("user-agent").is_none_or(str::is_empty) {
        return Err(Answer::error(
            403,
            "Request forbidden by administrative rules. Please make sure your request has a \
             User-Agent header",
        ));
    }
    let newest = match incoming.header("x-github-api-version") {
        None | Some("2022-11-28") => false,
        Some("2026-03-10") => true,
        Some(_) => return Err(Answer::error(410, "This API version is not supported")),
    };
    let principal = judged.principal.clone()?;
    exhausted(world, judged, &principal)?;
    let (found, operation) = judged
        .found
        .as_ref()
        .and_then(|found| Some((found, operations::find(&found.operation.id)?)))
        .ok_or_else(Answer::not_found)?;
    let body = match &incoming.body {
        Body::Json(value) => value.clone(),
        Body::Empty => Value::Null,
        Body::Other => return Err(Answer::error(400, "Problems parsing JSON")),
    };
    let site = world.public_url.clone();
    let call = Call {
        path: found.parameters.clone(),
        query: incoming.query.clone(),
        body,
        principal,
        api: if incoming.enterprise {
            format!("{site}{ENTERPRISE_PREFIX}")
        } else {
            site.clone()
        },
        site,
        now: judged.notice.now,
        newest,
        target: incoming.target.clone(),
    };
    auth::authorize(world, &call, operation.need)?;
    (operation.handler)(world, &call)
}

fn exhausted(world: &mut World, judged: &Judged<'_>, principal: &Principal) -> Result<(), Answer> {
    let budget = limits::budget(world, &judged.notice.credential, judged.notice.now);
    if budget.remaining() > 0 {
        return Ok(());
    }
    let whom = match principal {
        Principal::Installation(token) => format!("installation ID {}", token.installation),
        Principal::App(id) => format!("app ID {id}"),
        _ => "user ID 1".to_owned(),
    };
    Err(Answer::error(
        403,
        &format!("API rate limit exceeded for {whom}."),
    ))
}
