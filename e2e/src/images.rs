//! The project's images, built from their Containerfiles without a registry.
//!
//! Everything is kept in the cache: a debootstrap base, buildah's own storage, and one OCI layout into which the images
//! are pushed with their layers shared and uncompressed, so that importing them all into a cluster costs one copy of
//! the base. An image is built again when its inputs change, and only then.

mod large;
mod layout;
mod table;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::{
    paths,
    process::{self, find, logged, output, remove_dir},
    report::Story,
    tools,
};
pub use layout::Parts;
use table::{Base, IMAGES, Image};

/// The base of all local images. What a GitHub runner's image needs is in it.
const BASE: &str = "localhost/debian:bookworm";
const SUITE: &str = "bookworm";
const PACKAGES: &str = "ca-certificates,curl,gcc,git,libc6-dev,tar";
const MIRROR: &str = "http://deb.debian.org/debian";

/// An image of 3 GiB over `job-cuda`. It is for registries alone: no cluster has it from the start.
pub const LARGE: &str = "job-3gib";
const LARGE_BASE: &str = "job-cuda";

/// What is built of ours, as the story calls it: the binaries, and the base of the images.
const BINARIES: &str = "the programs that go into the images";
const BASE_IMAGE: &str = "the base of the images";

fn image_part(name: &str) -> String {
    format!("the image {name}")
}

/// What a first run has to build of ours, each part with the time that it takes on two cores, as measured.
pub fn missing(profile: Profile) -> Result<Vec<(String, Duration)>> {
    let mut parts = vec![];
    let mut part = |name: String, seconds| parts.push((name, Duration::from_secs(seconds)));
    let dir = paths::cache()?.join("images");
    if !artifact(profile, "cuda-runner-operator").exists() {
        part(BINARIES.to_owned(), 125);
    }
    let is_missing = |name: &str| !dir.join(format!("{name}.id")).exists();
    if is_missing("base") {
        part(BASE_IMAGE.to_owned(), 54);
    }
    let names = std::iter::once("pause").chain(IMAGES.iter().map(|image| image.name));
    for name in names.filter(|name| is_missing(name)) {
        part(image_part(name), 6);
    }
    Ok(parts)
}

/// With which profile the binaries are built that go into the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// As the workspace's tests are built, so that nothing is compiled twice.
    #[default]
    Dev,
    /// As published.
    Release,
    /// Fast, and built in a fraction of the time that the published form takes.
    Measure,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
            Self::Measure => "measure",
        }
    }
}

/// The packages whose artifacts a cluster uses.
const ARTIFACTS: [&str; 4] = [
    "cuda-runner-operator",
    "cuda-smoke",
    "simulated-agent",
    "simulated-driver",
];

/// The tool that a driver brings.
pub const SMI: &str = "nvidia-smi";

/// The programs that run in foreign images, and so need nothing of them, with their packages.
const STATIC: [(&str, &str); 4] = [
    ("cuda-smoke", "runner-init"),
    ("simulated-agent", "simulated-node"),
    ("simulated-driver", SMI),
    ("simulated-agent", "simulated-service"),
];

/// Builds the binaries and the driver with cargo.
pub fn build_binaries(profile: Profile, story: &Story) -> Result<()> {
    story.building(BINARIES, || {
        build_packages(profile, &ARTIFACTS)?;
        STATIC
            .iter()
            .try_for_each(|(package, binary)| build_static(profile, package, binary))
    })
}

/// Builds the binaries of some packages with cargo.
pub fn build_packages(profile: Profile, packages: &[&str]) -> Result<()> {
    let mut cargo = cargo("build", profile);
    for package in packages {
        cargo.args(["--package", package]);
    }
    build(cargo)
}

/// Builds one that is static: it alone is linked in another way, and what it is made of is compiled once.
fn build_static(profile: Profile, package: &str, binary: &str) -> Result<()> {
    let mut cargo = cargo("rustc", profile);
    cargo.args(["--package", package, "--bin", binary]).args([
        "--",
        "-C",
        "target-feature=+crt-static",
    ]);
    build(cargo)?;
    let headers = output(
        Command::new("readelf")
            .args(["--wide", "--program-headers"])
            .arg(artifact(profile, binary)),
    )?;
    // Who has an interpreter wants the image's libraries.
    anyhow::ensure!(!headers.contains("INTERP"), "{binary} is not static");
    Ok(())
}

fn cargo(subcommand: &str, profile: Profile) -> Command {
    let mut cargo = process::cargo(&[subcommand, "--quiet"]);
    match profile {
        Profile::Dev => {}
        Profile::Release => drop(cargo.arg("--release")),
        Profile::Measure => drop(cargo.arg("--profile=measure")),
    }
    cargo
}

fn build(mut cargo: Command) -> Result<()> {
    // Compiler messages go to the terminal: they are for the person who runs this.
    let status = cargo.status().context("cannot start cargo")?;
    anyhow::ensure!(
        status.success(),
        "cargo could not build the binaries of the images"
    );
    Ok(())
}

