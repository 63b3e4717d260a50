//! How the jobs on each device end: a device on which far more of them fail than on the others is named. Nothing else
//! follows from it, because a job's user decides how it ends.

use std::cmp::Reverse;

use cudarunner_crds::{CudaRunnerStatus, DeviceStatus, JobStatus, MAX_DEVICES};
use gate_report::clean;

use super::{About, Notice};
use crate::reason::{Reason, Stored};

/// With fewer jobs a device is not judged, nor does it say what is usual.
const LEAST: i32 = 8;
/// So many jobs are counted; then both counts are halved, so that old jobs weigh less and a repaired device is let go.
const MOST: i32 = 100;
/// The same for all devices that have left the list.
const MOST_OF_OTHERS: i32 = 10_000;
/// A device is named where chance would have so many jobs fail less often than this: divided by the number of devices, since
/// each of them has its chance (Bonferroni).
const LEVEL: f64 = 0.01;
/// It is named no more where chance would do so this often.
const LET_GO: f64 = 0.05;
/// The longest name that is kept.
const NAME: usize = 256;

/// Counts jobs that have ended, and tells which devices are suspect now and were not.
pub(super) fn count(status: &mut CudaRunnerStatus, jobs: &[&JobStatus]) -> Vec<Notice> {
    // One that was not let in ran nothing on its devices.
    for job in jobs.iter().filter(|job| job.refused.is_none()) {
        let conclusion = job.conclusion.as_deref();
        let failed = is_failure(conclusion);
        // Others than these and success say nothing.
        if !failed && conclusion != Some("success") {
            continue;
        }
        if failed && was_taken_away(status, job) {
            continue;
        }
        for uuid in &job.devices {
            add(status, job, &clean(uuid, NAME), failed);
        }
    }
    judge(status)
}

/// Whether Kubernetes or the node ended the job's runner under it: on nodes that come and go that is usual, and no device's.
fn was_taken_away(status: &CudaRunnerStatus, job: &JobStatus) -> bool {
    const TAKEN: [Reason; 3] = [Reason::Evicted, Reason::NodeLost, Reason::PodRejected];
    let mut ends = status.last_failures.iter();
    ends.any(|end| end.runner == job.runner && Stored::parse(&end.reason).is_one_of(&TAKEN))
}

/// Whether a job's conclusion, in GitHub's word, is a failure, and so may be its device's.
pub(super) fn is_failure(conclusion: Option<&str>) -> bool {
    matches!(conclusion, Some("failure" | "timed_out"))
}

/// The suspect devices, one phrase each.
pub(super) fn suspects(devices: &[DeviceStatus]) -> Vec<String> {
    let suspect = devices.iter().filter(|device| device.suspect);
    suspect.map(named).collect()
}

fn named(device: &DeviceStatus) -> String {
    let node = device.node.as_deref();
    let node = node.map_or_else(String::new, |node| format!(" of {node}"));
    format!("{}{node}", device.uuid)
}

/// Counts a job on one of its devices.
fn add(status: &mut CudaRunnerStatus, job: &JobStatus, uuid: &str, failed: bool) {
    let devices = &mut status.devices;
    let known = devices.iter().position(|device| device.uuid == uuid);
    let mut device = known.map_or_else(DeviceStatus::default, |place| devices.remove(place));
    uuid.clone_into(&mut device.uuid);
    device.node.clone_from(&job.node);
    device.jobs = device.jobs.saturating_add(1);
    device.failed = device.failed.saturating_add(i32::from(failed));
    if device.jobs > MOST {
        device.jobs /= 2;
        device.failed /= 2;
    }
    devices.push(device);
    if devices.len() > MAX_DEVICES {
        make_room(status);
    }
}

/// Takes the device off the list against which least speaks: the fewest failures, and of these the most jobs. What is usual it
/// still tells.
fn make_room(status: &mut CudaRunnerStatus) {
    let devices = status.devices.iter().enumerate();
    let least =
        devices.min_by_key(|(_, device)| (device.suspect, device.failed, Reverse(device.jobs)));
    let Some((place, _)) = least else {
        return;
    };
    let leaves = status.devices.remove(place);
    let others = status.other_devices.get_or_insert_default();
    others.jobs = others.jobs.saturating_add(leaves.jobs);
    others.failed = others.failed.saturating_add(leaves.failed);
    if others.jobs > MOST_OF_OTHERS {
        others.jobs /= 2;
        others.failed /= 2;
    }
}

