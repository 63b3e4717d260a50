//! Values for the tests of the plan.
#![allow(clippy::pedantic, clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarunner_crds::{
    CudaRunner, CudaRunnerSpec, CudaRunnerStatus, QuarantineScope, QuarantineStatus, RunnerPhase,
    Scaling, ScalingSource,
};
use gate_report::Class;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Access, Entry, Listing, NodeFacts, Observed};
use crate::model::hardware::{Hardware, Product};
use crate::model::life::Life;
use crate::model::pool::{FINALIZER, Pool};
use crate::model::published::PublishedDevice;
use crate::model::runner::{End, Failure, Job, Runner};
use crate::reason::Reason;

/// The present of all tests.
pub const NOW: Timestamp = Timestamp::constant(1_000_000, 0);

/// So many seconds before [`NOW`].
pub fn ago(seconds: i64) -> Timestamp {
    NOW - SignedDuration::from_secs(seconds)
}

/// A resource with the defaults, its finalizer set, whose status has its address.
pub fn resource() -> CudaRunner {
    let mut spec = CudaRunnerSpec {
        labels: ["self-hosted", "cuda"].map(str::to_owned).to_vec(),
        ..CudaRunnerSpec::default()
    };
    spec.github.url = "https://github.com/acme/widgets".to_owned();
    spec.github.credentials_ref.name = "github".to_owned();
    let mut resource = CudaRunner::new("pool", spec);
    let meta = &mut resource.metadata;
    meta.namespace = Some("ci".to_owned());
    meta.uid = Some("1b4e28ba-2fa1-11d2-883f-0016d3cca427".to_owned());
    meta.generation = Some(1);
    meta.creation_timestamp = Some(Time(ago(3600)));
    meta.finalizers = Some(vec![FINALIZER.to_owned()]);
    resource.status = Some(CudaRunnerStatus {
        registered_at: Some(resource.spec.github.url.clone()),
        ..CudaRunnerStatus::default()
    });
    resource
}

/// A pool of `replicas` runners whose status speaks of its generation.
pub fn pool(replicas: i32) -> Pool {
    let mut resource = resource();
    resource.spec.replicas = Some(replicas);
    let mut pool = Pool::read(&resource, false);
    pool.status.observed_generation = Some(1);
    pool
}

/// GitHub lets us in and holds nothing of ours.
pub fn observed(runners: Vec<Runner>) -> Observed {
    Observed {
        runners,
        vanished: vec![],
        failures: vec![],
        gone: vec![],
        expected: BTreeSet::new(),
        unanswered: BTreeSet::new(),
        ask_for_pods: None,
        access: Access::Granted,
        left: BTreeMap::new(),
        hung_after: SignedDuration::from_mins(10),
        ask_again: None,
        listing: Some(listing(&[])),
        queue: None,
        webhook: None,
        verification: crate::model::verification::VerificationFacts::default(),
        checks: crate::model::checks::CheckFacts::default(),
        jobs: crate::model::jobs::JobFacts::default(),
        reruns: crate::model::rerun::RerunFacts::default(),
        lifecycles: BTreeMap::new(),
        required_elsewhere: BTreeSet::new(),
        scale_set: None,
        other_pools: vec![],
        last_change: None,
        nodes: Some(vec![node("node-1")]),
        share: None,
        published: None,
        taints_devices: false,
        claim_template: crate::model::claim::ClaimTemplate::Unread,
        quarantined: vec![],
        passed: vec![],
        jobs_elsewhere: vec![],
        pod_refused: None,
        seed: 7,
    }
}

/// A node with eight free GPUs that has been there for an hour.
pub fn node(name: &str) -> Arc<NodeFacts> {
    Arc::new(NodeFacts {
        name: name.to_owned(),
        boot_id: Some("boot-1".to_owned()),
        labels: BTreeMap::from([("kubernetes.io/arch".to_owned(), "amd64".to_owned())]),
        offers: BTreeMap::from([("nvidia.com/gpu".to_owned(), 8)]),
        ready_since: Some(ago(3600)),
        is_cordoned: false,
        taints: vec![],
    })
}

