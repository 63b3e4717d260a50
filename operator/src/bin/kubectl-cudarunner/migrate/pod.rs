//! The pod template: what a CudaRunner's may have is taken as it is.

use cudarunner_crds::template as why;
use gate_report::contract::{GPU, MAIN, PREPARE, RUNNER};
use serde_json::{Map, Value, json};

use super::fields::{Fields, Notes};
use super::{Draft, claims, mounts, runner};

/// What is said of Docker, wherever it was asked for.
pub(super) const NO_DOCKER: &str = "there is no Docker beside a runner: for jobs with container: and services:, set spec.jobContainers to {}, and every job of the pool needs a container: then; docker build and Dockerfile actions need another builder";

/// The containers of the mode dind, as a chart writes it out.
const OF_DOCKER: [&str; 4] = [
    "dind",
    "docker",
    "init-dind-externals",
    "init-dind-rootless",
];

/// A container beside the runner.
#[derive(Debug)]
pub(super) struct Beside {
    /// Where it was.
    pub(super) path: String,
    /// As it is to be.
    pub(super) fields: Map<String, Value>,
}

impl Beside {
    /// Whether it goes on beside the runner.
    pub(super) fn is_sidecar(&self) -> bool {
        self.fields.get("restartPolicy") == Some(&json!("Always"))
    }
}

/// The CudaRunner's template from that of a scale set or of a runner.
pub(super) fn take_over(mut given: Fields, draft: &mut Draft, notes: &mut Notes) {
    metadata(given.object("metadata"), draft, notes);
    let mut pod = given.object("spec");
    given.end(notes);
    not_for_templates(&mut pod, notes);
    let containers = pod.objects("containers");
    let sidecars = pod.objects("initContainers");
    let (agents, others): (Vec<_>, Vec<_>) = containers
        .into_iter()
        .partition(|container| name_of(container) == RUNNER);
    let agent = agents.into_iter().next();
    let path = pod.path(&format!("containers[{RUNNER}]"));
    let mut agent =
        agent.map(|agent| runner::take_over(Fields::new(path.clone(), agent), draft, notes));
    if let Some(agent) = &mut agent {
        claims::take_over(&mut pod, &path, agent, draft, notes);
    }
    if draft.gpu.is_empty() && !draft.unclear_gpu {
        notes.say(
            &pod.path("containers"),
            "the runner asks for no GPU, and each runner of a CudaRunner has one: spec.gpu.count says how many, of spec.gpu.resource",
        );
    }
    if draft.job_containers.is_some() {
        let account = "serviceAccountName";
        pod.leave(
            &[(
                account,
                "the operator's hook makes no pods: the agent needs no service account",
            )],
            notes,
        );
    }
    let of_docker = sidecars.iter().chain(&others);
    let of_docker = of_docker.filter(|container| is_docker(container));
    let of_docker = of_docker.flat_map(mounts::mounted).collect();
    let beside = beside(sidecars, others, &pod, notes);
    let of_agent = agent.as_mut().map(|agent| (path.as_str(), agent));
    let beside = mounts::settle(&mut pod, of_agent, (beside, of_docker), draft, notes);
    let mut spec = pod.into_rest();
    if !beside.is_empty() {
        let beside: Vec<_> = beside
            .into_iter()
            .map(|container| container.fields)
            .collect();
        spec.insert("initContainers".to_owned(), json!(beside));
    }
    if let Some(agent) = agent.filter(|agent| agent.len() > 1) {
        spec.insert("containers".to_owned(), json!([agent]));
    }
    if !spec.is_empty() {
        draft
            .template
            .insert("spec".to_owned(), Value::Object(spec));
    }
}

fn metadata(mut given: Fields, draft: &mut Draft, notes: &mut Notes) {
    let mut kept = Map::new();
    for field in ["labels", "annotations"] {
        if let Some(keys) = given.take(field) {
            kept.insert(field.to_owned(), keys);
        }
    }
    given.skip(&["creationTimestamp", "name", "generateName", "namespace"]);
    given.end(notes);
    if !kept.is_empty() {
        draft
            .template
            .insert("metadata".to_owned(), Value::Object(kept));
    }
}

/// Fields of a pod that a CudaRunner's template may not have, with what its CRD says of them.
fn not_for_templates(pod: &mut Fields, notes: &mut Notes) {
    if pod
        .take("restartPolicy")
        .is_some_and(|policy| policy != "Never")
    {
        notes.say(&pod.path("restartPolicy"), why::RESTART_POLICY);
    }
    let table = [
        ("nodeName", why::NODE_NAME),
        ("activeDeadlineSeconds", why::DEADLINE),
        (
            "ephemeralContainers",
            "Kubernetes takes them for pods that run, not for new ones: use `kubectl debug`",
        ),
    ];
    pod.leave(&table, notes);
    for (field, why) in [
        ("shareProcessNamespace", why::SHARED_PROCESSES),
        ("automountServiceAccountToken", why::ACCOUNT_TOKEN),
    ] {
        if pod.take(field) == Some(json!(true)) {
            notes.say(&pod.path(field), why);
        }
    }
}

/// The containers beside the runner: init containers as they are, others as sidecars, and Docker's not at all.
fn beside(
    init: Vec<Map<String, Value>>,
    others: Vec<Map<String, Value>>,
    pod: &Fields,
    notes: &mut Notes,
) -> Vec<Beside> {
    let mut kept = vec![];
    let init = init
        .into_iter()
        .map(|container| ("initContainers", container));
    let others = others
        .into_iter()
        .map(|container| ("containers", container));
    for (list, mut container) in init.chain(others) {
        let name = name_of(&container).to_owned();
        let path = pod.path(&format!("{list}[{name}]"));
        if is_docker(&container) {
            notes.say(&path, NO_DOCKER);
            continue;
        }
        if list == "containers" {
            container.insert("restartPolicy".to_owned(), json!("Always"));
            notes.say(
                &path,
                "it is an entry of initContainers with restartPolicy: Always now: it runs beside the runner, and ends with it",
            );
        }
        if [PREPARE, GPU, MAIN].contains(&name.as_str()) {
            container.insert("name".to_owned(), json!(format!("{name}-of-the-team")));
            notes.say(
                &path,
                "a container of the operator's has this name: it is renamed",
            );
        }
        let fields = container;
        kept.push(Beside { path, fields });
    }
    kept
}

/// What an entry of a list is called.
pub(super) fn name_of(object: &Map<String, Value>) -> &str {
    object
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn is_docker(container: &Map<String, Value>) -> bool {
    let image = container
        .get("image")
        .and_then(Value::as_str)
        .unwrap_or_default();
    OF_DOCKER.contains(&name_of(container)) || image.starts_with("docker:")
}
