//! The labels by which jobs ask for a pool's runners.

use crate::{Arch, CudaRunner};

/// What GitHub gives to each self-hosted runner of this kind that registers by hand.
#[must_use]
pub const fn github_labels(arch: Arch) -> [&'static str; 3] {
    ["self-hosted", "Linux", arch.github_label()]
}

/// What a pool whose spec names no labels has beside these and its name.
const OURS: &str = "cuda";

impl CudaRunner {
    /// The labels by which jobs ask for the pool's runners: those of the spec as they are, or GitHub's, `cuda` and the
    /// pool's name.
    #[must_use]
    pub fn runner_labels(&self) -> Vec<String> {
        if !self.spec.labels.is_empty() {
            return self.spec.labels.clone();
        }
        let labels = github_labels(self.spec.arch).into_iter().chain([OURS]);
        let labels = labels.map(str::to_owned);
        labels.chain(self.metadata.name.clone()).collect()
    }
}
