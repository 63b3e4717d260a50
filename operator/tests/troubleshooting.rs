//! `docs/guides/troubleshooting.md` has every reason that means trouble, and none that does not exist.
#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cuda_runner_plan::condition::kind;

/// Reasons which say that all is well, or on its way.
const WELL: &[&str] = &[
    "Accepted",
    "Adding",
    "AllFieldsActedOn",
    "ChecksRemoved",
    "EveryJobHasAPool",
    "GatePassed",
    "JobCompleted",
    "Listening",
    "NotAsked",
    "NotChecked",
    "NotRead",
    "NotStarted",
    "NotTried",
    "Online",
    "Passed",
    "Progressing",
    "QuarantineLifted",
    "Reading",
    "Released",
    "Removing",
    "Requested",
    "Required",
    "Running",
    "ScaledToZero",
    "Starting",
    "TornDown",
    "VerificationStarted",
    "Verified",
    "WaitsForRunner",
    "WaitsForVerification",
];

/// Words of one form with reasons that are none.
const OTHER_WORDS: &[&str] = &[
    // Of Kubernetes: statuses, phases, what containers wait for, values of fields.
    "AlreadyExists",
    "ContainerCreating",
    "DeletionByPodGC",
    "DeletionByTaintManager",
    "DisruptionTarget",
    "DoesNotExist",
    "AppArmor",
    "ContainerCannotRun",
    "ContainersReady",
    "ErrImagePull",
    "EvictionByEvictionAPI",
    "InitContainerRestartPolicyForbidden",
    "OutOf",
    "PodFeatureUnsupported",
    "PodLevelResourcesNotAdmitted",
    "PodOSNotSupported",
    "PodOSSelectorNodeLabelDoesNotMatch",
    "SMTAlignmentError",
    "Seccomp",
    "Shutdown",
    "StartError",
    "SysctlForbidden",
    "UnexpectedAdmissionError",
    "Exists",
    "FallbackToLogsOnError",
    "False",
    "Gt",
    "IfNotPresent",
    "In",
    "Memory",
    "Never",
    "NoSchedule",
    "Node",
    "NodeShutdown",
    "NotIn",
    "OOMKilled",
    "Pod",
    "PodInitializing",
    "PodScheduled",
    "Preempting",
    "PreemptionByScheduler",
    "RuntimeDefault",
    "Succeeded",
    "Terminated",
    "TerminationByKubelet",
    "True",
    "Unknown",
    // Of our own: types of conditions of nodes, kinds, values of fields, what an Event is about, categories of errors for metrics alone.
    "App",
    "Busy",
    "CudaRunner",
    "CudaSmoke",
    "Kubernetes",
    "NoCredentials",
    "NotLeading",
    "Panic",
    "Persistent",
    "Reconcile",
    "Report",
    "Require",
    "ScaleSet",
    "Status",
    "Token",
    "Uninstall",
    // Of GitHub: the runner group that is always there; where a ruleset may come from; what the scale-set service calls
    // its messages, labels, errors and settings, and the schemes of its tokens.
    "AgentNotFound",
    "Bearer",
    "Default",
    "JobAvailable",
    "JobStarted",
    "JobStillRunningException",
    "RemoteAuth",
    "Repository",
    "RunnerScaleSetExistsException",
    "RunnerScaleSetNotFound",
    "RunnerSetting",
    "System",
    // Of rustls.
    "NotValidForName",
    "UnknownIssuer",
];

#[test]
fn every_reason_that_means_trouble_is_explained() {
    let explained = explained();
    let missing: Vec<_> = words()
        .into_iter()
        .filter(|word| !kind::ALL.contains(&word.as_str()))
        .filter(|word| !WELL.contains(&word.as_str()) && !OTHER_WORDS.contains(&word.as_str()))
        .filter(|word| !explained.contains(word))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/guides/troubleshooting.md lacks {missing:?}; what means no trouble goes into this test's lists"
    );
}

#[test]
fn every_reason_that_is_explained_exists() {
    let words = words();
    let unknown: Vec<_> = explained().difference(&words).cloned().collect();
    assert!(unknown.is_empty(), "no code says {unknown:?}");
}

#[test]
fn the_lists_hold_nothing_else() {
    let words = words();
    let gone: Vec<_> = WELL
        .iter()
        .chain(OTHER_WORDS)
        .filter(|word| !words.contains(**word))
        .collect();
    assert!(gone.is_empty(), "no code says {gone:?}");
}

/// Words in the first column of the page's tables.
fn explained() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/troubleshooting.md");
    let page = fs::read_to_string(page).unwrap();
    page.lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split('`'))
        .filter(|word| is_word(word))
        .map(str::to_owned)
        .collect()
}

/// Strings of one `PascalCase` word in the code: reasons, and what else has that form. What the registrar says to a
/// gate is told by `RegistrationRefused`.
fn words() -> BTreeSet<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut words = BTreeSet::new();
    read(&source, &mut words);
    read(&source.join("../plan/src"), &mut words);
    read(&source.join("../../crds/src/lib.rs"), &mut words);
    words
}

fn read(path: &Path, words: &mut BTreeSet<String>) {
    const SKIPPED: [&str; 7] = [
        "bin",
        "registration.rs",
        "fixture.rs",
        "metrics",
        "registrar",
        "tests",
        "tests.rs",
    ];
    if SKIPPED.iter().any(|name| path.ends_with(name)) {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            read(&entry.unwrap().path(), words);
        }
        return;
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let is_said = |line: &&str| {
        let line = line.trim_start();
        !line.starts_with("//") && !line.contains("#[serde(")
    };
    for line in code.lines().filter(is_said) {
        let pieces: Vec<_> = line.split('"').collect();
        let inside = pieces.get(1..pieces.len() - 1).unwrap_or_default();
        words.extend(inside.iter().filter(|p| is_word(p)).map(|&p| p.to_owned()));
    }
}

/// `Abc` or `AbcDef`: no abbreviation, no sentence.
fn is_word(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.contains(|c: char| c.is_ascii_lowercase())
        && word.chars().all(|c| c.is_ascii_alphabetic())
}
