//! The pod of a pool whose jobs bring their containers. The agent is in the main container, without a GPU. In `gpu` the gate
//! proves the devices, and then waits: for its job, whose image that container gets.

use std::collections::BTreeMap;

use cudarunner_crds::{JobContainers, JobImagePullPolicy};
use gate_report::contract::{command, file, gate, script};
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, PodSpec, Probe, ResourceRequirements, SecurityContext,
    Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::runner::{self, Place, probe};
use super::{Containers, chosen_user, devices, in_memory, mount, value};
use crate::PodSettings;
use crate::model::pool::Spec;
use crate::model::pool::owned::{
    self, AGENT_DIR, CA_DIR, EXTERNALS_DIR, JOB_EXTERNALS_DIR, JOB_WORK_DIR, REGISTRATION_DIR,
    SHM_DIR, WORK_DIR,
};
use crate::model::quantity::whole;
use crate::model::runner::GPU;

/// Our program, and a few small files.
const AGENT_MEMORY: &str = "16Mi";
/// Folders of the agent's in the job's container: where, and below [`WORK_DIR`].
const OF_THE_WORK: [(&str, &str); 2] = [
    ("/github/home", "_temp/_github_home"),
    ("/github/workflow", "_temp/_github_workflow"),
];

/// What containers ask for, by name.
type Quantities = BTreeMap<String, Quantity>;

/// The template's container `runner` describes the agent's. The job's has of it what a job had in the agent's: the volumes,
/// the devices, and the rights, but not the user, which is the job's image's own.
pub(super) fn containers(
    mut main: Container,
    theirs: Option<Container>,
    template: &PodSpec,
    spec: &Spec,
    jobs: &JobContainers,
    settings: &PodSettings,
) -> Containers {
    let place = Place::of(spec);
    let theirs = theirs.unwrap_or_default();
    let gpu = of_the_job(&theirs, spec, jobs, settings);
    prepare_for_jobs(&mut main, place);
    runner::merge(&mut main, theirs, place);
    if let Some(resources) = &mut main.resources {
        without_devices(resources);
    }
    Containers {
        gpu,
        image: main.image.clone().unwrap_or_default(),
        user: chosen_user(template, &main),
        main,
    }
}

/// The container of the GPUs, as it begins.
fn of_the_job(
    theirs: &Container,
    spec: &Spec,
    jobs: &JobContainers,
    settings: &PodSettings,
) -> Container {
    let program = format!("{REGISTRATION_DIR}/{}", file::RUNNER_INIT);
    let mut mounts = vec![
        mount(owned::REGISTRATION, REGISTRATION_DIR, false),
        mount(owned::JOB_WORK, JOB_WORK_DIR, false),
        mount(owned::JOB_EXTERNALS, JOB_EXTERNALS_DIR, true),
        mount(owned::JOB_SHM, SHM_DIR, false),
    ];
    mounts.extend(OF_THE_WORK.map(|(path, below)| VolumeMount {
        sub_path: Some(below.to_owned()),
        ..mount(owned::JOB_WORK, path, false)
    }));
    let mut env = vec![];
    if spec.ca_bundle.is_some() {
        mounts.push(mount(owned::GITHUB_CA, CA_DIR, true));
        env.extend(runner::authorities());
    }
    mounts.extend(theirs.volume_mounts.iter().flatten().cloned());
    Container {
        name: GPU.to_owned(),
        image: Some(settings.gate_image.clone()),
        image_pull_policy: Some(pull_policy(jobs).to_owned()),
        command: Some(vec![program, command::JOB.to_owned()]),
        // Beside the main container, and ended with it.
        restart_policy: Some("Always".to_owned()),
        env: Some(env).filter(|all| !all.is_empty()),
        resources: Some(resources(theirs, spec, jobs)),
        security_context: as_user(theirs.security_context.clone(), jobs.run_as_user),
        volume_mounts: Some(mounts),
        volume_devices: theirs.volume_devices.clone(),
        ..Container::default()
    }
}

