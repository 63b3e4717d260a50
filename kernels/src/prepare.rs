//! `prepare`: the only container with the pod's token, and the first. It brings what the others need.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use crate::files::{self, OPEN, PROGRAM, READABLE};
use crate::registrar::{Error, Registrar};
use gate_report::contract::{file, gate};
use gate_report::wire::Ticket;
use gate_report::{Report, exit};

use crate::args::{PrepareArgs, Telemetry};
use crate::gate::{end_on_signal, not_written, write_summary};

/// The agent's hooks, and the look at the GPU that they share with the readiness probe, by name.
const SCRIPTS: [(&str, &str); 6] = [
    (file::ALLOW, include_str!("../hooks/allow.sh")),
    (file::CONTAINERS, include_str!("../hooks/containers.sh")),
    (file::GPU, include_str!("../hooks/gpu.sh")),
    (file::TEAM_HOOK, include_str!("../hooks/team-hook.sh")),
    (file::JOB_STARTED, include_str!("../hooks/job-started.sh")),
    (
        file::JOB_COMPLETED,
        include_str!("../hooks/job-completed.sh"),
    ),
];

/// Writes the files, the ticket last, and returns the exit code.
pub(crate) fn run(args: &PrepareArgs) -> u8 {
    end_on_signal();
    let result = ticket(args).and_then(|given| {
        bring(args, given.shared)?;
        bring_sampler(args);
        leave(args, &given)
    });
    let Err(error) = result else {
        println!("prepared");
        return exit::PASSED;
    };
    eprintln!("Not prepared: {error}");
    let report = Report {
        node: args.pod.node.clone(),
        namespace: args.pod.namespace.clone(),
        pod: args.pod.pod.clone(),
        failure: Some(error.failure()),
        ..Report::new(env!("CARGO_PKG_VERSION"))
    };
    write_summary(&args.pod.termination_log, &report);
    error.exit_code()
}

/// Our program, the gate's settings, and the hooks.
fn bring(args: &PrepareArgs, shared: bool) -> Result<(), Error> {
    let program = fs::read(&args.runner_init).map_err(|error| {
        Error::Internal(format!(
            "{} could not be read: {error}; check that operator and gate image have the same version",
            args.runner_init.display()
        ))
    })?;
    let settings: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| is_setting(name))
        .chain(shared.then(|| (gate::SHARED.to_owned(), "true".to_owned())))
        .collect();
    let settings = serde_json::to_vec(&settings)
        .map_err(|error| Error::Internal(format!("the settings could not be written: {error}")))?;
    let scripts = SCRIPTS.map(|(name, script)| (name, script.as_bytes(), PROGRAM));
    let ours = [
        (file::RUNNER_INIT, program.as_slice(), PROGRAM),
        (file::SETTINGS, settings.as_slice(), READABLE),
    ];
    let dir = &args.pod.registration_dir;
    // What the agent calls must not be where a job in another container could replace it.
    let agent = args.pod.agent_dir.as_ref();
    let beside = agent.into_iter().flat_map(|_| ours.map(|file| (dir, file)));
    let scripts = ours.into_iter().chain(scripts);
    for (dir, (name, bytes, mode)) in beside.chain(scripts.map(|file| (agent.unwrap_or(dir), file)))
    {
        let path = dir.join(name);
        in_its_folder(&path)
            .and_then(|()| files::write(&path, bytes, mode))
            .map_err(|error| not_written(&path, &error))?;
    }
    Ok(())
}

/// What watches the GPUs during jobs, for the container that has them. Without it nothing is told of a job, and no more.
fn bring_sampler(args: &PrepareArgs) {
    if args.telemetry == Telemetry::Disabled {
        return;
    }
    let path = args.pod.registration_dir.join(file::SAMPLER);
    let brought =
        fs::read(&args.program).and_then(|program| files::write(&path, &program, PROGRAM));
    if let Err(error) = brought {
        // Nothing else is to want for room.
        let _ = fs::remove_file(path.with_extension("partial"));
        let path = path.display();
        eprintln!(
            "{path} could not be written, and no job has a report of what its GPUs did: {error}"
        );
    }
}

fn in_its_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// What the gate's environment is made of.
fn is_setting(name: &str) -> bool {
    name.starts_with(gate::PREFIX) || gate::OTHERS.contains(&name)
}

/// Exchanges the pod's token.
fn ticket(args: &PrepareArgs) -> Result<Ticket, Error> {
    let token = || {
        fs::read_to_string(&args.token_file).map_err(|error| {
            Error::Internal(format!(
                "the service-account token {} could not be read: {error}",
                args.token_file.display()
            ))
        })
    };
    let pod = &args.pod;
    let deadline = Instant::now() + pod.registration_timeout;
    Registrar::new(&pod.registrar_url, &pod.registrar_ca)?.ticket(token, deadline)
}

/// Leaves the tickets for those who need them.
fn leave(args: &PrepareArgs, given: &Ticket) -> Result<(), Error> {
    let pod = &args.pod;
    let mut tickets = vec![(&pod.registration_dir, file::TICKET, &given.ticket)];
    if let Some(agent) = &pod.agent_dir {
        let job = given.job.as_ref().ok_or_else(|| {
            Error::Internal(
                "the registrar gave no ticket for jobs; check that operator and gate have the same version"
                    .into(),
            )
        })?;
        tickets.extend([
            (agent, file::TICKET, &given.ticket),
            (agent, file::JOB_TICKET, job),
        ]);
    }
    for (dir, name, ticket) in tickets {
        let path = dir.join(name);
        files::write(&path, ticket.as_bytes(), OPEN).map_err(|error| not_written(&path, &error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use gate_report::contract::{REGISTRATION_DIR, TERMINATION_LOG, file, mark, script};

    use super::SCRIPTS;

    /// The scripts cannot read the constants.
    #[test]
    fn the_hooks_write_the_shared_names_as_everyone_does() {
        let folder = format!("dir=${{{}:-{REGISTRATION_DIR}}}\n", script::DIR);
        let log = format!(">{TERMINATION_LOG}");
        let mark = |mark: &str| format!(r#"{{"mark":"{mark}","#);
        let path = |name: &str| format!(r#""$dir/{name}""#);
        let given = |name: &str| format!(r#" "${name}""#);
        let hook = |word: &str, team: &str| {
            let all = [file::BUSY, file::GPU, file::TEAM_HOOK].map(path);
            [all.as_slice(), &[mark(word), given(team)]].concat()
        };
        let cases = [
            (file::GPU, vec![mark(mark::GPU_LOST)]),
            (file::JOB_STARTED, hook(mark::STARTED, script::TEAM_STARTED)),
            (
                file::JOB_COMPLETED,
                hook(mark::COMPLETED, script::TEAM_COMPLETED),
            ),
        ];
        for (name, texts) in cases {
            let (_, script) = SCRIPTS.iter().find(|(n, _)| *n == name).unwrap();
            for text in [&folder, &log].into_iter().chain(&texts) {
                assert!(script.contains(text), "{name} has no {text}");
            }
        }
    }
}
