//! The report for people.

use std::fmt::{self, Write};

use crate::preflight::{CheckOutcome, PreflightFinding};
use crate::{Device, Report};

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
    for device in &report.devices {
        write_device(out, device)?;
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
                "\nPASSED: {count} device{} in {:.0} ms (driver start-up {:.0} ms)",
                if count == 1 { "" } else { "s" },
                report.timings.total_ms,
                report.timings.init_ms,
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

fn write_device(out: &mut String, device: &Device) -> fmt::Result {
    write!(
        out,
        "device {}  {}, compute capability {}",
        device.ordinal, device.name, device.compute_capability
    )?;
    if device.memory_bytes > 0 {
        write!(out, ", {} MiB", device.memory_bytes >> 20)?;
    }
    writeln!(out, ", {}", device.uuid)?;
    let managed = match (device.managed_memory, device.concurrent_managed_access) {
        (_, true) => "managed memory with concurrent access",
        (true, false) => "managed memory without concurrent access",
        (false, false) => "no managed memory",
    };
    match &device.pci_bus_id {
        Some(bus) => writeln!(out, "          {bus}, {managed}")?,
        None => writeln!(out, "          {managed}")?,
    }
    if !device.steps.is_empty() {
        let steps: Vec<_> = device
            .steps
            .iter()
            .map(|step| format!("{} {:.3}", step.step, step.ms))
            .collect();
        writeln!(out, "          {} ms", steps.join(", "))?;
    }
    Ok(())
}