/// What cargo built: a binary, or the driver.
pub fn artifact(profile: Profile, file: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| paths::repository().join("target"), PathBuf::from);
    target.join(profile.folder()).join(file)
}

/// Puts the simulated driver into a folder, under the name that the real one has: cargo cannot give it. The tool that comes
/// with a driver is beside it.
pub fn install_driver(profile: Profile, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::copy(artifact(profile, SMI), folder.join(SMI)).context("cannot copy nvidia-smi")?;
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        fs::copy(artifact(profile, "libcuda.so"), folder.join(name))
            .context("cannot copy the simulated driver")?;
    }
    Ok(())
}

/// The image store of the cache.
#[derive(Debug)]
pub struct Images {
    dir: PathBuf,
    _lock: fs::File,
}

impl Images {
    /// Opens the store, alone: buildah's storage and the layout change together.
    pub fn open(story: &Story) -> Result<Self> {
        let dir = paths::cache()?.join("images");
        let lock = tools::lock(&dir, "images", story)?;
        fs::write(
            dir.join("policy.json"),
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        )?;
        Ok(Self { dir, _lock: lock })
    }

    /// Builds what changed: the base, the pause image, and the images of the project.
    pub fn build(&self, profile: Profile, story: &Story) -> Result<()> {
        let base = self.base(story)?;
        self.once("pause", Some((BASE, &base)), story, |context| {
            fs::write(
                context.join("Containerfile"),
                "ARG BASE\nFROM ${BASE}\nENTRYPOINT [\"/bin/sleep\", \"infinity\"]\n",
            )?;
            Ok(Vec::new())
        })?;
        for image in &IMAGES {
            let agent = self.recorded("simulated-agent");
            let base = match image.base {
                Base::Debian => Some((BASE, base.as_str())),
                Base::Agent => Some(("localhost/simulated-agent:dev", agent.as_str())),
                Base::Scratch => None,
            };
            self.once(image.name, base, story, |context| {
                stage(image, profile, context, story)?;
                let named = |(binary, argument): &(&str, Option<&str>)| {
                    argument.map(|argument| format!("{argument}=bin/{binary}"))
                };
                Ok(image.binaries.iter().filter_map(named).collect())
            })?;
        }
        layout::prune(&self.layout())?;
        Ok(())
    }

    /// Writes the images as one OCI archive.
    pub fn archive(&self, to: &Path) -> Result<()> {
        let names: Vec<_> = std::iter::once("pause")
            .chain(IMAGES.iter().map(|image| image.name))
            .collect();
        layout::archive(&self.layout(), &names, to)
    }

    /// What an image has over the base.
    pub fn layers_over_base(&self, name: &str) -> Result<Vec<layout::Layer>> {
        layout::layers_without(&self.layout(), name, "pause")
    }

    /// What an image says of its containers: user, labels and so on.
    pub fn config(&self, name: &str) -> Result<serde_json::Value> {
        layout::config(&self.layout(), name)
    }

    /// What a registry takes of an image.
    pub fn parts(&self, name: &str, story: &Story) -> Result<Parts> {
        if name == LARGE {
            let base = layout::parts(&self.layout(), LARGE_BASE)?;
            return large::with_filler(base, &self.dir, story);
        }
        layout::parts(&self.layout(), name)
    }

    /// The same as a release of this version. It is another image to a node: what was pulled from a registry, a kubelet pulls again
    /// under each other name, also under that by which it was imported.
    pub fn released(&self, name: &str, version: &str, story: &Story) -> Result<Parts> {
        let file = self.dir.join(format!("{name}-{version}.json"));
        self.parts(name, story)?.configured(file, |config| {
            config["config"]["Labels"]["org.opencontainers.image.version"] = version.into();
            Ok(())
        })
    }

    fn layout(&self) -> PathBuf {
        self.dir.join("oci")
    }

    /// The base image; its id is the hash of what it was made from.
    fn base(&self, story: &Story) -> Result<String> {
        let id = hex(Sha256::digest(format!("{SUITE} {PACKAGES} 1")).as_slice());
        if self.recorded("base") != id {
            story.building(BASE_IMAGE, || self.make_base())?;
            self.record("base", &id)?;
        }
        Ok(id)
    }

