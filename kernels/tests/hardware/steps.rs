//! The steps of the gate's test: that each has run, and runs without the others.

use gate_report::{Device, Report, Step};

use super::{Found, Machine, demand, is_slice, is_under_windows, told};

/// What a device has not done, of all that its platform offers.
fn missing(device: &Device, report: &Report) -> Vec<String> {
    let mut steps = vec![Step::Context, Step::ModuleLoad, Step::Launch, Step::Compare];
    steps.extend([Step::MemoryWalk, Step::TensorCores]);
    if device.concurrent_managed_access {
        steps.push(Step::ManagedMemory);
    }
    let has_run = |step: &Step| device.steps.iter().any(|ran| ran.step == *step);
    let steps = steps.into_iter().filter(|step| !has_run(step));
    let mut missing: Vec<_> = steps.map(|step| step.to_string()).collect();
    if device.tensor_load_ms.is_none() {
        missing.push("load of the tensor cores".into());
    }
    let l2 = device.l2_cache_bytes.unwrap_or(0);
    let walked = device.memory_walk_bytes.unwrap_or(0);
    // The walk takes an eighth of the free memory at most, and little of a slice.
    let has_room = device
        .free_memory_bytes
        .is_some_and(|free| free / 8 >= 4 * l2);
    if has_room && !is_slice(device) && (l2 == 0 || walked < 4 * l2) {
        missing.push(format!(
            "a walk of four times the L2 cache: {walked} bytes of {l2}"
        ));
    }
    // Windows has none.
    if device.memory_pools != Some(true) && !is_under_windows(report) {
        missing.push("memory pools".into());
    }
    missing
}

/// What several devices did with one another; nothing where there is one.
fn peers(report: &Report) -> Found {
    if report.devices.len() < 2 {
        return Ok("one device, so no peers".into());
    }
    let peers = report.peers.clone().ok_or("nothing is said of peers")?;
    let have_talked = peers.copied_bytes >= 4096 && peers.round_trips > 0;
    demand(
        peers.pairs > 0 && (peers.with_access == 0 || have_talked),
        format!("{peers:?}"),
    )
}

/// In the report, on every device.
pub(crate) fn every_one(machine: &Machine) -> Found {
    let report = machine.latest()?;
    let mut found = vec![peers(&report)?];
    for device in &report.devices {
        let missing = missing(device, &report);
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(format!("device {} lacks: {missing}", device.ordinal));
        }
        let times = device
            .steps
            .iter()
            .map(|ran| format!("{} {}", ran.step, ran.ms));
        found.push(times.collect::<Vec<_>>().join(", "));
    }
    Ok(found.join("; "))
}

/// The parts of the test, each with the step that the report has of it where it has one.
const PARTS: [(&str, Option<Step>); 7] = [
    ("kernel", Some(Step::Launch)),
    ("memory-walk", Some(Step::MemoryWalk)),
    ("tensor-cores", Some(Step::TensorCores)),
    ("managed-memory", Some(Step::ManagedMemory)),
    ("memory-pool", None),
    ("peers", None),
    ("health", None),
];

/// Each part passes without the others, and says how long that takes.
pub(crate) fn each_alone(machine: &Machine) -> Found {
    let mut found = vec![];
    for (part, own) in PARTS {
        let (code, report) = machine.check(|smoke| {
            smoke.args(["--only", part]);
        })?;
        if code != 0 {
            return Err(format!("{part}: exit code {code}: {}", told(&report)));
        }
        for device in &report.devices {
            let ran = |step: &Step| device.steps.iter().any(|ran| ran.step == *step);
            let steps = PARTS.iter().filter_map(|(_, step)| *step).filter(ran);
            let is_offered = own != Some(Step::ManagedMemory) || device.concurrent_managed_access;
            let expected = own.filter(|_| is_offered);
            if !steps.clone().eq(expected) {
                let steps: Vec<_> = steps.map(|step| step.to_string()).collect();
                return Err(format!("{part} ran {}", steps.join(", ")));
            }
        }
        let has_talked = report.peers.is_some();
        if has_talked != (part == "peers" && report.devices.len() > 1) {
            return Err(format!("{part}: peers {:?}", report.peers));
        }
        found.push(format!("{part} {:.0} ms", report.timings.test_ms));
    }
    Ok(found.join(", "))
}