/// Sets which devices are suspect.
fn judge(status: &mut CudaRunnerStatus) -> Vec<Notice> {
    let devices = &mut status.devices;
    let sum = |count: fn(&DeviceStatus) -> i32| -> f64 {
        devices.iter().map(|d| f64::from(count(d))).sum()
    };
    let left = status.other_devices.clone().unwrap_or_default();
    let all = (
        sum(|d| d.jobs) + f64::from(left.jobs),
        sum(|d| d.failed) + f64::from(left.failed),
    );
    // How many have left the list nobody knows: each with one job at least.
    let listed = u32::try_from(devices.len()).unwrap_or(u32::MAX);
    let number = f64::from(listed) + f64::from(left.jobs);
    let mut notices = vec![];
    for device in devices {
        let others = (
            all.0 - f64::from(device.jobs),
            all.1 - f64::from(device.failed),
        );
        let chance = chance(device, others);
        let before = device.suspect;
        let limit = if before { LET_GO } else { LEVEL / number };
        let enough = device.jobs >= LEAST && others.0 >= f64::from(LEAST);
        device.suspect = enough && chance < limit;
        if device.suspect && !before {
            notices.push(Notice {
                warning: true,
                reason: Reason::DeviceSuspect.into(),
                note: format!(
                    "{} of the last {} jobs on {} failed, and {} of {} on the pool's other devices: chance hardly explains that. Its gates pass; look at the jobs, and at the device's error counters (nvidia-smi -q). Nothing is quarantined",
                    device.failed,
                    device.jobs,
                    named(device),
                    others.1,
                    others.0,
                ),
                about: device.node.clone().map(About::Node),
            });
        }
    }
    notices
}

/// How likely at least so many jobs fail on a device by chance, were it like the others (one-sided binomial test). Their
/// share of failures is taken with one failure and one success more (Laplace): without it the first failure of a pool
/// would be impossible.
fn chance(device: &DeviceStatus, (jobs, failed): (f64, f64)) -> f64 {
    at_least(device.failed, device.jobs, (failed + 1.0) / (jobs + 2.0))
}

