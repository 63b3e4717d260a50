//! Given pods that wait, fail or go, then the resource says what a person has to know, and says no more than is true.

use cudarunner_crds::RunnerPhase;
use gate_report::Class;
use jiff::SignedDuration;

use super::super::condition::kind;
use super::super::fixture::{NOW, ago, listing, node, observed, pool, runner};
use super::super::{Plan, health, plan};
use super::{condition, created};
use crate::model::pool::Pool;
use crate::model::runner::{End, Failure, NOT_OFFERED, Waiting};
use crate::reason::Reason;

#[test]
fn a_container_that_cannot_be_made_is_told_at_once_in_the_kubelets_words() {
    let pool = pool(1);
    let mut waiting = runner(&pool, "pool-aaaaa", RunnerPhase::Starting);
    waiting.waiting = Some(Waiting {
        reason: "CreateContainerConfigError".into(),
        message: "secret \"hf-token\" not found".into(),
        container: Some("runner".into()),
        image: None,
    });
    let planned = plan(&pool, &observed(vec![waiting.clone()]), NOW);
    let (status, reason, message) = condition(&planned, kind::READY);
    assert_eq!((status, reason), ("False", "ContainerNotStarted"));
    assert!(
        message.contains("secret \"hf-token\" not found"),
        "{message}"
    );

    waiting.waiting_since = Some(ago(301));
    let planned = plan(&pool, &observed(vec![waiting]), NOW);
    assert_eq!(condition(&planned, kind::STALLED).1, "ContainerNotStarted");
}

#[test]
fn the_schedulers_sentence_is_told() {
    let pool = pool(1);
    let mut waiting = runner(&pool, "pool-aaaaa", RunnerPhase::Unscheduled);
    waiting.waiting = Some(Waiting {
        reason: "Unschedulable".into(),
        message: "0/3 nodes are available: 3 node(s) had untolerated taint. preemption: none."
            .into(),
        container: None,
        image: None,
    });
    let planned = plan(&pool, &observed(vec![waiting]), NOW);
    let message = condition(&planned, kind::RUNNERS_ONLINE).2;
    assert!(message.ends_with("had untolerated taint"), "{message}");
}

#[test]
fn a_refused_pod_is_told_with_the_fields_that_can_change_it() {
    let of_runner = "of gpu are the resources of runner in spec.template";
    let of_jobs = "of gpu are spec.jobContainers.resources";
    let table = [
        (
            "exceeded quota: gpus, requested: requests.cpu=30m, used: requests.cpu=1, limited: requests.cpu=1",
            ["raise the quota", "raise the quota"],
        ),
        (
            "failed quota: gpus: must specify limits.cpu for: gpu",
            [of_runner, of_jobs],
        ),
        (
            "minimum cpu usage per Container is 50m, but request is 10m",
            [of_runner, of_jobs],
        ),
        (
            "cpu max limit to request ratio per Container is 4, but provided ratio is 100.000000",
            [of_runner, of_jobs],
        ),
        (
            "violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false",
            ["securityContext", "securityContext"],
        ),
        ("error looking up service account", ["account", "account"]),
    ];
    for (said, expected) in table {
        let containers = [None, Some(cudarunner_crds::JobContainers::default())];
        for (containers, expected) in containers.into_iter().zip(expected) {
            let mut pool = pool(1);
            pool.spec_mut().job_containers = containers;
            let mut seen = observed(vec![]);
            seen.pod_refused = Some(said.to_owned());
            let planned = plan(&pool, &seen, NOW);
            let message = condition(&planned, kind::RUNNERS_ONLINE).2;
            assert!(
                message.contains(said) && message.contains(expected),
                "{message}"
            );
        }
    }
}

#[test]
fn a_sentence_of_kubernetes_that_only_counts_anew_is_not_written() {
    let mut pool = pool(1);
    let waiting = |said: &str| {
        let mut runner = runner(&pool, "pool-aaaaa", RunnerPhase::Unscheduled);
        runner.waiting = Some(Waiting {
            reason: "Unschedulable".into(),
            message: format!("0/5 nodes are available: {said}."),
            container: None,
            image: None,
        });
        observed(vec![runner])
    };
    let first = waiting("2 node(s) had untolerated taint, 3 Insufficient nvidia.com/gpu");
    let counted = waiting("1 Insufficient nvidia.com/gpu, 4 node(s) had untolerated taint");
    let other = waiting("5 Insufficient nvidia.com/gpu");
    pool.status = plan(&pool, &first, NOW).status;
    assert_eq!(plan(&pool, &counted, NOW).status, pool.status);
    assert_ne!(plan(&pool, &other, NOW).status, pool.status);
    // Of a spec that has changed it is said as it is now.
    pool.generation += 1;
    let planned = plan(&pool, &counted, NOW);
    let message = condition(&planned, kind::RUNNERS_ONLINE).2;
    assert!(message.contains("1 Insufficient"), "{message}");
}

