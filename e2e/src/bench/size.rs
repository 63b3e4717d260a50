//! What the images add to their bases: one binary each, as the suite `images` holds them to.

use anyhow::{Context as _, Result};

use super::{
    Run,
    bed::PROFILE,
    figure::{Budget, Figure, number},
};
use crate::images::artifact;

const MIB: f64 = 1024.0 * 1024.0;

/// The sizes of the published binaries.
pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    run.story.step("sizes");
    let figure = |binary: &str, budget: f64| {
        let file = artifact(PROFILE, binary);
        let bytes = std::fs::metadata(&file)
            .with_context(|| format!("cannot look at {}", file.display()))?
            .len();
        anyhow::Ok(Figure {
            name: format!("size of {binary}, all that its image adds to the base"),
            unit: "MiB",
            ours: vec![number(usize::try_from(bytes)?)? / MIB],
            floor: vec![],
            budget: Some(Budget::AtMost(budget)),
        })
    };
    Ok(vec![
        figure("cuda-runner-operator", 25.0)?,
        // The binary itself is held to less than the image's 5 MiB.
        figure("cuda-smoke", 3.5)?,
    ])
}