    /// With debootstrap.
    fn make_base(&self) -> Result<()> {
        let root = self.dir.join("rootfs");
        let log = self.dir.join("base.log");
        remove_dir(&root)?;
        let debootstrap = find("debootstrap").context("debootstrap is missing")?;
        logged(
            private(debootstrap.as_os_str())
                .args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
                .arg(&root)
                .arg(MIRROR),
            &log,
        )?;
        // Lists and archives of packages are of no use in an image.
        for folder in ["var/cache/apt/archives", "var/lib/apt/lists"] {
            remove_dir(&root.join(folder))?;
            fs::create_dir_all(root.join(folder).join("partial"))?;
        }
        let context = self.dir.join("base");
        remove_dir(&context)?;
        fs::create_dir_all(&context)?;
        fs::write(
            context.join("Containerfile"),
            "FROM scratch\nADD rootfs.tar /\n",
        )?;
        output(
            Command::new("tar")
                .arg("-cf")
                .arg(context.join("rootfs.tar"))
                .arg("--numeric-owner")
                .arg("-C")
                .arg(&root)
                .arg("."),
        )?;
        logged(
            self.buildah()
                .args(["bud", "--isolation=chroot", "--tag", BASE])
                .arg(self.policy())
                .arg(&context),
            &log,
        )?;
        remove_dir(&root)?;
        remove_dir(&context)
    }

    /// Builds an image unless its inputs are those of the last time: the context that `fill` stages, and the base,
    /// which is a tag and what it was made from, where there is one.
    fn once(
        &self,
        name: &str,
        base: Option<(&str, &str)>,
        story: &Story,
        fill: impl FnOnce(&Path) -> Result<Vec<String>>,
    ) -> Result<()> {
        let context = self.dir.join("context");
        remove_dir(&context)?;
        fs::create_dir_all(&context)?;
        let arguments = fill(&context)
            .with_context(|| format!("cannot gather the files of the image {name}"))?;
        let mut hash = Sha256::new();
        hash.update(base.map_or("", |(_, id)| id));
        hash.update(arguments.join(" "));
        hash_tree(&context, &context, &mut hash)?;
        let id = hex(hash.finalize().as_slice());
        if self.recorded(name) != id {
            story.building(&image_part(name), || {
                let log = self.dir.join(format!("{name}.log"));
                let tag = format!("localhost/{name}:dev");
                let mut build = self.buildah();
                build.args(["bud", "--isolation=chroot", "--pull-never", "--tag", &tag]);
                let base = base.map(|(tag, _)| format!("BASE={tag}"));
                for argument in base.iter().chain(&arguments) {
                    build.args(["--build-arg", argument]);
                }
                logged(build.arg(self.policy()).arg(&context), &log)?;
                let target = format!("oci:{}:{name}", self.layout().display());
                logged(
                    self.buildah()
                        .args(["push", "--disable-compression"])
                        .arg(self.policy())
                        .args([&tag, &target]),
                    &log,
                )?;
                // What the tag named before is of no more use.
                logged(self.buildah().args(["rmi", "--prune", "--force"]), &log)?;
                Ok(())
            })?;
            self.record(name, &id)?;
        }
        remove_dir(&context)
    }

    fn buildah(&self) -> Command {
        let mut command = private("buildah".as_ref());
        command
            .arg("--root")
            .arg(self.dir.join("storage"))
            .arg("--runroot")
            .arg(self.dir.join("storage-run"))
            .args(["--storage-driver", "overlay"]);
        command
    }

    /// Signatures of what we built ourselves a moment ago are not asked for.
    fn policy(&self) -> String {
        format!(
            "--signature-policy={}",
            self.dir.join("policy.json").display()
        )
    }

    fn recorded(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{name}.id"))).unwrap_or_default()
    }

    fn record(&self, name: &str, id: &str) -> Result<()> {
        Ok(fs::write(self.dir.join(format!("{name}.id")), id)?)
    }
}

/// A program whose mounts are its own and end with it.
fn private(program: &std::ffi::OsStr) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--"]).arg(program);
    command
}

/// Gathers an image's build context: its Containerfile, its files, its programs, and the binaries without debug
/// information.
fn stage(image: &Image, profile: Profile, context: &Path, story: &Story) -> Result<()> {
    let folder = paths::repository().join(image.folder);
    for file in ["Containerfile"].iter().chain(image.files) {
        let from = folder.join(file);
        fs::copy(&from, context.join(file))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let binaries = context.join("bin");
    fs::create_dir_all(&binaries)?;
    for (binary, _) in image.binaries {
        output(
            Command::new("strip")
                .arg("-o")
                .arg(binaries.join(binary))
                .arg(artifact(profile, binary)),
        )?;
    }
    for (package, file) in image.programs {
        let from = tools::unpacked(package, story)?.join(file);
        let name = from.file_name().context("a program has a name")?;
        fs::copy(&from, binaries.join(name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// Adds every file below a folder to the hash: path, mode, content.
fn hash_tree(root: &Path, folder: &Path, hash: &mut Sha256) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            hash_tree(root, &path, hash)?;
            continue;
        }
        let content = fs::read(&path)?;
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
        hash.update(format!(
            "{name}\0{:o}\0{}\0",
            entry.metadata()?.permissions().mode(),
            content.len()
        ));
        hash.update(content);
    }
    Ok(())
}

/// By what the parts of images are known.
fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex(Sha256::digest(content).as_slice()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
