//! The agent's container: how it starts, and how the kubelet sees how far it is. It is that of the GPUs, first the gate's,
//! unless jobs bring their own: then it is the main one.

use gate_report::contract::{command, file};
use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::{
    Container, EnvVar, ExecAction, Lifecycle, LifecycleHandler, Probe,
};

use super::{devices, mount, proxy, value};
use crate::PodSettings;
use crate::model::pool::owned::{self, AGENT_DIR, CA_DIR, REGISTRATION_DIR};
use crate::model::pool::{Pool, RegistrationKind, Spec, WORK_FOLDER};
use crate::model::runner::{GPU, MAIN, RUNNER};
use crate::model::url::Scope;

/// The image that runs where the template names none.
const DEFAULT_IMAGE: &str = "ghcr.io/actions/actions-runner:latest";

/// Reads the registration, removes it, and becomes the agent: the secret is in no argument list and in no object. Logs of
/// earlier agents, in the image or on a volume, are noted first, by name: the clock of a volume may be another.
/// A volume in memory has the sticky bit: a file of another user's can be emptied, not removed.
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

/// Whether the agent is ready to take a job: its session with GitHub is open, no job runs, and the GPU is still there.
/// Without it the gate's script ends the agent.
///
/// A job runs from the start of the agent's process for it, some time before the first hook, to that process' end. It is
/// looked for where the container's processes are its own; with `hostPID`, the hooks' word alone counts.
///
/// The agent writes `Listening` to its diagnostic log as soon as its session is open, and the other line while another agent
/// holds that session. The latter leaves a mark for as long as it holds: `run.sh` ends with 0 then. That the agent has been
/// online is left as a file for the main container: a job may come before this is asked for the first time.
pub(super) const IDLE: &str = r#"said() {
  for log in /home/runner/_diag/Runner_*.log; do
    grep -qsxF "$log" /run/cuda-runner/earlier || { grep -qs "$1" "$log" && return; }
  done
  return 1
}
working() {
  { read -r first </proc/1/comm; } 2>/dev/null && [ "$first" = runner-init ] || return
  for comm in /proc/[0-9]*/comm; do
    if read -r name <"$comm" && [ "$name" = Runner.Worker ]; then return; fi
  done 2>/dev/null
  return 1
}
conflict=/run/cuda-runner/conflict
online=/run/cuda-runner/online
[ ! -e /run/cuda-runner/busy ] || [ ! -e "$online" ] || exit 1
if said "Listening for Jobs"; then
  [ ! -e "$conflict" ] || { rm -f "$conflict"; true >/dev/termination-log; } 2>/dev/null
  true >"$online"
  [ ! -e /run/cuda-runner/busy ] || exit 1
  ! working || exit 1
  [ ! -e /run/cuda-runner/gpu.sh ] || exec /bin/sh /run/cuda-runner/gpu.sh idle
  exit 0
fi
if [ ! -e "$conflict" ] && said "session for this runner already exists"; then
  { true >"$conflict" && echo '{"mark":"session-conflict"}' >>/dev/termination-log; } 2>/dev/null
fi
exit 1"#;

/// A probe of the template's, once the agent is online: it may take its time to come up.
const WHILE_ONLINE: &str = r#"[ ! -e /run/cuda-runner/online ] || exec "$@""#;

/// Which container is the agent's.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Its name.
    pub(super) name: &'static str,
    /// The folder with our program and the agent's files.
    dir: &'static str,
    /// What our program is told to be.
    command: &'static str,
}

impl Place {
    /// That of the pool's pods.
    pub(super) fn of(spec: &Spec) -> Self {
        if spec.job_containers.is_some() {
            return Self {
                name: MAIN,
                dir: AGENT_DIR,
                command: command::AGENT,
            };
        }
        Self {
            name: GPU,
            dir: REGISTRATION_DIR,
            command: GPU,
        }
    }

