use super::super::fixture::{NOW, ago, listing, observed, pool, runner};
use super::super::tests::removed;
use super::*;
use crate::reason::Reason;

/// A pool in deletion that has registered runners.
fn leaving() -> Pool {
    let mut pool = pool(1);
    pool.deleting = Some(ago(5));
    pool.status.registered_at = Some("https://github.com/acme/widgets".into());
    pool
}

#[test]
fn deletion_waits_for_jobs_or_does_not_as_told() {
    let mut pool = pool(2);
    pool.deleting = Some(ago(5));
    let runners = vec![
        runner(&pool, "pool-busy1", RunnerPhase::Busy),
        runner(&pool, "pool-idle1", RunnerPhase::Idle),
    ];
    let plan = crate::plan(&pool, &observed(runners.clone()), NOW);
    assert_eq!(removed(&plan), ["pool-idle1"]);
    pool.deletion_policy = DeletionPolicy::Now;
    let plan = crate::plan(&pool, &observed(runners), NOW);
    assert_eq!(removed(&plan), ["pool-busy1", "pool-idle1"]);
}

#[test]
fn deletion_ends_only_after_a_fresh_list_is_empty() {
    let pool = leaving();
    let mut observed = observed(vec![]);
    observed.last_change = Some(ago(1));
    let plan = crate::plan(&pool, &observed, NOW);
    assert!(
        plan.refresh && plan.actions.is_empty(),
        "the list is older than our last change"
    );

    observed.last_change = Some(ago(20));
    observed.listing = Some(listing(&["pool-aaaaa"]));
    let plan = crate::plan(&pool, &observed, NOW);
    assert!(matches!(plan.actions.as_slice(), [Action::DeleteEntry(_)]));

    observed.listing = Some(listing(&[]));
    let plan = crate::plan(&pool, &observed, NOW);
    assert_eq!(plan.actions, [Action::RemoveFinalizer]);
}

#[test]
fn a_list_of_some_runners_does_not_prove_that_none_are_left() {
    // Given a pool in deletion, and a list of its runners that is empty, and is not all
    let mut pool = leaving();
    let mut observed = observed(vec![]);
    let mut part = listing(&[]);
    part.is_whole = false;
    observed.listing = Some(part);
    // Then GitHub is asked again
    let plan = crate::plan(&pool, &observed, NOW);
    assert_eq!((plan.actions, plan.notices), (vec![], vec![]));
    assert!(plan.refresh && plan.wake.is_some_and(|wake| wake <= AGAIN));
    // And when the time is over, an Event says what may be left, and that not all is known
    pool.deleting = Some(NOW - pool.teardown_timeout);
    for (known, words) in [(&[][..], "runners with"), (&["pool-a"], "and others with")] {
        let part = listing(known);
        observed.listing = Some(crate::Listing {
            is_whole: false,
            ..part
        });
        let plan = crate::plan(&pool, &observed, NOW);
        let note = &plan.notices[0].note;
        let label = pool.ownership_label();
        assert!(
            note.contains(&format!("{words} the label {label}")),
            "{note}"
        );
        assert!(note.contains("could be listed"), "{note}");
    }
}

#[test]
fn deletion_waits_for_a_registration_that_may_still_arrive() {
    // Given a pool that holds nothing, and a registration without an answer
    let pool = leaving();
    let mut observed = observed(vec![]);
    observed.listing = Some(listing(&[]));
    observed.last_change = Some(ago(-40));
    // Then GitHub is asked when it can have arrived, and not before
    let plan = crate::plan(&pool, &observed, NOW);
    assert!(!plan.refresh && plan.actions.is_empty());
    assert_eq!(plan.wake, Some(SignedDuration::from_secs(40)));
}

#[test]
fn a_pool_that_never_registered_anything_goes_without_github() {
    let mut pool = pool(1);
    pool.status.registered_at = None;
    pool.deleting = Some(ago(0));
    let mut observed = observed(vec![]);
    observed.listing = None;
    observed.access = Access::Refused {
        reason: Reason::SecretNotFound,
        message: "no Secret".into(),
        transient: false,
    };
    assert_eq!(
        crate::plan(&pool, &observed, NOW).actions,
        [Action::RemoveFinalizer]
    );
}

