//! What the release's workflow refuses, and in which order it goes. Its own lines are run, with a `cargo` and a repository
//! made for the test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn workflow() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.github/workflows/release.yml");
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn steps(workflow: &Value, job: &str) -> Vec<Value> {
    let steps = workflow["jobs"][job]["steps"].as_array();
    steps.cloned().unwrap_or_default()
}

/// A folder with a repository: a commit on the default branch, and one beside it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("release-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("bin")).unwrap();
        let cargo = folder.join("bin/cargo");
        let pkgid = "#!/bin/sh\necho 'path+file:///src/operator#cuda-runner-operator@1.2.3'\n";
        fs::write(&cargo, pkgid).unwrap();
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
        let this = Self(folder);
        let made = this.run(
            "git init -q . && git config user.email a@b && git config user.name a
             git commit -q --allow-empty -m one && git update-ref refs/remotes/origin/main HEAD
             git checkout -q -b other && git commit -q --allow-empty -m two",
            &[],
        );
        assert!(made, "no repository");
        this
    }

    /// Whether the lines end well, as GitHub runs them.
    fn run(&self, script: &str, env: &[(&str, &str)]) -> bool {
        let path = std::env::var("PATH").unwrap();
        let mut bash = Command::new("bash");
        bash.args(["-eo", "pipefail", "-c", script])
            .current_dir(&self.0)
            .env("PATH", format!("{}:{path}", self.0.join("bin").display()))
            .envs(env.iter().copied());
        bash.output().unwrap().status.success()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn only_a_tag_on_the_default_branch_with_the_version_and_a_fixed_base_is_released() {
    let workflow = workflow();
    let lines = |name: &str| {
        let steps = steps(&workflow, "build");
        let step = steps.iter().find(|step| step["name"] == name);
        step.unwrap_or_else(|| panic!("no step {name}"))["run"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let folder = Folder::new();

    let branch = lines("The tag is on the default branch");
    let main = [("BRANCH", "main"), ("GITHUB_REF_NAME", "v1.2.3")];
    assert!(!folder.run(&branch, &main), "a commit beside the branch");
    assert!(folder.run("git checkout -q refs/remotes/origin/main", &[]));
    assert!(folder.run(&branch, &main), "the branch's own commit");
    assert!(!folder.run(&branch, &[("BRANCH", "gone")]), "no branch");

    let version = lines("The tag is the version of the programs");
    assert!(folder.run(&version, &[("GITHUB_REF_NAME", "v1.2.3")]));
    for tag in ["1.2.3", "v1.2.30", "v1.2.3-rc1", ""] {
        assert!(!folder.run(&version, &[("GITHUB_REF_NAME", tag)]), "{tag}");
    }

    let base = lines("The images' base is fixed");
    let digest = format!("@sha256:{}", "0a".repeat(32));
    let good = format!("gcr.io/distroless/cc-debian12:nonroot{digest}");
    assert!(folder.run(&base, &[("BASE", &good)]));
    let short = good.strip_suffix('a').unwrap();
    for bad in ["", "gcr.io/distroless/cc-debian12:nonroot", short, &digest] {
        assert!(!folder.run(&base, &[("BASE", bad)]), "{bad}");
    }
    let images = steps(&workflow, "images");
    let push = images.iter().find(|step| step["id"] == "push").unwrap();
    assert!(push["run"].as_str().unwrap().contains("--build-arg BASE="));
}

#[test]
fn nothing_runs_between_the_build_and_the_gathering() {
    let workflow = workflow();
    let steps = steps(&workflow, "build");
    let names: Vec<&str> = steps.iter().filter_map(|s| s["name"].as_str()).collect();
    assert!(
        names.ends_with(&["Build", "Gather", "The plugin for krew"]),
        "{names:?}"
    );
    let last = steps.last().unwrap()["uses"].as_str().unwrap();
    assert!(last.starts_with("actions/upload-artifact@"), "{last}");
    // And no other job that can publish builds or installs anything of Cargo's
    for job in ["images", "charts", "release"] {
        for step in self::steps(&workflow, job) {
            let run = step["run"].as_str().unwrap_or_default();
            assert!(!run.contains("cargo"), "{job}: {run}");
        }
    }
}
