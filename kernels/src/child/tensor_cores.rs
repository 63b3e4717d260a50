//! f16 matrix products on all tensor cores, compared in full, then a load of them that compares itself.
//!
//! Elements are small integers, so sums are exact whatever the order in which the hardware adds. A zero may have either
//! sign: IEEE 754 counts both as equal, and nothing says which one a tensor core gives.

use std::time::{Duration, Instant};

use gate_report::{Finding, Step};

use super::calls::{Buffer, Called, Driver};
use super::functions::Handle;
use super::pattern::{CANARY, mix};
use super::test::{Bench, judge};

/// Rows and columns of a tile.
const SIZE: usize = 16;
/// Elements of a tile.
const TILE: usize = SIZE * SIZE;
/// Tiles that are none like the other; then they come again. A prime, so that no two warps or blocks side by side have the
/// same. More would cost the host time, and say no more.
const DISTINCT: usize = 61;
/// Lanes of a warp: one makes a tile.
const WARP: u32 = 32;
/// Warps of a block, of which each multiprocessor has one: two for each of the four tensor cores, so that one computes
/// while another waits.
const WARPS: u32 = 8;
/// The load is at an end after so many milliseconds of the device's time.
const ENOUGH: f64 = 50.0;
/// What it aims at, so that it is not short of that.
const AIM: f64 = 75.0;
/// A GPU has done the first round in a fraction of these milliseconds. Who has not is simulated, or does something else
/// besides: one round is enough for it.
const SLOW: f64 = 0.5;
/// No more than this of our own time, whatever the device's clock says.
const LIMIT: Duration = Duration::from_millis(250);
/// How many times as long as a launch the next one may be: its time is foretold from that one's.
const GROWTH: f64 = 32.0;

impl Bench<'_> {
    /// Multiplies, waits and compares.
    pub(super) fn tensor_cores(&mut self, kernel: Handle, stream: Handle) -> Called<()> {
        let multiprocessors = self.report().multiprocessors.unwrap_or(1).clamp(1, 1024);
        let products = Products::new(multiprocessors * WARPS);
        let with_load = !self.args.shared;
        let load = self.step(Step::TensorCores, |driver| {
            let a = driver.allocate(products.a.len())?;
            let b = driver.allocate(products.b.len())?;
            let out = driver.allocate(products.before.len())?;
            let found = driver.allocate(1)?;
            driver.copy_to_device(a, &products.a)?;
            driver.copy_to_device(b, &products.b)?;
            driver.copy_to_device(out, &products.before)?;
            driver.copy_to_device(found, &[0])?;
            let cores = Cores {
                driver,
                kernel,
                stream,
                blocks: multiprocessors,
                matrices: [out.word(CANARY), a.address, b.address],
                found,
                events: [driver.event()?, driver.event()?],
            };
            cores.multiply(0)?;
            cores.judge(out, &products)?;
            if !with_load {
                return Ok(None);
            }
            let ms = cores.load()?;
            cores.judge_load(ms)?;
            cores.judge(out, &products)?;
            Ok(Some(ms))
        })?;
        self.report().tensor_load_ms = load.map(crate::times::rounded);
        Ok(())
    }
}

/// All tensor cores of a device, with something to multiply.
struct Cores<'a> {
    driver: Driver<'a>,
    kernel: Handle,
    stream: Handle,
    blocks: u32,
    /// Addresses of the product and of both factors.
    matrices: [u64; 3],
    /// How many lanes saw a sum change.
    found: Buffer,
    /// Start and end of a launch.
    events: [Handle; 2],
}

