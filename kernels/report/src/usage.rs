//! What a GPU did during a job: information for people, and no evidence. The job's own user could have written it.
//!
//! The sampler in the job's container counts; the hook after the job tells. Names of fields are short: one GPU must fit in
//! [`LONGEST_MARK`] bytes of a termination message.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::clean;
use crate::contract::mark;

/// Longest mark of one GPU, in bytes: with the marks of the job, those of eight fit into a termination message.
pub const LONGEST_MARK: usize = 300;
/// GPUs of a job that are read.
pub const MOST_GPUS: usize = 16;
/// XIDs of a GPU that are kept.
pub const MOST_XIDS: usize = 4;

/// Longest UUID, in characters: `GPU-` or `MIG-` and 36 more.
const LONGEST_UUID: usize = 40;
/// Longest name of a product, in characters.
const LONGEST_NAME: usize = 64;
/// Most of what is counted: seconds (GitHub lets no job run longer than five days) and errors.
const MOST: u32 = 999_999;
/// Most megabytes, megahertz and degrees.
const LARGEST: u32 = 99_999_999;
/// What a GPU of a kilowatt takes in thirty years.
const MOST_JOULES: u64 = 999_999_999_999;
/// The highest XID is far lower.
const HIGHEST_XID: u32 = 9999;
/// A job is warned of where its GPU was held back for more than one part in so many.
const TOLERATED: u32 = 20;

/// What one GPU did during a job. What the driver does not tell is not there; it is never 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuUsage {
    /// As in the gate's report.
    pub uuid: String,
    /// The product. Not in a mark.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// For how many seconds it was watched.
    #[serde(rename = "s")]
    pub seconds: u32,
    /// In how much of that time a kernel ran, in percent.
    #[serde(rename = "busy", skip_serializing_if = "Option::is_none")]
    pub busy_percent: Option<u8>,
    /// The most of that in any period of the driver's, which is between a sixth of a second and a second.
    #[serde(rename = "max", skip_serializing_if = "Option::is_none")]
    pub max_busy_percent: Option<u8>,
    /// Nothing ran on it and nothing was put into its memory.
    #[serde(rename = "unused", skip_serializing_if = "std::ops::Not::not")]
    pub unused: bool,
    /// The most of its memory that was taken, in MiB.
    #[serde(rename = "mib", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// The energy that it took, in joules.
    #[serde(rename = "j", skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<u64>,
    /// The lowest clock of its processors at a look at which it was busy, in MHz.
    #[serde(rename = "min", skip_serializing_if = "Option::is_none")]
    pub min_clock_mhz: Option<u32>,
    /// The mean of these clocks.
    #[serde(rename = "mhz", skip_serializing_if = "Option::is_none")]
    pub mean_clock_mhz: Option<u32>,
    /// The highest temperature, in degrees Celsius.
    #[serde(rename = "c", skip_serializing_if = "Option::is_none")]
    pub max_celsius: Option<u32>,
    /// For how many seconds something held its clocks back, and what.
    #[serde(rename = "slow", skip_serializing_if = "Option::is_none")]
    pub throttled: Option<Throttled>,
    /// Errors that its memory corrected meanwhile.
    #[serde(rename = "ce", skip_serializing_if = "Option::is_none")]
    pub corrected_errors: Option<u32>,
    /// Errors that its memory could not correct.
    #[serde(rename = "ue", skip_serializing_if = "Option::is_none")]
    pub uncorrected_errors: Option<u32>,
    /// Packets that were sent to it, or by it, once more.
    #[serde(rename = "rp", skip_serializing_if = "Option::is_none")]
    pub pcie_replays: Option<u32>,
    /// The driver's words for errors, where it tells them.
    #[serde(rename = "xids", skip_serializing_if = "Vec::is_empty")]
    pub xids: Vec<u32>,
}

