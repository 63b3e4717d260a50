//! `kubectl cudarunner`: answers what people ask about a pool.

mod connect;
mod documents;
#[cfg(test)]
mod fixture;
mod migrate;
#[cfg(test)]
mod played;
mod release;
mod report;
mod status;
mod text;
mod top;
mod verify;
mod why;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use cuda_runner_plan::why::job::{Asked, is_address};
use gate_report::{clean, is_hidden};
use jiff::Timestamp;
use serde_json::Value;

use connect::Flags;

/// The name under which kubectl finds the plugin.
const PROGRAM: &str = "kubectl-cudarunner";

/// Answers what people ask about a CudaRunner.
#[derive(Parser)]
#[command(name = "kubectl cudarunner", version)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Ask(Question),
    /// Writes the CudaRunner for what a file says to Actions Runner Controller, and says what it could not take over.
    Migrate {
        /// An AutoscalingRunnerSet, the values of a gha-runner-scale-set, or a RunnerDeployment or RunnerSet with its
        /// HorizontalRunnerAutoscaler; `-` for standard input.
        file: PathBuf,
        /// The pool's name, where the file names no scale set: that of the Helm release.
        #[arg(long)]
        name: Option<String>,
    },
    /// Prints a script with which a shell completes the arguments of kubectl-cudarunner.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

