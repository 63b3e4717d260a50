//! The pod template: what a CudaRunner's may have is taken as it is.

use cudarunner_crds::template as why;
use gate_report::contract::{GPU, MAIN, PREPARE, RUNNER};
use serde_json::{Map, Value, json};

use super::Draft;
use super::fields::{Fields, Notes};
use super::runner;

/// What is said of Docker, wherever it was asked for.
pub(super) const NO_DOCKER: &str = "there is no Docker beside a runner: for jobs with container: and services:, set spec.jobContainers to {}, and every job of the pool needs a container: then; docker build and Dockerfile actions need another builder";

/// The mode dind as a chart writes it out: its containers and its volumes.
const OF_DOCKER: [&str; 7] = [
    "dind",
    "docker",
    "init-dind-externals",
    "init-dind-rootless",
    "dind-sock",
    "dind-externals",
    "dind-cert",
];

/// The CudaRunner's template from that of a scale set or of a runner.
pub(super) fn take_over(mut given: Fields, draft: &mut Draft, notes: &mut Notes) {
    let mut metadata = given.object("metadata");
    let mut kept = Map::new();
    for field in ["labels", "annotations"] {
        if let Some(keys) = metadata.take(field) {
            kept.insert(field.to_owned(), keys);
        }
    }
    metadata.skip(&["creationTimestamp", "name", "generateName", "namespace"]);
    metadata.end(notes);
    if !kept.is_empty() {
        draft
            .template
            .insert("metadata".to_owned(), Value::Object(kept));
    }
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
    let agent = agent.map(|agent| runner::take_over(Fields::new(path, agent), draft, notes));
    claim(&mut pod, draft);
    if draft.gpu.is_empty() {
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
    let beside = beside(sidecars, others, &pod, notes);
    let mut spec = volumes(pod, draft);
    if !beside.is_empty() {
        spec.insert("initContainers".to_owned(), Value::Array(beside));
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

/// A claim of the runner's, by dynamic resource allocation, that the runner's container has given to `gpu`.
fn claim(pod: &mut Fields, draft: &mut Draft) {
    let Some(Value::String(wanted)) = draft.gpu.remove("claim") else {
        return;
    };
    let claims = pod.objects("resourceClaims");
    let (ours, others): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| {
        name_of(claim) == wanted && claim.contains_key("resourceClaimTemplateName")
    });
    if let Some(template) = ours
        .first()
        .and_then(|claim| claim.get("resourceClaimTemplateName"))
    {
        draft
            .gpu
            .insert("claimTemplate".to_owned(), template.clone());
    }
    if !others.is_empty() {
        pod.put("resourceClaims", json!(others));
    }
}

/// The containers beside the runner: init containers as they are, others as sidecars, and Docker's not at all.
fn beside(
    init: Vec<Map<String, Value>>,
    others: Vec<Map<String, Value>>,
    pod: &Fields,
    notes: &mut Notes,
) -> Vec<Value> {
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
        kept.push(Value::Object(container));
    }
    kept
}

fn name_of(object: &Map<String, Value>) -> &str {
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

/// Whether a volume is of no use without Docker, or what the operator has itself.
fn is_dropped(name: &str, draft: &Draft) -> bool {
    OF_DOCKER.contains(&name) || draft.dropped_volumes.iter().any(|dropped| dropped == name)
}

/// The pod without the volumes that nothing mounts any more.
fn volumes(mut pod: Fields, draft: &Draft) -> Map<String, Value> {
    let volumes = pod.objects("volumes").into_iter();
    let kept: Vec<_> = volumes
        .filter(|volume| !is_dropped(name_of(volume), draft))
        .collect();
    if !kept.is_empty() {
        pod.put("volumes", json!(kept));
    }
    pod.into_rest()
}
