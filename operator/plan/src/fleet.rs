//! The fleet as one document: nodes, devices, pools, queues, the last gates and jobs.
//!
//! Nothing is kept for it. Whoever has caches hands in what they hold, one pool and one runner at a time, so that no copy of
//! all runners is made; whoever has only an API server hands in what that lists.

mod document;
mod history;
mod hours;
mod join;
mod nodes;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use cudarunner_crds::{CudaRunner, CudaRunnerStatus, DeviceStatus, OtherDevicesStatus};
use gate_report::clean;
use jiff::Timestamp;

use crate::NodeFacts;
use crate::hours::RunnerHours;
use crate::model::github::Repository;
use crate::model::key::PoolKey;
use crate::model::runner::Runner;
use crate::model::url::GitHubUrl;
use crate::why::troubles;

pub use document::*;
use history::History;
use nodes::Nodes;
pub use queue::Known;

/// The longest text of a condition, a failure or a quarantine that is repeated, in characters.
const LONGEST: usize = 600;
/// Labels of one pool that are listed at most.
const MAX_LABELS: usize = 64;

/// GPUs that pods of others hold, by node and extended resource.
pub type Others = BTreeMap<String, BTreeMap<String, u32>>;

/// Puts the document together.
pub struct Builder {
    now: Timestamp,
    operator: Option<Operator>,
    nodes: Nodes,
    pools: Vec<Pool>,
    queues: queue::Queues,
    history: History,
    hours: Option<hours::Sums>,
    /// The pool that runners are of.
    current: Option<Current>,
}

/// What is asked of a pool for each of its runners.
struct Current {
    key: String,
    uid: String,
    url: Option<GitHubUrl>,
}

impl Builder {
    /// One that knows no pool yet. `nodes` and `others` are `None` where they cannot be seen.
    #[must_use]
    pub fn new(
        now: Timestamp,
        operator: Option<Operator>,
        nodes: Option<&[Arc<NodeFacts>]>,
        others: Option<&Others>,
    ) -> Self {
        Self {
            now,
            operator,
            nodes: Nodes::new(nodes, others),
            pools: vec![],
            queues: queue::Queues::default(),
            history: History::default(),
            hours: None,
            current: None,
        }
    }

    /// Adds a pool, as its resource says, and what is known of the jobs that wait for it.
    pub fn pool(&mut self, resource: &CudaRunner, waiting: Known<'_>) {
        let none = CudaRunnerStatus::default();
        let status = resource.status.as_ref().unwrap_or(&none);
        let meta = &resource.metadata;
        let key = PoolKey {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        // One that cannot be read is not repeated: it may hold a secret.
        let url = GitHubUrl::parse(&resource.spec.github.url, true).ok();
        if resource.spec.gpu.claim_template.is_none() {
            self.nodes.counts(&resource.spec.gpu.resource);
        }
        self.nodes.quarantine(&key.to_string(), &status.quarantine);
        self.history.pool(&key.to_string(), status);
        let devices = status.devices.iter().map(DeviceJobs::of);
        let troubles = troubles(status);
        let is = |type_: &str| {
            let mut all = status.conditions.iter();
            all.any(|c| c.type_ == type_ && c.status == "True")
        };
        self.pools.push(Pool {
            ready: is(crate::kind::READY),
            held: troubles.iter().map(|c| Held::of(c)).collect(),
            url: url.as_ref().map(ToString::to_string).unwrap_or_default(),
            gpu: status.gpu.clone(),
            runners: status.replicas,
            pending: status.pending,
            gated: status.gated,
            online: status.online,
            busy: status.busy,
            devices: devices.collect(),
            other_devices: status.other_devices.as_ref().map(OtherDevices::of),
            quarantined: u32::try_from(status.quarantine.len()).unwrap_or(u32::MAX),
            labels: bounded_labels(resource),
            queue: self.queues.of(resource, url.as_ref(), waiting, self.now),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        });
        self.current = Some(Current {
            key: key.to_string(),
            uid: meta.uid.clone().unwrap_or_default(),
            url,
        });
    }

    /// Adds a runner of the pool that was added last. One that only looks like the pool's own is passed over. `running` is
    /// the job that it has, as GitHub says.
    pub fn runner(&mut self, runner: &Runner, running: Option<&crate::model::runner::Job>) {
        let Some(pool) = self.current.as_ref().filter(|p| p.uid == runner.owner) else {
            return;
        };
        let job = running.map(|job| job_of(job, pool.url.as_ref()));
        self.nodes.runner(&pool.key, runner, job.as_ref());
        self.history.runner(&pool.key, runner);
    }

    /// Begins to count hours: from now on their absence means that nothing has ended.
    pub fn counts_hours(&mut self) {
        self.hours.get_or_insert_default();
    }

    /// Adds a runner that has ended.
    pub fn ended(&mut self, runner: &RunnerHours) {
        hours::add(self.hours.get_or_insert_default(), runner);
        self.history.ended(runner);
    }

    /// The document.
    #[must_use]
    pub fn finish(self) -> Fleet {
        let Self {
            mut pools,
            mut history,
            ..
        } = self;
        history.merge();
        let failed = history.failed_last();
        let seen = history.seen();
        let (nodes_visible, others_visible) = self.nodes.visible();
        let (mut nodes, devices) = self.nodes.finish(&failed, &seen);
        pools.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let nodes_not_listed = beyond(nodes.len(), MAX_NODES);
        let pools_not_listed = beyond(pools.len(), MAX_POOLS);
        nodes.truncate(MAX_NODES);
        pools.truncate(MAX_POOLS);
        let (unserved, unserved_not_listed) = self.queues.unserved();
        Fleet {
            api_version: API_VERSION.to_owned(),
            generated_at: self.now,
            operator: self.operator,
            further_operators: vec![],
            not_read: vec![],
            not_served: None,
            devices,
            nodes_visible,
            others_visible,
            nodes,
            nodes_not_listed,
            pools,
            pools_not_listed,
            unserved,
            unserved_not_listed,
            history: history.finish(),
            hours: self.hours.map(hours::Sums::finish),
        }
    }
}

impl Held {
    fn of(condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition) -> Self {
        Self {
            type_: condition.type_.clone(),
            reason: condition.reason.clone(),
            message: clean(&condition.message, LONGEST),
        }
    }
}

impl DeviceJobs {
    fn of(device: &DeviceStatus) -> Self {
        Self {
            uuid: device.uuid.clone(),
            node: device.node.clone(),
            jobs: device.jobs,
            failed: device.failed,
            suspect: device.suspect,
        }
    }
}

impl OtherDevices {
    fn of(devices: &OtherDevicesStatus) -> Self {
        Self {
            jobs: devices.jobs,
            failed: devices.failed,
        }
    }
}

/// How jobs ended on one device.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Jobs that ended well or failed.
    pub jobs: i32,
    /// Those of them that failed.
    pub failed: i32,
    /// Whether that is more than chance explains.
    pub suspect: bool,
}

