//! What is said of a job that is run again, or is not.

use std::fmt::Write as _;

use cudarunner_crds::{RerunCause, RerunState, RerunStatus};

use crate::model::github::Run;
use crate::model::rerun::CheckNote;

/// The longest text of a check run is some bytes longer, see
/// <https://docs.github.com/en/rest/checks/runs?apiVersion=2022-11-28#create-a-check-run>.
const LONGEST: usize = 60_000;

/// The note of an Event.
pub(super) fn event(entry: &RerunStatus) -> String {
    let why = entry.message.as_ref();
    let why = why.filter(|_| entry.state == RerunState::Skipped);
    let fate = why.map_or_else(
        || "is run again.".to_owned(),
        |why| format!("is not run again: {why}"),
    );
    let page = entry.url.as_ref();
    let page = page.map_or_else(String::new, |page| format!(" {page}"));
    format!(
        "Job {} of run {} in {}, on {}, {fate} {}{page}",
        entry.job, entry.run_id, entry.repository, entry.runner, entry.evidence
    )
}

/// The check run on the commit.
pub(super) fn check(first: &RerunStatus, others: &[&RerunStatus], run: &Run) -> CheckNote {
    let title = if first.cause == RerunCause::NodeLoss {
        "Node lost, job run again"
    } else {
        "GPU fault, job run again"
    };
    let mut summary = String::new();
    let attempt = |entry: &RerunStatus| entry.attempt.unwrap_or_default();
    for entry in std::iter::once(first).chain(others.iter().copied()) {
        // A string takes everything.
        let _ = writeln!(
            summary,
            "**{}**, attempt {}\n",
            escaped(&entry.job),
            attempt(entry)
        );
        let code = entry.code.map(|code| code.to_string());
        for (what, said) in [
            ("Runner", Some(&entry.runner)),
            ("Node", entry.node.as_ref()),
            ("Device", entry.device.as_ref()),
            ("Code", code.as_ref()),
            ("Found", entry.code_name.as_ref()),
            ("Report", Some(&entry.evidence)),
        ] {
            if let Some(said) = said {
                let _ = writeln!(summary, "- {what}: {}", escaped(said));
            }
        }
        summary.push('\n');
    }
    summary.truncate(summary.floor_char_boundary(LONGEST));
    CheckNote {
        id: format!("rerun-{}-{}", run.id, attempt(first)),
        sha: run.head_sha.clone().unwrap_or_default(),
        title: title.to_owned(),
        summary,
        url: first.url.clone(),
    }
}

/// A text that is shown as it is where Markdown is read.
fn escaped(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        if "\\`*_{}[]<>()#|!~@".contains(c) {
            shown.push('\\');
        }
        shown.push(c);
    }
    shown
}
