//! The preflight's part of the report: what its container left in the volume, and what the network answers.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use gate_report::contract::file;
use gate_report::preflight::{Facts, Preflight, Wanted};
use gate_report::{Outcome, Report};

use crate::egress::{self, Trials};

/// The longest that is read of it.
const LIMIT: u64 = 64 * 1024;

/// A preflight that is under way.
pub(crate) struct UnderWay<'a> {
    wanted: &'a Wanted,
    trials: Trials,
}

/// Begins to try the network; the GPU test goes on meanwhile.
pub(crate) fn start(wanted: &Wanted) -> UnderWay<'_> {
    UnderWay {
        wanted,
        trials: egress::start(&wanted.egress),
    }
}

impl UnderWay<'_> {
    /// Adds the findings to a report. The GPU's failure decides; the preflight's is reported with it.
    pub(crate) fn finish(self, folder: &Path, report: &mut Report) {
        let mut preflight = Preflight::of_image(self.wanted, &facts(&folder.join(file::PREFLIGHT)));
        preflight.findings.extend(self.trials.findings());
        match (&mut report.failure, preflight.failure()) {
            (_, None) => {}
            (Some(failure), Some(also)) => {
                failure.message = format!("{} {}", failure.message, also.message);
                failure.advice = format!("{} {}", failure.advice, also.advice);
            }
            (none, also) => *none = also,
        }
        if report.failure.is_some() {
            report.outcome = Outcome::Failed;
        }
        report.preflight = Some(preflight);
    }
}

/// What the container wrote. It ran in an image that is not ours: a file that is none is not waited for.
fn facts(path: &Path) -> Facts {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let mut text = vec![];
    let whole = opened.and_then(|file| {
        if file.metadata()?.is_file() {
            file.take(LIMIT).read_to_end(&mut text)?;
        }
        Ok(())
    });
    if let Err(error) = whole {
        eprintln!("{} could not be read: {error}", path.display());
    }
    Facts::read(&String::from_utf8_lossy(&text))
}
