//! API servers that are played: one expects requests in an order, the other answers late.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cuda_runner_operator::selector::PoolSelector;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::connect::Pools;

/// One request, and its answer.
pub(crate) enum Step {
    /// `METHOD path`, and the object that comes back.
    Object(String, Value),
    /// A list of all that there is.
    List(String, Vec<Value>),
    /// A watch that sees these objects change, and ends.
    Watch(String, Vec<Value>),
    /// A request that is refused with this code.
    Refused(String, u16),
    /// A watch that sees nothing for as long as the client waits.
    Silence(String),
}

/// A client in the namespace `ci`, and the bodies that it sent in the end.
pub(crate) fn play(script: Vec<Step>) -> (Pools, JoinHandle<Vec<Value>>) {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let server = tokio::spawn(async move {
        let mut sent = vec![];
        for step in script {
            let (expected, code, answer) = step.answer();
            let (request, responder) = handle.next_request().await.expect("one more request");
            assert_eq!(asked(&request), expected);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            sent.extend(serde_json::from_slice::<Value>(&body));
            let Some(answer) = answer else {
                // Nothing comes, and nothing ends, until the client has had enough.
                while handle.next_request().await.is_some() {}
                responder.send_error("too late");
                break;
            };
            let response = Response::builder().status(code);
            responder.send_response(response.body(Body::from(answer.into_bytes())).unwrap());
        }
        sent
    });
    let pools = Pools {
        client: Client::new(service, "ci"),
        namespace: "ci".to_owned(),
    };
    (pools, server)
}

/// What is answered to a request.
#[derive(Clone)]
pub(crate) enum Answered {
    /// This object.
    Object(Value),
    /// A list of all that there is.
    List(Vec<Value>),
    /// A refusal with this code.
    Refused(u16),
    /// The same, in these words.
    Said(u16, String),
    /// Nothing, for ever.
    Never,
}

/// An API server that takes its time: what it answers to each request, `METHOD path`, in whatever order they come. Of a list it
/// gives what the label selector takes in. A request that it does not know has failed.
#[derive(Clone, Default)]
pub(crate) struct Late(BTreeMap<String, (Answered, Duration)>);

impl Late {
    /// With an answer to one more request, at once.
    pub(crate) fn on(self, request: &str, answer: Answered) -> Self {
        self.after(request, answer, Duration::ZERO)
    }

    /// The same, so late.
    pub(crate) fn after(mut self, request: &str, answer: Answered, late: Duration) -> Self {
        self.0.insert(request.to_owned(), (answer, late));
        self
    }

    /// All answers so late.
    pub(crate) fn each(mut self, by: Duration) -> Self {
        for (_, late) in self.0.values_mut() {
            *late = by;
        }
        self
    }
}

/// A client of it in the namespace `ci`.
pub(crate) fn answers(server: Late) -> Pools {
    let server = Arc::new(server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let known = server.0.get(&asked(&request)).cloned();
        let selector = selector(&request);
        async move {
            let (answer, late) = known.unwrap_or((Answered::Refused(500), Duration::ZERO));
            tokio::time::sleep(late).await;
            let (code, body) = match answer {
                Answered::Object(object) => (200, object.to_string()),
                Answered::List(mut items) => {
                    items.retain(|item| selector.as_ref().is_none_or(|s| s.matches(&labels(item))));
                    (200, list(&items))
                }
                Answered::Refused(code) => (code, refusal(code, "you may not")),
                Answered::Said(code, words) => (code, refusal(code, &words)),
                Answered::Never => std::future::pending().await,
            };
            let response = Response::builder().status(code);
            response.body(Body::from(body.into_bytes()))
        }
    });
    Pools {
        client: Client::new(service, "ci"),
        namespace: "ci".to_owned(),
    }
}

/// The label selector of a list.
fn selector<B>(request: &Request<B>) -> Option<PoolSelector> {
    let mut query = request.uri().query()?.split('&');
    let text = query.find_map(|pair| pair.strip_prefix("labelSelector="))?;
    let text = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    Some(text.parse().unwrap())
}

fn labels(item: &Value) -> BTreeMap<String, String> {
    let labels = &item["metadata"]["labels"];
    serde_json::from_value(labels.clone()).unwrap_or_default()
}

/// A request as scripts name it.
fn asked<B>(request: &Request<B>) -> String {
    let query = request.uri().query().unwrap_or_default();
    let watch = if query.contains("watch=true") {
        "WATCH "
    } else {
        ""
    };
    format!("{watch}{} {}", request.method(), request.uri().path())
}

fn list(items: &[Value]) -> String {
    json!({
        "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "100"}, "items": items,
    })
    .to_string()
}

fn refusal(code: u16, words: &str) -> String {
    let reason = if code == 404 { "NotFound" } else { "Forbidden" };
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": code,
        "message": words,
    })
    .to_string()
}

/// Path of the pools of a namespace.
pub(crate) fn pools_of(namespace: &str) -> String {
    format!("/apis/cudarunner.dev/v1alpha1/namespaces/{namespace}/cudarunners")
}

impl Step {
    /// The request, and status and body of the answer.
    fn answer(self) -> (String, u16, Option<String>) {
        match self {
            Self::Object(request, object) => (request, 200, Some(object.to_string())),
            Self::List(path, items) => (format!("GET {path}"), 200, Some(list(&items))),
            Self::Watch(path, objects) => {
                let events = objects
                    .into_iter()
                    .map(|object| format!("{}\n", json!({"type": "MODIFIED", "object": object})));
                (format!("WATCH GET {path}"), 200, Some(events.collect()))
            }
            Self::Refused(request, code) => (request, code, Some(refusal(code, "you may not"))),
            Self::Silence(path) => (format!("WATCH GET {path}"), 200, None),
        }
    }
}
