//! The agent's container.

use cudarunner_crds::template as why;
use serde_json::{Map, Value, json};

use super::Draft;
use super::fields::{Fields, Notes};
use super::pod::NO_DOCKER;

/// What starts the agent in GitHub's image, in each way that is seen.
const STARTS: [&str; 3] = ["/home/runner/run.sh", "./run.sh", "run.sh"];
/// Images of ARC's first generation, which start by a script of their own.
const OLD_IMAGE: &str = "summerwind/actions-runner";

/// Variables that are left out, with what is said of them; nothing of those that only ARC's own parts read.
const VARIABLES: [(&str, Option<&str>); 14] = [
    ("DOCKER_HOST", Some(NO_DOCKER)),
    ("DOCKER_TLS_VERIFY", None),
    ("DOCKER_CERT_PATH", None),
    ("DOCKERD_IN_RUNNER", Some(NO_DOCKER)),
    ("RUNNER_WAIT_FOR_DOCKER_IN_SECONDS", None),
    ("ACTIONS_RUNNER_POD_NAME", None),
    ("ACTIONS_RUNNER_IMAGE", None),
    ("ACTIONS_RUNNER_CONTAINER_HOOKS", None),
    (
        "ACTIONS_RUNNER_CONTAINER_HOOK_TEMPLATE",
        Some(
            "the job's container is in the runner's own pod, scheduled once: what its hook template said goes into spec.template and spec.jobContainers",
        ),
    ),
    ("ACTIONS_RUNNER_USE_KUBE_SCHEDULER", None),
    (
        "ACTIONS_RUNNER_PREPARE_JOB_TIMEOUT_SECONDS",
        Some("a job waits for its image for an hour at most"),
    ),
    (
        "NVIDIA_VISIBLE_DEVICES",
        Some(
            "the device plugin decides which devices a container has: spec.gpu.count says how many",
        ),
    ),
    ("RUNNER_MANUALLY_TRAP_SIG", None),
    ("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE", None),
];
/// Decides in ARC whether a job may be without a container.
const REQUIRE: &str = "ACTIONS_RUNNER_REQUIRE_JOB_CONTAINER";
/// Where ARC's image has the hooks of its modes for containers.
const ARCS_HOOKS: [&str; 2] = [
    "/home/runner/k8s/index.js",
    "/home/runner/k8s-novolume/index.js",
];
const OWN_HOOKS: &str = "hooks of your own are not called: the operator's run the job's container in the runner's pod; what yours did beside that goes into the workflow, or into sidecars of spec.template";
/// By these the hooks for containers are found.
const HOOKS: [&str; 2] = [
    "ACTIONS_RUNNER_CONTAINER_HOOKS",
    "ACTIONS_RUNNER_CONTAINER_HOOK_TEMPLATE",
];

/// The runner's container as a CudaRunner's template has it. Its GPUs go to `spec.gpu`.
pub(super) fn take_over(
    mut given: Fields,
    draft: &mut Draft,
    notes: &mut Notes,
) -> Map<String, Value> {
    starts(&mut given, notes);
    given.leave(
        &[("startupProbe", why::PROBE), ("readinessProbe", why::PROBE)],
        notes,
    );
    given.skip(&[
        "terminationMessagePath",
        "terminationMessagePolicy",
        "tty",
        "stdin",
    ]);
    if given
        .get("image")
        .and_then(Value::as_str)
        .is_some_and(|image| image.contains(OLD_IMAGE))
    {
        given.skip(&["image"]);
        notes.say(
            &given.path("image"),
            "this image starts and registers by a script of its own: the operator's default, GitHub's image, is taken; an image of yours needs /home/runner/run.sh",
        );
    }
    variables(&mut given, draft, notes);
    devices(&mut given, draft, notes);
    given.into_rest()
}

/// What the container starts: the agent, or something around it.
fn starts(given: &mut Fields, notes: &mut Notes) {
    for field in ["command", "args"] {
        let words = given.texts(field);
        if words.iter().any(|word| !STARTS.contains(&word.as_str())) {
            notes.say(&given.path(field), why::COMMAND);
        }
    }
}

