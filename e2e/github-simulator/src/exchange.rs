//! What every logged request goes through: it is read, a fault may hit it, it is remembered, and
//! its answer is written.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use axum::body::{Body as HttpBody, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    answer::Answer,
    faults::{Action, Fault},
    openapi::Body,
    shared::Shared,
    state::Seen,
    text,
};

/// No request of the API is larger.
const LARGEST: usize = 1 << 20;

/// Below this path an Enterprise Server has its API.
pub(crate) const ENTERPRISE_PREFIX: &str = "/api/v3";

/// A request as it came in.
pub(crate) struct Arrived {
    pub(crate) from: IpAddr,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) path: String,
    pub(crate) enterprise: bool,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

impl Arrived {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A connection that is closed on purpose, by an injected fault.
#[derive(Debug)]
pub(crate) struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an injected fault closed the connection")
    }
}

impl std::error::Error for Dropped {}

/// What the log says of a request, whatever its answer.
pub(crate) struct Notice {
    pub(crate) number: u64,
    pub(crate) now: Timestamp,
    pub(crate) operation_id: Option<String>,
    pub(crate) credential: String,
    pub(crate) fault: Option<Fault>,
    /// Whether an answer that a fault gives counts against the hourly limit.
    pub(crate) counts: bool,
}

/// What came of a request that was carried out.
pub(crate) struct Outcome {
    pub(crate) answer: Answer,
    pub(crate) tag: Option<String>,
    pub(crate) counted: bool,
}

/// Reads a request to its end; an error if its sender went away before.
pub(crate) async fn read(request: Request<Incoming>, from: IpAddr) -> Result<Arrived, Dropped> {
    let (parts, body) = request.into_parts();
    let bytes = Limited::new(body, LARGEST)
        .collect()
        .await
        .map_err(|_| {
            tracing::debug!(%from, "a request was not sent to its end");
            Dropped
        })?
        .to_bytes();
    let target = parts
        .uri
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    let full = parts.uri.path();
    let (enterprise, path) = match full.strip_prefix(ENTERPRISE_PREFIX) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => (true, rest.to_owned()),
        _ => (false, full.to_owned()),
    };
    Ok(Arrived {
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

/// Lets the fault of a request do what comes before it is carried out; gives the answer that takes
/// the place of the real one.
pub(crate) async fn before(
    shared: &Shared,
    incoming: &Arrived,
    notice: &Notice,
) -> Result<Option<Response<HttpBody>>, Dropped> {
    let Some(fault) = &notice.fault else {
        return Ok(None);
    };
    tracing::info!(
        method = incoming.method,
        path = incoming.path,
        fault = fault.action.describe(),
        "fault"
    );
    if fault.delay_millis > 0 {
        tokio::time::sleep(Duration::from_millis(fault.delay_millis)).await;
    }
    match &fault.action {
        Action::DropBefore => {
            note(shared, incoming, notice, None, false);
            Err(Dropped)
        }
        Action::Answer { after_handling, .. } if !after_handling => {
            let answer = injected(&fault.action);
            note(shared, incoming, notice, Some(answer.status), notice.counts);
            Ok(Some(respond(answer, None)))
        }
        _ => Ok(None),
    }
}

/// Remembers a request that was carried out, and answers it as its fault has it.
pub(crate) fn after(
    shared: &Shared,
    incoming: &Arrived,
    notice: &Notice,
    outcome: Outcome,
) -> Result<Response<HttpBody>, Dropped> {
    let action = notice.fault.as_ref().map(|fault| &fault.action);
    let dropped = action == Some(&Action::DropAfter);
    let answer = match action {
        Some(action @ Action::Answer { .. }) => injected(action),
        _ => outcome.answer,
    };
    let status = (!dropped).then_some(answer.status);
    note(shared, incoming, notice, status, outcome.counted);
    shared.notify();
    if dropped {
        return Err(Dropped);
    }
    Ok(respond(answer, outcome.tag))
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

fn note(shared: &Shared, incoming: &Arrived, notice: &Notice, status: Option<u16>, counted: bool) {
    let seen = Seen {
        n: notice.number,
        at: notice.now,
        method: incoming.method.clone(),
        path: incoming.target.clone(),
        operation_id: notice.operation_id.clone(),
        status,
        credential: notice.credential.clone(),
        user_agent: incoming.header("user-agent").unwrap_or_default().to_owned(),
        from: incoming.from,
        counted,
        fault: notice.fault.as_ref().map(|fault| fault.action.describe()),
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
