//! A walk through a bounded part of the free memory: written by one kernel, looked through by another.

use std::time::{Duration, Instant};

use gate_report::{Device, Finding, Step, Warning};

use super::calls::{Buffer, Called, Driver};
use super::functions::Handle;
use super::pattern::mix;
use super::test::{Bench, THREADS};
use crate::protocol::{Cause, Event, send};
use crate::times::milliseconds;

/// Words of the first stretch. Each further one is as long as all before it.
const STRETCH: usize = 64 * 1024;
/// Of a shared GPU no more than this is taken.
const SHARED_WORDS: usize = STRETCH;
/// The walk takes at most this part of the free memory.
const PART: u64 = 8;
/// What the walk may take, as far as can be told ahead. A GPU needs a fraction of it for all that is asked.
const TIME: Duration = Duration::from_millis(100);
/// Everything is written and looked through twice, the second time inverted.
const FLIPS: [u32; 2] = [0, !0];
/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: i32 = 2;

impl Bench<'_> {
    /// Walks, and returns the memory that it walked through; `None` where there was none to spare.
    pub(super) fn memory_walk(
        &mut self,
        free: u64,
        fill: Handle,
        check: Handle,
        stream: Handle,
    ) -> Called<Option<Buffer>> {
        let Some(words) = self.words_to_walk(free) else {
            return Ok(None);
        };
        let started = Instant::now();
        let driver = self.driver.at(Step::MemoryWalk);
        let buffer = match driver.allocate(words) {
            Ok(buffer) => buffer,
            Err(stop) if self.is_shared() && stop.cause == Cause::Code(OUT_OF_MEMORY) => {
                let device = Some(self.report().ordinal);
                send(&Event::Warning(Warning {
                    reason: "MemoryWalkSkipped".into(),
                    message: format!(
                        "{}: the GPU's other users hold its memory, so there was no memory walk.",
                        stop.detail
                    ),
                    device,
                }));
                return Ok(None);
            }
            Err(stop) => return Err(stop),
        };
        let walk = Walk {
            driver,
            fill,
            check,
            stream,
            buffer,
            found: driver.allocate(2)?,
        };
        let walked = walk.fill_in_stretches(words)?;
        walk.find_planted(walked)?;
        for flip in FLIPS {
            walk.write(0, walked, flip)?;
            walk.judge(walked, flip)?;
        }
        self.note(Step::MemoryWalk, milliseconds(started));
        let Device {
            memory_walk_bytes, ..
        } = self.report();
        *memory_walk_bytes = Some(4 * walked as u64);
        Ok(Some(buffer))
    }

    fn words_to_walk(&self, free: u64) -> Option<usize> {
        let most = self.args.memory_walk_mib as usize * (1 << 20) / 4;
        let most = if self.is_shared() {
            most.min(SHARED_WORDS)
        } else {
            most
        };
        let words = usize::try_from(free / PART / 4)
            .unwrap_or(usize::MAX)
            .min(most);
        (words >= STRETCH).then_some(words)
    }
}

struct Walk<'a> {
    driver: Driver<'a>,
    fill: Handle,
    check: Handle,
    stream: Handle,
    buffer: Buffer,
    /// Count of wrong words, and the first of them.
    found: Buffer,
}

impl Walk<'_> {
    /// Writes stretch by stretch, as long as what is left to do will fit into the time; returns how far it came.
    fn fill_in_stretches(&self, words: usize) -> Called<usize> {
        let started = Instant::now();
        let mut walked = words.min(STRETCH);
        self.write(0, walked, 0)?;
        // All that is written takes as long once more to be looked through, and that for each flip.
        let passes = u32::try_from(2 * FLIPS.len() + 2).unwrap_or(u32::MAX);
        while walked < words && started.elapsed() * 2 * passes < TIME {
            let stretch = walked.min(words - walked);
            self.write(walked, stretch, 0)?;
            walked += stretch;
        }
        Ok(walked)
    }

    /// A check that finds nothing proves nothing, unless it finds what is there to find.
    fn find_planted(&self, walked: usize) -> Called<()> {
        let place = walked / 2;
        let wrong = !mix(u32::try_from(place).unwrap_or(0));
        self.driver
            .copy_to_device(self.buffer.from(place), &[wrong])?;
        let found = self.wrong_words(walked, 0)?;
        if found == Some((1, place)) {
            return Ok(());
        }
        let said = match found {
            None => "no word is wrong".to_owned(),
            Some((count, first)) => {
                format!("{count} words are wrong, the first at word {first}")
            }
        };
        Err(self
            .driver
            .stop(
                Finding::BadMemory,
                format!(
                    "memory walk: one wrong word was put at word {place} of {walked}, and the device says that {said}"
                ),
            )
            .into())
    }

    fn judge(&self, walked: usize, flip: u32) -> Called<()> {
        let Some((count, first)) = self.wrong_words(walked, flip)? else {
            return Ok(());
        };
        let mut held = [0];
        self.driver
            .copy_to_host(&mut held, self.buffer.from(first))?;
        let [held] = held;
        let written = mix(u32::try_from(first).unwrap_or(0)) ^ flip;
        Err(self
            .driver
            .stop(
                Finding::BadMemory,
                format!(
                    "memory walk: {count} of {walked} words are not as written; the first is word {first}: {held:#010x} instead of {written:#010x}, bits that differ {:#010x}",
                    held ^ written
                ),
            )
            .into())
    }

    fn write(&self, first: usize, words: usize, flip: u32) -> Called<()> {
        let parameters = [
            self.buffer.address,
            first as u64,
            words as u64,
            u64::from(flip),
        ];
        self.run(self.fill, words, parameters)
    }

    /// How many of the words are not as written, and the first of them.
    fn wrong_words(&self, words: usize, flip: u32) -> Called<Option<(u32, usize)>> {
        self.driver.copy_to_device(self.found, &[0, u32::MAX])?;
        let parameters = [
            self.buffer.address,
            words as u64,
            u64::from(flip),
            self.found.address,
        ];
        self.run(self.check, words, parameters)?;
        let mut found = [0; 2];
        self.driver.copy_to_host(&mut found, self.found)?;
        let [count, first] = found;
        let first = (first as usize).min(words - 1);
        Ok((count > 0).then_some((count, first)))
    }

    fn run(&self, kernel: Handle, words: usize, mut parameters: [u64; 4]) -> Called<()> {
        let blocks = u32::try_from(words).unwrap_or(u32::MAX).div_ceil(THREADS);
        self.driver
            .launch(kernel, blocks, THREADS, self.stream, &mut parameters)?;
        self.driver.synchronize(self.stream)
    }
}