impl Cores<'_> {
    /// Multiplies once, and for each round four times more; milliseconds by the device's clock.
    fn multiply(&self, rounds: u32) -> Called<f64> {
        let [out, a, b] = self.matrices;
        let [start, end] = self.events;
        let mut parameters = [out, a, b, rounds.into(), self.found.address];
        self.driver.record(start, self.stream)?;
        self.driver.launch(
            self.kernel,
            self.blocks,
            WARPS * WARP,
            self.stream,
            &mut parameters,
        )?;
        self.driver.record(end, self.stream)?;
        self.driver.synchronize(self.stream)?;
        self.driver.elapsed(start, end)
    }

    /// Keeps all cores busy for a while; milliseconds by the device's clock.
    fn load(&self) -> Called<f64> {
        let began = Instant::now();
        let mut rounds = 1;
        let mut spent = 0.0;
        loop {
            let started = Instant::now();
            let ms = self.multiply(rounds)?;
            spent += sane(ms);
            let is_slow = rounds == 1 && ms > SLOW;
            if is_slow || spent >= ENOUGH || began.elapsed() >= LIMIT {
                return Ok(spent);
            }
            // Ours is the longer time, unless the device's clock is wrong.
            let taken = sane(ms).max(1e3 * started.elapsed().as_secs_f64());
            rounds = next_rounds(rounds, taken, AIM - spent);
        }
    }

    fn judge_load(&self, ms: f64) -> Called<()> {
        let mut found = [0];
        self.driver.copy_to_host(&mut found, self.found)?;
        match found {
            [0] => Ok(()),
            [lanes] => {
                let text = format!(
                    "tensor cores: {lanes} lanes saw a sum of small integers change in {ms:.0} ms of load"
                );
                Err(self.driver.stop(Finding::WrongResult, text).into())
            }
        }
    }

    fn judge(&self, out: Buffer, products: &Products) -> Called<()> {
        let mut found = vec![0; products.after.len()];
        self.driver.copy_to_host(&mut found, out)?;
        if found != products.after {
            without_negative_zeros(&mut found, &products.after);
        }
        judge(self.driver, "tensor cores", &found, &products.after)
    }
}

/// A time that may be anything, as a number of milliseconds.
fn sane(ms: f64) -> f64 {
    // A NaN is not above 0.
    if ms > 0.0 { ms.min(1e6) } else { 0.0 }
}

/// How many rounds fill what is left, after some took so many milliseconds.
fn next_rounds(rounds: u32, took_ms: f64, left_ms: f64) -> u32 {
    let factor = (left_ms / took_ms.max(1e-3)).clamp(1.0, GROWTH);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and what does not fit becomes the largest"
    )]
    let next = (f64::from(rounds) * factor) as u32;
    next
}

/// Takes the sign off zeros that may have either.
fn without_negative_zeros(found: &mut [u32], expected: &[u32]) {
    let negative_zero = (-0.0_f32).to_bits();
    for (word, must) in found.iter_mut().zip(expected) {
        if *must == 0 && *word == negative_zero {
            *word = 0;
        }
    }
}

/// Inputs and expectation.
struct Products {
    /// By rows, two elements in a word.
    a: Vec<u32>,
    /// By columns, two elements in a word.
    b: Vec<u32>,
    /// Canaries all over.
    before: Vec<u32>,
    /// Canaries around the products, which are by rows.
    after: Vec<u32>,
}

impl Products {
    fn new(tiles: u32) -> Self {
        let tiles = tiles as usize;
        let elements = tiles.min(DISTINCT) * TILE;
        let a: Vec<i16> = (0..).take(elements).map(|i| element(2 * i)).collect();
        let b: Vec<i16> = (0..).take(elements).map(|i| element(2 * i + 1)).collect();
        let products = a.chunks(TILE).zip(b.chunks(TILE)).flat_map(|(a, b)| {
            a.chunks(SIZE)
                .flat_map(move |row| b.chunks(SIZE).map(move |column| product(row, column)))
        });
        let products: Vec<u32> = products
            .map(|product| f32::from(product).to_bits())
            .collect();
        let canary: Vec<u32> = (0_u32..).take(CANARY).map(|i| !mix(i)).collect();
        let before = repeated(&canary, tiles * TILE + 2 * CANARY);
        Self {
            a: repeated(&packed(&a), tiles * TILE / 2),
            b: repeated(&packed(&b), tiles * TILE / 2),
            after: [
                &before[..CANARY],
                &repeated(&products, tiles * TILE),
                &before[CANARY + tiles * TILE..],
            ]
            .concat(),
            before,
        }
    }
}

