//! A walk through a bounded part of the free memory: written by one kernel, looked through by another.

use std::time::{Duration, Instant};

use cudarc::driver::sys::CUresult;
use gate_report::{Device, Finding, Step, Warning};

use super::calls::{Buffer, Called, Driver};
use super::functions::Handle;
use super::pattern::mix;
use super::test::{Bench, THREADS};
use crate::protocol::{Cause, Event, Stop, send};
use crate::times::milliseconds;

/// Words of the first stretch. Each further one is as long as all before it.
const STRETCH: usize = 64 * 1024;
/// Of a shared GPU no more than this is taken.
const SHARED_WORDS: usize = STRETCH;
/// The walk takes at most this part of the free memory.
const PART: u64 = 8;
/// It is at least so many times as long as the L2 cache, or what is read would come from there.
const CACHES: u64 = 4;
/// Words that are written and looked through in memory from the device's pool: a page.
const POOL_WORDS: usize = 1024;
/// What the walk may take, as far as can be told ahead. A GPU needs a fraction of it for all that is asked.
const TIME: Duration = Duration::from_millis(100);
/// Everything is written and looked through twice, the second time inverted.
const FLIPS: [u32; 2] = [0, !0];
const OUT_OF_MEMORY: i32 = CUresult::CUDA_ERROR_OUT_OF_MEMORY as i32;
const NOT_PERMITTED: i32 = CUresult::CUDA_ERROR_NOT_PERMITTED as i32;
const NOT_SUPPORTED: i32 = CUresult::CUDA_ERROR_NOT_SUPPORTED as i32;

impl Bench<'_> {
    /// Walks, and returns the memory that it walked through; `None` where there was none to spare.
    pub(super) fn memory_walk(
        &mut self,
        free: u64,
        kernels: WalkKernels,
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
                        "{}: there was no memory to spare for the memory walk.",
                        stop.detail
                    ),
                    device,
                }));
                return Ok(None);
            }
            Err(stop) => return Err(stop),
        };
        let walk = Walk::through(buffer, driver, kernels, stream)?;
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
        words_to_walk(
            u64::from(self.args.memory_walk_mib) << 20,
            self.l2_bytes(),
            free,
            self.is_shared(),
        )
    }

    /// Memory from the device's pool, as most programs of today take it: written and looked through once.
    pub(super) fn memory_pool(&mut self, kernels: WalkKernels, stream: Handle) -> Called<()> {
        if self.report().memory_pools != Some(true) {
            return Ok(());
        }
        let driver = self.driver.at(Step::Allocate);
        let buffer = match driver.allocate_async(POOL_WORDS, stream) {
            Ok(buffer) => buffer,
            // Some platforms say that they have pools, and refuse. A shared GPU may have no more than a pool's first piece.
            Err(stop)
                if is_refused(&stop)
                    || self.is_shared() && stop.cause == Cause::Code(OUT_OF_MEMORY) =>
            {
                self.report().memory_pools = Some(false);
                return Ok(());
            }
            Err(stop) => return Err(stop),
        };
        // From here on kernels run: one that hangs is the device's fault.
        let driver = self.driver.at(Step::MemoryWalk);
        let walk = Walk::through(buffer, driver, kernels, stream)?;
        walk.write(0, POOL_WORDS, !0)?;
        walk.judge(POOL_WORDS, !0)?;
        driver.free_async(buffer, stream)?;
        driver.synchronize(stream)
    }
}

fn is_refused(stop: &Stop) -> bool {
    matches!(
        stop.cause,
        Cause::Code(NOT_PERMITTED | NOT_SUPPORTED) | Cause::Finding(Finding::MissingSymbol)
    )
}

/// Words to walk through, of those that are free; `None` where nothing is asked for, or too little is free.
fn words_to_walk(asked_bytes: u64, l2_bytes: u64, free: u64, is_shared: bool) -> Option<usize> {
    let most = match asked_bytes {
        0 => 0,
        bytes => bytes.max(CACHES.saturating_mul(l2_bytes)),
    };
    let words = usize::try_from(most.min(free / PART) / 4).unwrap_or(usize::MAX);
    let words = if is_shared {
        words.min(SHARED_WORDS)
    } else {
        words
    };
    (words >= STRETCH).then_some(words)
}

/// `memory_fill` and `memory_check`.
#[derive(Clone, Copy)]
pub(super) struct WalkKernels {
    pub(super) fill: Handle,
    pub(super) check: Handle,
}

/// Memory that is written and looked through.
pub(super) struct Walk<'a> {
    driver: Driver<'a>,
    kernels: WalkKernels,
    stream: Handle,
    buffer: Buffer,
    /// Count of wrong words, and the first of them, of 64 bits each.
    found: Buffer,
}

impl<'a> Walk<'a> {
    pub(super) fn through(
        buffer: Buffer,
        driver: Driver<'a>,
        kernels: WalkKernels,
        stream: Handle,
    ) -> Called<Self> {
        Ok(Self {
            driver,
            kernels,
            stream,
            buffer,
            found: driver.allocate(4)?,
        })
    }

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
        let wrong = !mix(place as u64);
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
        let written = mix(first as u64) ^ flip;
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

    pub(super) fn write(&self, first: usize, words: usize, flip: u32) -> Called<()> {
        let mut parameters = [
            self.buffer.address,
            first as u64,
            words as u64,
            u64::from(flip),
        ];
        self.run(self.kernels.fill, words, &mut parameters)
    }

