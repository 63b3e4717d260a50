//! The agent's version: which one is in use, how long GitHub serves it, and when its refusal is believed.

use gate_report::Class;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Notice, Observed, Plan};
use crate::model::pool::Pool;
use crate::model::runner::{Failure, RefusedVersion, Runner};
use crate::reason::{Reason, Stored};

/// The numbers of a version, for comparing.
fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(['.', '-', '+']);
    parts.map_while(|part| part.parse().ok()).collect()
}

/// The oldest version among the pool's runners, as GitHub lists them.
#[must_use]
pub fn in_use(observed: &Observed) -> Option<&str> {
    let entries = observed.listing.iter().flat_map(|l| &l.entries);
    let versions = entries.filter_map(|e| e.version.as_deref());
    versions
        .filter(|v| !v.is_empty() && v.len() < 32)
        .min_by_key(|v| numbers(v))
}

/// The version that is in use, and from when on it gets no jobs.
pub(super) fn plan(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let Some(version) = in_use(observed) else {
        return;
    };
    let same = pool.status.runner_version.as_deref() == Some(version);
    let before = pool.status.runner_version_ends.as_ref().map(|t| t.0);
    let ends = match observed.lifecycles.get(version) {
        Some(lifecycle) => lifecycle.runtime_ends,
        None => before.filter(|_| same),
    };
    plan.status.runner_version = Some(version.to_owned());
    plan.status.runner_version_ends = ends.map(Time);
    if let Some(end) = ends.filter(|_| ends != before || !same) {
        let says = if end <= now {
            format!("GitHub has given it no jobs since {}", date(end))
        } else {
            format!("GitHub gives it no jobs from {} on", date(end))
        };
        plan.news.push(Notice {
            warning: true,
            reason: Reason::AgentVersionEnds.into(),
            note: format!(
                "The runners' agent has the version {version}: {says}. Use an image with a newer one in spec.template."
            ),
            about: None,
        });
    }
}

/// The day, as people write it for machines.
fn date(moment: Timestamp) -> String {
    moment.to_zoned(TimeZone::UTC).date().to_string()
}

/// One refusal of the agent's version may be an outage that looks like it. The next attempt's is believed, and so is
/// the first where GitHub says that the version's time is over.
pub(super) fn believed(
    pool: &Pool,
    runner: &Runner,
    failure: Failure,
    observed: &Observed,
    now: Timestamp,
) -> Failure {
    let Some(refused) = &failure.refused else {
        return failure;
    };
    let lifecycle = refused.version.as_ref();
    let lifecycle = lifecycle.and_then(|v| observed.lifecycles.get(v));
    let since = lifecycle.and_then(|l| l.refused_since(now));
    if since.is_none() && !refused_before(pool, runner) {
        return failure;
    }
    Failure {
        reason: Reason::VersionRefused,
        class: Class::Config,
        message: sentence(refused, since),
        ..failure
    }
}

/// Whether the last attempt but this one was refused, too.
fn refused_before(pool: &Pool, runner: &Runner) -> bool {
    let last = pool.status.last_failures.first();
    let refused = [Reason::VersionRefused, Reason::VersionRefusedOnce];
    pool.status.consecutive_failures > 0
        && last.is_some_and(|last| {
            Stored::parse(&last.reason).is_one_of(&refused) && last.at.0 < runner.created
        })
}

fn sentence(refused: &RefusedVersion, since: Option<Timestamp>) -> String {
    let version = refused.version.as_ref();
    let version = version.map_or_else(String::new, |v| format!(" {v}"));
    let since = since.map_or_else(String::new, |at| {
        format!(", whose time was over on {}", date(at))
    });
    let newer = refused.minimum.as_ref().map_or_else(
        || "the newest one".to_owned(),
        |minimum| format!("a newer one, at least {minimum},"),
    );
    format!(
        "GitHub refuses the version{version} of the agent{since}; use an image with {newer} in spec.template."
    )
}

#[cfg(test)]
mod tests {
    use cudarunner_crds::RunnerPhase;
    use jiff::SignedDuration;

    use super::super::fixture::{NOW, ago, gate_failure, listing, observed, pool, runner};
    use super::super::health::assess;
    use super::*;
    use crate::model::github::Lifecycle;
    use crate::model::runner::End;

