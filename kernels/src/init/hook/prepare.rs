//! The job's container and its services: what the workflow wishes is looked at first, then the registrar is asked for them,
//! and then they are waited for.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cuda_smoke::registrar::{Error, Registrar};
use gate_report::contract::{EXTERNALS_DIR, gate};
use gate_report::wire::{ContainerState, JobContainerState};
use serde_json::{Map, Value, json};

use super::input::{Container, PrepareArgs};
use super::plan::{Awaited, Plan, plan};
use super::wishes::Pool;
use super::{Hook, Refusals, ask, externals, say};
use crate::job::request::{Begun, Request};

/// Where the agent's own program files are in the job's container.
const EXTERNALS: &str = "/__e";
/// How long the registrar is asked for the container, and how long for its state.
const ASKED: (Duration, Duration) = (Duration::from_mins(1), Duration::from_secs(5));
/// How long images may take. Jobs have an end of their own (`timeout-minutes`).
const PULL: Duration = Duration::from_hours(1);
/// How long a service may take until its ports take connections.
const READY: Duration = Duration::from_mins(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Between two questions to the registrar.
const QUESTION: Duration = Duration::from_secs(1);

impl Hook {
    /// Makes the containers, and says what the agent wants to know of them.
    pub(super) fn prepare(&self, args: PrepareArgs) -> Result<Value, Refusals> {
        let Some(container) = &args.container else {
            return Err(vec![
                "A job on this runner needs a container of its own (container:): the runner's container has no GPU, and services alone do not change that.".into(),
            ]);
        };
        let from = externals_of(container);
        let (plan, said) = plan(args, &self.pool())?;
        for sentence in said {
            say(&sentence);
        }
        let registrar = self.registrar().map_err(|error| vec![error.to_string()])?;
        let ticket = self.ticket()?;
        let deadline = Instant::now() + ASKED.0;
        registrar
            .job_container(&ticket, &plan.wanted, deadline)
            .map_err(|error| vec![format!("The job's container was not made: {error}")])?;
        // While the image is pulled.
        let to = self.settings.get(gate::EXTERNALS_DIR);
        let to = PathBuf::from(to.map_or(EXTERNALS_DIR, String::as_str));
        let copied = thread::spawn(move || externals::copy(&from, &to));
        say(&format!("Image {}: asked for.", plan.wanted.image));
        let mut states = States::new(&registrar, &ticket);
        let stream = self.connected(&mut states, &plan)?;
        let begun: Begun =
            ask(stream, &Request::Begin(Box::new(plan.begin))).map_err(|why| vec![why])?;
        for note in &begun.notes {
            say(note);
        }
        joined(copied)?;
        for (number, service) in plan.services.iter().enumerate() {
            ready(&mut states, number, service)?;
        }
        Ok(response(&plan.services, begun.is_alpine))
    }

    fn pool(&self) -> Pool {
        let setting = |name| self.settings.get(name).map_or("", String::as_str);
        Pool {
            shm_bytes: setting(gate::JOB_SHM_BYTES).parse().ok(),
            volumes: setting(gate::JOB_VOLUMES)
                .split(':')
                .filter(|volume| !volume.is_empty())
                .map(Into::into)
                .collect(),
        }
    }

    /// Waits for the job's container.
    fn connected(&self, states: &mut States<'_>, plan: &Plan) -> Result<UnixStream, Refusals> {
        let deadline = Instant::now() + PULL;
        while Instant::now() < deadline {
            if let Ok(stream) = UnixStream::connect(&self.socket) {
                return Ok(stream);
            }
            if let Some(state) = states.look()? {
                let services = plan.services.iter().map(|service| service.image.as_str());
                let images = [plan.wanted.image.as_str()].into_iter().chain(services);
                let all = [&state.container].into_iter().chain(&state.services);
                images
                    .zip(all)
                    .try_for_each(|(image, state)| alive(image, state))?;
            }
            thread::sleep(LOOK);
        }
        Err(vec![format!(
            "Image {}: it was not there within an hour.",
            plan.wanted.image
        )])
    }
}

/// The registrar's answers, not more often than it likes.
struct States<'a> {
    registrar: &'a Registrar,
    ticket: &'a str,
    last: Option<Instant>,
}

impl<'a> States<'a> {
    fn new(registrar: &'a Registrar, ticket: &'a str) -> Self {
        Self {
            registrar,
            ticket,
            last: None,
        }
    }

