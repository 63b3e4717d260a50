//! What is in the images that are shipped: our binaries, and nothing that simulates. And what the images of jobs are for.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

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
    for_jobs(&images)
}

/// Suites of jobs with containers rely on these, and would else show something that they do not mean.
fn for_jobs(images: &Images) -> Result<()> {
    for (name, key, value) in [
        ("job-cuda", "Env", json!("NVIDIA_VISIBLE_DEVICES=all")),
        ("job-user", "User", json!("app")),
        ("job-entrypoint", "Entrypoint", json!(["/bin/false"])),
        ("job-command", "Cmd", json!(["/bin/false"])),
    ] {
        let config = images.config(name)?;
        let has = config[key]
            .as_array()
            .is_some_and(|all| all.contains(&value));
        ensure!(has || config[key] == value, "{name} has the {key} {config}");
    }
    let files = |name| -> Result<Vec<String>> {
        let layers = images.layers_over_base(name)?.into_iter();
        Ok(layers.flat_map(|layer| layer.files).collect())
    };
    ensure!(files("job-static")? == ["program"], "job-static has more");
    let alpine = files("job-alpine")?;
    let has = |file: &str| alpine.iter().any(|one| one.trim_end_matches('/') == file);
    for (file, there) in [
        ("bin/sh", true),
        ("usr/bin/env", true),
        ("etc/alpine-release", true),
        ("bin/bash", false),
        ("lib", false),
    ] {
        ensure!(has(file) == there, "{file} in job-alpine: {}", !there);
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
