//! `cuda-smoke`: proves that the GPUs of this pod compute, before a job may have them.
//!
//! - `check`: by hand, on any host.
//! - `gate`: the init container of a runner pod; obtains the runner's registration when every device passes.
//!
//! Both run the test in a child process ([`child`]), because a broken driver may crash or hang whoever calls it;
//! [`supervisor`] survives that and makes the report.

mod args;
mod check;
mod child;
mod deadline;
mod egress;
mod gate;
mod host;
mod manual;
mod preflight;
mod protocol;
mod registrar;
mod registration;
mod supervisor;
mod times;

use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match args::parse() {
        Ok(command) => command,
        Err(error) => return gate::usage(&error),
    };
    let code = match command {
        args::Command::Check(check) => check::run(&check),
        args::Command::Gate(gate) => gate::run(&gate),
        args::Command::Child(test) => child::run(&test),
    };
    ExitCode::from(code)
}
