//! `crdgen`: writes the `CustomResourceDefinition`, and what charts repeat of it, to the places that keep a copy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cudarunner_crds::{crd_yaml, values_schema};

/// The kept files, relative to the workspace, with what belongs in them.
fn copies() -> Result<[(&'static str, String); 3], String> {
    let yaml = crd_yaml().map_err(|error| format!("the CRD cannot be written as YAML: {error}"))?;
    Ok([
        ("crds/generated/cudarunners.yaml", yaml.clone()),
        (
            "charts/cuda-runner-operator-crds/files/cudarunners.yaml",
            yaml,
        ),
        ("charts/cuda-runner/values.schema.json", values_schema()),
    ])
}

fn path(copy: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(copy)
}

fn write() -> Result<(), String> {
    for (copy, text) in copies()? {
        let path = path(copy);
        path.parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        println!("{copy}");
    }
    Ok(())
}

fn main() -> ExitCode {
    if let Err(error) = write() {
        eprintln!("crdgen: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_copies_are_what_the_types_say() {
        for (copy, text) in copies().unwrap() {
            let kept = std::fs::read_to_string(path(copy)).unwrap_or_default();
            assert!(
                kept == text,
                "{copy} is stale: run `cargo run -p cudarunner-crds --bin crdgen`"
            );
        }
    }
}
