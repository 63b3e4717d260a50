//! The table of `docker create`'s options: what becomes of each in `options:` of a container.
//!
//! Values are never printed: there may be a secret in one.

use std::net::IpAddr;

use super::input::Mount;
use super::wishes::{Pool, Role, Wishes};
use super::words::words;
use crate::job::request::{Host, Ulimit};

/// What becomes of an option.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// Nothing is done, and this is said.
    Say(&'static str),
    /// The job does not start, for this reason.
    Refuse(&'static str),
    /// One of these values does what the pod does anyway, which is said. Any other is refused.
    Only(&'static [&'static str], &'static str, &'static str),
    AddHost,
    Device,
    EntryPoint,
    Env,
    Gpus,
    Health,
    Mount,
    Name,
    Network,
    Platform,
    Runtime,
    SecurityOpt,
    Shm,
    Tmpfs,
    Ulimit,
    User,
    Volume,
    Workdir,
}

use Rule::{
    AddHost, Device, EntryPoint, Env, Gpus, Health, Name, Network, Only, Platform, Refuse, Runtime,
    Say, SecurityOpt, Shm, Tmpfs, User, Volume, Workdir,
};

/// An option without dashes, its letter, whether it has a value, and what becomes of it.
type Row = (&'static str, Option<char>, bool, Rule);

const LIMITS: Rule =
    Say("ignored: the pool limits the job's container (spec.jobContainers.resources).");
const NETWORK: Rule = Say("ignored: the containers of a job share the pod's network.");
const PODS: Rule = Say("ignored: the pod has one for all its containers.");
const LABELS: Rule = Say("ignored: nothing here reads it.");
const ATTACHED: Rule =
    Say("ignored: steps have no terminal, and their output goes to the job's log.");
const PORTS: Rule =
    Say("satisfied: every port is reachable inside the pod at localhost, and none from outside.");
const PULL: Rule =
    Say("ignored: the pool says when images are pulled (spec.jobContainers.imagePullPolicy).");
const PRIVILEGED: Rule =
    Refuse("a job's container gets no more rights than the pool's template gives it.");
const NAMESPACE: &str = "a job's container shares no namespace with the node or another container.";

const OPTIONS: &[Row] = &[
    ("add-host", None, true, AddHost),
    ("annotation", None, true, LABELS),
    ("attach", Some('a'), true, ATTACHED),
    ("blkio-weight", None, true, LIMITS),
    ("blkio-weight-device", None, true, LIMITS),
    ("cap-add", None, true, PRIVILEGED),
    (
        "cap-drop",
        None,
        true,
        Say("ignored: the pool's template sets the rights."),
    ),
    ("cgroup-parent", None, true, LIMITS),
    (
        "cgroupns",
        None,
        true,
        Only(&["private"], "satisfied.", NAMESPACE),
    ),
    ("cidfile", None, true, LABELS),
    ("cpu-period", None, true, LIMITS),
    ("cpu-quota", None, true, LIMITS),
    ("cpu-rt-period", None, true, LIMITS),
    ("cpu-rt-runtime", None, true, LIMITS),
    ("cpu-shares", Some('c'), true, LIMITS),
    ("cpus", None, true, LIMITS),
    ("cpuset-cpus", None, true, LIMITS),
    ("cpuset-mems", None, true, LIMITS),
    ("detach", Some('d'), false, ATTACHED),
    ("device", None, true, Device),
    ("device-cgroup-rule", None, true, PRIVILEGED),
    ("device-read-bps", None, true, LIMITS),
    ("device-read-iops", None, true, LIMITS),
    ("device-write-bps", None, true, LIMITS),
    ("device-write-iops", None, true, LIMITS),
    ("disable-content-trust", None, false, PULL),
    ("dns", None, true, PODS),
    ("dns-opt", None, true, PODS),
    ("dns-option", None, true, PODS),
    ("dns-search", None, true, PODS),
    ("domainname", None, true, PODS),
    ("entrypoint", None, true, EntryPoint),
    ("env", Some('e'), true, Env),
    (
        "env-file",
        None,
        true,
        Refuse("there is no machine with that file; write env: instead."),
    ),
    ("expose", None, true, PORTS),
    ("gpus", None, true, Gpus),
    (
        "group-add",
        None,
        true,
        Say("ignored: the pool's template sets the groups."),
    ),
    ("health-cmd", None, true, Health),
    ("health-interval", None, true, Health),
    ("health-retries", None, true, Health),
    ("health-start-interval", None, true, Health),
    ("health-start-period", None, true, Health),
    ("health-timeout", None, true, Health),
    ("hostname", Some('h'), true, Name),
    (
        "init",
        None,
        false,
        Say("satisfied: the container's first process reaps all others."),
    ),
    ("interactive", Some('i'), false, ATTACHED),
    ("ip", None, true, NETWORK),
    ("ip6", None, true, NETWORK),
    (
        "ipc",
        None,
        true,
        Only(
            &["", "host", "private", "shareable"],
            "satisfied: the pod's containers share it, and the job's /dev/shm is as large as spec.sharedMemory.",
            NAMESPACE,
        ),
    ),
    ("isolation", None, true, LABELS),
    ("kernel-memory", None, true, LIMITS),
    ("label", Some('l'), true, LABELS),
    ("label-file", None, true, LABELS),
    ("link", None, true, NETWORK),
    ("link-local-ip", None, true, NETWORK),
    ("log-driver", None, true, LABELS),
    ("log-opt", None, true, LABELS),
    ("mac-address", None, true, NETWORK),
    ("memory", Some('m'), true, LIMITS),
    ("memory-reservation", None, true, LIMITS),
    ("memory-swap", None, true, LIMITS),
    ("memory-swappiness", None, true, LIMITS),
    ("mount", None, true, Rule::Mount),
    ("name", None, true, Name),
    ("net", None, true, Network),
    ("net-alias", None, true, Name),
    ("network", None, true, Network),
    ("network-alias", None, true, Name),
    (
        "no-healthcheck",
        None,
        false,
        Say("satisfied: images' health checks do not run here."),
    ),
    ("oom-kill-disable", None, false, LIMITS),
    ("oom-score-adj", None, true, LIMITS),
    (
        "pid",
        None,
        true,
        Only(&["", "private"], "satisfied.", NAMESPACE),
    ),
    ("pids-limit", None, true, LIMITS),
    ("platform", None, true, Platform),
    ("privileged", None, false, PRIVILEGED),
    ("publish", Some('p'), true, PORTS),
    ("publish-all", Some('P'), false, PORTS),
    ("pull", None, true, PULL),
    ("quiet", Some('q'), false, PULL),
    (
        "read-only",
        None,
        false,
        Say("ignored: the container's own files can be written."),
    ),
    (
        "restart",
        None,
        true,
        Say("ignored: a container that ends is not started again for the job."),
    ),
    (
        "rm",
        None,
        false,
        Say("satisfied: nothing is left of the container after the job."),
    ),
    ("runtime", None, true, Runtime),
    ("security-opt", None, true, SecurityOpt),
    ("shm-size", None, true, Shm),
    (
        "stop-signal",
        None,
        true,
        Say("ignored: the container ends with the pod."),
    ),
    (
        "stop-timeout",
        None,
        true,
        Say("ignored: the container ends with the pod."),
    ),
    ("storage-opt", None, true, LIMITS),
    (
        "sysctl",
        None,
        true,
        Refuse(
            "the kernel's settings are the pool's; its template can set them (securityContext.sysctls).",
        ),
    ),
    ("tmpfs", None, true, Tmpfs),
    ("tty", Some('t'), false, ATTACHED),
    ("ulimit", None, true, Rule::Ulimit),
    (
        "use-api-socket",
        None,
        false,
        Refuse("there is no Docker here."),
    ),
    ("user", Some('u'), true, User),
    (
        "userns",
        None,
        true,
        Only(&["", "private"], "satisfied.", NAMESPACE),
    ),
    (
        "uts",
        None,
        true,
        Only(&["", "private"], "satisfied.", NAMESPACE),
    ),
    ("volume", Some('v'), true, Volume),
    (
        "volume-driver",
        None,
        true,
        Refuse("volumes are the pool's; its template can mount them."),
    ),
    (
        "volumes-from",
        None,
        true,
        Refuse("there is no container to take volumes from."),
    ),
    ("workdir", Some('w'), true, Workdir),
];

/// Adds to the wishes what the text of `options:` has.
pub(super) fn judge(text: &str, role: Role, pool: &Pool, wishes: &mut Wishes) {
    let Some(words) = words(text) else {
        let sentence = "options: a quote is not closed.";
        return wishes.refused.push(sentence.into());
    };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if let Err(sentence) = one(&word, &mut words, (role, pool), wishes) {
            // It cannot be known where the next option begins.
            wishes.refused.push(sentence);
            return;
        }
    }
}

