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
    let now = Section::ALL
        .into_iter()
        .fold(text.clone(), |text, section| written(&text, section));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, now).unwrap();
        return;
    }
    assert!(
        text == now,
        "docs/guides/troubleshooting.md is stale: UPDATE_DOCS=1 cargo test -p cuda-runner-plan --test guide"
    );
}

#[test]
fn every_reason_is_said_somewhere() {
    let mut code = String::new();
    let plan = Path::new(env!("CARGO_MANIFEST_DIR"));
    read(&plan.join("src"), &mut code);
    read(&plan.join("../src"), &mut code);
    for entry in ALL {
        // The CRD itself says it of a resource that no operator has seen.
        let is_said = entry.word == "NotSeen"
            || code
                .split(&format!("Reason::{}", entry.word))
                .skip(1)
                .any(ends_there);
        assert!(is_said, "nothing says {}", entry.word);
    }
}

/// The text with the table of one section.
fn written(text: &str, section: Section) -> String {
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

/// All that is no test, without the catalogue.
fn read(path: &Path, code: &mut String) {
    let skipped = ["reason.rs", "tests", "tests.rs", "fixture.rs"];
    if skipped.iter().any(|name| path.ends_with(name)) {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            read(&entry.unwrap().path(), code);
        }
        return;
    }
    let text = fs::read_to_string(path).unwrap_or_default();
    code.push_str(text.split("#[cfg(test)]").next().unwrap_or_default());
}

fn ends_there(rest: &str) -> bool {
    !rest.starts_with(|c: char| c.is_ascii_alphanumeric())
}
