//! One job: which pool would take it, whether it runs or has ended, or why it waits. From [the fleet document](crate::fleet),
//! and so without GitHub.

mod notes;

pub use notes::some;

use std::collections::BTreeSet;

use cudarunner_crds::CudaRunner;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::fleet::{DeviceState, Event, EventKind, Fleet, Job, Pool, WaitingJob};
use crate::kind;
use crate::model::github::has_label;
use crate::model::url::{GitHubUrl, Scope};
use crate::reason::{Reason, Stored};
use crate::why::Cause;

/// Jobs that are told of at most, where a name or a run has many.
const MOST: usize = 10;
/// A queue that was read longer ago may be another by now.
const FRESH: SignedDuration = SignedDuration::from_secs(60);
/// Of a job of which nobody knows why it waits.
const IN_NO_WAY: &str =
    "Nothing that is known stands in its way: GitHub gives a job to an idle runner within seconds";

/// Which job.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Asked {
    /// By the page of the job, or of its run.
    Page(Page),
    /// By its name.
    Name(String),
}

/// A page of GitHub's, or of a GitHub Enterprise Server's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    /// Such as `https://github.com`.
    origin: String,
    /// `OWNER/NAME`.
    repository: String,
    /// The run.
    run: i64,
    /// The job, where the page is of one.
    job: Option<i64>,
}

impl Asked {
    /// A job by its address, where this is one, else by its name.
    ///
    /// # Errors
    ///
    /// The address is not one of a job or of a run, in a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !is_address(text) {
            return Ok(Self::Name(text.trim().to_owned()));
        }
        let page = Page::parse(text).ok_or_else(|| {
            format!(
                "{text} is not the address of a job: https://github.com/OWNER/REPOSITORY/actions/runs/NUMBER/job/NUMBER, or the same of a GitHub Enterprise Server"
            )
        });
        page.map(Self::Page)
    }

    /// Whether a job of a pool may be meant, which is at this address.
    fn is_for<'a>(&self, job: &Job, pool: impl FnOnce() -> &'a str) -> bool {
        match self {
            Self::Name(name) => job.name.eq_ignore_ascii_case(name),
            Self::Page(page) => {
                let repository = job.repository.as_deref().unwrap_or_default();
                job.run_id == Some(page.run)
                    && repository.eq_ignore_ascii_case(&page.repository)
                    && (page.job.is_none() || job.id.is_none() || job.id == page.job)
                    && GitHubUrl::parse(pool(), true).is_ok_and(|url| url.origin() == page.origin)
            }
        }
    }

    /// GitHub's number for the job.
    fn number(&self) -> Option<i64> {
        match self {
            Self::Page(page) => page.job,
            Self::Name(_) => None,
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Name(name) => format!("the job {name}"),
            Self::Page(page) => format!("run {} in {}", page.run, page.repository),
        }
    }
}

/// Whether this is meant as an address, and not as a name.
#[must_use]
pub fn is_address(text: &str) -> bool {
    text.trim().starts_with("https://") || text.trim().starts_with("http://")
}

impl Page {
    /// Whether a pool at this address gets jobs of the repository.
    fn is_at(&self, url: &str) -> bool {
        let url = GitHubUrl::parse(url, true);
        url.is_ok_and(|url| url.origin() == self.origin && url.covers(&self.repository))
    }