/// One word and what belongs to it.
fn one(
    word: &str,
    rest: &mut dyn Iterator<Item = String>,
    at: (Role, &Pool),
    wishes: &mut Wishes,
) -> Result<(), String> {
    if let Some(long) = word.strip_prefix("--").filter(|long| !long.is_empty()) {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (long, None),
        };
        let row = OPTIONS.iter().find(|row| row.0 == name);
        let row = row.ok_or_else(|| unknown(name))?;
        return value_of(row, value, rest).map(|value| apply(row, value, at, wishes));
    }
    let mut letters = word.strip_prefix('-').unwrap_or_default().chars();
    let mut any = false;
    while let Some(letter) = letters.next() {
        any = true;
        let row = OPTIONS.iter().find(|row| row.1 == Some(letter));
        let row = row.ok_or_else(|| unknown(&letter.to_string()))?;
        // A value may follow its letter at once.
        let behind = letters.as_str();
        let value = (row.2 && !behind.is_empty())
            .then(|| behind.strip_prefix('=').unwrap_or(behind).to_owned());
        let is_last = value.is_some();
        let value = value_of(row, value, rest)?;
        apply(row, value, at, wishes);
        if is_last {
            break;
        }
    }
    any.then_some(())
        .ok_or_else(|| "options: there is a word that belongs to no option.".into())
}

