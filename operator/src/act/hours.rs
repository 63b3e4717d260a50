//! The hours of runners that have ended: a line of the log for each, the metrics, and the last ones in memory.
//!
//! The line is JSON whatever the form of the log, and no filter holds it back: bills are made of it.

use std::io::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::context::Context;
use cuda_runner_plan::hours::{Ended, RunnerHours};

/// What a line is found by.
pub const TARGET: &str = "runner_ended";

/// A line of the log, in the form that the other lines have as JSON.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: Timestamp,
    level: &'static str,
    target: &'static str,
    #[serde(flatten)]
    hours: &'a RunnerHours,
}

/// Reports those of which everything is known. A runner is reported once: what is lost of it is lost with this process.
pub(super) fn report(ctx: &Context, ended: Vec<Ended>) {
    for Ended { hours, is_whole } in ended {
        if !is_whole {
            ctx.ended.waits(hours);
        } else if ctx.pods.told(&hours.uid) {
            tell(ctx, hours);
        }
    }
}

/// Reports those that wait for GitHub's word on their jobs, without it: this process ends.
pub fn report_waiting(ctx: &Context) {
    for hours in ctx.ended.take_waiting() {
        tell(ctx, hours);
    }
}

fn tell(ctx: &Context, hours: RunnerHours) {
    let hours = Arc::new(hours);
    if !ctx.ended.is_new(&hours) {
        return;
    }
    ctx.metrics.ended(&hours);
    let mut line = line(&hours, Timestamp::now());
    line.push('\n');
    // Nobody could hear of an error, either.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

fn line(hours: &RunnerHours, now: Timestamp) -> String {
    let line = Line {
        timestamp: now,
        level: "INFO",
        target: TARGET,
        hours,
    };
    // Plain text and numbers are always JSON.
    serde_json::to_string(&line).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::hours::{JobOfRunner, Seconds};

    #[test]
    fn a_runner_is_one_line_whatever_its_job_is_called() {
        let hours = RunnerHours {
            namespace: "ci".to_owned(),
            pool: "pool".to_owned(),
            runner: "pool-aaaaa".to_owned(),
            uid: "u".to_owned(),
            node: Some("node-1".to_owned()),
            gpus: 1,
            devices: vec!["GPU-1".to_owned()],
            product: None,
            held_from: Some(Timestamp::UNIX_EPOCH),
            held_until: Timestamp::constant(100, 0),
            seconds: Seconds {
                gate: 10,
                idle: 50,
                job: 40,
                lost: 0,
            },
            reason: None,
            job: Some(JobOfRunner {
                repository: Some("acme/widgets".to_owned()),
                workflow: "a\n{\"target\":\"runner_ended\"}".to_owned(),
                run_id: Some(17),
                attempt: Some(1),
                job: "\"<script>".to_owned(),
                conclusion: None,
                refused: false,
                queued_seconds: None,
                run_seconds: Some(40),
                energy_joules: Some(9_000),
            }),
        };
        let line = line(&hours, Timestamp::constant(200, 0));
        assert_eq!(
            line,
            r#"{"timestamp":"1970-01-01T00:03:20Z","level":"INFO","target":"runner_ended","namespace":"ci","pool":"pool","runner":"pool-aaaaa","uid":"u","node":"node-1","gpus":1,"devices":["GPU-1"],"heldFrom":"1970-01-01T00:00:00Z","heldUntil":"1970-01-01T00:01:40Z","seconds":{"gate":10,"idle":50,"job":40,"lost":0},"repository":"acme/widgets","workflow":"a\n{\"target\":\"runner_ended\"}","runId":17,"attempt":1,"job":"\"<script>","runSeconds":40,"energyJoules":9000}"#
        );
    }
}
