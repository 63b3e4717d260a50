use cudarunner_crds::{RunnerPhase, ScaleSetStatus};

use super::super::fixture::{NOW, ago, listing, observed, pool, runner};
use super::super::plan;
use super::*;
use crate::model::left::Left;
use crate::model::runner::Runner;

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
    spec.url = crate::model::url::GitHubUrl::parse(BEFORE, false).unwrap();
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
