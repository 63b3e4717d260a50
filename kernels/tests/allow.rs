//! A job that the pool does not take is over before its first step, whatever it says; another one begins as everywhere.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gate_report::allow::Policy;
use gate_report::contract::{file, gate};
use serde_json::{Value, json};

/// What a worker does: the hook, and then the steps that run always.
const STEPS: &str = r#""$1" -e "$2"; echo always >>"$3"; exit 100"#;

/// A container with an agent that takes a job.
struct Container {
    dir: PathBuf,
    settings: Value,
    /// What the agent sets for its hooks.
    job: Vec<(&'static str, String)>,
    /// What a person tries on top of it.
    tried: Vec<(&'static str, String)>,
}

impl Container {
    fn new(policy: &Policy) -> Self {
        let dir = common::folder("allow");
        fs::create_dir_all(dir.join("bin")).unwrap();
        let program = env!("CARGO_BIN_EXE_runner-init");
        fs::hard_link(program, dir.join(file::RUNNER_INIT)).unwrap();
        let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks");
        fs::copy(hooks.join(file::ALLOW), dir.join(file::ALLOW)).unwrap();
        let started = "echo started $GITHUB_JOB in $CUDA_RUNNER_DIR >>\"${0%/*}/ran\"\n";
        fs::write(dir.join(file::JOB_STARTED), started).unwrap();
        symlink("/bin/sh", dir.join("Runner.Worker")).unwrap();
        let log = dir.join("log").to_string_lossy().into_owned();
        let policy = serde_json::to_string(policy).unwrap();
        let settings = json!({gate::TERMINATION_LOG: log, gate::ALLOW: policy});
        let container = Self {
            job: vec![
                ("GITHUB_JOB", "test".to_owned()),
                ("GITHUB_RUN_ID", "17".to_owned()),
                ("GITHUB_RUN_ATTEMPT", "1".to_owned()),
                ("GITHUB_WORKFLOW", "cuda \"x\"\n".to_owned()),
                ("GITHUB_REPOSITORY", "acme/cuda".to_owned()),
            ],
            tried: vec![],
            dir,
            settings,
        };
        container.write_settings();
        container
    }

    fn write_settings(&self) {
        fs::write(self.path(file::SETTINGS), self.settings.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn with(mut self, event: &str, git_ref: &str, payload: &str) -> Self {
        fs::write(self.path("event.json"), payload).unwrap();
        let path = self.path("event.json").to_string_lossy().into_owned();
        self.job.extend([
            ("GITHUB_EVENT_NAME", event.to_owned()),
            ("GITHUB_REF", git_ref.to_owned()),
            ("GITHUB_EVENT_PATH", path),
        ]);
        self
    }

    /// The agent's process for the job, to its end.
    fn worker(&self) -> Output {
        Command::new(self.path("Runner.Worker"))
            .args(["-c", STEPS, "worker", "/bin/bash"])
            .args([self.path(file::ALLOW), self.path("steps")])
            .envs(self.tried.iter().cloned())
            .envs(self.job.iter().cloned())
            .output()
            .unwrap()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The job was ended before its first step, and it is said why: to its people, and to the operator.
    fn assert_refused(&self, why: &str) {
        let worker = self.worker();
        assert_eq!(worker.status.signal(), Some(9), "{worker:?}");
        assert_eq!(self.text("steps") + &self.text("ran"), "");
        let said = String::from_utf8(worker.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(why), "{said}");
        let log = self.text("log");
        let mark: Value = serde_json::from_str(log.trim_end()).unwrap();
        assert_eq!(mark["mark"], "refused");
        assert_eq!((&mark["job"], &mark["run"]), (&json!("test"), &json!("17")));
        assert_eq!(mark["workflow"], "cuda \"x\" ");
        assert!(mark["why"].as_str().unwrap().contains(why), "{mark}");
        assert!(mark["at"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    }

    fn assert_begun(&self) {
        let worker = self.worker();
        assert_eq!(worker.status.code(), Some(100), "{worker:?}");
        let dir = self.dir.display();
        assert_eq!(self.text("ran"), format!("started test in {dir}\n"));
        assert_eq!(self.text("steps"), "always\n");
        assert_eq!(self.text("log"), "");
    }
}

/// No forks, and pushes of one branch.
fn strict() -> Policy {
    Policy {
        events: vec!["push".to_owned(), "pull_request".to_owned()],
        refs: vec!["refs/heads/main".to_owned(), "refs/pull/*/merge".to_owned()],
        forks: false,
    }
}

fn pull(head: u64) -> String {
    let side = |id| json!({"repo": {"id": id, "full_name": format!("owner-{id}/cuda")}});
    json!({"pull_request": {"head": side(head), "base": side(1)}}).to_string()
}

#[test]
fn a_job_that_the_pool_takes_begins_with_the_usual_hook() {
    let taken = || Container::new(&strict());
    taken().with("push", "refs/heads/main", "{}").assert_begun();
    taken()
        .with("pull_request", "refs/pull/5/merge", &pull(1))
        .assert_begun();
    // An event may have no payload.
    let mut container = taken();
    container.job.extend([
        ("GITHUB_EVENT_NAME", "push".to_owned()),
        ("GITHUB_REF", "refs/heads/main".to_owned()),
    ]);
    container.assert_begun();
}

#[test]
fn a_job_that_the_pool_does_not_take_is_ended_before_its_first_step() {
    for (event, git_ref, payload, why) in [
        (
            "schedule",
            "refs/heads/main",
            "{}".to_owned(),
            "it was started by schedule on",
        ),
        (
            "pull_request_target",
            "refs/heads/main",
            pull(1),
            "it was started by pull_request_target on",
        ),
        (
            "push",
            "refs/heads/x",
            "{}".to_owned(),
            "it was started by push on refs/heads/x, and",
        ),
        (
            "pull_request",
            "refs/pull/5/merge",
            pull(2),
            "the fork owner-2/cuda",
        ),
        ("", "", "{}".to_owned(), "it was started by  on , and"),
        (
            "push",
            "refs/heads/main",
            "no JSON".to_owned(),
            "the payload of its event could not be read",
        ),
    ] {
        let container = Container::new(&strict()).with(event, git_ref, &payload);
        container.assert_refused(why);
    }
}

#[test]
fn what_cannot_be_read_lets_nobody_in() {
    for (settings, why) in [
        (json!({}), "the pool's policy could not be read"),
        (
            json!({gate::ALLOW: "{\"events\":[]}"}),
            "the pool's policy could not be read",
        ),
        (
            json!({gate::ALLOW: "{\"events\":[],\"refs\":[],\"forks\":true,\"new\":1}"}),
            "new",
        ),
    ] {
        let mut container = Container::new(&strict()).with("push", "refs/heads/main", "{}");
        container
            .settings
            .as_object_mut()
            .unwrap()
            .remove(gate::ALLOW);
        let more = settings.as_object().unwrap().clone();
        container.settings.as_object_mut().unwrap().extend(more);
        container.write_settings();
        container.assert_refused(why);
    }
}

#[test]
fn no_variable_of_a_person_opens_the_door() {
    let mut container = Container::new(&strict()).with("schedule", "refs/heads/main", "{}");
    let open = common::folder("open");
    let policy = Policy {
        forks: true,
        ..Policy::default()
    };
    let settings = json!({gate::ALLOW: serde_json::to_string(&policy).unwrap()});
    fs::write(open.join(file::SETTINGS), settings.to_string()).unwrap();
    let open = open.to_string_lossy().into_owned();
    container.tried = vec![
        ("CUDA_RUNNER_DIR", open.clone()),
        ("CUDA_SMOKE_REGISTRATION_DIR", open.clone()),
        (gate::ALLOW, settings.to_string()),
        ("GITHUB_EVENT_NAME", "push".to_owned()),
        ("LD_PRELOAD", format!("{open}/none.so")),
        ("PATH", open),
    ];
    let worker = container.worker();
    assert_eq!(worker.status.signal(), Some(9), "{worker:?}");
    assert_eq!(container.text("steps") + &container.text("ran"), "");
}

#[test]
fn another_process_with_the_workers_name_is_left_alone() {
    let container = Container::new(&strict()).with("schedule", "refs/heads/main", "{}");
    let mut decoy = Command::new(container.path("Runner.Worker"))
        .args(["-c", "read line"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    container.assert_refused("it was started by schedule on");
    assert!(decoy.try_wait().unwrap().is_none());
    drop(decoy.stdin.take());
    decoy.wait().unwrap();
}