/// Seconds in which something held the clocks back, one number for each: by the looks at which it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u32; 5]", into = "[u32; 5]")]
pub struct Throttled {
    /// Heat or power supply: any of the three that follow.
    pub seconds: u32,
    /// Heat, as the driver found it.
    pub software_thermal: u32,
    /// Heat, as the hardware found it.
    pub hardware_thermal: u32,
    /// The power supply.
    pub power_brake: u32,
    /// The limit of its own power, which is nothing wrong.
    pub power_cap: u32,
}

impl From<[u32; 5]> for Throttled {
    fn from(all: [u32; 5]) -> Self {
        let [
            seconds,
            software_thermal,
            hardware_thermal,
            power_brake,
            power_cap,
        ] = all;
        Self {
            seconds,
            software_thermal,
            hardware_thermal,
            power_brake,
            power_cap,
        }
    }
}

impl From<Throttled> for [u32; 5] {
    fn from(all: Throttled) -> Self {
        [
            all.seconds,
            all.software_thermal,
            all.hardware_thermal,
            all.power_brake,
            all.power_cap,
        ]
    }
}

/// `NVML_CLOCKS_EVENT_REASON_*`: heat by software, by hardware, the power supply, and the limit of power.
const REASONS: [u64; 4] = [0x20, 0x40, 0x80, 0x4];
/// Of these, what should not be.
const HELD_BACK: u64 = 0x20 | 0x40 | 0x80;

impl Throttled {
    /// Adds time in which these bits of NVML's were set.
    pub fn add(&mut self, reasons: u64, seconds: u32) {
        let [total, by_reason @ ..]: [u32; 5] = (*self).into();
        let add = |to: u32, holds: bool| to.saturating_add(if holds { seconds } else { 0 });
        let mut all = [add(total, reasons & HELD_BACK != 0), 0, 0, 0, 0];
        for (to, (before, bit)) in all
            .iter_mut()
            .skip(1)
            .zip(by_reason.into_iter().zip(REASONS))
        {
            *to = add(before, reasons & bit != 0);
        }
        *self = all.into();
    }
}

