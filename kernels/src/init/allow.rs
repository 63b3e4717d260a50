//! What the agent calls before a job of a pool that does not take every job.
//!
//! A hook that fails stops neither steps with `if: always()` nor what actions do before them (actions/runner,
//! `src/Runner.Worker/JobExtension.cs`). So a refusal ends the agent's process for the job, see [`crate::worker`].
//!
//! The verdict rests on our own folder, and on variables that the agent sets after all others.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use cuda_smoke::files;
use gate_report::allow::{Asking, LONGEST_EVENT, Payload, Policy};
use gate_report::clean;
use gate_report::contract::{file, gate, mark, script};
use serde_json::json;

use crate::gpu::{self, Settings};
use crate::process;
use crate::worker::{self, Worker};

/// Longest name in a mark, in characters. The termination message has 4 KiB for all.
const LONGEST_NAME: usize = 140;
/// Longest reason in a mark, in characters.
const LONGEST_WHY: usize = 400;
/// With which a hook fails.
const FAILED: u8 = 1;

/// Lets the job begin with the hook of every pool, or ends it. Returns where the job must not go on.
pub(crate) fn run(dir: &Path) -> u8 {
    let settings = gpu::settings(dir).map_err(|error| error.to_string());
    let verdict = match &settings {
        Ok(settings) => judge(settings),
        Err(error) => Err(error.clone()),
    };
    let Err(why) = verdict else {
        let mut hook = Command::new("/bin/sh");
        hook.arg("-e")
            .arg(dir.join(file::JOB_STARTED))
            .env(script::DIR, dir);
        return process::become_program(&mut hook);
    };
    refuse(&why, gpu::termination_log(&settings.unwrap_or_default()));
    FAILED
}

/// Whether the job may run; why not, as a sentence without an end.
fn judge(settings: &Settings) -> Result<(), String> {
    let policy = settings.get(gate::ALLOW).map(String::as_str);
    let policy: Policy = serde_json::from_str(policy.unwrap_or_default())
        .map_err(|error| format!("the pool's policy could not be read: {error}"))?;
    let payload = if policy.forks {
        Payload::default()
    } else {
        payload()?
    };
    let job = Asking {
        event: variable("GITHUB_EVENT_NAME"),
        git_ref: variable("GITHUB_REF"),
        payload,
    };
    policy.refusal(&job).map_or(Ok(()), Err)
}

/// What GitHub says of the event. An event may have nothing to say.
fn payload() -> Result<Payload, String> {
    let path = PathBuf::from(std::env::var_os("GITHUB_EVENT_PATH").unwrap_or_default());
    if path.as_os_str().is_empty() {
        return Ok(Payload::default());
    }
    let bytes = files::read(&path, LONGEST_EVENT).map_err(|error| error.to_string());
    bytes
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
        .map_err(|why| format!("the payload of its event could not be read: {why}"))
}

fn variable(name: &str) -> String {
    let text = std::env::var_os(name).map(OsString::into_string);
    text.map_or_else(String::new, |text| {
        text.unwrap_or_else(|other| other.to_string_lossy().into_owned())
    })
}

/// Tells the operator and the job's people why, and ends the job.
fn refuse(why: &str, log: &Path) {
    let name = |name| clean(&variable(name), LONGEST_NAME);
    let mark = json!({
        "mark": mark::REFUSED,
        "job": name("GITHUB_JOB"),
        "run": name("GITHUB_RUN_ID"),
        "attempt": name("GITHUB_RUN_ATTEMPT"),
        "at": worker::seconds_now(),
        "workflow": name("GITHUB_WORKFLOW"),
        "repository": name("GITHUB_REPOSITORY"),
        "why": clean(why, LONGEST_WHY),
    });
    worker::leave_mark(&mark, log);
    let sentence = format!(
        "This job may not use the GPUs of this pool, and none of its steps has run: {why}. The pool's spec.jobs.allow decides; ask who runs the pool."
    );
    // Where the worker is gone, its log is too. This is for one that cannot be ended.
    println!("::error::{sentence}");
    if let Some(worker) = Worker::above() {
        worker.kill(&sentence);
        worker.wait();
    }
}
