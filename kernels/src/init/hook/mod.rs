//! What the agent calls for a job with a container of its own: one process for each command, which it writes to our input
//! as JSON. The interface is GitHub's (actions/runner, `src/Runner.Worker/Container/ContainerHooks`).
//!
//! The input holds secrets: no part of it but names of images, options, folders and services is printed.

mod externals;
mod input;
mod mounts;
mod options;
mod plan;
mod ports;
mod prepare;
mod step;
mod wishes;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cuda_smoke::files;
use cuda_smoke::registrar::{self, Registrar};
use gate_report::contract::{REGISTRATION_DIR, file, gate};
use gate_report::{clean, exit};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::input::{Command, Input};
use crate::gpu::{self, Settings};
use crate::job::frames::{Frame, Frames, REQUEST};
use crate::job::request::Request;
use crate::telemetry;

/// Longest input: an environment is in it.
const LONGEST_INPUT: u64 = 8 * 1024 * 1024;
/// Longest ticket.
const LONGEST_TICKET: u64 = 128 * 1024;
/// Longest sentence in a job's log, in characters.
const LONGEST_SENTENCE: usize = 4000;
/// How long the job's container may take for what is no step.
const PATIENCE: Duration = Duration::from_secs(30);
/// With which a command ends that could not do what it was asked for.
const FAILED: u8 = 1;

/// Sentences for the job's log. Nothing that was asked for was done.
pub(crate) type Refusals = Vec<String>;

/// Where everything is.
pub(crate) struct Hook {
    /// The agent's own folder.
    dir: PathBuf,
    socket: PathBuf,
    settings: Settings,
}

/// Runs one command, and returns the exit code: a step's own.
pub(crate) fn run(dir: &Path) -> u8 {
    let done = read_input().and_then(|input| {
        let settings = gpu::settings(dir).map_err(|error| vec![error.to_string()])?;
        let shared = settings.get(gate::REGISTRATION_DIR);
        let shared = shared.map_or(REGISTRATION_DIR, String::as_str);
        let hook = Hook {
            dir: dir.to_owned(),
            socket: Path::new(shared).join(file::JOB_SOCKET),
            settings,
        };
        hook.obey(&input)
    });
    done.unwrap_or_else(|refusals| {
        for sentence in refusals {
            say_error(&sentence);
        }
        FAILED
    })
}

fn read_input() -> Result<Input, Refusals> {
    let mut text = vec![];
    let input = io::stdin().take(LONGEST_INPUT).read_to_end(&mut text);
    input.map_err(|error| vec![format!("The hook's input could not be read: {error}.")])?;
    // The parser's words may quote a secret; where it stopped says enough.
    understood(&text, "The hook's input was not understood")
}

fn understood<T: DeserializeOwned>(text: &[u8], what: &str) -> Result<T, Refusals> {
    serde_json::from_slice(text).map_err(|error| {
        vec![format!(
            "{what} at line {}, column {}.",
            error.line(),
            error.column()
        )]
    })
}

impl Hook {
    fn obey(&self, input: &Input) -> Result<u8, Refusals> {
        let args = serde_json::to_vec(&input.args).unwrap_or_default();
        let what = "The arguments of the hook were not understood";
        match input.command {
            Command::PrepareJob => {
                let response = self.prepare(understood(&args, what)?)?;
                respond(input.response_file.as_deref(), &response)?;
            }
            Command::RunScriptStep => return self.step(understood(&args, what)?),
            Command::RunContainerStep => {
                return Err(vec![
                    "Actions that bring their own container (uses: docker://… and actions with a Dockerfile) do not run here: the job has one container, and that has the GPU. Run the same program in a step of the job, or give the job that image as its container.".into(),
                ]);
            }
            Command::CleanupJob => self.clean(),
            Command::Unknown => {
                return Err(vec![
                    "The agent calls a container hook that this version does not know.".into(),
                ]);
            }
        }
        Ok(exit::PASSED)
    }

    /// Without a job's container there is nothing to clean.
    fn clean(&self) {
        telemetry::keep(&self.dir, &self.settings);
        if let Ok(stream) = UnixStream::connect(&self.socket)
            && let Err(sentence) = ask::<Value>(stream, &Request::Clean)
        {
            println!("{}", cleaned(&sentence));
        }
    }

    fn registrar(&self) -> Result<Registrar, registrar::Error> {
        let setting = |name| self.settings.get(name).map_or("", String::as_str);
        Registrar::new(setting(gate::REGISTRAR_URL), setting(gate::REGISTRAR_CA))
    }

    fn ticket(&self) -> Result<String, Refusals> {
        let ticket = files::read(&self.dir.join(file::JOB_TICKET), LONGEST_TICKET);
        ticket
            .map(|ticket| String::from_utf8_lossy(&ticket).into_owned())
            .map_err(|error| vec![format!("The ticket for jobs could not be read: {error}.")])
    }
}

/// What the agent reads after us.
fn respond(file: Option<&str>, response: &Value) -> Result<(), Refusals> {
    let file = file.ok_or("The agent named no file for the answer.");
    let written = file.map_err(String::from).and_then(|file| {
        fs::write(file, response.to_string())
            .map_err(|error| format!("The answer {file} could not be written: {error}."))
    });
    written.map_err(|sentence| vec![sentence])
}

/// Asks the job's container for what is no step.
fn ask<T: DeserializeOwned>(mut stream: UnixStream, request: &Request) -> Result<T, String> {
    let cut_off = |error: io::Error| format!("The job's container does not answer: {error}.");
    stream.set_read_timeout(Some(PATIENCE)).map_err(cut_off)?;
    send(&mut stream, request)?;
    let mut frames = Frames::default();
    match next(&mut stream, &mut frames).map_err(cut_off)? {
        Some(Frame::Done(json)) => serde_json::from_slice(&json)
            .map_err(|_| "The job's container gave an answer that was not understood.".into()),
        Some(Frame::Failed(sentence)) => Err(sentence),
        _ => Err("The job's container closed the connection.".into()),
    }
}

/// Sends a request. Where it is not taken, an answer says why, or the end of the connection.
fn send(stream: &mut UnixStream, request: &Request) -> Result<(), String> {
    let json = serde_json::to_vec(request).unwrap_or_default();
    if json.len() > REQUEST {
        return Err("The environment is too large for the job's container.".into());
    }
    let _ = stream.write_all(&Frame::Request(json).bytes());
    Ok(())
}

/// The next frame; `None` where the other end has closed.
fn next(stream: &mut UnixStream, frames: &mut Frames) -> io::Result<Option<Frame>> {
    let mut piece = [0; 16 * 1024];
    loop {
        match frames.take() {
            Ok(Some(frame)) => return Ok(Some(frame)),
            Ok(None) => {}
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
        match stream.read(&mut piece) {
            Ok(0) => return Ok(None),
            Ok(count) => frames.add(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// One plain line.
fn cleaned(sentence: &str) -> String {
    clean(sentence, LONGEST_SENTENCE)
}

/// A line that the agent shows as an error of the step. It is the agent's syntax, so a percent sign is written as a code.
fn say_error(sentence: &str) {
    println!("::error::{}", cleaned(sentence).replace('%', "%25"));
}

/// A line that is no command to the agent, whatever is in it.
fn say(sentence: &str) {
    println!("{}", cleaned(sentence).trim_start_matches([':', '#']));
}

/// Names and values.
type Env = BTreeMap<String, String>;
