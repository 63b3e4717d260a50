//! A sample of `cargo e2e faults`, another one each time: of every life and every fault something, over time.

use std::time::Duration;

use anyhow::Result;

use super::Ctx;
use crate::{faults, report::Story};

/// So long the sample may take.
const MINUTES: u64 = 3;
/// Cases at a time: another suite runs beside them.
const AT_ONCE: usize = 6;

/// It has a cluster of its own: the operator of the suites' would serve its pools, too.
pub(super) async fn run(_: &Ctx) -> Result<()> {
    let run = faults::Run {
        minutes: MINUTES,
        at_once: AT_ONCE,
        ..faults::Run::default()
    };
    let limit = Duration::from_mins(2 * MINUTES);
    tokio::time::timeout(limit, faults::run(&run, &Story::default())).await?
}
