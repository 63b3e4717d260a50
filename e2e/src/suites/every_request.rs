//! A sample of `cargo e2e faults`, another one each time.

use std::time::Duration;

use anyhow::Result;

use super::Ctx;
use crate::{faults, report::Story};

/// So long the sample may take.
const MINUTES: u64 = 3;

/// It has a cluster of its own: the operator of the suites' would serve its pools, too.
pub(super) async fn run(_: &Ctx) -> Result<()> {
    let run = faults::Run {
        minutes: MINUTES,
        ..faults::Run::default()
    };
    let limit = Duration::from_mins(2 * MINUTES);
    tokio::time::timeout(limit, faults::run(&run, &Story::default())).await?
}