    /// Our program with this command; what follows is its argument.
    pub(super) fn init<const N: usize>(self, command: [&str; N]) -> Vec<String> {
        let program = format!("{}/{}", self.dir, file::RUNNER_INIT);
        [program.as_str()]
            .into_iter()
            .chain(command)
            .map(str::to_owned)
            .collect()
    }

    /// A script of ours, with the agent's files where they are here.
    pub(super) fn shell(self, script: &str) -> Vec<String> {
        shell(&script.replace(REGISTRATION_DIR, self.dir))
    }

    /// Whether the agent is idle. One failure is a job: on a node that is so loaded that the answer takes long, it is waited for.
    fn is_idle(self) -> Probe {
        Probe {
            period_seconds: Some(2),
            timeout_seconds: Some(30),
            failure_threshold: Some(1),
            ..probe(self.shell(IDLE))
        }
    }

    /// Whether the agent is idle, or has been. Before it is started there may be logs of an earlier one.
    pub(super) fn has_been_online(self) -> Vec<String> {
        let online = format!("{REGISTRATION_DIR}/{}", file::ONLINE);
        self.shell(&format!(
            "[ -e {REGISTRATION_DIR}/earlier ] || exit 1\n({IDLE}\n) || [ -e {online} ]"
        ))
    }
}

