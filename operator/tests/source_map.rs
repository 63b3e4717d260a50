//! The source map in `docs/architecture.md` names files that exist, and every file that a newcomer may look for.
#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders whose every file is on a row.
const MAPPED: [&str; 3] = ["crds", "kernels", "operator"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files and folders that the rows of the map name, from the repository's root. A name without a folder stands beside
/// the one before it.
fn named() -> BTreeSet<PathBuf> {
    let page = fs::read_to_string(repository().join("docs/architecture.md")).unwrap();
    let (_, map) = page.split_once("## Source map").unwrap();
    let mut named = BTreeSet::new();
    for row in map.lines().filter(|line| line.starts_with('|')) {
        let mut folder = PathBuf::new();
        for word in row.split('`').skip(1).step_by(2) {
            let is_file = Path::new(word).extension().is_some_and(|extension| {
                ["ptx", "rs", "sh", "yaml"].contains(&extension.to_str().unwrap())
            });
            let is_path = word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "/-_.".contains(c));
            if !is_path || !(is_file || word.ends_with('/')) {
                continue;
            }
            let path = Path::new(word);
            if word.contains('/') {
                let own = word.ends_with('/').then_some(path);
                folder = own.or(path.parent()).unwrap().into();
                named.insert(path.to_owned());
            } else {
                named.insert(folder.join(path));
            }
        }
    }
    named
}

/// Sources below a folder, without tests.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(repository().join(folder)).unwrap() {
        let name = entry.unwrap().file_name();
        let name = name.to_str().unwrap();
        let path = folder.join(name);
        if ["tests", "tests.rs", "snapshots", "fixture.rs"].contains(&name) {
            continue;
        }
        if repository().join(&path).is_dir() {
            sources(&path, found);
        } else if [".rs", ".sh", ".ptx"].iter().any(|end| name.ends_with(end)) {
            found.push(path);
        }
    }
}

#[test]
fn every_file_that_is_named_exists() {
    let missing: Vec<_> = named()
        .into_iter()
        .filter(|path| !repository().join(path).exists())
        .collect();
    assert!(missing.is_empty(), "docs/architecture.md names {missing:?}");
}

#[test]
fn every_file_is_on_a_row() {
    let named = named();
    let is_named = |path: &PathBuf| path.ancestors().any(|part| named.contains(part));
    let mut all = vec![];
    for folder in MAPPED {
        sources(Path::new(folder), &mut all);
    }
    let absent: Vec<_> = all.into_iter().filter(|path| !is_named(path)).collect();
    assert!(
        absent.is_empty(),
        "no row of the source map in docs/architecture.md names {absent:#?}"
    );
}
