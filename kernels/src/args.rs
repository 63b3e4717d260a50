//! The command line, and the environment that stands in for it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gate_report::Version;
use gate_report::contract::{self, gate};
use gate_report::preflight::Wanted;

use crate::manual;

/// Proves that GPUs compute.
#[derive(Debug, Parser)]
#[command(
    version,
    help_template = manual::TEMPLATE,
    before_long_help = manual::DESCRIPTION,
    after_help = manual::EXIT_CODES,
    after_long_help = manual::end(),
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Test the GPUs of this host or container and print the report.
    Check(CheckArgs),
    /// Bring what the pod's other containers need, and exchange the pod's token for a ticket.
    Prepare(PrepareArgs),
    /// Test the GPUs of this pod, and report to the registrar until the image is changed.
    Gate(Box<GateArgs>),
    /// The test itself, in the supervisor's child process.
    #[command(hide = true)]
    Child(TestArgs),
}

/// `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) test: TestArgs,
}

/// What the test asks of the devices.
#[derive(Clone, Debug, Args)]
pub(crate) struct TestArgs {
    /// How many devices there must be: fewer is a fault, and more is one too [default: any number]
    #[arg(long, env = gate::EXPECTED_DEVICES, value_name = "N")]
    pub(crate) expected_devices: Option<u32>,
    /// Lowest compute capability that will do.
    #[arg(
        long,
        env = gate::MIN_COMPUTE_CAPABILITY,
        default_value = "7.0",
        value_name = "X.Y",
        value_parser = version
    )]
    pub(crate) min_compute_capability: Version,
    /// Lowest CUDA version that the driver must support.
    #[arg(
        long,
        env = gate::MIN_CUDA_VERSION,
        default_value = "12.0",
        value_name = "X.Y",
        value_parser = version
    )]
    pub(crate) min_cuda_version: Version,
    /// What to make of a device without concurrent managed access.
    #[arg(
        long,
        env = gate::MANAGED_MEMORY,
        value_enum,
        default_value_t,
        ignore_case = true
    )]
    pub(crate) managed_memory: ManagedMemory,
    /// The GPUs are shared with other pods (time slicing, MPS).
    #[arg(long, env = gate::SHARED)]
    pub(crate) shared: bool,
    /// Memory of each device to write and read back, in MiB; less where little is free, and at most for a moment.
    #[arg(
        long,
        env = "CUDA_SMOKE_MEMORY_WALK_MIB",
        default_value = "64",
        value_name = "MIB"
    )]
    pub(crate) memory_walk_mib: u32,
    /// Lowest speed of a copy between host and device that will do, in GiB per second [default: any]
    #[arg(long, env = "CUDA_SMOKE_MIN_COPY_GIB_PER_SECOND", value_name = "GIB/S", value_parser = speed)]
    pub(crate) min_copy_gib_per_second: Option<f64>,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Folder of the device files.
    #[arg(long, env = "CUDA_SMOKE_DEV_DIR", default_value = "/dev", hide = true)]
    pub(crate) dev_dir: PathBuf,
}

/// Deadlines of one try; a second try has as much again.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Limits {
    /// Longest time until the driver is up, in seconds [default: --timeout where it is given, otherwise 30]
    #[arg(long, env = "CUDA_SMOKE_STARTUP_TIMEOUT_SECONDS", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) startup_timeout: Option<Duration>,
    /// Longest time for the test of one device, in seconds.
    #[arg(long, env = "CUDA_SMOKE_TEST_TIMEOUT_SECONDS", default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) test_timeout: Duration,
    /// Longest time for all of it, start-up included, in seconds [default: no limit of its own]
    #[arg(long, env = gate::TIMEOUT_SECONDS, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

impl Limits {
    /// Until the driver is up.
    pub(crate) fn startup(&self) -> Duration {
        self.within(
            self.startup_timeout
                .or(self.timeout)
                .unwrap_or(STARTUP_TIMEOUT),
        )
    }

    /// For the test of one device.
    pub(crate) fn test(&self) -> Duration {
        self.within(self.test_timeout)
    }

    fn within(&self, limit: Duration) -> Duration {
        self.timeout.map_or(limit, |whole| whole.min(limit))
    }
}

/// A cold device needs some seconds, and a node that has just started a driver many more.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the pod's files are, and whom it asks.
#[derive(Debug, Args)]
pub(crate) struct PodArgs {
    /// The registrar, https://ADDRESS:PORT.
    #[arg(long, env = gate::REGISTRAR_URL, value_name = "URL")]
    pub(crate) registrar_url: String,
    /// Certificates (PEM text, not a path) of the authorities that alone may vouch for the registrar.
    #[arg(
        long,
        env = gate::REGISTRAR_CA,
        hide_env_values = true,
        value_name = "PEM"
    )]
    pub(crate) registrar_ca: String,
    /// Memory-backed folder that the pod's containers share.
    #[arg(
        long,
        env = gate::REGISTRATION_DIR,
        default_value = contract::REGISTRATION_DIR,
        value_name = "DIR"
    )]
    pub(crate) registration_dir: PathBuf,
    /// Folder for the agent alone, where jobs run in a container of their own.
    #[arg(long, env = gate::AGENT_DIR, value_name = "DIR")]
    pub(crate) agent_dir: Option<PathBuf>,
    /// The container's termination message.
    #[arg(long, env = gate::TERMINATION_LOG, default_value = contract::TERMINATION_LOG, value_name = "FILE")]
    pub(crate) termination_log: PathBuf,
    /// Longest time to wait for the registrar, in seconds.
    #[arg(long, env = gate::REGISTRATION_TIMEOUT_SECONDS, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) registration_timeout: Duration,
    /// Node of this pod, for the report.
    #[arg(long, env = gate::NODE, hide = true)]
    pub(crate) node: Option<String>,
    /// Name of this pod, for the report.
    #[arg(long, env = gate::POD, hide = true)]
    pub(crate) pod: Option<String>,
    /// Namespace of this pod, for the report.
    #[arg(long, env = gate::NAMESPACE, hide = true)]
    pub(crate) namespace: Option<String>,
}

