//! What goes to the device, and what must come back.
//!
//! Every word depends on its position, so a copy that lands elsewhere, a stuck address line or a block that never
//! ran shows, where a constant would hide it. Sums are exact in the sense of IEEE 754: host and device round alike.

/// Words of canary on each side of the output.
pub(super) const CANARY: usize = 1024;

/// How many elements: enough to occupy every multiprocessor of today's largest GPUs, and no multiple of any block.
pub(super) const ELEMENTS: usize = 320 * 1024 + 7;

/// Mixes all bits of the position into all bits of the word (the finaliser of Murmur hash 3).
///
/// The low half of a position is mixed; the high half is in its seed. The kernels do the same.
pub(super) fn mix(position: impl Into<u64>) -> u32 {
    const SEED: u32 = 0x9e37_79b9;
    let position = position.into();
    #[expect(clippy::cast_possible_truncation, reason = "a half each")]
    let [low, high] = [position, position >> 32].map(|half| half as u32);
    let mut word = low.wrapping_add(high.wrapping_add(1).wrapping_mul(SEED));
    word = (word ^ (word >> 16)).wrapping_mul(0x85eb_ca6b);
    word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// A finite float of magnitude 1 to 2 with all of its fraction in use, and either sign.
fn float(position: u32) -> f32 {
    const SIGN_AND_FRACTION: u32 = 0x807f_ffff;
    const ONE: u32 = 0x3f80_0000;
    f32::from_bits(mix(position) & SIGN_AND_FRACTION | ONE)
}

/// Inputs and expectation of a vector addition.
pub(super) struct Vectors {
    pub(super) a: Vec<u32>,
    pub(super) b: Vec<u32>,
    /// What the output buffer holds before the kernel: canaries all over, which it must replace in the middle.
    pub(super) before: Vec<u32>,
    /// What the output buffer must hold afterwards.
    pub(super) after: Vec<u32>,
}

impl Vectors {
    /// Vectors of so many elements.
    pub(super) fn new(elements: usize) -> Self {
        let inputs = |of: fn(u32) -> u32| -> Vec<u32> {
            let positions = (0_u32..).take(elements);
            positions.map(|i| float(of(i)).to_bits()).collect()
        };
        let (a, b) = (inputs(|i| 2 * i), inputs(|i| 2 * i + 1));
        let before: Vec<u32> = (0_u32..)
            .take(elements + 2 * CANARY)
            .map(|i| !mix(i))
            .collect();
        let mut after = before.clone();
        for ((word, &a), &b) in after[CANARY..].iter_mut().zip(&a).zip(&b) {
            *word = (f32::from_bits(a) + f32::from_bits(b)).to_bits();
        }
        Self {
            a,
            b,
            before,
            after,
        }
    }
}

/// How an output differs from what it must be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// The kernel's own part is wrong.
    Result(String),
    /// Memory around it was written to.
    Canary(String),
}

/// Compares every word. `canary` words on each side are not the kernel's.
pub(super) fn compare(found: &[u32], expected: &[u32], canary: usize) -> Result<(), Difference> {
    // In one call, which is fast however small this program is built.
    if found == expected {
        return Ok(());
    }
    let end = expected.len() - canary;
    let wrong: Vec<usize> = (0..expected.len())
        .filter(|&i| found.get(i) != Some(&expected[i]))
        .collect();
    let (inside, outside): (Vec<_>, Vec<_>) = wrong.iter().partition(|&&i| i >= canary && i < end);
    if let Some(&&first) = inside.first() {
        let (is, must) = (
            found.get(first).copied().unwrap_or_default(),
            expected[first],
        );
        return Err(Difference::Result(format!(
            "{} of {} elements are wrong; the first is element {}: {is:#010x} instead of {must:#010x}, bits that differ {:#010x}",
            inside.len(),
            end - canary,
            first - canary,
            is ^ must,
        )));
    }
    if let Some(&&first) = outside.first() {
        let offset = if first < canary {
            format!("{} words before its start", canary - first)
        } else {
            format!("{} words past its end", first - end + 1)
        };
        return Err(Difference::Canary(format!(
            "{} words outside the kernel's output were overwritten; the first is {offset}",
            outside.len(),
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_output_passes_and_an_untouched_one_does_not() {
        let vectors = Vectors::new(100);
        assert_eq!(compare(&vectors.after, &vectors.after, CANARY), Ok(()));
        assert!(matches!(
            compare(&vectors.before, &vectors.after, CANARY),
            Err(Difference::Result(_))
        ));
    }

    #[test]
    fn one_wrong_bit_anywhere_is_found() {
        let vectors = Vectors::new(100);
        for position in 0..vectors.after.len() {
            let mut found = vectors.after.clone();
            found[position] ^= 1 << (position % 32);
            let inside = (CANARY..CANARY + 100).contains(&position);
            match compare(&found, &vectors.after, CANARY) {
                Err(Difference::Result(text)) => {
                    assert!(inside);
                    assert!(
                        text.contains(&format!("element {}:", position - CANARY)),
                        "{text}"
                    );
                }
                Err(Difference::Canary(_)) => assert!(!inside),
                Ok(()) => panic!("word {position} went unseen"),
            }
        }
    }

    #[test]
    fn words_depend_on_their_position() {
        let vectors = Vectors::new(10_000);
        for words in [&vectors.a, &vectors.b, &vectors.before] {
            let distinct: std::collections::HashSet<_> = words.iter().collect();
            assert!(distinct.len() > words.len() * 99 / 100);
        }
    }

    #[test]
    fn inputs_are_finite() {
        assert!(
            (0..10_000)
                .map(float)
                .all(|x| (1.0..2.0).contains(&x.abs()))
        );
    }
}
