//! A plain runner's pod: the folder that its containers share, and the containers as processes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use gate_report::contract::{GPU, MAIN, file, gate};
use gate_report::wire::REGISTRATIONS;
use gate_report::{Outcome, Report};
use serde_json::{Map, Value, json};

use super::registrar::{JIT, Registrar, TICKET, registration};
use super::{Running, folder, program, report};

/// A pod: the folder that its containers share is `run`, the gate's image is there where `image/cuda-smoke` is.
pub struct Pod {
    pub dir: PathBuf,
    pub settings: Map<String, Value>,
}

impl Pod {
    /// As `prepare` leaves it, in the gate's image, with this script for a gate.
    pub fn prepared(gate: &str) -> Self {
        let pod = Self {
            dir: folder("init"),
            settings: Map::new(),
        };
        for name in ["run/bin", "image"] {
            fs::create_dir_all(pod.dir.join(name)).unwrap();
        }
        let init = env!("CARGO_BIN_EXE_runner-init");
        fs::hard_link(init, pod.run(file::RUNNER_INIT)).unwrap();
        program(&pod.gate_program(), &format!("#!/bin/sh\n{gate}\n"));
        fs::write(pod.run(file::TICKET), TICKET).unwrap();
        let (program, log) = (pod.gate_program(), pod.dir.join("log"));
        pod.with(gate::PROGRAM, &program.to_string_lossy())
            .with(gate::TERMINATION_LOG, &log.to_string_lossy())
            .with(gate::REGISTRATION_TIMEOUT_SECONDS, "30")
    }

    /// The gate has passed, and the image was changed to the runner's.
    pub fn passed(registrar: &Registrar) -> Self {
        let pod = Self::prepared("");
        fs::remove_file(pod.gate_program()).unwrap();
        let report = Report {
            outcome: Outcome::Passed,
            node: Some("node-a".into()),
            ..Report::new("0")
        };
        fs::write(pod.run(file::PASSED), report.summary()).unwrap();
        pod.with(gate::REGISTRAR_URL, &registrar.url())
            .with(gate::REGISTRAR_CA, &registrar.ca)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), json!(value));
        let text = Value::from(self.settings.clone()).to_string();
        fs::write(self.run(file::SETTINGS), text).unwrap();
        self
    }

    pub fn gate_program(&self) -> PathBuf {
        self.dir.join("image/cuda-smoke")
    }

    pub fn run(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.run(name).exists()
    }

    /// The container `gpu` with this agent.
    pub fn command(&self, agent: &str) -> Command {
        let mut init = Command::new(self.run(file::RUNNER_INIT));
        let output = |name| {
            fs::File::options()
                .create(true)
                .append(true)
                .open(self.dir.join(name))
        };
        init.args([GPU, "/bin/sh", "-c", agent, "runner", "argument"])
            .env("RUN", self.dir.join("run"))
            .stdout(output("output").unwrap())
            .stderr(output("output").unwrap());
        init
    }

    pub fn gpu(&self, agent: &str) -> Running {
        Running(self.command(agent).spawn().unwrap())
    }

    pub fn main(&self) -> Running {
        let mut init = Command::new(self.run(file::RUNNER_INIT));
        Running(init.arg(MAIN).spawn().unwrap())
    }

    /// The exit code that is written; empty where there is none.
    pub fn exit(&self) -> String {
        fs::read_to_string(self.run(file::EXIT)).unwrap_or_default()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The report in the termination message; no secret is in it, nor in the container's log.
    pub fn report(&self) -> Report {
        let printed = fs::read_to_string(self.dir.join("output")).unwrap();
        for secret in [TICKET, JIT] {
            assert!(
                !printed.contains(secret) && !self.log().contains(secret),
                "{printed}"
            );
        }
        report(&self.log())
    }
}

pub fn giving() -> Registrar {
    Registrar::with_paths(vec![(REGISTRATIONS, vec![registration()])])
}

/// As in a container: the first process of a namespace. `None` where this machine lets nobody make one.
pub fn as_the_first_process(pod: &Pod, agent: &str) -> Option<i32> {
    let namespace = [
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
    ];
    let unshare = |line: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(namespace).args(line);
        unshare
    };
    if !unshare(&["true"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("left out: no namespace can be made here");
        return None;
    }
    let init = pod.run(file::RUNNER_INIT);
    let mut gpu = unshare(&[init.to_str().unwrap(), GPU, "/bin/sh", "-c", agent]);
    Some(Running(gpu.env("RUN", pod.dir.join("run")).spawn().unwrap()).code())
}
