//! The scripts and the binary against a running simulator: what the operator and its images rely on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use github_simulator::control::{
    JobView, NewCredential, NewJob, NewRun, NewWorkflow, UpdateRepository,
};
use github_simulator::fixtures::TENSOR_WASM;
use github_simulator::state::{Conclusion, StepTemplate};
use github_simulator::testing::Simulator;
use http::Method;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// Long enough for everything here.
const LIMIT: Duration = Duration::from_secs(30);

/// A GitHub of the test's own, and a token of its administrator.
struct GitHub {
    simulator: Simulator,
    token: String,
}

impl Deref for GitHub {
    type Target = Simulator;

    fn deref(&self) -> &Self::Target {
        &self.simulator
    }
}

impl GitHub {
    async fn start() -> Self {
        let simulator = Simulator::start().await.unwrap();
        let new = NewCredential {
            name: "admin".to_owned(),
            scopes: Some(["repo".to_owned()].into()),
            admin: true,
            ..NewCredential::default()
        };
        let token = simulator.control.create_token(&new).await.unwrap();
        Self { simulator, token }
    }

    async fn rest(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let authorization = format!("Bearer {}", self.token);
        let headers = [
            ("user-agent", "test"),
            ("authorization", authorization.as_str()),
        ];
        let path = format!("/api/v3/repos/{TENSOR_WASM}/actions/runners{path}");
        let (status, _, bytes) = self
            .control
            .send(method, &path, &headers, body.as_ref())
            .await
            .unwrap();
        assert!(
            status.is_success(),
            "{status}: {}",
            String::from_utf8_lossy(&bytes)
        );
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    async fn jit_config(&self, name: &str) -> String {
        let body = json!({"name": name, "runner_group_id": 1, "labels": ["self-hosted", "cuda"], "work_folder": "_work"});
        let made = self
            .rest(Method::POST, "/generate-jitconfig", Some(body))
            .await;
        made["encoded_jit_config"].as_str().unwrap().to_owned()
    }

    async fn registration_token(&self) -> String {
        let made = self.rest(Method::POST, "/registration-token", None).await;
        made["token"].as_str().unwrap().to_owned()
    }

    async fn runners(&self) -> Vec<Value> {
        self.rest(Method::GET, "", None).await["runners"]
            .as_array()
            .unwrap()
            .clone()
    }

    async fn online(&self, name: &str) {
        until("the runner to be online", async || {
            let runners = self.runners().await;
            runners
                .iter()
                .any(|runner| runner["name"] == name && runner["status"] == "online")
                .then_some(())
        })
        .await;
    }

    async fn queue(&self, labels: &[&str], script: &str, hold: bool) -> u64 {
        let job = NewJob {
            repository: TENSOR_WASM.to_owned(),
            name: "job".to_owned(),
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
            steps: vec![StepTemplate {
                name: "step".to_owned(),
                run: script.to_owned(),
            }],
            hold,
            branch: None,
        };
        self.control.queue(&job).await.unwrap().jobs[0]
    }

    /// Writes a workflow file and starts it; gives its jobs.
    async fn start_file(&self, content: &str) -> Vec<u64> {
        let update = UpdateRepository {
            workflows: vec![NewWorkflow {
                file: "jobs.yml".to_owned(),
                content: Some(content.to_owned()),
                ..NewWorkflow::default()
            }],
            secrets: [("PASSWORD".to_owned(), "s3cret".to_owned())].into(),
            ..UpdateRepository::default()
        };
        self.control
            .update_repository(TENSOR_WASM, &update)
            .await
            .unwrap();
        let run = NewRun {
            repository: TENSOR_WASM.to_owned(),
            workflow: "jobs.yml".to_owned(),
            ..NewRun::default()
        };
        self.control.start_run(&run).await.unwrap().jobs
    }

    async fn ended(&self, job: u64) -> JobView {
        until("the job to end", async || {
            let view = self.control.job(job).await.unwrap();
            view.conclusion.is_some().then_some(view)
        })
        .await
    }
}

async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = tokio::time::Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Another process copies it: where this one does, a child that another thread has just forked may still have it open, and
/// Linux runs no file that is open for writing.
fn copy_program(from: &Path, to: &Path) {
    let mut copy = std::process::Command::new("cp");
    assert!(copy.args([from, to]).status().unwrap().success());
}

/// `/home/runner` of an image.
struct Home(PathBuf);

impl Home {
    fn new(name: &str, github: &GitHub) -> Self {
        let dir =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
        // Of an earlier process with this number.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        for script in ["config.sh", "run.sh"] {
            let original = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
            copy_program(&original, &dir.join(script));
        }
        fs::write(dir.join("ca.crt"), &github.ca).unwrap();
        for hook in ["started", "completed"] {
            let path = dir.join(format!("{hook}.sh"));
            fs::write(
                &path,
                format!(
                    "echo {hook} $GITHUB_JOB >> {}; echo {hook} >> $GITHUB_STEP_SUMMARY\n",
                    dir.join("hooks").display()
                ),
            )
            .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let node = dir.join("externals/node20/bin");
        fs::create_dir_all(&node).unwrap();
        let simulated = Path::new(env!("CARGO_BIN_EXE_simulated-node"));
        copy_program(simulated, &node.join("node"));
        fs::create_dir_all(dir.join("bin")).unwrap();
        let agent = env!("CARGO_BIN_EXE_simulated-agent");
        symlink(agent, dir.join("bin/Runner.Worker")).unwrap();
        fs::write(dir.join("containers.sh"), HOOK).unwrap();
        Self(dir)
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.0.join(name));
        command
            .env("SIMULATED_AGENT", env!("CARGO_BIN_EXE_simulated-agent"))
            .env("SSL_CERT_FILE", self.0.join("ca.crt"))
            .env("RUNNER_ALLOW_RUNASROOT", "1")
            .env("ACTIONS_RUNNER_HOOK_JOB_STARTED", self.0.join("started.sh"))
            .env(
                "ACTIONS_RUNNER_HOOK_JOB_COMPLETED",
                self.0.join("completed.sh"),
            )
            .env_remove("RUNNER_MANUALLY_TRAP_SIG")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }

