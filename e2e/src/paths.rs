//! Where things are: the repository, the cache and the folder of a cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The root of the repository. `cargo e2e` only ever runs from a checkout, so the build's own folder is right.
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The folder that outlives clusters: `${XDG_CACHE_HOME:-~/.cache}/cuda-runner-e2e`.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(
            std::env::var_os("HOME")
                .filter(|v| !v.is_empty())
                .context("neither XDG_CACHE_HOME nor HOME is set: set one, built tools and images are kept under it")?,
        )
        .join(".cache"),
    };
    let dir = base.join("cuda-runner-e2e");
    // The node's sandbox covers these with private folders, and would cover its own state with them.
    if ["/run", "/var/run", "/var/lib", "/var/log", "/proc", "/sys"]
        .iter()
        .any(|p| dir.starts_with(p))
    {
        bail!(
            "the cache folder {} cannot be used by the local cluster: set XDG_CACHE_HOME to a folder outside /run, /var/lib and /var/log",
            dir.display()
        );
    }
    std::fs::create_dir_all(&dir)
        .with_context(|| format!("cannot create the cache folder {}", dir.display()))?;
    dir.canonicalize()
        .with_context(|| format!("cannot resolve the cache folder {}", dir.display()))
}

/// The folder of the clusters, one folder each.
pub fn clusters() -> Result<PathBuf> {
    Ok(cache()?.join("clusters"))
}

/// The folder of one cluster. Names end up in paths, cgroups and host names, so they are held to a label's alphabet.
pub fn cluster(name: &str) -> Result<PathBuf> {
    let valid = !name.is_empty()
        && name.len() <= 30
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !valid {
        bail!(
            "`{name}` cannot name a cluster: use at most 30 of a-z, 0-9 and -, not at either end"
        );
    }
    Ok(clusters()?.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_are_labels() {
        assert!(cluster("local").is_ok());
        for bad in ["", "-a", "a-", "../x", "A", &"x".repeat(31)] {
            assert!(cluster(bad).is_err(), "{bad}");
        }
    }
}
