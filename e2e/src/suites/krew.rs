//! krew installs the plugin from the manifest and the archive that the release's own step makes.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Ctx;
use crate::{
    images::{Profile, artifact},
    paths,
    process::output,
    report::Story,
    tools,
};

const STEP: &str = "The plugin for krew";
const TAG: &str = "v1.2.3";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let place = ctx.cluster.dir.join("krew-release");
    tokio::task::spawn_blocking(move || installed(&place)).await?
}

fn installed(place: &Path) -> Result<()> {
    let krew = tools::krew(&Story::silent())?;
    // Given what the release's step makes of the programs; the one for arm64 stands for any file
    for folder in ["built", "operator"] {
        fs::create_dir_all(place.join(folder))?;
    }
    for arch in ["amd64", "arm64"] {
        let program = place.join(format!("built/kubectl-cudarunner-linux-{arch}"));
        fs::copy(artifact(Profile::Dev, "kubectl-cudarunner"), &program)?;
        // As an artifact comes: without the mode of a program.
        fs::set_permissions(program, fs::Permissions::from_mode(0o644))?;
    }
    for needed in ["LICENSE", "operator/krew.yaml"] {
        fs::copy(paths::repository().join(needed), place.join(needed))?;
    }
    let mut step = Command::new("bash");
    step.args(["-e", "-o", "pipefail", "-c", &script()?])
        .current_dir(place)
        .env("GITHUB_REF_NAME", TAG)
        .env("GITHUB_SERVER_URL", "https://github.com")
        .env("GITHUB_REPOSITORY", "acme/cuda-runner");
    output(&mut step)?;
    let manifest = place.join("dist/cudarunner.yaml");
    // Then krew takes the manifest for one
    let mut validate = Command::new(krew.join("validate-krew-manifest"));
    validate
        .arg("--skip-install")
        .arg("--manifest")
        .arg(&manifest);
    output(&mut validate)?;
    let text = fs::read_to_string(&manifest)?;
    let uri =
        "https://github.com/acme/cuda-runner/releases/download/v1.2.3/kubectl-cudarunner-linux-";
    for arch in ["amd64", "arm64"] {
        ensure!(text.contains(&format!("{uri}{arch}.tar.gz")), "{text}");
    }
    ensure!(!text.contains("SHA256"), "a sum is missing: {text}");
    // And what it installs runs
    let root = place.join("krew");
    let mut install = Command::new(krew.join("krew"));
    install
        .env("KREW_ROOT", &root)
        .env("KREW_NO_UPGRADE_CHECK", "1")
        .arg("install")
        .arg(format!("--manifest={}", manifest.display()))
        .arg(format!("--archive={}", archive(place).display()))
        .stdin(Stdio::null());
    output(&mut install)?;
    let said = output(Command::new(root.join("bin/kubectl-cudarunner")).arg("--version"))?;
    ensure!(said.starts_with("kubectl cudarunner "), "{said}");
    Ok(())
}

fn archive(place: &Path) -> std::path::PathBuf {
    place.join("dist/kubectl-cudarunner-linux-amd64.tar.gz")
}

/// What the step runs, as the workflow has it.
fn script() -> Result<String> {
    let file = paths::repository().join(".github/workflows/release.yml");
    let workflow: Value = serde_saphyr::from_str(&fs::read_to_string(file)?)?;
    let steps = workflow["jobs"]["plugin"]["steps"].as_array();
    let mut steps = steps.into_iter().flatten();
    let step = steps.find(|step| step["name"] == STEP);
    let script = step.and_then(|step| step["run"].as_str());
    Ok(script
        .with_context(|| format!("the release has no step {STEP:?}"))?
        .to_owned())
}
