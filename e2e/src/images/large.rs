//! An image of 3 GiB, of which neither the cache nor the machine holds more than some MiB: zeros, kept compressed.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::layout::Parts;
use crate::{process::logged, report::Story, tools};

/// Two passes over a file that is one hole: what the layer is called inside, and the layer.
const SCRIPT: &str = r"
set -eu
mkdir -p opt
truncate --size=3G opt/filler
layer() { tar --create --mtime=@0 --owner=0 --group=0 --numeric-owner opt; }
layer | sha256sum | cut --delimiter=' ' --fields=1 > diff-id
layer | gzip --no-name > layer.tar.gz
rm -r opt
";

/// The image of these parts with one more layer, whose files are kept in this folder.
pub(super) fn with_filler(image: Parts, dir: &Path, story: &Story) -> Result<Parts> {
    const NAME: &str = "filler-3gib";
    tools::once(dir, NAME, story, |partial| {
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT]).current_dir(partial);
        logged(&mut shell, &partial.join("build.log"))
    })?;
    let dir = dir.join(NAME);
    let diff = fs::read_to_string(dir.join("diff-id"))?;
    let mut image = image.configured(dir.join("config.json"), |config| {
        let diff = json!(format!("sha256:{}", diff.trim()));
        add(&mut config["rootfs"]["diff_ids"], diff)?;
        add(&mut config["history"], json!({"created_by": "filler"}))
    })?;
    let mut manifest: Value = serde_json::from_slice(&image.manifest)?;
    let layer = image.blob(dir.join("layer.tar.gz"), "layer.v1.tar+gzip")?;
    add(&mut manifest["layers"], layer)?;
    image.manifest = serde_json::to_vec(&manifest)?;
    Ok(image)
}

fn add(list: &mut Value, item: Value) -> Result<()> {
    list.as_array_mut().context("no list")?.push(item);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{super::digest, *};
    use crate::process::remove_dir;

    #[test]
    fn the_filler_is_one_layer_more_of_the_same_image() {
        // Given an image with one layer, and a filler
        let dir = std::env::temp_dir().join(format!("e2e-filler-{}", std::process::id()));
        fs::create_dir_all(dir.join("filler-3gib")).unwrap();
        fs::write(dir.join("filler-3gib/diff-id"), "ff\n").unwrap();
        fs::write(dir.join("filler-3gib/layer.tar.gz"), "zeros").unwrap();
        let config = json!({
            "config": {"User": "app"}, "history": [{}], "rootfs": {"type": "layers", "diff_ids": ["sha256:aa"]},
        });
        fs::write(dir.join("config"), config.to_string()).unwrap();
        let manifest =
            json!({"config": {"digest": "sha256:cc"}, "layers": [{"digest": "sha256:aa"}]});
        let blob = |digest: &str, file: &str| (digest.to_owned(), dir.join(file));
        let image = Parts {
            manifest: manifest.to_string().into(),
            media_type: "manifest".to_owned(),
            blobs: vec![blob("sha256:aa", "layer"), blob("sha256:cc", "config")],
        };

        // When they are put together
        let made = with_filler(image, &dir, &Story::silent()).unwrap();

        // Then the manifest names the new configuration and both layers, each of which is a blob
        let manifest: Value = serde_json::from_slice(&made.manifest).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!((layers.len(), &layers[1]["size"]), (2, &json!(5)));
        let file = |descriptor: &Value| {
            let known = |(digest, _): &&(String, PathBuf)| descriptor["digest"] == digest.as_str();
            made.blobs.iter().find(known).unwrap()
        };
        for layer in layers {
            file(layer);
        }
        let (digest, config) = file(&manifest["config"]);
        let config = fs::read(config).unwrap();
        assert_eq!(*digest, self::digest(&config));
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"],
            json!(["sha256:aa", "sha256:ff"])
        );
        assert_eq!(config["config"]["User"], "app");
        assert_eq!(made.blobs.len(), 3);
        remove_dir(&dir).unwrap();
    }
}
