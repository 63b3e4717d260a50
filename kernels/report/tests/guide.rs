//! `docs/guides/gpu-faults.md` holds what the table of codes holds (`UPDATE_DOCS=1` writes it anew), and
//! `docs/reference/gate.md` the exit codes.

mod common;

use std::fmt::Write as _;
use std::path::Path;

use gate_report::{Again, Cause, Class, Confidence, Context, Fault, Finding, Step, listed};

const BEGIN: &str = "<!-- generated from the table of codes: begin -->\n";

#[test]
fn the_guide_is_the_table() {
    common::holds("guides/gpu-faults.md", BEGIN, &table());
}

#[test]
fn the_reference_has_the_exit_codes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/gate.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, section) = text.split_once("## Exit codes\n").unwrap();
    let rows: Vec<(i32, Option<Class>)> = section
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let code = cells.next()?.parse().ok()?;
            let name = cells.next()?.trim_matches('`');
            let class = Class::ALL.into_iter().find(|class| class.as_str() == name);
            assert!(class.is_some() || name == "–", "no class: {name}");
            Some((code, class))
        })
        .collect();
    let all: Vec<_> = [0, 2, 10, 11, 12, 13, 14, 15, 16, 17, 70]
        .map(|code| (code, Class::from_exit_code(code)))
        .into();
    assert_eq!(rows, all);
}

fn table() -> String {
    let mut text = String::from("\n## Codes of the driver\n\n");
    text += HEAD;
    for code in listed() {
        let name = Cause::Code(code)
            .meaning(Context::at(Step::Synchronize))
            .name;
        row(
            &mut text,
            &format!("{code} `{name}`"),
            Cause::Code(code),
            Step::Synchronize,
        );
    }
    row(
        &mut text,
        "any other code",
        Cause::Code(-1),
        Step::Synchronize,
    );
    text += "\n## What the gate sees itself\n\n";
    text += HEAD;
    for found in Finding::ALL {
        let step = if matches!(
            found,
            Finding::Hang | Finding::Crash | Finding::UnexpectedExit
        ) {
            Step::Synchronize
        } else {
            Step::Properties
        };
        let cause = Cause::Finding(found);
        let name = cause.meaning(Context::at(step)).name;
        row(&mut text, &format!("`{name}`"), cause, step);
    }
    text.push('\n');
    text
}

const HEAD: &str = "| what you see | what it is | class | what to do |\n|---|---|---|---|\n";

fn row(text: &mut String, seen: &str, cause: Cause, step: Step) {
    let first = cause.meaning(Context::at(step));
    let retried = Context {
        retried: true,
        ..Context::at(step)
    };
    let stands = cause.meaning(retried);
    // A string takes everything.
    let _ = writeln!(
        text,
        "| {seen} | {} | {} | {} |",
        first.meaning,
        class(&first, &stands),
        first.advice
    );
}

fn class(first: &Fault, stands: &Fault) -> String {
    let again = match first.again {
        Again::No => "",
        Again::Once => "tried again in a new process, then ",
        Again::Wait => "waited for, then ",
    };
    let sure = match first.confidence {
        Confidence::High => "",
        Confidence::Medium => ", most likely",
        Confidence::Low => ", a guess",
    };
    format!("{again}`{}`{sure}", stands.class)
}
