//! The way of one REST request: fault, validation, credential, limit, handler, tag, validation.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::body::{Body as HttpBody, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    auth::{self, Principal},
    engine, etag,
    faults::{self, Action, Fault, Target},
    limits,
    openapi::{Body, Match},
    operations,
    rest::{Answer, Call},
    server::{Dropped, Shared},
    state::{Seen, Side, Violation, World},
    text,
};

/// No request of the API is larger.
const LARGEST: usize = 1 << 20;

/// Below this path an Enterprise Server has its API.
const ENTERPRISE_PREFIX: &str = "/api/v3";

/// A request as it came in.
struct Arrived {
    from: IpAddr,
    method: String,
    target: String,
    path: String,
    enterprise: bool,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    body: Body,
}

impl Arrived {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// What is known once the request was looked at.
struct Judged<'a> {
    number: u64,
    now: Timestamp,
    found: Option<Match<'a>>,
    principal: Result<Principal, Answer>,
    credential: String,
    fault: Option<Fault>,
}

pub(crate) async fn handle(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<HttpBody>, Dropped> {
    let Some(incoming) = read(request, peer.ip()).await else {
        tracing::debug!(%peer, "a request was not sent to its end");
        return Err(Dropped);
    };
    let judged = judge(&shared, &incoming);
    let fault = judged.fault.clone();
    if let Some(fault) = &fault {
        tracing::info!(
            method = incoming.method,
            path = incoming.path,
            fault = fault.action.describe(),
            "fault"
        );
        if fault.delay_millis > 0 {
            tokio::time::sleep(Duration::from_millis(fault.delay_millis)).await;
        }
    }
    let action = fault.map(|fault| fault.action).unwrap_or_default();
    let replaced = match &action {
        Action::DropBefore => {
            note(&shared, &incoming, &judged, None, false);
            return Err(Dropped);
        }
        Action::Answer { after_handling, .. } if !after_handling => {
            let answer = injected(&action);
            note(&shared, &incoming, &judged, Some(answer.status), true);
            Some(answer)
        }
        _ => None,
    };
    if let Some(answer) = replaced {
        return Ok(respond(answer, None));
    }
    let (answer, tag, counted) = carry_out(&shared, &incoming, &judged);
    let dropped = action == Action::DropAfter;
    let answer = match &action {
        Action::Answer { .. } => injected(&action),
        _ => answer,
    };
    note(
        &shared,
        &incoming,
        &judged,
        (!dropped).then_some(answer.status),
        counted,
    );
    shared.notify();
    if dropped {
        return Err(Dropped);
    }
    Ok(respond(answer, tag))
}

async fn read(request: Request<Incoming>, from: IpAddr) -> Option<Arrived> {
    let (parts, body) = request.into_parts();
    let bytes = Limited::new(body, LARGEST).collect().await.ok()?.to_bytes();
    let target = parts
        .uri
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    let full = parts.uri.path();
    let (enterprise, path) = match full.strip_prefix(ENTERPRISE_PREFIX) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => (true, rest.to_owned()),
        _ => (false, full.to_owned()),
    };
    Some(Arrived {
        from,
        method: parts.method.to_string(),
        target,
        path,
        enterprise,
        query: text::query(parts.uri.query()),
        headers: parts.headers,
        body: parse(&bytes),
    })
}

fn parse(bytes: &Bytes) -> Body {
    if bytes.is_empty() {
        Body::Empty
    } else {
        serde_json::from_slice(bytes).map_or(Body::Other, Body::Json)
    }
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
        number,
        now,
        found,
        principal,
        credential,
        fault,
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
            request: judged.number,
            side,
            what,
            operation_id: judged
                .found
                .as_ref()
                .map(|found| found.operation.id.clone()),
            complaint,
        });
    }
}

