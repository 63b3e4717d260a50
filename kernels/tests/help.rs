//! `cuda-smoke --help` reads like a short manual page.

#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

mod common;

use common::without_driver;

fn help(line: &[&str]) -> String {
    // Wide as on a terminal that does not say how wide it is.
    let output = without_driver()
        .args(line)
        .env_remove("COLUMNS")
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_manual() {
    insta::assert_snapshot!(help(&["--help"]));
}

#[test]
fn every_option_but_one_has_a_variable_as_the_manual_says() {
    for command in ["check", "prepare", "gate"] {
        let help = help(&[command, "--help"]);
        // Lines may break anywhere.
        let help = help.split("\n      --").skip(1);
        let options = help.map(|option| option.split_whitespace().collect::<Vec<_>>().join(" "));
        for option in options.filter(|option| !option.starts_with("json")) {
            assert!(option.contains("[env: CUDA_SMOKE_"), "{option}");
        }
    }
}