/// `3 of 5`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.failed, self.jobs)
    }
}

impl Tally {
    fn count(&mut self, jobs: i32, failed: i32) {
        self.jobs = self.jobs.saturating_add(jobs);
        self.failed = self.failed.saturating_add(failed);
    }
}

impl Fleet {
    /// How jobs ended on a device, and on all others of the pools that were on it; `None` where no job has ended there.
    #[must_use]
    pub fn compared(&self, uuid: &str) -> Option<(Tally, Tally)> {
        let of = |pool: &&Pool| pool.devices.iter().any(|device| device.uuid == uuid);
        let mut pools = self.pools.iter().filter(of).peekable();
        pools.peek()?;
        let (mut own, mut others) = (Tally::default(), Tally::default());
        for pool in pools {
            let left = pool.other_devices.iter();
            left.for_each(|left| others.count(left.jobs, left.failed));
            for device in &pool.devices {
                let tally = if device.uuid == uuid {
                    &mut own
                } else {
                    &mut others
                };
                tally.count(device.jobs, device.failed);
                tally.suspect |= device.suspect;
            }
        }
        Some((own, others))
    }
}

/// The labels of a pool's runners. Whoever may write a spec may write many.
fn bounded_labels(resource: &CudaRunner) -> Vec<String> {
    let labels = resource.runner_labels().into_iter().take(MAX_LABELS);
    labels.map(|label| clean(&label, LONGEST)).collect()
}

fn beyond(count: usize, listed: usize) -> u32 {
    u32::try_from(count.saturating_sub(listed)).unwrap_or(u32::MAX)
}

/// A job by what its own marks or a scale set say of it: they lead to the pool's own GitHub only.
fn job_of(job: &crate::model::runner::Job, url: Option<&GitHubUrl>) -> Job {
    let run: Option<u64> = job.run.parse().ok();
    let repository = url.and_then(|url| Repository::within(url, &job.repository));
    let page = repository.as_ref().zip(url).zip(run);
    Job {
        id: None,
        name: clean(&job.job, LONGEST),
        url: page.map(|((repository, url), run)| repository.run_page(url, run, None)),
        repository: repository.map(|r| r.full_name().to_owned()),
        workflow: Some(clean(&job.workflow, LONGEST)).filter(|name| !name.is_empty()),
        run_id: run.and_then(|run| i64::try_from(run).ok()),
    }
}
