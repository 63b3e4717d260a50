//! What takes long is sampled in a run of all suites: other cases in each run. `SAMPLE=all` takes all of them, and
//! `SAMPLE=SEED` the sample of that seed, which each run prints.

use std::time::SystemTime;

/// This many of them, in their order.
pub(super) fn sample<T>(
    suite: &str,
    all: Vec<T>,
    size: usize,
    name: impl Fn(&T) -> &str,
) -> Vec<T> {
    let wanted = std::env::var("SAMPLE").unwrap_or_default();
    if wanted == "all" || all.len() <= size {
        return all;
    }
    let seed = wanted.parse().unwrap_or_else(|_| {
        let now = SystemTime::UNIX_EPOCH.elapsed();
        now.map_or(1, |now| now.subsec_nanos())
    });
    println!("{suite}: the sample of SAMPLE={seed}");
    // Any choice does that differs with the seed.
    let mut ranks: Vec<u64> = all.iter().map(|case| rank(seed, name(case))).collect();
    ranks.sort_unstable();
    let last = ranks.get(size.saturating_sub(1)).copied();
    let mut all = all;
    all.retain(|case| Some(rank(seed, name(case))) <= last);
    all
}

/// A number for a text, another one for each seed: FNV-1a.
fn rank(seed: u32, text: &str) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(text.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