    fn with_jit(&self, config: &str) -> Command {
        let mut run = self.script("run.sh");
        run.env("ACTIONS_RUNNER_INPUT_JITCONFIG", config);
        run
    }

    async fn configure(&self, github: &GitHub, token: &str, more: &[&str]) -> i32 {
        let url = format!("{}/{TENSOR_WASM}", github.url);
        let mut config = self.script("config.sh");
        config.args([
            "--url",
            &url,
            "--token",
            token,
            "--name",
            "host-cuda",
            "--labels",
            "self-hosted,cuda",
        ]);
        config.args(["--work", "_work", "--unattended"]).args(more);
        code(config.spawn().unwrap()).await
    }

    fn diag(&self) -> String {
        let logs = fs::read_dir(self.0.join("_diag")).unwrap().flatten();
        logs.map(|log| fs::read_to_string(log.path()).unwrap())
            .collect()
    }
}

async fn code(mut child: Child) -> i32 {
    let status = tokio::time::timeout(LIMIT, child.wait())
        .await
        .expect("it does not end")
        .unwrap();
    status.code().unwrap_or(-1)
}

fn terminate(child: &Child) {
    let pid = child.id().unwrap().to_string();
    assert!(
        std::process::Command::new("kill")
            .arg(pid)
            .status()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn a_jit_runner_runs_one_job_and_is_gone() {
    let github = GitHub::start().await;
    let home = Home::new("jit", &github);
    let config = github.jit_config("jit-1").await;
    let run = home.with_jit(&config).spawn().unwrap();
    github.online("jit-1").await;
    until(
        "the words that the operator's probe looks for",
        async || home.diag().contains("Listening for Jobs").then_some(()),
    )
    .await;
    // A job that asks for more labels than the runner has is not its job
    let other = github
        .queue(&["self-hosted", "cuda", "a100"], "true", false)
        .await;
    let job = github
        .queue(&["self-hosted", "cuda"], "echo computed; env", false)
        .await;
    let view = github.ended(job).await;
    assert_eq!(
        (view.conclusion, view.runner.as_deref()),
        (Some(Conclusion::Success), Some("jit-1"))
    );
    assert_eq!(code(run).await, 0);
    let log = github.control.job_log(job).await.unwrap();
    assert!(log.contains("computed"), "{log}");
    assert!(!log.contains(&config), "the job saw the registration");
    assert_eq!(
        fs::read_to_string(home.0.join("hooks"))
            .unwrap()
            .lines()
            .count(),
        2
    );
    assert_eq!(view.summary, "started\ncompleted\n");
    assert!(
        github.runners().await.is_empty(),
        "an ephemeral runner's entry goes with its job"
    );
    assert!(
        github
            .control
            .job(other)
            .await
            .unwrap()
            .started_at
            .is_none()
    );
    // And the configuration is used up
    assert_eq!(
        code(
            Home::new("again", &github)
                .with_jit(&config)
                .spawn()
                .unwrap()
        )
        .await,
        0
    );
    assert!(github.runners().await.is_empty());
}

#[tokio::test]
async fn config_sh_as_a_person_calls_it() {
    let github = GitHub::start().await;
    let home = Home::new("config", &github);
    let token = github.registration_token().await;
    assert_eq!(home.configure(&github, &token, &[]).await, 0);
    let run = home
        .script("run.sh")
        .env("RUNNER_MANUALLY_TRAP_SIG", "1")
        .spawn()
        .unwrap();
    github.online("host-cuda").await;
    // It stays for more than one job
    for _ in 0..2 {
        let job = github.queue(&["self-hosted", "cuda"], "true", false).await;
        assert_eq!(
            github.ended(job).await.conclusion,
            Some(Conclusion::Success)
        );
    }
    // A taken name is refused without --replace
    let second = Home::new("second", &github);
    assert_eq!(second.configure(&github, &token, &[]).await, 1);
    terminate(&run);
    assert_eq!(code(run).await, 143);
    // And the entry goes with `config.sh remove`
    let removal = github.rest(Method::POST, "/remove-token", None).await;
    let mut remove = home.script("config.sh");
    remove.args(["remove", "--token", removal["token"].as_str().unwrap()]);
    assert_eq!(code(remove.spawn().unwrap()).await, 0);
    assert!(github.runners().await.is_empty());
}

#[tokio::test]
async fn row_11_a_token_that_has_expired_is_refused() {
    let github = GitHub::start().await;
    let token = github.registration_token().await;
    github.control.advance(3601).await.unwrap();
    assert_eq!(
        Home::new("expired", &github)
            .configure(&github, &token, &[])
            .await,
        1
    );
    assert_eq!(
        Home::new("forged", &github)
            .configure(&github, "AAAA", &[])
            .await,
        1
    );
    assert!(github.runners().await.is_empty());
}

#[tokio::test]
async fn an_agent_that_is_too_old_ends_with_its_own_code() {
    let github = GitHub::start().await;
    let config = github.jit_config("old").await;
    let home = Home::new("old", &github);
    let mut run = home.with_jit(&config);
    run.env("SIMULATED_AGENT_VERSION", "2.319.1")
        .env("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE", "1");
    assert_eq!(code(run.spawn().unwrap()).await, 7);
}

#[tokio::test]
async fn a_failing_step_fails_the_job_and_not_the_agent() {
    let github = GitHub::start().await;
    let config = github.jit_config("fails").await;
    let run = Home::new("fails", &github)
        .with_jit(&config)
        .spawn()
        .unwrap();
    let job = github
        .queue(&["self-hosted", "cuda"], "exit 3", false)
        .await;
    assert_eq!(
        github.ended(job).await.conclusion,
        Some(Conclusion::Failure)
    );
    assert_eq!(code(run).await, 0);
}

#[tokio::test]
async fn a_job_whose_process_is_killed_fails_with_what_that_wrote_and_no_step_follows() {
    let github = GitHub::start().await;
    let home = Home::new("killed", &github);
    // Given a hook that writes for the listener, and kills the process that called it
    let hook = "echo refused >/proc/$PPID/fd/2; kill -9 $PPID; sleep 60\n";
    fs::write(home.0.join("started.sh"), hook).unwrap();
    let config = github.jit_config("killed").await;
    let run = home.with_jit(&config).spawn().unwrap();
    // When it takes a job with a step that runs always
    let jobs = github
        .start_file("on: push\njobs: {a: {runs-on: cuda, steps: [{run: echo one}, {run: echo two, if: always()}]}}")
        .await;
    let view = github.ended(jobs[0]).await;
    // Then
    assert_eq!(view.conclusion, Some(Conclusion::Failure));
    assert_eq!(view.annotations, ["refused"]);
    assert!(
        view.steps
            .iter()
            .all(|step| step.conclusion == Some(Conclusion::Skipped)),
        "{view:?}"
    );
    assert_eq!(code(run).await, 0);
    assert!(
        !home.0.join("hooks").exists(),
        "the last hook is not called"
    );
    assert!(github.runners().await.is_empty());
}

#[tokio::test]
async fn a_signal_cancels_the_job_and_ends_an_idle_agent() {
    let github = GitHub::start().await;
    for busy in [true, false] {
        let name = format!("signal-{busy}");
        let config = github.jit_config(&name).await;
        let mut run = Home::new(&name, &github).with_jit(&config);
        let run = run.env("RUNNER_MANUALLY_TRAP_SIG", "1").spawn().unwrap();
        github.online(&name).await;
        let mut job = None;
        if busy {
            let id = github.queue(&["self-hosted", "cuda"], "true", true).await;
            until("the job to start", async || {
                github.control.job(id).await.unwrap().started_at
            })
            .await;
            job = Some(id);
        }
        terminate(&run);
        assert_eq!(
            code(run).await,
            143,
            "the script's own code, however well the listener ended"
        );
        if let Some(job) = job {
            assert_eq!(
                github.ended(job).await.conclusion,
                Some(Conclusion::Cancelled)
            );
        }
    }
}

/// A container hook whose container is this machine.
const HOOK: &str = r#"input=$(cat)
field() { printf '%s' "$input" | sed "s/.*\"$1\":\"\([^\"]*\)\".*/\1/"; }
work=${RUNNER_TEMP%/_temp}
case $(field command) in
prepare_job)
  echo "pulling $(field image)"
  printf '{"isAlpine":false}' > "$(field responseFile)"
  ;;
run_script_step)
  arguments=$(printf '%s' "$input" | sed 's/.*"entryPointArgs":\[\([^]]*\)\].*/\1/; s/[",]/ /g')
  program=$(field entryPoint)
  "${program/#\/__e/${work%/_work}/externals}" ${arguments//\/__w/$work}
  ;;
esac
"#;

/// A matrix of images, an action, a secret, a summary, a step that fails and one that runs all the same.
const CONTAINERS: &str = r#"
name: Containers
on: workflow_dispatch
jobs:
  test:
    name: test on ${{ matrix.image }}
    runs-on: [self-hosted, cuda]
    strategy: {matrix: {image: [cuda-12.4, cuda-13.1]}}
    container:
      image: nvcr.io/acme/${{ matrix.image }}
      credentials: {username: acme, password: '${{ secrets.PASSWORD }}'}
    steps:
      - {uses: actions/checkout@v4, id: checkout}
      - run: |
          cat README.md
          echo "of ${{ steps.checkout.outputs.commit }} with ${{ secrets.PASSWORD }}"
          echo "passed on ${{ matrix.image }}" >> "$GITHUB_STEP_SUMMARY"
      - run: exit 3
      - {name: Clean up, run: echo cleaned, if: always()}"#;

#[tokio::test]
async fn a_workflow_file_whose_jobs_have_containers() {
    let github = GitHub::start().await;
    // Given a job for each row of the matrix
    let jobs = github.start_file(CONTAINERS).await;
    assert_eq!(jobs.len(), 2);
    for (job, image) in jobs.into_iter().zip(["cuda-12.4", "cuda-13.1"]) {
        // When a runner with a container hook takes the job
        let home = Home::new(image, &github);
        let config = github.jit_config(image).await;
        let run = home
            .with_jit(&config)
            .env(
                "ACTIONS_RUNNER_CONTAINER_HOOKS",
                home.0.join("containers.sh"),
            )
            .env("ACTIONS_RUNNER_REQUIRE_JOB_CONTAINER", "true")
            .spawn()
            .unwrap();
        let view = github.ended(job).await;
        assert_eq!(code(run).await, 0);
        // Then its steps have run in order, with all that they were given
        let log = github.control.job_log(job).await.unwrap();
        assert_eq!(view.name, format!("test on {image}"));
        assert_eq!(view.conclusion, Some(Conclusion::Failure), "{log}");
        let ends: Vec<_> = view
            .steps
            .iter()
            .map(|step| step.conclusion.unwrap().as_str())
            .collect();
        assert_eq!(ends, ["success", "success", "failure", "success"], "{log}");
        assert_eq!(view.steps[1].summary, format!("passed on {image}\n"));
        let order = [
            &format!("pulling nvcr.io/acme/{image}"),
            "Syncing repository: craton-co/craton-tensor-wasm",
            "craton-co/craton-tensor-wasm at ",
            "Z of ",
            "##[error]Process completed with exit code 3.",
            "##[error]Executing the custom container implementation failed.",
            "Z cleaned",
            "Post job cleanup.",
            "A job completed hook",
        ];
        let places: Vec<_> = order.iter().map(|words| log.find(words)).collect();
        assert!(
            places.iter().all(Option::is_some) && places.is_sorted(),
            "{places:?}\n{log}"
        );
        assert!(!log.contains("s3cret"), "{log}");
    }
}

#[tokio::test]
async fn a_job_that_takes_longer_than_it_may_is_cancelled() {
    let github = GitHub::start().await;
    // An agent that is not heard of for the minutes which pass at once is not lost.
    let patient = json!({"lostSeconds": 1000});
    github.control.change_settings(&patient).await.unwrap();
    let jobs = github
        .start_file(
            "
on: push
jobs:
  long: {runs-on: cuda, timeout-minutes: 5, steps: [{run: sleep 60}, {run: echo in time, if: always()}]}
",
        )
        .await;
    let config = github.jit_config("long").await;
    let run = Home::new("long", &github)
        .with_jit(&config)
        .spawn()
        .unwrap();
    until("the job to start", async || {
        let view = github.control.job(jobs[0]).await.unwrap();
        let log = github.control.job_log(jobs[0]).await.unwrap();
        (view.started_at.is_some() && log.contains("##[endgroup]")).then_some(())
    })
    .await;
    github.control.advance(301).await.unwrap();
    let view = github.ended(jobs[0]).await;
    let log = github.control.job_log(jobs[0]).await.unwrap();
    assert_eq!(view.conclusion, Some(Conclusion::Cancelled), "{log}");
    let words = "has exceeded the maximum execution time of 5 minutes.";
    assert!(log.contains(words) && log.contains("Z in time"), "{log}");
    assert_eq!(code(run).await, 0);
}

#[tokio::test]
async fn a_file_that_is_not_understood_is_refused_with_the_reason() {
    let github = GitHub::start().await;
    let update = UpdateRepository {
        workflows: vec![NewWorkflow {
            file: "bad.yml".to_owned(),
            content: Some(
                "on: push\njobs: {a: {runs-on: x, needs: b, steps: [{run: y}]}}".to_owned(),
            ),
            ..NewWorkflow::default()
        }],
        ..UpdateRepository::default()
    };
    let refused = github.control.update_repository(TENSOR_WASM, &update).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("needs"), "{refused}");
}