#[test]
fn a_pod_that_stays_without_containers_points_at_kubectl() {
    let pool = pool(1);
    let mut waiting = runner(&pool, "pool-aaaaa", RunnerPhase::Preparing);
    waiting.since = ago(130);
    // While another runner serves, that is no trouble.
    let online = runner(&pool, "pool-bbbbb", RunnerPhase::Idle);
    let planned = plan(&pool, &observed(vec![waiting.clone(), online]), NOW);
    assert_eq!(condition(&planned, kind::RUNNERS_ONLINE).1, "Online");
    let planned = plan(&pool, &observed(vec![waiting]), NOW);
    let (_, reason, message) = condition(&planned, kind::RUNNERS_ONLINE);
    assert_eq!(reason, "SlowStart");
    assert!(
        message.contains("kubectl describe pod pool-aaaaa"),
        "{message}"
    );
}

/// A pool after one more runner of it has failed.
fn fail_once_more(mut pool: Pool, name: &str, failure: &Failure) -> (Pool, Plan) {
    let mut failed = runner(&pool, name, RunnerPhase::Failed);
    failed.created = failure.at;
    failed.end = Some(End::Failed(failure.clone()));
    let planned = plan(&pool, &observed(vec![failed]), failure.at);
    pool.status = planned.status.clone();
    (pool, planned)
}

#[test]
fn an_agent_that_hardly_starts_three_times_in_the_same_way_stalls_the_pool() {
    let failed = |(reason, code), at| Failure {
        code,
        ..Failure::new(reason, Class::Transient, "m".to_owned(), at, true)
    };
    let ended = |code| (Reason::AgentEndedAtOnce, Some(code));
    let not_started = (Reason::ContainerNotStarted, None);
    for (ends, stalls) in [
        ([ended(1), ended(1), ended(1)], "True"),
        ([ended(1), ended(2), ended(1)], "False"),
        ([not_started; 3], "True"),
        ([not_started, ended(1), not_started], "False"),
    ] {
        let mut pool = pool(1);
        let mut last = Plan::default();
        for (n, end) in ends.into_iter().enumerate() {
            let at = NOW + SignedDuration::from_mins(i64::try_from(n).unwrap());
            (pool, last) = fail_once_more(pool, &format!("pool-{n}"), &failed(end, at));
        }
        assert_eq!(condition(&last, kind::STALLED).0, stalls, "{ends:?}");
    }
}

#[test]
fn a_node_whose_plugin_keeps_refusing_pods_is_left_alone_and_the_pool_goes_on_elsewhere() {
    // Given a pool with two nodes, one of which has no device for any pod
    let mut pool = pool(1);
    for n in 1..=3_i64 {
        let at = NOW + SignedDuration::from_mins(n);
        let refused = Failure {
            code_name: Some(NOT_OFFERED.to_owned()),
            ..Failure::new(
                Reason::PodRejected,
                Class::Transient,
                "no".to_owned(),
                at,
                false,
            )
        };
        let mut runner = runner(&pool, &format!("pool-{n}"), RunnerPhase::Failed);
        runner.created = at;
        runner.end = Some(End::Failed(refused));
        let mut seen = observed(vec![runner]);
        seen.nodes = Some(vec![node("node-1"), node("node-2")]);
        pool.status = plan(&pool, &seen, at).status;
        // Then it is quarantined after the third, and not before
        assert_eq!(pool.status.quarantine.len(), usize::from(n == 3), "{n}");
    }
    assert_eq!(pool.status.quarantine[0].node, "node-1");
}

#[test]
fn after_any_failure_there_is_a_pause_and_it_grows() {
    let rejected = |class, at| Failure::new(Reason::PodRejected, class, "no".to_owned(), at, false);
    for class in Class::ALL {
        let mut pool = pool(1);
        let mut at = NOW;
        let mut pauses = vec![];
        for n in 0..8 {
            let planned;
            (pool, planned) = fail_once_more(pool, &format!("pool-{n}"), &rejected(class, at));
            assert_eq!(created(&planned), 0, "{class}");
            let health = health::assess(&pool, &observed(vec![]), at);
            let next = health.not_before.unwrap();
            pauses.push(next.duration_since(at));
            at = next;
        }
        assert!(
            pauses[0] >= SignedDuration::from_secs(1),
            "{class}: {pauses:?}"
        );
        assert!(
            pauses[7] >= SignedDuration::from_secs(45),
            "{class}: {pauses:?}"
        );
    }
}

