//! What NVML says of the use of a device: as its configuration has it, whatever programs do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

use serde::Deserialize;

/// The use of a device. `null` is not supported.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Activity {
    /// In percent, one for each question; the last one stays.
    pub(crate) utilization: Option<Vec<u32>>,
    /// Whether the driver keeps samples of it.
    pub(crate) samples: bool,
    /// In bytes; what the device has not free where absent.
    pub(crate) memory_used: Option<u64>,
    pub(crate) clock_mhz: Option<u32>,
    pub(crate) celsius: Option<u32>,
    /// What it takes from the first question on.
    pub(crate) watts: Option<u64>,
    /// The first answer, and what each question adds.
    pub(crate) corrected_errors: Option<(u64, u64)>,
    pub(crate) uncorrected_errors: Option<(u64, u64)>,
    pub(crate) pcie_replays: Option<(u64, u64)>,
    /// Told once its utilisation has been asked for.
    pub(crate) xids: Vec<u64>,
}

impl Default for Activity {
    /// A device that nobody uses.
    fn default() -> Self {
        Self {
            utilization: Some(vec![0]),
            samples: true,
            memory_used: None,
            clock_mhz: Some(1410),
            celsius: Some(35),
            watts: Some(60),
            corrected_errors: Some((0, 0)),
            uncorrected_errors: Some((0, 0)),
            pcie_replays: Some((0, 0)),
            xids: vec![],
        }
    }
}

/// What is counted of a device, or told once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    Utilization,
    Corrected,
    Uncorrected,
    Replays,
    Xids,
}

const QUESTIONS: usize = 5;
/// More than any configuration has.
const DEVICES: usize = 64;

/// How often each was asked of each device.
static ASKED: Mutex<[[u64; QUESTIONS]; DEVICES]> = Mutex::new([[0; QUESTIONS]; DEVICES]);

/// How often it was asked before.
fn asked(device: usize, question: Question) -> u64 {
    let mut all = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    let times = &mut all[device % DEVICES][question as usize];
    *times += 1;
    *times - 1
}

impl Activity {
    /// The next value.
    pub(crate) fn utilization(&self, device: usize) -> Option<u32> {
        let all = self.utilization.as_ref()?;
        let number = asked(device, Question::Utilization);
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        all.get(number).or(all.last()).copied()
    }

    /// A count that may grow.
    pub(crate) fn count(&self, device: usize, question: Question) -> Option<u64> {
        let (first, step) = match question {
            Question::Corrected => self.corrected_errors,
            Question::Uncorrected => self.uncorrected_errors,
            Question::Replays => self.pcie_replays,
            Question::Utilization | Question::Xids => None,
        }?;
        Some(first + step * asked(device, question))
    }

    /// In millijoules.
    pub(crate) fn energy(&self) -> Option<u64> {
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        let milliseconds = u64::try_from(BEGAN.elapsed().as_millis()).unwrap_or(u64::MAX);
        Some(self.watts? * milliseconds)
    }

    /// The XIDs, the first time after a look at the utilisation.
    pub(crate) fn new_xids(&self, device: usize) -> &[u64] {
        let looks = ASKED.lock().unwrap_or_else(PoisonError::into_inner)[device % DEVICES][0];
        if looks < 2 || asked(device, Question::Xids) > 0 {
            return &[];
        }
        &self.xids
    }
}

/// Microseconds that go on with each question.
pub(crate) fn sample_time() -> u64 {
    static TIME: AtomicU64 = AtomicU64::new(1_000_000);
    TIME.fetch_add(166_000, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_question_has_the_next_answer_and_the_last_one_stays() {
        const DEVICE: usize = DEVICES - 1;
        let activity = Activity {
            utilization: Some(vec![0, 71]),
            uncorrected_errors: Some((4, 2)),
            xids: vec![79],
            ..Activity::default()
        };
        assert!(activity.new_xids(DEVICE).is_empty());
        let busy: Vec<_> = (0..3).map(|_| activity.utilization(DEVICE)).collect();
        assert_eq!(busy, [Some(0), Some(71), Some(71)]);
        let errors = || activity.count(DEVICE, Question::Uncorrected);
        assert_eq!((errors(), errors()), (Some(4), Some(6)));
        assert_eq!(activity.new_xids(DEVICE), [79]);
        assert!(activity.new_xids(DEVICE).is_empty());
        assert!(sample_time() < sample_time());
    }
}
