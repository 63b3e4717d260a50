//! The agent's hooks leave marks that can be read, whatever jobs are called, and fail only where the GPU is gone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use gate_report::contract::{TERMINATION_LOG, script as variable};
use serde_json::Value;

/// A script with its marks in a file of ours.
fn script(name: &str, marks: &Path) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("hooks")
        .join(name);
    let script = fs::read_to_string(path).unwrap();
    assert!(script.contains(TERMINATION_LOG), "{name} leaves no mark");
    script.replace(TERMINATION_LOG, &marks.to_string_lossy())
}

/// Runs a hook.
fn hook(name: &str, folder: &Path, marks: &Path, job: &str) {
    let status = run_hook(name, folder, marks, job);
    assert!(status.success(), "{name} has failed");
}

fn run_hook(name: &str, folder: &Path, marks: &Path, job: &str) -> ExitStatus {
    Command::new("/bin/sh")
        // The agent's bash has `-e`, too.
        .args(["-e", "-c", &script(name, marks)])
        .env(variable::DIR, folder)
        .env("CUDA_RUNNER_GPU_FILE", folder.join("nvidiactl"))
        .env("GITHUB_JOB", job)
        .env("GITHUB_RUN_ID", "17")
        .env("GITHUB_RUN_ATTEMPT", "1")
        .env("GITHUB_WORKFLOW", "cuda")
        .env("GITHUB_REPOSITORY", "o/r")
        .status()
        .unwrap()
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
        let at = |mark: &Value| mark["at"].as_str().unwrap().parse::<u64>().unwrap();
        assert!(at(started) <= at(completed), "{text}");
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

/// A container whose processes are ours, so that nobody else's is stopped.
struct Container {
    folder: PathBuf,
    marks: PathBuf,
    listener: Child,
}

impl Container {
    /// With a GPU, and an agent that listens.
    fn new(name: &str) -> Self {
        let folder = common::folder(name);
        let marks = folder.join("marks");
        fs::write(&marks, "").unwrap();
        fs::write(folder.join("gpu.sh"), script("gpu.sh", &marks)).unwrap();
        fs::write(folder.join("nvidiactl"), "").unwrap();
        let listener = Command::new("sleep").arg("600").spawn().unwrap();
        let container = Self {
            folder,
            marks,
            listener,
        };
        container.process(container.listener.id(), "Runner.Listener");
        container
    }

    /// Shows a process in the container's `/proc`.
    fn process(&self, id: u32, name: &str) {
        let process = self.folder.join("proc").join(id.to_string());
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("comm"), format!("{name}\n")).unwrap();
    }

    fn gpu(&self, what: &str) -> bool {
        Command::new("/bin/sh")
            .arg(self.folder.join("gpu.sh"))
            .arg(what)
            .env(variable::DIR, &self.folder)
            .env("CUDA_RUNNER_GPU_FILE", self.folder.join("nvidiactl"))
            .env("CUDA_RUNNER_PROC", self.folder.join("proc"))
            .status()
            .unwrap()
            .success()
    }

    fn hook(&self, name: &str) -> bool {
        run_hook(name, &self.folder, &self.marks, "job").success()
    }

    /// As a device cgroup does that denies the device; a test may run as root, who may open everything that is there.
    fn lose_gpu(&self) {
        fs::remove_file(self.folder.join("nvidiactl")).unwrap();
    }

    /// When the GPU was found gone, by the marks.
    fn lost(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.marks).unwrap();
        let marks = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        marks
            .filter(|m| m["mark"] == "gpu-lost")
            .map(|m| m["when"].as_str().unwrap().to_owned())
            .collect()
    }

    fn is_stopped(&mut self) -> bool {
        self.listener.try_wait().unwrap().is_some()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.listener.kill();
        let _ = self.listener.wait();
    }
}

#[test]
fn a_gpu_that_is_gone_twice_in_a_row_ends_an_idle_agent() {
    let mut container = Container::new("gone");
    assert!(container.gpu("remember"));
    assert!(container.gpu("idle"));
    // Given one look that failed, and one that did not
    container.lose_gpu();
    assert!(container.gpu("idle"));
    fs::write(container.folder.join("nvidiactl"), "").unwrap();
    assert!(container.gpu("idle"));
    // When it fails twice
    container.lose_gpu();
    assert!(container.gpu("idle"));
    assert!(!container.is_stopped() && container.lost().is_empty());
    // Then it is idle still, and not busy: it has no job
    assert!(container.gpu("idle"));
    // And the listener was interrupted, and the mark says why
    let ended = container.listener.wait().unwrap();
    assert_eq!(ended.signal(), Some(2));
    assert_eq!(container.lost(), ["idle"]);
}

