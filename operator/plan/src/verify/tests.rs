use std::collections::BTreeMap;

use cudarunner_crds::{ExpectedTests, RunnerPhase, VerificationState, VerifiedJob, Verify};
use jiff::SignedDuration;

use super::*;
use crate::condition::kind;
use crate::fixture::{NOW, ago, observed, pool, runner};
use crate::model::github::{Repository, Run, TestSum};

fn verified_pool(replicas: i32, jobs: &[(&str, Option<i32>)]) -> Pool {
    let mut pool = pool(replicas);
    let spec = pool.spec_mut();
    spec.repository = Repository::new("acme/widgets");
    spec.verify = Some(Verify {
        workflow: "cuda.yml".into(),
        git_ref: "dev".into(),
        pickup_seconds: 30,
        repository: None,
        every: None,
        jobs: jobs
            .iter()
            .map(|(name, passed)| VerifiedJob {
                name: (*name).into(),
                tests: passed.map(|passed| ExpectedTests { passed }),
            })
            .collect(),
    });
    pool
}

fn idle(pool: &Pool) -> Observed {
    let mut idle = runner(pool, "pool-aaaaa", RunnerPhase::Idle);
    idle.hardware = Some(crate::fixture::hardware("A100", "580"));
    observed(vec![idle])
}

fn job(id: u64, name: &str, status: &str) -> RunJob {
    let done = status == "completed";
    RunJob {
        id,
        name: name.into(),
        status: status.into(),
        conclusion: done.then(|| "success".into()),
        created_at: Some(ago(20)),
        started_at: Some(ago(15)),
        completed_at: done.then(|| ago(5)),
        runner_name: (status != "queued").then(|| format!("pool-{id:05}")),
        labels: vec!["self-hosted".into(), "cuda".into()],
        html_url: None,
        attempt: 1,
    }
}

/// A pool whose verification is watched, and what GitHub says of it.
fn running(mut pool: Pool, jobs: Vec<RunJob>, sums: &[(u64, u64)]) -> (Pool, Observed) {
    let mut observed = idle(&pool);
    let first = crate::plan(&pool, &observed, ago(30)).status;
    pool.status.verification = first.verification.map(|v| VerificationStatus {
        state: VerificationState::Running.into(),
        run_id: Some(7),
        url: Some("https://github.com/acme/widgets/actions/runs/7".into()),
        ..v
    });
    let over = jobs.iter().all(|job| job.status == "completed");
    observed.verification = VerificationFacts {
        since: Some(ago(30)),
        run_id: Some(7),
        run: Some(Run {
            id: 7,
            status: if over { "completed" } else { "in_progress" }.into(),
            conclusion: None,
            html_url: String::new(),
            created_at: ago(21),
            check_suite_id: None,
            head_sha: None,
            workflow_id: None,
            head_branch: None,
            head_repository: None,
            event: None,
            attempt: 1,
        }),
        jobs,
        sums: sums
            .iter()
            .map(|(job, passed)| {
                let sum = TestSum {
                    results: 1,
                    passed: *passed,
                };
                (*job, sum)
            })
            .collect::<BTreeMap<_, _>>(),
        ..VerificationFacts::default()
    };
    (pool, observed)
}

fn says(plan: &Plan) -> (String, String, String) {
    let all = plan.status.conditions.iter();
    let c = all
        .clone()
        .find(|c| c.type_ == kind::WORKFLOW_VERIFIED)
        .unwrap();
    (c.status.clone(), c.reason.clone(), c.message.clone())
}

fn at_work(pool: &Pool, observed: &Observed) -> Plan {
    crate::plan(pool, observed, NOW)
}

#[test]
fn the_intent_is_written_before_anything_is_sent() {
    // Given a pool with a runner online, when it is first reconciled
    let mut pool = verified_pool(1, &[("unit", None)]);
    let mut observed = idle(&pool);
    let plan = at_work(&pool, &observed);
    // Then the intent is in the status, and nothing is sent yet
    let status = plan.status.verification.clone().unwrap();
    assert_eq!(status.state, VerificationState::Requested);
    assert_eq!(plan.intent, Some(NOW));
    let sends = |plan: &Plan| {
        let sent = plan.actions.iter();
        sent.filter(|a| matches!(a, Action::DispatchWorkflow(_)))
            .count()
    };
    assert_eq!(sends(&plan), 0);
    // And only what is known not to have been sent is sent
    pool.status.verification = Some(status);
    observed.verification.since = Some(NOW);
    assert_eq!(sends(&at_work(&pool, &observed)), 0);
    observed.verification.dispatch = Dispatch::Open;
    assert_eq!(sends(&at_work(&pool, &observed)), 1);
    observed.verification.dispatch = Dispatch::Sent;
    assert_eq!(sends(&at_work(&pool, &observed)), 0);
}

