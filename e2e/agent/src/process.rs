//! A process of a job: its lines, its end, and what is done when it has to stop.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, PipeReader, Write as _, pipe},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::control::{Stop, Stopped};

/// After SIGINT a step has so long before SIGTERM, and then so long before SIGKILL.
const GRACE: [Duration; 2] = [Duration::from_millis(7500), Duration::from_millis(2500)];

/// What to start.
#[derive(Debug)]
pub(crate) struct Process<'a> {
    /// The program.
    pub(crate) program: &'a str,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Its whole environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// Where it runs.
    pub(crate) folder: &'a Path,
    /// What it reads.
    pub(crate) input: Option<&'a str>,
    /// It alone is told to stop, as the real agent does it, and not its children with it: a hook has to pass it on.
    pub(crate) alone: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// Its exit code; 128 and the number of the signal that killed it.
    pub(crate) code: i32,
    /// It was told to stop.
    pub(crate) stopped: Option<Stopped>,
}

impl Process<'_> {
    /// Runs it to its end; gives each line that it prints away.
    pub(crate) fn run(&self, stop: &Stop, mut line: impl FnMut(&str)) -> Result<End> {
        let (reader, writer) = pipe().context("making a pipe")?;
        let errors = writer.try_clone().context("making a pipe")?;
        let mut command = Command::new(self.program);
        command
            .args(&self.arguments)
            .current_dir(self.folder)
            .env_clear()
            .envs(&self.environment)
            .stdin(self.input.map_or_else(Stdio::null, |_| Stdio::piped()))
            .stdout(writer)
            .stderr(errors)
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", self.program))?;
        // It holds ends of the pipe, which would never close.
        drop(command);
        if let (Some(input), Some(mut to)) = (self.input, child.stdin.take()) {
            let input = input.to_owned();
            // Who does not read it need not be waited for.
            thread::spawn(move || drop(to.write_all(input.as_bytes())));
        }
        let printed = lines(reader);
        let (status, stopped) = self.wait(&mut child, stop, &printed, &mut line)?;
        // What a left-over holds open is not waited for.
        let patience = Instant::now() + Duration::from_secs(10);
        while let Ok(text) =
            printed.recv_timeout(patience.saturating_duration_since(Instant::now()))
        {
            line(&text);
        }
        Ok(End {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stopped,
        })
    }

    /// Waits for it; when it is to stop, it hears of it, louder and louder.
    fn wait(
        &self,
        child: &mut Child,
        stop: &Stop,
        printed: &mpsc::Receiver<String>,
        line: &mut impl FnMut(&str),
    ) -> Result<(ExitStatus, Option<Stopped>)> {
        let group = Pid::from_child(child);
        let mut stopped = None;
        let mut asked: Option<(Instant, usize)> = None;
        loop {
            if let Some(status) = child.try_wait().context("waiting for a process")? {
                return Ok((status, stopped));
            }
            stopped = stopped.or_else(|| stop.due());
            let due = match asked {
                None => stopped.map(|_| (Signal::INT, 0)),
                Some((since, 0)) if since.elapsed() >= GRACE[0] => Some((Signal::TERM, 1)),
                Some((since, 1)) if since.elapsed() >= GRACE[1] => Some((Signal::KILL, 2)),
                Some(_) => None,
            };
            if let Some((signal, stage)) = due {
                // It may have ended this very moment.
                let _ = if self.alone && signal != Signal::KILL {
                    kill_process(group, signal)
                } else {
                    kill_process_group(group, signal)
                };
                asked = Some((Instant::now(), stage));
            }
            match printed.recv_timeout(Duration::from_millis(20)) {
                Ok(text) => line(&text),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                // It has closed its output, and may live on.
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
}

/// Reads lines on a thread of its own; the channel closes when all are read.
fn lines(reader: PipeReader) -> mpsc::Receiver<String> {
    let (sender, all) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|length| length > 0)
        {
            let text = String::from_utf8_lossy(&line);
            if sender
                .send(text.trim_end_matches(['\n', '\r']).to_owned())
                .is_err()
            {
                return;
            }
            line.clear();
        }
    });
    all
}