impl GpuUsage {
    /// Made harmless: whoever reads it did not write it.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let count = |value: &mut Option<u32>, most| *value = value.map(|value| value.min(most));
        self.uuid.retain(|c| c.is_ascii_alphanumeric() || c == '-');
        self.uuid.truncate(LONGEST_UUID);
        self.name = clean(&self.name, LONGEST_NAME);
        self.seconds = self.seconds.min(MOST);
        for percent in [&mut self.busy_percent, &mut self.max_busy_percent] {
            *percent = percent.map(|percent| percent.min(100));
        }
        for value in [
            &mut self.memory_mib,
            &mut self.min_clock_mhz,
            &mut self.mean_clock_mhz,
            &mut self.max_celsius,
        ] {
            count(value, LARGEST);
        }
        for errors in [
            &mut self.corrected_errors,
            &mut self.uncorrected_errors,
            &mut self.pcie_replays,
        ] {
            count(errors, MOST);
        }
        self.energy_joules = self.energy_joules.map(|joules| joules.min(MOST_JOULES));
        self.throttled = self.throttled.map(|all| {
            <[u32; 5]>::from(all)
                .map(|seconds| seconds.min(MOST))
                .into()
        });
        self.xids.truncate(MOST_XIDS);
        self.xids.retain(|xid| *xid <= HIGHEST_XID);
        self
    }

    /// Its line in a termination message, without the end of the line.
    #[must_use]
    pub fn mark(&self) -> String {
        #[derive(Serialize)]
        struct Mark<'a> {
            mark: &'static str,
            #[serde(flatten)]
            usage: &'a GpuUsage,
        }
        let mut usage = self.clone().bounded();
        usage.name.clear();
        let mark = Mark {
            mark: mark::GPU,
            usage: &usage,
        };
        // Nothing in it can fail to be written.
        serde_json::to_string(&mark).unwrap_or_default()
    }

    /// Whether somebody should look: it was held back for more than a twentieth of the time, errors came, or it was not used.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        self.is_throttled() || self.unused || self.errors().is_some()
    }

    fn is_throttled(&self) -> bool {
        let seconds = self.throttled.map_or(0, |throttled| throttled.seconds);
        seconds > self.seconds / TOLERATED
    }

    /// What went wrong, in words; corrected errors and replays count, too.
    fn errors(&self) -> Option<String> {
        let counts = [
            (self.uncorrected_errors, "uncorrected ECC errors"),
            (self.corrected_errors, "corrected ECC errors"),
            (self.pcie_replays, "PCIe replays"),
        ];
        let counts = counts.into_iter().filter_map(|(count, what)| {
            let count = count.filter(|count| *count > 0)?;
            Some(format!("{count} {what}"))
        });
        let xids = self
            .xids
            .iter()
            .map(|xid| crate::health::xid((*xid).into()));
        let all: Vec<String> = counts.chain(xids).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// One line for people, with the beginning of the UUID or all of it.
    #[must_use]
    pub fn sentence(&self, whole: bool) -> String {
        let name = Some(self.name.as_str()).filter(|name| !name.is_empty());
        let short: String = self.uuid.chars().take(SHORT_UUID).collect();
        let (uuid, dots) = if whole || short == self.uuid {
            (self.uuid.as_str(), "")
        } else {
            (short.as_str(), "…")
        };
        let mut line = format!("{} {uuid}{dots}: ", name.unwrap_or("GPU"));
        if self.unused {
            line.push_str("this job never used its GPU, ");
        }
        if let Some(busy) = self.busy_percent.filter(|_| !self.unused) {
            let max = self.max_busy_percent.unwrap_or(busy).max(busy);
            // Of a string, writing takes everything.
            let _ = write!(line, "busy {busy} % (max {max} %), ");
        }
        if let Some(mib) = self.memory_mib {
            line.push_str(&memory(mib));
            line.push_str(", ");
        }
        if let Some(joules) = self.energy_joules {
            line.push_str(&energy(joules));
            line.push_str(", ");
        }
        if let Some(mhz) = self.mean_clock_mhz {
            let min = self.min_clock_mhz.unwrap_or(mhz).min(mhz);
            let _ = write!(line, "{mhz} MHz while busy (min {min}), ");
        }
        if let Some(celsius) = self.max_celsius {
            let _ = write!(line, "up to {celsius} °C, ");
        }
        if let Some(throttled) = self.throttled {
            let _ = write!(
                line,
                "throttled {} s{}, ",
                throttled.seconds,
                why(throttled)
            );
        }
        line + &self.errors().unwrap_or_else(|| "no errors".into())
    }
}

/// `GPU-` and the first group of digits.
const SHORT_UUID: usize = 12;

/// What held it back, where something did that should not.
fn why(all: Throttled) -> String {
    let reasons = [
        (all.hardware_thermal, "heat"),
        (all.software_thermal, "heat, as the driver found it"),
        (all.power_brake, "power supply"),
    ];
    let words: Vec<String> = reasons
        .into_iter()
        .filter(|(seconds, _)| *seconds > 0)
        .map(|(seconds, word)| format!("{word} {seconds} s"))
        .collect();
    if words.is_empty() {
        return String::new();
    }
    format!(" ({})", words.join(", "))
}

/// Without fractions, from 10 GiB on.
fn memory(mib: u32) -> String {
    let gib = f64::from(mib) / 1024.0;
    match mib {
        0..1024 => format!("{mib} MiB"),
        1024..10240 => format!("{gib:.1} GiB"),
        _ => format!("{gib:.0} GiB"),
    }
}

/// In kilowatt hours from a hundredth on.
fn energy(joules: u64) -> String {
    /// Joules of a hundredth of a kilowatt hour.
    const HUNDREDTH: u64 = 36_000;
    let hundredths = joules.saturating_add(HUNDREDTH / 2) / HUNDREDTH;
    if joules < HUNDREDTH {
        let tenths = joules / 360;
        return format!("{}.{} Wh", tenths / 10, tenths % 10);
    }
    format!("{}.{:02} kWh", hundredths / 100, hundredths % 100)
}

