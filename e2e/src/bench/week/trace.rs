//! The jobs and the GPU faults of a week, from a seed. All times are hours since the week's beginning.

use crate::random::Random;

/// What there is of a week.
pub(super) const WEEK: f64 = 168.0;
/// A job of a recorded trace may take months. An assumption: nobody waits longer than a day for one of CI.
const LONGEST: f64 = 24.0;
/// An assumption: with the lengths below these are half of a GPU's hours.
const JOBS_FOR_A_GPU: usize = 44;
/// Tasks that were submitted in each hour of a recorded week, in tens, as read off the figure: Alibaba's cluster of July and
/// August 2020, <https://github.com/alibaba/clusterdata>, `cluster-trace-gpu-v2020/analysis/analysis.ipynb`.
#[rustfmt::skip]
const ARRIVALS: [u8; 168] = [
    91, 63, 39, 54, 69, 60, 56, 68, 63, 52, 54, 72, 64, 40, 38, 32, 39, 95, 68, 47, 53, 48, 65, 41, // Sunday
    93, 70, 38, 29, 45, 65, 43, 86, 70, 72, 103, 98, 65, 81, 88, 100, 95, 91, 76, 60, 70, 76, 64, 61, // Monday
    71, 59, 43, 52, 44, 39, 47, 65, 87, 74, 101, 95, 77, 103, 98, 108, 98, 125, 100, 70, 69, 71, 68, 70, // Tuesday
    98, 75, 36, 27, 43, 51, 51, 63, 51, 73, 117, 131, 82, 59, 90, 95, 101, 92, 78, 67, 82, 56, 59, 80, // Wednesday
    108, 98, 48, 34, 37, 45, 55, 35, 62, 87, 99, 124, 108, 71, 84, 93, 79, 108, 67, 79, 108, 86, 65, 52, // Thursday
    122, 71, 47, 45, 42, 45, 57, 70, 81, 94, 94, 110, 69, 98, 109, 89, 79, 88, 69, 50, 46, 48, 52, 52, // Friday
    100, 76, 52, 51, 65, 55, 59, 78, 53, 48, 59, 74, 86, 45, 56, 36, 49, 46, 43, 30, 35, 31, 42, 43, // Saturday
];
/// How long jobs ran in seconds, the twentieths of 83,154: Microsoft's Philly cluster, by
/// `cluster-trace-gpu-v2020/analysis/philly_runtime.csv` at the same place.
const LENGTHS: [f64; 21] = [
    1.0,
    48.0,
    61.0,
    68.0,
    76.0,
    131.0,
    229.0,
    428.0,
    630.0,
    889.0,
    1186.0,
    1500.0,
    1871.0,
    2242.0,
    2590.0,
    3342.0,
    4700.0,
    6300.0,
    12860.0,
    49969.0,
    4_628_239.0,
];
/// Hours of a GPU between two faults: 16,384 of them for 54 days, and 268 interruptions by GPUs (148 faulty ones, HBM3 72,
/// SRAM 19, system processor 17, silent corruption 6, thermal 6). The Llama 3 Herd of Models,
/// <https://arxiv.org/abs/2407.21783>, table 5.
const BETWEEN: f64 = 16_384.0 * 54.0 * 24.0 / 268.0;
/// How much more often they fail here: a fleet of this size would see none in most weeks.
const FASTER: f64 = 400.0;
/// How long a device stays broken: so long one was left in a fleet for CI,
/// <https://github.com/pytorch/ci-infra/issues/1057>.
const REPAIR: f64 = 106.0 / 60.0;

/// A job that somebody starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Job {
    /// When it is queued.
    pub(super) at: f64,
    /// How long it takes.
    pub(super) hours: f64,
}

/// The time for which a device is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) from: f64,
    pub(super) until: f64,
}

/// A week of so many GPUs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trace {
    /// By the time at which they are queued.
    pub(super) jobs: Vec<Job>,
    /// Of each device, the first one first.
    pub(super) faults: Vec<Vec<Fault>>,
}

impl Trace {
    pub(super) fn of(seed: u64, gpus: usize) -> Self {
        let mut random = Random::of(seed);
        let jobs = (0..gpus * JOBS_FOR_A_GPU).map(|_| Job {
            at: arrival(&mut random),
            hours: length(random.unit()),
        });
        let mut jobs: Vec<Job> = jobs.collect();
        jobs.sort_by(|a, b| a.at.total_cmp(&b.at));
        let faults = (0..gpus).map(|_| faults(&mut random)).collect();
        Self { jobs, faults }
    }

