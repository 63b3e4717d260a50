//! `migrate`: the CudaRunner for what a file says to Actions Runner Controller (ARC), and what it could not take over.
//!
//! A field is taken, or it is told: what nobody has taken from a document is at the end on the list of what was left.

mod claims;
mod deployment;
mod fields;
mod github;
mod mounts;
mod nodes;
mod pod;
mod release;
mod runner;
mod scale_set;
mod schedule;
#[cfg(test)]
mod tests;

use std::io::Read as _;
use std::path::Path;

use cuda_runner_plan::model::pool::Pool;
use cudarunner_crds::{Arch, CudaRunner, ScheduleWindow};
use serde_json::{Map, Value, json};

use fields::{Fields, Notes};

/// The longest file that is read. A resource of Kubernetes has less than 1.5 MiB, and most of it would be ours to refuse.
const LONGEST: u64 = 1024 * 1024;
/// The most resources of a file that are looked at.
const MOST: usize = 1_000;
/// The longest name of a CudaRunner.
const LONGEST_NAME: usize = 57;
/// The most runners that a CudaRunner may have.
const MOST_RUNNERS: i64 = 10_000;
/// The limit of runners where ARC has none: what GitHub assigns is limited by the GPUs that are free in any case.
const NO_LIMIT: i64 = 100;

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    /// The pool's name, where the file has none.
    pub(super) name: Option<String>,
    /// The namespace, where the file has none.
    pub(super) namespace: Option<String>,
}

/// What came out.
#[derive(Debug)]
pub(super) struct Migrated {
    /// The `CudaRunner`s.
    pub(super) yaml: String,
    /// What was not taken over, and why; and what to do.
    pub(super) notes: Vec<String>,
}

/// The text of a file, or of standard input for `-`.
pub(super) fn read(file: &Path) -> Result<String, String> {
    let named = file.display();
    let failed = |error: std::io::Error| format!("{named} cannot be read: {error}");
    let source: Box<dyn std::io::Read> = if file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(failed)?)
    };
    let mut text = String::new();
    // One byte more than there may be shows that there is more.
    let mut source = source.take(LONGEST.saturating_add(1));
    source.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LONGEST {
        return Err(format!(
            "{named} is longer than {} KiB: give the file of one scale set or deployment",
            LONGEST / 1024
        ));
    }
    Ok(text)
}

/// The `CudaRunner`s for the documents of a file.
pub(super) fn migrate(text: &str, given: &Given) -> Result<Migrated, String> {
    let documents = documents(text)?;
    let mut notes = Notes::default();
    let (scalers, others): (Vec<Fields>, Vec<Fields>) = documents
        .into_iter()
        .partition(|document| document.kind() == "HorizontalRunnerAutoscaler");
    let mut scalers: Vec<_> = scalers
        .into_iter()
        .map(|scaler| deployment::scaler(scaler, &mut notes))
        .collect();
    let mut drafts = vec![];
    for mut document in others {
        let kind = document.kind();
        match kind.as_str() {
            "AutoscalingRunnerSet" => drafts.push(scale_set::resource(document, &mut notes)?),
            "RunnerDeployment" | "RunnerSet" => {
                drafts.push(deployment::resource(document, &mut scalers, &mut notes)?);
            }
            "HelmRelease" => drafts.extend(release::of_flux(document, &mut notes)?),
            "Application" => drafts.extend(release::of_argo(document, &mut notes)?),
            "" if document.has("githubConfigUrl") => {
                drafts.push(scale_set::values(document, given, &mut notes)?);
            }
            "" => notes.say(
                "a document without a kind",
                "it has no githubConfigUrl, so that these are no values of a scale set: left out",
            ),
            _ => {
                let name = document.object("metadata").text("name", &mut notes);
                let name = name.unwrap_or_default();
                notes.say(
                    &format!("{kind} {name}"),
                    "it describes no runners: left out, and it may stay as it is",
                );
            }
        }
    }
    for scaler in scalers {
        scaler.unused(&mut notes);
    }
    if drafts.is_empty() {
        return Err("nothing here describes runners: an AutoscalingRunnerSet, the values of a gha-runner-scale-set, a HelmRelease or an Application with such values, a RunnerDeployment or a RunnerSet does".to_owned());
    }
    let written = drafts
        .into_iter()
        .map(|draft| draft.write(given, &mut notes))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Migrated {
        yaml: written.join("---\n"),
        notes: notes.into_lines(),
    })
}

