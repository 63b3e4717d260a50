//! An API server that is played: it expects these requests, in this order, and gives these answers.

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
            let (parts, body) = request.into_parts();
            let query = parts.uri.query().unwrap_or_default();
            let watch = if query.contains("watch=true") {
                "WATCH "
            } else {
                ""
            };
            assert_eq!(
                format!("{watch}{} {}", parts.method, parts.uri.path()),
                expected
            );
            let body = body.collect().await.unwrap().to_bytes();
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

/// Path of the pools of a namespace.
pub(crate) fn pools_of(namespace: &str) -> String {
    format!("/apis/cudarunner.dev/v1alpha1/namespaces/{namespace}/cudarunners")
}

impl Step {
    /// The request, and status and body of the answer.
    fn answer(self) -> (String, u16, Option<String>) {
        match self {
            Self::Object(request, object) => (request, 200, Some(object.to_string())),
            Self::List(path, items) => {
                let list = json!({
                    "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "100"}, "items": items,
                });
                (format!("GET {path}"), 200, Some(list.to_string()))
            }
            Self::Watch(path, objects) => {
                let events = objects
                    .into_iter()
                    .map(|object| format!("{}\n", json!({"type": "MODIFIED", "object": object})));
                (format!("WATCH GET {path}"), 200, Some(events.collect()))
            }
            Self::Refused(request, code) => {
                let reason = if code == 404 { "NotFound" } else { "Forbidden" };
                let status = json!({
                    "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": code,
                    "message": "you may not",
                });
                (request, code, Some(status.to_string()))
            }
            Self::Silence(path) => (format!("WATCH GET {path}"), 200, None),
        }
    }
}