    /// `ORIGIN/OWNER/REPOSITORY/actions/runs/N[/attempts/N][/job/N]`.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().split(['?', '#']).next()?;
        let (scheme, rest) = text.split_once("://")?;
        let mut parts = rest.trim_end_matches('/').split('/');
        let host = parts.next().filter(|host| !host.is_empty())?;
        let (owner, name) = (parts.next()?, parts.next()?);
        let mut after = |word: &str| (parts.next()? == word).then_some(());
        after("actions")?;
        after("runs")?;
        let run = parts.next()?.parse().ok()?;
        let mut job = None;
        while let Some(word) = parts.next() {
            let number: i64 = parts.next()?.parse().ok()?;
            match word {
                "job" => job = Some(number),
                "attempts" => {}
                _ => return None,
            }
        }
        Some(Self {
            origin: format!("{scheme}://{}", host.to_ascii_lowercase()),
            repository: format!("{owner}/{name}"),
            run,
            job,
        })
    }
}

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The jobs that may be meant, those that wait first.
    pub jobs: Vec<Told>,
    /// Where there is none: the pools for its repository of which the statuses alone are known, and what holds their jobs. Those
    /// that something holds come first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Candidate>,
    /// What that is worth; or, where there is none, what is known instead, and what to do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The pools that no operator serves: what is said of them is old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_served: Option<String>,
}

/// A pool that may take a job of which nothing is known.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// `NAMESPACE/NAME`.
    pub pool: String,
    /// Labels of its runners.
    pub labels: Vec<String>,
    /// How many jobs are known to wait for it.
    pub queued: i32,
    /// What holds its jobs, in the words of `why` about a pool.
    pub causes: Vec<Cause>,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// How far it is.
    pub state: State,
    /// The job.
    pub job: Job,
    /// The pools, `NAMESPACE/NAME`, that would take it, or that had it.
    pub pools: Vec<String>,
    /// The runner that has or had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Since when it waits or runs, or when it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// All that in sentences, and why.
    pub says: String,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum State {
    /// It waits for a pool's runner.
    Waiting,
    /// It waits, and no pool takes it.
    Unserved,
    /// It runs.
    Running,
    /// It has ended.
    Ended,
}

/// What the fleet knows of a job. `by_status` are the pools that no operator's document has: their statuses alone are known.
#[must_use]
pub fn of(fleet: &Fleet, asked: &Asked, by_status: &[CudaRunner]) -> Answer {
    let over: Vec<Told> = running(fleet, asked).chain(ended(fleet, asked)).collect();
    let mut jobs = waiting(fleet, asked);
    jobs.extend(unserved(fleet, asked));
    // A list may be older than the job's start. A later attempt waits since the end of the one before.
    jobs.retain(|waits| !over.iter().any(|over| over.is_later(waits)));
    jobs.extend(over);
    if jobs.is_empty() {
        jobs.extend(lost(fleet, asked));
    }
    if let Some(number) = asked.number()
        && jobs.iter().any(|told| told.job.id == Some(number))
    {
        jobs.retain(|told| told.job.id == Some(number));
    }
    let pools = if jobs.is_empty() {
        notes::candidates(asked, by_status)
    } else {
        vec![]
    };
    let notes = notes::notes(fleet, asked, (&jobs, &pools), by_status);
    jobs.truncate(MOST);
    Answer {
        jobs,
        pools,
        notes,
        not_served: fleet.not_served.clone(),
    }
}

impl Told {
    fn is_later(&self, waits: &Self) -> bool {
        let same = self.job.run_id == waits.job.run_id
            && lower(self.job.repository.as_ref()) == lower(waits.job.repository.as_ref())
            && self.job.name.eq_ignore_ascii_case(&waits.job.name);
        same && self.at >= waits.at
    }
}

fn lower(text: Option<&String>) -> Option<String> {
    text.map(|text| text.to_ascii_lowercase())
}

/// A job's name with its run.
fn words(job: &Job) -> String {
    let run = job.run_id.map(|run| format!(" of run {run}"));
    let place = job.repository.as_ref().map(|name| format!(" in {name}"));
    [Some(format!("The job {}", job.name)), run, place]
        .into_iter()
        .flatten()
        .collect()
}

fn since(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, |at| format!(" since {at}"))
}

