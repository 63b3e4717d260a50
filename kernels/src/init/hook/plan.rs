//! What is asked for and done, after a look at every word of `container:` and `services:`.

use std::net::Ipv4Addr;

use gate_report::wire::{Credentials, JobContainer, MAX_BODY, Service};

use super::Refusals;
use super::input::{Container, Mount, PrepareArgs, Registry};
use super::mounts::{self, Place};
use super::options::{self, is_host};
use super::ports::{Port, ports};
use super::wishes::{Pool, Role, Wishes};
use super::words::words;
use crate::job::request::{Begin, Host};

/// What is to be made, after a look at every word. No `Debug`: there are secrets in it.
pub(super) struct Plan {
    pub(super) wanted: JobContainer,
    pub(super) begin: Begin,
    pub(super) services: Vec<Awaited>,
}

/// A service, as it is waited for and spoken of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    pub(super) image: String,
    pub(super) ports: Vec<Port>,
    /// The job cannot begin without it.
    pub(super) must_be_ready: bool,
}

/// Looks at every word. All that cannot be is said at once.
pub(super) fn plan(args: PrepareArgs, pool: &Pool) -> Result<(Plan, Vec<String>), Refusals> {
    let container = args.container.unwrap_or_default();
    let mut wishes = wishes(&container, Role::Job, pool);
    let mut begin = begin(&container, &mut wishes, pool);
    let system = &container.system_mount_volumes;
    let mut wanted = JobContainer {
        image: container.image,
        credentials: container.registry.and_then(credentials),
        services: vec![],
    };
    let mut services: Vec<Awaited> = vec![];
    for container in args.services {
        let (service, awaited) = service(container, &mut wishes, (system, pool), &mut begin.hosts);
        let taken = services.iter().find_map(|other| {
            let port = other.ports.iter().find(|port| {
                awaited
                    .ports
                    .iter()
                    .any(|own| own.number == port.number && own.is_tcp == port.is_tcp)
            })?;
            Some((&other.image, port.number))
        });
        if let Some((other, port)) = taken {
            wishes.refused.push(format!(
                "Services {other} and {} have the same port {port}, and the containers of a job share one network: let one of them listen at another port.",
                awaited.image
            ));
        }
        wanted.services.push(service);
        services.push(awaited);
    }
    wishes.refused.extend(wanted.check().err());
    if serde_json::to_vec(&wanted).is_ok_and(|body| body.len() > MAX_BODY) {
        let sentence = "The environments of the job's services are too large.";
        wishes.refused.push(sentence.into());
    }
    if !wishes.refused.is_empty() {
        return Err(wishes.refused);
    }
    let plan = Plan {
        wanted,
        begin,
        services,
    };
    Ok((plan, wishes.said))
}

fn wishes(container: &Container, role: Role, pool: &Pool) -> Wishes {
    let mut wishes = Wishes::default();
    options::judge(&container.create_options, role, pool, &mut wishes);
    // The agent puts them after the options, so they win.
    wishes.env.extend(container.environment_variables.clone());
    wishes.mounts.extend(container.user_mount_volumes.clone());
    wishes
}

/// What the job's container does before the first step.
fn begin(container: &Container, wishes: &mut Wishes, pool: &Pool) -> Begin {
    let mut begin = Begin {
        env: std::mem::take(&mut wishes.env),
        workdir: wishes.workdir.take(),
        user: wishes.user.take(),
        ulimits: std::mem::take(&mut wishes.ulimits),
        hosts: std::mem::take(&mut wishes.hosts),
        ..Begin::default()
    };
    for mount in std::mem::take(&mut wishes.mounts) {
        match mounts::place(&mount, &container.system_mount_volumes, pool, Role::Job) {
            Ok(Place::There) => {}
            Ok(Place::New(folder)) => {
                if !mount.source_volume_path.is_empty() {
                    wishes.said.push(format!(
                        "volumes: {}: a new folder; nothing of it is kept after the job.",
                        mount.source_volume_path
                    ));
                }
                begin.folders.push(folder);
            }
            Ok(Place::Link(link)) => {
                if mount.read_only {
                    wishes
                        .said
                        .push(format!("volumes: {}: can be written here.", link.path));
                }
                begin.links.push(link);
            }
            Err(sentence) => wishes.refused.push(sentence),
        }
    }
    // They are published nowhere.
    all_ports(container, wishes);
    begin
}

