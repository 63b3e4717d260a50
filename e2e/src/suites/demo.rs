//! The demonstration, on a cluster of its own: it tells its story to the end, and its figures are those of the Events.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use super::Ctx;
use crate::{
    cluster::{Options, may_have_node},
    demo::{self, APPLIED, APPLY_TO_ONLINE, EVENT, INSTALLED, TO_PICKED_UP},
    report::{Event, Measure, Story},
};

/// A condition that changes is an Event, and that a line of the story, so soon afterwards: seconds.
const TOLD_WITHIN: f64 = 3.0;
/// The job with which the story ends, whose Event comes after that.
const LAST: &str = "cuda-image";

pub(super) async fn run(_: &Ctx) -> Result<()> {
    let story = Story::default();
    demo::run(Options::default(), &story).await?;
    let told = story.events();
    ensure!(
        told.iter().any(|line| line.what.starts_with(INSTALLED)),
        "nobody has told where the fleet page is"
    );
    agree(&told, &story.measures())
}

/// Why it cannot be run here, where it cannot.
pub(super) fn lacks() -> Option<String> {
    (!may_have_node()).then(|| "it runs pods, which needs root".to_owned())
}

/// What the story measured is what the operator's Events say.
fn agree(told: &[Event], measures: &[Measure]) -> Result<()> {
    let first = measures
        .iter()
        .find(|measure| measure.name == APPLY_TO_ONLINE)
        .context("nobody measured the first runner")?;
    let applied = told.iter().position(|line| line.what.starts_with(APPLIED));
    let after = told.get(applied.context("nobody has applied the example")?..);
    let mut after = after.unwrap_or_default().iter();
    let applied = after.next().map_or(0.0, |line| line.at);
    let online = format!("{EVENT}Online: ");
    let online = after
        .find(|line| line.what.starts_with(&online))
        .context("no Event has told that a runner is online")?;
    let by_event = online.at - applied;
    ensure!(
        (by_event - first.seconds).abs() <= TOLD_WITHIN,
        "{}: {:.1} s, and by the Event {by_event:.1} s",
        first.name,
        first.seconds
    );

    // Each job whose wait was measured has ended by an Event, too
    let completed = format!("{EVENT}JobCompleted: ");
    let completed: Vec<&str> = told
        .iter()
        .filter_map(|line| line.what.strip_prefix(&completed))
        .collect();
    let jobs: BTreeSet<&str> = measures
        .iter()
        .filter_map(|measure| measure.name.strip_suffix(TO_PICKED_UP))
        .collect();
    ensure!(jobs.contains(LAST), "{jobs:?}");
    for job in jobs.into_iter().filter(|job| *job != LAST) {
        let words = format!("{job}: ");
        ensure!(
            completed.iter().any(|told| told.contains(&words)),
            "no Event has told of {job}: {completed:#?}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(lines: &[(f64, &str)]) -> Vec<Event> {
        let lines = lines.iter().map(|(at, what)| Event {
            at: *at,
            what: (*what).to_owned(),
        });
        lines.collect()
    }

    fn measures(to_online: f64) -> Vec<Measure> {
        let all = [
            ("apply to online", to_online),
            ("patient queued to picked up", 8.0),
            ("cuda-image queued to picked up", 0.1),
        ];
        let all = all.iter().map(|(name, seconds)| Measure {
            name: (*name).to_owned(),
            seconds: *seconds,
        });
        all.collect()
    }

    #[test]
    fn a_figure_that_no_event_bears_out_is_found() {
        let told = story(&[
            (
                39.9,
                "  event JobCompleted: patient: success after 0 s on a",
            ),
            (49.7, "  event Online: RunnersOnline: Runners are online"),
            (
                73.3,
                "kubectl apply: the example's CudaRunner, the whole of it",
            ),
            (76.9, "  event Online: RunnersOnline: (as above)"),
        ]);
        agree(&told, &measures(3.5)).unwrap();
        let late = agree(&told, &measures(27.0)).unwrap_err().to_string();
        assert!(late.contains("27.0 s, and by the Event 3.6 s"), "{late}");
        let lost = agree(&told[1..], &measures(3.5)).unwrap_err().to_string();
        assert!(lost.contains("no Event has told of patient"), "{lost}");
        let never = agree(&told[..3], &measures(3.5)).unwrap_err().to_string();
        assert!(never.contains("a runner is online"), "{never}");
    }
}
