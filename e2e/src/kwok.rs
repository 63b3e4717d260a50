//! Simulated GPU nodes, by KWOK: cheap, many, and their pods run at once without running anything.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use crate::{
    supervisor::{Program, Supervisor},
    tools::Tools,
};

/// The annotation by which KWOK knows its nodes.
const ANNOTATION: (&str, &str) = ("kwok.x-k8s.io/node", "fake");
/// The annotation of pods whose gate is played by hand: it runs until somebody says otherwise.
pub const GATE_BY_HAND: (&str, &str) = ("e2e.example.com/gate", "by-hand");
/// What KWOK does with them. The weight puts it before the stage that makes every other pod ready at once.
const GATED: &str = r"
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata:
  name: pod-gated
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchAnnotations: {e2e.example.com/gate: by-hand}
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.podIP, operator: DoesNotExist}
  weight: 1
  next:
    patches:
";
/// What KWOK does with all other runners' pods: the gate has passed, the image is the runner's, and the agent is idle, at
/// once. It plays the registrar, too, since nobody else would change the image: last, since a pod that has an address already
/// is not looked at again in between.
const LET_IN: &str = r#"
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata:
  name: pod-let-in
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: '.metadata.annotations["cudarunner.dev/runner-image"]', operator: Exists}
    - {key: '.metadata.annotations["e2e.example.com/gate"]', operator: DoesNotExist}
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.podIP, operator: DoesNotExist}
  weight: 1
  next:
    patches:
"#;
const CHANGE_OF_THE_IMAGE: &str = r#"
    - root: spec
      type: strategic
      template: |
        initContainers:
        - name: gpu
          image: {{ index .metadata.annotations "cudarunner.dev/runner-image" | Quote }}
"#;
/// What both say of the containers. `READY` is whether the agent is, `RESTARTS` how often its container was started anew.
const STATUS: &str = r#"
    - subresource: status
      root: status
      type: strategic
      template: |
        {{ $now := Now }}
        conditions:
        - type: Initialized
          status: "True"
          lastTransitionTime: {{ $now | Quote }}
        {{ range $type := list "Ready" "ContainersReady" }}
        - type: {{ $type | Quote }}
          status: {{ if READY }}"True"{{ else }}"False"{{ end }}
          lastTransitionTime: {{ $now | Quote }}
        {{ end }}
        initContainerStatuses:
        {{ range .spec.initContainers }}
        - image: {{ .image | Quote }}
          imageID: ""
          name: {{ .name | Quote }}
          {{ if eq .name "gpu" }}
          ready: READY
          restartCount: RESTARTS
          started: true
          state:
            running:
              startedAt: {{ $now | Quote }}
          {{ else }}
          ready: true
          restartCount: 0
          started: false
          state:
            terminated:
              exitCode: 0
              finishedAt: {{ $now | Quote }}
              reason: Completed
              startedAt: {{ $now | Quote }}
          {{ end }}
        {{ end }}
        containerStatuses:
        {{ range .spec.containers }}
        - image: {{ .image | Quote }}
          imageID: ""
          name: {{ .name | Quote }}
          ready: READY
          restartCount: 0
          started: READY
          state:
            running:
              startedAt: {{ $now | Quote }}
        {{ end }}
        hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
        podIP: {{ PodIPWith .spec.nodeName false ( or .metadata.uid "" ) ( or .metadata.name "" ) ( or .metadata.namespace "" ) | Quote }}
        phase: Running
        startTime: {{ $now | Quote }}
"#;
/// GPUs of one simulated node.
const GPUS: &str = "8";

/// Starts KWOK's controller.
pub fn start(dir: &Path, supervisor: &Supervisor, tools: &Tools) -> Result<()> {
    let mut program = Program::new("kwok", tools.kwok())
        .arg(format!(
            "--kubeconfig={}",
            dir.join("config/kwok.kubeconfig").display()
        ))
        .arg("--manage-all-nodes=false")
        .arg(format!(
            "--manage-nodes-with-annotation-selector={}={}",
            ANNOTATION.0, ANNOTATION.1
        ))
        // Without a heartbeat nodes would turn NotReady, and every pod on them with them.
        .arg("--node-lease-duration-seconds=40")
        .arg("--server-address=127.0.0.1:0");
    for stage in [
        "node/fast/node-initialize.yaml",
        "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
        "pod/fast/pod-ready.yaml",
        "pod/fast/pod-complete.yaml",
        "pod/fast/pod-delete.yaml",
    ] {
        program = program.arg(format!("--config={}", tools.kwok_stage(stage).display()));
    }
    let status = |ready: &str, restarts: &str| {
        let status = STATUS.replace("READY", ready);
        status.replace("RESTARTS", restarts)
    };
    let let_in = [LET_IN, &status("true", "1"), CHANGE_OF_THE_IMAGE].concat();
    for (name, stage) in [
        ("pod-gated", [GATED, &status("false", "0")].concat()),
        ("pod-let-in", let_in),
    ] {
        let file = dir.join(format!("config/{name}.yaml"));
        fs::write(&file, stage)?;
        program = program.arg(format!("--config={}", file.display()));
    }
    supervisor.start(program)
}

/// Adds simulated nodes and waits until they are ready.
pub async fn add_nodes(client: &Client, count: usize) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    stream::iter(0..count)
        .map(|number| {
            let nodes = nodes.clone();
            async move {
                match nodes.create(&PostParams::default(), &node(number)?).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                    other => other.map(drop).map_err(anyhow::Error::from),
                }
            }
        })
        .buffer_unordered(16)
        .try_collect::<()>()
        .await?;
    crate::wait::wait_for(
        "simulated nodes to be ready",
        Duration::from_mins(3),
        async || {
            let ready = nodes
                .list(&ListParams::default())
                .await?
                .into_iter()
                .filter(|n| is_fake(n) && is_ready(n))
                .count();
            Ok((ready >= count).then_some(()))
        },
    )
    .await
}

/// Removes one of them.
pub async fn remove_node(client: &Client, number: usize) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    nodes
        .delete(&name(number), &DeleteParams::default())
        .await?;
    Ok(())
}

/// Name of a simulated node.
pub fn name(number: usize) -> String {
    format!("kwok-{number}")
}

fn node(number: usize) -> Result<Node> {
    let resources = json!({"cpu": "64", "memory": "512Gi", "pods": "250", "nvidia.com/gpu": GPUS});
    let name = name(number);
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "annotations": {ANNOTATION.0: ANNOTATION.1},
            "labels": {"type": "kwok", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
        },
        // Only pods that ask for it: the real node is for the others.
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": resources, "allocatable": resources},
    }))?)
}

fn is_fake(node: &Node) -> bool {
    node.metadata
        .annotations
        .as_ref()
        .is_some_and(|all: &BTreeMap<_, _>| all.contains_key(ANNOTATION.0))
}

/// Whether the node's Ready condition is true.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
