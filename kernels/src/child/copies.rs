//! Copies between host and device, timed.
//!
//! Host memory is pageable, as in most programs: what is measured is what a job gets, and less than what the link can
//! do with pinned memory.

use std::time::{Duration, Instant};

use gate_report::{Finding, Step};

use super::calls::{Buffer, Called};
use super::pattern::Vectors;
use super::test::Bench;
use crate::times::rounded;

/// Words of the longest copy: 4 MiB. Long enough to tell a link that runs at a fraction of its speed; the pages of more
/// would cost the host more than the copy.
const WORDS: usize = 1 << 20;
/// A copy is made twice, and the better one counts: the first pays for pages that nobody touched before.
const TIMES: usize = 2;

impl Bench<'_> {
    /// Copies there and back, and compares.
    pub(super) fn copies(&mut self, room: Buffer, vectors: &Vectors) -> Called<()> {
        let count = room.words().min(WORDS);
        let mut words = vectors.before.repeat(count.div_ceil(vectors.before.len()));
        words.truncate(count);
        let mut back = vec![0; words.len()];
        let (mut there_time, mut back_time) = (Duration::MAX, Duration::MAX);
        for _ in 0..TIMES {
            let started = Instant::now();
            self.driver
                .at(Step::CopyToDevice)
                .copy_to_device(room, &words)?;
            there_time = there_time.min(started.elapsed());
            let started = Instant::now();
            self.driver
                .at(Step::CopyToHost)
                .copy_to_host(&mut back, room)?;
            back_time = back_time.min(started.elapsed());
        }
        if back != words {
            let wrong = back.iter().zip(&words).position(|(is, must)| is != must);
            let first = wrong.unwrap_or_default();
            let text = format!(
                "copy of {} words to the device and back: word {first} is {:#010x} instead of {:#010x}",
                words.len(),
                back[first],
                words[first]
            );
            let driver = self.driver.at(Step::CopyToHost);
            return Err(driver.stop(Finding::BadMemory, text).into());
        }
        let speed = |time: Duration| {
            #[expect(clippy::cast_precision_loss, reason = "at most 2^24")]
            let bytes = 4.0 * words.len() as f64;
            rounded(bytes / f64::from(1 << 30) / time.as_secs_f64().max(1e-9))
        };
        let (there, back) = (speed(there_time), speed(back_time));
        self.report().host_to_device_gib_per_second = Some(there);
        self.report().device_to_host_gib_per_second = Some(back);
        self.check_speed(Step::CopyToDevice, "from host to device", there)?;
        self.check_speed(Step::CopyToHost, "from device to host", back)
    }

    fn check_speed(&self, step: Step, way: &str, speed: f64) -> Called<()> {
        match self.args.min_copy_gib_per_second {
            Some(floor) if speed < floor => {
                let text = format!(
                    "a copy {way} ran at {speed:.3} GiB/s, and {floor} GiB/s is the least that is asked for"
                );
                Err(self.driver.at(step).stop(Finding::SlowCopy, text).into())
            }
            _ => Ok(()),
        }
    }
}
