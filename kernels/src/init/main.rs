//! `runner-init`: the first process of the containers `gpu` and `main` of a runner's pod.
//!
//! - `runner-init gpu PROGRAM [ARGUMENT...]`: the gate in the gate's image; in the runner's image the preflight, the
//!   registration, and then the program, which is the agent.
//! - `runner-init main`: ends as the agent did.
//! - `runner-init job`, in `gpu` of a pod whose jobs name their own image: the gate, and then the steps of a job.
//! - `runner-init agent PROGRAM [ARGUMENT...]`, in `main` of such a pod: the preflight, the registration, and the agent.
//! - `runner-init container-hook`, in `main` of such a pod: what the agent calls for such a job.
//! - `runner-init allow`, beside the agent: what it calls before a job of a pool that does not take every job.
//! - `runner-init telemetry`, beside the agent: what it calls after a job, to tell what the job's GPUs did.
//! - `runner-init hook PROGRAM [ARGUMENT...]`, in `gpu`: a hook or a probe of the template's, which is for its image only.
//! - `runner-init online`, in `main`: the startup probe; whether the agent has been online.
//!
//! In an image that is not ours it has its own file and nothing else: it is static, and needs no shell, no library and no
//! name service. It carries exit codes and never guesses one.

mod agent;
mod allow;
mod ending;
mod gpu;
mod hook;
mod job;
mod limit;
mod process;
mod telemetry;
mod worker;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gate_report::contract::{GPU, MAIN, REGISTRATION_DIR, command, file};
use gate_report::exit;

use self::gpu::Purpose;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let dir = folder(words.next());
    let which = words.next();
    let line: Vec<OsString> = words.collect();
    let code = match (which.as_ref().and_then(|word| word.to_str()), &line[..]) {
        (Some(GPU), [_, ..]) => gpu::run(dir, Purpose::Agent(&line)),
        (Some(command::JOB), []) => gpu::run(dir, Purpose::Job),
        (Some(command::AGENT), [_, ..]) => agent::run(dir, &line),
        (Some(command::CONTAINER_HOOK), []) => hook::run(&dir),
        (Some(command::ALLOW), []) => allow::run(&dir),
        (Some(command::TELEMETRY), []) => telemetry::tell(&dir),
        (Some(MAIN), []) => ending::wait(&dir),
        (Some(command::HOOK), [_, ..]) => gpu::hook(&dir, &line),
        (Some(command::ONLINE), []) => u8::from(!dir.join(file::ONLINE).exists()),
        _ => {
            eprintln!(
                "usage: runner-init {GPU}|agent|hook PROGRAM [ARGUMENT...] | runner-init {MAIN}|job|allow|container-hook|telemetry|online"
            );
            exit::USAGE
        }
    };
    ExitCode::from(code)
}

/// The shared folder: this program is in `bin` there, or it is the one in the gate's image.
fn folder(own_name: Option<OsString>) -> PathBuf {
    let own = std::env::current_exe()
        .ok()
        .or_else(|| own_name.map(PathBuf::from));
    let folder = own.as_deref().and_then(Path::parent).and_then(Path::parent);
    folder.map_or_else(|| REGISTRATION_DIR.into(), Path::to_owned)
}
