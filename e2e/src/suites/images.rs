//! What is in the images that are shipped: our binaries, and nothing that simulates.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Ctx;
use crate::{images::Images, report::Story};

/// A word that only the simulated driver holds.
const SIMULATED: &[u8] = b"SIMCUDA";

pub(super) async fn run(_: &Ctx) -> Result<()> {
    tokio::task::spawn_blocking(look).await?
}

fn look() -> Result<()> {
    let images = Images::open(&Story::silent())?;
    // The look finds what it looks for: the file that the node's device plugin mounts has the word.
    let driver = std::fs::read(crate::images::artifact(
        crate::images::Profile::Dev,
        "libcuda.so",
    ))?;
    ensure!(
        contains(&driver, SIMULATED),
        "the simulated driver does not hold the word by which it is known"
    );
    for (name, binaries) in [
        (
            "cuda-runner-operator",
            &["usr/bin/cuda-runner-operator"][..],
        ),
        ("cuda-smoke", &["cuda-smoke", "runner-init"]),
    ] {
        let layers = images.layers_over_base(name)?;
        let files: Vec<_> = layers
            .iter()
            .flat_map(|layer| &layer.files)
            .filter(|file| !file.ends_with('/'))
            .collect();
        ensure!(files == binaries, "the image {name} adds {files:?}");
        for layer in &layers {
            ensure!(
                !contains(&layer.content, SIMULATED),
                "the image {name} holds the simulated driver"
            );
        }
        let config = images.config(name)?;
        let user = config["User"].as_str().unwrap_or_default();
        ensure!(
            user.split(':')
                .next()
                .is_some_and(|uid| uid.parse::<u32>().is_ok_and(|uid| uid > 0)),
            "{name} runs as {user:?}"
        );
        labelled(name, &config["Labels"])?;
    }
    Ok(())
}

/// What registries and scanners read: what it is, which version, under which licence, from which commit of which
/// repository. The last two are the release's to say.
fn labelled(name: &str, labels: &Value) -> Result<()> {
    let label = |key: &str| {
        labels[format!("org.opencontainers.image.{key}")]
            .as_str()
            .unwrap_or_default()
    };
    for (key, expected) in [
        ("title", name),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", "Apache-2.0"),
        ("revision", "unknown"),
        ("source", "unknown"),
    ] {
        ensure!(
            label(key) == expected,
            "{name} has the label {key} {:?}, not {expected:?}",
            label(key)
        );
    }
    ensure!(
        !label("description").is_empty(),
        "{name} has no description"
    );
    Ok(())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}
