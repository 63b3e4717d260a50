use cudarunner_crds::{CudaRunnerStatus, RunnerPhase, ScaleSetStatus};
use gate_report::Class;
use proptest::prelude::*;

use super::super::fixture::{NOW, ago, gate_failure, listing, observed, pool, runner};
use super::super::plan;
use super::*;
use crate::model::left::{Left, Missing};
use crate::model::runner::{End, Failure};
use crate::model::url::GitHubUrl;

const BEFORE: &str = "https://github.com/acme/gadgets";

/// A pool that was at another address, with a scale set there.
fn moved() -> Pool {
    let mut pool = pool(1);
    pool.status.registered_at = Some(BEFORE.to_owned());
    pool.status.scale_set = Some(ScaleSetStatus {
        id: 7,
        name: pool.scale_set_name(),
        ..ScaleSetStatus::default()
    });
    pool
}

/// The same one reconcile later, when the status has the old address.
fn noted() -> Pool {
    let mut pool = moved();
    pool.status = plan(&pool, &observed(vec![]), NOW).status;
    pool
}

fn there(pool: &Pool, name: &str, phase: RunnerPhase) -> Runner {
    Runner {
        url: Some(BEFORE.to_owned()),
        template: "old".to_owned(),
        ..runner(pool, name, phase)
    }
}

fn seen(runners: Vec<Runner>, entries: &[&str], set_is_gone: bool) -> Observed {
    let left = Left {
        listing: Some(listing(entries)),
        set: (!set_is_gone).then_some(7),
        ..Left::default()
    };
    Observed {
        left: [(BEFORE.to_owned(), left)].into(),
        ..observed(runners)
    }
}

fn at_the_old_address(observed: &Observed) -> Vec<String> {
    let actions = plan(&noted(), observed, NOW).actions;
    let words = actions.iter().filter_map(|action| match action {
        Action::DeleteEntryAt(url, entry) if url == BEFORE => Some(format!("entry {}", entry.name)),
        Action::DeleteScaleSetAt(url, id) if url == BEFORE => Some(format!("set {id}")),
        Action::Drain(target) if target.url.as_deref() == Some(BEFORE) => {
            Some(format!("drain {}", target.name))
        }
        _ => None,
    });
    words.collect()
}

#[test]
fn what_was_made_at_another_address_is_in_the_status_at_once() {
    let pool = moved();
    let status = plan(&pool, &observed(vec![]), NOW).status;
    assert_eq!(status.left_at.len(), 1);
    assert_eq!(status.left_at[0].url, BEFORE);
    assert_eq!(status.left_at[0].scale_set.as_ref().unwrap().id, 7);
    assert_eq!(status.scale_set, None, "it is of the old address");
    let now_at = "https://github.com/acme/widgets";
    assert_eq!(status.registered_at.as_deref(), Some(now_at));

    // And once
    let again = plan(&noted(), &observed(vec![]), NOW).status;
    assert_eq!(again.left_at, status.left_at);
}

#[test]
fn a_pool_that_goes_back_takes_up_what_it_had() {
    let mut pool = noted();
    // Given a pool that has registered at the new address, when its spec names the old one again
    let spec = pool.spec_mut();
    let new = spec.url.to_string();
    spec.url = GitHubUrl::parse(BEFORE, false).unwrap();
    let status = plan(&pool, &observed(vec![]), NOW).status;
    let left: Vec<&str> = status
        .left_at
        .iter()
        .map(|left| left.url.as_str())
        .collect();
    assert_eq!(left, [new]);
    assert_eq!(status.registered_at.as_deref(), Some(BEFORE));
}

