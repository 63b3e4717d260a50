//! What is seen of a pool and of what is around it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarunner_crds::{ARCH_LABEL, Arch, FailureStatus, JobStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Taint;

use super::checks::{CheckFacts, Elsewhere};
use super::claim::ClaimTemplate;
use super::github::{Lifecycle, Listing, QueuedJob};
use super::jobs::JobFacts;
use super::key::PoolKey;
use super::left::Left;
use super::node_marks::Quarantined;
use super::published::Published;
use super::rerun::RerunFacts;
use super::runner::{Gone, Runner};
use super::scale_set::ScaleSetFacts;
use super::time::Shift as _;
use super::verification::VerificationFacts;
use super::webhook::WebhookFacts;
use crate::reason::Reason;
use crate::shares::Share;

/// Everything that a decision depends on beside the pool itself.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The pool's pods.
    pub runners: Vec<Runner>,
    /// Runners that ended and whose pods somebody else took away at once; the status does not tell of them yet.
    pub vanished: Vec<Runner>,
    /// Failures of lately that this process has told, newest first and without their messages.
    pub failures: Vec<FailureStatus>,
    /// Runners whose pods are gone, and whose hours nobody has heard yet.
    pub gone: Vec<Arc<Gone>>,
    /// Names of pods that were created and that the watch does not show yet.
    pub expected: BTreeSet<String>,
    /// Names of pods whose creation got no answer and which are not there: they may still come.
    pub unanswered: BTreeSet<String>,
    /// When the API server is asked for those that are expected.
    pub ask_for_pods: Option<Timestamp>,
    /// What is known of the way to GitHub.
    pub access: Access,
    /// What was seen at addresses that the pool has left.
    pub left: BTreeMap<String, Left>,
    /// For how long GitHub and a runner's pod may contradict one another.
    pub hung_after: SignedDuration,
    /// When GitHub may be asked again, after an attempt that failed.
    pub ask_again: Option<Timestamp>,
    /// GitHub's own list of our entries, as last read.
    pub listing: Option<Listing>,
    /// The jobs that wait at GitHub, as last read.
    pub queue: Option<Arc<Queue>>,
    /// The webhook of a pool that is to have one.
    pub webhook: Option<WebhookFacts>,
    /// The run of the verification that is on its way.
    pub verification: VerificationFacts,
    /// The required checks.
    pub checks: CheckFacts,
    /// What GitHub says of jobs that have ended.
    pub jobs: JobFacts,
    /// Jobs that a GPU or a node may have ended.
    pub reruns: RerunFacts,
    /// What GitHub says of the versions of agents, where it says anything.
    pub lifecycles: BTreeMap<String, Lifecycle>,
    /// What other pools require.
    pub required_elsewhere: BTreeSet<Elsewhere>,
    /// The scale set of a pool that has one, or should.
    pub scale_set: Option<ScaleSetFacts>,
    /// Labels of the other pools of the same address; empty where no job waits.
    pub other_pools: Vec<Vec<String>>,
    /// When we last created or removed anything that such a list would show; ahead of now while a registration that got no
    /// answer may still arrive.
    pub last_change: Option<Timestamp>,
    /// The nodes with GPUs for the pool; `None` where nodes are not watched.
    pub nodes: Option<Vec<Arc<NodeFacts>>>,
    /// What the pool may have of the GPUs that are there; `None` where that is not known, and where no node is for it: one
    /// may come for a pod that waits.
    pub share: Option<Arc<Share>>,
    /// What DRA drivers publish of devices; `None` where that is not watched.
    pub published: Option<Arc<Published>>,
    /// Whether a published device that failed is kept off alone, by a rule.
    pub taints_devices: bool,
    /// What the pool's claims are made of; read only where a device of theirs has failed and is kept off alone.
    pub claim_template: ClaimTemplate,
    /// What the other pools have in quarantine.
    pub quarantined: Vec<Quarantined>,
    /// Gates of all pools that passed; empty where no node is blamed.
    pub passed: Vec<Passed>,
    /// The other pools' last jobs on nodes where a gate of this pool found memory taken; empty where none has.
    pub jobs_elsewhere: Vec<(PoolKey, JobStatus)>,
    /// Why Kubernetes refused the last pod.
    pub pod_refused: Option<String>,
    /// Fresh randomness for names.
    pub seed: u64,
}

