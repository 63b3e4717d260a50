//! How an agent ended, from its exit code and its last words.

use gate_report::Class;
use k8s_openapi::api::core::v1::ContainerStateTerminated;

use super::end::{Failure, JOB_CUT_SHORT};

/// The reason of a runner whose agent GitHub finds too old.
pub const VERSION_REFUSED: &str = "VersionRefused";
/// The reason of the first such runner: an outage has looked the same.
pub const VERSION_REFUSED_ONCE: &str = "VersionRefusedOnce";
/// The listener's exit code when GitHub finds it too old, see
/// <https://github.com/actions/runner/blob/main/src/Runner.Common/Constants.cs>.
const VERSION_DEPRECATED: i32 = 7;
/// The listener's exit code when another agent holds its session. `run.sh` makes 0 of it.
const SESSION_CONFLICT: i32 = 5;
/// The start line's exit code when `config.sh` has failed.
const NOT_CONFIGURED: i32 = 78;

/// A version of the agent that GitHub refused, in the agent's words.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RefusedVersion {
    /// The version.
    pub version: Option<String>,
    /// The least that would do.
    pub minimum: Option<String>,
}

/// An agent that has ended and finished no job with it.
pub(super) struct AgentEnd<'a> {
    pub(super) container: &'a ContainerStateTerminated,
    /// Tells of the job that it had, if it had one.
    pub(super) cut_text: &'a str,
    pub(super) persistent: bool,
    /// Another agent held its session.
    pub(super) conflict: bool,
}

impl AgentEnd<'_> {
    /// Why it ended; `failure` knows the rest of the pod.
    pub(super) fn failure(
        &self,
        failure: impl Fn(&'static str, Class, String) -> Failure,
    ) -> Failure {
        let last_words = self.container.message.as_deref().unwrap_or_default();
        let cut_text = self.cut_text;
        match (self.container.reason.as_deref(), self.container.exit_code) {
            (Some("OOMKilled"), _) => failure(
                "OutOfMemory",
                Class::Config,
                format!(
                    "The runner used more memory than its limit; raise resources.limits.memory of the container `runner` in spec.template.{cut_text}"
                ),
            ),
            (_, VERSION_DEPRECATED) => version_refused(last_words, &failure),
            (_, NOT_CONFIGURED) if last_words.contains("is deprecated") => {
                version_refused(last_words, &failure)
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
            (_, code) if self.conflict || code == SESSION_CONFLICT => failure(
                "SessionConflict",
                Class::Transient,
                "Another agent held this runner's session at GitHub, so it could not come online. It is replaced; if that happens again, look for an agent elsewhere that uses the same name.".to_owned(),
            ),
            (_, code) if self.persistent => failure(
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
}

/// Not more than a suspicion: the plan says when it is believed.
fn version_refused(
    words: &str,
    failure: impl Fn(&'static str, Class, String) -> Failure,
) -> Failure {
    let refused = RefusedVersion {
        version: refused_version(words).map(str::to_owned),
        minimum: minimum_version(words).map(str::to_owned),
    };
    let version = refused.version.as_ref();
    let version = version.map_or_else(String::new, |v| format!(" {v}"));
    let message = format!(
        "GitHub refused the agent for its version{version}. An outage has looked the same, so the next runner tries once more."
    );
    Failure {
        refused: Some(refused),
        ..failure(VERSION_REFUSED_ONCE, Class::Transient, message)
    }
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