/// The jobs that a pool would take, each once.
fn waiting(fleet: &Fleet, asked: &Asked) -> Vec<Told> {
    let mut all: Vec<(&WaitingJob, Vec<&Pool>)> = vec![];
    for pool in &fleet.pools {
        let ours = pool.queue.waiting.iter();
        for waits in ours.filter(|waits| asked.is_for(&waits.job, || &pool.url)) {
            match all.iter_mut().find(|(known, _)| known.job == waits.job) {
                Some((_, pools)) => pools.push(pool),
                None => all.push((waits, vec![pool])),
            }
        }
    }
    let tell = |(waits, pools): (&WaitingJob, Vec<&Pool>)| Told {
        state: State::Waiting,
        job: waits.job.clone(),
        pools: pools.iter().map(|pool| pool.key()).collect(),
        runner: None,
        node: None,
        at: waits.since,
        says: why_it_waits(fleet, waits, &pools),
    };
    all.into_iter().map(tell).collect()
}

fn why_it_waits(fleet: &Fleet, waits: &WaitingJob, pools: &[&Pool]) -> String {
    let keys: Vec<String> = pools.iter().map(|pool| pool.key()).collect();
    let mut says = vec![
        format!("{} waits{}", words(&waits.job), since(waits.since)),
        format!(
            "It asks for [{}], and {} would take it",
            waits.labels.join(", "),
            keys.join(" or ")
        ),
    ];
    for pool in pools {
        let mut queue = pool.queue.waiting.iter();
        let place = queue.position(|other| other.job == waits.job);
        let of = (pools.len() > 1).then(|| format!(" of {}", pool.key()));
        let of = of.unwrap_or_default();
        says.push(match place.unwrap_or(0) {
            0 => format!("It is the oldest in the queue{of}"),
            1 => format!("1 job in the queue{of} is older"),
            older => format!("{older} jobs in the queue{of} are older"),
        });
        let why = pool.queue.why.as_ref();
        says.push(why.map_or_else(
            || IN_NO_WAY.to_owned(),
            |why| format!("Why it waits: {why}"),
        ));
        let is_old = |as_of| fleet.generated_at.duration_since(as_of) > FRESH;
        if let Some(as_of) = pool.queue.as_of.filter(|as_of| is_old(*as_of)) {
            says.push(format!(
                "The queue was read at {as_of}; `kubectl cudarunner why {} --namespace {}` has it read now",
                pool.name, pool.namespace
            ));
        }
    }
    says.join(". ")
}

/// The jobs that no pool takes.
fn unserved<'a>(fleet: &'a Fleet, asked: &'a Asked) -> impl Iterator<Item = Told> + 'a {
    let all = fleet.unserved.iter().filter_map(|waits| {
        let repository = waits.job.repository.as_deref().unwrap_or_default();
        let near = nearest(fleet, waits, repository);
        let url = near.map_or("", |pool| pool.url.as_str());
        asked.is_for(&waits.job, || url).then_some((waits, near))
    });
    all.map(|(waits, near)| {
        let lacks = near.map_or_else(String::new, |pool| {
            let missing = waits.labels.iter();
            let missing: Vec<&str> = missing
                .filter(|label| !has_label(&pool.labels, label))
                .map(String::as_str)
                .collect();
            format!(". {} comes nearest, and lacks {}", pool.key(), missing.join(", "))
        });
        Told {
            state: State::Unserved,
            job: waits.job.clone(),
            pools: vec![],
            runner: None,
            node: None,
            at: waits.since,
            says: format!(
                "{} waits{}, and no pool takes it: it asks for [{}]{lacks}. Add what is missing to spec.labels of the pool that should run it, or change the job's runs-on",
                words(&waits.job),
                since(waits.since),
                waits.labels.join(", "),
            ),
        }
    })
}

/// The pool for a repository that lacks the fewest of a job's labels.
fn nearest<'a>(fleet: &'a Fleet, waits: &WaitingJob, repository: &str) -> Option<&'a Pool> {
    let origin = waits.job.url.as_deref()?;
    let there = fleet.pools.iter().filter(|pool| {
        let url = GitHubUrl::parse(&pool.url, true);
        url.is_ok_and(|url| origin.starts_with(&url.origin()) && url.covers(repository))
    });
    there.min_by_key(|pool| {
        let missing = waits.labels.iter();
        missing
            .filter(|label| !has_label(&pool.labels, label))
            .count()
    })
}