#[test]
fn the_runners_go_first_then_their_entries_and_the_set_and_a_job_is_waited_for() {
    let pool = noted();
    let busy = there(&pool, "pool-aaaaa", RunnerPhase::Busy);
    let starting = there(&pool, "pool-bbbbb", RunnerPhase::Starting);

    // Given a job that runs there, then it is left alone, and so is the set that it is of
    let at_work = seen(vec![busy, starting], &["pool-aaaaa", "pool-bbbbb"], false);
    assert_eq!(at_the_old_address(&at_work), ["drain pool-bbbbb"]);

    // When the pods have gone, then so do what is left of them on GitHub, and the set
    let ended = seen(vec![], &["pool-bbbbb"], false);
    assert_eq!(at_the_old_address(&ended), ["set 7", "entry pool-bbbbb"]);
    assert!(!plan(&noted(), &ended, NOW).status.left_at.is_empty());

    // When nothing is there any more, as was read after the last change, then the address is forgotten
    let mut empty = seen(vec![], &[], true);
    assert_eq!(plan(&noted(), &empty, NOW).status.left_at, []);
    empty.last_change = Some(NOW.after(SOON));
    assert!(
        !plan(&noted(), &empty, NOW).status.left_at.is_empty(),
        "an old list proves nothing"
    );
}

#[test]
fn a_list_of_some_runners_does_not_prove_that_none_are_left() {
    // Given an address whose list is empty, and is not all
    let mut part = seen(vec![], &[], true);
    let left = part.left.get_mut(BEFORE).unwrap();
    left.listing.as_mut().unwrap().is_whole = false;
    left.ask_again = Some(NOW.after(AGAIN));
    // Then it stays, says why, and is asked again at its time
    let planned = plan(&noted(), &part, NOW);
    let [left] = &planned.status.left_at[..] else {
        panic!("{:?}", planned.status.left_at);
    };
    let said = left.message.as_deref();
    assert!(
        said.is_some_and(|said| said.contains("not all")),
        "{said:?}"
    );
    assert_eq!(planned.wake, Some(AGAIN));
}

#[test]
fn a_deletion_waits_for_the_old_address_and_says_what_stays_when_its_time_is_over() {
    let mut pool = noted();
    pool.deleting = Some(ago(1));
    let removes = |pool: &Pool, observed: &Observed| {
        let actions = plan(pool, observed, NOW).actions;
        actions.contains(&Action::RemoveFinalizer)
    };
    assert!(!removes(&pool, &seen(vec![], &["pool-bbbbb"], true)));
    assert!(removes(&pool, &seen(vec![], &[], true)));

    pool.deleting = Some(ago(10_000));
    let refused = Left {
        trouble: Some("the credentials are not accepted".to_owned()),
        ..Left::default()
    };
    let mut observed = seen(vec![], &[], false);
    observed.left.insert(BEFORE.to_owned(), refused);
    let plan = plan(&pool, &observed, NOW);
    assert!(plan.actions.contains(&Action::RemoveFinalizer));
    let reported = plan
        .notices
        .iter()
        .find(|notice| notice.note.contains(BEFORE));
    assert!(
        reported.unwrap().note.contains("not accepted"),
        "{reported:?}"
    );
}

#[test]
fn a_set_that_the_status_does_not_name_goes_too() {
    let mut pool = noted();
    pool.status.left_at[0].scale_set = None;
    let actions = |set_is_gone| plan(&pool, &seen(vec![], &[], set_is_gone), NOW).actions;
    let delete = Action::DeleteScaleSetAt(BEFORE.to_owned(), 7);
    assert!(actions(false).contains(&delete));
    assert!(!actions(true).contains(&delete));
}

#[test]
fn an_address_is_given_up_where_there_are_too_many_and_never_one_with_pods() {
    // Given more addresses than are remembered, each asked for in vain, with a pod at the oldest
    let mut pool = moved();
    let old = |number: usize| LeftStatus {
        url: format!("https://github.com/acme/old-{number}"),
        scale_set: None,
        message: None,
    };
    pool.status.left_at = (0..=MOST).map(old).collect();
    let oldest = old(MOST).url;
    let mut at_work = there(&pool, "pool-aaaaa", RunnerPhase::Busy);
    at_work.url = Some(oldest.clone());

    // Then it stays, and of the others the oldest goes, with a word
    let planned = plan(&pool, &observed(vec![at_work]), NOW);
    let urls: Vec<&str> = planned
        .status
        .left_at
        .iter()
        .map(|l| l.url.as_str())
        .collect();
    assert!(urls.contains(&oldest.as_str()), "{urls:?}");
    assert!(!urls.contains(&old(MOST - 1).url.as_str()), "{urls:?}");
    assert_eq!(urls.len(), MOST + 1);
    let reported = planned
        .notices
        .iter()
        .filter(|n| n.reason == "TeardownIncomplete");
    assert_eq!(reported.count(), 1);
}

