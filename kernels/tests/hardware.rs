//! The gate on a machine with a GPU: see `docs/hardware.md`. It runs where there is no cargo, so it is the gate's program as
//! well. Without a GPU everything is ignored.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests, with their helpers"
)]

#[path = "hardware/driver.rs"]
mod driver;
#[path = "hardware/steps.rs"]
mod steps;

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gate_report::{Class, Device, DriverModel, Report};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

/// The name under which this file is the gate's program, too: one file is all that another machine needs.
const GATE: &str = "cuda-smoke";

/// What the words of a trial begin with that does not apply to the machine.
const LEFT_OUT: &str = "left out: ";

/// What a trial found, in words; or what is wrong.
type Found = Result<String, String>;
type Run = fn(&Machine) -> Found;

/// Trials in their order, and the program without which each is ignored.
const TRIALS: &[(&str, &str, Run)] = &[
    ("first_start", "", start),
    ("second_start", "", warm_start),
    ("every_step_on_every_device", "", steps::every_one),
    ("each_part_alone", "", steps::each_alone),
    ("options", "", options),
    ("ptx_that_is_wrong_or_too_new", "", ptx),
    ("memory_that_another_process_holds", "", memory_taken),
    ("two_processes_at_once", "", two_at_once),
    ("forms_of_cuda_visible_devices", "", visible_devices),
    ("a_killed_child", "", killed_child),
    ("mps", "nvidia-cuda-mps-control", mps),
    ("nvml_beside_nvidia_smi", "nvidia-smi", beside_smi),
    ("afterwards_all_is_well", "", start),
];