/// An agent of this name with a configuration of its own, for tests in which it does not end by itself.
async fn hangs(github: &GitHub, name: &str, variable: Option<&str>) -> Child {
    let home = Home::new(name, github);
    let mut run = home.with_jit(&github.jit_config(name).await);
    run.process_group(0);
    if let Some(variable) = variable {
        run.env(variable, "1");
    }
    run.spawn().unwrap()
}

/// It is there, and ends now.
async fn kill(mut agent: Child) {
    assert!(agent.try_wait().unwrap().is_none(), "it has ended");
    let group = format!("-{}", agent.id().unwrap());
    let kill = std::process::Command::new("kill")
        .args(["-KILL", "--", &group])
        .status();
    assert!(kill.unwrap().success());
    agent.wait().await.unwrap();
}

#[tokio::test]
async fn an_agent_hangs_where_it_is_to() {
    // Given an agent whose acquired job never arrives, then GitHub calls it busy, and it begins nothing
    let github = GitHub::start().await;
    let set = async |settings: Value| github.control.change_settings(&settings).await.unwrap();
    set(json!({"acquireHangs": true})).await;
    let agent = hangs(&github, "unstarted", None).await;
    github.online("unstarted").await;
    let job = github.queue(&["cuda"], "true", false).await;
    until("the runner to be busy", async || {
        let runners = github.runners().await;
        runners.iter().any(|r| r["busy"] == true).then_some(())
    })
    .await;
    let view = github.control.job(job).await.unwrap();
    assert_eq!(
        (view.conclusion, view.runner.as_deref()),
        (None, Some("unstarted"))
    );
    kill(agent).await;
    set(json!({"acquireHangs": false, "lostSeconds": 0})).await;
    github.ended(job).await;
    set(json!({"lostSeconds": 30})).await;

    // Given one that does not end after its job, then GitHub does not know it any more, and it is there
    let agent = hangs(&github, "stays", Some("SIMULATED_AGENT_HANGS_AFTER_JOB")).await;
    github.online("stays").await;
    let job = github.queue(&["cuda"], "true", false).await;
    assert_eq!(
        github.ended(job).await.conclusion,
        Some(Conclusion::Success)
    );
    assert_eq!(github.runners().await, Vec::<Value>::new());
    kill(agent).await;

    // Given one that is sent to where nobody is, then GitHub calls it offline, and it is there
    set(json!({"brokerMigrations": {"moved": "http://127.0.0.1:1"}, "offlineSeconds": 0})).await;
    let agent = hangs(&github, "moved", None).await;
    until(
        "the runner to have been online, and to be offline",
        async || {
            let runners = github.runners().await;
            let moved = |r: &Value| r["status"] == "offline" && r["version"].is_string();
            runners.iter().any(moved).then_some(())
        },
    )
    .await;
    kill(agent).await;
}
