//! The change of a runner's container from the gate's image to the agent's: the one write that does not come from a plan. The
//! registrar asks for it when it has admitted a gate's report, on whichever replica that came to.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::registrar::PodIdentity;
use cuda_runner_plan::model::runner::GPU;

/// Has the kubelet start the container again, with this image and the same devices. Safe to repeat.
///
/// The client is not held back where another replica leads: that one plans, and this one has the pod's word.
pub async fn change(client: Client, pod: &PodIdentity, image: &str) -> Result<(), kube::Error> {
    let patch = json!({
        // Names come back with other pods in them: of another uid the API server refuses this.
        "metadata": {"uid": pod.uid},
        "spec": {"initContainers": [{"name": GPU, "image": image}]},
    });
    let api = Api::<Pod>::namespaced(client, &pod.namespace);
    let params = PatchParams::default();
    // By the names of containers, which a merge patch does not know; of the answer nothing is needed.
    api.patch_metadata(&pod.name, &params, &Patch::Strategic(patch))
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Method, Request, Response};
    use http_body_util::BodyExt as _;
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    #[tokio::test]
    async fn the_image_of_one_container_of_this_very_pod_is_changed_and_nothing_else() {
        // Given an API server
        let (tell, mut asked) = tokio::sync::mpsc::channel(1);
        let service = tower::service_fn(move |request: Request<Body>| {
            let tell = tell.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap();
                tell.send((head, body)).await.unwrap();
                let answer = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {}});
                Ok::<_, Infallible>(Response::new(Body::from(answer.to_string().into_bytes())))
            }
        });
        let pod = PodIdentity {
            namespace: "ci".to_owned(),
            name: "pool-aaaaa".to_owned(),
            uid: "u".to_owned(),
            node: None,
        };
        // When the image is changed
        let client = Client::new(service, "default");
        change(client, &pod, "example/runner:1").await.unwrap();
        // Then that is one patch
        let (head, body) = asked.recv().await.unwrap();
        assert_eq!(
            (head.method, head.uri.path()),
            (Method::PATCH, "/api/v1/namespaces/ci/pods/pool-aaaaa")
        );
        let kind = head.headers["content-type"].to_str().unwrap();
        assert_eq!(kind, "application/strategic-merge-patch+json");
        assert_eq!(
            body,
            json!({
                "metadata": {"uid": "u"},
                "spec": {"initContainers": [{"name": "gpu", "image": "example/runner:1"}]},
            })
        );
        assert!(asked.recv().await.is_none());
    }
}