fn main() -> ExitCode {
    if env::current_exe().is_ok_and(|own| own.ends_with(GATE)) {
        return cuda_smoke::smoke();
    }
    let words: Vec<_> = env::args().collect();
    if let [_, helper, what, value] = words.as_slice()
        && helper == driver::HELPER
    {
        return driver::help(what, value);
    }
    let mut arguments = Arguments::from_args();
    // One at a time: they share the GPUs.
    arguments.test_threads = Some(1);
    let has_gpu = has_gpu(&dev_dir());
    let machine = Arc::new(Machine::new());
    if has_gpu && !arguments.list {
        machine.install();
    }
    let trials = TRIALS.iter().map(|(name, needs, run)| {
        let machine = Arc::clone(&machine);
        let is_there = needs.is_empty() || in_path(needs);
        let why = match (has_gpu, is_there) {
            (false, _) => "no GPU".to_owned(),
            (true, false) => format!("no {needs}"),
            (true, true) => String::new(),
        };
        let body = move || machine.record(name, *run).map_err(Failed::from);
        Trial::test(*name, body)
            .with_ignored_flag(!why.is_empty())
            .with_kind(why)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if !has_gpu {
        println!("ignored: no GPU. Nothing was tested and nothing is proven.");
    } else if !arguments.list {
        machine.print();
    }
    let _ = fs::remove_dir_all(&machine.folder);
    conclusion.exit_code()
}

/// Where the device files are; the gate's hidden option.
fn dev_dir() -> PathBuf {
    env::var_os("CUDA_SMOKE_DEV_DIR").map_or_else(|| "/dev".into(), PathBuf::from)
}

fn has_gpu(dev: &Path) -> bool {
    let is_device = |name: &str| {
        let number = name.strip_prefix("nvidia").unwrap_or_default();
        name == "dxg" || number.parse::<u32>().is_ok()
    };
    let entries = fs::read_dir(dev).into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|entry| entry.file_name().to_str().is_some_and(is_device))
}

fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// This machine, and what was found on it.
struct Machine {
    folder: PathBuf,
    program: PathBuf,
    rows: Mutex<Vec<Value>>,
    /// The latest report that passed.
    passed: Mutex<Option<Report>>,
}

impl Machine {
    fn new() -> Self {
        let folder = env::temp_dir().join(format!("hardware-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join(GATE);
        Self {
            folder,
            program,
            rows: Mutex::default(),
            passed: Mutex::default(),
        }
    }

    /// Copies this file to where it is the gate's program.
    fn install(&self) {
        fs::copy(env::current_exe().unwrap(), &self.program).unwrap();
    }

    fn record(&self, name: &str, run: Run) -> Result<(), String> {
        let started = Instant::now();
        let found = run(self);
        let (outcome, words) = match &found {
            Ok(words) if words.starts_with(LEFT_OUT) => ("left out", words),
            Ok(words) => ("ok", words),
            Err(words) => ("failed", words),
        };
        let ms = started.elapsed().as_millis();
        let row = json!({"trial": name, "outcome": outcome, "ms": ms, "found": words});
        self.rows.lock().unwrap().push(row);
        found.map(drop)
    }

    /// `cuda-smoke check --json`, to be started.
    fn smoke(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["check", "--json"]).stdout(Stdio::piped());
        command
    }

    fn check(&self, change: impl FnOnce(&mut Command)) -> Result<(i32, Report), String> {
        let mut command = self.smoke();
        change(&mut command);
        let output = command.output().map_err(|error| error.to_string())?;
        read(output.status.code(), &output.stdout)
    }

    /// One that must pass.
    fn passes(&self, change: impl FnOnce(&mut Command)) -> Result<Report, String> {
        let (code, report) = self.check(change)?;
        if code != 0 {
            return Err(format!("exit code {code}: {}", told(&report)));
        }
        *self.passed.lock().unwrap() = Some(report.clone());
        Ok(report)
    }

    fn latest(&self) -> Result<Report, String> {
        let latest = self.passed.lock().unwrap().clone();
        latest.map_or_else(|| self.passes(|_| {}), Ok)
    }

    /// The rows for docs/hardware.md, faults first, and everything as JSON.
    fn print(&self) {
        let mut rows = self.rows.lock().unwrap().clone();
        rows.sort_by_key(|row| row["outcome"] == "ok");
        let report = self.passed.lock().unwrap().clone().unwrap_or_default();
        let driver = report.driver.clone().unwrap_or_default();
        let gpus: Vec<_> = report.devices.iter().map(|one| one.name.as_str()).collect();
        let good = rows.iter().filter(|row| row["outcome"] == "ok").count();
        println!("\nFor docs/hardware.md:\n");
        println!(
            "| {} | {} | {} | {good} of {} |",
            gpus.join(", "),
            driver.kernel_version.unwrap_or_else(|| "?".into()),
            driver.cuda_version.unwrap_or_else(|| "?".into()),
            rows.len()
        );
        println!("\n| trial | outcome | ms | found |\n|---|---|---|---|");
        for row in &rows {
            let word = |name: &str| {
                row[name]
                    .as_str()
                    .unwrap_or_default()
                    .replace(['|', '\n'], " ")
            };
            println!(
                "| `{}` | {} | {} | {} |",
                word("trial"),
                word("outcome"),
                row["ms"],
                word("found")
            );
        }
        println!("\n{}", json!({"trials": rows, "report": report}));
    }
}

fn read(code: Option<i32>, stdout: &[u8]) -> Result<(i32, Report), String> {
    let code = code.ok_or("the gate itself was killed")?;
    let report = serde_json::from_slice(stdout).map_err(|error| format!("no report: {error}"))?;
    Ok((code, report))
}

/// The failure, in short.
fn told(report: &Report) -> String {
    let failure = report.failure.as_ref();
    failure.map_or_else(
        || "passed".into(),
        |failure| {
            format!(
                "{} ({}): {}",
                failure.code_name, failure.class, failure.message
            )
        },
    )
}

fn demand(holds: bool, words: String) -> Found {
    if holds { Ok(words) } else { Err(words) }
}

fn start(machine: &Machine) -> Found {
    let report = machine.passes(|_| {})?;
    let times = &report.timings;
    Ok(format!(
        "{} devices, start-up {:.0} ms, all {:.0} ms; warnings: {:?}",
        report.devices.len(),
        times.init_ms,
        times.total_ms,
        report.warnings
    ))
}

/// Milliseconds that the test of one warm device may take.
const TEST: f64 = 2_000.0;
/// Milliseconds for each further one: eight have 5 s.
const TEST_OF_ANOTHER: f64 = 3_000.0 / 7.0;
/// Milliseconds for which the tensor cores of a device multiply. They are meant to for 50 to 100.
const TENSOR_LOAD: std::ops::RangeInclusive<f64> = 40.0..=150.0;

/// Once more, with a driver that is up: as fast as is promised.
fn warm_start(machine: &Machine) -> Found {
    let words = start(machine)?;
    let report = machine.latest()?;
    let further = u32::try_from(report.devices.len().saturating_sub(1)).unwrap_or(u32::MAX);
    let limit = TEST + TEST_OF_ANOTHER * f64::from(further);
    let took = report.timings.test_ms;
    let loads: Vec<_> = report
        .devices
        .iter()
        .map(|one| one.tensor_load_ms)
        .collect();
    let is_loaded = |load: &Option<f64>| load.is_some_and(|ms| TENSOR_LOAD.contains(&ms));
    demand(
        took <= limit && loads.iter().all(is_loaded),
        format!(
            "{words}; test {took:.0} ms, must be {limit:.0} at most; load of the tensor cores {loads:?} ms, must be {TENSOR_LOAD:?}"
        ),
    )
}

fn is_under_windows(report: &Report) -> bool {
    let model = report.driver.as_ref().and_then(|driver| driver.model);
    model == Some(DriverModel::Wsl2)
}

fn is_slice(device: &Device) -> bool {
    device.uuid.starts_with("MIG-")
}

fn options(machine: &Machine) -> Found {
    let mut found = vec![];
    for line in ["--memory-walk-mib 0", "--memory-walk-mib 1024", "--shared"] {
        let report = machine.passes(|smoke| {
            smoke.args(line.split(' '));
        })?;
        found.push(format!("{line}: {:.0} ms", report.timings.total_ms));
    }
    let (code, report) = machine.check(|smoke| {
        smoke.args(["--min-compute-capability", "99.0"]);
    })?;
    found.push(format!("too old: {code}"));
    demand(
        code == 14
            && report
                .failure
                .is_some_and(|failure| failure.class == Class::Unsupported),
        found.join(", "),
    )
}

fn ptx(_: &Machine) -> Found {
    let code = |what| driver::code_of("ptx", what);
    let codes = [code("right")?, code("wrong")?, code("new")?];
    demand(
        codes == [0, 218, 222],
        format!("right, wrong, too new: {codes:?}"),
    )
}

/// Why nobody asks how much of a device's memory is free.
fn is_not_asked(device: &Device, report: &Report) -> Option<&'static str> {
    let reasons = [
        (device.integrated == Some(true), "its memory is the host's"),
        (
            device.host_page_tables == Some(true),
            "the host uses its memory as well",
        ),
        (is_slice(device), "it is a slice"),
        (is_under_windows(report), "Windows uses its memory as well"),
    ];
    let reason = reasons.into_iter().find(|(holds, _)| *holds);
    reason.map(|(_, why)| why)
}

fn memory_taken(machine: &Machine) -> Found {
    let before = machine.latest()?;
    let first = before.devices.first().ok_or("no device")?;
    if let Some(why) = is_not_asked(first, &before) {
        return Ok(format!("{LEFT_OUT}{}: {why}", first.name));
    }
    let mut holder = driver::helper("hold", "95")
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut line = String::new();
    let stdout = holder.stdout.take().ok_or("no output")?;
    let held = BufReader::new(stdout).read_line(&mut line);
    let result = machine.check(|_| {});
    // It lets go when its input ends.
    drop(holder.stdin.take());
    let _ = holder.wait();
    held.map_err(|error| error.to_string())?;
    if line.trim() != "0" {
        return Err(format!("the helper could not take the memory: {line}"));
    }
    let (code, report) = result?;
    let name = report
        .failure
        .as_ref()
        .map(|failure| failure.code_name.as_str());
    demand(
        code == 13 && name == Some("MemoryTaken"),
        format!("{code}, {}", told(&report)),
    )
}

fn two_at_once(machine: &Machine) -> Found {
    let children = [(); 2].map(|()| machine.smoke().spawn());
    let mut found = vec![];
    let mut good = true;
    for child in children {
        let output = child.and_then(std::process::Child::wait_with_output);
        let output = output.map_err(|error| error.to_string())?;
        let (code, report) = read(output.status.code(), &output.stdout)?;
        good &= code == 0;
        found.push(told(&report));
    }
    demand(good, found.join("; "))
}

fn visible_devices(machine: &Machine) -> Found {
    let report = machine.latest()?;
    let uuid = report.devices.first().ok_or("no device")?.uuid.clone();
    let short: String = uuid.chars().take(12).collect();
    let mut found = vec![];
    let mut good = true;
    for (form, devices) in [
        ("0", 1),
        (uuid.as_str(), 1),
        (&short, 1),
        ("", 0),
        ("-1", 0),
        ("99", 0),
    ] {
        let (code, report) = machine.check(|smoke| {
            smoke.env("CUDA_VISIBLE_DEVICES", form);
        })?;
        let blames = matches!(code, 12 | 13);
        good &= !blames && (code == 0) == (devices == 1);
        good &= code != 0 || report.devices.len() == devices;
        let name = report.failure.map(|failure| failure.code_name);
        found.push(format!("{form:?}: {code} {}", name.unwrap_or_default()));
    }
    demand(good, found.join(", "))
}

/// The gate's child that tests, killed while it does.
fn killed_child(machine: &Machine) -> Found {
    let child = machine.smoke().spawn().map_err(|error| error.to_string())?;
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let end = Instant::now() + Duration::from_secs(10);
    let mut killed = None;
    while killed.is_none() && Instant::now() < end {
        killed = fs::read_to_string(&children)
            .unwrap_or_default()
            .split_whitespace()
            .find(|process| {
                let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
                line.split(|byte| *byte == 0).nth(1) == Some(b"child")
            })
            .map(ToOwned::to_owned);
        thread::yield_now();
    }
    let killed = killed.ok_or("no child was seen")?;
    let status = Command::new("kill").args(["-KILL", &killed]).status();
    status.map_err(|error| error.to_string())?;
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    let (code, report) = read(output.status.code(), &output.stdout)?;
    demand(
        code == 0 && report.attempts == 2,
        format!("{code} after {} tries: {}", report.attempts, told(&report)),
    )
}

fn mps(machine: &Machine) -> Found {
    let folder = machine.folder.join("mps");
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let sh = |line: &str| {
        let mut sh = Command::new("sh");
        sh.args(["-c", line])
            .env("CUDA_MPS_PIPE_DIRECTORY", &folder)
            .env("CUDA_MPS_LOG_DIRECTORY", &folder);
        sh.status().is_ok_and(|status| status.success())
    };
    if !sh("nvidia-cuda-mps-control -d") {
        return Ok(format!("{LEFT_OUT}nvidia-cuda-mps-control does not start"));
    }
    // It is not told that the GPU is shared: the variable says so.
    let result = machine.check(|smoke| {
        smoke.env("CUDA_MPS_PIPE_DIRECTORY", &folder);
    });
    sh("echo quit | nvidia-cuda-mps-control");
    let (code, report) = result?;
    // A shared GPU has no load.
    let mut devices = report.devices.iter();
    let is_seen = devices.all(|one| one.tensor_load_ms.is_none());
    demand(
        code == 0 && is_seen,
        format!("{code}, {}; taken for shared: {is_seen}", told(&report)),
    )
}

fn beside_smi(machine: &Machine) -> Found {
    const QUERY: &str = "--query-gpu=uuid,pcie.link.width.current,pcie.link.width.max,ecc.errors.uncorrected.volatile.total,mig.mode.current";
    let report = machine.latest()?;
    let health = report.health.ok_or("NVML says nothing")?;
    let mut smi = Command::new("nvidia-smi");
    let output = smi.args([QUERY, "--format=csv,noheader,nounits"]).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut compared = 0;
    for line in text.lines() {
        let cells: Vec<_> = line.split(',').map(str::trim).collect();
        let [uuid, width, most, ecc, mig] = cells.as_slice() else {
            return Err(format!("nvidia-smi says {line}"));
        };
        let Some(ours) = health.devices.iter().find(|one| one.uuid == *uuid) else {
            continue;
        };
        compared += 1;
        let number = |value: Option<u64>| value.map(|value| value.to_string());
        let pairs = [
            (*width, number(ours.pcie_width.map(u64::from))),
            (*most, number(ours.pcie_max_width.map(u64::from))),
            (*ecc, number(ours.uncorrected_ecc_errors)),
            (
                *mig,
                ours.mig
                    .map(|on| if on { "Enabled" } else { "Disabled" }.to_owned()),
            ),
        ];
        for (theirs, ours) in pairs {
            let theirs = Some(theirs.to_owned()).filter(|text| !text.starts_with('['));
            if theirs != ours {
                return Err(format!(
                    "{uuid}: nvidia-smi says {theirs:?}, we say {ours:?}"
                ));
            }
        }
    }
    let facts: Vec<_> = health
        .devices
        .iter()
        .map(gate_report::DeviceHealth::facts)
        .collect();
    demand(
        compared > 0,
        format!("{compared} GPUs agree: {}", facts.join("; ")),
    )
}
