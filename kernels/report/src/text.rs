//! The report for people.

use std::fmt::{self, Write};

use crate::preflight::{CheckOutcome, PreflightFinding};
use crate::{Device, Peers, Report, Step, Warning};

impl Report {
    /// The report as text, with a line break at its end.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write(&mut text, self);
        text
    }
}

fn write(out: &mut String, report: &Report) -> fmt::Result {
    writeln!(out, "cuda-smoke {}", report.version)?;
    write_machine(out, report)?;
    for device in &report.devices {
        write_device(out, device, &report.warnings)?;
    }
    for health in report.health.iter().flat_map(|health| &health.devices) {
        writeln!(out, "health    {}: {}", health.uuid, health.facts())?;
    }
    if let Some(peers) = &report.peers {
        write_peers(out, peers)?;
    }
    for warning in &report.warnings {
        writeln!(out, "\nwarning: {}", warning.message)?;
    }
    for finding in report.preflight.iter().flat_map(|p| &p.findings) {
        write_finding(out, finding)?;
    }
    match &report.failure {
        None => {
            let count = report.devices.len();
            writeln!(
                out,
                "\nPASSED: {count} device{} in {:.0} ms (of the driver's: start-up {:.0} ms, clean-up {:.0} ms)",
                if count == 1 { "" } else { "s" },
                report.timings.total_ms,
                report.timings.init_ms,
                report.timings.teardown_ms,
            )
        }
        Some(failure) => {
            write!(
                out,
                "\nFAILED: {} (exit code {})",
                failure.class,
                report.exit_code()
            )?;
            if let Some(device) = failure.device {
                write!(out, ", device {device}")?;
            }
            if let Some(uuid) = &failure.uuid {
                write!(out, " {uuid}")?;
            }
            writeln!(out, ", step: {}, {}", failure.step, failure.code_name)?;
            writeln!(out, "  What:  {}", failure.message)?;
            writeln!(out, "  To do: {}", failure.advice)
        }
    }
}

