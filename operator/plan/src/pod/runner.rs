//! The agent's container: how it starts, and how the kubelet sees how far it is.

use gate_report::contract::file;
use k8s_openapi::api::core::v1::{Container, ExecAction, Probe};

use super::{devices, mount, proxy, value};
use crate::model::pool::owned::{self, CA_DIR, REGISTRATION_DIR};
use crate::model::pool::{Pool, RegistrationKind, Spec, WORK_FOLDER};
use crate::model::runner::RUNNER;
use crate::model::url::Scope;

/// The image that runs where the template names none.
const DEFAULT_IMAGE: &str = "ghcr.io/actions/actions-runner:latest";

/// Reads the registration, removes it, and becomes the agent: the secret is in no argument list and in no object. Logs of
/// earlier agents, in the image or on a volume, are noted first, by name: the clock of a volume may be another.
/// A volume in memory has the sticky bit: a file of the gate's can be emptied by another user, not removed.
const START: &str = r#"set -eu
printf '%s\n' /home/runner/_diag/Runner_*.log >/run/cuda-runner/earlier
registration=/run/cuda-runner/jitconfig
ACTIONS_RUNNER_INPUT_JITCONFIG=$(cat "$registration")
export ACTIONS_RUNNER_INPUT_JITCONFIG
rm -f "$registration" 2>/dev/null || truncate -c -s 0 "$registration"
[ ! -e /run/cuda-runner/gpu.sh ] || /bin/sh /run/cuda-runner/gpu.sh remember
exec /home/runner/run.sh"#;

/// Reads the token, removes it, registers, and becomes the agent. The arguments of `config.sh` are the container's own;
/// the token is among neither them nor the environment of jobs.
const CONFIGURE_AND_START: &str = r#"set -eu
printf '%s\n' /home/runner/_diag/Runner_*.log >/run/cuda-runner/earlier
registration=/run/cuda-runner/token
ACTIONS_RUNNER_INPUT_TOKEN=$(cat "$registration")
export ACTIONS_RUNNER_INPUT_TOKEN
rm -f "$registration" 2>/dev/null || truncate -c -s 0 "$registration"
/home/runner/config.sh "$@" || exit 78
unset ACTIONS_RUNNER_INPUT_TOKEN
[ ! -e /run/cuda-runner/gpu.sh ] || /bin/sh /run/cuda-runner/gpu.sh remember
exec /home/runner/run.sh"#;

/// Whether the agent of this container has said it in its diagnostic log.
macro_rules! said {
    () => {
        r#"said() {
  for log in /home/runner/_diag/Runner_*.log; do
    grep -qsxF "$log" /run/cuda-runner/earlier || { grep -qs "$1" "$log" && return; }
  done
  return 1
}
"#
    };
}

/// The agent writes the first line to its diagnostic log as soon as its session with GitHub is open, and the second one
/// while another agent holds that session. The latter leaves a mark for as long as it holds: `run.sh` ends with 0 then.
pub(super) const ONLINE: &str = concat!(
    said!(),
    r#"conflict=/run/cuda-runner/conflict
if said "Listening for Jobs"; then
  [ ! -e "$conflict" ] || { rm -f "$conflict"; true >/dev/termination-log; } 2>/dev/null
  exit 0
fi
if [ ! -e "$conflict" ] && said "session for this runner already exists"; then
  { true >"$conflict" && echo '{"mark":"session-conflict"}' >>/dev/termination-log; } 2>/dev/null
fi
exit 1"#
);
/// Ready to take a job: online, the hooks' mark of a running job is absent, and the GPU is still there. Without it the
/// gate's script ends the agent.
pub(super) const IDLE: &str = concat!(
    said!(),
    r#"[ ! -e /run/cuda-runner/busy ] && said "Listening for Jobs" || exit 1
[ ! -e /run/cuda-runner/gpu.sh ] || exec /bin/sh /run/cuda-runner/gpu.sh idle"#
);

