use std::collections::{BTreeMap, BTreeSet};

use cudarunner_crds::RunnerPhase;
use jiff::SignedDuration;
use proptest::prelude::*;

use super::super::{Action, Listing, plan};
use super::*;
use crate::fixture::{NOW, ago, listing, observed, pool, runner};
use crate::model::runner::Job;
use crate::model::scale_set::{Listening, ScaleSetFacts};

const LIMIT: SignedDuration = SignedDuration::from_mins(10);
const NAME: &str = "pool-aaaaa";

/// GitHub's list of one runner, as it says this of it.
fn list(word: Word, at: Timestamp) -> Listing {
    let mut list = listing(&[NAME]);
    list.at = at;
    let entry = &mut list.entries[0];
    entry.busy = word == Word::HasJob;
    entry.online = Some(word != Word::Offline);
    if word == Word::Unknown {
        list.entries.clear();
    }
    list
}

/// What is seen of one runner in this phase since then.
fn seen(pool: &Pool, phase: RunnerPhase, since: Timestamp, list: Listing) -> Observed {
    let mut runner = runner(pool, NAME, phase);
    runner.since = since;
    let mut seen = observed(vec![runner]);
    seen.listing = Some(list);
    seen
}

/// What becomes of a runner of which that was seen, with what was seen before.
fn looked(
    pool: &Pool,
    seen: &mut Observed,
    before: &mut BTreeMap<String, Doubt>,
    now: Timestamp,
) -> Option<Reason> {
    *before = doubts(pool, seen, before, now);
    for runner in &mut seen.runners {
        runner.doubt = before.get(&runner.uid).copied();
    }
    let overdue = overdue(pool, seen, now);
    overdue.get(NAME).map(|failure| failure.reason)
}

#[test]
fn each_pair_of_words_that_exclude_one_another_is_a_hung_agent_after_the_limit_and_no_other_pair_is()
 {
    use RunnerPhase::{Busy, Gated, Idle, Starting};
    use Word::{HasJob, Offline, Unknown};
    let pool = pool(1);
    for (phase, word, reason) in [
        (Idle, HasJob, Some(Reason::JobNeverStarted)),
        (Idle, Offline, Some(Reason::AgentOffline)),
        (Idle, Word::Idle, None),
        // The sweep asks for that one by itself.
        (Idle, Unknown, None),
        // A job on both sides.
        (Busy, HasJob, None),
        (Busy, Word::Idle, Some(Reason::JobOverAgentRunning)),
        (Busy, Offline, Some(Reason::JobOverAgentRunning)),
        (Busy, Unknown, Some(Reason::JobOverAgentRunning)),
        (Starting, HasJob, None),
        (Gated, Offline, None),
    ] {
        let mut before = BTreeMap::new();
        let mut look = |at: Timestamp| {
            let mut seen = seen(&pool, phase, ago(3600), list(word, at));
            looked(&pool, &mut seen, &mut before, at)
        };
        assert_eq!(look(NOW), None, "{phase:?} {word:?}");
        let just_before = LIMIT - SignedDuration::from_secs(1);
        assert_eq!(look(NOW + just_before), None, "{phase:?} {word:?}");
        assert_eq!(look(NOW + LIMIT), reason, "{phase:?} {word:?}");
    }
}

#[test]
fn a_list_that_was_not_read_again_and_one_from_before_the_pod_changed_prove_nothing() {
    let pool = pool(1);
    let mut before = BTreeMap::new();
    let mut look = |since: Timestamp, at: Timestamp, now: Timestamp| {
        let mut seen = seen(&pool, RunnerPhase::Idle, since, list(Word::HasJob, at));
        looked(&pool, &mut seen, &mut before, now)
    };
    let late = NOW + LIMIT;
    assert_eq!(look(ago(60), NOW, NOW), None);
    assert_eq!(look(ago(60), NOW, late), None, "not read again");
    assert_eq!(look(late, NOW, late), None, "idle anew, and read before");
    assert_eq!(look(late, late, late), None, "from now on it is doubted");
    let doubt = before.values().next().map(|doubt| doubt.since);
    assert_eq!(doubt, Some(late));
}

