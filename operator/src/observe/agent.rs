//! How an agent ended, from its exit code and its last words.

use gate_report::Class;
use k8s_openapi::api::core::v1::ContainerStateTerminated;

use super::end::{End, JOB_CUT_SHORT};

/// The reason of a runner whose agent GitHub finds too old.
pub const VERSION_REFUSED: &str = "VersionRefused";
/// The start line's exit code when `config.sh` has failed.
const NOT_CONFIGURED: i32 = 78;

/// The end of an agent that finished no job with it. `cut_text` tells of the job that it had, if it had one.
pub(super) fn end(
    runner: &ContainerStateTerminated,
    cut_text: &str,
    persistent: bool,
    failure: &impl Fn(&'static str, Class, String) -> End,
) -> End {
    let last_words = runner.message.as_deref().unwrap_or_default();
    match (runner.reason.as_deref(), runner.exit_code) {
        (Some("OOMKilled"), _) => failure(
            "OutOfMemory",
            Class::Config,
            format!(
                "The runner used more memory than its limit; raise resources.limits.memory of the container `runner` in spec.template.{cut_text}"
            ),
        ),
        (_, 7) => version_refused(last_words, failure),
        (_, NOT_CONFIGURED) if last_words.contains("is deprecated") => {
            version_refused(last_words, failure)
        }
        (_, NOT_CONFIGURED) => failure(
            "NotConfigured",
            Class::Transient,
            format!(
                "config.sh could not register the runner ({}); `kubectl logs` of the pod tells more.",
                last_line(last_words)
            ),
        ),
        (_, code) if !cut_text.is_empty() => failure(
            JOB_CUT_SHORT,
            Class::Transient,
            format!("The agent ended with code {code} in the middle of a job.{cut_text}"),
        ),
        (_, code) if persistent => failure(
            "AgentEnded",
            Class::Transient,
            format!(
                "The persistent runner's agent ended with code {code}, without a job; its entry on GitHub may have been removed, or its container was killed. It is replaced under the same name."
            ),
        ),
        (_, code) => failure(
            "EndedWithoutJob",
            Class::Transient,
            format!(
                "The agent ended with code {code} and ran no job; its registration may have been removed. `kubectl logs` of the pod tells more."
            ),
        ),
    }
}

/// Transient at first: an outage has looked the same. The plan takes a second refusal for what it says.
fn version_refused(words: &str, failure: &impl Fn(&'static str, Class, String) -> End) -> End {
    let version = refused_version(words).map_or_else(String::new, |v| format!(" {v}"));
    let minimum = minimum_version(words).map_or_else(String::new, |v| format!(", at least {v},"));
    failure(
        VERSION_REFUSED,
        Class::Transient,
        format!(
            "GitHub refuses the version{version} of the agent; use an image with a newer one{minimum} in spec.template."
        ),
    )
}

/// The version in the agent's `Runner version vX.Y.Z is deprecated`.
fn refused_version(words: &str) -> Option<&str> {
    version_after(words, "unner version v")
}

/// The version in the agent's `minimum version is vX.Y.Z`.
fn minimum_version(words: &str) -> Option<&str> {
    version_after(words, "minimum version is v")
}

fn version_after<'a>(words: &'a str, before: &str) -> Option<&'a str> {
    let (_, rest) = words.rsplit_once(before)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let version = rest.get(..end)?.trim_end_matches('.');
    (!version.is_empty() && version.len() < 32).then_some(version)
}

/// The last line that says anything, cut to a sentence's length.
fn last_line(words: &str) -> String {
    let line = words.lines().rev().map(str::trim).find(|l| !l.is_empty());
    line.unwrap_or("it left no message")
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect()
}