#[test]
fn without_a_runner_of_this_template_nothing_is_verified() {
    let pool = verified_pool(1, &[("unit", None)]);
    let nobody = at_work(&pool, &observed(vec![]));
    assert_eq!(nobody.status.verification, None);
    assert_eq!(says(&nobody).1, "WaitsForRunner");
    let mut old = idle(&pool);
    old.runners[0].template = "old".into();
    assert_eq!(at_work(&pool, &old).status.verification, None);
}

#[test]
fn green_is_every_job_here_in_time_with_all_its_tests() {
    let pool = verified_pool(1, &[("unified", Some(46)), ("compile", None)]);
    let jobs = vec![
        job(1, "unified", "completed"),
        job(2, "compile", "completed"),
    ];
    let (pool, observed) = running(pool, jobs, &[(1, 46)]);
    let plan = at_work(&pool, &observed);
    let (status, reason, message) = says(&plan);
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Verified"));
    assert!(message.contains("unified (46 tests)"), "{message}");
    assert!(message.contains("/actions/runs/7"), "{message}");
    let verification = plan.status.verification.unwrap();
    assert_eq!(verification.jobs[0].pickup_seconds, Some(5));
    assert_eq!(verification.history.len(), 1);
}

#[test]
fn a_test_too_few_is_not_green() {
    let pool = verified_pool(1, &[("unified", Some(46))]);
    let (pool, observed) = running(pool, vec![job(1, "unified", "completed")], &[(1, 45)]);
    let (status, reason, message) = says(&at_work(&pool, &observed));
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "TestsMissing")
    );
    assert!(message.contains("45 of 46"), "{message}");
}

#[test]
fn only_our_runners_count() {
    for (name, ours) in [
        ("pool-ab12c", true),
        ("pool-0", true),
        ("pool-b-ab12c", false),
        ("poolside-ab12c", false),
        ("other", false),
    ] {
        let pool = verified_pool(1, &[("unit", None)]);
        let mut done = job(1, "unit", "completed");
        done.runner_name = Some(name.into());
        let (pool, observed) = running(pool, vec![done], &[]);
        let reason = says(&at_work(&pool, &observed)).1;
        assert_eq!(reason == "Verified", ours, "{name}: {reason}");
    }
}

fn waiting(seconds: i64) -> RunJob {
    RunJob {
        created_at: Some(ago(seconds)),
        ..job(1, "unit", "queued")
    }
}

#[test]
fn a_job_that_nobody_picks_up_gets_its_cause() {
    // A label that the pool lacks
    let mut other = waiting(31);
    other.labels.push("a100".into());
    let (pool, observed) = running(verified_pool(1, &[("unit", None)]), vec![other], &[]);
    let (status, reason, message) = says(&at_work(&pool, &observed));
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "JobNotPickedUp")
    );
    assert!(message.contains("lacks a100"), "{message}");

    // Nobody online
    let (pool, mut observed) = running(verified_pool(1, &[("unit", None)]), vec![waiting(31)], &[]);
    observed.runners.clear();
    assert!(
        says(&at_work(&pool, &observed))
            .2
            .contains("no runner is online")
    );

    // A group
    let (mut pool, observed) = running(verified_pool(1, &[("unit", None)]), vec![waiting(31)], &[]);
    pool.spec_mut().runner_group = Some("gpus".into());
    assert!(says(&at_work(&pool, &observed)).2.contains("group gpus"));

    // Not yet
    let (pool, observed) = running(verified_pool(1, &[("unit", None)]), vec![waiting(29)], &[]);
    assert_eq!(says(&at_work(&pool, &observed)).1, "Running");
}

