//! Several devices of one pod: each copies to each other, and kernels on two of them talk.
//!
//! Copies alone are no proof. A copy is ordered by the driver; collectives have a kernel on each device, and both wait for
//! what the other one writes into their memory.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::time::{Duration, Instant};

use gate_report::{Context, Finding, Peers, Step, Warning};

use super::calls::{Buffer, Called, Driver};
use super::functions::Handle;
use super::memory_walk::{Walk, WalkKernels};
use super::pattern::mix;
use crate::args::{Enforcement, TestArgs};
use crate::protocol::{Event, Stop, send};

/// Words of a copy, from pass to pass: 4 KiB to 4 MiB.
const PASSES: [usize; 4] = [1 << 10, 1 << 14, 1 << 18, 1 << 20];
/// What all passes may take, as far as can be told ahead.
const TIME: Duration = Duration::from_millis(300);
/// How often the kernels of two devices answer one another.
const ROUNDS: u32 = 64;
/// How long one of them waits, in its multiprocessor's cycles: half a second or more. A word takes microseconds.
const CYCLES: u64 = 1_000_000_000;
/// So many bad pairs say which device is in all of them; each that hangs costs as long as it waits.
const MOST_BAD: usize = 8;

/// A device that has passed, with what it takes to use it further.
pub(super) struct Tested {
    pub(super) ordinal: u32,
    pub(super) uuid: String,
    pub(super) handle: c_int,
    pub(super) context: Handle,
    pub(super) stream: Handle,
    pub(super) walk: WalkKernels,
    pub(super) ping_pong: Handle,
}

/// From one device to another, by their places in the list.
type Pair = (usize, usize);

/// A pair whose way is bad, and what was seen.
struct Bad {
    pair: Pair,
    finding: Finding,
    text: String,
}

/// Lets all devices talk, where there are several that are this pod's alone.
pub(super) fn talk(driver: Driver, devices: &[Tested], args: &TestArgs) -> Called<()> {
    if devices.len() < 2 || args.shared {
        return Ok(());
    }
    let talk = Talk { driver, devices };
    match talk.all(args.peer_access) {
        Err(stop) if driver.is_skip(&stop) => talk.skip(&stop, args.peer_access),
        result => result,
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

struct Talk<'a> {
    driver: Driver<'a>,
    devices: &'a [Tested],
}

/// Memory for copies on one device.
struct Ends<'a> {
    source: Walk<'a>,
    target: Walk<'a>,
    source_buffer: Buffer,
    target_buffer: Buffer,
}

impl<'a> Talk<'a> {
    fn all(&self, wanted: Enforcement) -> Called<()> {
        let all = self.all_pairs();
        let pairs = self.with_access(&all)?;
        let mut report = Peers {
            pairs: count(all.len()),
            with_access: count(pairs.len()),
            ..Peers::default()
        };
        send(&Event::Peers(report.clone()));
        self.judge_access(&all, &pairs, wanted)?;
        let (words, mut bad) = self.copy(&pairs)?;
        if bad.is_empty() {
            report.copied_bytes = 4 * words as u64;
            bad = self.ping_pong(&pairs)?;
            report.round_trips = if bad.is_empty() && !pairs.is_empty() {
                ROUNDS
            } else {
                0
            };
            send(&Event::Peers(report));
        }
        self.judge(&bad, pairs.len())
    }

    /// The platform or the driver has no peer access, whatever it said of single pairs.
    fn skip(&self, stop: &Stop, wanted: Enforcement) -> Called<()> {
        send(&Event::Peers(Peers {
            pairs: count(self.all_pairs().len()),
            ..Peers::default()
        }));
        if wanted == Enforcement::Require {
            return Err(self
                .driver
                .stop(Finding::NoPeerAccess, stop.detail.clone())
                .into());
        }
        let meaning = stop.cause.meaning(Context::at(Step::Peers)).meaning;
        send(&Event::Warning(Warning {
            reason: "PeerAccessMissing".into(),
            message: format!("{}. {meaning}", stop.detail),
            device: None,
        }));
        Ok(())
    }

    fn all_pairs(&self) -> Vec<Pair> {
        let devices = 0..self.devices.len();
        let of = |from| devices.clone().map(move |to| (from, to));
        let pairs = devices.clone().flat_map(of);
        pairs.filter(|(from, to)| from != to).collect()
    }