/// How long after a pod's grace period its node may take to say that the pod is gone: a container can use all of that period.
const CONFIRMED_WITHIN: SignedDuration = SignedDuration::from_secs(60);

impl Observed {
    /// By when the node of a pod that is being deleted has said that it is gone, or is taken for lost. One that is not ready
    /// says nothing any more.
    #[must_use]
    pub fn lost_by(&self, runner: &Runner) -> Option<Timestamp> {
        let by = runner.gone_by?;
        let node = runner.node.as_deref().and_then(|name| self.node(name));
        // One that is not known may have no GPUs to offer any more, and answer all the same.
        let may_answer = node.is_none_or(|node| node.ready_since.is_some());
        Some(if may_answer {
            by.after(CONFIRMED_WITHIN)
        } else {
            by
        })
    }

    /// What is known of a node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeFacts> {
        let mut nodes = self.nodes.iter().flatten();
        nodes.find(|node| node.name == name).map(Arc::as_ref)
    }
}

/// For how long a new node's driver may be starting: a driver container compiles its kernel module.
const WARM_UP: SignedDuration = SignedDuration::from_mins(10);

/// The label by which GPU feature discovery, and NVIDIA's DRA driver, know a node with a GPU: its value is `true`.
pub const HAS_GPU: &str = "nvidia.com/gpu.present";

/// A node with GPUs for the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Changes with each start of the node.
    pub boot_id: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How many of each extended resource it offers, taken or not.
    pub offers: BTreeMap<String, u32>,
    /// Since when it is there and ready.
    pub ready_since: Option<Timestamp>,
    /// Whether it takes no new pods: it is cordoned.
    pub is_cordoned: bool,
    /// Its taints that keep pods off.
    pub taints: Vec<Taint>,
}

impl NodeFacts {
    /// Whether it has this architecture.
    #[must_use]
    pub fn is_of(&self, arch: Arch) -> bool {
        let own = self.labels.get(ARCH_LABEL);
        own.is_some_and(|own| own == arch.as_str())
    }

    /// Whether the node was new at a moment: a driver may still be starting there.
    #[must_use]
    pub fn is_warming_up(&self, at: Timestamp) -> bool {
        self.ready_since
            .is_some_and(|since| at < since.after(WARM_UP))
    }
}

/// A gate that passed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Passed {
    /// The node.
    pub node: String,
    /// When its pod was made.
    pub created: Timestamp,
    /// UUIDs of the devices.
    pub devices: Vec<String>,
}

/// What is known of the way to GitHub.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Access {
    /// Nothing was tried yet.
    #[default]
    Unchecked,
    /// GitHub let us in.
    Granted,
    /// It cannot work, or does not now.
    Refused {
        /// The condition's reason.
        reason: Reason,
        /// What happened, and what to do.
        message: String,
        /// Whether time alone may fix it.
        transient: bool,
    },
}

/// Labels that runners share.
pub type Labels = Arc<[String]>;

/// The jobs that wait for a runner.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// When it was read.
    pub at: Timestamp,
    /// The request, by annotation, with which it was read.
    pub asked: Option<String>,
    /// The jobs, or why they could not be read. `None` where GitHub does not list them.
    pub jobs: Result<Option<Arc<[QueuedJob]>>, String>,
    /// The sets of labels that runners at that address have, ours and others. `None` where nobody has looked at all
    /// runners: any job may have one.
    pub registered: Option<Arc<[Labels]>>,
    /// The repository of the verification, where the pool's runner group does not admit it.
    pub shut_out: Option<String>,
}

impl Queue {
    /// Whether any job waits, as far as is known.
    #[must_use]
    pub fn has_jobs(&self) -> bool {
        matches!(&self.jobs, Ok(Some(jobs)) if !jobs.is_empty())
    }
}