    fn refused(pool: &Pool, name: &str, created: i64) -> Runner {
        let mut one = runner(pool, name, RunnerPhase::Failed);
        one.created = ago(created);
        one.end = Some(End::Failed(Failure {
            reason: Reason::VersionRefusedOnce,
            at: ago(created - 10),
            registered: true,
            refused: Some(RefusedVersion {
                version: Some("2.319.1".to_owned()),
                minimum: Some("2.329.0".to_owned()),
            }),
            ..gate_failure(Class::Transient)
        }));
        one
    }

    #[test]
    fn a_refused_version_is_believed_when_the_next_attempt_is_refused_too() {
        let mut pool = pool(2);
        // Given a first refusal
        let first = assess(
            &pool,
            &observed(vec![refused(&pool, "pool-aaaaa", 90)]),
            NOW,
        );
        assert!(first.stalled().is_none());
        assert_eq!(first.new[0].reason, Reason::VersionRefusedOnce.word());
        pool.status.last_failures = first.last_failures;
        pool.status.consecutive_failures = first.consecutive;
        // Then one that was under way meanwhile proves nothing, and a new attempt's does
        let same = observed(vec![refused(&pool, "pool-bbbbb", 89)]);
        assert!(assess(&pool, &same, NOW).stalled().is_none());
        let next = observed(vec![refused(&pool, "pool-ccccc", 60)]);
        let health = assess(&pool, &next, NOW);
        let failure = health.stalled().unwrap();
        assert_eq!(failure.reason, Reason::VersionRefused.word());
        assert!(failure.message.contains("2.319.1 of the agent; use"));
        assert!(failure.message.contains("at least 2.329.0"));
    }

    #[test]
    fn a_refused_version_is_believed_at_once_where_github_says_that_its_time_is_over() {
        let pool = pool(1);
        let mut observed = observed(vec![refused(&pool, "pool-aaaaa", 90)]);
        let mut says = |runtime_ends| {
            let lifecycle = Lifecycle {
                registration_ends: None,
                runtime_ends: Some(runtime_ends),
            };
            observed.lifecycles.insert("2.319.1".to_owned(), lifecycle);
            assess(&pool, &observed, NOW)
        };
        let health = says(ago(86_400));
        let failure = health.stalled().unwrap();
        assert_eq!(failure.reason, Reason::VersionRefused.word());
        assert!(
            failure.message.contains("over on 1970-01-11"),
            "{failure:?}"
        );
        assert!(failure.message.contains("at least 2.329.0"), "{failure:?}");
        // A date ahead explains no refusal.
        assert!(
            says(NOW + SignedDuration::from_hours(24))
                .stalled()
                .is_none()
        );
    }

    #[test]
    fn the_version_in_use_is_told_with_its_end_once() {
        let mut pool = pool(2);
        let mut observed = observed(vec![]);
        let mut entries = listing(&["pool-aaaaa", "pool-bbbbb", "pool-ccccc"]);
        for (entry, version) in entries.entries.iter_mut().zip(["2.336.0", "2.99.0"]) {
            entry.version = Some(version.to_owned());
        }
        observed.listing = Some(entries);
        let end = NOW + SignedDuration::from_hours(24);
        let lifecycle = Lifecycle {
            registration_ends: None,
            runtime_ends: Some(end),
        };
        observed.lifecycles.insert("2.99.0".to_owned(), lifecycle);
        let plan = super::super::plan(&pool, &observed, NOW);
        assert_eq!(plan.status.runner_version.as_deref(), Some("2.99.0"));
        assert_eq!(plan.status.runner_version_ends, Some(Time(end)));
        let [news] = plan.news.as_slice() else {
            panic!("{:?}", plan.news)
        };
        assert!(news.warning && news.note.contains("1970-01-13"), "{news:?}");
        // A restart that knows nothing yet keeps what is known, and nothing is reported twice.
        pool.status = plan.status;
        observed.lifecycles.clear();
        let plan = super::super::plan(&pool, &observed, NOW);
        assert_eq!(plan.status.runner_version_ends, Some(Time(end)));
        assert!(plan.news.is_empty(), "{:?}", plan.news);
    }
}
