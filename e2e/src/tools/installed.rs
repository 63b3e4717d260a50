//! Programs that a registry's own client installs: from crates.io and from PyPI.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use super::once::{folder, once};
use crate::{
    process::{logged, remove_dir},
    report::Story,
};

const CARGO_DENY: &str = "0.20.2";
/// Grafana's version, behind the date of the SDK.
const GRAFANA_SDK: &str = "1769699379!11.6.0";
const MDBOOK: &str = "0.5.4";
const ZIZMOR: &str = "1.32.0";

/// cargo-deny, built once.
pub fn cargo_deny(story: &Story) -> Result<PathBuf> {
    crates_io("cargo-deny", CARGO_DENY, &[], story)
}

/// mdBook, built once. Unoptimised, it is ready in half the time and renders our pages in a second.
pub fn mdbook(story: &Story) -> Result<PathBuf> {
    let features = ["--debug", "--no-default-features", "--features=search"];
    crates_io("mdbook", MDBOOK, &features, story)
}

/// zizmor, which looks for what is unsafe in GitHub's workflows.
pub fn zizmor(story: &Story) -> Result<PathBuf> {
    Ok(pypi("zizmor", ZIZMOR, story)?.join("bin/zizmor"))
}

/// The folder of Grafana's own types of dashboards, for Python.
pub fn grafana_sdk(story: &Story) -> Result<PathBuf> {
    pypi("grafana-foundation-sdk", GRAFANA_SDK, story)
}

/// The folder of a package of PyPI that needs no other.
fn pypi(name: &str, version: &str, story: &Story) -> Result<PathBuf> {
    let versioned = format!("{name}-{version}");
    let dir = folder()?;
    once(&dir, &versioned, story, |partial| {
        logged(
            Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
                .arg(partial)
                .arg(format!("{name}=={version}")),
            &partial.join("install.log"),
        )
    })?;
    Ok(dir.join(versioned))
}

fn crates_io(name: &str, version: &str, how: &[&str], story: &Story) -> Result<PathBuf> {
    let versioned = format!("{name}-{version}");
    let dir = folder()?;
    once(&dir, &versioned, story, |partial| {
        logged(
            Command::new("cargo")
                .args(["install", "--locked", "--quiet", "--version", version])
                .args(how)
                .arg("--root")
                .arg(partial)
                .arg(name)
                // The compiled parts are of no further use, and the workspace's own are not to be thrown over.
                .env("CARGO_TARGET_DIR", partial.join("target"))
                .current_dir(partial),
            &partial.join("build.log"),
        )?;
        fs::rename(partial.join("bin").join(name), partial.join(name))?;
        remove_dir(&partial.join("target"))
    })?;
    Ok(dir.join(versioned).join(name))
}
