//! `cuda-runner-operator`: parses its flags and starts.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use cuda_runner_operator::config::{Cli, Command, Config};
use cuda_runner_operator::run;
use cuda_runner_operator::telemetry::Telemetry;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Crd => crd(),
        Command::Run(config) => operate(*config),
    }
}

fn crd() -> ExitCode {
    match cudarunner_crds::crd_yaml() {
        Ok(yaml) => {
            print!("{yaml}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&format!(
            "the definition cannot be written as YAML: {error}"
        )),
    }
}

fn operate(config: Config) -> ExitCode {
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return fail("another TLS provider is installed already");
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no threads to run on: {error}")),
    };
    let entered = runtime.enter();
    let telemetry = Telemetry::start(
        config.log_format,
        &config.log_filter,
        config.otlp_endpoint.as_deref(),
    );
    let telemetry = match telemetry {
        Ok(telemetry) => Arc::new(telemetry),
        Err(error) => return fail(&error.to_string()),
    };
    drop(entered);
    let ended = runtime.block_on(run::run(config, Arc::clone(&telemetry)));
    telemetry.end();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("cuda-runner-operator: {message}");
    ExitCode::FAILURE
}
