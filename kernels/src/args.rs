//! The command line, and the environment that stands in for it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gate_report::contract::{self, gate};
use gate_report::preflight::Wanted;
use gate_report::{Version, time};

use crate::{host, manual};

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
    /// Asks the driver's management library, in another child.
    #[command(hide = true)]
    Nvml(TestArgs),
    /// Watches the GPUs while jobs run, beside the agent.
    #[command(hide = true)]
    Sample(SampleArgs),
    /// Opens a device file, in another child; the exit code is the error's number.
    #[command(hide = true)]
    Open {
        /// The file.
        path: PathBuf,
    },
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
    pub(crate) managed_memory: Enforcement,
    /// Part of each device's memory that must be free, in percent: what is not free is held outside of this pod. 0 asks for
    /// none. Not asked of shared GPUs and slices, nor where host and device have one memory.
    #[arg(long, env = gate::MIN_FREE_MEMORY_PERCENT, default_value = "90", value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) min_free_memory_percent: u8,
    /// What to make of devices that cannot reach one another's memory.
    #[arg(
        long,
        env = gate::PEER_ACCESS,
        value_enum,
        default_value_t,
        ignore_case = true
    )]
    pub(crate) peer_access: Enforcement,
    /// The GPUs are shared with other pods (time slicing, MPS).
    #[arg(long, env = gate::SHARED)]
    pub(crate) shared: bool,
    /// Memory of each device to write and read back, in MiB, and at least four times its L2 cache; less where little is free,
    /// and at most for a moment. 0 writes none.
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
    /// Run this part of the test alone, once the driver is up and the kernels are loaded.
    #[arg(long, value_enum, value_name = "PART", hide = true)]
    pub(crate) only: Option<Part>,
    /// Folder of the device files.
    #[arg(long, env = "CUDA_SMOKE_DEV_DIR", default_value = "/dev", hide = true)]
    pub(crate) dev_dir: PathBuf,
    /// Folder of the control group.
    #[arg(
        long,
        env = "CUDA_SMOKE_CGROUP_DIR",
        default_value = "/sys/fs/cgroup",
        hide = true
    )]
    pub(crate) cgroup_dir: PathBuf,
    /// What stands before the folders in which the driver's library is looked for.
    #[arg(
        long,
        env = "CUDA_SMOKE_LIBRARY_ROOT",
        default_value = "/",
        hide = true
    )]
    pub(crate) library_root: PathBuf,
}

/// Deadlines of one try; whatever is tried again may take as much again.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Limits {
    /// Longest time until the driver is up, in seconds [default: that of --timeout]
    #[arg(long, env = "CUDA_SMOKE_STARTUP_TIMEOUT_SECONDS", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) startup_timeout: Option<Duration>,
    /// Longest time for the test of one device, in seconds [default: a third of --timeout, at least 10]
    #[arg(long, env = "CUDA_SMOKE_TEST_TIMEOUT_SECONDS", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) test_timeout: Option<Duration>,
    /// Longest time for all of it on one device, in seconds; each further device adds the time of one test [default: 30, and
    /// more on a busy host]
    #[arg(long, env = gate::TIMEOUT_SECONDS, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// How long a busy device, or a service that starts, is waited for and tried again, in seconds, within --timeout.
    #[arg(long, env = "CUDA_SMOKE_WAIT_SECONDS", default_value = "15", value_name = "SECONDS", value_parser = pause)]
    pub(crate) wait: Duration,
}

/// The limits for a number of devices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Times {
    /// Until the driver is up.
    pub(crate) startup: Duration,
    /// For the test of one device.
    pub(crate) test: Duration,
    /// For opening the file of one device, which starts it.
    pub(crate) opening: Duration,
    /// For one try at all of it, where that was set.
    pub(crate) whole: Option<Duration>,
    /// From the first start on, for new tries at what may be over in a moment.
    pub(crate) patience: Duration,
}

impl Limits {
    fn times(&self, devices: u32) -> Times {
        let seconds = self
            .timeout
            .map_or(time::DEFAULT_SECONDS, |limit| limit.as_secs());
        let of_a_try = Duration::from_secs(time::of_a_try(seconds, devices));
        let of_a_test = Duration::from_secs(time::of_a_test(seconds));
        let whole = self.timeout.map(|_| of_a_try);
        let within = |limit: Duration| whole.map_or(limit, |whole| whole.min(limit));
        Times {
            startup: within(self.startup_timeout.unwrap_or(of_a_try)),
            test: within(self.test_timeout.unwrap_or(of_a_test)),
            opening: within(of_a_test),
            whole,
            patience: within(self.wait),
        }
    }
}

/// More devices than a node has: what is asked for must not become a time that no clock can count.
const MOST_DEVICES: u32 = 256;

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
    /// This program, which also watches the GPUs during jobs.
    #[arg(long, env = gate::PROGRAM, default_value = contract::GATE_PROGRAM, hide = true)]
    pub(crate) program: PathBuf,
    /// Whether the GPUs are watched during jobs.
    #[arg(long, env = gate::TELEMETRY, value_enum, default_value_t, ignore_case = true, hide = true)]
    pub(crate) telemetry: Telemetry,
    #[command(flatten)]
    pub(crate) pod: PodArgs,
}

/// Whether the GPUs are watched during jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Telemetry {
    /// They are.
    #[default]
    Enabled,
    /// They are not.
    Disabled,
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

/// `sample`.
#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    /// Memory-backed folder that the pod's containers share.
    #[arg(long, env = gate::REGISTRATION_DIR, default_value = contract::REGISTRATION_DIR, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// A job runs, whatever the folder says.
    #[arg(long)]
    pub(crate) now: bool,
    /// The GPUs are shared with other pods.
    #[arg(long, env = gate::SHARED)]
    pub(crate) shared: bool,
    /// Folder below which the driver's libraries are looked for.
    #[arg(long, default_value = "/", hide = true)]
    pub(crate) library_root: PathBuf,
}

