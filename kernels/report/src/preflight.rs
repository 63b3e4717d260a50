//! What the runner's image and network must offer, what was seen of it, and what that means.
//!
//! The gate tries the network. In the runner's image [`SCRIPT`] has the image's shell only: it writes down [`Facts`].
//! `runner-init` knows what is [`Wanted`], judges the facts, and adds them to the gate's report.

use serde::{Deserialize, Serialize};

use crate::{Class, Confidence, Failure, Step, Version};

/// Looks at the runner's image, for its shell. It writes [`Facts`].
pub const SCRIPT: &str = include_str!("preflight.sh");

/// Free space, in MiB, that the work folder must have where nothing else is said.
pub const MIN_DISK_MIB: u64 = 512;

/// The name by which a failed preflight goes in [`Failure::code_name`].
pub const FAILED: &str = "PreflightFailed";

/// What must be there. The operator hands it to the gate as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Wanted {
    /// Whether the image is looked at.
    pub image: bool,
    /// Commands on the `PATH`.
    pub commands: Vec<String>,
    /// CUDA toolkit: `>=12.0`, or `12.4` for this one and no other.
    pub cuda_toolkit: Option<String>,
    /// Rust toolchain.
    pub rust_toolchain: Option<String>,
    /// Free space of the work folder, in MiB.
    pub min_disk_mib: Option<u64>,
    /// Addresses that answer.
    pub egress: Vec<String>,
}

/// What [`SCRIPT`] saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Commands that are on the `PATH`.
    pub commands: Vec<String>,
    /// Version of the CUDA toolkit, and where it was read.
    pub cuda_toolkit: Option<(String, String)>,
    /// Whether the Rust toolchain is installed.
    pub rust_toolchain: bool,
    /// Free space in KiB, and the folder that was asked.
    pub disk: Option<(u64, String)>,
    /// Whether it came to the end of its list.
    pub complete: bool,
}

impl Facts {
    /// Reads the script's lines: words with tabs between. Lines that say nothing known are passed over.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut facts = Self::default();
        for line in text.lines() {
            let mut words = line.split('\t');
            let word = words.next().unwrap_or_default();
            let rest: Vec<&str> = words.collect();
            match (word, rest.as_slice()) {
                ("command", [name]) => facts.commands.push((*name).to_owned()),
                ("toolkit", [version, place]) => {
                    facts.cuda_toolkit = Some(((*version).to_owned(), (*place).to_owned()));
                }
                ("toolchain", []) => facts.rust_toolchain = true,
                ("disk", [free, folder]) => {
                    facts.disk = free.parse().ok().map(|free| (free, (*folder).to_owned()));
                }
                ("end", []) => facts.complete = true,
                _ => {}
            }
        }
        facts
    }
}

/// The preflight's part of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Preflight {
    /// Everything that was looked at, in the order of the spec.
    pub findings: Vec<PreflightFinding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PreflightFinding {
    /// What kind of thing.
    pub check: Check,
    /// Which one: a command, a toolchain, a folder, an address.
    pub subject: String,
    /// How it went.
    pub outcome: CheckOutcome,
    /// What was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// What should have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// Half a sentence for people. Empty where all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What to do. Empty where all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
    /// Whether it may pass by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transient: bool,
}

/// The kinds of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(transform = crate::schema::open))]
#[serde(rename_all = "camelCase")]
pub enum Check {
    /// The look at the image itself.
    Image,
    /// A command on the `PATH`.
    Command,
    /// The CUDA toolkit.
    CudaToolkit,
    /// The Rust toolchain.
    RustToolchain,
    /// Free space of the work folder.
    Disk,
    /// An address.
    Egress,
    /// A check that this version does not know.
    #[serde(other)]
    Unknown,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(transform = crate::schema::open))]
#[serde(rename_all = "camelCase")]
pub enum CheckOutcome {
    /// As wanted.
    Ok,
    /// Not as wanted; jobs work all the same.
    Warning,
    /// Not as wanted.
    Failed,
    /// An outcome that this version does not know counts as failed.
    #[serde(other)]
    Unknown,
}

