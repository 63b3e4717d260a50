//! The jobs that wait: for each pool, why the oldest does, and those that no pool serves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarunner_crds::CudaRunner;
use gate_report::clean;
use jiff::Timestamp;

use super::{Job, LONGEST, MAX_WAITING, MAX_WAITING_OF_ALL, Waiting, WaitingJob, beyond};
use crate::Queue;
use crate::model::github::{QueuedJob, Repository, has_label};
use crate::model::url::{GitHubUrl, Scope};
use crate::queue::is_common;
use crate::why::of_waiting;

/// The longest name of a job, a workflow or a label that is listed, in characters.
const LONGEST_NAME: usize = 200;
/// Labels of one job that are listed at most.
const MOST_LABELS: usize = 20;

/// The jobs that wait, as the pools are added.
#[derive(Default)]
pub(super) struct Queues {
    /// Jobs that are listed so far, of all pools.
    listed: usize,
    /// What was read last at the address of each repository, and the labels of the pools there.
    addresses: BTreeMap<String, Address>,
}

/// An address on GitHub.
struct Address {
    url: GitHubUrl,
    read: Option<Arc<Queue>>,
    pools: Vec<Vec<String>>,
}

/// What is known of the jobs that wait at the address of a pool.
#[derive(Clone, Copy, Default)]
pub struct Known<'a> {
    /// What was read there, of all jobs.
    pub read: Option<&'a Arc<Queue>>,
    /// What was heard of the jobs of the pool's scale set, where somebody listens for it.
    pub heard: Option<&'a [QueuedJob]>,
}

impl Queues {
    /// The queue of a pool.
    pub(super) fn of(
        &mut self,
        resource: &CudaRunner,
        url: Option<&GitHubUrl>,
        known: Known<'_>,
        now: Timestamp,
    ) -> Waiting {
        let labels = resource.runner_labels();
        let said = resource.status.as_ref().map_or(0, |status| status.queued);
        let mut ours: Vec<&QueuedJob> = known.heard.into_iter().flatten().collect();
        let heard = ours.len();
        // A scale set hears of no more jobs than it may have. What was read is older, so it adds no more than are counted.
        let more = match known.heard {
            Some(_) => usize::try_from(said).unwrap_or(0).saturating_sub(heard),
            None => usize::MAX,
        };
        let read = jobs(known.read).filter(|job| job.is_served_by(&labels));
        let is_heard = |job: &&QueuedJob| {
            let mut heard = known.heard.into_iter().flatten();
            heard.any(|other| other.run == job.run && other.name == job.name)
        };
        ours.extend(read.filter(|job| !is_heard(job)).take(more));
        let has_read = ours.len() > heard || known.heard.is_none();
        // GitHub numbers runs in the order in which they are made.
        ours.sort_by_key(|job| (job.run, job.id, job.created_at));
        let named = i32::try_from(ours.len()).unwrap_or(i32::MAX);
        let jobs = said.max(named);
        let room = MAX_WAITING_OF_ALL
            .saturating_sub(self.listed)
            .min(MAX_WAITING);
        let listed = url.map(|url| ours.iter().take(room).map(|job| WaitingJob::of(job, url)));
        let waiting: Vec<_> = listed.into_iter().flatten().collect();
        self.listed = self.listed.saturating_add(waiting.len());
        let oldest = ours.first().zip(url);
        if let Some(url) = url {
            self.add(url, known.read, labels);
        }
        Waiting {
            jobs,
            oldest: oldest.map(|(job, url)| WaitingJob::of(job, url).job),
            as_of: match known.read.filter(|_| has_read) {
                Some(read) => read.jobs.as_ref().ok().and(Some(read.at)),
                None => known.heard.map(|_| now),
            },
            why: (jobs > 0).then(|| why(resource, jobs)).flatten(),
            waiting_not_listed: beyond(usize::try_from(jobs).unwrap_or(0), waiting.len()),
            waiting,
        }
    }

    fn add(&mut self, url: &GitHubUrl, read: Option<&Arc<Queue>>, labels: Vec<String>) {
        let address = self.addresses.entry(url.to_string());
        let address = address.or_insert_with(|| Address {
            url: url.clone(),
            read: None,
            pools: vec![],
        });
        if address.read.as_ref().map(|read| read.at) < read.map(|read| read.at) {
            address.read = read.cloned();
        }
        address.pools.push(labels);
    }

