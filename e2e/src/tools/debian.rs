//! Programs of the distribution: installed where we may, named where we may not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    paths,
    process::{find, logged, remove_dir},
    report::Story,
};

/// What a real node needs: a file or program, and the Debian package that brings it.
const NEEDED: [(&str, &str); 9] = [
    ("runc", "runc"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("buildah", "buildah"),
    ("debootstrap", "debootstrap"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("strip", "binutils"),
];

/// What is installed for a node, as the story calls it.
const PACKAGES: &str = "Debian packages";
/// So long that takes on two cores, as measured: the lists, and what is missing on a machine that has none of them.
const INSTALLED_IN: Duration = Duration::from_secs(8);

/// What the browser tests need. The fonts are for what they show.
const BROWSER: [(&str, &str); 3] = [
    ("chromium", "chromium"),
    ("chromedriver", "chromium-driver"),
    (
        "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
        "fonts-dejavu-core",
    ),
];

/// A file or program, and the package that brings it.
type Needed = [(&'static str, &'static str)];

fn missing(needed: &Needed) -> Vec<&'static str> {
    needed
        .iter()
        .filter(|(what, _)| {
            !(if what.starts_with('/') {
                Path::new(what).exists()
            } else {
                find(what).is_some()
            })
        })
        .map(|(_, package)| *package)
        .collect()
}

/// What is still to be installed for a node, with the time that it takes; `None` where nothing is.
pub fn ahead() -> Option<(String, Duration)> {
    part(&missing(&NEEDED))
}

fn part(missing: &[&str]) -> Option<(String, Duration)> {
    (!missing.is_empty()).then(|| (PACKAGES.to_owned(), INSTALLED_IN))
}

/// Installs what is missing for a node. Only root calls this: without root there is no node.
pub fn ensure(story: &Story) -> Result<()> {
    install(&NEEDED, story)
}

/// Installs a browser, and the program that drives it, where they are missing.
pub fn ensure_browser(story: &Story) -> Result<()> {
    install(&BROWSER, story)
}

fn install(needed: &Needed, story: &Story) -> Result<()> {
    if missing(needed).is_empty() {
        return Ok(());
    }
    let cache = paths::cache()?;
    let _lock = super::once::lock(&cache, "packages", story)?;
    let missing = missing(needed);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find("apt-get").is_none() {
        bail!(
            "these programs are missing, and there is no apt-get to install them: {list} (the names of the Debian packages); install them with this system's package manager"
        );
    }
    let log = cache.join("packages.log");
    story.part("installing", PACKAGES, || {
        story.step(&format!("  {list}"));
        logged(&mut apt(&["update"]), &log)?;
        logged(
            apt(&["install", "-y", "--no-install-recommends"]).args(&missing),
            &log,
        )
    })?;
    let still = self::missing(needed);
    if !still.is_empty() {
        bail!(
            "apt-get installed everything, yet these are missing: {}; see {}",
            still.join(" "),
            log.display()
        );
    }
    Ok(())
}

fn apt(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    // Another apt on the machine is waited for.
    command
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The folder with the files of a package that is not installed: it is for an image, or would start as a service of this
/// machine.
pub fn unpacked(package: &str, story: &Story) -> Result<PathBuf> {
    let dir = super::folder()?;
    let name = format!("debian-{package}");
    super::once(&dir, &name, story, |partial| {
        let log = partial.join("package.log");
        logged(&mut apt(&["update"]), &log)?;
        let fetched = partial.join("fetched");
        fs::create_dir(&fetched)?;
        logged(apt(&["download", package]).current_dir(&fetched), &log)?;
        let archive = fs::read_dir(&fetched)?.next();
        let archive = archive.context("apt-get download brought no file")??.path();
        logged(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(archive)
                .arg(partial),
            &log,
        )?;
        remove_dir(&fetched)
    })?;
    Ok(dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_a_part_of_what_is_ahead_where_some_are_missing() {
        assert_eq!(part(&[]), None);
        let (name, time) = part(&["runc", "buildah"]).unwrap();
        assert_eq!(name, PACKAGES);
        assert!(time > Duration::ZERO);
        // A file that is there is not missing, and a program that nobody has is
        let found = missing(&[("/", "root"), ("a-program-that-is-not-there", "absent")]);
        assert_eq!(found, ["absent"]);
    }
}