impl PreflightFinding {
    /// All is well.
    #[must_use]
    pub fn ok(check: Check, subject: &str) -> Self {
        Self {
            check,
            subject: subject.to_owned(),
            outcome: CheckOutcome::Ok,
            found: None,
            wanted: None,
            message: String::new(),
            advice: String::new(),
            transient: false,
        }
    }

    /// Not as wanted: half a sentence that says what, and what to do.
    #[must_use]
    pub fn failed(check: Check, subject: &str, message: String, advice: &str) -> Self {
        Self {
            outcome: CheckOutcome::Failed,
            message,
            advice: advice.to_owned(),
            ..Self::ok(check, subject)
        }
    }

    fn is_bad(&self) -> bool {
        matches!(self.outcome, CheckOutcome::Failed | CheckOutcome::Unknown)
    }
}

impl Preflight {
    /// Judges what was seen in the image.
    #[must_use]
    pub fn of_image(wanted: &Wanted, facts: &Facts) -> Self {
        if !wanted.image {
            return Self::default();
        }
        if !facts.complete {
            return Self {
                findings: vec![PreflightFinding::failed(
                    Check::Image,
                    "preflight",
                    "the look at the runner's image did not come to its end".into(),
                    "Look at the log of the pod's container gpu; the runner's image needs a POSIX shell at /bin/sh, built for the node's architecture.",
                )],
            };
        }
        let commands = wanted.commands.iter().map(|name| command(name, facts));
        let toolkit = wanted.cuda_toolkit.as_ref().map(|w| toolkit(w, facts));
        let toolchain = wanted.rust_toolchain.as_ref().map(|w| toolchain(w, facts));
        let disk = wanted.min_disk_mib.map(|w| disk(w, facts));
        Self {
            findings: commands
                .chain(toolkit)
                .chain(toolchain)
                .chain(disk)
                .collect(),
        }
    }

    /// Whether anything is not as it must be.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.findings.iter().any(PreflightFinding::is_bad)
    }

    /// All that is not as it must be, in one sentence; empty where there is nothing.
    #[must_use]
    pub fn sentence(&self) -> String {
        let bad: Vec<&PreflightFinding> = self.findings.iter().filter(|f| f.is_bad()).collect();
        let missing: Vec<&str> = bad
            .iter()
            .filter(|f| f.check == Check::Command)
            .map(|f| f.subject.as_str())
            .collect();
        let mut parts = vec![];
        if !missing.is_empty() {
            parts.push(format!(
                "the runner's image has no {}",
                listed(&missing, "and no")
            ));
        }
        let others = bad.iter().filter(|f| f.check != Check::Command);
        parts.extend(others.map(|f| f.message.clone()));
        if parts.is_empty() {
            return String::new();
        }
        format!("The preflight failed: {}.", parts.join("; "))
    }

    /// What to do about all of it, each thing said once.
    #[must_use]
    pub fn advice(&self) -> String {
        let mut said: Vec<&str> = vec![];
        for finding in self.findings.iter().filter(|f| f.is_bad()) {
            if !finding.advice.is_empty() && !said.contains(&finding.advice.as_str()) {
                said.push(&finding.advice);
            }
        }
        said.join(" ")
    }

    /// The failure, where there is one: transient only where all of it is.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        let mut bad = self.findings.iter().filter(|f| f.is_bad()).peekable();
        bad.peek()?;
        Some(Failure {
            class: if bad.all(|f| f.transient) {
                Class::Transient
            } else {
                Class::Config
            },
            step: Step::Preflight,
            code: None,
            code_name: FAILED.to_owned(),
            call: None,
            device: None,
            uuid: None,
            message: self.sentence(),
            advice: self.advice(),
            confidence: Confidence::High,
            shared: false,
        })
    }
}

