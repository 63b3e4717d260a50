//! What GPUs did during jobs: information from the pod, for the status, the metrics and the log. Nothing is decided by it.

use std::collections::BTreeSet;

use cudarunner_crds::{JobGpuStatus, JobStatus, JobThrottledStatus};
use gate_report::usage::{GpuUsage, Throttled};

/// What is counted of the GPUs of jobs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct JobsUsage {
    /// The energy that they took, in joules.
    pub joules: u64,
    /// Jobs that used none of their GPUs.
    pub unused: u64,
    /// For how many seconds it was watched how busy they were.
    pub watched: u64,
    /// How many of these they were busy, in hundredths.
    pub busy_hundredths: u64,
    /// For how many seconds heat or the power supply held them back.
    pub throttled: u64,
    /// Errors of their memory that were corrected.
    pub corrected: u64,
    /// Those that were not.
    pub uncorrected: u64,
    /// Packets that were sent once more.
    pub replays: u64,
    /// The driver's words for errors.
    pub xids: u64,
    /// The most memory of one of them that was taken, in MiB, in the jobs that were told of last.
    pub peak_mib: Option<u64>,
}

impl JobsUsage {
    /// Of these jobs.
    #[must_use]
    pub fn of(jobs: &[JobStatus]) -> Self {
        let mut all = Self::default();
        for job in jobs {
            let is_unused = !job.gpu.is_empty() && job.gpu.iter().all(|gpu| gpu.unused);
            all.unused = all.unused.saturating_add(u64::from(is_unused));
            for gpu in &job.gpu {
                all.add(Self::of_gpu(gpu));
            }
        }
        let gpus = jobs.iter().flat_map(|job| &job.gpu);
        all.peak_mib = gpus.filter_map(|gpu| Self::of_gpu(gpu).peak_mib).max();
        all
    }

    fn of_gpu(gpu: &JobGpuStatus) -> Self {
        let count = |value: Option<i32>| value.and_then(|v| u64::try_from(v).ok());
        let some = |value| count(value).unwrap_or_default();
        let joules = gpu.energy_joules.and_then(|j| u64::try_from(j).ok());
        let busy = count(gpu.busy_percent);
        let watched = busy.map_or(0, |_| some(Some(gpu.watched_seconds)));
        Self {
            joules: joules.unwrap_or_default(),
            unused: 0,
            watched,
            busy_hundredths: watched.saturating_mul(busy.unwrap_or_default().min(100)),
            throttled: some(gpu.throttled.as_ref().map(|throttled| throttled.seconds)),
            corrected: some(gpu.corrected_ecc_errors),
            uncorrected: some(gpu.uncorrected_ecc_errors),
            replays: some(gpu.pcie_replays),
            xids: gpu.xids.len() as u64,
            peak_mib: count(gpu.peak_memory_mib),
        }
    }

    /// Adds what is counted of later ones.
    pub fn add(&mut self, more: Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.joules, more.joules);
        add(&mut self.unused, more.unused);
        add(&mut self.watched, more.watched);
        add(&mut self.busy_hundredths, more.busy_hundredths);
        add(&mut self.throttled, more.throttled);
        add(&mut self.corrected, more.corrected);
        add(&mut self.uncorrected, more.uncorrected);
        add(&mut self.replays, more.replays);
        add(&mut self.xids, more.xids);
        self.peak_mib = more.peak_mib.or(self.peak_mib);
    }

    /// Errors by their kind.
    #[must_use]
    pub const fn errors(&self) -> [(&'static str, u64); 4] {
        [
            ("ecc-corrected", self.corrected),
            ("ecc-uncorrected", self.uncorrected),
            ("pcie-replay", self.replays),
            ("xid", self.xids),
        ]
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
    fn what_all_gpus_of_jobs_did_is_summed() {
        let gpu = |busy: Option<i32>, mib: i32| {
            json!({
                "uuid": "GPU-1", "watchedSeconds": 60, "busyPercent": busy, "energyJoules": 50, "peakMemoryMib": mib,
                "throttled": {"seconds": 3, "softwareThermalSeconds": 3, "hardwareThermalSeconds": 0,
                    "powerBrakeSeconds": 0, "powerCapSeconds": 9},
                "correctedEccErrors": 2, "uncorrectedEccErrors": 1, "pcieReplays": -4, "xids": [79, 48],
            })
        };
        let job = |gpus: &[serde_json::Value]| -> JobStatus {
            let finished = "2026-01-01T00:00:00Z";
            let job = json!({"job": "a", "runner": "r", "finishedAt": finished, "gpu": gpus});
            serde_json::from_value(job).unwrap()
        };
        let mut all = JobsUsage::of(&[job(&[gpu(Some(50), 900), gpu(None, 700)]), job(&[])]);
        let expected = JobsUsage {
            joules: 100,
            unused: 0,
            watched: 60,
            busy_hundredths: 60 * 50,
            throttled: 6,
            corrected: 4,
            uncorrected: 2,
            replays: 0,
            xids: 4,
            peak_mib: Some(900),
        };
        assert_eq!(all, expected);
        // The next job's memory takes its place, and one of which nothing is known does not
        all.add(JobsUsage::of(&[job(&[gpu(Some(100), 40)])]));
        all.add(JobsUsage::of(&[job(&[])]));
        assert_eq!((all.peak_mib, all.watched), (Some(40), 120));
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
            ..JobsUsage::default()
        };
        assert_eq!(JobsUsage::of(&jobs), expected);
    }
}