/// The container, as the template's `runner` is merged over it.
pub(super) fn container(pool: &Pool, spec: &Spec, name: &str) -> Container {
    let place = Place::of(spec);
    let (start, arguments) = match spec.registration {
        RegistrationKind::JitConfig | RegistrationKind::ScaleSet => (START, vec![]),
        RegistrationKind::Token => (CONFIGURE_AND_START, config_arguments(pool, spec, name)),
    };
    // What the script calls itself, before its arguments.
    let agent = [place.shell(start), vec![RUNNER.to_owned()], arguments].concat();
    let [(started, _), (completed, _)] = owned::HOOKS;
    let first_hook = if spec.allow.is_some() {
        file::ALLOW
    } else {
        file::JOB_STARTED
    };
    let mut env = vec![
        value(started, format!("{}/{first_hook}", place.dir)),
        value(completed, format!("{}/{}", place.dir, file::JOB_COMPLETED)),
        value(owned::DEPRECATED_EXIT_CODE, "1".to_owned()),
        // run.sh is not the first process here, and a signal would end it without this, and its job.
        value(owned::TRAP_SIGNALS, "1".to_owned()),
    ];
    env.extend(proxy(spec));
    let mut mounts = vec![mount(owned::REGISTRATION, REGISTRATION_DIR, false)];
    if spec.ca_bundle.is_some() {
        mounts.push(mount(owned::GITHUB_CA, CA_DIR, true));
        env.extend(authorities());
    }
    Container {
        name: place.name.to_owned(),
        image: Some(DEFAULT_IMAGE.to_owned()),
        command: Some(place.init([place.command])),
        args: Some(agent),
        // An agent that fails says why in its log only.
        termination_message_policy: Some(owned::TERMINATION_POLICY.to_owned()),
        env: Some(env),
        readiness_probe: Some(place.is_idle()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// What tells programs of the pool's certificate authorities.
pub(super) fn authorities() -> [EnvVar; 2] {
    owned::AUTHORITIES.map(|name| value(name, format!("{CA_DIR}/ca.crt")))
}

/// Lets the agent's container be that of the GPUs.
pub(super) fn with_gpu(agent: Container, spec: &Spec) -> Container {
    Container {
        // Beside the main container, and ended with it.
        restart_policy: Some("Always".to_owned()),
        resources: Some(devices(&spec.gpu)),
        ..agent
    }
}

/// Merges the template's container `runner`, which [`crate::model::pool`] has found to take nothing of ours.
pub(super) fn merge(agent: &mut Container, mut theirs: Container, place: Place) {
    place.name.clone_into(&mut theirs.name);
    // Ports are told apart by number alone, and two protocols may share one.
    agent.ports = theirs.ports.take();
    for variable in theirs.env.iter_mut().flatten() {
        // The agent knows one hook for each event: ours, which calls theirs.
        if let Some((_, ours)) = owned::HOOKS
            .iter()
            .find(|(agents, _)| *agents == variable.name)
        {
            (*ours).clone_into(&mut variable.name);
        }
    }
    if let Some(Lifecycle {
        post_start,
        pre_stop,
        ..
    }) = &mut theirs.lifecycle
    {
        let handlers = post_start.iter_mut().chain(pre_stop);
        handlers.for_each(|handler| hold_back(handler, place));
    }
    if let Some(command) = exec_of(theirs.liveness_probe.as_mut()) {
        let theirs = std::mem::take(command);
        let name = vec!["live".to_owned()];
        let online = place.shell(WHILE_ONLINE);
        *command = [place.init([command::HOOK]), online, name, theirs].concat();
    }
    agent.merge_from(theirs);
}

fn exec_of(probe: Option<&mut Probe>) -> Option<&mut Vec<String>> {
    probe?.exec.as_mut()?.command.as_mut()
}

/// What the template wants done at the agent's start and end is not for the gate's image.
fn hold_back(handler: &mut LifecycleHandler, place: Place) {
    let command = match (handler.sleep.take(), handler.exec.take()) {
        (Some(sleep), _) => Some(shell(&format!("sleep {}", sleep.seconds))),
        (None, exec) => exec.and_then(|exec| exec.command),
    };
    handler.exec = Some(ExecAction {
        command: Some([place.init([command::HOOK]), command.unwrap_or_default()].concat()),
    });
}

/// Lets the container begin in the gate's image. The runner's own, for which it is changed later, is returned.
///
/// Of the container only the image can be changed later: both are pulled by one policy. The template's own word counts. Else
/// it is what Kubernetes would take for the runner's image, and not for the gate's: a node would keep an old `latest` for
/// ever, and GitHub gives no job to an agent that is a month behind. The gate's image is then looked up at its registry for each runner,
/// and nothing is pulled that the node has. Where the installation says that its image is never pulled, as one that was
/// loaded into the nodes by hand, there may be no registry that has it: the lookup would fail each gate.
pub(super) fn begin_as_the_gate(gpu: &mut Container, settings: &PodSettings) -> String {
    let image = gpu.image.replace(settings.gate_image.clone());
    let image = image.unwrap_or_default();
    let has_registry = settings.image_pull_policy != "Never";
    gpu.image_pull_policy.get_or_insert_with(|| {
        let policy = if has_registry {
            usual_policy(&image)
        } else {
            "IfNotPresent"
        };
        policy.to_owned()
    });
    image
}

/// What Kubernetes takes for an image where nothing is said. See
/// <https://kubernetes.io/docs/concepts/containers/images/#imagepullpolicy-defaulting>.
fn usual_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or(image);
    let moves = !name.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest");
    if moves { "Always" } else { "IfNotPresent" }
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
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

pub(super) fn probe(command: Vec<String>) -> Probe {
    Probe {
        exec: Some(ExecAction {
            command: Some(command),
        }),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use gate_report::contract::{TERMINATION_LOG, mark};

    use super::*;

    #[test]
    fn an_image_is_pulled_as_kubernetes_would_by_its_own_name() {
        for (image, policy) in [
            ("ghcr.io/actions/actions-runner:latest", "Always"),
            ("ghcr.io/actions/actions-runner", "Always"),
            ("registry:5000/runner", "Always"),
            ("registry:5000/runner:1", "IfNotPresent"),
            ("runner:latest@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(usual_policy(image), policy, "{image}");
        }
    }

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
            (
                IDLE,
                vec![
                    path(file::BUSY),
                    path(file::GPU),
                    format!(">>{TERMINATION_LOG}"),
                    mark,
                ],
            ),
        ];
        for (script, texts) in cases {
            for text in texts {
                assert!(script.contains(&text), "no {text} in\n{script}");
            }
        }
    }
}