fn command(name: &str, facts: &Facts) -> PreflightFinding {
    if facts.commands.iter().any(|found| found == name) {
        return PreflightFinding::ok(Check::Command, name);
    }
    PreflightFinding::failed(
        Check::Command,
        name,
        format!("the runner's image has no {name}"),
        "Install the commands in the image of the container runner in spec.template, or take them off spec.preflight.commands.",
    )
}

fn toolkit(wanted: &str, facts: &Facts) -> PreflightFinding {
    const SUBJECT: &str = "CUDA toolkit";
    let advice =
        "Use an image with that toolkit in spec.template, or change spec.preflight.cudaToolkit.";
    let what = match wanted.strip_prefix(">=") {
        Some(least) => format!("{least} or newer"),
        None => wanted.to_owned(),
    };
    let finding = match &facts.cuda_toolkit {
        Some((version, _)) if satisfies(version, wanted) => {
            PreflightFinding::ok(Check::CudaToolkit, SUBJECT)
        }
        Some((version, place)) => PreflightFinding::failed(
            Check::CudaToolkit,
            SUBJECT,
            format!("the CUDA toolkit is {version} ({place}), and {what} is wanted"),
            advice,
        ),
        None => PreflightFinding::failed(
            Check::CudaToolkit,
            SUBJECT,
            format!("the runner's image has no CUDA toolkit, and {what} is wanted"),
            advice,
        ),
    };
    PreflightFinding {
        found: facts.cuda_toolkit.as_ref().map(|(v, _)| v.clone()),
        wanted: Some(wanted.to_owned()),
        ..finding
    }
}

/// Whether a version such as `12.4.131` is what `>=12.0` or `12.4` asks for.
fn satisfies(version: &str, wanted: &str) -> bool {
    let read = |text: &str| {
        let mut numbers = text.split('.').map(|part| part.parse().ok());
        Some(Version::new(
            numbers.next()??,
            numbers.next().unwrap_or(Some(0))?,
        ))
    };
    let Some(found) = read(version) else {
        return false;
    };
    match wanted.strip_prefix(">=") {
        Some(least) => read(least).is_some_and(|least| found >= least),
        None => read(wanted) == Some(found),
    }
}

fn toolchain(name: &str, facts: &Facts) -> PreflightFinding {
    if facts.rust_toolchain {
        return PreflightFinding::ok(Check::RustToolchain, name);
    }
    PreflightFinding {
        outcome: CheckOutcome::Warning,
        message: format!("the Rust toolchain {name} is not installed"),
        advice: "Each job that needs it spends minutes on installing it; put it into the image."
            .into(),
        ..PreflightFinding::ok(Check::RustToolchain, name)
    }
}

fn disk(least_mib: u64, facts: &Facts) -> PreflightFinding {
    let wanted = format!("{least_mib} MiB");
    let advice = "Give the work folder a larger volume in spec.template, free space on the node, or lower spec.preflight.minDiskMiB.";
    let finding = match &facts.disk {
        Some((free, folder)) if free / 1024 >= least_mib => {
            PreflightFinding::ok(Check::Disk, folder)
        }
        Some((free, folder)) => PreflightFinding::failed(
            Check::Disk,
            folder,
            format!(
                "{folder} has {} MiB free, and {wanted} are wanted",
                free / 1024
            ),
            advice,
        ),
        // An image without `df` is no reason to keep a runner back.
        None => PreflightFinding {
            outcome: CheckOutcome::Warning,
            message: "the free space of the work folder could not be read".into(),
            advice: "The image has no df.".into(),
            ..PreflightFinding::ok(Check::Disk, "work folder")
        },
    };
    PreflightFinding {
        found: facts
            .disk
            .as_ref()
            .map(|(free, _)| format!("{} MiB", free / 1024)),
        wanted: Some(wanted),
        ..finding
    }
}