    /// The driver, with a device's context current.
    fn on(&self, index: usize) -> Called<Driver<'a>> {
        let device = &self.devices[index];
        let driver = self.driver.on(device.ordinal);
        driver.use_context(device.context)?;
        Ok(driver)
    }

    /// Asks for access, and takes it.
    fn with_access(&self, all: &[Pair]) -> Called<Vec<Pair>> {
        let mut pairs = Vec::new();
        for &(from, to) in all {
            let [device, peer] = [from, to].map(|index| &self.devices[index]);
            let driver = self.driver.on(device.ordinal);
            if driver.can_access_peer(device.handle, peer.handle)?
                && self.on(from)?.enable_peer(peer.context)?
            {
                pairs.push((from, to));
            }
        }
        Ok(pairs)
    }

    fn judge_access(&self, all: &[Pair], pairs: &[Pair], wanted: Enforcement) -> Called<()> {
        let missing = || all.iter().copied().filter(|pair| !pairs.contains(pair));
        let Some(first) = missing().next() else {
            return Ok(());
        };
        let (driver, whose) = self.accuse(missing());
        let text = format!(
            "{} of {} pairs of devices have no peer access, the first from {}{whose}",
            all.len() - pairs.len(),
            all.len(),
            self.name(first)
        );
        if wanted == Enforcement::Require {
            return Err(driver.stop(Finding::NoPeerAccess, text).into());
        }
        // Where none has it, that is how such devices are.
        if !pairs.is_empty() {
            send(&Event::Warning(Warning {
                reason: "PeerAccessMissing".into(),
                message: format!("{text}; others have it."),
                device: driver.device,
            }));
        }
        Ok(())
    }

    /// Copies ever more over each pair, as long as there is time; how many words it came to, and what went wrong.
    fn copy(&self, pairs: &[Pair]) -> Called<(usize, Vec<Bad>)> {
        if pairs.is_empty() {
            return Ok((0, Vec::new()));
        }
        let [.., most] = PASSES;
        let indices = 0..self.devices.len();
        let ends: Vec<Ends> = indices
            .map(|index| self.ends(index, most))
            .collect::<Called<_>>()?;
        let began = Instant::now();
        let mut copied = 0;
        for words in PASSES {
            // A pass takes at most as many times as long as the one before as it is longer.
            let ahead = began.elapsed() * count(words.checked_div(copied).unwrap_or(0));
            if ahead > TIME {
                break;
            }
            let bad = self.copy_words(words, pairs, &ends)?;
            if !bad.is_empty() {
                return Ok((copied, bad));
            }
            copied = words;
        }
        Ok((copied, Vec::new()))
    }

    fn ends(&self, index: usize, words: usize) -> Called<Ends<'a>> {
        let driver = self.on(index)?;
        let device = &self.devices[index];
        let walk = |buffer| Walk::through(buffer, driver, device.walk, device.stream);
        let (source, target) = (driver.allocate(words)?, driver.allocate(words)?);
        Ok(Ends {
            source: walk(source)?,
            target: walk(target)?,
            source_buffer: source,
            target_buffer: target,
        })
    }

    fn copy_words(&self, words: usize, pairs: &[Pair], ends: &[Ends]) -> Called<Vec<Bad>> {
        // Each source has words of its own: what another one left at the target passes for none of them.
        let flip = |from: usize| mix(from as u64 + words as u64);
        for (index, ends) in ends.iter().enumerate() {
            self.on(index)?;
            ends.source.write(0, words, flip(index))?;
        }
        let mut bad = Vec::new();
        for &(from, to) in pairs {
            let driver = self.on(to)?;
            let end = |index: usize| self.devices[index].context;
            driver.copy_to_peer(
                (ends[to].target_buffer, end(to)),
                (ends[from].source_buffer, end(from)),
                words,
            )?;
            if let Some((wrong, first)) = ends[to].target.wrong_words(words, flip(from))? {
                bad.push(Bad {
                    pair: (from, to),
                    finding: Finding::PeerCopy,
                    text: format!(
                        "of {words} words that were copied {wrong} are not as sent, the first is word {first}"
                    ),
                });
            }
        }
        Ok(bad)
    }

    /// Lets kernels on both devices of each pair answer one another.
    fn ping_pong(&self, pairs: &[Pair]) -> Called<Vec<Bad>> {
        let both = |&&(a, b): &&Pair| a < b && pairs.contains(&(b, a));
        let mut bad = Vec::new();
        for &(a, b) in pairs.iter().filter(both) {
            bad.extend(self.ping_pong_between(a, b)?);
            if bad.len() >= MOST_BAD {
                break;
            }
        }
        Ok(bad)
    }

    fn ping_pong_between(&self, a: usize, b: usize) -> Called<Option<Bad>> {
        let sides = [a, b];
        let mut boxes = [None; 2];
        for (side, index) in boxes.iter_mut().zip(sides) {
            let driver = self.on(index)?;
            let (mail, told) = (driver.allocate(2)?, driver.allocate(2)?);
            driver.copy_to_device(mail, &[0, 0])?;
            driver.copy_to_device(told, &[0, 0])?;
            // A copy to the device may still be under way when its call is over, and then wipe out what the other one
            // has sent. One from the device is not.
            driver.copy_to_host(&mut [0, 0], mail)?;
            *side = Some((mail, told));
        }
        let [Some((mail_a, told_a)), Some((mail_b, told_b))] = boxes else {
            return Ok(None);
        };
        let launches = [(mail_a, mail_b, told_a, 1), (mail_b, mail_a, told_b, 0)];
        // Both are started before either is waited for.
        for (index, (mine, theirs, told, first)) in sides.into_iter().zip(launches) {
            let Tested {
                ping_pong, stream, ..
            } = self.devices[index];
            let [mine, theirs, told] = [mine, theirs, told].map(|buffer| buffer.address);
            let mut parameters = [mine, theirs, told, ROUNDS.into(), first, CYCLES];
            self.on(index)?
                .launch(ping_pong, 1, 1, stream, &mut parameters)?;
        }
        let mut results = [[0; 2]; 2];
        for (result, (index, told)) in results.iter_mut().zip([(a, told_a), (b, told_b)]) {
            let driver = self.on(index)?;
            driver.synchronize(self.devices[index].stream)?;
            driver.copy_to_host(result, told)?;
        }
        let [[rounds_a, wrong_a], [rounds_b, wrong_b]] = results;
        let rounds = rounds_a.min(rounds_b);
        // Who answers has heard a round more than the other one, where the answer was lost.
        let pair = if rounds_b > rounds_a { (b, a) } else { (a, b) };
        Ok(if rounds < ROUNDS {
            Some(Bad {
                pair,
                finding: Finding::PeerHang,
                text: format!(
                    "kernels that answer one another came to round {rounds} of {ROUNDS}, then what one wrote did not arrive"
                ),
            })
        } else if wrong_a + wrong_b > 0 {
            Some(Bad {
                pair: if wrong_a > 0 { (b, a) } else { (a, b) },
                finding: Finding::PeerCopy,
                text: format!(
                    "of {} words that kernels wrote {} are not as written",
                    2 * ROUNDS,
                    wrong_a.saturating_add(wrong_b)
                ),
            })
        } else {
            None
        })
    }

    /// The driver on the one device that is in all of these pairs, with words for it; without a device, if there is none.
    fn accuse(&self, pairs: impl Iterator<Item = Pair>) -> (Driver<'a>, String) {
        let Some(index) = suspect(pairs) else {
            return (self.driver, String::new());
        };
        let ordinal = self.devices[index].ordinal;
        let whose = format!(", and device {ordinal} is in all of them");
        (self.driver.on(ordinal), whose)
    }

    /// Names the first bad pair, and the one device that is in all of them, if there is such a one.
    fn judge(&self, bad: &[Bad], of: usize) -> Called<()> {
        let Some(first) = bad.first() else {
            return Ok(());
        };
        let (driver, whose) = self.accuse(bad.iter().map(|bad| bad.pair));
        let text = format!(
            "from {}: {}; {} of {of} pairs are bad{whose}",
            self.name(first.pair),
            first.text,
            bad.len()
        );
        Err(driver.at(Step::Peers).stop(first.finding, text).into())
    }

    fn name(&self, (from, to): Pair) -> String {
        let [from, to] = [from, to].map(|index| {
            let Tested { ordinal, uuid, .. } = &self.devices[index];
            format!("device {ordinal} ({uuid})")
        });
        format!("{from} to {to}")
    }
}

/// The one device that is in all bad pairs, where these are of more than two devices.
fn suspect(bad: impl Iterator<Item = Pair>) -> Option<usize> {
    let pairs: Vec<BTreeSet<usize>> = bad.map(|(from, to)| [from, to].into()).collect();
    let common = pairs.iter().cloned().reduce(|all, pair| &all & &pair)?;
    let mut common = common.into_iter();
    match (common.next(), common.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_in_all_bad_pairs_is_the_suspect() {
        let table: [(&[Pair], Option<usize>); 5] = [
            (&[(0, 1), (2, 0), (0, 3)], Some(0)),
            (&[(0, 1), (1, 0)], None),
            (&[(3, 2)], None),
            (&[(0, 1), (1, 2), (2, 0)], None),
            (&[], None),
        ];
        for (bad, device) in table {
            assert_eq!(suspect(bad.iter().copied()), device, "{bad:?}");
        }
    }
}
