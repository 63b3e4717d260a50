//! `crdgen`: writes the `CustomResourceDefinition` to the places that keep a copy of it.

use std::path::Path;
use std::process::ExitCode;

/// Where the definition is kept, relative to the workspace.
const COPIES: [&str; 2] = [
    "crds/generated/cudarunners.yaml",
    "charts/cuda-runner-operator-crds/files/cudarunners.yaml",
];

fn main() -> ExitCode {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let yaml = match cudarunner_crds::crd_yaml() {
        Ok(yaml) => yaml,
        Err(error) => {
            eprintln!("crdgen: the definition cannot be written as YAML: {error}");
            return ExitCode::FAILURE;
        }
    };
    for copy in COPIES {
        let path = workspace.join(copy);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, &yaml));
        if let Err(error) = written {
            eprintln!("crdgen: cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("{copy}");
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_copies_are_what_the_types_say() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for copy in COPIES {
            let kept = std::fs::read_to_string(workspace.join(copy)).unwrap_or_default();
            assert!(
                kept == cudarunner_crds::crd_yaml().unwrap(),
                "{copy} is stale: run `cargo run -p cudarunner-crds --bin crdgen`"
            );
        }
    }
}
