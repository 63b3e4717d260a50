//! `docs/guides/troubleshooting.md` holds what the catalogue of reasons holds. `UPDATE_DOCS=1` writes it anew.
#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use cuda_runner_plan::reason::{ALL, Entry, Section};

const END: &str = "<!-- generated: end -->\n";

#[test]
fn the_guide_is_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/troubleshooting.md");
    let text = fs::read_to_string(&path).unwrap();
    let now = Section::ALL.into_iter().fold(text.clone(), written);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, now).unwrap();
        return;
    }
    assert!(
        text == now,
        "docs/guides/troubleshooting.md is stale: UPDATE_DOCS=1 cargo test -p cuda-runner-plan --test guide"
    );
}

/// The text with the table of one section.
fn written(text: String, section: Section) -> String {
    let begin = format!("<!-- generated from the catalogue of reasons, {section:?}: begin -->\n");
    let (head, rest) = text.split_once(&begin).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    format!("{head}{begin}{}{END}{tail}", table(section))
}

fn table(section: Section) -> String {
    let mut text = if section == Section::Well {
        "\n| reason | where | what it is |\n|---|---|---|\n".to_owned()
    } else {
        "\n| reason | where | what it is | what to do |\n|---|---|---|---|\n".to_owned()
    };
    for entry in ALL.iter().filter(|entry| entry.section == section) {
        let Entry { word, means, .. } = entry;
        let places: Vec<String> = entry.places.iter().map(ToString::to_string).collect();
        let advice = entry.advice.map(|advice| format!(" {advice} |"));
        let advice = advice.unwrap_or_default();
        // A string takes everything.
        let _ = writeln!(
            text,
            "| `{word}` | {} | {means} |{advice}",
            places.join(", ")
        );
    }
    text.push('\n');
    text
}
