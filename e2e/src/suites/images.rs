//! What is in the images that are shipped: our binaries, and nothing that simulates; a release has them for two architectures.
//! And what the images of jobs are for.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Ctx;
use crate::{
    images::Images,
    paths,
    process::{find, output},
    report::Story,
};

/// A word that only the simulated driver holds.
const SIMULATED: &[u8] = b"SIMCUDA";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let place = ctx.cluster.dir.join("release");
    tokio::task::spawn_blocking(move || {
        look()?;
        published(&place)
    })
    .await?
}

/// The image that the release is watched to make.
const IMAGE: &str = "cuda-runner-operator";

/// The release's own step makes one name of both architectures, each with its own program.
fn published(place: &Path) -> Result<()> {
    // Given a program for each, and a registry that is a folder
    for folder in ["bin", "dist", "operator", ".docker"] {
        fs::create_dir_all(place.join(folder))?;
    }
    let containerfile = "operator/Containerfile";
    fs::copy(
        paths::repository().join(containerfile),
        place.join(containerfile),
    )?;
    let program: fn(&str) -> String = |arch| format!("a program for {arch}");
    for arch in ["amd64", "arm64"] {
        fs::write(
            place.join(format!("dist/{IMAGE}-linux-{arch}")),
            program(arch),
        )?;
    }
    for (file, text) in [
        (
            "policy.json",
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        ),
        (".docker/config.json", "{}"),
    ] {
        fs::write(place.join(file), text)?;
    }
    shim(place, "buildah", include_str!("images/buildah.sh"))?;
    shim(place, "git", "#!/bin/sh\necho 1700000000\n")?;
    // When its lines are run
    let path = std::env::var("PATH").unwrap_or_default();
    let mut step = Command::new("bash");
    step.args(["-e", "-o", "pipefail", "-c", &step_of_the_release()?])
        .current_dir(place)
        .env("PATH", format!("{}:{path}", place.join("bin").display()))
        .env("BUILDAH", find("buildah").context("buildah is missing")?)
        .env("PLACE", place)
        .env("HOME", place)
        .envs([
            ("IMAGE", IMAGE),
            ("FOLDER", "operator"),
            ("BASE", "scratch"),
        ])
        .envs([
            ("REGISTRY", "ghcr.io"),
            ("GITHUB_REPOSITORY", "Acme/Runner"),
        ])
        .envs([("GITHUB_REF_NAME", "v1.2.3"), ("GITHUB_SHA", "0a0a")])
        .env("GITHUB_SERVER_URL", "https://github.com")
        .env("GITHUB_OUTPUT", place.join("output"));
    output(&mut step)?;
    // Then what is signed is a list of both, each with its own program
    let said = fs::read_to_string(place.join("output"))?;
    let digest = said.lines().find_map(|line| line.strip_prefix("digest="));
    both(place, digest.context("no digest")?, IMAGE, program)
}

/// The list of this digest has an image for each architecture, with its own program.
fn both(place: &Path, digest: &str, image: &str, program: fn(&str) -> String) -> Result<()> {
    let list = blob(place, digest)?;
    for (manifest, arch) in items(&list["manifests"], 2)?.iter().zip(["amd64", "arm64"]) {
        ensure!(manifest["platform"]["architecture"] == arch, "{list}");
        let parts = blob(place, text(&manifest["digest"])?)?;
        let layer = &items(&parts["layers"], 1)?[0]["digest"];
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--to-stdout", "--file"])
            .arg(place_of(place, text(layer)?))
            .arg(format!("usr/bin/{image}"));
        let found = output(&mut tar)?;
        ensure!(found == program(arch), "for {arch} there is {found:?}");
    }
    Ok(())
}

/// A program that takes another's place.
fn shim(place: &Path, name: &str, script: &str) -> Result<()> {
    let program = place.join("bin").join(name);
    fs::write(&program, script)?;
    Ok(fs::set_permissions(
        program,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// The lines that build and push, as the workflow has them.
fn step_of_the_release() -> Result<String> {
    let file = paths::repository().join(".github/workflows/release.yml");
    let workflow: Value = serde_saphyr::from_str(&fs::read_to_string(file)?)?;
    let steps = workflow["jobs"]["images"]["steps"].as_array();
    let mut steps = steps.into_iter().flatten();
    let step = steps.find(|step| step["id"] == "push");
    let step = step.context("the release pushes nothing")?;
    Ok(text(&step["run"])?.to_owned())
}

fn place_of(place: &Path, digest: &str) -> PathBuf {
    let hash = digest.trim_start_matches("sha256:");
    place.join("registry/blobs/sha256").join(hash)
}

fn blob(place: &Path, digest: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(place_of(place, digest))?)?)
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("no text")
}

/// A list that has so many.
fn items(value: &Value, count: usize) -> Result<&Vec<Value>> {
    let items = value.as_array().filter(|items| items.len() == count);
    items.with_context(|| format!("not {count}: {value}"))
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
