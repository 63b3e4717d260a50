//! The process that runs one job, `Runner.Worker`, as the real agent has it. It reads the job, and then orders, from its
//! standard input, a line each. What it prints is shown where it ends otherwise than it should.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};

use crate::{
    code,
    control::Cancel,
    job::{self, Conclusion},
    server::{Job, Server},
    settings, terminal, work,
};

/// What ends a job when the agent ends.
const SHUTDOWN: &str = "The runner has received a shutdown signal. This can happen when the runner service is stopped, or a manually started runner is canceled.";

/// Set where it is not to end after its job, as one whose last step left something that it waits for.
const HANGS: &str = "SIMULATED_AGENT_HANGS_AFTER_JOB";

/// The process, as the listener has it.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    output: Vec<JoinHandle<Vec<String>>>,
}

/// How it ended.
pub(crate) enum End {
    /// By itself, and it has told the server.
    Told(Conclusion),
    /// Otherwise; and what it printed.
    Crashed(String),
}

impl Worker {
    /// Starts it with a job. Orders go to what is returned beside it.
    pub(crate) fn start(root: &Path, job: &Job) -> Result<(Self, ChildStdin)> {
        let mut command = Command::new(root.join("bin/Runner.Worker"));
        command
            .arg("--root")
            .arg(root)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with(work::INPUT) {
                command.env_remove(name);
            }
        }
        let mut child = command.spawn().context("starting Runner.Worker")?;
        let mut orders = child.stdin.take().context("its standard input")?;
        let out = child.stdout.take().map(lines);
        let errors = child.stderr.take().map(lines);
        let line = serde_json::to_string(job).context("writing the job")?;
        // One that is gone already is seen by its end.
        let _ = writeln!(orders, "{line}");
        let output = out.into_iter().chain(errors).collect();
        Ok((Self { child, output }, orders))
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> End {
        let status = self.child.wait().ok();
        let conclusion = status.as_ref().and_then(ExitStatus::code).and_then(|code| {
            let all = [
                Conclusion::Success,
                Conclusion::Failure,
                Conclusion::Cancelled,
            ];
            all.into_iter().find(|one| i32::from(one.code()) == code)
        });
        if let Some(conclusion) = conclusion {
            return End::Told(conclusion);
        }
        let output = self.output.into_iter().filter_map(|o| o.join().ok());
        End::Crashed(output.flatten().collect::<Vec<_>>().join("\n"))
    }
}

/// Has the job end with the agent.
pub(crate) fn shut_down(orders: &mut ChildStdin) {
    let _ = writeln!(orders, "shutdown");
}

fn lines(output: impl Read + Send + 'static) -> JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let lines = BufReader::new(output).lines();
        lines
            .map_while(Result::ok)
            .filter(|l| !l.is_empty())
            .collect()
    })
}

/// The process itself; its exit code is the job's end.
pub(crate) fn run(root: &Path) -> Result<u8> {
    terminal::open_log(root, "Worker")?;
    let mut input = io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line).context("reading the job")?;
    drop(input);
    let job: Job = serde_json::from_str(&line).context("the job is not understood")?;
    let (settings, secret) = settings::load(root)?;
    let server = Server::new(&settings.server_url, &secret)?;
    let cancel = Cancel::default();
    let ordered = cancel.clone();
    thread::spawn(move || {
        for _ in io::stdin().lines().map_while(Result::ok) {
            ordered.shut_down(SHUTDOWN);
        }
        // Without a listener there is nobody to work for.
        std::process::exit(i32::from(code::TERMINATED));
    });
    let conclusion = job::run(root, &settings, &server, &job, &cancel);
    while env::var_os(HANGS).is_some() {
        thread::park();
    }
    Ok(conclusion.code())
}
