//! What the release's workflow refuses, and in which order it goes. Its own lines are run, with a `cargo` and a repository
//! made for the test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

fn workflow() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.github/workflows/release.yml");
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn steps(workflow: &Value, job: &str) -> Vec<Value> {
    let steps = workflow["jobs"][job]["steps"].as_array();
    steps.cloned().unwrap_or_default()
}

/// A folder, with programs of its own before all others.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("release-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("bin")).unwrap();
        Self(folder)
    }

    /// A program that does this instead of its work. Another process writes it: where this one does, a child that another
    /// thread has just forked may still have it open, and Linux runs no file that is open for writing.
    fn program(&self, name: &str, script: &str) {
        let mut writer = Command::new("sh")
            .args(["-c", r#"cat >"$0" && chmod 755 "$0""#])
            .arg(self.0.join("bin").join(name))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = writer.stdin.take().unwrap();
        write!(input, "#!/bin/sh\n{script}\n").unwrap();
        drop(input);
        assert!(writer.wait().unwrap().success());
    }

    /// With a repository: a commit on the default branch, and one beside it.
    fn with_repository(name: &str) -> Self {
        let this = Self::new(name);
        let pkgid = "path+file:///src/operator#cuda-runner-operator@1.2.3";
        this.program("cargo", &format!("echo '{pkgid}'"));
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
        let steps = steps(&workflow, "checks");
        let step = steps.iter().find(|step| step["name"] == name);
        step.unwrap_or_else(|| panic!("no step {name}"))["run"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let folder = Folder::with_repository("checks");

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

    let fixed = lines("The images that it rests on are fixed");
    let digest = format!("@sha256:{}", "0a".repeat(32));
    let good = format!("gcr.io/distroless/cc-debian13:nonroot{digest}");
    assert!(folder.run(&fixed, &images(&good, &good)));
    let short = good.strip_suffix('a').unwrap();
    for bad in ["", "gcr.io/distroless/cc-debian13:nonroot", short, &digest] {
        assert!(!folder.run(&fixed, &images(bad, &good)), "{bad}");
        assert!(!folder.run(&fixed, &images(&good, bad)), "{bad}");
    }
    let before = good.replace("13", "12");
    assert!(!folder.run(&fixed, &images(&before, &good)), "{before}");
    let mirror = good.replace("gcr.io/distroless", "registry.example.com/mirror");
    assert!(folder.run(&fixed, &images(&mirror, &good)), "{mirror}");
    // And these are what is used, once that is known
    assert_eq!(workflow["jobs"]["build"]["needs"], "checks");
    let container = &workflow["jobs"]["build"]["container"]["image"];
    assert_eq!(container, "${{ vars.BUILD_IMAGE }}");
    let push = push(&workflow);
    assert_eq!(push["env"]["BASE"], "${{ vars.BASE_IMAGE }}");
    assert!(push["run"].as_str().unwrap().contains("--build-arg BASE="));
}

fn images<'a>(base: &'a str, build: &'a str) -> [(&'a str, &'a str); 2] {
    [("BASE_IMAGE", base), ("BUILD_IMAGE", build)]
}

fn push(workflow: &Value) -> Value {
    let images = steps(workflow, "images");
    let mut push = images.into_iter().filter(|step| step["id"] == "push");
    push.next().unwrap()
}

#[test]
fn what_goes_into_users_images_starts_with_the_glibc_that_the_guide_names() {
    let workflow = workflow();
    let steps = steps(&workflow, "build");
    let floor = |step: &&Value| {
        let name = step["name"].as_str();
        name.is_some_and(|name| name.starts_with("The gate starts where glibc is"))
    };
    let step = steps.iter().find(floor).unwrap();
    let guide = include_str!("../../docs/guides/job-telemetry.md");
    let promised = step["name"].as_str().unwrap().rsplit(' ').next().unwrap();
    assert!(guide.contains(&format!("older than {promised}")));

    let folder = Folder::new("glibc");
    for (asked, well) in [
        ("GLIBC_2.4 GLIBC_2.34 GLIBC_2.3.4", true),
        ("GLIBC_2.28", true),
        ("GLIBC_2.34 GLIBC_2.39", false),
        ("GLIBC_2.36", false),
        ("GLIBC_PRIVATE", false),
    ] {
        folder.program("readelf", &format!("echo 'Name: {asked} Flags: none'"));
        let script = step["run"].as_str().unwrap();
        assert_eq!(folder.run(script, &[("ARCH", "arm64")]), well, "{asked}");
    }
}

#[test]
fn each_architecture_is_built_on_its_own_machine_and_all_of_them_are_published() {
    let workflow = workflow();
    let built = &workflow["jobs"]["build"]["strategy"]["matrix"]["include"];
    let expected = json!([
        {"arch": "amd64", "runner": "ubuntu-24.04"},
        {"arch": "arm64", "runner": "ubuntu-24.04-arm"},
    ]);
    assert_eq!(*built, expected);
    // Whatever goes through the architectures goes through both
    for job in ["plugin", "images"] {
        for step in steps(&workflow, job) {
            let run = step["run"].as_str().unwrap_or_default();
            let loops = run.matches("for arch in").count();
            assert_eq!(run.matches("for arch in amd64 arm64; do").count(), loops);
        }
    }
    assert!(
        push(&workflow)["run"]
            .as_str()
            .unwrap()
            .contains("for arch")
    );
}

#[test]
fn one_list_of_both_architectures_is_pushed_whole() {
    // Given a buildah that notes what it is asked for
    let workflow = workflow();
    let folder = Folder::with_repository("push");
    let said = folder.0.join("said");
    folder.program(
        "buildah",
        &format!(
            r#"echo "$@" >>'{}'
               while [ $# -gt 0 ]; do [ "$1" = --digestfile ] && echo sha256:abc >"$2"; shift; done"#,
            said.display()
        ),
    );
    // When the images are pushed
    let output = folder.0.join("output");
    let script = push(&workflow)["run"].as_str().unwrap().to_owned();
    let env = [
        ("REGISTRY", "ghcr.io"),
        ("GITHUB_REPOSITORY", "Acme/Operator"),
        ("GITHUB_REF_NAME", "v1.2.3"),
        ("GITHUB_SHA", "0a0a"),
        ("GITHUB_SERVER_URL", "https://github.com"),
        ("GITHUB_OUTPUT", output.to_str().unwrap()),
        ("HOME", "/root"),
        ("IMAGE", "cuda-smoke"),
        ("FOLDER", "kernels"),
        ("BASE", "base@sha256:0a"),
    ];
    assert!(folder.run(&script, &env));
    // Then both are in one list, which is pushed with all that it has, under the name that is signed
    let name = "ghcr.io/acme/operator/cuda-smoke";
    let said = fs::read_to_string(said).unwrap();
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said.len(), 4, "{said:#?}");
    assert_eq!(said[0], format!("manifest create {name}:1.2.3"));
    for (line, arch) in said[1..3].iter().zip(["amd64", "arm64"]) {
        for part in [
            format!("--platform linux/{arch} --manifest {name}:1.2.3 "),
            format!("BINARY=dist/cuda-smoke-linux-{arch} "),
            format!("RUNNER_INIT=dist/runner-init-linux-{arch} "),
            "--build-arg BASE=base@sha256:0a ".to_owned(),
        ] {
            assert!(line.starts_with("bud ") && line.contains(&part), "{line}");
        }
    }
    assert!(said[3].starts_with("manifest push --all "), "{}", said[3]);
    let to = format!("{name}:1.2.3 docker://{name}:1.2.3");
    assert!(said[3].ends_with(&to), "{}", said[3]);
    let output = fs::read_to_string(output).unwrap();
    assert_eq!(output, format!("name={name}\ndigest=sha256:abc\n"));
}

#[test]
fn nothing_runs_between_the_build_and_the_gathering() {
    let workflow = workflow();
    let steps = steps(&workflow, "build");
    let names: Vec<&str> = steps.iter().filter_map(|s| s["name"].as_str()).collect();
    let build = names.iter().position(|name| *name == "Build").unwrap();
    assert_eq!(names.get(build + 1), Some(&"Gather"), "{names:?}");
    let last = steps.last().unwrap()["uses"].as_str().unwrap();
    assert!(last.starts_with("actions/upload-artifact@"), "{last}");
    // And no other job that can publish builds or installs anything of Cargo's
    for job in ["plugin", "images", "charts", "release"] {
        for step in self::steps(&workflow, job) {
            let run = step["run"].as_str().unwrap_or_default();
            assert!(!run.contains("cargo"), "{job}: {run}");
        }
    }
}
