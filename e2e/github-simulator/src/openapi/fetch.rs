//! Fetching the description, once per version and user.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};

use super::{ENTERPRISE_CLOUD, GITHUB_COM};

/// Version of the npm package `@octokit/openapi`.
pub const VERSION: &str = "23.0.2";

/// Makes sure that GitHub's description is on this machine, and says in which folder.
///
/// The first call downloads the package (29 MB) with npm and keeps the two files in use below
/// `${XDG_CACHE_HOME:-~/.cache}/cuda-runner-e2e/openapi/`; later calls find them there.
pub fn ensure() -> Result<PathBuf> {
    let folder = cache()?.join("openapi").join(VERSION);
    if complete(&folder) {
        return Ok(folder);
    }
    let parent = folder
        .parent()
        .ok_or_else(|| anyhow!("{} has no parent", folder.display()))?;
    // Made beside the target, so that the last step is a rename and two runs do not meet.
    let work = parent.join(format!(".{VERSION}-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
    let outcome = download(&work).and_then(|()| {
        if complete(&folder) {
            return Ok(());
        }
        match fs::rename(work.join("package/generated"), &folder) {
            Err(_) if complete(&folder) => Ok(()),
            other => other.with_context(|| format!("creating {}", folder.display())),
        }
    });
    // Left-overs are harmless; the error of the download matters more.
    let _ = fs::remove_dir_all(&work);
    outcome.with_context(|| {
        format!(
            "GitHub's API description (npm package @octokit/openapi {VERSION}) is not in {} and \
             could not be fetched. The suites validate every request with it: run them once with \
             access to the npm registry, or copy {GITHUB_COM} and {ENTERPRISE_CLOUD} there",
            folder.display()
        )
    })?;
    Ok(folder)
}

fn complete(folder: &Path) -> bool {
    folder.join(GITHUB_COM).is_file() && folder.join(ENTERPRISE_CLOUD).is_file()
}

fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => Path::new(
            &env::var_os("HOME")
                .ok_or_else(|| anyhow!("neither XDG_CACHE_HOME nor HOME is set"))?,
        )
        .join(".cache"),
    };
    Ok(base.join("cuda-runner-e2e"))
}

fn download(work: &Path) -> Result<()> {
    run(Command::new("npm")
        .args(["pack", "--silent", &format!("@octokit/openapi@{VERSION}")])
        .arg("--pack-destination")
        .arg(work))?;
    run(Command::new("tar")
        .arg("-xzf")
        .arg(work.join(format!("octokit-openapi-{VERSION}.tgz")))
        .arg("-C")
        .arg(work)
        .arg(format!("package/generated/{GITHUB_COM}"))
        .arg(format!("package/generated/{ENTERPRISE_CLOUD}")))
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("starting {name}; is it installed?"))?;
    if !output.status.success() {
        bail!(
            "{name} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