/// The machine and its driver.
fn write_machine(out: &mut String, report: &Report) -> fmt::Result {
    if let Some(host) = &report.host {
        let (arch, page) = (&host.architecture, host.page_size_bytes >> 10);
        writeln!(out, "host      {arch}, pages of {page} KiB")?;
    }
    if let Some(driver) = &report.driver
        && let Some(library) = &driver.library
    {
        write!(out, "driver    {library}")?;
        if let Some(version) = &driver.cuda_version {
            write!(out, ", CUDA {version}")?;
        }
        if let Some(version) = &driver.kernel_version {
            write!(out, ", kernel module {version}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn write_finding(out: &mut String, finding: &PreflightFinding) -> fmt::Result {
    let word = match finding.outcome {
        CheckOutcome::Ok => "ok",
        CheckOutcome::Warning => "warning",
        CheckOutcome::Failed | CheckOutcome::Unknown => "FAILED",
    };
    write!(out, "preflight {word:7} {}", finding.subject)?;
    if finding.message.is_empty() {
        return writeln!(out);
    }
    writeln!(out, ": {}", finding.message)
}

fn write_peers(out: &mut String, peers: &Peers) -> fmt::Result {
    let Peers {
        pairs, with_access, ..
    } = peers;
    write!(out, "peers     {with_access} of {pairs} pairs have access")?;
    if *with_access > 0 {
        write!(
            out,
            ": {} copied by each, {} round trips between kernels",
            size(peers.copied_bytes),
            peers.round_trips
        )?;
    }
    writeln!(out)
}

fn write_device(out: &mut String, device: &Device, warnings: &[Warning]) -> fmt::Result {
    write!(
        out,
        "device {}  {}, compute capability {}",
        device.ordinal, device.name, device.compute_capability
    )?;
    if device.memory_bytes > 0 {
        write!(out, ", {}", size(device.memory_bytes))?;
    }
    writeln!(out, ", {}", device.uuid)?;
    let mut line = |text: String| writeln!(out, "          {text}");
    match (&device.pci_bus_id, device.multiprocessors) {
        (Some(bus), Some(count)) => line(format!("{bus}, {count} multiprocessors"))?,
        (Some(bus), None) => line(bus.clone())?,
        _ => {}
    }
    if device.integrated == Some(true) {
        line("its memory is the host's".to_owned())?;
    } else if device.host_page_tables == Some(true) {
        line("its memory and the host's are coherent".to_owned())?;
    }
    if let Some(bytes) = device.memory_walk_bytes {
        let cache = device.l2_cache_bytes;
        let cache = cache.map_or(String::new(), |cache| format!(", L2 cache {}", size(cache)));
        line(format!(
            "memory walk: {} written and read back{cache}",
            size(bytes)
        ))?;
    }
    if let (Some(there), Some(back)) = (
        device.host_to_device_gib_per_second,
        device.device_to_host_gib_per_second,
    ) {
        line(format!(
            "copies: {there:.2} GiB/s to the device, {back:.2} GiB/s from it"
        ))?;
    }
    if device
        .steps
        .iter()
        .any(|step| step.step == Step::TensorCores)
    {
        let load = device.tensor_load_ms;
        let load = load.map_or(String::new(), |ms| {
            format!(", for {ms:.0} ms on all of them")
        });
        line(format!("tensor cores: f16 matrix products are right{load}"))?;
    }
    line(format!(
        "managed memory (UVM): {}",
        managed(device, warnings)
    ))?;
    if !device.steps.is_empty() {
        let steps: Vec<_> = device
            .steps
            .iter()
            .map(|step| format!("{} {:.3}", step.step, step.ms))
            .collect();
        line(format!("times in ms: {}", steps.join(", ")))?;
    }
    Ok(())
}

/// What the platform offers, and what that means for tests of it.
fn managed(device: &Device, warnings: &[Warning]) -> &'static str {
    let is_without_hints = warnings.iter().any(|warning| {
        warning.reason == "ManagedMemorySkipped" && warning.device == Some(device.ordinal)
    });
    match (device.managed_memory, device.concurrent_managed_access) {
        (_, true) if is_without_hints => {
            "concurrent access without hints; tests that advise or prefetch will fail"
        }
        (_, true) => "concurrent access; tests of it can run in full",
        (true, false) => {
            "no concurrent access (as under WDDM and WSL2); tests that advise, prefetch, or touch it on the host while a kernel runs will fail"
        }
        (false, false) => "none; tests of it will fail",
    }
}

/// In MiB; what is less than one, in KiB.
fn size(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        mebibytes => format!("{mebibytes} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::{Check, Preflight};
    use crate::{Class, Confidence, DeviceStep, Driver, Failure, Outcome, Timings};

    /// A device that is well.
    fn a100() -> Device {
        let steps = [
            (Step::Context, 212.25),
            (Step::ModuleLoad, 3.5),
            (Step::MemoryWalk, 4.125),
            (Step::TensorCores, 0.25),
            (Step::ManagedMemory, 1.5),
        ];
        Device {
            name: "NVIDIA A100-SXM4-40GB".into(),
            uuid: "GPU-6d3c8a4e-3a5e-4a6c-9a51-3f6a0d1b2c3d".into(),
            pci_bus_id: Some("0000:3b:00.0".into()),
            compute_capability: "8.0".into(),
            memory_bytes: 40339 << 20,
            managed_memory: true,
            concurrent_managed_access: true,
            multiprocessors: Some(108),
            memory_walk_bytes: Some(160 << 20),
            l2_cache_bytes: Some(40 << 20),
            tensor_load_ms: Some(74.6),
            host_to_device_gib_per_second: Some(11.213),
            device_to_host_gib_per_second: Some(9.5),
            steps: steps.map(|(step, ms)| DeviceStep { step, ms }).into(),
            ..Device::default()
        }
    }

    fn warning(reason: &str, device: u32) -> Warning {
        Warning {
            reason: reason.into(),
            message: format!("What {reason} means."),
            device: Some(device),
        }
    }

    fn report(devices: Vec<Device>) -> Report {
        Report {
            driver: Some(Driver {
                library: Some("/usr/lib/x86_64-linux-gnu/libcuda.so.1".into()),
                cuda_version: Some("13.0".into()),
                kernel_version: Some("580.95.05".into()),
                ..Driver::default()
            }),
            devices,
            timings: Timings {
                total_ms: 512.4,
                init_ms: 180.6,
                test_ms: 300.0,
                teardown_ms: 20.2,
            },
            ..Report::new("0.1.0")
        }
    }

    #[test]
    fn what_each_device_can_do_is_told() {
        let slice = Device {
            ordinal: 1,
            name: "NVIDIA A100-SXM4-40GB MIG 1g.5gb".into(),
            uuid: "MIG-00112233-4455-6677-8899-aabbccddeeff".into(),
            multiprocessors: Some(14),
            memory_walk_bytes: Some(256 << 10),
            l2_cache_bytes: Some(5 << 20),
            tensor_load_ms: None,
            host_to_device_gib_per_second: None,
            device_to_host_gib_per_second: None,
            ..a100()
        };
        let wddm = Device {
            ordinal: 2,
            concurrent_managed_access: false,
            ..a100()
        };
        let none = Device {
            ordinal: 3,
            managed_memory: false,
            memory_walk_bytes: None,
            ..wddm.clone()
        };
        let report = Report {
            outcome: Outcome::Passed,
            peers: Some(Peers {
                pairs: 12,
                with_access: 2,
                copied_bytes: 4 << 20,
                round_trips: 64,
            }),
            warnings: vec![
                warning("ManagedMemorySkipped", 1),
                warning("NoConcurrentManagedAccess", 2),
            ],
            ..report(vec![a100(), slice, wddm, none])
        };
        insta::assert_snapshot!(report.text());
    }

    #[test]
    fn what_failed_and_what_to_do_is_told() {
        let report = Report {
            failure: Some(Failure {
                class: Class::Device,
                step: Step::MemoryWalk,
                code: None,
                code_name: "BadMemory".into(),
                call: None,
                device: Some(0),
                uuid: Some(a100().uuid),
                message: "What happened and what it means.".into(),
                advice: "What to do.".into(),
                confidence: Confidence::High,
                shared: false,
            }),
            preflight: Some(Preflight {
                findings: vec![
                    PreflightFinding::ok(Check::Command, "git"),
                    PreflightFinding::failed(
                        Check::Command,
                        "cmake",
                        "is missing".into(),
                        "Add it.",
                    ),
                ],
            }),
            // It failed before all of this was known.
            ..report(vec![Device {
                memory_walk_bytes: None,
                host_to_device_gib_per_second: None,
                device_to_host_gib_per_second: None,
                steps: vec![],
                ..a100()
            }])
        };
        insta::assert_snapshot!(report.text());
    }
}