    /// The first fault of a device that is not over by then and begins before the end.
    pub(super) fn fault(&self, device: usize, now: f64, end: f64) -> Option<Fault> {
        let mut all = self.faults.get(device)?.iter();
        all.find(|fault| now < fault.until && fault.from < end)
            .copied()
    }
}

fn arrival(random: &mut Random) -> f64 {
    let all: usize = ARRIVALS.iter().map(|count| usize::from(*count)).sum();
    let mut rest = random.below(all);
    let mut begins = 0.0;
    for count in ARRIVALS.map(usize::from) {
        if rest < count {
            break;
        }
        rest -= count;
        begins += 1.0;
    }
    begins + random.unit()
}

/// The length, in hours, that so large a part of the jobs stays below.
fn length(part: f64) -> f64 {
    let mut rest = part * 20.0;
    for pair in LENGTHS.windows(2) {
        if rest < 1.0 {
            let seconds = pair[0] * (pair[1] / pair[0]).powf(rest);
            return (seconds / 3600.0).min(LONGEST);
        }
        rest -= 1.0;
    }
    LONGEST
}

/// One device's: the time until the next is exponential.
fn faults(random: &mut Random) -> Vec<Fault> {
    let mut all = vec![];
    let mut sound_since = 0.0;
    loop {
        let from = sound_since - BETWEEN / FASTER * (1.0 - random.unit()).ln();
        if from >= WEEK {
            return all;
        }
        sound_since = from + REPAIR;
        all.push(Fault {
            from,
            until: sound_since,
        });
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "counts of thousands")]
mod tests {
    use super::*;

    const MANY: usize = 5000;

    #[test]
    fn a_seed_decides_the_week() {
        assert_eq!(Trace::of(1, 8), Trace::of(1, 8));
        assert_ne!(Trace::of(1, 8), Trace::of(2, 8));
    }

    #[test]
    fn jobs_come_in_the_recorded_shape() {
        let jobs = Trace::of(1, MANY).jobs;
        assert!(jobs.is_sorted_by(|a, b| a.at <= b.at));
        let recorded: f64 = ARRIVALS.iter().map(|count| f64::from(*count)).sum();
        let mut hour = 0.0;
        for count in ARRIVALS {
            let within = hour..hour + 1.0;
            let here = jobs.iter().filter(|job| within.contains(&job.at)).count();
            let part = here as f64 / jobs.len() as f64;
            let expected = f64::from(count) / recorded;
            assert!((part / expected - 1.0).abs() < 0.15, "hour {hour}: {part}");
            hour += 1.0;
        }
    }

    #[test]
    fn jobs_are_as_long_as_recorded() {
        let mut hours: Vec<f64> = Trace::of(1, MANY).jobs.iter().map(|j| j.hours).collect();
        hours.sort_by(f64::total_cmp);
        let median = hours[hours.len() / 2] * 3600.0;
        assert!((median / 1186.0 - 1.0).abs() < 0.05, "{median} s");
        // That of the recorded ones, cut to a day. Of the longest twentieth no more than its ends is kept here.
        let mean = hours.iter().sum::<f64>() / hours.len() as f64;
        assert!((mean / 1.89 - 1.0).abs() < 0.1, "{mean} h");
        assert_eq!(hours.last(), Some(&LONGEST));
    }

    #[test]
    fn devices_fail_at_the_published_rate_and_one_fault_at_a_time() {
        let faults = Trace::of(1, MANY).faults;
        let broken: f64 = faults.iter().flatten().map(|f| f.until - f.from).sum();
        let sound = MANY as f64 * WEEK - broken;
        let between = sound / faults.iter().flatten().count() as f64 * FASTER;
        assert!((between / 79_231.0 - 1.0).abs() < 0.05, "{between} h");
        for of_device in &faults {
            let lasts = |f: &Fault| (f.until - f.from - REPAIR).abs() < 1e-9;
            assert!(of_device.iter().all(lasts));
            assert!(of_device.windows(2).all(|two| two[0].until <= two[1].from));
        }
    }

    #[test]
    fn a_job_meets_the_fault_that_is_there_or_comes() {
        let fault = Fault {
            from: 2.0,
            until: 3.0,
        };
        let trace = Trace {
            jobs: vec![],
            faults: vec![vec![], vec![fault]],
        };
        for (now, end, meets) in [
            (0.0, 1.0, false),
            (1.0, 2.0, false),
            (1.0, 2.1, true),
            (2.5, 2.6, true),
            (3.0, 9.0, false),
        ] {
            assert_eq!(trace.fault(1, now, end), meets.then_some(fault), "{now}");
            assert_eq!(trace.fault(0, now, end), None);
        }
    }
}