/// What a cluster has the answer to.
#[derive(Subcommand)]
enum Question {
    /// A pool at a glance: what is not as wished, runners, quarantine, verification, failures. Without a name, all pools. Of a
    /// job, the same as `why`.
    Status {
        /// Name of the CudaRunner, or the address of a job on GitHub. Where absent, every CudaRunner, a line each.
        #[arg(value_name = "NAME|JOB")]
        name: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// The fleet at a glance, over every namespace: nodes, devices by use, pools, queues.
    Top {
        #[command(flatten)]
        output: Output,
    },
    /// Why is this job still queued? Of a pool, has the operator look at GitHub, and says what holds it or its jobs. Of a job,
    /// says where it runs or how it ended, which pool would take it, and why it waits.
    Why {
        /// Name of the CudaRunner, or a job, by its address on GitHub or its name. Where absent, every CudaRunner as it
        /// was last seen.
        #[arg(value_name = "NAME|JOB")]
        name: Option<String>,
        /// It is the name of a job, though a CudaRunner has it, too.
        #[arg(long, requires = "name")]
        job: bool,
        /// How long the operator may take to look at GitHub, in seconds; half a second where absent.
        #[arg(long, value_name = "SECONDS", requires = "name")]
        wait: Option<u64>,
        #[command(flatten)]
        output: Output,
    },
    /// The last report of a gate that can still be found.
    Report {
        /// Name of a runner, or of a node.
        #[arg(value_name = "RUNNER|NODE")]
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Has the workflow of spec.verify run again.
    Verify {
        /// Name of the CudaRunner.
        name: String,
        /// Tell each change until it has ended; exit code 0 for green, 1 for red, 2 if it could not be run.
        #[arg(short, long)]
        follow: bool,
        /// How long to follow it.
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        timeout: u64,
    },
    /// Ends the quarantine of a node, in whichever pool has it.
    Release {
        /// Name of a CudaRunner that is kept off the node.
        name: String,
        /// Name of the node.
        node: String,
    },
}

#[derive(Args)]
struct Output {
    /// Print JSON instead of text.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Json,
}

impl Output {
    fn print(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> ExitCode {
        print(&match self.output {
            None => text(),
            Some(Format::Json) => format!("{:#}\n", json()),
        });
        ExitCode::SUCCESS
    }
}

/// A reader that has gone away is no error.
fn print(text: &str) {
    let text: String = text
        .chars()
        .filter(|c| *c == '\n' || !is_hidden(*c))
        .collect();
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

#[tokio::main]
async fn main() -> ExitCode {
    // Only fails where a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Cli { flags, command } = Cli::parse();
    let question = match command {
        Command::Ask(question) => question,
        Command::Migrate { file, name } => return migrate_file(&flags, &file, name),
        Command::Completion { shell } => {
            // Ours, tabs and all.
            let _ = std::io::stdout()
                .lock()
                .write_all(completion(shell).as_bytes());
            return ExitCode::SUCCESS;
        }
    };
    // Who verifies knows 1 for a red run.
    let verifies = matches!(question, Question::Verify { .. });
    match answer(flags, question).await {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {}", clean(&message, 4_096));
            ExitCode::from(if verifies { 2 } else { 1 })
        }
    }
}

/// The resource goes to standard output, and what is said of it beside that.
fn migrate_file(flags: &Flags, file: &Path, name: Option<String>) -> ExitCode {
    let given = migrate::Given {
        name,
        namespace: flags.namespace.clone(),
    };
    match migrate::read(file).and_then(|text| migrate::migrate(&text, &given)) {
        Ok(migrated) => {
            print(&migrated.yaml);
            for note in migrated.notes {
                eprintln!("{note}");
            }
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("error: {}", clean(&message, 4_096));
            ExitCode::from(1)
        }
    }
}

fn completion(shell: Shell) -> String {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

async fn answer(flags: Flags, question: Question) -> Result<ExitCode, String> {
    let pools = flags.connect().await?;
    match question {
        Question::Status {
            name: Some(job),
            output,
        } if is_address(&job) => answer_job(&pools, &job, &output).await,
        Question::Status {
            name: Some(name),
            output,
        } => {
            let pool = pools.get(&name).await?;
            let now = Timestamp::now();
            Ok(output.print(|| status::text(&pool, now), || status::json(&pool)))
        }
        Question::Top { output } => {
            let fleet = top::fleet(&pools, Timestamp::now()).await?;
            let json = || serde_json::to_value(&fleet).unwrap_or_default();
            Ok(output.print(|| top::text(&fleet), json))
        }
        Question::Status { name: None, output } => {
            let all = pools.all().await?;
            let now = Timestamp::now();
            Ok(output.print(
                || status::text_of_all(&all, now),
                || status::json_of_all(&all),
            ))
        }
        Question::Why {
            name,
            job,
            wait,
            output,
        } => {
            let limit = wait.map_or(why::LOOK, Duration::from_secs);
            answer_why(&pools, name.as_deref(), job, limit, &output).await
        }
        Question::Report { name, output } => {
            let found = report::find(&pools, &name).await?;
            let now = Timestamp::now();
            Ok(output.print(|| found.text(now), || found.json.clone()))
        }
        Question::Verify {
            name,
            follow,
            timeout,
        } => run_verification(&pools, &name, follow.then(|| Duration::from_secs(timeout))).await,
        Question::Release { name, node } => {
            let moment = Timestamp::now().to_string();
            release::release(&pools, &name, &node, &moment, &mut print).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Of a pool, of a job, or of all pools.
async fn answer_why(
    pools: &connect::Pools,
    name: Option<&str>,
    is_job: bool,
    limit: Duration,
    output: &Output,
) -> Result<ExitCode, String> {
    let Some(name) = name else {
        let all = why::all(pools, Timestamp::now()).await?;
        return Ok(output.print(|| why::text_of_all(&all), || why::json_of_all(&all)));
    };
    if !is_job
        && !is_address(name)
        && let Some(answer) = why::ask(pools, name, limit).await?
    {
        return Ok(output.print(|| why::text(&answer), || why::json(&answer)));
    }
    answer_job(pools, name, output).await
}

/// Of a job, by its address or its name.
async fn answer_job(
    pools: &connect::Pools,
    job: &str,
    output: &Output,
) -> Result<ExitCode, String> {
    let asked = Asked::parse(job)?;
    let answer = why::job::ask(pools, &asked, Timestamp::now()).await?;
    let json = || serde_json::to_value(&answer).unwrap_or_default();
    Ok(output.print(|| why::job::text(&answer), json))
}

/// Has the workflow run again, and follows it for as long as is said.
async fn run_verification(
    pools: &connect::Pools,
    name: &str,
    follow: Option<Duration>,
) -> Result<ExitCode, String> {
    let asked = Timestamp::now().to_string();
    verify::ask(pools, name, &asked).await?;
    let Some(limit) = follow else {
        print("asked for; `kubectl cudarunner status` shows how far it is\n");
        return Ok(ExitCode::SUCCESS);
    };
    let verdict = verify::follow(pools, name, &asked, limit, &mut print).await?;
    Ok(ExitCode::from(verdict.exit_code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_shell_gets_a_script_with_every_command() {
        for shell in Shell::value_variants() {
            let script = completion(*shell);
            for command in Cli::command().get_subcommands() {
                assert!(
                    script.contains(command.get_name()),
                    "{shell}: {}",
                    command.get_name()
                );
            }
        }
    }

    #[test]
    fn the_namespace_may_follow_the_command() {
        for args in [
            "-n ci status my-pool -o json",
            "status my-pool -o json --namespace ci",
        ] {
            let args = std::iter::once(PROGRAM).chain(args.split(' '));
            let cli = Cli::try_parse_from(args).unwrap();
            assert!(
                matches!(cli.command, Command::Ask(Question::Status { name: Some(name), .. }) if name == "my-pool")
            );
        }
    }
}
