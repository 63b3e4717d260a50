//! `spec.jobs`: the jobs that a pool takes, and how long they may take.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The jobs that a pool takes, and for how long.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobsSpec {
    /// Which jobs may use the GPUs, where not every job may that asks for the labels. A job that may not is ended before its
    /// first step. Code from forks may not as soon as this is there, unless `forks` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowedJobs>,

    /// Whether a program beside each job samples the GPUs and reports it on the job's own page, in `status.lastJobs` and in
    /// metrics.
    #[serde(default)]
    pub telemetry: crate::Telemetry,
    /// Minutes that a job may take, from when its runner has taken it. At the limit the job is ended, and GitHub shows it as
    /// failed; a runner without a job has no limit. Without it jobs have the `timeout-minutes` of their workflow alone. GitHub
    /// lets no job take longer than five days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 7200))]
    pub max_minutes: Option<i32>,
}

/// Which jobs may use the GPUs: those that fit all that is said here.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AllowedJobs {
    /// Names of the events that may start a job, as in a workflow's `on:`, for example `push`, `merge_group`,
    /// `workflow_dispatch`. All where absent. `pull_request_target` and `workflow_run` are events of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(max = 64)))]
    #[x_kube(validation = Rule::new("self.size() > 0").message("name at least one event, or leave jobs.allow.events out for all"))]
    #[x_kube(validation = Rule::new("self.all(e, e.matches('^[a-z]+(_[a-z]+)*$'))").message("write an event as a workflow's on: has it, for example push or pull_request"))]
    #[x_kube(validation = Rule::new("!('workflow_call' in self)").message("a workflow that is called has the event of its caller: name that instead of workflow_call"))]
    pub events: Vec<String>,

    /// What a job may run on: patterns for `GITHUB_REF`, with `*` for a part of it and `**` for several, for example
    /// `refs/heads/main`, `refs/tags/v*`. All where absent. For a pull request it is `refs/pull/NUMBER/merge`, and not the
    /// branch that it wants to go to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(max = 256)))]
    #[x_kube(validation = Rule::new("self.size() > 0").message("name at least one ref, or leave jobs.allow.refs out for all"))]
    #[x_kube(validation = Rule::new("self.all(r, r.startsWith('refs/'))").message("write a whole ref: refs/heads/BRANCH, refs/tags/TAG or refs/pull/*/merge"))]
    #[x_kube(validation = Rule::new(r"self.all(r, r.matches('^[^\\s\\p{Cc}\\p{Cf}~^:?\\[\\\\]+$'))").message("a pattern for refs knows * and ** alone, and a ref has no spaces and none of ~ ^ : ? [ \\"))]
    pub refs: Vec<String>,

    /// Whether code from forks may run: pull requests, in whichever event, and runs that follow theirs.
    #[serde(default)]
    pub forks: bool,
}