/// What the agent's container has beside what it has in every pool.
fn prepare_for_jobs(main: &mut Container, place: Place) {
    main.env.get_or_insert_default().extend([
        value(script::DIR, AGENT_DIR.to_owned()),
        value(
            owned::CONTAINER_HOOKS,
            format!("{AGENT_DIR}/{}", file::CONTAINERS),
        ),
        // Without a container it would run here, and there is no GPU.
        value(owned::REQUIRE_JOB_CONTAINER, "true".to_owned()),
    ]);
    main.volume_mounts.get_or_insert_default().extend([
        mount(owned::AGENT_FILES, AGENT_DIR, false),
        mount(owned::JOB_WORK, WORK_DIR, false),
        mount(owned::JOB_EXTERNALS, EXTERNALS_DIR, false),
    ]);
    // What the kubelet shows as started here has been online, whatever became of the agent since.
    main.startup_probe = Some(Probe {
        period_seconds: Some(5),
        failure_threshold: Some(i32::MAX),
        ..probe(place.has_been_online())
    });
}

/// How the node comes by the images of jobs and services.
#[must_use]
pub fn pull_policy(jobs: &JobContainers) -> &'static str {
    match jobs.image_pull_policy {
        JobImagePullPolicy::IfNotPresent => "IfNotPresent",
        JobImagePullPolicy::Always => "Always",
    }
}

/// The rights of the containers that jobs bring, where the template says some.
#[must_use]
pub fn rights(spec: &Spec) -> Option<SecurityContext> {
    runner_of(spec)?.security_context.clone().map(without_user)
}

fn runner_of(spec: &Spec) -> Option<&Container> {
    spec.template.spec.as_ref()?.containers.first()
}

/// The user of a job's container is its image's, unless the pool says another.
fn as_user(rights: Option<SecurityContext>, user: Option<i64>) -> Option<SecurityContext> {
    let rights = rights.map(without_user);
    if user.is_none() {
        return rights;
    }
    Some(SecurityContext {
        run_as_user: user,
        ..rights.unwrap_or_default()
    })
}

fn without_user(rights: SecurityContext) -> SecurityContext {
    SecurityContext {
        run_as_user: None,
        run_as_group: None,
        ..rights
    }
}

/// The pool's devices and the template's, and what the pool says of the rest.
fn resources(theirs: &Container, spec: &Spec, jobs: &JobContainers) -> ResourceRequirements {
    let ours = devices(&spec.gpu);
    let of_template = theirs.resources.clone().unwrap_or_default();
    let own = jobs.resources.clone().unwrap_or_default();
    let all = |own: Quantities, theirs: Option<Quantities>, ours: Option<Quantities>| {
        let theirs = theirs.into_iter().flatten();
        let theirs = theirs.filter(|(name, _)| is_device(name));
        let ours = ours.into_iter().flatten();
        let all: Quantities = own.into_iter().chain(theirs).chain(ours).collect();
        Some(all).filter(|all| !all.is_empty())
    };
    let claims: Vec<_> = [ours.claims, of_template.claims]
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    ResourceRequirements {
        requests: all(own.requests, of_template.requests, ours.requests),
        limits: all(own.limits, of_template.limits, ours.limits),
        claims: Some(claims).filter(|all| !all.is_empty()),
    }
}

/// Devices go where the job is.
fn without_devices(resources: &mut ResourceRequirements) {
    let lists = [&mut resources.requests, &mut resources.limits];
    for list in lists.into_iter().flatten() {
        list.retain(|name, _| !is_device(name));
    }
    resources.claims = None;
}

/// Whether a resource is one that a driver of devices offers.
fn is_device(name: &str) -> bool {
    name.contains('/')
}

/// What the gate's image is told of the job's container.
pub(super) fn settings(spec: &Spec, jobs: &JobContainers) -> Vec<EnvVar> {
    let mounts = runner_of(spec).and_then(|runner| runner.volume_mounts.as_ref());
    let paths = mounts.into_iter().flatten().map(|m| m.mount_path.as_str());
    let paths: Vec<&str> = paths.collect();
    let mut all = vec![
        value(gate::AGENT_DIR, AGENT_DIR.to_owned()),
        value(gate::JOB_VOLUMES, paths.join(":")),
    ];
    if let Some(size) = whole(&jobs.shm_size) {
        all.push(value(gate::JOB_SHM_BYTES, size.to_string()));
    }
    all
}

pub(super) fn volumes(jobs: &JobContainers) -> [Volume; 4] {
    let on_disk = |name: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
    [
        in_memory(owned::AGENT_FILES, AGENT_MEMORY),
        on_disk(owned::JOB_WORK),
        on_disk(owned::JOB_EXTERNALS),
        in_memory(owned::JOB_SHM, &jobs.shm_size.0),
    ]
}

#[cfg(test)]
mod tests;
