//! `runner-init`: the first process of the containers `gpu` and `main` of a runner's pod.
//!
//! - `runner-init gpu PROGRAM [ARGUMENT...]`: the gate in the gate's image; in the runner's image the preflight, the
//!   registration, and then the program, which is the agent.
//! - `runner-init main`: ends as the agent did.
//! - `runner-init hook PROGRAM [ARGUMENT...]`, in `gpu`: a hook or a probe of the template's, which is for its image only.
//! - `runner-init online`, in `main`: the startup probe; whether the agent has been online.
//!
//! In an image that is not ours it has its own file and nothing else: it is static, and needs no shell, no library and no
//! name service. It carries exit codes and never guesses one.

mod agent;
mod ending;
mod gpu;
mod process;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gate_report::contract::{GPU, MAIN, REGISTRATION_DIR, file};
use gate_report::exit;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let dir = folder(words.next());
    let which = words.next();
    let line: Vec<OsString> = words.collect();
    let code = match (which.as_ref().and_then(|word| word.to_str()), &line[..]) {
        (Some(GPU), [_, ..]) => gpu::run(dir, &line),
        (Some(MAIN), []) => ending::wait(&dir),
        (Some("hook"), [_, ..]) => gpu::hook(&dir, &line),
        (Some("online"), []) => u8::from(!dir.join(file::ONLINE).exists()),
        _ => {
            eprintln!(
                "usage: runner-init {GPU}|hook PROGRAM [ARGUMENT...] | runner-init {MAIN}|online"
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