/// A word that does not look like an option may be a secret in a wrong place.
fn unknown(name: &str) -> String {
    let looks_like_one =
        name.len() <= 32 && name.bytes().all(|b| b == b'-' || b.is_ascii_lowercase());
    let name = if looks_like_one { name } else { "…" };
    format!("options: docker create has no option {name}.")
}

/// The option's value; empty for one that has none; `None` for one that is switched off.
fn value_of(
    (name, _, has_value, _): &Row,
    given: Option<String>,
    rest: &mut dyn Iterator<Item = String>,
) -> Result<Option<String>, String> {
    match (has_value, given) {
        (true, given) => given
            .or_else(|| rest.next())
            .map(Some)
            .ok_or_else(|| format!("options: --{name} needs a value.")),
        (false, Some(value)) if ["false", "0", "f", "F", "FALSE", "False"].contains(&&*value) => {
            Ok(None)
        }
        (false, _) => Ok(Some(String::new())),
    }
}

fn apply(row: &Row, value: Option<String>, (role, pool): (Role, &Pool), wishes: &mut Wishes) {
    let Some(value) = value else { return };
    let name = row.0;
    let done = match role {
        Role::Job => of_a_job(row.3, &value, pool, wishes),
        Role::Service => of_a_service(row.3, &value, wishes),
    };
    let (list, sentence) = match done {
        Done::Silently => return,
        Done::Said(sentence) => (&mut wishes.said, sentence),
        Done::Refused(sentence) => (&mut wishes.refused, sentence),
    };
    let sentence = format!("options: --{name}: {sentence}");
    if !list.contains(&sentence) {
        list.push(sentence);
    }
}