/// Carries out a request; gives the answer, its tag, and whether it counts.
fn carry_out(
    shared: &Shared,
    incoming: &Arrived,
    judged: &Judged<'_>,
) -> (Answer, Option<String>, bool) {
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
        let body = answer
            .body
            .as_ref()
            .map(Value::to_string)
            .unwrap_or_default();
        let fresh = etag::of(body.as_bytes(), &judged.credential);
        let known = incoming
            .header("if-none-match")
            .is_some_and(|header| etag::matches(header, &fresh));
        if known {
            answer.status = 304;
            answer.body = None;
            counted = false;
        }
        tag = Some(fresh);
    }
    if let Some(found) = &judged.found {
        let body = answer.body.clone().map_or(Body::Empty, Body::Json);
        let complaints = shared
            .description
            .check_answer(found.operation, answer.status, &body);
        violate(world, incoming, judged, Side::Answer, complaints);
    }
    if judged.principal.is_ok() {
        let budget = limits::budget(world, &judged.credential, judged.now);
        if counted {
            budget.used = budget.used.saturating_add(1).min(budget.limit);
        }
        answer.headers.extend(budget.headers());
    }
    answer.headers.push((
        "x-github-request-id".into(),
        format!("SIM:{}", judged.number),
    ));
    if incoming.enterprise && !world.settings.server_version.is_empty() {
        answer.headers.push((
            "x-github-enterprise-version".into(),
            world.settings.server_version.clone(),
        ));
    }
    engine::pump(world, judged.now);
    (answer, tag, counted)
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
        now: judged.now,
        newest,
        target: incoming.target.clone(),
    };
    auth::authorize(world, &call, operation.need)?;
    (operation.handler)(world, &call)
}

fn exhausted(world: &mut World, judged: &Judged<'_>, principal: &Principal) -> Result<(), Answer> {
    let budget = limits::budget(world, &judged.credential, judged.now);
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

fn injected(action: &Action) -> Answer {
    let Action::Answer {
        status,
        body,
        headers,
        ..
    } = action
    else {
        return Answer::empty(500);
    };
    let mut answer = match body {
        Some(body) => Answer::json(*status, body.clone()),
        None => Answer::error(*status, "Injected"),
    };
    for (name, value) in headers {
        answer.headers.push((name.clone().into(), value.clone()));
    }
    answer
}

fn note(
    shared: &Shared,
    incoming: &Arrived,
    judged: &Judged<'_>,
    status: Option<u16>,
    counted: bool,
) {
    let seen = Seen {
        n: judged.number,
        at: judged.now,
        method: incoming.method.clone(),
        path: incoming.target.clone(),
        operation_id: judged
            .found
            .as_ref()
            .map(|found| found.operation.id.clone()),
        status,
        credential: judged.credential.clone(),
        user_agent: incoming.header("user-agent").unwrap_or_default().to_owned(),
        from: incoming.from,
        counted,
        fault: judged.fault.as_ref().map(|fault| fault.action.describe()),
    };
    tracing::debug!(
        n = seen.n,
        method = seen.method,
        path = seen.path,
        status = seen.status,
        credential = seen.credential,
        "request"
    );
    shared.world().remember(seen);
}

fn respond(answer: Answer, tag: Option<String>) -> Response<HttpBody> {
    let body = match &answer.body {
        // Text stands for a body that is not JSON, such as a gateway's page.
        Some(Value::String(text)) => text.clone(),
        Some(body) => body.to_string(),
        None => String::new(),
    };
    let mut response = Response::new(HttpBody::from(body));
    *response.status_mut() = answer
        .status
        .try_into()
        .unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    match &answer.body {
        Some(Value::String(_)) => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
        }
        Some(_) => {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json; charset=utf-8"),
            );
        }
        None => {}
    }
    let more = tag.map(|tag| ("etag".into(), tag));
    for (name, value) in answer.headers.into_iter().chain(more) {
        if let (Ok(name), Ok(value)) = (
            name.parse::<header::HeaderName>(),
            HeaderValue::from_str(&value),
        ) {
            headers.insert(name, value);
        }
    }
    response
}
