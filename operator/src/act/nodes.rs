//! Writes to nodes: fields of ours, beside those of others.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::is_status;
use crate::context::CONTROLLER;
use cuda_runner_plan::node_marks::{self, Change, MarkNode, NodeCondition};

/// How often a list of taints is written that somebody else has changed meanwhile.
const ATTEMPTS: u32 = 5;

/// Marks a node, and gives it as it is then; `None` where there is no such node any more.
pub async fn mark(client: &Client, mark: &MarkNode) -> Result<Option<Node>, kube::Error> {
    let api = Api::<Node>::all(client.clone());
    match &mark.change {
        Change::Condition(said) => condition(&api, mark, said).await,
        Change::Taint(wanted) => taint(&api, mark, *wanted).await,
    }
}

/// Conditions are a list by type, of which each writer applies its own.
async fn condition(
    api: &Api<Node>,
    mark: &MarkNode,
    said: &NodeCondition,
) -> Result<Option<Node>, kube::Error> {
    let patch = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"uid": mark.uid},
        "status": {"conditions": [{
            "type": node_marks::CONDITION,
            "status": said.status,
            "reason": said.reason.as_str(),
            "message": said.message,
            "lastHeartbeatTime": said.since,
            "lastTransitionTime": said.since,
        }]},
    });
    let params = PatchParams::apply(CONTROLLER).force();
    let patched = api
        .patch_status(&mark.name, &params, &Patch::Apply(patch))
        .await;
    match patched {
        // Gone, or a namesake.
        Err(error) if is_status(&error, 404) || is_status(&error, 409) => Ok(None),
        other => other.map(Some),
    }
}

/// Taints are one value, which is read and written whole: with the version, so that none that comes meanwhile is lost.
async fn taint(
    api: &Api<Node>,
    mark: &MarkNode,
    wanted: bool,
) -> Result<Option<Node>, kube::Error> {
    let mut attempt = 1;
    loop {
        let found = api.get_opt(&mark.name).await?;
        let Some(node) = found.filter(|n| n.metadata.uid.as_ref() == Some(&mark.uid)) else {
            return Ok(None);
        };
        let Some(patch) = with_taint(&node, wanted) else {
            return Ok(Some(node));
        };
        let params = PatchParams {
            field_manager: Some(CONTROLLER.to_owned()),
            ..PatchParams::default()
        };
        match api.patch(&mark.name, &params, &Patch::Merge(patch)).await {
            Err(error) if is_status(&error, 409) && attempt < ATTEMPTS => attempt += 1,
            Err(error) if is_status(&error, 404) => return Ok(None),
            other => return other.map(Some),
        }
    }
}

/// The change of a node's taints; `None` where ours is as wanted.
fn with_taint(node: &Node, wanted: bool) -> Option<Value> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.clone());
    let mut taints = taints.unwrap_or_default();
    if taints.iter().any(node_marks::is_ours) == wanted {
        return None;
    }
    if wanted {
        taints.push(node_marks::taint());
    } else {
        taints.retain(|taint| !node_marks::is_ours(taint));
    }
    Some(json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": taints},
    }))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http::{Method, Request, Response};
    use http_body_util::BodyExt as _;
    use kube::client::Body;

    use super::*;

    /// A node whose taints somebody else changes at the first `conflicts` attempts to write them.
    fn api_server(conflicts: u64) -> (Client, Arc<Mutex<Vec<Value>>>) {
        let sent = Arc::new(Mutex::new(vec![]));
        let seen = Arc::clone(&sent);
        let service = tower::service_fn(move |request: Request<Body>| {
            let seen = Arc::clone(&seen);
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let mut seen = seen.lock().unwrap();
                let version = seen.len() as u64;
                let mut node = json!({"apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": "node-1", "uid": "u", "resourceVersion": version.to_string()},
                    "spec": {"taints": [{"key": format!("foreign-{version}"), "effect": "NoExecute"}]}});
                let mut code = 200;
                if parts.method == Method::PATCH {
                    let patch: Value = serde_json::from_slice(&body).unwrap();
                    let based_on = patch["metadata"]["resourceVersion"].as_str();
                    assert_eq!(based_on, Some(version.to_string().as_str()));
                    node["spec"] = patch["spec"].clone();
                    seen.push(patch);
                    if version < conflicts {
                        code = 409;
                        node = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "", "reason": "Conflict", "code": code});
                    }
                }
                let body = Body::from(node.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        (Client::new(service, "default"), sent)
    }

    fn tainted(uid: &str) -> MarkNode {
        MarkNode {
            name: "node-1".to_owned(),
            uid: uid.to_owned(),
            change: Change::Taint(true),
        }
    }

    #[tokio::test]
    async fn a_taint_that_comes_meanwhile_is_not_lost() {
        let (client, sent) = api_server(2);
        let node = mark(&client, &tainted("u")).await.unwrap().unwrap();
        // Two writes were refused; the third has what was there by then
        assert_eq!(sent.lock().unwrap().len(), 3);
        let taints = node.spec.unwrap().taints.unwrap();
        let keys: Vec<&str> = taints.iter().map(|t| t.key.as_str()).collect();
        assert_eq!(keys, ["foreign-2", node_marks::TAINT]);
    }

    #[tokio::test]
    async fn who_never_comes_to_write_says_so_and_a_namesake_is_left_alone() {
        let (client, sent) = api_server(99);
        let error = mark(&client, &tainted("u")).await.unwrap_err();
        assert!(is_status(&error, 409), "{error}");
        assert_eq!(sent.lock().unwrap().len(), 5);

        let (client, sent) = api_server(0);
        assert_eq!(mark(&client, &tainted("another")).await.unwrap(), None);
        assert!(sent.lock().unwrap().is_empty());
    }

    #[test]
    fn our_taint_comes_and_goes_alone() {
        let node = |taints: Value| -> Node {
            serde_json::from_value(json!({"metadata": {}, "spec": {"taints": taints}})).unwrap()
        };
        let foreign =
            json!({"key": "a", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"});
        let same_key = json!({"key": node_marks::TAINT, "effect": "NoExecute"});
        let ours = json!({"key": node_marks::TAINT, "effect": "NoSchedule"});
        let without = node(json!([foreign, same_key]));
        let with = node(json!([foreign, ours, same_key]));
        assert_eq!(with_taint(&without, false), None);
        assert_eq!(with_taint(&with, true), None);
        let patch = with_taint(&without, true).unwrap();
        assert_eq!(patch["spec"]["taints"], json!([foreign, same_key, ours]));
        let patch = with_taint(&with, false).unwrap();
        assert_eq!(patch["spec"]["taints"], json!([foreign, same_key]));
    }
}
