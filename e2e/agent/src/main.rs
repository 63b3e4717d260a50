//! Stands in for the GitHub Actions agent in tests.
//!
//! What can be seen from outside is the real agent's: flags and their environment, files, lines of
//! its log, exit codes, what signals do, hooks, names of processes. What it speaks to the server is private to the
//! simulator. Jobs really run: in the work folder, or where the container hook takes them.

mod action;
mod cli;
mod code;
mod commands;
mod configure;
mod container;
mod context;
mod control;
mod files;
mod job;
mod listener;
mod process;
mod run;
mod server;
mod settings;
mod shell;
mod signals;
mod steps;
mod terminal;
mod work;
mod worker;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Clap's own code, 2, would ask run.sh for another try.
            let _ = error.print();
            let help = !error.use_stderr();
            return ExitCode::from(if help {
                code::SUCCESS
            } else {
                code::TERMINATED
            });
        }
    };
    let outcome = match cli.command {
        Command::Configure(options) => configure::add(&cli.root, &options),
        Command::Remove(options) => configure::remove(&cli.root, &options),
        Command::Run(options) => listener::run(&cli.root, &options),
        Command::Worker => worker::run(&cli.root),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            terminal::error(&format!("{error:#}"));
            ExitCode::from(code::TERMINATED)
        }
    }
}