/// The agent's container.
pub(super) fn container(pool: &Pool, spec: &Spec, name: &str) -> Container {
    let (start, args) = match spec.registration {
        RegistrationKind::JitConfig | RegistrationKind::ScaleSet => (START, None),
        RegistrationKind::Token => (
            CONFIGURE_AND_START,
            Some(config_arguments(pool, spec, name)),
        ),
    };
    let [(started, _), (completed, _)] = owned::HOOKS;
    let mut env = vec![
        value(started, format!("{REGISTRATION_DIR}/{}", file::JOB_STARTED)),
        value(
            completed,
            format!("{REGISTRATION_DIR}/{}", file::JOB_COMPLETED),
        ),
        value(owned::DEPRECATED_EXIT_CODE, "1".to_owned()),
    ];
    env.extend(proxy(spec));
    let mut mounts = vec![mount(owned::REGISTRATION, REGISTRATION_DIR, false)];
    if spec.ca_bundle.is_some() {
        mounts.push(mount(owned::GITHUB_CA, CA_DIR, true));
        let file = format!("{CA_DIR}/ca.crt");
        env.extend(owned::AUTHORITIES.map(|name| value(name, file.clone())));
    }
    Container {
        name: RUNNER.to_owned(),
        image: Some(DEFAULT_IMAGE.to_owned()),
        command: Some(vec![
            "/bin/sh".to_owned(),
            "-c".to_owned(),
            start.to_owned(),
            // What the script calls itself; the arguments follow.
            "runner".to_owned(),
        ]),
        args,
        // An agent that fails says why in its log only.
        termination_message_policy: Some(owned::TERMINATION_POLICY.to_owned()),
        env: Some(env),
        resources: Some(devices(&spec.gpu)),
        startup_probe: Some(Probe {
            period_seconds: Some(1),
            // The operator's own deadline comes first; it removes the registration, which the kubelet cannot.
            failure_threshold: Some(3600),
            ..shell_probe(ONLINE)
        }),
        readiness_probe: Some(Probe {
            period_seconds: Some(2),
            failure_threshold: Some(1),
            ..shell_probe(IDLE)
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// What `config.sh` gets, beside the token.
fn config_arguments(pool: &Pool, spec: &Spec, name: &str) -> Vec<String> {
    let mut arguments = vec![
        "--url".to_owned(),
        spec.url.to_string(),
        "--name".to_owned(),
        name.to_owned(),
        "--labels".to_owned(),
        pool.registered_labels(spec).join(","),
        "--work".to_owned(),
        WORK_FOLDER.to_owned(),
        "--unattended".to_owned(),
        // The entry of a predecessor of this name has no agent any more.
        "--replace".to_owned(),
    ];
    if let Some(group) = &spec.runner_group {
        // A repository has the default group only, and the agent asks for none there.
        if !matches!(spec.url.scope(), Scope::Repository { .. }) {
            arguments.extend(["--runnergroup".to_owned(), group.clone()]);
        }
    }
    if !spec.persistent {
        // An agent for one job would spend its time on an update that goes with the pod.
        arguments.extend(["--ephemeral".to_owned(), "--disableupdate".to_owned()]);
    }
    arguments
}

fn shell_probe(test: &str) -> Probe {
    Probe {
        exec: Some(ExecAction {
            command: Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), test.to_owned()]),
        }),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use gate_report::contract::{TERMINATION_LOG, mark};

    use super::*;

    /// The scripts cannot read the constants.
    #[test]
    fn the_agents_start_and_probes_write_the_shared_names_as_everyone_does() {
        let path = |name: &str| format!("{REGISTRATION_DIR}/{name}");
        let mark = format!(r#"{{"mark":"{}"}}"#, mark::SESSION_CONFLICT);
        let cases = [
            (START, vec![path(file::JIT_CONFIG), path(file::GPU)]),
            (
                CONFIGURE_AND_START,
                vec![path(file::TOKEN), path(file::GPU)],
            ),
            (ONLINE, vec![format!(">>{TERMINATION_LOG}"), mark]),
            (IDLE, vec![path(file::BUSY), path(file::GPU)]),
        ];
        for (script, texts) in cases {
            for text in texts {
                assert!(script.contains(&text), "no {text} in\n{script}");
            }
        }
    }
}