#[test]
fn a_job_is_left_alone_and_its_end_is_marked() {
    let mut container = Container::new("busy");
    container.gpu("remember");
    container.process(1, "Runner.Worker");
    assert!(container.hook("job-started.sh"));
    container.lose_gpu();
    for _ in 0..3 {
        assert!(!container.gpu("idle"));
    }
    assert!(!container.is_stopped() && container.lost().is_empty());
    assert!(container.hook("job-completed.sh"));
    assert_eq!(container.lost(), ["completed"]);
    // The job's worker has gone: the very next look ends the agent.
    fs::remove_dir_all(container.folder.join("proc/1")).unwrap();
    assert!(container.gpu("idle"));
    assert_eq!(container.listener.wait().unwrap().signal(), Some(2));
    assert_eq!(container.lost(), ["completed"]);
}

#[test]
fn a_job_does_not_start_without_the_gpu() {
    let container = Container::new("unlucky");
    container.gpu("remember");
    container.lose_gpu();
    assert!(!container.hook("job-started.sh"));
    assert_eq!(container.lost(), ["started"]);
}

#[test]
fn what_was_not_there_at_the_start_is_not_missed() {
    let mut container = Container::new("never");
    container.lose_gpu();
    container.gpu("remember");
    assert!(container.gpu("idle") && container.gpu("idle"));
    assert!(container.hook("job-started.sh") && container.hook("job-completed.sh"));
    assert!(!container.is_stopped() && container.lost().is_empty());
}

/// A container with the team's own hooks; each notes that it ran, and whether the runner is busy, and ends with `code`.
fn with_team_hooks(name: &str, code: i32) -> PathBuf {
    let folder = common::folder(name);
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks/team-hook.sh");
    fs::copy(ours, folder.join("team-hook.sh")).unwrap();
    let team = format!(
        "echo \"$(test -e '{0}/busy' && echo busy) $GITHUB_JOB\" >>'{0}/ran'\nexit {code}\n",
        folder.display()
    );
    fs::write(folder.join("team.sh"), team).unwrap();
    folder
}

fn run_with_team_hook(name: &str, folder: &Path, hook: &Path) -> (Option<i32>, String) {
    let marks = folder.join("marks");
    let done = Command::new("/bin/sh")
        .args(["-e", "-c", &script(name, &marks)])
        .env(variable::DIR, folder)
        .env(variable::TEAM_STARTED, hook)
        .env(variable::TEAM_COMPLETED, hook)
        .env("GITHUB_JOB", "job")
        .output()
        .unwrap();
    (done.status.code(), String::from_utf8(done.stdout).unwrap())
}

#[test]
fn the_teams_own_hooks_run_too_and_their_exit_codes_count() {
    for code in [0, 3] {
        let folder = with_team_hooks(&format!("team-{code}"), code);
        for name in ["job-started.sh", "job-completed.sh"] {
            let (ended, _) = run_with_team_hook(name, &folder, &folder.join("team.sh"));
            assert_eq!(ended, Some(code), "{name}");
        }
        // Both while the runner is busy, and our marks are there whatever theirs does
        assert_eq!(
            fs::read_to_string(folder.join("ran")).unwrap(),
            "busy job\nbusy job\n"
        );
        assert!(!folder.join("busy").exists());
        let marks = fs::read_to_string(folder.join("marks")).unwrap();
        assert_eq!(marks.lines().count(), 2, "{marks}");
    }
}

#[test]
fn a_team_hook_that_is_not_there_fails_the_job_and_is_named() {
    let folder = with_team_hooks("team-none", 0);
    let (ended, said) = run_with_team_hook("job-started.sh", &folder, Path::new("/hooks/none.sh"));
    assert_eq!(ended, Some(1));
    assert!(
        said.contains("::error::The job hook /hooks/none.sh"),
        "{said}"
    );
}
