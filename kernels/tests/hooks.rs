//! The agent's hooks leave marks that can be read, whatever jobs are called, and never fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Where the hooks write their marks; a container's termination message.
const LOG: &str = "/dev/termination-log";

/// Runs a hook with its marks in a file of ours.
fn hook(name: &str, folder: &Path, marks: &Path, job: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("hooks")
        .join(name);
    let script = fs::read_to_string(path).unwrap();
    assert!(script.contains(LOG), "{name} leaves no mark");
    let status = Command::new("/bin/sh")
        .args(["-c", &script.replace(LOG, &marks.to_string_lossy())])
        .env("CUDA_RUNNER_DIR", folder)
        .env("GITHUB_JOB", job)
        .env("GITHUB_RUN_ID", "17")
        .env("GITHUB_RUN_ATTEMPT", "1")
        .env("GITHUB_WORKFLOW", "cuda")
        .env("GITHUB_REPOSITORY", "o/r")
        .status()
        .unwrap();
    assert!(status.success(), "{name} has failed");
}

#[test]
fn marks_are_json_and_the_busy_file_comes_and_goes() {
    let folder = common::folder("hooks");
    let marks = folder.join("marks");
    for job in [
        "plain",
        "with \"quotes\"",
        "back\\slash",
        "two\nlines",
        "tab\tand $(date) `id`",
        "ümlaut",
    ] {
        fs::write(&marks, "").unwrap();
        hook("job-started.sh", &folder, &marks, job);
        assert!(folder.join("busy").exists());
        hook("job-completed.sh", &folder, &marks, job);
        assert!(!folder.join("busy").exists());
        let text = fs::read_to_string(&marks).unwrap();
        let marks: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let [started, completed] = marks.as_slice() else {
            panic!("{text}")
        };
        assert_eq!(
            (&started["mark"], &completed["mark"]),
            (&"started".into(), &"completed".into())
        );
        let printable: String = job.chars().filter(|c| !c.is_control()).collect();
        assert_eq!(started["job"], printable.as_str());
        assert_eq!(
            (&started["run"], &started["repository"]),
            (&"17".into(), &"o/r".into())
        );
    }
}

#[test]
fn the_marks_of_a_runners_last_job_are_enough() {
    let folder = common::folder("last-job");
    let marks = folder.join("marks");
    for job in ["one", "two"] {
        hook("job-started.sh", &folder, &marks, job);
        hook("job-completed.sh", &folder, &marks, job);
    }
    let text = fs::read_to_string(&marks).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(!text.contains("one"), "{text}");
}

#[test]
fn a_hook_that_cannot_write_does_not_fail_the_job() {
    let nowhere = Path::new("/nonexistent/folder");
    for name in ["job-started.sh", "job-completed.sh"] {
        hook(name, nowhere, &nowhere.join("marks"), "job");
    }
}
