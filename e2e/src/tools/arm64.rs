//! What builds and runs programs for arm64 on a machine for amd64: Debian's own compilers and its emulator, unpacked and not
//! installed. Debian updates this Rust for its browsers, so its version moves.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::once::{folder, once};
use crate::{
    paths,
    process::{cargo, find, logged, remove_dir},
    report::Story,
};

/// The folder of the cache.
const NAME: &str = "arm64-bookworm";
/// Rust's name for it.
const TARGET: &str = "aarch64-unknown-linux-gnu";
/// With what they need and this system lacks.
const FOR_AMD64: [&str; 4] = [
    "gcc-12-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "qemu-user-static",
    "rustc-web",
];
/// Alone: what it needs is there for amd64.
const FOR_ARM64: &str = "libstd-rust-web-dev:arm64";
/// The programs, each by a line of a shell that finds itself. It is bash, which hands on variables with a dash in their names:
/// cargo has some.
const PROGRAMS: [(&str, &str); 4] = [
    ("cc", "aarch64-linux-gnu-gcc-12"),
    ("ar", "aarch64-linux-gnu-ar"),
    ("rustc", "rustc"),
    (
        "qemu",
        "qemu-aarch64-static -L \"$here/usr/aarch64-linux-gnu\"",
    ),
];

/// The tools.
#[derive(Clone, Debug)]
pub struct Cross {
    dir: PathBuf,
}

impl Cross {
    /// Fetches and unpacks what is not there yet. An error says why they are not to be had.
    pub fn ensure(story: &Story) -> Result<Self> {
        ensure!(
            std::env::consts::ARCH == "x86_64",
            "the tools are for a machine with x86-64"
        );
        for program in ["apt-get", "dpkg-deb", "unshare"] {
            find(program).with_context(|| format!("there is no {program}"))?;
        }
        let dir = folder()?;
        once(&dir, NAME, story, fill)?;
        Ok(Self {
            dir: dir.join(NAME),
        })
    }

    /// `cargo`, for arm64, with a target folder of its own: its compiler is another.
    pub fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo(arguments);
        self.env(&mut command);
        command
    }

    /// The same where programs for arm64 start as any other, and start others: the kernel hands them to the emulator, in a
    /// namespace that ends with the command. Nothing of it is left on the machine.
    pub fn emulated(&self, arguments: &[&str]) -> Command {
        // Magic and mask are those of an ELF file for AArch64, see qemu's scripts/qemu-binfmt-conf.sh.
        const SCRIPT: &str = r#"set -e
            mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
            magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
            mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
            printf '%s' ":arm64:M::$magic:$mask:$1:" >/proc/sys/fs/binfmt_misc/register
            shift
            exec "$@""#;
        let plain = cargo(arguments);
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "--"])
            .args(["/bin/sh", "-c", SCRIPT, "emulated"])
            .arg(self.program("qemu"))
            .arg(plain.get_program())
            .args(plain.get_args())
            .current_dir(paths::repository());
        self.env(&mut command);
        command
    }

    /// What cargo built.
    pub fn artifact(&self, file: &str) -> PathBuf {
        target().join(TARGET).join("debug").join(file)
    }

    fn env(&self, command: &mut Command) {
        let cc = self.program("cc");
        command
            .env("RUSTC", self.program("rustc"))
            .env("CARGO_TARGET_DIR", target())
            .env("CARGO_BUILD_TARGET", TARGET)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", &cc)
            .env("CC_aarch64_unknown_linux_gnu", &cc)
            .env("AR_aarch64_unknown_linux_gnu", self.program("ar"));
    }

    fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn target() -> PathBuf {
    paths::repository().join("target/arm64")
}

/// Fetches the packages with lists of their own, so that the machine learns of no other architecture, and unpacks them.
fn fill(into: &Path) -> Result<()> {
    let apt = into.join("apt");
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(folder))?;
    }
    let log = into.join("packages.log");
    let get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-y", "-o", "Debug::NoLocking=1"])
            .args(["-o", "APT::Architectures::=amd64"])
            .args(["-o", "APT::Architectures::=arm64"])
            .args(["-o", "Dir::State::status=/var/lib/dpkg/status"])
            .arg("-o")
            .arg(format!("Dir::State={}", apt.join("state").display()))
            .arg("-o")
            .arg(format!("Dir::Cache={}", apt.join("cache").display()))
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .current_dir(apt.join("cache/archives"));
        logged(&mut command, &log)
    };
    get(&["update"])?;
    let mut fetch = vec!["install", "--download-only", "--no-install-recommends"];
    fetch.extend(FOR_AMD64);
    get(&fetch)?;
    get(&["download", FOR_ARM64])?;
    for archive in fs::read_dir(apt.join("cache/archives"))? {
        let archive = archive?.path();
        if archive.extension().is_some_and(|name| name == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("--extract").arg(archive).arg(into);
            logged(&mut unpack, &log)?;
        }
    }
    remove_dir(&apt)?;
    // The linker's script names files by where they would be installed.
    let script = into.join("usr/aarch64-linux-gnu/lib/libc.so");
    let text = fs::read_to_string(&script).context("a C library for arm64")?;
    fs::write(&script, text.replace("/usr/aarch64-linux-gnu/lib/", ""))?;
    for (name, line) in PROGRAMS {
        let program = into.join(name);
        let text = format!(
            "#!/bin/bash\nhere=${{0%/*}}\nlibraries=\"$here/usr/lib/x86_64-linux-gnu\"\n{}exec \"$here/usr/bin/\"{line} \"$@\"\n",
            // The emulator is static, and what it runs has libraries of its own.
            if name == "qemu" {
                ""
            } else {
                "export LD_LIBRARY_PATH=\"$libraries\"\n"
            }
        );
        fs::write(&program, text)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