fn creates(plan: &Plan) -> bool {
    let mut actions = plan.actions.iter();
    actions.any(|action| matches!(action, Action::CreatePod(_)))
}

#[test]
fn nothing_is_made_at_an_address_before_the_status_has_it() {
    for (what, registered_at, finalizer) in [
        ("a new pool", None, false),
        ("one that never had a runner", None, true),
        ("one that was elsewhere", Some(BEFORE), true),
    ] {
        // Given a pool whose status does not have the address of its spec
        let mut pool = pool(1);
        let here = pool.status.registered_at.take();
        pool.status.registered_at = registered_at.map(str::to_owned);
        pool.finalizer = finalizer;

        // Then that is written, and nothing is made; what is to wake the pool then is the finalizer, where that is new
        let noted = plan(&pool, &observed(vec![]), NOW);
        assert_eq!(noted.status.registered_at, here, "{what}");
        assert!(!creates(&noted), "{what}");
        assert_eq!(
            noted.wake == Some(SignedDuration::ZERO),
            finalizer,
            "{what}"
        );

        // When it is written, then the runner is made
        pool.status = noted.status;
        pool.finalizer = true;
        assert!(creates(&plan(&pool, &observed(vec![]), NOW)), "{what}");
    }
}

#[test]
fn a_pool_with_runners_has_its_address_in_the_status_though_that_was_lost() {
    let mut pool = pool(1);
    let here = pool.status.registered_at.take();
    let mut at_work = runner(&pool, "pool-aaaaa", RunnerPhase::Busy);
    for (url, noted) in [
        (here.clone(), here.clone()),
        (None, here),
        (Some(BEFORE.to_owned()), None),
    ] {
        at_work.url = url;
        let planned = plan(&pool, &observed(vec![at_work.clone()]), NOW);
        assert_eq!(planned.status.registered_at, noted, "{:?}", at_work.url);
    }
}

/// One reconcile: what the spec names, and whether the status is written, the watch shows new pods, and runners end.
type Step = (usize, bool, bool, bool);

fn address(number: usize) -> GitHubUrl {
    let url = format!("https://github.com/acme/place-{number}");
    GitHubUrl::parse(&url, false).unwrap()
}

/// What is seen of runners, each with its entry, where the watch does not show the new ones.
fn world(pool: &Pool, runners: &[Runner], new: &[Runner]) -> Observed {
    let mut seen = observed(runners.to_vec());
    seen.expected = new.iter().map(|r| r.name.clone()).collect();
    let at = |url: &String| {
        let here = runners.iter().filter(|r| r.url.as_ref() == Some(url));
        let names: Vec<&str> = here.map(|r| r.name.as_str()).collect();
        listing(&names)
    };
    seen.listing = Some(at(&pool.spec.as_ref().unwrap().url.to_string()));
    for left in &pool.status.left_at {
        let there = Left {
            listing: Some(at(&left.url)),
            ..Left::default()
        };
        seen.left.insert(left.url.clone(), there);
    }
    seen
}

proptest! {
    #[test]
    fn a_runner_is_asked_for_where_it_was_made_though_writes_are_lost_and_addresses_change(
        steps in proptest::collection::vec((0..3_usize, any::<bool>(), any::<bool>(), any::<bool>()), 1..24),
    ) {
        let steps: Vec<Step> = steps;
        let mut stored = CudaRunnerStatus::default();
        let (mut runners, mut new): (Vec<Runner>, Vec<Runner>) = (vec![], vec![]);
        for (number, (place, is_written, are_shown, end)) in steps.into_iter().enumerate() {
            let mut pool = pool(2);
            pool.spec_mut().url = address(place);
            pool.status = stored.clone();
            if are_shown {
                runners.append(&mut new);
            }
            if end {
                runners.clear();
            }
            let mut seen = world(&pool, &runners, &new);
            seen.seed = number as u64;
            let planned = plan(&pool, &seen, NOW);
            for action in &planned.actions {
                match action {
                    Action::CreatePod(made) => new.push(Runner {
                        url: Some(address(place).to_string()),
                        ..runner(&pool, &made.name, RunnerPhase::Busy)
                    }),
                    Action::Drain(target) => runners.retain(|r| r.name != target.name),
                    _ => {}
                }
            }
            // The operator may end here, before the status is written
            let is_known = |status: &CudaRunnerStatus, url: &String| {
                status.registered_at.as_ref() == Some(url)
                    || status.left_at.iter().any(|left| left.url == *url)
            };
            let knows_all = |status: &CudaRunnerStatus| {
                let mut all = runners.iter().chain(&new);
                all.all(|r| is_known(status, r.url.as_ref().unwrap()))
            };
            prop_assert!(knows_all(&stored), "before the write: {runners:?} {new:?} {stored:?}");
            if is_written {
                stored = planned.status;
            }
            prop_assert!(knows_all(&stored), "after the write: {runners:?} {new:?} {stored:?}");
        }
    }
}

