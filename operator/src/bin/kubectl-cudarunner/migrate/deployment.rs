//! Runners of ARC's first generation: `RunnerDeployment`, `RunnerSet`, and the `HorizontalRunnerAutoscaler` beside them.

use cudarunner_crds::{Arch, github_labels};
use serde_json::{Map, Value, json};

use super::fields::{Fields, Notes};
use super::{Draft, pod, schedule};

/// The Secret of the controller itself, which runners use that name none.
const CONTROLLERS: &str = "controller-manager";

/// What a runner says and a CudaRunner does not.
const LEFT: [(&str, &str); 13] = [
    ("dockerdWithinRunnerContainer", pod::NO_DOCKER),
    ("dockerdContainerResources", pod::NO_DOCKER),
    ("dockerVolumeMounts", pod::NO_DOCKER),
    ("dockerRegistryMirror", pod::NO_DOCKER),
    ("dockerImage", pod::NO_DOCKER),
    ("dockerMTU", pod::NO_DOCKER),
    ("dockerEnv", pod::NO_DOCKER),
    ("dockerVarRunVolumeSizeLimit", pod::NO_DOCKER),
    (
        "workDir",
        "the agent's folder for jobs is /home/runner/_work: mount a volume there where it has to be another",
    ),
    (
        "volumeStorageMedium",
        "mount an emptyDir of your own at /home/runner/_work",
    ),
    (
        "volumeSizeLimit",
        "mount an emptyDir of your own at /home/runner/_work",
    ),
    (
        "workVolumeClaimTemplate",
        "the job runs in the runner's own pod: no volume is shared between pods",
    ),
    (
        "volumeClaimTemplates",
        "a runner keeps no volume of its own: mount one of the node's, or a claim that many may read",
    ),
];

/// What belongs to the pod, as a pod has it.
const OF_POD: [&str; 18] = [
    "nodeSelector",
    "tolerations",
    "affinity",
    "imagePullSecrets",
    "runtimeClassName",
    "priorityClassName",
    "hostAliases",
    "dnsPolicy",
    "dnsConfig",
    "topologySpreadConstraints",
    "terminationGracePeriodSeconds",
    "serviceAccountName",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "securityContext",
    "volumes",
    "initContainers",
    "hostNetwork",
];

/// What belongs to the runner's container, as a container has it.
const OF_CONTAINER: [&str; 6] = [
    "image",
    "imagePullPolicy",
    "env",
    "envFrom",
    "resources",
    "volumeMounts",
];

/// A `HorizontalRunnerAutoscaler`.
#[derive(Debug)]
pub(super) struct Scaler {
    target: String,
    min: Option<i64>,
    max: Option<i64>,
    overrides: Vec<schedule::Override>,
    path: String,
}

impl Scaler {
    /// Says that it belongs to nothing here.
    pub(super) fn unused(self, notes: &mut Notes) {
        notes.say(
            "HorizontalRunnerAutoscaler",
            &format!(
                "its target {} is not in the file: give both in one",
                self.target
            ),
        );
    }
}

/// Reads a `HorizontalRunnerAutoscaler`.
pub(super) fn scaler(mut given: Fields, notes: &mut Notes) -> Scaler {
    super::named(&mut given, notes);
    let mut spec = given.object("spec");
    given.end(notes);
    let mut target = spec.object("scaleTargetRef");
    let scaler = Scaler {
        target: target.text("name", notes).unwrap_or_default(),
        // As ARC has it where the field is not there.
        min: spec.number("minReplicas", notes).or(Some(1)),
        max: spec.number("maxReplicas", notes),
        overrides: schedule::read(&mut spec, notes),
        path: spec.path("maxReplicas"),
    };
    target.skip(&["apiVersion", "kind"]);
    target.end(notes);
    let by_queue = "the pool follows the queue by itself, as GitHub's scale-set service tells it";
    let table = [
        ("metrics", by_queue),
        ("scaleUpTriggers", by_queue),
        ("scaleDownDelaySecondsAfterScaleOut", by_queue),
        ("capacityReservations", by_queue),
        (
            "githubAPICredentialsFrom",
            "the pool has one Secret, that of its runners",
        ),
    ];
    spec.leave(&table, notes);
    spec.end(notes);
    scaler
}

/// The CudaRunner for a `RunnerDeployment` or a `RunnerSet`.
pub(super) fn resource(
    mut given: Fields,
    scalers: &mut Vec<Scaler>,
    notes: &mut Notes,
) -> Result<Draft, String> {
    // A RunnerDeployment has a runner in its template, a RunnerSet a pod, with the runner beside it.
    let is_set = given.kind() == "RunnerSet";
    let (name, namespace) = super::named(&mut given, notes);
    let mut spec = given.object("spec");
    given.end(notes);
    let mut draft = Draft {
        name: name.unwrap_or_default(),
        namespace,
        ..Draft::default()
    };
    let replicas = spec.number("replicas", notes);
    let of_this = scalers
        .iter()
        .position(|scaler| scaler.target == draft.name);
    if let Some(scaler) = of_this.map(|at| scalers.remove(at)) {
        let path = scaler.path.replace("max", "min");
        let usual = super::at_most(scaler.min.unwrap_or_default(), &path, notes);
        let (min, schedule) = schedule::windows(&scaler.overrides, usual, notes);
        draft.schedule = schedule;
        draft.scale(Some(min), scaler.max, &scaler.path, notes);
    } else {
        let path = spec.path("replicas");
        draft.replicas = Some(super::at_most(replicas.unwrap_or(1), &path, notes));
    }
    spec.skip(&[
        "selector",
        "serviceName",
        "updateStrategy",
        "podManagementPolicy",
        "revisionHistoryLimit",
    ]);
    spec.leave(
        &[(
            "effectiveTime",
            "the operator replaces idle runners by itself when the spec changes",
        )],
        notes,
    );
    let mut template = spec.object("template");
    let mut runner = if is_set {
        spec
    } else {
        let runner = template.object("spec");
        spec.end(notes);
        runner
    };
    registration(&mut draft, &mut runner, notes)?;
    let pod = if is_set {
        with_image(template, &mut runner)
    } else {
        as_pod(template, &mut runner, notes)
    };
    pod::take_over(pod, &mut draft, notes);
    runner.end(notes);
    Ok(draft)
}