#[test]
fn a_pool_that_loses_its_operator_says_what_stays() {
    let mut pool = pool(1);
    pool.status.registered_at = None;
    let notice = without_operator(&pool);
    assert!(
        !notice.warning && notice.note.contains("has nothing on GitHub"),
        "{notice:?}"
    );
    pool.status.registered_at = Some("https://github.com/acme/widgets".into());
    let notice = without_operator(&pool);
    let label = pool.ownership_label();
    assert!(
        notice.warning && notice.note.contains(&label) && notice.note.contains("acme/widgets"),
        "{notice:?}"
    );
}

#[test]
fn a_pool_whose_finalizer_is_taken_off_says_what_stays_where_anything_does() {
    let mut pool = pool(1);
    pool.status.registered_at = None;
    assert_eq!(without_finalizer(&pool), None);
    pool.status.required_checks = Some(cudarunner_crds::RequiredChecksStatus {
        repository: "acme/widgets".to_owned(),
        ruleset: Some(checks::ruleset_name(&pool)),
        ..Default::default()
    });
    let notice = without_finalizer(&pool).unwrap();
    let name = checks::ruleset_name(&pool);
    assert!(
        notice.warning && notice.reason == "FinalizerRemoved" && notice.note.contains(&name),
        "{notice:?}"
    );
}

#[test]
fn deletion_never_hangs_and_names_what_it_left() {
    let mut pool = pool(1);
    pool.status.registered_at = Some("https://github.com/acme/widgets".into());
    pool.deleting = Some(NOW - pool.teardown_timeout);
    let mut observed = observed(vec![]);
    observed.access = Access::Refused {
        reason: Reason::Unauthorized,
        message: "bad credentials".into(),
        transient: false,
    };
    observed.listing = Some(listing(&["pool-aaaaa"]));
    let plan = crate::plan(&pool, &observed, NOW);
    assert_eq!(plan.actions, [Action::RemoveFinalizer]);
    let notice = &plan.notices[0];
    assert!(
        notice.warning && notice.note.contains("pool-aaaaa"),
        "{notice:?}"
    );
    assert!(notice.note.contains("bad credentials"));
}

#[test]
fn where_much_is_left_there_is_room_to_say_where_and_what_to_do() {
    // Given a pool whose time is over, and five hundred runners at GitHub
    let names: Vec<String> = (0..500).map(|n| format!("pool-{n:05}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut pool = leaving();
    pool.deleting = Some(ago(100_000));
    let mut observed = observed(vec![]);
    observed.listing = Some(listing(&names));
    // Then the Event names some, and the label by which all are found
    let plan = crate::plan(&pool, &observed, NOW);
    let [notice] = plan.notices.as_slice() else {
        panic!("{:?}", plan.notices)
    };
    assert!(notice.note.len() < crate::NOTE, "{}", notice.note);
    let label = pool.ownership_label();
    let others = format!(
        "pool-00009, and others with the label {label}, may be left at https://github.com/acme/widgets;"
    );
    assert!(notice.note.contains(&others), "{}", notice.note);
}

#[test]
fn a_status_is_believed_where_it_is_the_resources_own_or_names_none() {
    let own = pool(1).uid;
    for (uid, is_believed) in [
        (None, true),
        (Some(own), true),
        (Some("other".to_owned()), false),
    ] {
        let mut resource = super::super::fixture::resource();
        let operator = cudarunner_crds::OperatorStatus::default();
        resource.status = Some(cudarunner_crds::CudaRunnerStatus {
            uid,
            registered_at: Some("https://github.com/acme/widgets".to_owned()),
            operator: Some(operator.clone()),
            ..cudarunner_crds::CudaRunnerStatus::default()
        });
        let pool = Pool::read(&resource, false);
        assert_eq!(pool.status.registered_at.is_some(), is_believed);
        assert_eq!(
            pool.status.operator,
            Some(operator),
            "that is the operators' to say"
        );
        let plan = crate::plan(&pool, &observed(vec![]), NOW);
        assert_eq!(plan.status.uid, Some(pool.uid));
        let says = plan
            .news
            .iter()
            .any(|n| n.reason == Reason::StatusOfAnother);
        assert_eq!(says, !is_believed);
    }
}