#[test]
fn a_job_that_left_no_word_is_told_where_github_showed_the_runner_busy() {
    let pool = pool(1);
    for reason in [Reason::EndedWithoutJob, Reason::PodRejected] {
        let mut failed = runner(&pool, "pool-aaaaa", RunnerPhase::Failed);
        let without = Failure::new(reason, Class::Transient, "m".to_owned(), ago(20), true);
        failed.end = Some(End::Failed(without));
        let mut observed = observed(vec![failed]);
        let mut entries = listing(&["pool-aaaaa"]);
        entries.entries[0].busy = true;
        observed.listing = Some(entries);
        let planned = plan(&pool, &observed, NOW);
        let reported = &planned.status.last_failures[0];
        assert_eq!(reported.reason, "JobCutShort", "{reason}");
    }
}

#[test]
fn pods_that_vanish_at_once_are_told_and_not_made_anew_without_a_pause() {
    let pool = pool(1);
    let mut observed = observed(vec![]);
    observed.vanished = vec![runner(&pool, "pool-aaaaa", RunnerPhase::Unscheduled)];
    let planned = plan(&pool, &observed, NOW);
    assert_eq!(planned.status.last_failures[0].reason, "PodDeleted");
    assert_eq!(created(&planned), 0);
}

/// The pool after a planned, at its next generation.
fn changed(mut pool: Pool, planned: &Plan) -> Pool {
    pool.status = planned.status.clone();
    pool.generation += 1;
    pool.spec_mut().template_hash = "new".to_owned();
    pool
}

#[test]
fn a_changed_spec_is_ready_only_when_a_runner_of_it_is_online() {
    let first = pool(1);
    let old = runner(&first, "pool-aaaaa", RunnerPhase::Idle);
    let before = plan(&first, &observed(vec![old.clone()]), NOW);
    assert_eq!(condition(&before, kind::READY).0, "True");
    let pool = changed(first, &before);
    let during = plan(&pool, &observed(vec![old]), NOW);
    let (status, reason, _) = condition(&during, kind::READY);
    assert_eq!((status, reason), ("Unknown", "RollingOut"));
    // ... also when the old one is gone, and the new one is not there yet
    let mut pool = pool;
    pool.status = during.status;
    let coming = runner(&pool, "pool-bbbbb", RunnerPhase::Gated);
    let between = plan(&pool, &observed(vec![coming]), NOW);
    assert_eq!(condition(&between, kind::READY).1, "RollingOut");
    let new = runner(&pool, "pool-bbbbb", RunnerPhase::Idle);
    let after = plan(&pool, &observed(vec![new]), NOW);
    assert_eq!(condition(&after, kind::READY).0, "True");
}

#[test]
fn a_changed_number_of_runners_rolls_nothing_out() {
    // Given a pool between two jobs
    let mut pool = pool(1);
    let online = runner(&pool, "pool-aaaaa", RunnerPhase::Idle);
    pool.status = plan(&pool, &observed(vec![online]), NOW).status;
    let coming = observed(vec![runner(&pool, "pool-bbbbb", RunnerPhase::Gated)]);
    // When it is to have another number of runners, and nothing else has changed, then it stays ready
    pool.generation += 1;
    let planned = plan(&pool, &coming, NOW);
    assert_eq!(condition(&planned, kind::READY).0, "True");
}

#[test]
fn a_pool_without_a_runner_online_is_not_ready_for_long() {
    // Given a pool that was online, and whose next runner is on its way
    let mut pool = pool(1);
    let online = runner(&pool, "pool-aaaaa", RunnerPhase::Idle);
    pool.status = plan(&pool, &observed(vec![online]), NOW).status;
    let next = runner(&pool, "pool-bbbbb", RunnerPhase::Starting);
    let world = observed(vec![next.clone()]);
    // Then it is ready while that takes no longer than usual, and not after
    for (seconds, status, reason) in [(30, "True", "Online"), (90, "False", "NoneOnline")] {
        let planned = plan(&pool, &world, NOW + SignedDuration::from_secs(seconds));
        let (found, why, _) = condition(&planned, kind::READY);
        assert_eq!((found, why), (status, reason), "{seconds}");
    }
}

#[test]
fn a_pool_in_deletion_is_not_ready_while_a_job_runs() {
    let mut pool = pool(1);
    let busy = runner(&pool, "pool-aaaaa", RunnerPhase::Busy);
    pool.status = plan(&pool, &observed(vec![busy.clone()]), NOW).status;
    pool.deleting = Some(NOW);
    let planned = plan(&pool, &observed(vec![busy]), NOW);
    assert_eq!(condition(&planned, kind::READY).1, "Deleting");
}
