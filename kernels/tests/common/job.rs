//! A pod whose jobs name their own image: its two folders, its containers as processes, and the agent's hook.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use gate_report::contract::{file, gate, script};
use gate_report::wire::{JOB_CONTAINER, REGISTRATIONS};
use gate_report::{Outcome, Report};
use serde_json::{Map, Value, json};

use super::registrar::{Registrar, TICKET, answer, registration};
use super::{Running, folder, program, until};

pub const JOB_TICKET: &str = "ticket-for-jobs";

pub struct Pod {
    pub dir: PathBuf,
    pub settings: Map<String, Value>,
}

/// How far the job's container and its services are.
pub fn state(container: &Value, services: &Value) -> String {
    answer(
        200,
        "",
        &json!({"container": container, "services": services}),
    )
}

pub fn running() -> Value {
    json!({"state": "Running"})
}

/// The request that asks how far the containers are.
pub const ASKED_STATE: &str = "GET /v1/job-container";

/// A registrar for a job that goes well.
pub fn giving() -> Registrar {
    let services = json!([running(), running(), running()]);
    Registrar::with_paths(vec![
        (REGISTRATIONS, vec![registration()]),
        (JOB_CONTAINER, vec![answer(200, "", &json!({}))]),
        (ASKED_STATE, vec![state(&running(), &services)]),
    ])
}

impl Pod {
    /// The gate has passed, and the image was changed to a job's.
    pub fn of_a_job(registrar: &Registrar) -> Self {
        let pod = Self {
            dir: folder("job"),
            settings: Map::new(),
        };
        for name in ["run/bin", "agent/bin", "image", "agent/externals"] {
            fs::create_dir_all(pod.dir.join(name)).unwrap();
        }
        for dir in ["run", "agent"] {
            let program = env!("CARGO_BIN_EXE_runner-init");
            fs::hard_link(program, pod.dir.join(dir).join(file::RUNNER_INIT)).unwrap();
            fs::write(pod.dir.join(dir).join(file::TICKET), TICKET).unwrap();
        }
        let hook = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/containers.sh");
        fs::copy(hook, pod.agent(file::CONTAINERS)).unwrap();
        fs::write(pod.agent(file::JOB_TICKET), JOB_TICKET).unwrap();
        let report = Report {
            outcome: Outcome::Passed,
            node: Some("node-a".into()),
            ..Report::new("0")
        };
        fs::write(pod.run(file::PASSED), report.summary()).unwrap();
        fs::write(pod.dir.join("hosts"), "127.0.0.1\tlocalhost").unwrap();
        let path = |name: &str| pod.dir.join(name).to_string_lossy().into_owned();
        let [program, log, run, agent, copied] =
            ["image/cuda-smoke", "log", "run", "agent", "e"].map(path);
        pod.with(gate::PROGRAM, &program)
            .with(gate::TERMINATION_LOG, &log)
            .with(gate::REGISTRATION_DIR, &run)
            .with(gate::AGENT_DIR, &agent)
            .with(gate::EXTERNALS_DIR, &copied)
            .with(gate::REGISTRATION_TIMEOUT_SECONDS, "30")
            .with(gate::REGISTRAR_URL, &registrar.url())
            .with(gate::REGISTRAR_CA, &registrar.ca)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), json!(value));
        let text = Value::from(self.settings.clone()).to_string();
        for dir in ["run", "agent"] {
            fs::write(self.dir.join(dir).join(file::SETTINGS), &text).unwrap();
        }
        self
    }

    pub fn run(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(name)
    }

    pub fn agent(&self, name: &str) -> PathBuf {
        self.dir.join("agent").join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// The gate's image, with this script for a gate.
    pub fn gate(&self, gate: &str) {
        let path = self.dir.join("image/cuda-smoke");
        program(&path, &format!("#!/bin/sh\n{gate}\n"));
    }

    /// The container `gpu`.
    pub fn gpu_command(&self) -> Command {
        let mut init = Command::new(self.run(file::RUNNER_INIT));
        // An input that is open as long as the container lives: no step is to read it.
        init.arg("job").stdin(Stdio::piped());
        self.in_the_image(&mut init);
        init
    }

    /// What an image brings, and where tests have its files.
    pub fn in_the_image(&self, command: &mut Command) {
        command
            .env("RUN", self.dir.join("run"))
            .env("OF_THE_IMAGE", "1")
            .env(script::HOSTS_FILE, self.dir.join("hosts"))
            .env(script::GPU_FILE, self.dir.join("nvidiactl"));
    }

    /// The container `gpu`, which takes steps.
    pub fn gpu(&self) -> Running {
        let gpu = Running(self.gpu_command().spawn().unwrap());
        until("listening", || self.run(file::JOB_SOCKET).exists());
        gpu
    }

    /// The container `main`.
    pub fn main(&self, agent: &str) -> Running {
        let mut init = Command::new(self.agent(file::RUNNER_INIT));
        let output = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("output"));
        init.args(["agent", "/bin/sh", "-c", agent])
            .env("AGENT", self.dir.join("agent"))
            .stderr(output.unwrap());
        Running(init.spawn().unwrap())
    }

    /// The agent's hook, with this on its input.
    pub fn start_hook(&self, input: &Value) -> Child {
        let hook = self.agent(file::CONTAINERS);
        let mut hook = Command::new("/bin/sh")
            .arg("-e")
            .arg(hook)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let text = format!("{input}\n");
        hook.stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        hook
    }

    pub fn hook(&self, input: &Value) -> Output {
        self.start_hook(input).wait_with_output().unwrap()
    }

    /// The job's container is there: the first command of a job.
    pub fn prepare(&self, container: &Value, services: &Value) -> (Option<i32>, String, Value) {
        let file = self.dir.join("response.json");
        fs::write(&file, "").unwrap();
        let output = self.hook(&json!({
            "command": "prepare_job",
            "responseFile": file,
            "args": {"container": container, "services": services},
            "state": null,
        }));
        let response = fs::read(&file).unwrap();
        let response = serde_json::from_slice(&response).unwrap_or_default();
        (output.status.code(), text(&output), response)
    }

    pub fn prepared(&self) {
        let (code, said, _) = self.prepare(&container("cuda:1", ""), &json!([]));
        assert_eq!(code, Some(0), "{said}");
    }

    /// Exit code and output of a step in `sh`.
    pub fn step(&self, line: &str) -> (Option<i32>, String) {
        let output = self.hook(&step(line));
        (output.status.code(), text(&output))
    }
}

pub fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// A step as the agent asks for one: its arguments are cut at every space.
pub fn step(line: &str) -> Value {
    let quoted = format!("-c '{}'", line.replace('\'', r"'\''"));
    json!({
        "command": "run_script_step",
        "responseFile": "/dev/null",
        "args": {
            "entryPointArgs": quoted.split(' ').collect::<Vec<_>>(),
            "entryPoint": "sh",
            "environmentVariables": {"HOME": "/github/home", "OF_THE_STEP": "2"},
            "prependPath": [],
            "workingDirectory": "/",
        },
        "state": {},
    })
}

pub fn container(image: &str, options: &str) -> Value {
    json!({
        "image": image,
        "createOptions": options,
        "entryPointArgs": [],
        "environmentVariables": {"OF_THE_CONTAINER": "3"},
        "portMappings": [],
        "registry": null,
        "systemMountVolumes": [],
        "userMountVolumes": [],
    })
}

pub fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout == b"0\n"
}
