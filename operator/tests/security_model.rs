//! `docs/security-model.md` names tests and suites that exist.
#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

use std::fs;
use std::path::Path;

/// All sources below a folder, in one text.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all += &fs::read_to_string(path).unwrap();
        }
    }
    all
}

#[test]
fn every_test_that_is_named_exists() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folders = [
        "operator/src",
        "operator/plan/src",
        "kernels/src",
        "kernels/tests",
        "e2e/tests",
    ];
    let code = folders
        .map(|folder| sources(&repository.join(folder)))
        .concat();
    let page = fs::read_to_string(repository.join("docs/security-model.md")).unwrap();
    // Words in backticks that look like a test's name: a sentence.
    let words = page.split('`').skip(1).step_by(2);
    let names: Vec<&str> = words
        .filter(|word| {
            word.matches('_').count() >= 3
                && word.chars().all(|c| c == '_' || c.is_ascii_lowercase())
        })
        .collect();
    assert!(
        names.len() > 20,
        "the page names hardly any test: {names:?}"
    );
    for name in names {
        assert!(
            code.contains(&format!("fn {name}(")),
            "no test is called {name}"
        );
    }
}

#[test]
fn every_suite_that_is_named_exists() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| fs::read_to_string(repository.join(path)).unwrap();
    let (table, page) = (
        read("e2e/src/suites/mod.rs"),
        read("docs/security-model.md"),
    );
    let mentions = page.split("suite `").skip(1);
    let names: Vec<&str> = mentions.filter_map(|rest| rest.split('`').next()).collect();
    assert!(
        names.len() > 10,
        "the page names hardly any suite: {names:?}"
    );
    for name in names {
        assert!(
            table.contains(&format!("\"{name}\",")),
            "no suite is called {name}"
        );
    }
}