enum Done {
    Silently,
    Said(&'static str),
    Refused(&'static str),
}

/// What is one way for all containers.
fn of_all(rule: Rule, value: &str, wishes: &mut Wishes) -> Done {
    match rule {
        Say(sentence) => Done::Said(sentence),
        Refuse(sentence) => Done::Refused(sentence),
        Only(values, said, _) if values.contains(&value) => Done::Said(said),
        Only(_, _, refused) => Done::Refused(refused),
        Env => match value.split_once('=') {
            Some((name, value)) => {
                wishes.env.insert(name.into(), value.into());
                Done::Silently
            }
            None => Done::Said(
                "ignored for a name without a value: there is no machine to take it from.",
            ),
        },
        Workdir => {
            wishes.workdir = Some(value.into());
            Done::Silently
        }
        AddHost => match add_host(value) {
            Some(host) => {
                wishes.hosts.push(host);
                Done::Silently
            }
            None => Done::Refused("write it as NAME:ADDRESS."),
        },
        Network if value == "none" || value.starts_with("container:") => {
            Done::Refused("the containers of a job share the pod's network.")
        }
        Network => Done::Said("ignored: the containers of a job share the pod's network."),
        Platform if is_own_platform(value) => Done::Said("satisfied."),
        Platform => Done::Refused("the pool's nodes have another one."),
        SecurityOpt if value.starts_with("no-new-privileges") => {
            Done::Said("ignored: the pool's template sets the rights.")
        }
        SecurityOpt => Done::Refused(
            "a job's container gets no more rights than the pool's template gives it.",
        ),
        Volume => {
            wishes.mounts.push(volume(value));
            Done::Silently
        }
        Rule::Mount => match mount(value) {
            Some(mount) => {
                wishes.mounts.push(mount);
                Done::Silently
            }
            None => Done::Refused("write it with type=volume or type=bind, a source and a target."),
        },
        Runtime => Done::Said("ignored: the pool's template names the runtime class."),
        // Each kind of container has its own way.
        Device | EntryPoint | Gpus | Health | Name | Shm | Tmpfs | Rule::Ulimit | User => {
            Done::Silently
        }
    }
}

fn is_own_platform(value: &str) -> bool {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut parts = value.split('/');
    parts.next() == Some("linux") && parts.next().is_none_or(|part| part == own)
}

fn of_a_job(rule: Rule, value: &str, pool: &Pool, wishes: &mut Wishes) -> Done {
    match rule {
        Gpus => {
            Done::Said("satisfied: the container has the pool's GPUs, which the gate has tested.")
        }
        Runtime if value == "nvidia" => Done::Said("satisfied."),
        Device if value.starts_with("/dev/nvidia") || value.starts_with("nvidia.com/gpu") => {
            Done::Said("satisfied: the container has the pool's GPUs, which the gate has tested.")
        }
        Device => Done::Refused("a job's container has the pool's GPUs and no other device."),
        EntryPoint => {
            Done::Said("satisfied: the image's entry point is never run, only the job's steps are.")
        }
        Health => Done::Said("ignored: a job's container is ready when it takes steps."),
        Name => Done::Said("ignored: the pod's name is the host's name."),
        Shm => match (bytes(value), pool.shm_bytes) {
            (None, _) => Done::Refused("write it as a number with b, k, m or g."),
            (Some(wanted), Some(given)) if wanted > given => {
                Done::Refused("the pool's /dev/shm is smaller; spec.sharedMemory sets it.")
            }
            _ => Done::Said("satisfied: the pool's /dev/shm is at least as large."),
        },
        Rule::Ulimit => match ulimit(value) {
            Some(limit) => {
                wishes.ulimits.push(limit);
                Done::Silently
            }
            None => Done::Refused("write it as NAME=SOFT:HARD."),
        },
        User => {
            wishes.user = Some(value.into()).filter(|user: &String| !user.is_empty());
            Done::Silently
        }
        Tmpfs => {
            let target = value.split(':').next().unwrap_or_default();
            wishes.mounts.push(Mount {
                target_volume_path: target.into(),
                ..Mount::default()
            });
            Done::Said("approximated: a folder of the container's disk.")
        }
        other => of_all(other, value, wishes),
    }
}

fn of_a_service(rule: Rule, value: &str, wishes: &mut Wishes) -> Done {
    match rule {
        Gpus | Device => {
            Done::Refused("a service has no device; run what needs the GPU in a step of the job.")
        }
        EntryPoint => {
            wishes.entry_point = Some(value.into());
            Done::Silently
        }
        Health => {
            wishes.has_health_check = true;
            Done::Said(
                "approximated: the service counts as healthy when its ports (ports:) take connections.",
            )
        }
        Name => {
            wishes.names.push(value.into());
            Done::Silently
        }
        Shm | Rule::Ulimit => LIMITS_OF_A_SERVICE,
        User => Done::Refused("a service runs as its image's own user."),
        Tmpfs => Done::Said("ignored: the folder is of the service's own disk."),
        other => of_all(other, value, wishes),
    }
}

const LIMITS_OF_A_SERVICE: Done = Done::Said("ignored: a service has the node's defaults.");

fn add_host(value: &str) -> Option<Host> {
    let (name, address) = value.split_once([':', '='])?;
    let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
    is_host(name).then(|| Host {
        name: name.into(),
        address: address.to_string(),
    })
}

/// What may stand in `/etc/hosts`.
pub(super) fn is_host(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Docker's units are powers of two.
fn bytes(value: &str) -> Option<u64> {
    let value = value.to_ascii_lowercase();
    let value = value.strip_suffix('b').unwrap_or(&value);
    let value = value.strip_suffix('i').unwrap_or(value);
    let (number, shift) = match value.chars().last()? {
        'k' => (&value[..value.len() - 1], 10),
        'm' => (&value[..value.len() - 1], 20),
        'g' => (&value[..value.len() - 1], 30),
        't' => (&value[..value.len() - 1], 40),
        _ => (value, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn ulimit(value: &str) -> Option<Ulimit> {
    let (name, limits) = value.split_once('=')?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| match text {
        "-1" | "unlimited" => Some(None),
        text => text.parse().ok().map(Some),
    };
    Some(Ulimit {
        name: name.into(),
        soft: number(soft)?,
        hard: number(hard)?,
    })
}

/// `[SOURCE:]TARGET[:ro]`, as the agent reads `volumes:`.
fn volume(value: &str) -> Mount {
    let parts: Vec<&str> = value.split(':').collect();
    let is_mode = |mode: &str| !mode.contains('/');
    let (source, target, mode) = match parts[..] {
        [source, target, mode] => (source, target, mode),
        [target, mode] if is_mode(mode) => ("", target, mode),
        [source, target] => (source, target, ""),
        _ => ("", value, ""),
    };
    Mount {
        source_volume_path: source.into(),
        target_volume_path: target.into(),
        read_only: mode.split(',').any(|mode| mode == "ro"),
    }
}

/// `type=…,source=…,target=…`.
fn mount(value: &str) -> Option<Mount> {
    let mut mount = Mount::default();
    let mut kind = "volume";
    for field in value.split(',') {
        let (name, value) = field.split_once('=').unwrap_or((field, "true"));
        match name.trim() {
            "type" => kind = value,
            "source" | "src" => mount.source_volume_path = value.into(),
            "target" | "destination" | "dst" => mount.target_volume_path = value.into(),
            "readonly" | "ro" => mount.read_only = value != "false",
            _ => {}
        }
    }
    if kind == "tmpfs" {
        mount.source_volume_path.clear();
    }
    let is_known = ["volume", "bind", "tmpfs"].contains(&kind);
    let is_bind_of_nothing = kind == "bind" && !mount.source_volume_path.starts_with('/');
    (is_known && !is_bind_of_nothing && !mount.target_volume_path.is_empty()).then_some(mount)
}

#[cfg(test)]
#[path = "tests/options.rs"]
mod tests;