    /// The jobs that no pool serves, nor any other runner that is registered, and how many more there are.
    pub(super) fn unserved(self) -> (Vec<WaitingJob>, u32) {
        let mut listed = vec![];
        let mut all: usize = 0;
        for address in self.addresses.values() {
            let wider = self.addresses.values().filter(|a| a.is_above(address));
            let wider: Vec<_> = wider.flat_map(|above| &above.pools).collect();
            for job in address.unserved(&wider) {
                all = all.saturating_add(1);
                if listed.len() < MAX_WAITING {
                    listed.push(WaitingJob::of(job, &address.url));
                }
            }
        }
        listed.sort_by_key(|job| (job.job.run_id, job.job.id));
        (listed, beyond(all, MAX_WAITING))
    }
}

impl Address {
    /// Whether its pools get jobs of that repository, too.
    fn is_above(&self, other: &Self) -> bool {
        let (Scope::Repository { owner, .. }, true) =
            (other.url.scope(), self.url.origin() == other.url.origin())
        else {
            return false;
        };
        match self.url.scope() {
            Scope::Repository { .. } => false,
            Scope::Organization { name } => name == owner,
            Scope::Enterprise { .. } => true,
        }
    }

    /// The jobs that its own pools do not serve, nor those with these labels, nor other runners that are registered.
    fn unserved<'a>(&'a self, wider: &[&'a Vec<String>]) -> impl Iterator<Item = &'a QueuedJob> {
        // Many jobs ask for the same, and many pools offer it.
        let registered = self.read.as_ref().and_then(|read| read.registered.as_ref());
        let others = registered.iter().flat_map(|all| all.iter());
        let pools = self.pools.iter().chain(wider.iter().copied());
        let offers: BTreeSet<&[String]> = pools
            .map(Vec::as_slice)
            .chain(others.map(AsRef::as_ref))
            .collect();
        let known: BTreeSet<&String> = self.pools.iter().flatten().collect();
        let known: Vec<String> = known.into_iter().cloned().collect();
        let mut judged = BTreeMap::<&[String], bool>::new();
        jobs(self.read.as_ref()).filter(move |job| {
            let judge = || {
                let of_ours = |label: &String| {
                    label.eq_ignore_ascii_case("self-hosted")
                        || (!is_common(label) && has_label(&known, label))
                };
                let is_meant = job.labels.iter().any(of_ours);
                is_meant
                    && registered.is_some()
                    && !offers.iter().any(|labels| job.is_served_by(labels))
            };
            *judged.entry(&job.labels).or_insert_with(judge)
        })
    }
}

/// The jobs that were read.
fn jobs(read: Option<&Arc<Queue>>) -> impl Iterator<Item = &QueuedJob> {
    let jobs = read.and_then(|read| read.jobs.as_ref().ok()?.as_ref());
    jobs.into_iter().flat_map(|jobs| jobs.iter())
}

/// The most urgent of what stands in the way, in the words of `kubectl cudarunner why`.
fn why(resource: &CudaRunner, jobs: i32) -> Option<String> {
    let first = of_waiting(resource, jobs)?;
    Some(clean(
        &format!("{}: {}", first.about, first.message),
        LONGEST,
    ))
}

impl WaitingJob {
    /// A job as it is listed, with links to the pool's own GitHub only.
    fn of(job: &QueuedJob, url: &GitHubUrl) -> Self {
        let repository = Repository::within(url, job.repository.as_deref().unwrap_or_default());
        let page = repository.as_ref().map(|repository| match job.id {
            Some(id) => repository.job_page(url, job.run, id),
            None => repository.run_page(url, job.run, None),
        });
        let workflow = job.workflow.as_deref().filter(|name| !name.is_empty());
        let labels = job.labels.iter().take(MOST_LABELS);
        Self {
            job: Job {
                id: job.id.and_then(|id| i64::try_from(id).ok()),
                name: clean(&job.name, LONGEST_NAME),
                url: page,
                repository: repository.map(|r| r.full_name().to_owned()),
                workflow: workflow.map(|name| clean(name, LONGEST_NAME)),
                run_id: i64::try_from(job.run).ok(),
            },
            labels: labels.map(|label| clean(label, LONGEST_NAME)).collect(),
            since: job.created_at,
        }
    }
}