#[test]
fn a_scale_sets_messages_tell_it_without_a_list() {
    use RunnerPhase::{Busy, Idle};
    let pool = pool(1);
    let heard = |phase, finishing: bool| {
        let mut seen = seen(&pool, phase, ago(3600), list(Word::Idle, ago(1800)));
        seen.runners[0].heard = Some(Box::new(Job::default()));
        let finishing = finishing.then(|| NAME.to_owned()).into_iter();
        seen.scale_set = Some(ScaleSetFacts {
            listening: Some(Listening::default()),
            finishing: finishing.collect::<BTreeSet<_>>(),
            ..ScaleSetFacts::default()
        });
        seen
    };
    for (phase, finishing, reason) in [
        (Idle, false, Some(Reason::JobNeverStarted)),
        (Busy, false, None),
        (Idle, true, Some(Reason::JobOverAgentRunning)),
        (Busy, true, Some(Reason::JobOverAgentRunning)),
    ] {
        let mut before = BTreeMap::new();
        let mut seen = heard(phase, finishing);
        assert_eq!(looked(&pool, &mut seen, &mut before, NOW), None);
        let late = looked(&pool, &mut seen, &mut before, NOW + LIMIT);
        assert_eq!(late, reason, "{phase:?} {finishing}");
    }
    // Of a scale set's runner that the runners page does not show, the list says nothing.
    let mut unknown = seen(&pool, Busy, ago(3600), list(Word::Idle, NOW));
    if let Some(list) = &mut unknown.listing {
        list.entries[0].online = None;
    }
    assert_eq!(doubts(&pool, &unknown, &BTreeMap::new(), NOW).len(), 0);
}

#[test]
fn whom_github_keeps_is_ended_by_its_pod_and_all_others_by_githubs_leave() {
    let pool = pool(1);
    for (phase, word) in [
        (RunnerPhase::Idle, Word::HasJob),
        (RunnerPhase::Idle, Word::Offline),
        (RunnerPhase::Busy, Word::Unknown),
    ] {
        // Given a hung agent
        let mut seen = seen(&pool, phase, ago(3600), list(word, NOW));
        let mut before = doubts(&pool, &seen, &BTreeMap::new(), NOW);
        for doubt in before.values_mut() {
            doubt.since = ago(600);
        }
        assert!(looked(&pool, &mut seen, &mut before, NOW).is_some());
        // Then it is told
        let planned = plan(&pool, &seen, NOW);
        assert_eq!(planned.failed.len(), 1);
        assert_eq!(planned.status.last_failures[0].runner, NAME);
        // And when that is stored, it is ended, and not told once more
        let mut pool = pool.clone();
        pool.status = planned.status;
        let planned = plan(&pool, &seen, NOW);
        let target = (&seen.runners[0]).into();
        let expected = if word == Word::HasJob {
            Action::EndUnstarted(target)
        } else {
            Action::Drain(target)
        };
        assert!(planned.actions.contains(&expected), "{:?}", planned.actions);
        assert_eq!(planned.failed, []);
    }
}

#[test]
fn github_is_asked_once_when_a_doubt_has_lasted_and_never_without_one() {
    let pool = pool(1);
    let at = |doubt: Option<Doubt>, now: Timestamp| {
        let mut seen = seen(&pool, RunnerPhase::Idle, ago(3600), list(Word::Idle, now));
        seen.runners[0].doubt = doubt;
        let planned = plan(&pool, &seen, now);
        (planned.refresh, planned.wake.map(|wait| wait.as_secs()))
    };
    let doubt = Doubt {
        about: Contradiction::Offline,
        since: NOW,
        seen: NOW,
    };
    // The sweep's five minutes come first.
    assert_eq!(at(None, NOW), (false, Some(300)));
    assert_eq!(
        at(Some(doubt), NOW + SignedDuration::from_secs(480)),
        (false, Some(120))
    );
    let due = NOW + LIMIT;
    assert!(at(Some(doubt), due).0);
    assert!(!at(Some(Doubt { seen: due, ..doubt }), due).0);
}