/// The documents of a file, lists taken apart.
fn documents(text: &str) -> Result<Vec<Fields>, String> {
    // As Kubernetes and Helm read it: modes of files are octal numbers there, and comments may be as long as they like.
    let options = serde_saphyr::options! { legacy_octal_numbers: true, emit_comments: false };
    let read = serde_saphyr::from_multiple_with_options::<Value>(text, options);
    let read = read.map_err(|error| {
        let hint = if text.contains("{{") {
            "; this looks like a template of Helm: give what `helm template` makes of it, or the values"
        } else {
            ""
        };
        // The first line has the place; the others show the text, which may hold a secret.
        let error = error.to_string();
        let first = error.lines().next().unwrap_or_default();
        format!("this is no YAML: {first}{hint}")
    })?;
    let mut documents = vec![];
    for document in read {
        match document {
            Value::Object(mut list) if list.get("kind").and_then(Value::as_str) == Some("List") => {
                if let Some(Value::Array(items)) = list.remove("items") {
                    documents.extend(items);
                }
            }
            Value::Null => {}
            other => documents.push(other),
        }
    }
    if documents.len() > MOST {
        return Err(format!("there are more than {MOST} documents: give fewer"));
    }
    let fields = documents.into_iter().map(|document| match document {
        Value::Object(map) => Ok(Fields::new(String::new(), map)),
        _ => {
            Err("a document is no mapping of fields: give resources, or values of Helm".to_owned())
        }
    });
    fields.collect()
}

/// A CudaRunner in the making.
#[derive(Debug, Default)]
struct Draft {
    name: String,
    namespace: Option<String>,
    /// `spec.github`.
    github: Map<String, Value>,
    labels: Vec<String>,
    /// `spec.scaling`.
    scaling: Option<Value>,
    /// What goes into `spec.scaling.schedule`.
    schedule: Vec<ScheduleWindow>,
    replicas: Option<i64>,
    /// `spec.gpu`.
    gpu: Map<String, Value>,
    /// `spec.jobContainers`.
    job_containers: Option<Map<String, Value>>,
    /// Whether the runner has GPUs of which it is not clear what they are.
    unclear_gpu: bool,
    /// `spec.template`.
    template: Map<String, Value>,
}