/// The probability of at least `least` successes in `trials`, of a probability `p` each, in `0..1`. Summed by logarithms:
/// the powers are too small for a float.
fn at_least(least: i32, trials: i32, p: f64) -> f64 {
    let mut ln_choose = 0.0;
    let mut sum = 0.0;
    for hits in 0..=trials {
        let (hits_, misses) = (f64::from(hits), f64::from(trials) - f64::from(hits));
        if hits >= least {
            sum += (ln_choose + hits_ * p.ln() + misses * (1.0 - p).ln()).exp();
        }
        ln_choose += misses.ln() - (hits_ + 1.0).ln();
    }
    f64::min(sum, 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(device: &str, conclusion: Option<&str>) -> JobStatus {
        let job = serde_json::json!({"job": "j", "runner": "r", "node": "node-1", "devices": [device],
            "finishedAt": "2026-01-01T00:00:00Z", "conclusion": conclusion});
        serde_json::from_value(job).unwrap()
    }

    /// So many jobs on a device, of which so many fail, one after the other. What is told.
    fn run(status: &mut CudaRunnerStatus, device: &str, jobs: i32, failed: i32) -> Vec<Notice> {
        let ends = (0..jobs).map(|n| if n < failed { "failure" } else { "success" });
        let told = ends.flat_map(|end| count(status, &[&job(device, Some(end))]));
        told.collect()
    }

    fn suspect(devices: &[DeviceStatus]) -> Vec<&str> {
        let suspect = devices.iter().filter(|d| d.suspect);
        suspect.map(|d| d.uuid.as_str()).collect()
    }

    /// Known values: exact fractions where there are some, otherwise sums of exact terms to ten digits.
    #[test]
    fn the_binomial_tail_is_the_known_one() {
        for (least, trials, p, expected) in [
            (0, 8, 0.3, 1.0),
            (1, 1, 0.25, 0.25),
            (3, 3, 0.5, 0.125),
            (5, 10, 0.5, 638.0 / 1024.0),
            (8, 8, 0.5, 1.0 / 256.0),
            (4, 8, 0.1, 0.005_024_35),
            (2, 100, 0.01, 0.264_238_021_4),
            (9, 8, 0.5, 0.0),
        ] {
            let found = at_least(least, trials, p);
            assert!(
                (found - expected).abs() < 1e-9,
                "{least} of {trials} at {p}: {found}"
            );
        }
        // Where the powers alone are no floats any more
        assert!((at_least(1, 100, 0.9999) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_device_whose_jobs_fail_far_more_often_is_told_once() {
        // Given three devices that are well, and a fourth
        let mut status = CudaRunnerStatus::default();
        for well in ["GPU-1", "GPU-2", "GPU-3"] {
            assert!(run(&mut status, well, 20, 1).is_empty());
        }
        // When its jobs fail, then it is named at the eighth, and once
        assert!(run(&mut status, "GPU-4", 7, 7).is_empty());
        let told = run(&mut status, "GPU-4", 5, 5);
        assert_eq!(suspect(&status.devices), ["GPU-4"]);
        let [notice] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert!(
            notice
                .note
                .starts_with("8 of the last 8 jobs on GPU-4 of node-1 failed, and 3 of 60"),
            "{}",
            notice.note
        );
        assert_eq!(suspects(&status.devices), ["GPU-4 of node-1"]);
        // And when it is repaired, then it is let go
        run(&mut status, "GPU-4", 300, 0);
        assert_eq!(suspect(&status.devices), Vec::<&str>::new());
    }

    #[test]
    fn jobs_that_fail_everywhere_speak_against_no_device() {
        let mut status = CudaRunnerStatus::default();
        for _ in 0..10 {
            for device in ["GPU-1", "GPU-2", "GPU-3", "GPU-4"] {
                assert!(run(&mut status, device, 3, 2).is_empty());
            }
        }
        // Nor is there anything usual in a pool of one device, or beside one that has hardly begun
        let mut alone = CudaRunnerStatus::default();
        assert!(run(&mut alone, "GPU-1", 50, 50).is_empty());
        assert!(run(&mut alone, "GPU-2", 7, 0).is_empty());
    }

    #[test]
    fn among_many_devices_chance_has_many_tries() {
        // Given twenty devices on which a tenth of the jobs failed
        let is_suspect = |failed| {
            let mut status = CudaRunnerStatus::default();
            for number in 0..20 {
                run(&mut status, &format!("GPU-{number}"), 10, 1);
            }
            run(&mut status, "GPU-x", 8, failed);
            suspect(&status.devices) == ["GPU-x"]
        };
        // Then half of eight is rare for a device, at 0.6 %, and one of twenty has it soon
        assert!(!is_suspect(4));
        assert!(is_suspect(6));
    }

    #[test]
    fn a_bad_device_is_found_among_more_than_are_listed() {
        // Given a pool of five hundred devices, of whose jobs a twentieth fails, whatever the device
        let mut status = CudaRunnerStatus::default();
        let mut told = vec![];
        for round in 0..8 {
            for number in 0..500 {
                let device = format!("GPU-{number}");
                let fails = (number + round * 7) % 20 == 0;
                told.extend(run(&mut status, &device, 1, i32::from(fails)));
            }
            assert_eq!(suspect(&status.devices), Vec::<&str>::new());
            // When each job on one of them fails
            told.extend(run(&mut status, "GPU-bad", 1, 1));
        }
        // Then that one is named, by what is usual on all of them
        assert_eq!(suspect(&status.devices), ["GPU-bad"]);
        let [notice] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert!(notice.note.starts_with("8 of the last 8 jobs on GPU-bad"));
        let others = status.other_devices.unwrap();
        let share = f64::from(others.failed) / f64::from(others.jobs);
        assert!((0.02..0.06).contains(&share), "{others:?}");
        assert!(others.jobs <= MOST_OF_OTHERS);
    }

    #[test]
    fn what_no_device_causes_is_not_counted() {
        let mut status = CudaRunnerStatus::default();
        for conclusion in [None, Some("cancelled"), Some("skipped"), Some("neutral")] {
            count(&mut status, &[&job("GPU-1", conclusion)]);
        }
        let refused = JobStatus {
            refused: Some("pull requests from forks are not allowed".to_owned()),
            ..job("GPU-1", Some("failure"))
        };
        count(&mut status, &[&refused]);
        // Nor one whose runner was taken from it
        status.last_failures = ["Evicted", "NodeLost", "PodRejected"]
            .map(|reason| {
                let failure = serde_json::json!({"runner": reason, "reason": reason, "class": "transient",
                    "message": "", "at": "2026-01-01T00:00:00Z"});
                serde_json::from_value(failure).unwrap()
            })
            .into();
        for runner in ["Evicted", "NodeLost", "PodRejected"] {
            let mut lost = job("GPU-1", Some("failure"));
            lost.runner = runner.to_owned();
            count(&mut status, &[&lost]);
        }
        assert_eq!(status.devices, vec![]);
        count(&mut status, &[&job("GPU-1", Some("timed_out"))]);
        assert_eq!((status.devices[0].jobs, status.devices[0].failed), (1, 1));
    }

    proptest! {
        #[test]
        fn the_list_and_its_counts_are_bounded_and_few_jobs_are_not_judged(
            events in proptest::collection::vec((0..80_usize, any::<bool>()), 0..600),
        ) {
            let mut status = CudaRunnerStatus::default();
            for (device, failed) in events {
                let end = if failed { "failure" } else { "success" };
                count(&mut status, &[&job(&format!("GPU-{device}"), Some(end))]);
            }
            prop_assert!(status.devices.len() <= MAX_DEVICES);
            for device in &status.devices {
                prop_assert!((0..=device.jobs).contains(&device.failed) && device.jobs <= MOST);
                prop_assert!(!device.suspect || device.jobs >= LEAST);
            }
        }

        #[test]
        fn a_tail_is_a_probability_and_falls_with_its_start(trials in 0..=MOST, p in 0.0002..0.9998_f64) {
            let tails: Vec<f64> = (0..=trials).map(|least| at_least(least, trials, p)).collect();
            prop_assert!(tails.iter().all(|tail| (0.0..=1.0).contains(tail)));
            prop_assert!(tails.windows(2).all(|pair| pair[0] >= pair[1]));
        }
    }
}