#[test]
fn a_pod_that_has_ended_elsewhere_goes_without_a_word_from_github() {
    // Given a pod that failed after it had registered at an address that cannot be asked
    let mut pool = noted();
    let mut failed = there(&pool, "pool-aaaaa", RunnerPhase::Failed);
    failed.end = Some(End::Failed(Failure {
        registered: true,
        ..gate_failure(Class::Config)
    }));
    let mut unasked = observed(vec![failed]);
    unasked.left.insert(BEFORE.to_owned(), Left::default());
    pool.status = plan(&pool, &unasked, NOW).status;
    for deleting in [None, Some(ago(1))] {
        pool.deleting = deleting;
        // Then it goes, and the address stays on record for its entry
        let planned = plan(&pool, &unasked, NOW);
        let goes =
            |action: &Action| matches!(action, Action::DeletePod(pod) if pod.name == "pool-aaaaa");
        assert!(planned.actions.iter().any(goes), "{:?}", planned.actions);
        assert!(planned.status.left_at.iter().any(|left| left.url == BEFORE));
    }
}

#[test]
fn an_address_that_is_gone_is_given_up_and_delays_no_deletion() {
    let hour = GONE_AFTER.as_secs();
    for (times, since, is_deleted, is_let_in, has_pod, is_given_up) in [
        (TIMES, hour, false, true, false, true),
        (TIMES, hour - 1, false, true, false, false),
        (TIMES - 1, 2 * hour, false, true, false, false),
        // A deletion waits for nothing else
        (TIMES, 120, true, true, false, true),
        (TIMES - 1, 120, true, true, false, false),
        // GitHub lets the pool in nowhere: that says nothing of this address
        (TIMES, hour, false, false, false, false),
        (TIMES, 120, true, false, false, false),
        // A job runs there
        (TIMES, hour, false, true, true, false),
        (TIMES, 120, true, true, true, false),
    ] {
        // Given an address that was not found so often, since then
        let mut pool = noted();
        pool.deleting = is_deleted.then(|| ago(1));
        let job = there(&pool, "pool-aaaaa", RunnerPhase::Busy);
        let mut seen = observed(Vec::from_iter(has_pod.then_some(job)));
        let missing = Missing {
            since: ago(since),
            times,
        };
        let left = Left {
            trouble: Some("acme/gadgets was not found".to_owned()),
            ask_again: Some(NOW.after(AGAIN)),
            missing: Some(missing),
            ..Left::default()
        };
        seen.left.insert(BEFORE.to_owned(), left);
        if !is_let_in {
            seen.access = Access::Unchecked;
        }

        // Then it is given up where that is sure, with a word, and a deletion goes on
        let what = format!("{times} {since} {is_deleted} {is_let_in} {has_pod}");
        let planned = plan(&pool, &seen, NOW);
        assert_eq!(planned.status.left_at.is_empty(), is_given_up, "{what}");
        let is_word = |notice: &&Notice| notice.note.contains("The address is gone");
        let words: Vec<&Notice> = planned.notices.iter().filter(is_word).collect();
        assert_eq!(words.len(), usize::from(is_given_up), "{what}");
        assert!(words.iter().all(|word| word.note.contains(BEFORE)
            && word.note.contains(&pool.scale_set_name())
            && word.reason == "TeardownIncomplete"));
        let goes = planned.actions.contains(&Action::RemoveFinalizer);
        assert_eq!(goes, is_deleted && is_given_up, "{what}");
    }
}