/// So many words, the same ones over and over.
fn repeated(words: &[u32], length: usize) -> Vec<u32> {
    let mut all = words.repeat(length.div_ceil(words.len()));
    all.truncate(length);
    all
}

fn product(row: &[i16], column: &[i16]) -> i16 {
    row.iter().zip(column).map(|(a, b)| a * b).sum()
}

/// From -7 to 8, as its position wants.
fn element(position: u32) -> i16 {
    i16::try_from(mix(position) >> 28).unwrap_or(0) - 7
}

/// As f16, two in a word, the first one low.
fn packed(elements: &[i16]) -> Vec<u32> {
    elements
        .chunks(2)
        .map(|pair| {
            pair.iter()
                .rev()
                .fold(0, |word, element| word << 16 | half(*element))
        })
        .collect()
}

/// A small integer as an f16.
fn half(value: i16) -> u32 {
    const MAGNITUDES: [u32; 9] = [
        0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, 0x4800,
    ];
    let sign = if value < 0 { 0x8000 } else { 0 };
    sign | MAGNITUDES
        .get(usize::from(value.unsigned_abs()))
        .copied()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_zero_may_have_either_sign() {
        let bits = f32::to_bits;
        let expected = [bits(0.0), bits(1.0), bits(0.0), bits(-0.0)];
        let mut found = [bits(-0.0), bits(-1.0), bits(0.0), bits(-0.0)];
        without_negative_zeros(&mut found, &expected);
        assert_eq!(found, [bits(0.0), bits(-1.0), bits(0.0), bits(-0.0)]);
    }

    #[test]
    fn the_load_fills_its_time_whatever_the_clock_says() {
        assert_eq!(next_rounds(1, 0.01, 75.0), 32, "step by step");
        assert_eq!(next_rounds(1000, 10.0, 65.0), 6500);
        assert_eq!(next_rounds(1000, 100.0, 5.0), 1000, "and never less");
        for odd in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            assert!(sane(odd).abs() < f64::EPSILON, "{odd}");
            assert_eq!(next_rounds(10, sane(odd), 75.0), 320, "{odd}");
        }
        assert_eq!(next_rounds(u32::MAX, 1.0, 75.0), u32::MAX);
        assert!(sane(f64::INFINITY) <= 1e6);
    }

    #[test]
    fn halves_are_packed_low_first() {
        assert_eq!(packed(&[1, -2]), [0xc000_3c00]);
        assert_eq!(packed(&[0, 8]), [0x4800_0000]);
    }

    #[test]
    fn a_product_is_a_row_times_a_column() {
        let products = Products::new(2);
        assert_eq!(products.a.len(), 2 * TILE / 2);
        let value = |i: u32, odd: u32| f32::from(element(2 * i + odd));
        let again = Products::new(u32::try_from(DISTINCT).unwrap() + 2);
        let tile =
            |products: &Products, i: usize| products.after[CANARY + i * TILE..][..TILE].to_vec();
        assert_eq!(tile(&again, DISTINCT + 1), tile(&products, 1));
        assert_eq!(again.after.len(), (DISTINCT + 2) * TILE + 2 * CANARY);
        assert_eq!(again.a.len(), (DISTINCT + 2) * TILE / 2);
        // Row 3, column 5 of the second tile.
        let sum: f32 = (0..16)
            .map(|k| value(256 + 3 * 16 + k, 0) * value(256 + 5 * 16 + k, 1))
            .sum();
        assert_eq!(products.after[CANARY + 256 + 3 * 16 + 5], sum.to_bits());
    }
}
