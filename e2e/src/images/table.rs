//! The images that each cluster gets, and what goes into them.

/// What an image is built on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// The Debian base of all.
    Debian,
    /// The simulated agent's image.
    Agent,
    /// Nothing: `FROM scratch`.
    Scratch,
}

/// An image of ours.
#[derive(Debug)]
pub(super) struct Image {
    /// Its name; the local tag is `localhost/NAME:dev`.
    pub(super) name: &'static str,
    /// Its folder in the repository, with the Containerfile.
    pub(super) folder: &'static str,
    /// What it is built on, the argument BASE of its Containerfile.
    pub(super) base: Base,
    /// The binaries that go into it, in `bin/` of the context, each with the build argument that names it there.
    pub(super) binaries: &'static [(&'static str, Option<&'static str>)],
    /// Programs of Debian packages that go there, too: the package, and the file in it.
    pub(super) programs: &'static [(&'static str, &'static str)],
    /// Other files of the folder that it copies.
    pub(super) files: &'static [&'static str],
}

/// An image of its Containerfile alone.
const fn image(name: &'static str, folder: &'static str, base: Base) -> Image {
    Image {
        name,
        folder,
        base,
        binaries: &[],
        programs: &[],
        files: &[],
    }
}

/// All of them, each after what it is built on.
pub(super) const IMAGES: [Image; 15] = [
    Image {
        binaries: &[("cuda-runner-operator", Some("BINARY"))],
        ..image("cuda-runner-operator", "operator", Base::Debian)
    },
    Image {
        binaries: &[
            ("cuda-smoke", Some("BINARY")),
            ("runner-init", Some("RUNNER_INIT")),
        ],
        ..image("cuda-smoke", "kernels", Base::Debian)
    },
    Image {
        binaries: &[
            ("simulated-agent", None),
            ("simulated-node", None),
            ("cuda-smoke", None),
        ],
        files: &["config.sh", "run.sh"],
        ..image("simulated-agent", "e2e/agent", Base::Debian)
    },
    // For runners, as users build them.
    Image {
        files: &["nvcc"],
        ..image(
            "simulated-agent-cuda-11.8",
            "e2e/agent/images/cuda-11.8",
            Base::Agent,
        )
    },
    Image {
        files: &["nvcc"],
        ..image(
            "simulated-agent-cuda-12.4",
            "e2e/agent/images/cuda-12.4",
            Base::Agent,
        )
    },
    Image {
        files: &["version.json"],
        ..image(
            "simulated-agent-cuda-13.1",
            "e2e/agent/images/cuda-13.1",
            Base::Agent,
        )
    },
    image(
        "simulated-agent-uid-1000",
        "e2e/agent/images/uid-1000",
        Base::Agent,
    ),
    Image {
        files: &["dash"],
        ..image(
            "simulated-agent-arm64",
            "e2e/agent/images/arm64",
            Base::Agent,
        )
    },
    // For the containers and services of jobs, as workflows name them.
    Image {
        binaries: &[("cuda-smoke", None)],
        files: &["nvcc"],
        ..image("job-cuda", "e2e/job-images/cuda", Base::Debian)
    },
    Image {
        programs: &[("busybox-static", "bin/busybox")],
        files: &["alpine-release", "group", "os-release", "passwd"],
        ..image("job-alpine", "e2e/job-images/alpine", Base::Scratch)
    },
    Image {
        binaries: &[("simulated-node", None)],
        ..image("job-static", "e2e/job-images/static", Base::Scratch)
    },
    image("job-user", "e2e/job-images/user", Base::Debian),
    image("job-entrypoint", "e2e/job-images/entrypoint", Base::Debian),
    image("job-command", "e2e/job-images/command", Base::Debian),
    Image {
        binaries: &[("simulated-service", None)],
        ..image("service-db", "e2e/job-images/service-db", Base::Scratch)
    },
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;
    use crate::paths;

    #[test]
    fn every_containerfile_has_a_row_that_says_what_it_is_built_on() {
        // Given the folders of the images that users build
        let mut folders = BTreeSet::new();
        for parent in ["e2e/agent/images", "e2e/job-images"] {
            for entry in fs::read_dir(paths::repository().join(parent)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                folders.insert(format!("{parent}/{name}"));
            }
        }
        // Then each has a row, with its base and its files
        for image in &IMAGES {
            folders.remove(image.folder);
            let folder = paths::repository().join(image.folder);
            let text = fs::read_to_string(folder.join("Containerfile")).unwrap();
            let scratch = text.lines().any(|line| line == "FROM scratch");
            assert_eq!(scratch, image.base == Base::Scratch, "{}", image.name);
            for file in image.files {
                assert!(folder.join(file).is_file(), "{}: {file}", image.name);
            }
        }
        assert_eq!(folders, BTreeSet::new(), "these have no row");
    }
}
