use std::collections::BTreeSet;

use jiff::SignedDuration;

use super::*;
use crate::github::tests::stub::{Stub, page, raw, reply, runner};
use crate::listen::Listener;
use crate::observe::observe;
use crate::reconcile::tests::{BUSY, Cluster, HELD, IDLE, LOST, THERE, context};
use crate::registrar::Ledger;
use cuda_runner_plan::fixture;
use k8s_openapi::api::resource::v1::ResourceClaimSpec;

async fn carry_out(ctx: &Context, action: Action) -> Outcome {
    let mut plan = Plan {
        actions: vec![action],
        ..Plan::default()
    };
    act(ctx, &fixture::pool(1), None, &mut plan).await
}

fn removal_of(uid: &str) -> Action {
    Action::DeletePod(Target {
        name: HELD.to_owned(),
        uid: uid.to_owned(),
        url: None,
        is_stranded: false,
    })
}

#[tokio::test]
async fn a_pod_whose_removal_meets_a_conflict_is_gone_only_if_another_has_its_name() {
    let ctx = context(&Cluster::default()).await;
    let removed = |uid: &'static str| {
        let pool = fixture::pool(1);
        ctx.memory
            .with(&pool, |memory| memory.removed.contains(uid))
    };

    // When the same pod is still there, then the removal has failed, and is tried again
    let outcome = carry_out(&ctx, removal_of(HELD)).await;
    assert_eq!(outcome.errors.len(), 1);
    assert!(!removed(HELD));

    // When a namesake is there, then the pod that was meant is gone
    let outcome = carry_out(&ctx, removal_of("another")).await;
    assert!(outcome.errors.is_empty());
    assert!(removed("another"));
}

#[tokio::test]
async fn a_pod_is_removed_without_a_word_with_github_only_where_our_books_say_that_it_never_registered()
 {
    let cluster = Cluster::default();
    let mut ctx = context(&cluster).await;
    let target = Target {
        name: "pool-aaaaa".to_owned(),
        uid: "u".to_owned(),
        url: None,
        is_stranded: false,
    };

    // Given books that begin after the pod, and no way to GitHub, then it stays: it may have a job
    let outcome = carry_out(&ctx, Action::Drain(target.clone())).await;
    assert!(matches!(outcome.errors[..], [ActError::NoClient]));
    assert_eq!(cluster.writes(), Vec::<String>::new());
    assert!(!ctx.ledger.is_closed("u"), "its gate may still register it");

    // Given books that cover its life, in which it does not stand, then it goes
    Arc::get_mut(&mut ctx).unwrap().ledger = Arc::new(Ledger::alone());
    ctx.ledger.made("u");
    let outcome = carry_out(&ctx, Action::Drain(target)).await;
    assert!(outcome.errors.is_empty());
    assert_eq!(cluster.writes(), ["DELETE pool-aaaaa"]);
}

#[tokio::test]
async fn a_runner_of_an_address_that_the_pool_does_not_know_is_not_looked_for_at_another() {
    // Given a GitHub that knows no runner
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let stub = Stub::start(|_, _| reply(200, &page(0, &[]))).await;
    let here = fixture::pool(1).status.registered_at;
    let elsewhere = Some("https://github.com/acme/gadgets".to_owned());
    for (url, is_removed) in [(elsewhere, false), (here, true)] {
        // When a pod is to go that registers at another address, or at the pool's own
        let target = Target {
            name: "pool-aaaaa".to_owned(),
            uid: "u".to_owned(),
            url,
            is_stranded: false,
        };
        let mut plan = Plan {
            actions: vec![Action::Drain(target)],
            ..Plan::default()
        };
        let client = Some(stub.client("acme"));
        let outcome = act(&ctx, &fixture::pool(1), client, &mut plan).await;

        // Then the former stays, and an error names the address
        let errors = outcome.errors;
        assert_eq!(errors.is_empty(), is_removed, "{errors:?}");
        let removed: &[&str] = if is_removed {
            &["DELETE pool-aaaaa"]
        } else {
            &[]
        };
        assert_eq!(cluster.writes(), removed);
        let is_named = |error| matches!(error, &ActError::UnknownAddress(_));
        assert!(errors.iter().all(is_named), "{errors:?}");
    }
}

