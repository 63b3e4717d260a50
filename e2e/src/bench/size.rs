//! What the images add to their bases: these binaries and nothing else, as the suite `images` holds them to.

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
    let figure = |name: &str, binaries: &[&str], budget: f64| {
        let mut bytes = 0;
        for binary in binaries {
            let file = artifact(PROFILE, binary);
            bytes += std::fs::metadata(&file)
                .with_context(|| format!("cannot look at {}", file.display()))?
                .len();
        }
        anyhow::Ok(Figure {
            name: format!("size of {name}"),
            unit: "MiB",
            ours: vec![number(usize::try_from(bytes)?)? / MIB],
            floor: vec![],
            budget: Some(Budget::AtMost(budget)),
        })
    };
    let operator = "cuda-runner-operator";
    Ok(vec![
        figure(
            &format!("{operator}, all that its image adds to the base"),
            &[operator],
            25.0,
        )?,
        figure("cuda-smoke", &["cuda-smoke"], 3.5)?,
        figure(
            "cuda-smoke and runner-init, all that the gate's image adds to the base",
            &["cuda-smoke", "runner-init"],
            5.0,
        )?,
    ])
}
