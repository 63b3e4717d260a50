//! A scale set that GitOps installs: the values in a `HelmRelease` of Flux, and in an `Application` of Argo CD.

use serde_json::{Map, Value};

use super::fields::{Fields, Notes};
use super::{Draft, Given, named, scale_set};

/// What is written on the release itself.
const OF_METADATA: [(&str, &str); 2] = [
    ("labels", "they were for the release"),
    ("annotations", "they were for the release"),
];
/// How Flux installs a chart.
const OF_FLUX: [&str; 18] = [
    "chart",
    "chartRef",
    "commonMetadata",
    "dependsOn",
    "driftDetection",
    "install",
    "interval",
    "kubeConfig",
    "maxHistory",
    "persistentClient",
    "rollback",
    "serviceAccountName",
    "storageNamespace",
    "suspend",
    "test",
    "timeout",
    "uninstall",
    "upgrade",
];
/// How Argo CD installs one.
const OF_ARGO: [&str; 6] = [
    "ignoreDifferences",
    "info",
    "project",
    "revisionHistoryLimit",
    "syncPolicy",
    "sourceHydrator",
];
/// Where Argo CD finds a chart, and how Helm is called.
const OF_SOURCE: [&str; 7] = [
    "chart",
    "name",
    "path",
    "ref",
    "repoURL",
    "targetRevision",
    "directory",
];
const OF_HELM: [&str; 8] = [
    "apiVersions",
    "ignoreMissingValueFiles",
    "kubeVersion",
    "namespace",
    "passCredentials",
    "skipCrds",
    "skipSchemaValidation",
    "version",
];
/// What changes the chart's values, or its objects, from outside.
const FROM_OUTSIDE: [(&str, &str); 5] = [
    (
        "valuesFrom",
        "what it adds to the values is not in the file: add it by hand",
    ),
    (
        "postRenderers",
        "what it changes of ARC's objects is not taken over: change spec.template instead",
    ),
    (
        "valueFiles",
        "what they add to the values is not in the file: add it by hand",
    ),
    (
        "parameters",
        "each takes the place of a value: change that by hand",
    ),
    (
        "fileParameters",
        "each takes the place of a value: change that by hand",
    ),
];

/// The `CudaRunner` for a `HelmRelease`; `None` where its values are of no scale set.
pub(super) fn of_flux(mut given: Fields, notes: &mut Notes) -> Result<Vec<Draft>, String> {
    let (name, namespace) = head(&mut given, notes);
    let mut spec = given.object("spec");
    let values = spec.object("values");
    if !values.has("githubConfigUrl") {
        return Ok(without("HelmRelease", name, notes));
    }
    given.end(notes);
    let target = spec.text("targetNamespace", notes);
    // As Flux calls a release to which nobody gives a name.
    let prefix = target.as_ref().map(|target| format!("{target}-"));
    let usual = name.map(|name| format!("{}{name}", prefix.unwrap_or_default()));
    let release = Given {
        name: spec.text("releaseName", notes).or(usual),
        namespace: target.or(namespace),
    };
    spec.leave(&FROM_OUTSIDE, notes);
    spec.skip(&OF_FLUX);
    spec.end(notes);
    Ok(vec![scale_set::values(values, &release, notes)?])
}

/// The `CudaRunner`s for an `Application` of Argo CD: one for each of its sources that has the values of a scale set.
pub(super) fn of_argo(mut given: Fields, notes: &mut Notes) -> Result<Vec<Draft>, String> {
    let (name, _) = head(&mut given, notes);
    let mut spec = given.object("spec");
    let path = spec.path("sources");
    let several = spec.objects("sources").into_iter().enumerate();
    let several = several.map(|(number, source)| {
        let path = format!("{path}[{number}]");
        (path.clone(), Fields::new(path, source))
    });
    let all: Vec<_> = std::iter::once((spec.path("source"), spec.object("source")))
        .chain(several)
        .collect();
    let mut destination = spec.object("destination");
    let release = Given {
        name: name.clone(),
        namespace: destination.text("namespace", notes),
    };
    let (mut drafts, mut others) = (vec![], vec![]);
    for (path, source) in all {
        match of_source(source, &release, notes)? {
            Some(draft) => drafts.push(draft),
            None => others.push(path),
        }
    }
    if drafts.is_empty() {
        return Ok(without("Application", name, notes));
    }
    // The one of `source`, where there are several.
    for path in others.iter().filter(|path| path.ends_with(']')) {
        notes.say(path, "it has no values of a scale set: left out");
    }
    destination.skip(&["server", "name"]);
    spec.skip(&OF_ARGO);
    for fields in [destination, spec, given] {
        fields.end(notes);
    }
    Ok(drafts)
}

/// One source of an `Application`; nothing of one that installs something else.
fn of_source(
    mut source: Fields,
    release: &Given,
    notes: &mut Notes,
) -> Result<Option<Draft>, String> {
    let mut helm = source.object("helm");
    let written = helm.path("values");
    let object = helm.object("valuesObject");
    // Argo CD does not look at the text where there is an object.
    let values = if object.has("githubConfigUrl") {
        object
    } else {
        let text = helm.text("values", notes).unwrap_or_default();
        Fields::new(written, of_text(&text))
    };
    if !values.has("githubConfigUrl") {
        return Ok(None);
    }
    let given = Given {
        name: helm
            .text("releaseName", notes)
            .or_else(|| release.name.clone()),
        namespace: release.namespace.clone(),
    };
    helm.leave(&FROM_OUTSIDE, notes);
    helm.skip(&OF_HELM);
    source.skip(&OF_SOURCE);
    helm.end(notes);
    source.end(notes);
    scale_set::values(values, &given, notes).map(Some)
}

/// Values that are written as a text; none where that is no mapping.
fn of_text(text: &str) -> Map<String, Value> {
    match super::documents(text).map(|mut documents| documents.pop()) {
        Ok(Some(values)) => values.into_rest(),
        _ => Map::new(),
    }
}

/// Name and namespace of a release.
fn head(given: &mut Fields, notes: &mut Notes) -> (Option<String>, Option<String>) {
    let mut metadata = given.object("metadata");
    metadata.leave(&OF_METADATA, notes);
    given.put("metadata", Value::Object(metadata.into_rest()));
    named(given, notes)
}

fn without(kind: &str, name: Option<String>, notes: &mut Notes) -> Vec<Draft> {
    notes.say(
        &format!("{kind} {}", name.unwrap_or_default()),
        "it has no values with a githubConfigUrl: left out; where it installs a scale set, give the values that it names",
    );
    vec![]
}
