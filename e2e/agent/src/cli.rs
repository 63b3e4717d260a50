//! The real agent's command line: every option has its `ACTIONS_RUNNER_INPUT_…` variable.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, builder::BoolishValueParser};

/// What config.sh and run.sh call.
#[derive(Debug, Parser)]
#[command(name = "Runner.Listener", version = crate::settings::version(), disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Folder of the agent; the scripts fill it in.
    #[arg(long, default_value = ".")]
    pub(crate) root: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Register the runner.
    Configure(Configure),
    /// Take the registration back.
    Remove(Remove),
    /// Wait for jobs and run them.
    Run(Run),
    /// Run the job that comes by standard input.
    #[command(hide = true)]
    Worker,
}

#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the real agent has as many flags"
)]
pub(crate) struct Configure {
    /// Repository, organization or enterprise.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_URL")]
    pub(crate) url: Option<String>,
    /// Registration token.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Name of the runner; that of the host if absent.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_NAME")]
    pub(crate) name: Option<String>,
    /// Its group.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_RUNNERGROUP")]
    pub(crate) runnergroup: Option<String>,
    /// Labels, separated by commas.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_LABELS")]
    pub(crate) labels: Option<String>,
    /// Folder of the jobs.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_WORK", default_value = "_work")]
    pub(crate) work: String,
    /// Ask nothing.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_UNATTENDED", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) unattended: bool,
    /// Replace a runner of the same name.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_REPLACE", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) replace: bool,
    /// One job, then gone.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_EPHEMERAL", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) ephemeral: bool,
    /// Never update itself; this one never does.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_DISABLEUPDATE", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) disableupdate: bool,
    /// None of the labels that GitHub gives.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_NO_DEFAULT_LABELS", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) no_default_labels: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Removal token.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Only the files, without the server.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_LOCAL", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) local: bool,
    /// Ask nothing.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_UNATTENDED", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) unattended: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A configuration made by the server, instead of config.sh.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_JITCONFIG", hide_env_values = true)]
    pub(crate) jitconfig: Option<String>,
    /// End after one job.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_ONCE", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) once: bool,
    /// How it was started; the service scripts give it.
    #[arg(long, env = "ACTIONS_RUNNER_INPUT_STARTUPTYPE")]
    pub(crate) startuptype: Option<String>,
}
