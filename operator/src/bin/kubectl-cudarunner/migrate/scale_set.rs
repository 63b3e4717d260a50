//! A runner scale set: the resource, and the values of its chart.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Notes};
use super::{Draft, Given, github, pod};

/// What a scale set says and a CudaRunner does not.
const LEFT: [(&str, &str); 9] = [
    (
        "listenerTemplate",
        "the operator listens for all of its pools by itself: there is no listener's pod to describe",
    ),
    (
        "listenerMetrics",
        "the operator's own metrics are described in docs/guides/monitoring.md",
    ),
    ("autoscalingListenerMetadata", "there is no listener"),
    (
        "controllerServiceAccount",
        "the operator's rights come with its own chart",
    ),
    (
        "resourceMeta",
        "the objects of ARC that it marks are not made",
    ),
    (
        "keyVault",
        "credentials come from a Secret: put them into one, and name it in spec.github.credentialsRef",
    ),
    (
        "vaultConfig",
        "credentials come from a Secret: put them into one, and name it in spec.github.credentialsRef",
    ),
    (
        "autoscalingRunnerSet",
        "the objects of ARC that it marks are not made",
    ),
    ("nameOverride", "it was for ARC's objects"),
];

/// What is written on ARC's objects, whichever they are.
pub(super) const OF_METADATA: [(&str, &str); 2] = [
    (
        "labels",
        "they were for ARC's objects; those of the pods are in template.metadata",
    ),
    (
        "annotations",
        "they were for ARC's objects; those of the pods are in template.metadata",
    ),
];

/// What the modes for containers say and a CudaRunner does not.
const OF_MODE: [(&str, &str); 3] = [
    (
        "kubernetesModeWorkVolumeClaim",
        "the job runs in the runner's own pod, with its files in an emptyDir: no volume is shared between pods",
    ),
    (
        "kubernetesModeServiceAccount",
        "the operator's hook makes no pods: no service account needs a right to do so",
    ),
    (
        "kubernetesModeAdditionalRoleRules",
        "the operator's hook makes no pods: no service account needs a right to do so",
    ),
];

/// The CudaRunner for an `AutoscalingRunnerSet`.
pub(super) fn resource(mut given: Fields, notes: &mut Notes) -> Result<Draft, String> {
    let (name, namespace) = super::named(&mut given, notes);
    let mut spec = given.object("spec");
    given.end(notes);
    let mut draft = Draft {
        namespace,
        ..Draft::default()
    };
    let mut labels = spec.texts("runnerScaleSetLabels");
    name_it(
        &mut draft,
        &mut labels,
        spec.text("runnerScaleSetName", notes).or(name),
    )?;
    common(&mut draft, labels, &mut spec, notes)?;
    spec.end(notes);
    Ok(draft)
}

/// The CudaRunner for the values of the chart gha-runner-scale-set. What is around them, a release or the command line, has the
/// name and the namespace that they do not have.
pub(super) fn values(
    mut given: Fields,
    around: &Given,
    notes: &mut Notes,
) -> Result<Draft, String> {
    let mut draft = Draft {
        namespace: given
            .text("namespaceOverride", notes)
            .or_else(|| around.namespace.clone()),
        ..Draft::default()
    };
    let name = given.text("runnerScaleSetName", notes);
    let mut labels = given.texts("scaleSetLabels");
    name_it(
        &mut draft,
        &mut labels,
        name.or_else(|| around.name.clone()),
    )?;
    common(&mut draft, labels, &mut given, notes)?;
    given.end(notes);
    Ok(draft)
}

/// Jobs find a scale set by its name, and by further labels: nothing else is added, so that no other job comes.
fn name_it(
    draft: &mut Draft,
    labels: &mut Vec<String>,
    name: Option<String>,
) -> Result<(), String> {
    draft.name = name.ok_or(
        "the file names no scale set; ARC takes the name of the Helm release then: give that with --name",
    )?;
    labels.retain(|label| *label != draft.name);
    labels.insert(0, draft.name.clone());
    Ok(())
}

fn common(
    draft: &mut Draft,
    labels: Vec<String>,
    given: &mut Fields,
    notes: &mut Notes,
) -> Result<(), String> {
    draft.labels = labels;
    let url = given.text("githubConfigUrl", notes);
    let url = url.ok_or_else(|| format!("{} is missing", given.path("githubConfigUrl")))?;
    draft.github.insert("url".to_owned(), json!(url));
    let secret = secret(&draft.name, given, notes);
    draft
        .github
        .insert("credentialsRef".to_owned(), json!({"name": secret}));
    if let Some(group) = given.text("runnerGroup", notes) {
        draft.github.insert("runnerGroup".to_owned(), json!(group));
    }
    github::proxy(given.object("proxy"), &mut draft.github, notes);
    github::authority(given.object("githubServerTLS"), &mut draft.github, notes);
    let (min, max) = (
        given.number("minRunners", notes),
        given.number("maxRunners", notes),
    );
    draft.scale(min, max, &given.path("maxRunners"), notes);
    let mut mode = given.object("containerMode");
    let mode_path = mode.path("type");
    match mode.text("type", notes).as_deref() {
        Some("kubernetes" | "kubernetes-novolume") => draft.job_containers = Some(Map::new()),
        Some("dind") => notes.say(&mode_path, pod::NO_DOCKER),
        Some(_) => notes.say(&mode_path, "no such mode is known: left out"),
        None => {}
    }
    mode.leave(&OF_MODE, notes);
    mode.end(notes);
    let template = given.object("template");
    pod::take_over(template, draft, notes);
    given.leave(&LEFT, notes);
    given.leave(&OF_METADATA, notes);
    Ok(())
}

/// The name of the Secret with the credentials.
fn secret(pool: &str, given: &mut Fields, notes: &mut Notes) -> String {
    match given.take("githubConfigSecret") {
        Some(Value::String(name)) => name,
        other => {
            let name = format!("{}-github", super::as_name(pool));
            let why = if other.is_some() {
                "the file holds the credentials themselves, which are not written out: create a Secret with the same keys and values"
            } else {
                "the file names no Secret: create one with github_app_id and github_app_private_key, or github_token"
            };
            notes.say(
                &given.path("githubConfigSecret"),
                &format!("{why}, and the name {name}"),
            );
            name
        }
    }
}