impl Draft {
    /// The resource as YAML. What the operator would refuse is told.
    fn write(self, given: &Given, notes: &mut Notes) -> Result<String, String> {
        let name = as_name(&self.name);
        if name.is_empty() {
            return Err(format!(
                "{:?} gives no name to a pool: give one with --name",
                self.name
            ));
        }
        if name != self.name {
            notes.say(
                "metadata.name",
                &format!("{:?} is no name of a CudaRunner, and {name} is", self.name),
            );
        }
        let arch = self.arch(notes);
        let of_default = Arch::default().github_label();
        let labels = self.labels.into_iter().map(|label| match arch {
            Some(arch) if label == of_default => arch.github_label().to_owned(),
            _ => label,
        });
        let labels: Vec<String> = labels.collect();
        let mut spec = json!({"github": self.github, "labels": labels});
        let mut set = |field: &str, value: Value| spec[field] = value;
        if let Some(arch) = arch {
            set("arch", json!(arch));
        }
        if let Some(scaling) = self.scaling {
            set("scaling", scaling);
        }
        if let Some(replicas) = self.replicas {
            set("replicas", json!(replicas));
        }
        if !self.gpu.is_empty() {
            set("gpu", Value::Object(self.gpu));
        }
        if let Some(containers) = self.job_containers {
            set("jobContainers", Value::Object(containers));
        }
        if !self.template.is_empty() {
            set("template", Value::Object(self.template));
        }
        let mut metadata = json!({"name": name});
        if let Some(namespace) = self.namespace.or_else(|| given.namespace.clone()) {
            metadata["namespace"] = json!(namespace);
        }
        let resource = json!({
            "apiVersion": "cudarunner.dev/v1alpha1",
            "kind": "CudaRunner",
            "metadata": metadata,
            "spec": spec,
        });
        let read: Result<CudaRunner, _> = serde_json::from_value(resource.clone());
        let refused = match read {
            Ok(read) => Pool::read(&read, false).spec.err().map(|e| e.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(refused) = refused {
            notes.say("to be changed by hand, or the pool stalls", &refused);
        }
        serde_saphyr::to_string(&resource).map_err(|error| error.to_string())
    }

    /// The architecture of the nodes that the template asks for, where it is not the one that a pool has anyway.
    fn arch(&self, notes: &mut Notes) -> Option<Arch> {
        let allowed = nodes::architectures(&self.template);
        if allowed.is_empty() {
            notes.say(
                "template",
                "nodeSelector and nodeAffinity allow no node of amd64 or arm64: no pod would find a node",
            );
        }
        let is_needed = !allowed.contains(&Arch::default());
        allowed.first().copied().filter(|_| is_needed)
    }

    /// The number of runners follows the queue, within what a CudaRunner may have.
    fn scale(&mut self, min: Option<i64>, max: Option<i64>, path: &str, notes: &mut Notes) {
        let min = at_most(min.unwrap_or_default(), &path.replace("max", "min"), notes);
        let most_wait = self.schedule.iter().map(|window| window.min_runners.into());
        let most_wait = most_wait.fold(min.max(1), i64::max);
        let max = max.unwrap_or_else(|| {
            let limit = NO_LIMIT.max(most_wait);
            notes.say(
                path,
                &format!("ARC has no limit without it, and a CudaRunner has one: scaling.maxRunners is {limit}"),
            );
            limit
        });
        let within = at_most(max, path, notes).max(most_wait);
        if within > max {
            let why = if most_wait > 1 {
                "it is less than the runners that wait without a job"
            } else {
                "a CudaRunner may have at least one: of a pool that is to have none, set spec.replicas to 0 instead of spec.scaling"
            };
            notes.say(path, &format!("{why}: scaling.maxRunners is {within}"));
        }
        let mut scaling = json!({"minRunners": min, "maxRunners": within});
        if !self.schedule.is_empty() {
            scaling["schedule"] = json!(self.schedule);
        }
        self.scaling = Some(scaling);
    }
}

/// A number of runners that a CudaRunner may have. Where it is another one, that is told.
fn at_most(number: i64, path: &str, notes: &mut Notes) -> i64 {
    if number > MOST_RUNNERS {
        notes.say(
            path,
            "a CudaRunner has at most 10,000 runners: that many are taken",
        );
    }
    number.clamp(0, MOST_RUNNERS)
}

/// Name and namespace of a resource of ARC's, of which more is said nowhere.
fn named(given: &mut Fields, notes: &mut Notes) -> (Option<String>, Option<String>) {
    let mut metadata = given.object("metadata");
    let named = (
        metadata.text("name", notes),
        metadata.text("namespace", notes),
    );
    metadata.leave(&scale_set::OF_METADATA, notes);
    // What the API server and ARC write.
    metadata.skip(&[
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ]);
    metadata.end(notes);
    given.skip(&["apiVersion", "kind", "status"]);
    named
}

/// A name as near to this one as Kubernetes allows.
fn as_name(text: &str) -> String {
    let lower = text.to_lowercase();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let plain: String = lower
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .take(LONGEST_NAME)
        .collect();
    plain.trim_matches('-').to_owned()
}
