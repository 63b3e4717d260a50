//! What GPUs did during jobs: information from the pod, for the status, the metrics and the log. Nothing is decided by it.

use std::collections::BTreeSet;

use cudarunner_crds::{JobGpuStatus, JobStatus, JobThrottledStatus};
use gate_report::usage::{GpuUsage, Throttled};

/// What is counted of jobs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct JobsUsage {
    /// The energy that their GPUs took.
    pub joules: u64,
    /// Jobs that used none of their GPUs.
    pub unused: u64,
}

impl JobsUsage {
    /// Of these jobs.
    #[must_use]
    pub fn of(jobs: &[JobStatus]) -> Self {
        let mut all = Self::default();
        for job in jobs {
            let joules = job.gpu.iter().filter_map(|gpu| gpu.energy_joules);
            let joules = joules.filter_map(|joules| u64::try_from(joules).ok());
            all.joules = joules.fold(all.joules, u64::saturating_add);
            let is_unused = !job.gpu.is_empty() && job.gpu.iter().all(|gpu| gpu.unused);
            all.unused = all.unused.saturating_add(u64::from(is_unused));
        }
        all
    }

    /// Adds what is counted of others.
    pub fn add(&mut self, more: Self) {
        self.joules = self.joules.saturating_add(more.joules);
        self.unused = self.unused.saturating_add(more.unused);
    }
}

/// What all GPUs of a job's runner took meanwhile, in joules. A sum that lacks one of them would be taken for the whole.
pub(super) fn energy(job: &JobStatus) -> Option<u64> {
    let of = |uuid: &String| {
        let gpu = job.gpu.iter().find(|gpu| gpu.uuid == *uuid)?;
        u64::try_from(gpu.energy_joules?).ok()
    };
    let mut all = job.devices.iter().map(of).peekable();
    all.peek()?;
    all.try_fold(0, |sum: u64, joules| Some(sum.saturating_add(joules?)))
}

/// What the status says of it: of the runner's own devices, each once. The job may have named any.
pub(super) fn shown(gpus: &[GpuUsage], devices: &[String]) -> Vec<JobGpuStatus> {
    let mut told = BTreeSet::new();
    let own = gpus.iter().filter(|gpu| devices.contains(&gpu.uuid));
    let once = own.filter(|gpu| told.insert(gpu.uuid.as_str()));
    once.map(status).collect()
}

fn whole(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn status(gpu: &GpuUsage) -> JobGpuStatus {
    let wide = |joules| i64::try_from(joules).unwrap_or(i64::MAX);
    JobGpuStatus {
        uuid: gpu.uuid.clone(),
        watched_seconds: whole(gpu.seconds),
        busy_percent: gpu.busy_percent.map(i32::from),
        max_busy_percent: gpu.max_busy_percent.map(i32::from),
        unused: gpu.unused,
        peak_memory_mib: gpu.memory_mib.map(whole),
        energy_joules: gpu.energy_joules.map(wide),
        min_sm_clock_mhz: gpu.min_clock_mhz.map(whole),
        mean_sm_clock_mhz: gpu.mean_clock_mhz.map(whole),
        max_temperature_celsius: gpu.max_celsius.map(whole),
        throttled: gpu.throttled.map(throttled),
        corrected_ecc_errors: gpu.corrected_errors.map(whole),
        uncorrected_ecc_errors: gpu.uncorrected_errors.map(whole),
        pcie_replays: gpu.pcie_replays.map(whole),
        xids: gpu.xids.iter().copied().map(whole).collect(),
    }
}

fn throttled(all: Throttled) -> JobThrottledStatus {
    JobThrottledStatus {
        seconds: whole(all.seconds),
        software_thermal_seconds: whole(all.software_thermal),
        hardware_thermal_seconds: whole(all.hardware_thermal),
        power_brake_seconds: whole(all.power_brake),
        power_cap_seconds: whole(all.power_cap),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn usage(uuid: &str, more: &serde_json::Value) -> GpuUsage {
        let mut usage = json!({"uuid": uuid, "s": 60});
        for (name, value) in more.as_object().unwrap() {
            usage[name] = value.clone();
        }
        serde_json::from_value(usage).unwrap()
    }

    #[test]
    fn only_the_runners_own_devices_are_shown_and_each_once() {
        let devices = ["GPU-1".to_owned(), "GPU-2".to_owned()];
        let gpus = [
            usage("GPU-2", &json!({"busy": 5, "slow": [3, 0, 2, 1, 9]})),
            usage("GPU-9", &json!({"busy": 100})),
            usage("GPU-2", &json!({"busy": 100})),
        ];
        let shown = shown(&gpus, &devices);
        let [one] = &shown[..] else {
            unreachable!("{shown:?}")
        };
        assert_eq!((one.uuid.as_str(), one.busy_percent), ("GPU-2", Some(5)));
        let expected = JobThrottledStatus {
            seconds: 3,
            software_thermal_seconds: 0,
            hardware_thermal_seconds: 2,
            power_brake_seconds: 1,
            power_cap_seconds: 9,
        };
        assert_eq!(one.throttled, Some(expected));
        assert_eq!(one.energy_joules, None);
    }

    #[test]
    fn the_energy_of_a_job_is_that_of_all_gpus_of_its_runner_or_it_is_not_there() {
        let energy = |devices: &[&str], gpus: &[(&str, Option<i64>)]| {
            let gpus = gpus.iter().map(|(uuid, joules)| {
                let mut gpu = json!({"uuid": uuid, "watchedSeconds": 60});
                if let Some(joules) = joules {
                    gpu["energyJoules"] = json!(joules);
                }
                gpu
            });
            let gpus: Vec<_> = gpus.collect();
            let job = json!({
                "job": "a", "runner": "r", "finishedAt": "2026-01-01T00:00:00Z", "devices": devices, "gpu": gpus,
            });
            super::energy(&serde_json::from_value(job).unwrap())
        };
        let (one, two) = (("GPU-1", Some(50)), ("GPU-2", Some(9)));
        assert_eq!(energy(&["GPU-1"], &[one]), Some(50));
        assert_eq!(energy(&["GPU-1", "GPU-2"], &[one, two]), Some(59));
        for gpus in [
            &[one][..],
            &[one, ("GPU-2", None)],
            &[one, ("GPU-2", Some(-9))],
            &[],
        ] {
            assert_eq!(energy(&["GPU-1", "GPU-2"], gpus), None, "{gpus:?}");
        }
        assert_eq!(energy(&[], &[]), None);
    }

    #[test]
    fn a_job_is_counted_as_one_that_used_no_gpu_where_it_used_none_of_its_gpus() {
        let job = |unused: &[bool]| {
            let gpu = unused
                .iter()
                .map(|unused| json!({"uuid": "GPU-1", "unused": unused, "energyJoules": 50}));
            let gpu: Vec<_> = gpu.collect();
            let job = json!({"job": "a", "runner": "r", "finishedAt": "2026-01-01T00:00:00Z", "gpu": gpu});
            serde_json::from_value::<JobStatus>(job).unwrap()
        };
        let jobs = [job(&[true, true]), job(&[true, false]), job(&[])];
        let expected = JobsUsage {
            joules: 200,
            unused: 1,
        };
        assert_eq!(JobsUsage::of(&jobs), expected);
    }
}