/// A part of the test that can be run alone: on real hardware, to see which one a fault or the time is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The first kernel's round trip.
    Kernel,
    /// The walk through memory, and the copies.
    MemoryWalk,
    /// The tensor cores.
    TensorCores,
    /// Managed memory.
    ManagedMemory,
    /// Memory from the device's pool.
    MemoryPool,
    /// Several devices with one another.
    Peers,
    /// What the management library says.
    Health,
}

/// What to make of devices that lack something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Enforcement {
    /// Say so in the report.
    #[default]
    Report,
    /// Fail.
    Require,
}

impl Enforcement {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Require => "require",
        }
    }
}

impl TestArgs {
    /// The arguments that make a child see the same.
    pub(crate) fn to_command_line(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = [
            (
                "--min-compute-capability",
                self.min_compute_capability.to_string(),
            ),
            ("--min-cuda-version", self.min_cuda_version.to_string()),
            ("--managed-memory", self.managed_memory.as_str().to_owned()),
            ("--memory-walk-mib", self.memory_walk_mib.to_string()),
            (
                "--min-free-memory-percent",
                self.min_free_memory_percent.to_string(),
            ),
            ("--peer-access", self.peer_access.as_str().to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.into(), value.into()])
        .collect();
        for (name, folder) in [
            ("--dev-dir", &self.dev_dir),
            ("--library-root", &self.library_root),
        ] {
            line.extend([name.into(), folder.into()]);
        }
        if let Some(count) = self.expected_devices {
            line.extend(["--expected-devices".into(), count.to_string().into()]);
        }
        if let Some(floor) = self.min_copy_gib_per_second {
            line.extend(["--min-copy-gib-per-second".into(), floor.to_string().into()]);
        }
        if self.is_shared() {
            line.push("--shared".into());
        }
        if let Some(part) = self.only.and_then(|part| part.to_possible_value()) {
            line.extend(["--only".into(), part.get_name().into()]);
        }
        line
    }

    /// Whether this part of the test is run.
    pub(crate) fn has(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }

    /// Whether others use the GPUs too.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared || host::has_mps()
    }

    /// The limits, for as many devices as the container was given.
    pub(crate) fn times(&self) -> Times {
        let files = u32::try_from(host::device_files(&self.dev_dir).len()).unwrap_or(u32::MAX);
        let devices = files.max(self.expected_devices.unwrap_or(1));
        self.limits.times(devices.min(MOST_DEVICES))
    }
}

/// A whole number will do here.
fn version(text: &str) -> Result<Version, &'static str> {
    let whole = if text.contains('.') { "" } else { ".0" };
    format!("{text}{whole}")
        .parse()
        .map_err(|_| "write it as two numbers with a dot, such as 7.0")
}

/// Longer than anybody waits for a GPU.
const LONGEST: u64 = 24 * 60 * 60;

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=LONGEST) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!(
            "write a whole number of seconds from 1 to {LONGEST}"
        )),
    }
}

fn pause(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    seconds(text)
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
    fn the_limits_follow_from_one_figure_and_the_number_of_devices() {
        let times = |line: &str, devices| {
            let line = ["cuda-smoke", "check"]
                .into_iter()
                .chain(line.split_whitespace());
            let Command::Check(check) = Cli::try_parse_from(line).unwrap().command else {
                panic!("not a check")
            };
            let times = check.test.limits.times(devices);
            let whole = times.whole.map(|whole| whole.as_secs());
            let [startup, test, patience] =
                [times.startup, times.test, times.patience].map(|limit| limit.as_secs());
            (startup, test, whole, patience)
        };
        assert_eq!(times("", 1), (30, 10, None, 15));
        assert_eq!(times("", 8), (100, 10, None, 15));
        assert_eq!(times("--timeout 30", 8), (100, 10, Some(100), 15));
        assert_eq!(times("--timeout 120", 1), (120, 40, Some(120), 15));
        assert_eq!(times("--timeout 5", 1), (5, 5, Some(5), 5));
        assert_eq!(
            times("--startup-timeout 60 --test-timeout 20 --wait 0", 2),
            (60, 20, None, 0)
        );
        assert_eq!(
            times("--startup-timeout 60 --timeout 40", 1),
            (40, 14, Some(40), 15)
        );
    }

    #[test]
    fn no_limit_is_too_long_for_a_clock() {
        for wrong in ["0", "-1", "86401", "18446744073709551615", "soon"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(pause("0"), Ok(Duration::ZERO));
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
            "--min-free-memory-percent",
            "75",
            "--peer-access",
            "Require",
            "--min-copy-gib-per-second",
            "2.5",
            "--only",
            "memory-walk",
            "--dev-dir",
            "/elsewhere/dev",
            "--library-root",
            "/elsewhere",
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
        assert_eq!(test.managed_memory, Enforcement::Require);
        assert!(test.shared);
        assert_eq!(test.only, Some(Part::MemoryWalk));
        assert_eq!(test.memory_walk_mib, 8);
        assert_eq!(test.min_free_memory_percent, 75);
        assert_eq!(test.peer_access, Enforcement::Require);
        assert_eq!(test.dev_dir, PathBuf::from("/elsewhere/dev"));
        assert_eq!(test.library_root, PathBuf::from("/elsewhere"));
        assert_eq!(test.min_copy_gib_per_second, Some(2.5));
        assert_eq!(test.min_compute_capability.to_string(), "8.0");
        assert_eq!(test.min_cuda_version.to_string(), "12.4");
    }
}