    /// How many of the words are not as written, and the first of them.
    pub(super) fn wrong_words(&self, words: usize, flip: u32) -> Called<Option<(u64, usize)>> {
        self.driver
            .copy_to_device(self.found, &[0, 0, u32::MAX, u32::MAX])?;
        let mut parameters = [
            self.buffer.address,
            0,
            words as u64,
            u64::from(flip),
            self.found.address,
        ];
        self.run(self.kernels.check, words, &mut parameters)?;
        let mut found = [0; 4];
        self.driver.copy_to_host(&mut found, self.found)?;
        let [count, first] = [[found[0], found[1]], [found[2], found[3]]].map(long);
        let first = usize::try_from(first).unwrap_or(usize::MAX).min(words - 1);
        Ok((count > 0).then_some((count, first)))
    }

    fn run(&self, kernel: Handle, words: usize, parameters: &mut [u64]) -> Called<()> {
        self.driver
            .launch(kernel, blocks(words), THREADS, self.stream, parameters)?;
        self.driver.synchronize(self.stream)
    }
}

/// Two words as one number, the low one first.
fn long([low, high]: [u32; 2]) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Blocks with a thread for each word. As many as a grid may have are enough for 2 TiB.
fn blocks(words: usize) -> u32 {
    u32::try_from(words.div_ceil(THREADS as usize)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use cuda::ptx::{Global, Launch, Module, parse, run};

    use super::*;
    use crate::child::test::MEMORY_WALK;

    const GIB: u64 = 1 << 30;

    /// Memory of any size, of which only what was written is there.
    #[derive(Default)]
    struct Sparse(HashMap<u64, u64>);

    impl Global for Sparse {
        type Error = String;

        fn load(&mut self, address: u64, _bytes: u32) -> Result<u64, String> {
            let held = self.0.get(&address).copied();
            held.ok_or_else(|| format!("nothing at {address:#x}"))
        }

        fn store(&mut self, address: u64, _bytes: u32, value: u64) -> Result<(), String> {
            self.0.insert(address, value);
            Ok(())
        }
    }

    /// Launches a kernel of the walk as the gate does, with slots of 8 bytes.
    fn launch(module: &Module, name: &str, n: u64, slots: &[u64], memory: &mut Sparse) {
        let kernel = module.kernels.iter().find(|k| k.name == name).unwrap();
        let mut params = vec![0; kernel.param_bytes()];
        for (param, slot) in kernel.params.iter().zip(slots) {
            params[param.offset..param.offset + param.size]
                .copy_from_slice(&slot.to_le_bytes()[..param.size]);
        }
        let launch = Launch {
            kernel,
            grid: [blocks(usize::try_from(n).unwrap()), 1, 1],
            block: [THREADS, 1, 1],
            params: &params,
        };
        run(&launch, memory).unwrap();
    }

    #[test]
    fn kernels_and_host_agree_at_any_position() {
        const FOUND: u64 = 1 << 60;
        let module = parse(MEMORY_WALK.to_str().unwrap()).unwrap();
        for first in [0, u64::from(u32::MAX) - 300, 1 << 32, (1 << 40) + 12345] {
            // Given words that a kernel wrote from there on
            let (n, flip) = (600, 0xffff_0000);
            let mut memory = Sparse::default();
            let fill = [0, first, n, flip];
            launch(&module, "memory_fill", n, &fill, &mut memory);

            // Then they are those that the host would have written
            for i in first..first + n {
                let must = u64::from(mix(i)) ^ flip;
                assert_eq!(memory.0.get(&(4 * i)), Some(&must), "word {i}");
            }
            assert_eq!(memory.0.len(), 600, "and no others");

            // And the other kernel finds those that are wrong, and which is the first
            for (wrong, found) in [
                (&[][..], (0, u64::MAX)),
                (&[599, 7, 300], (3, first + 7)),
                (&[511], (1, first + 511)),
            ] {
                memory.0.extend([(FOUND, 0), (FOUND + 8, u64::MAX)]);
                for place in wrong {
                    *memory.0.get_mut(&(4 * (first + place))).unwrap() ^= 1;
                }
                let check = [0, first, n, flip, FOUND];
                launch(&module, "memory_check", n, &check, &mut memory);
                assert_eq!((memory.0[&FOUND], memory.0[&(FOUND + 8)]), found);
                for place in wrong {
                    *memory.0.get_mut(&(4 * (first + place))).unwrap() ^= 1;
                }
            }
        }
    }

    #[test]
    fn every_word_has_its_thread() {
        assert_eq!(blocks(1), 1);
        assert_eq!(blocks(256), 1);
        assert_eq!(blocks(257), 2);
        // 16 GiB and one word
        assert_eq!(blocks((1 << 32) + 1), (1 << 24) + 1);
        assert_eq!(long([7, 1]), (1 << 32) + 7);
    }

    #[test]
    fn a_walk_is_longer_than_the_cache_and_leaves_most_memory_alone() {
        let mib = |words: Option<usize>| words.map(|words| words >> 18);
        let walk =
            |asked: u64, l2: u64, free| mib(words_to_walk(asked << 20, l2 << 20, free, false));
        assert_eq!(walk(64, 4, 15 * GIB), Some(64), "a small cache");
        assert_eq!(walk(64, 96, 31 * GIB), Some(384), "four times a large one");
        assert_eq!(walk(64, 96, GIB), Some(128), "an eighth of what is free");
        assert_eq!(walk(32 * 1024, 50, 1024 * GIB), Some(32 * 1024));
        assert_eq!(walk(0, 96, 31 * GIB), None, "not asked for");
        assert_eq!(walk(64, 96, 1 << 20), None, "too little");
        assert_eq!(words_to_walk(1 << 26, 1 << 26, GIB, true), Some(STRETCH));
    }
}