#[test]
fn who_was_late_by_our_clock_alone_was_not_late() {
    // Given a job that seems to wait for too long
    let (mut pool, observed) = running(verified_pool(1, &[("unit", None)]), vec![waiting(31)], &[]);
    let late = at_work(&pool, &observed);
    assert_eq!(says(&late).1, "JobNotPickedUp");
    pool.status.verification = late.status.verification;

    // When GitHub says that it was taken after so many seconds, or does not say when it was queued
    let after = |seconds: Option<i64>| {
        let mut done = job(1, "unit", "completed");
        done.created_at = done
            .started_at
            .zip(seconds)
            .map(|(at, s)| at - SignedDuration::from_secs(s));
        let mut observed = observed.clone();
        observed.verification.jobs = vec![done];
        says(&at_work(&pool, &observed)).1
    };
    // Then that is what counts
    assert_eq!(after(Some(8)), "Verified");
    assert_eq!(after(Some(31)), "JobNotPickedUp");
    assert_eq!(after(None), "JobNotPickedUp");
}

#[test]
fn a_job_waits_for_the_others_of_its_run_without_blame() {
    // One runner, busy with another job of the run
    let pool = verified_pool(1, &[("unit", None), ("next", None)]);
    let jobs = vec![job(2, "next", "in_progress"), waiting(300)];
    let (pool, observed) = running(pool, jobs, &[]);
    assert_eq!(says(&at_work(&pool, &observed)).1, "Running");
    // Given back a moment ago
    let pool = verified_pool(1, &[("unit", None), ("next", None)]);
    let jobs = vec![job(2, "next", "completed"), waiting(300)];
    let (pool, observed) = running(pool, jobs, &[]);
    assert_eq!(says(&at_work(&pool, &observed)).1, "Running");
}

#[test]
fn a_held_run_is_nobodys_fault() {
    let mut held = waiting(300);
    held.status = "pending".into();
    let (pool, observed) = running(verified_pool(1, &[("unit", None)]), vec![held], &[]);
    let (status, reason, _) = says(&at_work(&pool, &observed));
    assert_eq!(status, "Unknown");
    assert_eq!(reason, "HeldByConcurrencyGroup");
}

#[test]
fn names_of_reusable_workflows_and_of_a_matrix_are_found() {
    let jobs = vec![
        job(1, "cuda / unit", "completed"),
        job(2, "unit-2", "completed"),
        job(3, "fuzz (12.4)", "completed"),
        job(4, "fuzz (13.0)", "completed"),
    ];
    let ids = |name| named(name, &jobs).iter().map(|j| j.id).collect::<Vec<_>>();
    assert_eq!(ids("unit"), [1]);
    assert_eq!(ids("fuzz"), [3, 4]);
    assert_eq!(ids("unit-2"), [2]);
    assert!(ids("absent").is_empty());
}

#[test]
fn it_runs_again_for_a_change_or_on_request_and_never_beside_another() {
    let pool = verified_pool(1, &[("unit", None)]);
    let (mut pool, observed) = running(pool, vec![job(1, "unit", "completed")], &[]);
    pool.status = at_work(&pool, &observed).status;
    let again = |pool: &Pool, observed: &Observed| {
        crate::plan(pool, observed, NOW + SignedDuration::from_secs(9))
            .intent
            .is_some()
    };
    let quiet = idle(&pool);
    assert!(!again(&pool, &quiet));

    let mut asked = pool.clone();
    asked.verify_asked = Some("please".into());
    assert!(again(&asked, &quiet));

    let mut hardware = quiet.clone();
    hardware.runners[0].hardware = Some(crate::fixture::hardware("H100", "590"));
    assert!(again(&pool, &hardware));

    let mut changed = pool.clone();
    changed.spec_mut().verify.as_mut().unwrap().git_ref = "main".into();
    assert!(again(&changed, &quiet));

    let mut scheduled = pool.clone();
    scheduled.spec_mut().verify_every = Some(SignedDuration::from_secs(5));
    assert!(again(&scheduled, &quiet));

    let mut busy = asked;
    busy.status.verification.as_mut().unwrap().state = VerificationState::Running.into();
    assert!(!again(&busy, &quiet));
}

#[test]
fn a_refusal_is_told_and_takes_no_runner_away() {
    let mut pool = verified_pool(1, &[("unit", None)]);
    let mut observed = idle(&pool);
    pool.status = at_work(&pool, &observed).status;
    observed.verification.since = Some(NOW);
    observed.verification.dispatch = Dispatch::Refused {
        reason: Reason::RefNotFound,
        message: "No ref found for: dev".into(),
    };
    let plan = at_work(&pool, &observed);
    assert_eq!(says(&plan).1, "RefNotFound");
    assert!(plan.actions.is_empty(), "{:?}", plan.actions);
}

