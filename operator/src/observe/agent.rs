//! How an agent ended, from its exit code and its last words.

use gate_report::Class;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};

use super::status::{OOM_KILLED, arch_of, could_not_start, last_line, out_of_memory};
use cuda_runner_plan::architecture;
use cuda_runner_plan::model::runner::{Failure, RefusedVersion};
use cuda_runner_plan::reason::Reason;

/// An agent that has ended sooner than this has hardly started.
const AT_ONCE: SignedDuration = SignedDuration::from_mins(1);
/// The listener's exit code when GitHub finds it too old, see
/// <https://github.com/actions/runner/blob/main/src/Runner.Common/Constants.cs>.
const VERSION_DEPRECATED: i32 = 7;
/// The listener's exit code when another agent holds its session. `run.sh` makes 0 of it.
const SESSION_CONFLICT: i32 = 5;
/// The start line's exit code when `config.sh` has failed.
const NOT_CONFIGURED: i32 = 78;

/// An agent that has ended and finished no job with it.
pub(super) struct AgentEnd<'a> {
    pub(super) container: &'a ContainerStateTerminated,
    /// Tells of the job that it had, if it had one.
    pub(super) cut_text: &'a str,
    pub(super) persistent: bool,
    /// Another agent held its session.
    pub(super) conflict: bool,
    /// Whether it was connected to GitHub.
    pub(super) was_online: bool,
    /// Its pod.
    pub(super) pod: &'a Pod,
    /// The name of its container.
    pub(super) name: &'static str,
}

impl AgentEnd<'_> {
    /// Why it ended; `failure` knows the rest of the pod.
    #[expect(
        clippy::too_many_lines,
        reason = "one table: what each way to end means"
    )]
    pub(super) fn failure(&self, failure: impl Fn(Reason, Class, String) -> Failure) -> Failure {
        let last_words = self.container.message.as_deref().unwrap_or_default();
        let (cut_text, name) = (self.cut_text, self.name);
        match (self.container.reason.as_deref(), self.container.exit_code) {
            (Some(OOM_KILLED), _) => failure(
                Reason::OutOfMemory,
                Class::Config,
                out_of_memory(self.pod, name, cut_text),
            ),
            _ if !self.was_online && cut_text.is_empty() && architecture::is_mismatch(&last_line(last_words)) => failure(
                Reason::WrongArchitecture,
                Class::Config,
                format!(
                    "The image of the container `{name}` is for another architecture ({}); {}.",
                    last_line(last_words).trim_end_matches('.'),
                    architecture::advice(arch_of(self.pod))
                ),
            ),
            _ if could_not_start(self.container) => failure(
                Reason::ContainerNotStarted,
                Class::Transient,
                format!(
                    "The agent's container `{name}` could not be started: {}. Another attempt follows. If it happens again, look at its image and at what spec.template mounts there.",
                    last_line(last_words).trim_end_matches('.')
                ),
            ),
            (_, VERSION_DEPRECATED) => version_refused(last_words, &failure),
            (_, NOT_CONFIGURED) if last_words.contains("is deprecated") => {
                version_refused(last_words, &failure)
            }
            (_, NOT_CONFIGURED) => failure(
                Reason::NotConfigured,
                Class::Transient,
                format!(
                    "config.sh could not register the runner ({}); `kubectl logs` of the pod tells more.",
                    last_line(last_words)
                ),
            ),
            (_, code) if !cut_text.is_empty() => failure(
                Reason::JobCutShort,
                Class::Transient,
                format!("The agent ended with code {code} in the middle of a job.{cut_text}"),
            ),
            (_, code) if self.conflict || code == SESSION_CONFLICT => failure(
                Reason::SessionConflict,
                Class::Transient,
                "Another agent held this runner's session at GitHub, so it could not come online. It is replaced; if that happens again, look for an agent elsewhere that uses the same name.".to_owned(),
            ),
            (_, code) if self.ended_at_once() => Failure {
                code: Some(code),
                ..failure(
                    Reason::AgentEndedAtOnce,
                    Class::Transient,
                    format!(
                        "The agent in the container `{name}` ended with code {code} within a minute of its start and was not online: {}. `kubectl logs` of the pod may tell more.",
                        last_line(last_words)
                    ),
                )
            },
            (_, code) if self.persistent => failure(
                Reason::AgentEnded,
                Class::Transient,
                format!(
                    "The persistent runner's agent ended with code {code}, without a job; its entry on GitHub may have been removed, or its container was killed. It is replaced under the same name."
                ),
            ),
            (_, code) => failure(
                Reason::EndedWithoutJob,
                Class::Transient,
                format!(
                    "The agent ended with code {code} and ran no job; its registration may have been removed. `kubectl logs` of the pod tells more."
                ),
            ),
        }
    }
}

impl AgentEnd<'_> {
    fn ended_at_once(&self) -> bool {
        let times = (&self.container.started_at, &self.container.finished_at);
        let (Some(started), Some(finished)) = times else {
            return false;
        };
        !self.was_online && finished.0.duration_since(started.0) < AT_ONCE
    }
}

/// Not more than a suspicion: the plan says when it is believed.
fn version_refused(words: &str, failure: impl Fn(Reason, Class, String) -> Failure) -> Failure {
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
        ..failure(Reason::VersionRefusedOnce, Class::Transient, message)
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