fn variables(given: &mut Fields, draft: &mut Draft, notes: &mut Notes) {
    let all = given.objects("env");
    let mut kept = vec![];
    for variable in all {
        let name = variable
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let path = given.path(&format!("env[{name}]"));
        if HOOKS.contains(&name) {
            draft.job_containers.get_or_insert_default();
        }
        let value = variable.get("value").and_then(Value::as_str);
        if name == HOOKS[0] && value.is_none_or(|hooks| !ARCS_HOOKS.contains(&hooks)) {
            notes.say(&path, OWN_HOOKS);
        } else if name == REQUIRE {
            if value == Some("false") {
                notes.say(&path, "with spec.jobContainers every job needs a container:, which is where the proven GPU is");
            }
        } else if let Some((_, why)) = VARIABLES.iter().find(|(known, _)| *known == name) {
            if let Some(why) = why {
                notes.say(&path, why);
            }
        } else if name.starts_with("ACTIONS_RUNNER_INPUT_") {
            notes.say(&path, "options of the agent are the operator's: spec.github and spec.labels say what it registers with");
        } else if draft.github.contains_key("proxy") && is_proxy(name) {
            notes.say(&path, "spec.github.proxy sets it");
        } else if let Some(other) = kept
            .iter_mut()
            .find(|other: &&mut Map<String, Value>| other.get("name") == variable.get("name"))
        {
            notes.say(
                &path,
                "it is there twice: the last is taken, as Kubernetes does",
            );
            *other = variable;
        } else {
            kept.push(variable);
        }
    }
    if !kept.is_empty() {
        given.put("env", json!(kept));
    }
}

fn is_proxy(name: &str) -> bool {
    ["http_proxy", "https_proxy", "no_proxy"].contains(&name.to_lowercase().as_str())
}

/// GPUs go to `spec.gpu`: the gate proves what is said there.
fn devices(given: &mut Fields, draft: &mut Draft, notes: &mut Notes) {
    let path = given.path("resources");
    let mut resources = given.object("resources");
    let mut found: Vec<(String, String)> = vec![];
    for list in ["limits", "requests"] {
        let Some(Value::Object(quantities)) = resources.take(list) else {
            continue;
        };
        let (devices, others): (Map<_, _>, Map<_, _>) =
            quantities.into_iter().partition(|(name, _)| is_gpu(name));
        for (name, quantity) in devices {
            let quantity = quantity
                .as_str()
                .map_or_else(|| quantity.to_string(), str::to_owned);
            match found.iter().find(|(other, _)| *other == name) {
                None => found.push((name, quantity)),
                Some((_, limit)) if *limit == quantity => {}
                Some(_) => notes.say(
                    &format!("{path}.{list}"),
                    &format!("of {name} it says another number than limits, which counts"),
                ),
            }
        }
        if !others.is_empty() {
            resources.put(list, Value::Object(others));
        }
    }
    let mut found = found.into_iter().filter(|(_, quantity)| quantity != "0");
    if let Some((resource, quantity)) = found.next() {
        if resource.starts_with("amd.com") || resource.starts_with("gpu.intel.com") {
            notes.say(
                &path,
                "the gate proves NVIDIA's GPUs by CUDA, and no others",
            );
        }
        let count: Option<i64> = quantity
            .parse()
            .ok()
            .filter(|count| (1..=64).contains(count));
        if count.is_none() {
            notes.say(&path, "a runner has 1 to 64 GPUs: spec.gpu.count is 1");
        }
        draft.gpu.insert("resource".to_owned(), json!(resource));
        draft
            .gpu
            .insert("count".to_owned(), json!(count.unwrap_or(1)));
    }
    for (other, _) in found {
        notes.say(
            &path,
            &format!("a runner has GPUs of one resource: {other} is left out"),
        );
    }
    let rest = resources.into_rest();
    if !rest.is_empty() {
        given.put("resources", Value::Object(rest));
    }
}

fn is_gpu(name: &str) -> bool {
    let Some((vendor, device)) = name.split_once('/') else {
        return false;
    };
    let is_named = device == "gpu" || device.starts_with("gpu.") || device.starts_with("mig-");
    (vendor == "nvidia.com" || vendor == "amd.com" || vendor == "gpu.intel.com") && is_named
}