#[test]
fn a_run_that_is_to_prove_nothing_any_more_is_cancelled_unless_a_job_has_begun() {
    let edits: [fn(&mut Pool); 3] = [
        |pool| pool.deleting = Some(ago(1)),
        |pool| pool.spec_mut().verify = None,
        |pool| pool.spec_mut().repository = Repository::new("acme/gadgets"),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let cancels = |status: &str, phase: RunnerPhase| {
            // Given a run of the pool's, and that the pool is deleted, or asks for none there any more
            let pool = verified_pool(1, &[("cuda", None)]);
            let (mut pool, mut observed) = running(pool, vec![job(1, "cuda", status)], &[]);
            for runner in &mut observed.runners {
                runner.phase = phase;
            }
            edit(&mut pool);
            let planned = at_work(&pool, &observed);
            let mut actions = planned.actions.iter();
            let repository = Repository::new("acme/widgets").unwrap();
            let cancels = actions.any(|a| *a == Action::CancelRun(repository.clone(), 7));
            // Then that is decided once
            pool.status = planned.status;
            let planned = at_work(&pool, &observed);
            let again = |action: &Action| matches!(action, Action::CancelRun(..));
            assert!(!planned.actions.iter().any(again), "{number}");
            cancels
        };
        assert!(cancels("queued", RunnerPhase::Idle), "{number}");
        assert!(!cancels("in_progress", RunnerPhase::Busy), "{number}");
        assert!(!cancels("completed", RunnerPhase::Idle), "{number}");
        // What was read is older than what the pod shows
        assert!(!cancels("queued", RunnerPhase::Busy), "{number}");
    }
}

#[test]
fn a_workflow_whose_run_is_never_listed_is_not_started_for_ever() {
    let mut pool = verified_pool(1, &[]);
    let mut observed = idle(&pool);
    pool.status = crate::plan(&pool, &observed, ago(30)).status;
    observed.verification = VerificationFacts {
        since: Some(ago(30)),
        dispatch: Dispatch::Open,
        ..VerificationFacts::default()
    };
    let mut starts = 0;
    // When GitHub takes each start and lists no run
    for _ in 0..20 {
        let plan = crate::plan(&pool, &observed, NOW);
        let is_start = |action: &&Action| matches!(action, Action::DispatchWorkflow(_));
        let sent = plan.actions.iter().filter(is_start).count();
        starts += sent;
        observed.verification.times_sent += u32::try_from(sent).unwrap();
        pool.status = plan.status;
    }
    // Then it ends, and says so
    assert_eq!(starts, 5);
    let status = pool.status.verification.unwrap();
    assert_eq!(status.state, VerificationState::Failed);
    let said = status.message.unwrap();
    assert!(said.contains("lists no run"), "{said}");
}

#[test]
fn a_verification_in_a_word_of_another_version_is_judged_and_no_second_one_is_started() {
    let word = || cudarunner_crds::Word::Other("Paused".to_owned());
    // Given a verification whose state a newer operator wrote, and its run that goes on
    let jobs = |status| vec![job(1, "unit", status)];
    let (mut pool, observed) = running(
        verified_pool(1, &[("unit", None)]),
        jobs("in_progress"),
        &[],
    );
    pool.status.verification.as_mut().unwrap().state = word();
    // Then it is watched, and the word stays
    let plan = at_work(&pool, &observed);
    let status = plan.status.verification.as_ref().unwrap();
    assert_eq!((&status.state, plan.intent), (&word(), None));
    assert_eq!(says(&plan).1, "Running");
    // When the run is over, then it is judged as any other
    let (_, over) = running(verified_pool(1, &[("unit", None)]), jobs("completed"), &[]);
    let status = at_work(&pool, &over).status.verification.unwrap();
    assert_eq!(status.state, VerificationState::Succeeded);

    // Given one that has no run yet, then that is looked for, and started only where it was never sent
    let status = pool.status.verification.as_mut().unwrap();
    status.run_id = None;
    let mut unsent = observed;
    unsent.verification = VerificationFacts {
        since: Some(status.since.0),
        ..VerificationFacts::default()
    };
    let plan = at_work(&pool, &unsent);
    assert_eq!(plan.status.verification.unwrap().state, word());
    let starts = |action: &Action| matches!(action, Action::DispatchWorkflow(_));
    assert!(!plan.actions.iter().any(starts), "{:?}", plan.actions);
}
