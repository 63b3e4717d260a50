//! Volumes, and who mounts them: Kubernetes takes no pod with a mount without its volume.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Draft;
use super::fields::{Fields, Notes};
use super::pod::{Beside, NO_DOCKER, name_of};

/// Where a container has its shared memory.
const SHM: &str = "/dev/shm";
/// Where the agent has the files of jobs.
const WORK: &str = "/home/runner/_work";

const OWN_WORK: &str = "the operator has a volume of its own there, which agent and job share: nothing has to prepare it";
const NOT_HERE: &str = "the file has no volume of this name, and Kubernetes takes no pod without it: the mount is left out; ARC adds a volume named work by itself; where you need it, add volume and mounts to spec.template";

/// What becomes of the volumes: which are there no more, and which somebody may still want.
#[derive(Debug, Default)]
struct Volumes {
    all: BTreeSet<String>,
    /// Gone for everybody, as the operator has its own: the files of jobs.
    own: BTreeSet<String>,
    /// Gone unless somebody else mounts them.
    unmounted: BTreeSet<String>,
    mounted: BTreeSet<String>,
}

impl Volumes {
    /// Those of a pod; of them nobody may want `unmounted` any more.
    fn read(pod: &Fields, unmounted: BTreeSet<String>) -> Self {
        let volumes = pod.get("volumes").and_then(Value::as_array);
        let names = volumes.into_iter().flatten().filter_map(Value::as_object);
        Self {
            all: names.map(|volume| name_of(volume).to_owned()).collect(),
            unmounted,
            ..Self::default()
        }
    }

    /// Why a mount cannot stay, where it cannot.
    fn why_gone(&self, mount: &Map<String, Value>, draft: &Draft) -> Option<&'static str> {
        let name = name_of(mount);
        let has_own = draft.job_containers.is_some() && place_of(mount) == WORK;
        if self.own.contains(name) || has_own && !self.all.contains(name) {
            return Some(OWN_WORK);
        }
        if is_docker(name) {
            return Some(NO_DOCKER);
        }
        (!self.all.contains(name)).then_some(NOT_HERE)
    }
}

/// The volumes that a container mounts.
pub(super) fn mounted(container: &Map<String, Value>) -> Vec<String> {
    let lists = LISTS.iter().filter_map(|list| container.get(*list));
    let mounts = lists.filter_map(Value::as_array).flatten();
    let mounts = mounts.filter_map(Value::as_object);
    mounts.map(|mount| name_of(mount).to_owned()).collect()
}

/// Leaves out volumes that are of no use here, and every mount without its volume. Beside the agent are containers that stay,
/// and volumes of those that do not.
pub(super) fn settle(
    pod: &mut Fields,
    agent: Option<(&str, &mut Map<String, Value>)>,
    (beside, of_others): (Vec<Beside>, BTreeSet<String>),
    draft: &Draft,
    notes: &mut Notes,
) -> Vec<Beside> {
    let mut volumes = Volumes::read(pod, of_others);
    if let Some((path, agent)) = agent {
        of_the_agent(path, agent, &mut volumes, draft, notes);
        let gone = without_volumes(agent, &mut volumes, draft);
        say(path, gone, notes);
    }
    let mut kept = vec![];
    for mut container in beside {
        let gone = without_volumes(&mut container.fields, &mut volumes, draft);
        let mounts_nothing = LISTS
            .iter()
            .all(|list| !container.fields.contains_key(*list));
        match gone.first() {
            // What prepares a volume would fail without it.
            Some((_, why)) if mounts_nothing && !container.is_sidecar() => {
                let why = format!("nothing that it mounts is there: left out; {why}");
                notes.say(&container.path, &why);
            }
            _ => {
                say(&container.path, gone, notes);
                kept.push(container);
            }
        }
    }
    leave_out(pod, &volumes, notes);
    kept
}

/// Leaves out the volumes that nobody mounts any more.
fn leave_out(pod: &mut Fields, volumes: &Volumes, notes: &mut Notes) {
    let mut kept = vec![];
    for volume in pod.objects("volumes") {
        let name = name_of(&volume);
        let is_idle = volumes.unmounted.contains(name) && !volumes.mounted.contains(name);
        if is_docker(name) {
            // Gone with Docker, of which enough is said.
        } else if is_idle || volumes.own.contains(name) {
            let path = pod.path(&format!("volumes[{name}]"));
            notes.say(&path, "nobody mounts it any more: left out");
        } else {
            kept.push(volume);
        }
    }
    if !kept.is_empty() {
        pod.put("volumes", json!(kept));
    }
}

/// Where a container names volumes.
const LISTS: [&str; 2] = ["volumeMounts", "volumeDevices"];

/// The mounts of the agent at places that are the operator's.
fn of_the_agent(
    path: &str,
    agent: &mut Map<String, Value>,
    volumes: &mut Volumes,
    draft: &Draft,
    notes: &mut Notes,
) {
    retain(agent, "volumeMounts", |mount| {
        let name = name_of(mount);
        let path = format!("{path}.volumeMounts[{name}]");
        if is_docker(name) {
            // Gone with Docker, of which enough is said.
            return false;
        }
        match place_of(mount) {
            SHM if draft.job_containers.is_some() => {
                notes.say(&path, "spec.sharedMemory says what a job's container has there: set it to the volume's size");
                volumes.unmounted.insert(name.to_owned());
                false
            }
            WORK if draft.job_containers.is_some() => {
                notes.say(&path, OWN_WORK);
                volumes.own.insert(name.to_owned());
                false
            }
            _ => true,
        }
    });
    // What it has elsewhere as well is more than the files of jobs.
    let mounts = agent.get("volumeMounts").and_then(Value::as_array);
    let mounts = mounts.into_iter().flatten().filter_map(Value::as_object);
    for mount in mounts {
        volumes.own.remove(name_of(mount));
    }
}

/// Takes the mounts whose volumes are not there out of a container: the path of each, and why.
fn without_volumes(
    container: &mut Map<String, Value>,
    volumes: &mut Volumes,
    draft: &Draft,
) -> Vec<(String, &'static str)> {
    let mut gone = vec![];
    for list in LISTS {
        retain(container, list, |mount| {
            let name = name_of(mount);
            let why = volumes.why_gone(mount, draft);
            match why {
                Some(why) => gone.push((format!("{list}[{name}]"), why)),
                None => _ = volumes.mounted.insert(name.to_owned()),
            }
            why.is_none()
        });
    }
    gone
}

fn say(path: &str, gone: Vec<(String, &'static str)>, notes: &mut Notes) {
    for (mount, why) in gone {
        notes.say(&format!("{path}.{mount}"), why);
    }
}

/// Keeps of a list what is to stay, and no empty list.
fn retain(
    container: &mut Map<String, Value>,
    list: &str,
    mut stays: impl FnMut(&Map<String, Value>) -> bool,
) {
    let Some(Value::Array(all)) = container.get_mut(list) else {
        return;
    };
    all.retain(|one| one.as_object().is_none_or(&mut stays));
    if all.is_empty() {
        container.remove(list);
    }
}

fn place_of(mount: &Map<String, Value>) -> &str {
    let path = mount.get("mountPath").and_then(Value::as_str);
    path.unwrap_or_default().trim_end_matches('/')
}

/// Whether a volume is of the mode dind, as a chart writes it out.
fn is_docker(volume: &str) -> bool {
    volume.starts_with("dind-")
}
