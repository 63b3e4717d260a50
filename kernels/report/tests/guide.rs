//! `docs/guides/gpu-faults.md` holds what the table of codes holds (`UPDATE_DOCS=1` writes it anew), and
//! `docs/reference/gate.md` the exit codes.

use std::fmt::Write as _;
use std::path::Path;

use gate_report::{Class, Confidence, Context, Fault, Finding, Step, fault, finding, listed};

const BEGIN: &str = "<!-- generated from the table of codes: begin -->\n";
const END: &str = "<!-- generated: end -->\n";

#[test]
fn the_guide_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/gpu-faults.md");
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
        "docs/guides/gpu-faults.md is stale: UPDATE_DOCS=1 cargo test -p gate-report"
    );
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
    text += "| what you see | what it is | class | what to do |\n|---|---|---|---|\n";
    for code in listed() {
        let first = fault(code, Context::at(Step::Synchronize));
        let again = fault(
            code,
            Context {
                retried: true,
                ..Context::at(Step::Synchronize)
            },
        );
        row(
            &mut text,
            &format!("{code} `{}`", first.name),
            &first,
            again.class,
        );
    }
    let unlisted = fault(-1, Context::at(Step::Synchronize));
    row(&mut text, "any other code", &unlisted, unlisted.class);
    text += "\n## What the gate sees itself\n\n";
    text += "| what you see | what it is | class | what to do |\n|---|---|---|---|\n";
    for found in Finding::ALL {
        let step = if matches!(
            found,
            Finding::Hang | Finding::Crash | Finding::UnexpectedExit
        ) {
            Step::Synchronize
        } else {
            Step::Properties
        };
        let first = finding(found, Context::at(step));
        let again = finding(
            found,
            Context {
                retried: true,
                ..Context::at(step)
            },
        );
        row(&mut text, &format!("`{}`", first.name), &first, again.class);
    }
    text.push('\n');
    text
}

fn row(text: &mut String, seen: &str, fault: &Fault, again: Class) {
    let class = match (fault.retry, again) {
        _ if fault.class == again => format!("`{again}`"),
        (true, _) => format!("tried again in a new process, then `{again}`"),
        (false, _) => format!("`{}`, then `{again}`", fault.class),
    };
    let sure = match fault.confidence {
        Confidence::High => "",
        Confidence::Medium => ", most likely",
        Confidence::Low => ", a guess",
    };
    // A string takes everything.
    let _ = writeln!(
        text,
        "| {seen} | {} | {class}{sure} | {} |",
        fault.meaning, fault.advice
    );
}