/// `a`, `a WORD b`, `a, b WORD c`.
fn listed(names: &[&str], word: &str) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} {word} {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            image: true,
            commands: ["git", "cc", "make"].map(str::to_owned).to_vec(),
            cuda_toolkit: Some(">=12.0".into()),
            rust_toolchain: Some("nightly-2026-04-03".into()),
            min_disk_mib: Some(512),
            egress: vec![],
        }
    }

    fn judged(lines: &[&str]) -> Preflight {
        Preflight::of_image(&wanted(), &Facts::read(&lines.join("\n")))
    }

    const GOOD: [&str; 7] = [
        "command\tgit",
        "command\tcc",
        "command\tmake",
        "toolkit\t12.4.131\t/usr/local/cuda/bin/nvcc",
        "toolchain",
        "disk\t2097152\t/home/runner",
        "end",
    ];

    #[test]
    fn an_image_with_all_of_it_passes() {
        let preflight = judged(&GOOD);
        assert!(
            preflight
                .findings
                .iter()
                .all(|f| f.outcome == CheckOutcome::Ok)
        );
        assert_eq!(preflight.failure(), None);
        assert_eq!(preflight.sentence(), "");
    }

    #[test]
    fn everything_that_is_missing_is_said_in_one_sentence() {
        let failure = judged(&[
            "command\tgit",
            "toolkit\t11.8.89\t/usr/bin/nvcc",
            "disk\t10240\t/home/runner",
            "end",
        ])
        .failure()
        .unwrap();
        assert_eq!(
            failure.message,
            "The preflight failed: the runner's image has no cc and no make; the CUDA toolkit is 11.8.89 (/usr/bin/nvcc), and 12.0 or newer is wanted; /home/runner has 10 MiB free, and 512 MiB are wanted."
        );
        assert_eq!(
            (failure.class, failure.step),
            (Class::Config, Step::Preflight)
        );
        assert_eq!(failure.advice.matches("spec.preflight.commands").count(), 1);
    }

    #[test]
    fn a_missing_rust_toolchain_is_a_warning_and_no_more() {
        let lines: Vec<&str> = GOOD
            .into_iter()
            .filter(|line| *line != "toolchain")
            .collect();
        let preflight = judged(&lines);
        assert!(!preflight.has_failed());
        let warnings = |f: &&PreflightFinding| f.outcome == CheckOutcome::Warning;
        assert_eq!(preflight.findings.iter().filter(warnings).count(), 1);
    }

    #[test]
    fn a_container_that_broke_off_proves_nothing() {
        let preflight = judged(&GOOD[..6]);
        assert!(preflight.has_failed());
        assert!(Preflight::of_image(&wanted(), &Facts::read("")).has_failed());
    }

    #[test]
    fn toolkit_versions() {
        for (found, asked, good) in [
            ("12.4.131", ">=12.0", true),
            ("13.1", ">=12.0", true),
            ("11.8.89", ">=12.0", false),
            ("12.10", ">=12.9", true),
            ("12.4.131", "12.4", true),
            ("12.5", "12.4", false),
            ("12", ">=12.0", true),
            ("", ">=12.0", false),
            ("x", ">=12.0", false),
        ] {
            assert_eq!(satisfies(found, asked), good, "{found} for {asked}");
        }
    }

    #[test]
    fn what_only_time_will_mend_is_transient_and_anything_else_with_it_is_not() {
        let egress = |transient| PreflightFinding {
            transient,
            ..PreflightFinding::failed(Check::Egress, "https://a", "a hangs".into(), "wait")
        };
        let class = |findings| Preflight { findings }.failure().unwrap().class;
        assert_eq!(class(vec![egress(true), egress(true)]), Class::Transient);
        assert_eq!(class(vec![egress(true), egress(false)]), Class::Config);
    }

    #[test]
    fn garbage_is_passed_over() {
        let facts =
            Facts::read("\u{1}\ncommand\ndisk\tx\t/\ncommand\ta\tb\ntoolkit\t1\n\t\nend\tx");
        assert_eq!(facts, Facts::default());
    }
}