/// A service, as it is asked for and as it is waited for. Its names go to the hosts.
fn service(
    container: Container,
    all: &mut Wishes,
    (system, pool): (&[Mount], &Pool),
    hosts: &mut Vec<Host>,
) -> (Service, Awaited) {
    let mut wishes = wishes(&container, Role::Service, pool);
    for mount in &wishes.mounts {
        let placed = mounts::place(mount, system, pool, Role::Service);
        wishes.refused.extend(placed.err());
    }
    let ports = all_ports(&container, &mut wishes);
    if let Some(port) = ports.iter().find(|port| port.published.is_some()) {
        let sentence = format!(
            "ports: the port is {} here, as inside the service.",
            port.number
        );
        wishes.said.push(sentence);
    }
    let image = container.image;
    name(&image, &mut wishes, hosts);
    hosts.append(&mut wishes.hosts);
    let args = words(&container.entry_point_args.join(" ")).unwrap_or_else(|| {
        wishes
            .refused
            .push("command: a quote is not closed.".into());
        vec![]
    });
    let of_it = |sentence: String| format!("Service {image}: {sentence}");
    all.said.extend(wishes.said.into_iter().map(of_it));
    all.refused.extend(wishes.refused.into_iter().map(of_it));
    let command = wishes.entry_point.or(container.entry_point);
    let service = Service {
        image: image.clone(),
        credentials: container.registry.and_then(credentials),
        env: wishes.env,
        command: command
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect(),
        args,
        working_dir: wishes.workdir,
    };
    let awaited = Awaited {
        image,
        ports,
        must_be_ready: wishes.has_health_check,
    };
    (service, awaited)
}

fn all_ports(container: &Container, wishes: &mut Wishes) -> Vec<Port> {
    let mut all = vec![];
    for mapping in &container.port_mappings {
        match ports(mapping) {
            Ok(ports) => all.extend(ports),
            Err(sentence) => wishes.refused.push(sentence),
        }
    }
    all
}

/// Gives a service its names.
fn name(image: &str, wishes: &mut Wishes, hosts: &mut Vec<Host>) {
    let names = names(image, &wishes.names);
    if let Some(name) = names.iter().find(|name| !is_host(name)) {
        let name = gate_report::clean(name, 64);
        wishes.refused.push(format!("{name} is no name of a host."));
    }
    wishes.said.push(format!(
        "reachable at localhost, and as {}. The agent does not say the service's label: options: --network-alias LABEL gives it that name.",
        names.join(", ")
    ));
    for name in names {
        if hosts.iter().all(|host| host.name != name) {
            let address = Ipv4Addr::LOCALHOST.to_string();
            hosts.push(Host { name, address });
        }
    }
}

/// What a service is called: as its options say, otherwise by its image.
fn names(image: &str, given: &[String]) -> Vec<String> {
    if !given.is_empty() {
        return given.to_vec();
    }
    let name = image.split('@').next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    vec![name.split(':').next().unwrap_or_default().to_owned()]
}

fn credentials(registry: Registry) -> Option<Credentials> {
    let is_given = !registry.username.is_empty() || !registry.password.is_empty();
    is_given.then_some(Credentials {
        username: registry.username,
        password: registry.password,
        server_url: registry.server_url.filter(|url| !url.is_empty()),
    })
}

#[cfg(test)]
#[path = "tests/plan.rs"]
mod tests;
