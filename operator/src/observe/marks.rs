//! What the job hooks noted in the runner's termination message. Job code can write there, too: nothing of it is
//! believed beyond what it may say, and all of it is bounded.

use std::fmt;

use gate_report::clean;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use serde::Deserialize;

use super::pod::{RUNNER, container, ended};
use crate::github::JobOf;

/// The longest name that is kept of a job, a workflow or a repository.
const LONGEST_NAME: usize = 140;

/// A job, as the hooks noted it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct Job {
    /// The job's id in its workflow.
    pub job: String,
    /// Id of the workflow run.
    pub run: String,
    /// Which attempt of that run.
    pub attempt: String,
    /// Name of the workflow.
    pub workflow: String,
    /// `OWNER/NAME`.
    pub repository: String,
    /// When the hook ran, in seconds since 1970.
    pub at: String,
}

impl Job {
    /// What GitHub says of it to whoever listens.
    #[must_use]
    pub fn heard(job: &JobOf) -> Self {
        let heard = Self {
            job: job.name.clone(),
            run: job.run.to_string(),
            repository: job.repository.clone(),
            ..Self::default()
        };
        heard.bounded()
    }

    fn bounded(self) -> Self {
        Self {
            job: bounded(&self.job),
            run: bounded(&self.run),
            attempt: bounded(&self.attempt),
            workflow: bounded(&self.workflow),
            repository: bounded(&self.repository),
            at: bounded(&self.at),
        }
    }

    /// When the hook ran, if that can be.
    fn time(&self, after: Timestamp, before: Timestamp) -> Option<Timestamp> {
        let at = Timestamp::from_second(self.at.parse().ok()?).ok()?;
        (after <= at && at <= before).then_some(at)
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "job {} of run {} in {}",
            self.job, self.run, self.repository
        )
    }
}

/// A name without what a terminal or a sentence would trip over.
fn bounded(text: &str) -> String {
    clean(text, LONGEST_NAME)
}

/// A job that has ended on a runner, whatever became of either.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Done {
    /// The job.
    pub job: Job,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
}

impl Done {
    /// The last job that has ended on the runner of this pod; known once its container has ended.
    pub(super) fn of(pod: &Pod, created: Timestamp) -> Option<Self> {
        let runner = ended(container(pod, RUNNER))?;
        let marks = Marks::of(Some(runner));
        let end = runner.finished_at.as_ref().map_or(created, |t| t.0);
        let job = marks.completed?;
        let finished = job.time(created, end).unwrap_or(end);
        let started = marks.began.and_then(|began| began.time(created, finished));
        Some(Self {
            job,
            started,
            finished,
        })
    }
}

/// What the hooks, and the look at the GPU, noted.
#[derive(Default)]
pub(super) struct Marks {
    /// The job that is under way.
    pub(super) started: Option<Job>,
    /// The job that began last, under way or not.
    began: Option<Job>,
    /// The last job that has ended.
    pub(super) completed: Option<Job>,
    /// When the GPU was first found gone since the last job began.
    pub(super) lost: Option<String>,
    /// Another agent held the runner's session while this one came up.
    pub(super) conflict: bool,
}

impl Marks {
    /// The marks of a container that has ended.
    pub(super) fn of(runner: Option<&ContainerStateTerminated>) -> Self {
        let message = runner.and_then(|r| r.message.as_deref());
        message.map_or_else(Self::default, Self::read)
    }

    /// Lines that are no marks are passed over: the agent may write there, too.
    fn read(message: &str) -> Self {
        #[derive(Deserialize)]
        struct Line {
            mark: String,
            #[serde(default)]
            when: String,
            #[serde(flatten)]
            job: Job,
        }
        let mut marks = Self::default();
        for line in message.lines() {
            let Ok(Line { mark, when, job }) = serde_json::from_str(line) else {
                continue;
            };
            match mark.as_str() {
                "started" => {
                    let job = job.bounded();
                    marks.began = Some(job.clone());
                    marks.started = Some(job);
                }
                "completed" => {
                    // A persistent runner's next job starts afresh.
                    marks.started = None;
                    marks.completed = Some(job.bounded());
                }
                "gpu-lost" => {
                    marks.lost.get_or_insert(when);
                }
                "session-conflict" => marks.conflict = true,
                _ => {}
            }
        }
        marks
    }
}
