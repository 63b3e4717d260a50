//! The preflight's part of the gate's report: what the network answers. The image is looked at in the image.

use gate_report::preflight::{Preflight, Wanted};
use gate_report::{Outcome, Report};

use crate::egress::{self, Trials};

/// A preflight that is under way.
pub(crate) struct UnderWay(Trials);

/// Begins to try the network; the GPU test goes on meanwhile.
pub(crate) fn start(wanted: &Wanted) -> UnderWay {
    UnderWay(egress::start(&wanted.egress))
}

impl UnderWay {
    /// Adds the findings to a report. The GPU's failure decides; the preflight's is reported with it.
    pub(crate) fn finish(self, report: &mut Report) {
        let Self(trials) = self;
        let preflight = Preflight {
            findings: trials.findings(),
        };
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