#[tokio::test]
async fn an_entry_of_another_pool_stays_when_a_runner_of_its_name_goes() {
    let own = fixture::pool(1).ownership_label();
    for (label, is_removed) in [
        (own.as_str(), true),
        ("cudarunner-0a1b2c3d", false),
        // Labels can be edited on GitHub
        ("cuda", true),
    ] {
        // Given an entry of the runner's name with this label
        let cluster = Cluster::default();
        let ctx = context(&cluster).await;
        let mut entry = runner(9, "pool-0", "offline", false);
        entry["labels"] = serde_json::json!([{"name": "self-hosted"}, {"name": label}]);
        let listed = page(1, &[entry]);
        let stub = Stub::start(move |seen, _| match seen.method {
            http::Method::GET => reply(200, &listed),
            _ => raw(204, ""),
        })
        .await;
        // When the runner is to go
        let target = Target {
            name: "pool-0".to_owned(),
            uid: "u".to_owned(),
            url: None,
            is_stranded: false,
        };
        let mut plan = Plan {
            actions: vec![Action::Drain(target)],
            ..Plan::default()
        };
        let client = Some(stub.client("acme"));
        let outcome = act(&ctx, &fixture::pool(1), client, &mut plan).await;

        // Then its pod goes, and the entry where it is the pool's own
        assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        assert_eq!(cluster.writes(), ["DELETE pool-0"], "{label}");
        let removed = stub.lines().contains(&"DELETE /9".to_owned());
        assert_eq!(removed, is_removed, "{label}");
    }
}

#[tokio::test]
async fn who_never_began_its_job_goes_as_it_was_read_and_who_has_begun_it_stays() {
    let cluster = Cluster::default();
    let mut ctx = context(&cluster).await;
    Arc::get_mut(&mut ctx).unwrap().ledger = Arc::new(Ledger::alone());
    for name in [BUSY, IDLE, "pool-gone"] {
        ctx.ledger.made(name);
    }
    let target = |name: &str| Target {
        name: name.to_owned(),
        uid: name.to_owned(),
        url: None,
        is_stranded: false,
    };
    // Given a pod in which a job has begun since the watch showed it
    let outcome = carry_out(&ctx, Action::EndUnstarted(target(BUSY))).await;
    assert!(outcome.busy && outcome.errors.is_empty());
    assert_eq!(cluster.writes(), Vec::<String>::new());
    assert!(!ctx.ledger.is_closed(BUSY));

    // Given one in which none has, then it is removed if nothing of it has changed since
    let outcome = carry_out(&ctx, Action::EndUnstarted(target(IDLE))).await;
    assert!(!outcome.busy && outcome.errors.is_empty());
    assert_eq!(cluster.last_sent()["preconditions"]["resourceVersion"], "7");
    assert_eq!(cluster.writes(), [format!("DELETE {IDLE}")]);

    // Given one that is gone
    let outcome = carry_out(&ctx, Action::EndUnstarted(target("pool-gone"))).await;
    assert!(!outcome.busy && outcome.errors.is_empty());
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pod_that_is_kept_for_a_look_has_its_entry_removed_once() {
    let cluster = Cluster::default();
    let mut ctx = context(&cluster).await;
    let target = Target {
        name: "pool-aaaaa".to_owned(),
        uid: "u".to_owned(),
        url: None,
        is_stranded: false,
    };
    let is_known = |ctx: &Context| {
        let pool = fixture::pool(1);
        ctx.memory
            .with(&pool, |memory| memory.unregistered.contains("u"))
    };

    // Given no way to GitHub, then the entry is tried again
    let outcome = carry_out(&ctx, Action::DeleteEntryOf(target.clone())).await;
    assert!(matches!(outcome.errors[..], [ActError::NoClient]));
    assert!(!is_known(&ctx));

    // Given that there is none, then that is remembered, and the pod stays
    Arc::get_mut(&mut ctx).unwrap().ledger = Arc::new(Ledger::alone());
    ctx.ledger.made("u");
    let outcome = carry_out(&ctx, Action::DeleteEntryOf(target)).await;
    assert!(outcome.errors.is_empty());
    assert!(is_known(&ctx));
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_creation_without_an_answer_is_looked_for_and_keeps_its_name() {
    let ctx = context(&Cluster::default()).await;
    let pool = fixture::pool(1);
    let create = |name: &str| {
        Action::CreatePod(NewRunner {
            name: name.to_owned(),
            avoids: BTreeSet::new(),
            shuns: BTreeSet::new(),
            retest: None,
        })
    };

    // Given one creation whose answer was lost, and one that finds that an earlier try has come through
    assert_eq!(carry_out(&ctx, create(LOST)).await.errors.len(), 1);
    assert!(carry_out(&ctx, create(THERE)).await.errors.is_empty());

    // Then both pods count at first, and the pool is woken to look for them
    let now = Timestamp::now();
    let (observed, _) = observe(&ctx, &pool, now).await;
    assert_eq!(
        observed.expected,
        BTreeSet::from([LOST, THERE].map(str::to_owned))
    );
    assert!(
        observed
            .ask_for_pods
            .is_some_and(|at| at <= now + SignedDuration::from_secs(3))
    );

    // When the API server knows neither, then the one that was there has gone, and the other may still come
    let later = now + SignedDuration::from_secs(4);
    let (observed, _) = observe(&ctx, &pool, later).await;
    assert_eq!(observed.expected, BTreeSet::new());
    assert_eq!(observed.unanswered, BTreeSet::from([LOST.to_owned()]));

    // And after a while it cannot come any more
    let (observed, _) = observe(&ctx, &pool, later + SignedDuration::from_secs(120)).await;
    assert_eq!(observed.unanswered, BTreeSet::new());
}

#[tokio::test]
async fn a_pod_that_tries_a_device_gets_its_claim() {
    let cluster = Cluster::default();
    let mut ctx = context(&cluster).await;
    Arc::get_mut(&mut ctx).unwrap().ledger = Arc::new(Ledger::alone());
    let create = |retest| {
        Action::CreatePod(NewRunner {
            name: IDLE.to_owned(),
            avoids: BTreeSet::new(),
            shuns: BTreeSet::new(),
            retest,
        })
    };
    // Others have theirs from the template
    assert!(carry_out(&ctx, create(None)).await.errors.is_empty());
    assert_eq!(cluster.writes(), ["POST pods"]);
    // ... and the books know that this process has made the pod
    assert_eq!(ctx.ledger.is_registered(IDLE), Some(false));
    let retest = Retest {
        uuid: "GPU-1".to_owned(),
        node: "node-1".to_owned(),
        suffix: "x".to_owned(),
        claim: ResourceClaimSpec::default(),
    };
    let outcome = carry_out(&ctx, create(Some(retest))).await;
    assert!(outcome.errors.is_empty());
    let claim = cluster.last_sent();
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], IDLE);
    assert_eq!(cluster.writes(), ["POST pods", "POST resourceclaims"]);
}

