//! The end-to-end suites: one file for each behaviour, one entry each in the table.

pub mod context;
mod local_cluster;
mod runner;

use futures::future::LocalBoxFuture;

pub use context::Ctx;
pub use runner::run;

/// A suite.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// Its name, for `--suite`.
    pub name: &'static str,
    /// The rows of the product's list of behaviours that it shows.
    pub rows: &'static [u8],
    /// What it shows, in one sentence.
    pub about: &'static str,
    /// The suite itself.
    pub run: for<'a> fn(&'a Ctx) -> LocalBoxFuture<'a, anyhow::Result<()>>,
}

/// An entry of the table.
macro_rules! suite {
    ($name:literal, $rows:expr, $about:literal, $run:path) => {
        Suite {
            name: $name,
            rows: &$rows,
            about: $about,
            run: |ctx| Box::pin($run(ctx)),
        }
    };
}

/// All suites, in the order in which they run.
pub const SUITES: &[Suite] = &[suite!(
    "local-cluster",
    [],
    "a pod gets a GPU and its driver through the device plugin, and `down` of a cluster leaves nothing of it behind",
    local_cluster::run
)];

/// The table, for people.
pub fn list() -> String {
    use std::fmt::Write as _;
    SUITES.iter().fold(String::new(), |mut text, suite| {
        let rows = suite
            .rows
            .iter()
            .map(u8::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let rows = if rows.is_empty() {
            String::new()
        } else {
            format!(" (rows {rows})")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:24} {}{rows}", suite.name, suite.about);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SUITES.len());
    }
}
