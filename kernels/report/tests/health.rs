//! `docs/reference/gpu-health.md` holds what the table of symptoms holds. `UPDATE_DOCS=1` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

mod common;

use std::fmt::Write as _;

use gate_report::{Context, SYMPTOMS, Step, Verdict, XIDS, finding};

const BEGIN: &str = "<!-- generated from the table of symptoms: begin -->\n";

#[test]
fn the_page_is_the_table() {
    common::holds("reference/gpu-health.md", BEGIN, &table());
}

fn table() -> String {
    let mut text =
        String::from("\n| name | what NVML says | verdict | what to do |\n|---|---|---|---|\n");
    for symptom in &SYMPTOMS {
        let (verdict, advice) = match symptom.verdict {
            Verdict::Fails(found) => {
                let fault = finding(found, Context::at(Step::Health));
                (format!("fails, `{}`", fault.class), fault.advice)
            }
            Verdict::Warns(advice) => ("warning".to_owned(), advice),
        };
        // A string takes everything.
        let _ = writeln!(
            text,
            "| `{}` | {} | {verdict} | {advice} |",
            symptom.name, symptom.sign
        );
    }
    text += "| `Xid` | the driver reported an XID during the test | warning; beside a failure, its cause | Look at the node's kernel log. |\n";
    text +=
        "\nXIDs that are named in words, by NVIDIA's catalogue:\n\n| XID | words |\n|---|---|\n";
    for (number, words) in XIDS {
        let _ = writeln!(text, "| {number} | {words} |");
    }
    text.push('\n');
    text
}