    /// `None` where it was asked a moment ago, or did not answer: the containers do not depend on it.
    fn look(&mut self) -> Result<Option<JobContainerState>, Refusals> {
        if self.last.is_some_and(|last| last.elapsed() < QUESTION) {
            return Ok(None);
        }
        let deadline = Instant::now() + ASKED.1;
        let state = self.registrar.job_container_state(self.ticket, deadline);
        self.last = Some(Instant::now());
        match state {
            Ok(state) => Ok(Some(state)),
            Err(Error::Unreachable(_)) => Ok(None),
            Err(error) => Err(vec![format!(
                "The job's container cannot be asked for: {error}"
            )]),
        }
    }
}

fn alive(image: &str, state: &ContainerState) -> Result<(), Refusals> {
    match state {
        ContainerState::Failed { reason, message } => {
            Err(vec![format!("Image {image}: {reason}: {message}")])
        }
        _ => Ok(()),
    }
}

/// Waits until a service runs and its ports take connections.
fn ready(states: &mut States<'_>, number: usize, service: &Awaited) -> Result<(), Refusals> {
    let Awaited { image, ports, .. } = service;
    let (asked, mut running) = (Instant::now(), None);
    loop {
        if let Some(state) = states.look()? {
            let state = state.services.get(number);
            state.map_or(Ok(()), |state| alive(image, state))?;
            if state == Some(&ContainerState::Running) {
                running.get_or_insert_with(Instant::now);
            }
        }
        let mut tcp = ports.iter().filter(|port| port.is_tcp);
        let closed = tcp.find(|port| !takes_connections(port.number));
        match (running, closed) {
            (Some(_), None) => return Ok(()),
            (Some(since), Some(port)) if since.elapsed() > READY => {
                let sentence = format!(
                    "Service {image} runs, but nothing takes connections at its port {} after two minutes.",
                    port.number
                );
                if service.must_be_ready {
                    return Err(vec![sentence]);
                }
                say(&sentence);
                return Ok(());
            }
            (None, _) if asked.elapsed() > PULL => {
                return Err(vec![format!(
                    "Image {image}: it was not there within an hour."
                )]);
            }
            _ => thread::sleep(LOOK),
        }
    }
}

fn takes_connections(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, QUESTION).is_ok()
}

fn joined(copied: JoinHandle<std::io::Result<()>>) -> Result<(), Refusals> {
    let why = match copied.join() {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the copying panicked".into(),
    };
    Err(vec![format!(
        "The agent's Node.js could not be copied for the job's container: {why}."
    )])
}

/// Where the agent has its program files.
fn externals_of(container: &Container) -> PathBuf {
    let mounts = &container.system_mount_volumes;
    let mount = mounts
        .iter()
        .find(|mount| mount.target_volume_path == EXTERNALS);
    mount.map_or_else(PathBuf::new, |mount| (&mount.source_volume_path).into())
}

/// What the agent puts into the contexts `job.container` and `job.services`. The services are in its own order, and their
/// ports are a map even where there is none.
fn response(services: &[Awaited], is_alpine: bool) -> Value {
    let services: Vec<Value> = services
        .iter()
        .enumerate()
        .map(|(number, service)| {
            let ports: Map<String, Value> = service
                .ports
                .iter()
                .map(|port| (port.number.to_string(), port.number.to_string().into()))
                .collect();
            json!({"id": format!("service-{number}"), "network": "pod", "ports": ports})
        })
        .collect();
    json!({
        "state": {"container": "job"},
        "context": {
            "container": {"id": "job", "network": "pod", "ports": {}},
            "services": services,
        },
        "isAlpine": is_alpine,
    })
}

#[cfg(test)]
mod tests {
    use super::super::ports::Port;
    use super::*;

    #[test]
    fn the_answer_has_what_the_agent_demands() {
        let port = |number| Port {
            number,
            is_tcp: true,
            published: None,
        };
        let service = |image: &str, ports| Awaited {
            image: image.into(),
            ports,
            must_be_ready: false,
        };
        let answer = response(
            &[service("b", vec![port(6379)]), service("a", vec![])],
            true,
        );
        assert_eq!(answer["isAlpine"], json!(true));
        assert!(answer["state"].is_object());
        let services = answer["context"]["services"].as_array().unwrap();
        let ports: Vec<&Value> = services.iter().map(|service| &service["ports"]).collect();
        assert_eq!(ports, [&json!({"6379": "6379"}), &json!({})]);
        for container in services.iter().chain([&answer["context"]["container"]]) {
            assert!(container["id"].is_string() && container["network"].is_string());
        }
    }
}
