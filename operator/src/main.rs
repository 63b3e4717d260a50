//! `cuda-runner-operator`: parses its flags and starts.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use cuda_runner_operator::config::{Cli, Command, Config, LogFormat, Uninstall};
use cuda_runner_operator::telemetry::Telemetry;
use cuda_runner_operator::{act, kubernetes, run};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Crd => crd(),
        Command::Run(config) => operate(*config),
        Command::Uninstall(args) => uninstall(&args),
    }
}

fn crd() -> ExitCode {
    match cudarunner_crds::crd_yaml() {
        Ok(yaml) => {
            print!("{yaml}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&format!("the CRD cannot be written as YAML: {error}")),
    }
}

fn uninstall(args: &Uninstall) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let ended = runtime.block_on(async {
        Telemetry::start(LogFormat::Text, "info", None).map_err(|error| error.to_string())?;
        let client = kubernetes::client()
            .await
            .map_err(|error| error.to_string())?;
        act::uninstall::uninstall(&client, args)
            .await
            .map_err(|error| error.to_string())
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// With the one TLS provider in place.
fn runtime() -> Result<Runtime, ExitCode> {
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return Err(fail("another TLS provider is installed already"));
    }
    Runtime::new().map_err(|error| fail(&format!("no threads to run on: {error}")))
}

fn operate(config: Config) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
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