/// Where the runners register, and what for.
fn registration(draft: &mut Draft, runner: &mut Fields, notes: &mut Notes) -> Result<(), String> {
    let place = ["repository", "organization"]
        .into_iter()
        .find_map(|field| runner.text(field, notes))
        .or_else(|| Some(format!("enterprises/{}", runner.text("enterprise", notes)?)));
    let place = place.ok_or_else(|| {
        format!(
            "{} is missing, and organization and enterprise are, too",
            runner.path("repository")
        )
    })?;
    draft.github.insert(
        "url".to_owned(),
        json!(format!("https://github.com/{place}")),
    );
    notes.say(
        "spec.github.url",
        "this kind does not name the server, and github.com is assumed: correct it for ghe.com or an Enterprise Server",
    );
    let mut credentials = runner.object("githubAPICredentialsFrom");
    let mut reference = credentials.object("secretRef");
    let secret = reference.text("name", notes);
    for fields in [reference, credentials] {
        fields.end(notes);
    }
    let secret = secret.unwrap_or_else(|| {
        notes.say(
            "spec.github.credentialsRef",
            &format!("these runners use the credentials of ARC's controller: copy its Secret, {CONTROLLERS}, into the pool's namespace"),
        );
        CONTROLLERS.to_owned()
    });
    draft
        .github
        .insert("credentialsRef".to_owned(), json!({"name": secret}));
    if let Some(group) = runner.text("group", notes) {
        draft.github.insert("runnerGroup".to_owned(), json!(group));
    }
    draft.labels = github_labels(Arch::Amd64).map(str::to_owned).to_vec();
    draft.labels.extend(runner.texts("labels"));
    if runner.take("ephemeral") == Some(json!(false)) {
        notes.say(
            &runner.path("ephemeral"),
            "each job gets a fresh runner; for runners that keep their name, set spec.lifetime to Persistent",
        );
    }
    match runner.text("containerMode", notes).as_deref() {
        Some("kubernetes") => draft.job_containers = Some(Map::new()),
        Some(_) => notes.say(&runner.path("containerMode"), pod::NO_DOCKER),
        None => {}
    }
    if runner.take("dockerEnabled") == Some(json!(true)) {
        notes.say(&runner.path("dockerEnabled"), pod::NO_DOCKER);
    }
    runner.leave(&LEFT, notes);
    Ok(())
}

/// The pod that a runner's fields describe.
fn as_pod(mut template: Fields, runner: &mut Fields, notes: &mut Notes) -> Fields {
    let take = |runner: &mut Fields, fields: &[&str]| -> Map<String, Value> {
        let taken = fields
            .iter()
            .filter_map(|field| Some(((*field).to_owned(), runner.take(field)?)));
        taken.collect()
    };
    let mut agent = take(runner, &OF_CONTAINER);
    agent.insert("name".to_owned(), json!("runner"));
    let mut pod = take(runner, &OF_POD);
    let mut containers = vec![];
    for container in [
        runner.objects("containers"),
        runner.objects("sidecarContainers"),
    ]
    .concat()
    {
        if container.get("name") == Some(&json!("runner")) {
            agent.extend(container);
        } else {
            containers.push(Value::Object(container));
        }
    }
    containers.insert(0, Value::Object(agent));
    pod.insert("containers".to_owned(), Value::Array(containers));
    let mut whole = Map::from_iter([("spec".to_owned(), Value::Object(pod))]);
    if let Some(metadata) = template.take("metadata") {
        whole.insert("metadata".to_owned(), metadata);
    }
    template.end(notes);
    Fields::new("spec.template".to_owned(), whole)
}

/// The pod of a `RunnerSet`, whose image may be beside it.
fn with_image(mut template: Fields, runner: &mut Fields) -> Fields {
    let image = runner.take("image");
    let mut pod = template.object("spec");
    let mut containers = pod.objects("containers");
    let is_agent = |c: &Map<String, Value>| c.get("name") == Some(&json!("runner"));
    if let Some(image) = image {
        if !containers.iter().any(is_agent) {
            containers.insert(0, Map::from_iter([("name".to_owned(), json!("runner"))]));
        }
        for agent in containers.iter_mut().filter(|c| is_agent(c)) {
            agent.entry("image").or_insert_with(|| image.clone());
        }
    }
    let mut rest = pod.into_rest();
    rest.insert("containers".to_owned(), json!(containers));
    let mut whole = template.into_rest();
    whole.insert("spec".to_owned(), Value::Object(rest));
    Fields::new("spec.template".to_owned(), whole)
}
