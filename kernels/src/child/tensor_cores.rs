//! f16 matrix products on the tensor cores, one for each multiprocessor, compared in full.
//!
//! Elements are small integers, so sums are exact whatever the order in which the hardware adds.

use gate_report::Step;

use super::calls::Called;
use super::functions::Handle;
use super::pattern::{CANARY, mix};
use super::test::{Bench, judge};

/// Rows and columns of a tile.
const SIZE: usize = 16;
/// Elements of a tile.
const TILE: usize = SIZE * SIZE;
/// Lanes of a warp: one makes a tile.
const WARP: u32 = 32;

impl Bench<'_> {
    /// Multiplies, waits and compares.
    pub(super) fn tensor_cores(&mut self, kernel: Handle, stream: Handle) -> Called<()> {
        let tiles = self.report().multiprocessors.unwrap_or(1).clamp(1, 1024);
        let products = Products::new(tiles);
        self.step(Step::TensorCores, |driver| {
            let a = driver.allocate(products.a.len())?;
            let b = driver.allocate(products.b.len())?;
            let out = driver.allocate(products.before.len())?;
            driver.copy_to_device(a, &products.a)?;
            driver.copy_to_device(b, &products.b)?;
            driver.copy_to_device(out, &products.before)?;
            let mut parameters = [out.word(CANARY), a.address, b.address];
            driver.launch(kernel, tiles, WARP, stream, &mut parameters)?;
            driver.synchronize(stream)?;
            let mut found = vec![0; products.after.len()];
            driver.copy_to_host(&mut found, out)?;
            judge(driver, "tensor cores", &found, &products.after)
        })
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
        let elements = tiles as usize * TILE;
        let a: Vec<i16> = (0..).take(elements).map(|i| element(2 * i)).collect();
        let b: Vec<i16> = (0..).take(elements).map(|i| element(2 * i + 1)).collect();
        let before: Vec<u32> = (0..).take(elements + 2 * CANARY).map(|i| !mix(i)).collect();
        let mut after = before.clone();
        let products = a.chunks(TILE).zip(b.chunks(TILE)).flat_map(|(a, b)| {
            a.chunks(SIZE)
                .flat_map(move |row| b.chunks(SIZE).map(move |column| product(row, column)))
        });
        for (word, product) in after[CANARY..].iter_mut().zip(products) {
            *word = f32::from(product).to_bits();
        }
        Self {
            a: packed(&a),
            b: packed(&b),
            before,
            after,
        }
    }
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
    fn halves_are_packed_low_first() {
        assert_eq!(packed(&[1, -2]), [0xc000_3c00]);
        assert_eq!(packed(&[0, 8]), [0x4800_0000]);
    }

    #[test]
    fn a_product_is_a_row_times_a_column() {
        let products = Products::new(2);
        assert_eq!(products.a.len(), 2 * TILE / 2);
        let value = |i: u32, odd: u32| f32::from(element(2 * i + odd));
        // Row 3, column 5 of the second tile.
        let sum: f32 = (0..16)
            .map(|k| value(256 + 3 * 16 + k, 0) * value(256 + 5 * 16 + k, 1))
            .sum();
        assert_eq!(products.after[CANARY + 256 + 3 * 16 + 5], sum.to_bits());
    }
}