/// The address of a pool by `NAMESPACE/NAME`.
fn url_of<'a>(fleet: &'a Fleet, key: &str) -> &'a str {
    let pool = fleet.pools.iter().find(|pool| pool.key() == key);
    pool.map_or("", |pool| pool.url.as_str())
}

/// The jobs that run, each once, however many devices it has.
fn running<'a>(fleet: &'a Fleet, asked: &'a Asked) -> impl Iterator<Item = Told> + 'a {
    let mut told = BTreeSet::new();
    let devices = fleet.nodes.iter().flat_map(|node| {
        let devices = node.devices.iter();
        devices.map(move |device| (node, device))
    });
    devices.filter_map(move |(node, device)| {
        let (job, pool) = (device.job.as_ref()?, device.pool.as_deref()?);
        let runner = device.runner.as_deref()?;
        let is_it = device.state == DeviceState::Job && asked.is_for(job, || url_of(fleet, pool));
        (is_it && told.insert((pool, runner))).then(|| Told {
            state: State::Running,
            job: job.clone(),
            pools: vec![pool.to_owned()],
            runner: Some(runner.to_owned()),
            node: Some(node.name.clone()),
            at: device.since,
            says: format!(
                "{} runs{}, on the runner {runner} of {pool}, on the node {}",
                words(job),
                since(device.since),
                node.name
            ),
        })
    })
}

/// The jobs that have ended, the newest first.
fn ended<'a>(fleet: &'a Fleet, asked: &'a Asked) -> impl Iterator<Item = Told> + 'a {
    let jobs = fleet.history.iter().filter(|e| e.kind == EventKind::Job);
    jobs.filter_map(|event| {
        let job = event.job.as_ref()?;
        let is_it = asked.is_for(job, || url_of(fleet, &event.pool));
        is_it.then(|| Told {
            state: State::Ended,
            job: job.clone(),
            pools: vec![event.pool.clone()],
            runner: Some(event.runner.clone()),
            node: event.node.clone(),
            at: Some(event.at),
            says: how_it_ended(job, event),
        })
    })
}

fn how_it_ended(job: &Job, event: &Event) -> String {
    let node = event.node.as_deref();
    let node = node.map_or_else(String::new, |node| format!(", on the node {node}"));
    let how = match event.result.as_str() {
        "unknown" => "GitHub has not said how".to_owned(),
        result => result.to_owned(),
    };
    let why = event.message.as_deref();
    let why = why.map_or_else(String::new, |why| format!(". {why}"));
    format!(
        "{} has ended at {}, on the runner {} of {}{node}: {how}{why}",
        words(job),
        event.at,
        event.runner,
        event.pool
    )
}

/// A job that a pool's condition tells of: the first that no pool takes.
fn lost(fleet: &Fleet, asked: &Asked) -> Option<Told> {
    let missing = |held: &&crate::fleet::Held| {
        held.type_ == kind::QUEUE_SERVED && Stored::parse(&held.reason) == Reason::LabelMissing
    };
    let mut pools = fleet.pools.iter();
    pools.find_map(|pool| {
        let held = pool.held.iter().find(missing)?;
        // As `queue::served` says it.
        let (subject, _) = held.message.split_once(" asks for [")?;
        let (name, run) = subject.strip_prefix("The job ")?.rsplit_once(" of run ")?;
        let run = run.parse().ok();
        let url = GitHubUrl::parse(&pool.url, true).ok()?;
        let Scope::Repository { owner, name: of } = url.scope() else {
            return None;
        };
        let job = Job {
            name: name.to_owned(),
            repository: Some(format!("{owner}/{of}")),
            run_id: run,
            ..Job::default()
        };
        asked.is_for(&job, || &pool.url).then(|| Told {
            state: State::Unserved,
            job,
            pools: vec![],
            runner: None,
            node: None,
            at: None,
            says: held.message.clone(),
        })
    })
}

#[cfg(test)]
mod tests;
