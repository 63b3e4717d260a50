//! A field is taken, or it is told: each value of each file is another one once, and a field that nobody knows is added to
//! each object. The other value, or the new field, is then in what comes out, or a note has its path or that of an object
//! around it.

use serde_json::Value;

use super::{FILES, given};
use crate::migrate::fields::Fields;
use crate::migrate::{documents, migrate};

const MARK: &str = "mark-7f3a";
const NUMBER: i64 = 4321;

/// What needs no word, by the end of its path; with a dot at the end, all that is below it.
const SILENT: &[&str] = &[
    // Of the file itself, and what the API server and ARC's controllers write
    "apiVersion",
    "kind",
    "metadata.finalizers[0]",
    "status.",
    // The scaler's, and that of a scale set whose name is another one
    "metadata.name",
    // A scaler counts them, and runners are no StatefulSet
    "spec.replicas",
    "spec.selector.",
    "spec.serviceName",
    // Only ARC's own parts read these
    "env[ACTIONS_RUNNER_CONTAINER_HOOKS].fieldOfNobody",
    "env[ACTIONS_RUNNER_POD_NAME].",
    "env[ACTIONS_RUNNER_REQUIRE_JOB_CONTAINER].",
    "env[RUNNER_WAIT_FOR_DOCKER_IN_SECONDS].",
    "githubServerTLS.runnerMountPath",
    // Gone with Docker, of which enough is said
    "volumes[dind-sock].",
    "volumes[dind-externals].",
    "volumeMounts[dind-sock].",
    // Kubernetes has no such field there, and refuses the file before anybody has it here
    "resourceClaims[devices].fieldOfNobody",
    "resourceClaims[one].fieldOfNobody",
    "resources.claims[one].fieldOfNobody",
];

fn is_silent(path: &str) -> bool {
    SILENT.iter().any(|silent| {
        let all_below = silent.ends_with('.') && path.contains(silent);
        all_below || path.ends_with(silent)
    })
}

/// What installs a scale set: all but its values says how that is done. A test of its own looks at names and namespaces.
fn is_of_installer(kind: &str, path: &str) -> bool {
    ["HelmRelease", "Application"].contains(&kind) && !path.contains(".values")
}

/// A document with one change, and the path of what was changed in the words of notes.
struct Changed {
    path: String,
    document: Value,
}

/// Every change of a document.
fn changes(document: &Value) -> Vec<Changed> {
    let mut places = vec![];
    walk(document, String::new(), String::new(), &mut places);
    let changed = places.into_iter().filter_map(|(path, pointer)| {
        let mut document = document.clone();
        let place = document.pointer_mut(&pointer)?;
        let path = match place {
            Value::String(text) => {
                MARK.clone_into(text);
                path
            }
            Value::Number(_) => {
                *place = NUMBER.into();
                path
            }
            Value::Object(fields) => {
                fields.insert("fieldOfNobody".to_owned(), MARK.into());
                join(&path, "fieldOfNobody")
            }
            _ => return None,
        };
        Some(Changed { path, document })
    });
    changed.collect()
}

/// All places of a value: the path in the words of notes, and the pointer.
fn walk(value: &Value, path: String, pointer: String, places: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let escaped = name.replace('~', "~0").replace('/', "~1");
                walk(
                    value,
                    join(&path, name),
                    format!("{pointer}/{escaped}"),
                    places,
                );
            }
        }
        Value::Array(list) => {
            for (number, value) in list.iter().enumerate() {
                let name = value.get("name").and_then(Value::as_str);
                let name = name.map_or(number.to_string(), str::to_owned);
                walk(
                    value,
                    format!("{path}[{name}]"),
                    format!("{pointer}/{number}"),
                    places,
                );
            }
        }
        _ => {}
    }
    places.push((path, pointer));
}

fn join(path: &str, field: &str) -> String {
    let dot = if path.is_empty() { "" } else { "." };
    format!("{path}{dot}{field}")
}

/// Whether a note is about this place, or about something around it, such as the whole resource. What a first-generation runner says of itself, its
/// container says here.
fn is_about(note: &str, path: &str, kind: &str) -> bool {
    let container = "containers[runner].";
    let (place, _) = note.split_once(": ").unwrap_or_default();
    if !kind.is_empty() && place.starts_with(kind) {
        return true;
    }
    let (place, path) = (place.replace(container, ""), path.replace(container, ""));
    let rest = path.strip_prefix(&place);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn vanishes(all: &[Value], name: Option<&str>, path: &str, kind: &str) -> bool {
    let text: Vec<String> = all
        .iter()
        .map(|d| serde_saphyr::to_string(d).unwrap())
        .collect();
    // What is refused as a whole vanishes in no silence.
    let Ok(migrated) = migrate(&text.join("---\n"), &given(name)) else {
        return false;
    };
    let number = NUMBER.to_string();
    let is_there = |text: &str| text.contains(MARK) || text.contains(&number);
    let mut notes = migrated.notes.iter();
    !is_there(&migrated.yaml) && !notes.any(|note| is_there(note) || is_about(note, path, kind))
}

#[test]
fn no_value_of_a_file_vanishes_without_a_word() {
    let mut vanished = vec![];
    for (file, text, name) in FILES {
        let documents = documents(text).unwrap().into_iter();
        let documents = documents.map(Fields::into_rest).map(Value::Object);
        let all: Vec<Value> = documents.collect();
        for (number, document) in all.iter().enumerate() {
            let kind = document["kind"].as_str().unwrap_or_default();
            for Changed { path, document } in changes(document) {
                let mut changed = all.clone();
                changed[number] = document;
                let is_told = is_silent(&path) || is_of_installer(kind, &path);
                if !is_told && vanishes(&changed, name, &path, kind) {
                    vanished.push(format!("{file}: {path}"));
                }
            }
        }
    }
    assert!(vanished.is_empty(), "{vanished:#?}");
}
