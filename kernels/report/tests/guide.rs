//! `docs/guides/gpu-faults.md` holds what the table of codes holds, and `docs/reference/gate.md` what is tried again
//! (`UPDATE_DOCS=1` writes both anew) and the exit codes.

mod common;

use std::fmt::Write as _;
use std::path::Path;

use gate_report::{Again, Cause, Class, Confidence, Context, Fault, Finding, Step, listed};

const BEGIN: &str = "<!-- generated from the table of codes: begin -->\n";
const AGAIN: &str = "<!-- generated from what is tried again: begin -->\n";

#[test]
fn the_guide_is_the_table() {
    common::holds("guides/gpu-faults.md", BEGIN, &table());
}

#[test]
fn the_reference_has_what_is_tried_again() {
    common::holds("reference/gate.md", AGAIN, &tried_again());
}

#[test]
fn the_guide_calls_a_gpu_broken_for_the_codes_of_the_class_device() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/gpu-faults.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    let row = rows.find(|row| row.contains("| this GPU is broken |"));
    let (cell, _) = row.unwrap().split_once(" | ").unwrap();
    let named: Vec<i32> = cell.split(", ").flat_map(numbers).collect();
    let is_devices = |code: &i32| {
        let context = Context {
            retried: true,
            ..Context::at(Step::Synchronize)
        };
        Cause::Code(*code).meaning(context).class == Class::Device
    };
    assert_eq!(named, listed().filter(is_devices).collect::<Vec<_>>());
}

/// The listed codes of `214` or `714 to 719`; none of a name.
fn numbers(words: &str) -> Vec<i32> {
    let (first, last) = words.split_once(" to ").unwrap_or((words, words));
    let (Ok(first), Ok(last)) = (first.parse(), last.parse()) else {
        return vec![];
    };
    let is_among = |code: &i32| (first..=last).contains(code);
    listed().filter(is_among).collect()
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

fn tried_again() -> String {
    let again = |cause: Cause| {
        let at = |step| cause.meaning(Context::at(step)).again;
        let steps = [Step::Init, Step::Context, Step::Synchronize, Step::Peers];
        assert!(steps.into_iter().all(|step| at(step) == at(Step::Init)));
        at(Step::Init)
    };
    let of = |kind: Again| {
        let codes = listed().filter(|code| again(Cause::Code(*code)) == kind);
        let mut all: Vec<_> = codes.map(|code| code.to_string()).collect();
        if again(Cause::Code(-1)) == kind {
            all.push("any code that is not listed".to_owned());
        }
        let found = Finding::ALL.into_iter();
        let found = found.filter(|found| again(Cause::Finding(*found)) == kind);
        all.extend(found.map(|found| format!("`{}`", found.name())));
        all.join(", ")
    };
    format!(
        "\n| first | then |\n|---|---|\n\
        | {} | one more try at once; what is met twice is blamed as [the table](../guides/gpu-faults.md#codes-of-the-driver) says |\n\
        | {} | further tries after 0.25, 0.5, 1, 2, 4, 4 … seconds, for `CUDA_SMOKE_WAIT_SECONDS` from the start on; the last one when that time is over |\n\
        | anything else | it stands |\n\n",
        of(Again::Once),
        of(Again::Wait)
    )
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
