//! A job that takes longer than its pool lets it is ended with all that it runs; a runner without one, and a job just below
//! the limit, are left alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use common::runner::{Pod, giving};
use common::until;
use gate_report::contract::{file, gate};
use serde_json::Value;

/// Waits for longer than the limit, and then has two jobs: one that ends in time, and one that does not, with something in
/// the background and a step that always runs.
const AGENT: &str = r#"
here="$RUN/.."
sleep 6
"$here/Runner.Worker" -c "sleep 1; echo well >>'$here/steps'; exit 100"
echo "$?" >>"$here/ends"
true >"$RUN/busy"
"$here/Runner.Worker" -c "sleep 300 & echo \$! >'$here/child'; wait; echo always >>'$here/steps'" 2>"$here/said"
echo "$?" >>"$here/ends"
sleep 1
"#;

#[test]
fn a_job_is_ended_at_the_limit_and_a_runner_without_one_is_not() {
    // Given a pool that lets a job take five seconds, and somebody else's process with the worker's name
    let registrar = giving();
    let pod = Pod::passed(&registrar).with(gate::MAX_JOB_SECONDS, "5");
    let worker = pod.dir.join("Runner.Worker");
    symlink("/bin/sh", &worker).unwrap();
    let mut decoy = Command::new(&worker)
        .args(["-c", "read line"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text = |name: &str| fs::read_to_string(pod.dir.join(name)).unwrap_or_default();

    // When its runner is idle for six, has a job of one, and one without an end
    assert_eq!(pod.gpu(AGENT).code(), 0);

    // Then the first job has ended as it did, and the last one was killed before what it always does
    assert_eq!(text("ends"), "100\n137\n");
    assert_eq!(text("steps"), "well\n");
    // And with it what it had started, and the mark that it runs
    let child = format!("/proc/{}/stat", text("child").trim());
    until("ended", || {
        fs::read_to_string(&child).map_or(true, |stat| stat.contains(" Z "))
    });
    assert!(!pod.has(file::BUSY));
    // And it is said why: to its people, and to the operator
    let said = text("said");
    assert!(
        said.contains("exceeded the maximum execution time of 1 minutes"),
        "{said}"
    );
    let log = pod.log();
    let mark: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&mark["mark"], &mark["minutes"]),
        (&"timed-out".into(), &1.into())
    );
    assert!(mark["at"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    // And nobody else was ended
    assert!(decoy.try_wait().unwrap().is_none());
    drop(decoy.stdin.take());
    decoy.wait().unwrap();
}
