//! The OCI layout into which images are pushed: what it refers to, and an archive of it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::digest;
use crate::process::output;

/// The type of a list of manifests.
const LIST: &str = "application/vnd.oci.image.index.v1+json";
const NAME: &str = "org.opencontainers.image.ref.name";

fn index(layout: &Path) -> Result<Vec<Value>> {
    let path = layout.join("index.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let index: Value = serde_json::from_slice(&text)?;
    Ok(index["manifests"].as_array().cloned().unwrap_or_default())
}

/// The path of a blob in the layout, from its descriptor.
fn blob(descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"]
        .as_str()
        .context("a descriptor without digest")?;
    Ok(PathBuf::from("blobs").join(digest.replace(':', "/")))
}

/// A manifest's blob, and those of its configuration and layers.
fn blobs(layout: &Path, descriptor: &Value) -> Result<BTreeSet<PathBuf>> {
    let own = blob(descriptor)?;
    let manifest: Value = serde_json::from_slice(&fs::read(layout.join(&own))?)?;
    let parts = manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .chain([&manifest["config"]]);
    parts.map(blob).chain([Ok(own)]).collect()
}

/// Removes blobs that no named image refers to.
pub(super) fn prune(layout: &Path) -> Result<()> {
    let mut used = BTreeSet::new();
    for descriptor in index(layout)?
        .iter()
        .filter(|d| d["annotations"][NAME].is_string())
    {
        used.extend(blobs(layout, descriptor)?);
    }
    for entry in fs::read_dir(layout.join("blobs/sha256"))?.flatten() {
        if !used.contains(&PathBuf::from("blobs/sha256").join(entry.file_name())) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes a tar file with the named images, each called `localhost/NAME:dev` when imported.
pub(super) fn archive(layout: &Path, names: &[&str], to: &Path) -> Result<()> {
    let mut files = BTreeSet::new();
    let mut manifests = Vec::new();
    for descriptor in index(layout)? {
        let Some(name) = descriptor["annotations"][NAME]
            .as_str()
            .filter(|name| names.contains(name))
        else {
            continue;
        };
        files.extend(blobs(layout, &descriptor)?);
        let tag = format!("localhost/{name}:dev");
        let mut entry = descriptor.clone();
        entry["annotations"] = json!({"io.containerd.image.name": tag, NAME: "dev"});
        manifests.push(entry);
    }
    anyhow::ensure!(
        manifests.len() == names.len(),
        "the image store lacks some of {names:?}: remove it and start again"
    );
    // The index is the archive's own; blobs come from the layout as they are.
    let head = to.with_extension("index");
    fs::create_dir_all(&head)?;
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(head.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(head.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut tar = Command::new("tar");
    tar.arg("-cf")
        .arg(to)
        .arg("-C")
        .arg(&head)
        .args(["oci-layout", "index.json"])
        .arg("-C")
        .arg(layout)
        .args(files);
    output(&mut tar)?;
    Ok(fs::remove_dir_all(head)?)
}

/// What a registry takes of an image.
#[derive(Debug)]
pub struct Parts {
    /// The manifest, as it is.
    pub manifest: Vec<u8>,
    /// The manifest's type.
    pub media_type: String,
    /// Digests and files of what the manifest refers to.
    pub blobs: Vec<(String, PathBuf)>,
}

impl Parts {
    /// The image with another configuration, which is kept in this file: a node knows images by it.
    pub(super) fn configured(
        mut self,
        file: PathBuf,
        change: impl FnOnce(&mut Value) -> Result<()>,
    ) -> Result<Self> {
        let mut manifest: Value = serde_json::from_slice(&self.manifest)?;
        let old = &manifest["config"]["digest"];
        let config = self
            .blobs
            .iter()
            .position(|(digest, _)| old == digest.as_str());
        let (_, config) = self
            .blobs
            .remove(config.context("the image has no configuration")?);
        let mut config: Value = serde_json::from_slice(&fs::read(config)?)?;
        change(&mut config)?;
        fs::write(&file, serde_json::to_vec(&config)?)?;
        manifest["config"] = self.blob(file, "config.v1+json")?;
        self.manifest = serde_json::to_vec(&manifest)?;
        Ok(self)
    }

    /// A list of this image alone, for this architecture, whatever it was built for.
    pub fn listed(&self, arch: &str) -> Result<Self> {
        let list = json!({
            "schemaVersion": 2,
            "mediaType": LIST,
            "manifests": [{
                "mediaType": self.media_type,
                "digest": digest(&self.manifest),
                "size": self.manifest.len(),
                "platform": {"os": "linux", "architecture": arch},
            }],
        });
        Ok(Self {
            manifest: serde_json::to_vec(&list)?,
            media_type: LIST.to_owned(),
            blobs: vec![],
        })
    }

    /// The descriptor of a file, which is a blob from now on.
    pub(super) fn blob(&mut self, file: PathBuf, kind: &str) -> Result<Value> {
        let content = fs::read(&file)?;
        let digest = digest(&content);
        self.blobs.push((digest.clone(), file));
        Ok(json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest,
            "size": content.len(),
        }))
    }
}

/// Takes an image apart.
pub(super) fn parts(layout: &Path, name: &str) -> Result<Parts> {
    let descriptor = descriptor(layout, name)?;
    let own = blob(&descriptor)?;
    let blobs = blobs(layout, &descriptor)?.into_iter();
    let others = blobs.filter(|path| *path != own).map(|path| {
        let hash = path.file_name().unwrap_or_default().to_string_lossy();
        (format!("sha256:{hash}"), layout.join(&path))
    });
    let media_type = descriptor["mediaType"].as_str();
    Ok(Parts {
        blobs: others.collect(),
        manifest: fs::read(layout.join(own))?,
        media_type: media_type.context("a manifest without type")?.to_owned(),
    })
}

/// A layer of an image.
#[derive(Debug)]
pub struct Layer {
    /// Paths of what it adds.
    pub files: Vec<String>,
    /// The layer itself, a tar file.
    pub content: Vec<u8>,
}

/// The layers of an image that another does not have.
pub(super) fn layers_without(layout: &Path, name: &str, other: &str) -> Result<Vec<Layer>> {
    let known: BTreeSet<_> = layers(layout, other)?.into_iter().collect();
    let own = layers(layout, name)?;
    let own = own.iter().filter(|layer| !known.contains(*layer));
    own.map(|layer| {
        let path = layout.join(layer);
        let listed = output(Command::new("tar").arg("-tf").arg(&path))?;
        let files = listed.lines().map(str::to_owned).collect();
        Ok(Layer {
            files,
            content: fs::read(path)?,
        })
    })
    .collect()
}

/// What an image's configuration says of its containers: user, labels and so on.
pub(super) fn config(layout: &Path, name: &str) -> Result<Value> {
    let manifest = manifest(layout, name)?;
    let config: Value =
        serde_json::from_slice(&fs::read(layout.join(blob(&manifest["config"])?))?)?;
    Ok(config["config"].clone())
}

fn descriptor(layout: &Path, name: &str) -> Result<Value> {
    let named = |descriptor: &Value| descriptor["annotations"][NAME] == name;
    let mut all = index(layout)?.into_iter();
    all.find(named)
        .with_context(|| format!("there is no image {name}"))
}

fn manifest(layout: &Path, name: &str) -> Result<Value> {
    let manifest = layout.join(blob(&descriptor(layout, name)?)?);
    Ok(serde_json::from_slice(&fs::read(manifest)?)?)
}

fn layers(layout: &Path, name: &str) -> Result<Vec<PathBuf>> {
    manifest(layout, name)?["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(blob)
        .collect()
}
