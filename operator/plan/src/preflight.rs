//! The init container that looks at the runner's image: the image's own shell, the job's own user and environment.

use gate_report::contract::script;
use gate_report::preflight::{SCRIPT, Wanted};
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, ResourceRequirements};

use crate::model::pool::{WORK_FOLDER, owned};
use crate::model::runner::{GATE, PREFLIGHT, RUNNER};

/// The agent's folder in GitHub's runner image.
const AGENT_FOLDER: &str = "/home/runner";

/// Puts the container before all others. The pod is complete otherwise: it copies from the runner and from the gate.
pub(super) fn add(
    spec: &mut PodSpec,
    wanted: &Wanted,
    resources: ResourceRequirements,
    user: Option<i64>,
) {
    let Some(runner) = spec.containers.iter().find(|c| c.name == RUNNER) else {
        return;
    };
    let init = spec.init_containers.get_or_insert_default();
    let mut container = container(wanted, runner);
    container.resources = Some(resources);
    // The same rights as the gate's, and the user of the job.
    let gate = init.iter().find(|c| c.name == GATE);
    container.security_context = gate.and_then(|gate| gate.security_context.clone());
    if let (Some(context), Some(user)) = (&mut container.security_context, user) {
        context.run_as_user = Some(user);
        context.run_as_non_root = Some(user != 0);
    }
    init.insert(0, container);
}

fn container(wanted: &Wanted, runner: &Container) -> Container {
    let toolkit = wanted.cuda_toolkit.as_ref().map(|_| "1".to_owned());
    let ours = [
        (script::COMMANDS, wanted.commands.join(" ")),
        (script::TOOLKIT, toolkit.unwrap_or_default()),
        (
            script::TOOLCHAIN,
            wanted.rust_toolchain.clone().unwrap_or_default(),
        ),
        (script::WORK, format!("{AGENT_FOLDER}/{WORK_FOLDER}")),
        // A CUDA image asks for every GPU, and for a driver of its age; a look at its files needs none.
        (owned::VISIBLE_DEVICES, owned::NO_DEVICES.to_owned()),
    ];
    let is_ours = |variable: &EnvVar| ours.iter().any(|(name, _)| *name == variable.name);
    // The jobs' own environment decides what they find, PATH and CUDA_HOME above all.
    let mut env: Vec<EnvVar> = runner.env.clone().unwrap_or_default();
    env.retain(|variable| !is_ours(variable));
    env.extend(ours.into_iter().map(|(name, value)| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    }));
    Container {
        name: PREFLIGHT.to_owned(),
        image: runner.image.clone(),
        image_pull_policy: runner.image_pull_policy.clone(),
        command: Some(
            ["/bin/sh", "-c", SCRIPT, PREFLIGHT]
                .map(str::to_owned)
                .to_vec(),
        ),
        env: Some(env),
        env_from: runner.env_from.clone(),
        working_dir: runner.working_dir.clone(),
        // Toolkits and work folders may be volumes.
        volume_mounts: runner.volume_mounts.clone(),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use gate_report::contract::{REGISTRATION_DIR, file};

    use super::*;

    /// The script cannot read the constants.
    #[test]
    fn the_script_writes_the_shared_names_as_everyone_does() {
        let facts = format!(
            "${{{}:-{REGISTRATION_DIR}}}/{}\"",
            script::DIR,
            file::PREFLIGHT
        );
        let variables = [
            script::COMMANDS,
            script::TOOLKIT,
            script::TOOLCHAIN,
            script::WORK,
        ];
        for text in variables
            .map(|name| format!("${name}"))
            .iter()
            .chain([&facts])
        {
            assert!(SCRIPT.contains(text), "no {text}");
        }
    }
}