#[tokio::test]
async fn what_was_heard_of_runners_is_forgotten_with_them_and_no_sooner() {
    let ctx = context(&Cluster::default()).await;
    let pool = fixture::pool(1);
    let mut plan = Plan {
        acted_on: Some((7, 1)),
        ..Plan::default()
    };
    // Given ends of jobs of a runner that was seen, of one that the watch does not show yet, and of one that is gone
    let heard = Listener::of(fixture::NOW, &["pool-aaaaa", "pool-bbbbb", "pool-ccccc"]);
    ctx.listeners
        .with(&pool, |listener| *listener = Some(heard));
    ctx.memory.with(&pool, |memory| {
        memory.known.insert("pool-aaaaa".to_owned(), "a".to_owned());
        let expected = Expectation::new(fixture::NOW);
        memory.expected.insert("pool-bbbbb".to_owned(), expected);
    });

    // When what was heard is acted on
    act(&ctx, &pool, None, &mut plan).await;

    // Then the first two are still known
    let (_, completed) = ctx.listeners.heard(&pool, "").unwrap();
    let known = ["pool-aaaaa", "pool-bbbbb"].map(str::to_owned);
    assert_eq!(completed, BTreeSet::from(known));
}

#[tokio::test]
async fn nobody_listens_with_credentials_that_are_not_the_pools_any_more() {
    let ctx = context(&Cluster::default()).await;
    let pool = fixture::pool(1);
    let listener = Listener::of(fixture::NOW, &[]);
    ctx.listeners.with(&pool, |kept| *kept = Some(listener));
    act(&ctx, &pool, None, &mut Plan::default()).await;
    assert!(ctx.listeners.heard(&pool, "").is_some());

    // Given other credentials, then nothing that the old ones hear is believed, and it ends when the pool acts
    ctx.memory
        .with(&pool, |memory| memory.github.identity = "new".to_owned());
    assert!(ctx.listeners.heard(&pool, "new").is_none());
    act(&ctx, &pool, None, &mut Plan::default()).await;
    assert!(ctx.listeners.with(&pool, |listener| listener.is_none()));
}

#[test]
fn what_is_said_of_a_pod_is_said_without_its_name() {
    for (said, kept) in [
        (
            r#"pods "pool-aaaaa" is forbidden: exceeded quota: gpus"#,
            "exceeded quota: gpus",
        ),
        (
            r#"Pod "pool-aaaaa" is invalid: spec.priority: Invalid value"#,
            "spec.priority: Invalid value",
        ),
        (
            r#"pods "other" is forbidden: no"#,
            r#"pods "other" is forbidden: no"#,
        ),
    ] {
        assert_eq!(without_name(said, "pool-aaaaa"), kept);
    }
}
