//! `check`: by hand.

use std::io::Write;

use gate_report::Report;

use crate::args::CheckArgs;
use crate::supervisor;

/// Tests, prints, and returns the exit code.
pub(crate) fn run(args: &CheckArgs) -> u8 {
    let report = supervisor::test(&args.test);
    let text = if args.json {
        json(&report)
    } else {
        report.text()
    };
    // A reader that has gone away changes nothing about the verdict.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    report.exit_code()
}

fn json(report: &Report) -> String {
    match serde_json::to_string_pretty(report) {
        Ok(text) => text + "\n",
        // A number that JSON cannot write; the summary has none.
        Err(_) => report.summary() + "\n",
    }
}
