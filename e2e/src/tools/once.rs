//! What is built once and kept, though two runs may want it at the same time.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{paths, process, report::Story};

/// Where all of them are.
pub(super) fn folder() -> Result<PathBuf> {
    Ok(paths::cache()?.join("tools"))
}

/// Fills the folder `dir/name` with `build`, unless it exists. It is filled under another name and then renamed, so a
/// killed build leaves nothing that looks finished.
pub fn once(
    dir: &Path,
    name: &str,
    story: &Story,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let finished = dir.join(name);
    if finished.is_dir() {
        return Ok(());
    }
    let _lock = lock(dir, name, story)?;
    if finished.is_dir() {
        return Ok(()); // Whoever held the lock built it.
    }
    story.step(&format!("{name} is not here yet, and is made once"));
    let partial = dir.join(format!("{name}.partial"));
    process::remove_dir(&partial)?;
    fs::create_dir_all(&partial)?;
    build(&partial).with_context(|| {
        format!(
            "cannot build {name}; what was tried is in {}",
            partial.display()
        )
    })?;
    fs::rename(&partial, &finished)?;
    Ok(())
}

/// Holds the lock `dir/NAME.lock` until dropped; says so when it has to wait.
pub fn lock(dir: &Path, name: &str, story: &Story) -> Result<File> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        story.step(&format!("waiting for whoever holds {}", path.display()));
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_leaves_nothing_finished_and_a_good_one_is_not_repeated() {
        let dir = std::env::temp_dir().join(format!("e2e-once-{}", std::process::id()));
        let story = Story::silent();
        assert!(once(&dir, "x", &story, |_| anyhow::bail!("no")).is_err());
        assert!(!dir.join("x").exists());
        once(&dir, "x", &story, |partial| {
            Ok(fs::write(partial.join("f"), "1")?)
        })
        .unwrap();
        once(&dir, "x", &story, |_| anyhow::bail!("built twice")).unwrap();
        assert_eq!(fs::read_to_string(dir.join("x/f")).unwrap(), "1");
        process::remove_dir(&dir).unwrap();
    }
}