/// What follows the title of a workflow command. See
/// <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands>.
#[must_use]
pub fn command_data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A text in a document of Markdown, as it is.
#[must_use]
pub fn markdown(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() && !matches!(c, '%' | '(' | ')' | ',' | '.' | ':' | '-' | ' ') {
            // No letter of any syntax.
            let _ = write!(plain, "&#{};", u32::from(c));
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const UUID: &str = "GPU-0c8a1b2c-3d4e-5f60-7182-93a4b5c6d7e8";

    /// The most of everything.
    fn worst() -> GpuUsage {
        GpuUsage {
            uuid: "G".repeat(400),
            name: "N".repeat(400),
            seconds: u32::MAX,
            busy_percent: Some(u8::MAX),
            max_busy_percent: Some(u8::MAX),
            unused: true,
            memory_mib: Some(u32::MAX),
            energy_joules: Some(u64::MAX),
            min_clock_mhz: Some(u32::MAX),
            mean_clock_mhz: Some(u32::MAX),
            max_celsius: Some(u32::MAX),
            throttled: Some([u32::MAX; 5].into()),
            corrected_errors: Some(u32::MAX),
            uncorrected_errors: Some(u32::MAX),
            pcie_replays: Some(u32::MAX),
            xids: vec![9999; 100],
        }
    }

    fn usual() -> GpuUsage {
        GpuUsage {
            uuid: UUID.into(),
            name: "NVIDIA H100 80GB HBM3".into(),
            seconds: 3600,
            busy_percent: Some(71),
            max_busy_percent: Some(99),
            memory_mib: Some(41_984),
            energy_joules: Some(1_368_000),
            throttled: Some(Throttled::default()),
            corrected_errors: Some(0),
            uncorrected_errors: Some(0),
            pcie_replays: Some(0),
            ..GpuUsage::default()
        }
    }

    #[test]
    fn the_mark_of_a_gpu_is_short_whatever_it_did() {
        let mark = worst().mark();
        assert!(mark.len() <= LONGEST_MARK, "{} bytes: {mark}", mark.len());
        assert!(!mark.contains('\n'));
    }

    #[test]
    fn a_mark_says_all_but_the_name() {
        let usage = worst().bounded();
        let read: GpuUsage = serde_json::from_str(&usage.mark()).unwrap();
        let expected = GpuUsage {
            name: String::new(),
            ..usage
        };
        assert_eq!(read, expected);
        let mark: Value = serde_json::from_str(&usual().mark()).unwrap();
        assert_eq!(mark["mark"], mark::GPU);
    }

    #[test]
    fn what_was_not_told_is_not_there() {
        let nothing = GpuUsage {
            uuid: UUID.into(),
            seconds: 7,
            ..GpuUsage::default()
        };
        assert_eq!(
            nothing.mark(),
            format!(r#"{{"mark":"gpu","uuid":"{UUID}","s":7}}"#)
        );
        assert_eq!(nothing.sentence(false), "GPU GPU-0c8a1b2c…: no errors");
    }

    #[test]
    fn a_sentence_says_what_matters() {
        assert_eq!(
            usual().sentence(false),
            "NVIDIA H100 80GB HBM3 GPU-0c8a1b2c…: busy 71 % (max 99 %), 41 GiB, 0.38 kWh, throttled 0 s, no errors"
        );
        assert!(!usual().is_warning());
        let unused = GpuUsage {
            unused: true,
            busy_percent: Some(0),
            memory_mib: Some(4),
            energy_joules: Some(4000),
            ..usual()
        };
        assert_eq!(
            unused.sentence(true),
            format!(
                "NVIDIA H100 80GB HBM3 {UUID}: this job never used its GPU, 4 MiB, 1.1 Wh, throttled 0 s, no errors"
            )
        );
        let ill = GpuUsage {
            max_celsius: Some(91),
            min_clock_mhz: Some(345),
            mean_clock_mhz: Some(1200),
            throttled: Some([181, 0, 180, 1, 9].into()),
            uncorrected_errors: Some(2),
            pcie_replays: Some(7),
            xids: vec![79, 1234],
            ..usual()
        };
        assert_eq!(
            ill.sentence(false),
            "NVIDIA H100 80GB HBM3 GPU-0c8a1b2c…: busy 71 % (max 99 %), 41 GiB, 0.38 kWh, 1200 MHz while busy (min 345), \
             up to 91 °C, throttled 181 s (heat 180 s, power supply 1 s), 2 uncorrected ECC errors, 7 PCIe replays, \
             XID 79 (the GPU has fallen off the bus), XID 1234"
        );
    }

    #[test]
    fn a_warning_is_for_what_somebody_should_look_at() {
        type Change = fn(&mut GpuUsage);
        let is_warning = |change: Change| {
            let mut usage = usual();
            change(&mut usage);
            usage.is_warning()
        };
        let cases: [(Change, bool); 8] = [
            (|_| {}, false),
            // A twentieth of an hour, and a second more.
            (|usage| usage.throttled = Some([180; 5].into()), false),
            (|usage| usage.throttled = Some([181; 5].into()), true),
            // At the limit of its power for all of the time.
            (
                |usage| usage.throttled = Some([0, 0, 0, 0, 3600].into()),
                false,
            ),
            (|usage| usage.corrected_errors = Some(1), true),
            (|usage| usage.pcie_replays = Some(1), true),
            (|usage| usage.xids.push(43), true),
            (|usage| usage.unused = true, true),
        ];
        for (number, (change, expected)) in cases.into_iter().enumerate() {
            assert_eq!(is_warning(change), expected, "{number}");
        }
    }

    #[test]
    fn time_is_added_to_what_held_the_clocks_back() {
        let mut all = Throttled::default();
        all.add(0x40 | 0x4, 5);
        all.add(0x80 | 0x20, 5);
        all.add(0x4 | 0x1, 5);
        all.add(0, 5);
        assert_eq!(<[u32; 5]>::from(all), [10, 5, 5, 5, 10]);
    }

    #[test]
    fn energy_and_memory_have_fitting_units() {
        for (joules, text) in [
            (0, "0.0 Wh"),
            (35_999, "9.9 Wh"),
            (36_000, "0.01 kWh"),
            (1_368_000, "0.38 kWh"),
            (36_000_000, "10.00 kWh"),
        ] {
            assert_eq!(energy(joules), text);
        }
        for (mib, text) in [(1023, "1023 MiB"), (1536, "1.5 GiB"), (41_984, "41 GiB")] {
            assert_eq!(memory(mib), text);
        }
    }

    #[test]
    fn a_command_ends_where_its_line_does_and_markdown_is_plain_text() {
        assert_eq!(
            command_data("71 %\n::error::no\r"),
            "71 %25%0A::error::no%0D"
        );
        let text = markdown("a|b <img> `c` [d](e) *f* 5 %, GPU-1: x");
        assert!(!text.contains(['|', '<', '`', '[', '*']), "{text}");
        assert!(text.ends_with("5 %, GPU-1: x"), "{text}");
    }

    proptest! {
        #[test]
        fn any_line_that_can_be_read_becomes_a_short_mark(
            uuid in "\\PC{0,80}", seconds: u32, busy: Option<u8>, joules: Option<u64>,
            all: [u32; 5], xids in proptest::collection::vec(any::<u32>(), 0..40),
        ) {
            let line = serde_json::json!({
                "mark": "gpu", "uuid": uuid, "s": seconds, "busy": busy, "j": joules, "slow": all, "xids": xids,
            });
            let read: GpuUsage = serde_json::from_value(line).unwrap();
            let bounded = read.bounded();
            prop_assert_eq!(bounded.clone().bounded(), bounded.clone());
            prop_assert!(bounded.uuid.chars().count() <= LONGEST_UUID && bounded.xids.len() <= MOST_XIDS);
            prop_assert!(!bounded.sentence(true).contains('\n'));
        }
    }
}