/// `prepare`.
#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    /// File with the service-account token; read anew for every request.
    #[arg(
        long,
        env = gate::TOKEN_FILE,
        default_value = contract::TOKEN_FILE,
        value_name = "FILE"
    )]
    pub(crate) token_file: PathBuf,
    /// The program that becomes the first process of the pod's other containers.
    #[arg(long, env = gate::RUNNER_INIT, default_value = contract::RUNNER_INIT_PROGRAM, hide = true)]
    pub(crate) runner_init: PathBuf,
    #[command(flatten)]
    pub(crate) pod: PodArgs,
}

/// `gate`.
#[derive(Debug, Args)]
pub(crate) struct GateArgs {
    /// What the runner's image and network must offer, as JSON.
    #[arg(long, env = gate::PREFLIGHT, value_name = "JSON", value_parser = wanted)]
    pub(crate) preflight: Option<Wanted>,
    #[command(flatten)]
    pub(crate) pod: PodArgs,
    #[command(flatten)]
    pub(crate) test: TestArgs,
}

/// What to make of a device without concurrent managed access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ManagedMemory {
    /// Say so in the report.
    #[default]
    Report,
    /// Fail.
    Require,
}

impl TestArgs {
    /// The arguments that make a child see the same.
    pub(crate) fn to_command_line(&self) -> Vec<OsString> {
        let managed = match self.managed_memory {
            ManagedMemory::Report => "report",
            ManagedMemory::Require => "require",
        };
        let mut line: Vec<OsString> = [
            (
                "--min-compute-capability",
                self.min_compute_capability.to_string(),
            ),
            ("--min-cuda-version", self.min_cuda_version.to_string()),
            ("--managed-memory", managed.to_owned()),
            ("--memory-walk-mib", self.memory_walk_mib.to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.into(), value.into()])
        .collect();
        if let Some(count) = self.expected_devices {
            line.extend(["--expected-devices".into(), count.to_string().into()]);
        }
        if let Some(floor) = self.min_copy_gib_per_second {
            line.extend(["--min-copy-gib-per-second".into(), floor.to_string().into()]);
        }
        if self.shared {
            line.push("--shared".into());
        }
        line
    }
}

/// A whole number will do here.
fn version(text: &str) -> Result<Version, &'static str> {
    let whole = if text.contains('.') { "" } else { ".0" };
    format!("{text}{whole}")
        .parse()
        .map_err(|_| "write it as two numbers with a dot, such as 7.0")
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("write a whole number of seconds, at least 1".into()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if f64::is_finite(speed) && speed > 0.0 => Ok(speed),
        _ => Err("write a number above 0, such as 3.5".into()),
    }
}

fn wanted(text: &str) -> Result<Wanted, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Reads the command line and the environment.
pub(crate) fn parse() -> Result<Command, clap::Error> {
    Cli::try_parse().map(|cli| cli.command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_version_may_be_a_whole_number() {
        assert_eq!(version("12.4"), Ok(Version::new(12, 4)));
        assert_eq!(version("7"), Ok(Version::new(7, 0)));
        assert!(version("sm_70").is_err());
    }

    #[test]
    fn start_up_and_test_have_limits_of_their_own_within_the_whole() {
        let limits = |line: &[&str]| {
            let line = ["cuda-smoke", "check"].iter().chain(line);
            let Command::Check(check) = Cli::try_parse_from(line).unwrap().command else {
                panic!("not a check")
            };
            let limits = check.test.limits;
            (limits.startup().as_secs(), limits.test().as_secs())
        };
        assert_eq!(limits(&[]), (30, 10));
        assert_eq!(limits(&["--timeout", "120"]), (120, 10));
        assert_eq!(limits(&["--timeout", "5"]), (5, 5));
        assert_eq!(
            limits(&["--startup-timeout", "60", "--test-timeout", "20"]),
            (60, 20)
        );
        assert_eq!(
            limits(&["--startup-timeout", "60", "--timeout", "40"]),
            (40, 10)
        );
    }

    #[test]
    fn a_child_sees_what_its_supervisor_was_told() {
        let line = [
            "cuda-smoke",
            "check",
            "--expected-devices",
            "2",
            "--managed-memory",
            "Require",
            "--shared",
            "--min-compute-capability",
            "8.0",
            "--min-cuda-version",
            "12.4",
            "--memory-walk-mib",
            "8",
            "--min-copy-gib-per-second",
            "2.5",
        ];
        let Command::Check(check) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not a check")
        };
        let child = ["cuda-smoke".into(), "child".into()]
            .into_iter()
            .chain(check.test.to_command_line());
        let Command::Child(test) = Cli::try_parse_from(child).unwrap().command else {
            panic!("not a child")
        };
        assert_eq!(test.expected_devices, Some(2));
        assert_eq!(test.managed_memory, ManagedMemory::Require);
        assert!(test.shared);
        assert_eq!(test.memory_walk_mib, 8);
        assert_eq!(test.min_copy_gib_per_second, Some(2.5));
        assert_eq!(test.min_compute_capability.to_string(), "8.0");
        assert_eq!(test.min_cuda_version.to_string(), "12.4");
    }
}
