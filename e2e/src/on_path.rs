//! The programs that people use with a cluster, in a folder for their PATH: kubectl with the plugin, and Helm.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    cluster::Cluster,
    images::{Profile, artifact},
};

/// Makes the folder. What is in it already stays.
pub fn folder(cluster: &Cluster, profile: Profile) -> Result<PathBuf> {
    let folder = cluster.dir.join("bin");
    let plugin = "kubectl-cudarunner";
    link(
        &folder,
        &[
            ("kubectl", cluster.tools.kubernetes("kubectl")),
            (plugin, artifact(profile, plugin)),
            ("helm", cluster.tools.helm()),
        ],
    )?;
    Ok(folder)
}

fn link(folder: &Path, programs: &[(&str, PathBuf)]) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (name, program) in programs {
        let program = std::path::absolute(program)?;
        let link = folder.join(name);
        if link.is_symlink() {
            continue;
        }
        symlink(&program, link).with_context(|| format!("cannot link {}", program.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, process::Command};

    use super::*;

    #[test]
    fn the_programs_are_found_on_the_path() {
        let dir = std::env::temp_dir().join(format!("on-path-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("built-kubectl-1.2");
        fs::write(&program, "#!/bin/sh\necho \"it runs: $1\"\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let folder = dir.join("bin");
        // Made twice, as by another command for the same cluster
        for _ in 0..2 {
            link(&folder, &[("kubectl", program.clone())]).unwrap();
        }
        let shell = Command::new("/bin/sh")
            .args(["-c", "kubectl get"])
            .env_clear()
            .env("PATH", &folder)
            .output()
            .unwrap();
        assert_eq!(shell.stdout, b"it runs: get\n");
        fs::remove_dir_all(&dir).unwrap();
    }
}
