//! What the job hooks noted in the runner's termination message. Job code can write there, too: nothing of it is
//! believed beyond what it may say, and all of it is bounded.

use gate_report::clean;
use gate_report::contract::mark;
use gate_report::usage::{GpuUsage, MOST_GPUS};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use serde::Deserialize;

use super::gpu::Gpu;
use cuda_runner_plan::model::runner::{EndedJob, Job};

/// The longest reason that is kept, in characters.
const LONGEST_WHY: usize = 400;

/// The longest limit of a job, in minutes.
const LONGEST_LIMIT: i32 = 7200;

/// The last job that has ended on the runner of this pod; known once its container has ended.
pub(super) fn done(pod: &Pod, created: Timestamp) -> Option<EndedJob> {
    let agent = Gpu::of(pod).agent_end()?;
    let marks = Marks::of(Some(agent));
    let end = agent.finished_at.as_ref().map_or(created, |t| t.0);
    let job = marks.completed?;
    let finished = job.time(created, end).unwrap_or(end);
    let started = marks.began.and_then(|began| began.time(created, finished));
    Some(EndedJob {
        job,
        started,
        finished,
        refused: marks.refused,
        gpus: marks.gpus,
        exceeded_minutes: marks.exceeded_minutes,
    })
}

/// The job that was under way when the runner's container ended.
pub(super) fn under_way(pod: &Pod) -> Option<Job> {
    Marks::of(Gpu::of(pod).agent_end()).started
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
    /// Why it was ended before its first step.
    pub(super) refused: Option<String>,
    /// What its GPUs did.
    gpus: Vec<GpuUsage>,
    /// The minutes that it was allowed, where it was ended because it took longer.
    pub(super) exceeded_minutes: Option<i32>,
    /// When the GPU was first found gone since the last job began.
    pub(super) lost: Option<String>,
    /// The agent was online.
    pub(super) online: bool,
    /// Another agent held the runner's session while this one came up.
    pub(super) conflict: bool,
}

impl Marks {
    /// The marks of a container that has ended.
    pub(super) fn of(agent: Option<&ContainerStateTerminated>) -> Self {
        let message = agent.and_then(|a| a.message.as_deref());
        message.map_or_else(Self::default, Self::read)
    }

    /// Lines that are no marks are passed over: the agent may write there, too.
    fn read(message: &str) -> Self {
        #[derive(Deserialize)]
        struct Line {
            mark: String,
            #[serde(default)]
            when: String,
            #[serde(default)]
            why: String,
            #[serde(default)]
            minutes: i32,
            #[serde(flatten)]
            job: Job,
        }
        let mut marks = Self::default();
        for line in message.lines() {
            let Ok(Line {
                mark,
                when,
                why,
                minutes,
                job,
            }) = serde_json::from_str(line)
            else {
                continue;
            };
            match mark.as_str() {
                mark::STARTED => {
                    let job = job.bounded();
                    marks.gpus.clear();
                    marks.exceeded_minutes = None;
                    marks.began = Some(job.clone());
                    marks.started = Some(job);
                }
                // A job that has begun was let in: that is no word of ours.
                mark::REFUSED if marks.began.is_none() => {
                    marks.refused = Some(clean(&why, LONGEST_WHY));
                    marks.completed = Some(job.bounded());
                }
                mark::COMPLETED => {
                    // A persistent runner's next job starts afresh.
                    marks.started = None;
                    marks.completed = Some(job.bounded());
                }
                mark::GPU if marks.gpus.len() < MOST_GPUS => {
                    let usage = serde_json::from_str::<GpuUsage>(line).ok();
                    marks.gpus.extend(usage.map(GpuUsage::bounded));
                }
                // Of a job that was not begun yet nobody knows the name.
                mark::TIMED_OUT => {
                    let began = marks.started.take().unwrap_or_default();
                    let at = job.bounded().at;
                    marks.completed = Some(Job { at, ..began });
                    marks.exceeded_minutes = Some(minutes.clamp(1, LONGEST_LIMIT));
                }
                mark::GPU_LOST => {
                    marks.lost.get_or_insert(when);
                }
                mark::ONLINE => marks.online = true,
                mark::SESSION_CONFLICT => marks.conflict = true,
                _ => {}
            }
        }
        marks
    }
}
