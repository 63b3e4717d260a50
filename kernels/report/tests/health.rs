//! `docs/reference/gpu-health.md` holds what the table of symptoms holds. `UPDATE_DOCS=1` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

use std::fmt::Write as _;
use std::path::Path;

use gate_report::{Context, SYMPTOMS, Step, Verdict, XIDS, finding};

const BEGIN: &str = "<!-- generated from the table of symptoms: begin -->\n";
const END: &str = "<!-- generated: end -->\n";

#[test]
fn the_page_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/gpu-health.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let now = format!("{head}{BEGIN}{}{END}{tail}", table());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    assert!(
        text == now,
        "docs/reference/gpu-health.md is stale: UPDATE_DOCS=1 cargo test -p gate-report"
    );
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
    text += "| `Xid` | the driver told an XID during the test | warning; beside a failure, its cause | Look at the node's kernel log. |\n";
    text +=
        "\nXIDs that are named in words, by NVIDIA's catalogue:\n\n| XID | words |\n|---|---|\n";
    for (number, words) in XIDS {
        let _ = writeln!(text, "| {number} | {words} |");
    }
    text.push('\n');
    text
}