/// A resource whose runners follow the jobs, between so many.
pub fn scaled(source: ScalingSource, min: i32, max: i32) -> CudaRunner {
    let mut resource = resource();
    resource.spec.scaling = Some(Scaling {
        min_runners: min,
        max_runners: max,
        source,
        webhook: None,
        schedule: vec![],
        weight: 1,
    });
    resource
}

/// A device of a node that a DRA driver publishes.
pub fn published_device(node: &str, number: usize, uuid: &str) -> PublishedDevice {
    PublishedDevice {
        node: node.to_owned(),
        driver: "gpu.nvidia.com".to_owned(),
        pool: node.to_owned(),
        name: format!("gpu-{number}"),
        uuid: Some(uuid.to_owned()),
        domain: "gpu.nvidia.com".to_owned(),
        taints: vec![],
    }
}

/// What a pool has in quarantine because of a device that computed wrongly.
pub fn device_entry(uuid: &str, since: Timestamp, until: Timestamp) -> QuarantineStatus {
    QuarantineStatus {
        node: "node-1".to_owned(),
        device: Some(uuid.to_owned()),
        scope: Some(QuarantineScope::Device.into()),
        class: Class::Device.into(),
        code: None,
        code_name: Some("WrongResult".to_owned()),
        message: "It computes wrongly.".to_owned(),
        failures: 1,
        boot_id: None,
        retest: false,
        since: Time(since),
        until: Some(Time(until)),
    }
}

/// The first of the nodes that are observed, to be changed.
pub fn first_node(observed: &mut Observed) -> &mut NodeFacts {
    Arc::make_mut(&mut observed.nodes.as_mut().unwrap()[0])
}

/// GitHub's list, with idle entries of these names.
pub fn listing(names: &[&str]) -> Listing {
    Listing {
        at: ago(10),
        entries: names
            .iter()
            .zip(1..)
            .map(|(name, id)| Entry {
                id,
                name: (*name).to_owned(),
                busy: false,
                online: Some(true),
                version: None,
                of_scale_set: false,
            })
            .collect(),
        is_whole: true,
    }
}

/// A runner of the current template, in `phase` for twenty seconds.
pub fn runner(pool: &Pool, name: &str, phase: RunnerPhase) -> Runner {
    Runner {
        url: None,
        registrar: None,
        is_stranded: false,
        told: None,
        is_over: true,
        heard: None,
        job_pod: None,
        life: Life::default(),
        devices_held: BTreeMap::new(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        created: ago(60),
        gone_by: (phase == RunnerPhase::Terminating).then(|| NOW + SignedDuration::from_secs(20)),
        node: (phase != RunnerPhase::Unscheduled).then(|| "node-1".to_owned()),
        template: pool.spec.as_ref().unwrap().template_hash.clone(),
        owner: pool.uid.clone(),
        reached: phase,
        phase,
        since: ago(20),
        waiting: None,
        waiting_since: None,
        doubt: None,
        agent_running: matches!(phase, RunnerPhase::Idle | RunnerPhase::Busy),
        image: Some("ghcr.io/actions/actions-runner:latest".to_owned()),
        gate_passed: matches!(
            phase,
            RunnerPhase::Starting | RunnerPhase::Idle | RunnerPhase::Busy | RunnerPhase::Finished
        ),
        devices: vec![],
        avoids: std::collections::BTreeSet::new(),
        retests: None,
        hardware: None,
        end: match phase {
            RunnerPhase::Finished => Some(End::JobDone(Job::default())),
            RunnerPhase::Failed => Some(End::Failed(gate_failure(Class::Node))),
            _ => None,
        },
        done: None,
        under_way: None,
        disruption: None,
    }
}

/// One device of a product, and a driver.
pub fn hardware(product: &str, driver: &str) -> Hardware {
    Hardware {
        devices: vec![Product {
            name: product.to_owned(),
            compute_capability: "8.0".to_owned(),
            memory_mib: 40_339,
        }],
        driver: Some(driver.to_owned()),
        cuda: Some("12.9".to_owned()),
    }
}

/// A gate that failed.
pub fn gate_failure(class: Class) -> Failure {
    let message = "the gate failed".to_owned();
    Failure {
        code: Some(999),
        ..Failure::new(Reason::GateFailed, class, message, ago(20), false)
    }
}