#[test]
fn where_github_hears_nobody_one_is_ended_at_a_time() {
    let mut pool = pool(3);
    let names = [NAME, "pool-bbbbb", "pool-ccccc"];
    let runners = names.map(|name| {
        let mut runner = runner(&pool, name, RunnerPhase::Idle);
        runner.since = ago(3600);
        runner.doubt = Some(Doubt {
            about: Contradiction::Offline,
            since: ago(600),
            seen: NOW,
        });
        runner
    });
    let mut seen = observed(runners.to_vec());
    let mut list = listing(&names);
    for entry in &mut list.entries {
        entry.online = Some(false);
    }
    seen.listing = Some(list);
    // Given three agents that GitHub does not hear, then one is ended, also when the status tells of it
    let first = plan(&pool, &seen, NOW);
    let names = |seen: &Observed, pool: &Pool, now| {
        let overdue = overdue(pool, seen, now).into_keys();
        overdue.collect::<Vec<_>>()
    };
    assert_eq!(names(&seen, &pool, NOW), [NAME]);
    pool.status = first.status;
    assert_eq!(names(&seen, &pool, NOW), [NAME]);
    // ... and the next one after the limit
    let gone = seen.runners.remove(0);
    assert_eq!(names(&seen, &pool, NOW), [] as [&str; 0]);
    assert_eq!(names(&seen, &pool, NOW + LIMIT), ["pool-bbbbb"]);
    seen.runners.insert(0, gone);
    // And all of them where it hears another one
    if let Some(list) = &mut seen.listing {
        list.entries[2].online = Some(true);
    }
    assert_eq!(overdue(&pool, &seen, NOW).len(), 3);
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        Just(Word::HasJob),
        Just(Word::Idle),
        Just(Word::Offline),
        Just(Word::Unknown),
    ]
}

fn phase() -> impl Strategy<Value = RunnerPhase> {
    prop_oneof![Just(RunnerPhase::Idle), Just(RunnerPhase::Busy)]
}

proptest! {
    /// Whatever both say from minute to minute: nobody is ended who has a job on both sides, nor before both have said the
    /// same contradiction for the limit; and whoever does so is ended.
    #[test]
    fn nobody_with_a_job_on_both_sides_is_ended_and_everybody_who_hangs_is(
        minutes in proptest::collection::vec((phase(), word(), 1..15_i64), 1..30),
    ) {
        let pool = pool(1);
        let (mut now, mut phase_since, mut last_phase) = (NOW, ago(60), None);
        let mut before = BTreeMap::new();
        let mut lasts: Option<(Contradiction, Timestamp)> = None;
        for (phase, word, wait) in minutes {
            if last_phase != Some(phase) {
                (last_phase, phase_since) = (Some(phase), now);
                lasts = None;
            }
            let about = contradiction(phase, word);
            lasts = about.map(|about| match lasts {
                Some((same, since)) if same == about => (about, since),
                _ => (about, now),
            });
            let mut seen = seen(&pool, phase, phase_since, list(word, now));
            let ended = looked(&pool, &mut seen, &mut before, now);
            prop_assert!(ended.is_none() || (phase, word) != (RunnerPhase::Busy, Word::HasJob));
            let is_due = lasts.is_some_and(|(_, since)| now >= since.after(LIMIT));
            prop_assert_eq!(ended.is_some(), is_due, "{:?} {:?}", phase, word);
            // The next look of GitHub's, with nothing new of the pod's
            now += SignedDuration::from_mins(wait);
        }
    }
}
