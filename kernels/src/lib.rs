//! What is in the two programs of a runner's pod: `cuda-smoke`, which tests the GPUs, and `runner-init`, the first process of
//! the containers. The second shares [`files`] and [`registrar`]; all else here is the first.
//!
//! `cuda-smoke`: proves that the GPUs of this pod compute, before a job may have them.
//!
//! - `check`: by hand, on any host.
//! - `prepare`: the first init container of a runner pod; brings what the others need, and a ticket for the registrar.
//! - `sample`: while a job runs, in whichever image: watches the GPUs.
//! - `gate`: the first life of the container with the GPU; when every device passes, the runner's image is the second.
//!
//! Check and gate run the test in a child process (`child`), because a broken driver may crash or hang whoever calls it;
//! `supervisor` survives that and makes the report.

mod args;
mod check;
mod child;
mod deadline;
mod device_files;
mod egress;
pub mod files;
mod gate;
mod host;
mod manual;
mod nvml;
mod preflight;
mod prepare;
mod protocol;
pub mod registrar;
mod sample;
mod supervisor;
mod times;

use std::process::ExitCode;

/// `cuda-smoke`, whole: its command line is this process's. It starts its own file again for each test, so whichever program
/// calls this must begin with it.
#[must_use]
pub fn smoke() -> ExitCode {
    let command = match args::parse() {
        Ok(command) => command,
        Err(error) => return gate::usage(&error),
    };
    let code = match command {
        args::Command::Check(check) => check::run(&check),
        args::Command::Prepare(prepare) => prepare::run(&prepare),
        args::Command::Gate(gate) => gate::run(&gate),
        args::Command::Child(test) => child::run(&test),
        args::Command::Nvml(test) => nvml::run(&test),
        args::Command::Sample(sample) => sample::run(&sample),
        args::Command::Open { path } => device_files::open(&path),
    };
    ExitCode::from(code)
}
