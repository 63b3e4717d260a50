//! What shows that something else ended a job.

use super::*;
use crate::model::rerun::Cut;
use std::collections::BTreeMap;

/// Whether the job is blamed on its device.
fn is_blamed(change: impl FnOnce(&mut Observed), gate: Failure) -> bool {
    let mut pool = wishing(1);
    let mut observed = world(&pool, gate);
    change(&mut observed);
    step(&mut pool, &observed);
    !pool.status.reruns.is_empty()
}

#[test]
fn a_gate_speaks_of_the_job_that_ended_on_its_device_just_before_and_of_no_other() {
    let same = |_: &mut Observed| {};
    let at = |seconds| Failure {
        at: ago(seconds),
        ..broken()
    };
    assert!(is_blamed(same, broken()));
    assert!(
        !is_blamed(|o| o.runners.clear(), broken()),
        "a plain red job"
    );
    assert!(!is_blamed(same, at(61)), "the gate failed before");
    let long_ago = |o: &mut Observed| o.reruns.ended[0].at = ago(20 + 601);
    assert!(!is_blamed(long_ago, broken()), "too long before");
    let other = |o: &mut Observed| o.reruns.ended[0].devices = vec!["GPU-2".to_owned()];
    assert!(!is_blamed(other, broken()), "another device");
    let elsewhere = |o: &mut Observed| o.reruns.ended[0].node = "node-2".to_owned();
    assert!(!is_blamed(elsewhere, broken()), "another node");
    let own = |o: &mut Observed| o.runners[0].name = JOB.to_owned();
    assert!(!is_blamed(own, broken()), "the job's own pod says so");

    // Another job had the device meanwhile
    let later = |o: &mut Observed| {
        let mut other = ended();
        (other.runner, other.job.run.1, other.at) = ("pool-ccccc".to_owned(), 18, ago(30));
        o.reruns.ended.push(other);
    };
    let mut pool = wishing(1);
    let mut observed = world(&pool, broken());
    later(&mut observed);
    step(&mut pool, &observed);
    let blamed: Vec<i64> = pool.status.reruns.iter().map(|e| e.run_id).collect();
    assert_eq!(
        blamed,
        [18],
        "the last job on the device, and not the one before it"
    );
}

#[test]
fn each_of_many_gates_that_fail_at_once_speaks_of_its_job() {
    // Given a node of sixteen devices, each of which had a job and is broken now
    let mut pool = wishing(1);
    let gates = (0..16_u32).map(|n| {
        let device = Some(format!("GPU-{n}"));
        failed(
            &pool,
            &format!("pool-{n:05}"),
            Failure { device, ..broken() },
        )
    });
    let mut observed = observed(gates.collect());
    observed.nodes = Some((1..9).map(|n| node(&format!("node-{n}"))).collect());
    observed.reruns.ended = (0..16_u32)
        .map(|n| {
            let mut ended = ended();
            ended.runner = format!("pool-job{n:02}");
            ended.devices = vec![format!("GPU-{n}")];
            ended.job.run.1 = 100 + u64::from(n);
            ended
        })
        .collect();
    observed.reruns.passes = Some(passes(vec![]));
    // Then all of these jobs are run again, though the status lists ten failures
    step(&mut pool, &observed);
    assert_eq!(pool.status.reruns.len(), 16, "{:#?}", pool.status.reruns);
}

#[test]
fn a_gate_that_passed_in_between_clears_the_device_though_its_pod_is_gone() {
    let pass = |node: &str, devices: &[&str], seconds| Pass {
        node: node.to_owned(),
        devices: devices.iter().map(|&device| device.to_owned()).collect(),
        bound: ago(seconds),
    };
    let is_blamed =
        |known: Option<Passes>| is_blamed(|o: &mut Observed| o.reruns.passes = known, broken());
    for (what, pass, clears) in [
        ("the device", pass("node-1", &["GPU-1"], 40), true),
        ("another device", pass("node-1", &["GPU-2"], 40), false),
        ("another node", pass("node-2", &["GPU-1"], 40), false),
        ("perhaps the device", pass("node-1", &[], 40), true),
        (
            "before the job's end",
            pass("node-1", &["GPU-1"], 70),
            false,
        ),
        ("after the fault", pass("node-1", &["GPU-1"], 10), false),
    ] {
        assert_eq!(is_blamed(Some(passes(vec![pass]))), !clears, "{what}");
    }
    // Where nobody watched from the job's end on, a gate may have passed
    let since = |since| Passes {
        since,
        ..passes(vec![])
    };
    assert!(is_blamed(Some(since(ago(61)))));
    assert!(!is_blamed(Some(since(ago(60)))));
    assert!(!is_blamed(None));
}

#[test]
fn what_a_pools_settings_can_cause_proves_nothing() {
    let found = |class, code, name: &str| Failure {
        code,
        code_name: Some(name.to_owned()),
        ..Failure { class, ..broken() }
    };
    for (failure, proves) in [
        (
            found(Class::Device, Some(700), "CUDA_ERROR_ILLEGAL_ADDRESS"),
            true,
        ),
        (found(Class::Node, Some(999), "CUDA_ERROR_UNKNOWN"), true),
        (found(Class::Device, None, "Timeout"), false),
        (
            found(Class::Unsupported, Some(801), "CUDA_ERROR_NOT_SUPPORTED"),
            false,
        ),
        (
            found(Class::Config, Some(100), "CUDA_ERROR_NO_DEVICE"),
            false,
        ),
        (
            found(Class::Transient, Some(2), "CUDA_ERROR_OUT_OF_MEMORY"),
            false,
        ),
    ] {
        assert_eq!(is_blamed(|_| {}, failure.clone()), proves, "{failure:?}");
    }
    // Nor does the mark of a GPU that vanished: the job can write it
    let lost = Failure {
        reason: Reason::GpuLost,
        class: Class::Transient,
        ..broken()
    };
    assert!(!is_blamed(|_| {}, lost));
}

#[test]
fn a_fault_without_a_device_is_of_a_job_that_had_all_of_the_node() {
    for (offers, blamed) in [(1, true), (8, false)] {
        let only = |o: &mut Observed| {
            let offers = ("nvidia.com/gpu".to_owned(), offers);
            first_node(o).offers = [offers].into();
        };
        let failure = Failure {
            device: None,
            code: Some(999),
            ..gate_failure(Class::Node)
        };
        assert_eq!(is_blamed(only, failure), blamed, "{offers}");
    }
}

#[test]
fn what_another_pools_gate_found_counts_where_it_is_a_fact() {
    for (code, blamed) in [(Some(700), true), (None, false)] {
        let held = |o: &mut Observed| {
            o.runners.clear();
            let entry = serde_json::json!({
                "node": "node-1", "device": "GPU-1", "class": "device", "code": code, "failures": 1,
                "since": ago(20).to_string(),
            });
            o.quarantined = vec![Quarantined {
                pool: PoolKey {
                    namespace: "other".to_owned(),
                    name: "other".to_owned(),
                },
                entry: serde_json::from_value(entry).unwrap(),
            }];
        };
        assert_eq!(is_blamed(held, broken()), blamed, "{code:?}");
    }
}

/// What the status says of a runner's job.
fn lost(gone: Runner) -> Vec<String> {
    let mut pool = wishing(1);
    step(&mut pool, &observed(vec![gone]));
    let reruns = pool.status.reruns.iter();
    reruns.filter_map(|e| e.code_name.clone()).collect()
}

#[test]
fn a_job_goes_with_its_node_where_kubernetes_says_so() {
    let by = |reason: Reason| taken(&wishing(1), JOB, reason, 20);
    for (reason, is_lost) in [
        (Reason::Evicted, true),
        (Reason::NodeLost, true),
        (Reason::PodRejected, true),
        // Its container ended, or somebody deleted its pod
        (Reason::JobCutShort, false),
        (Reason::OutOfMemory, false),
        (Reason::GpuLost, false),
        (Reason::DeadlineExceeded, false),
    ] {
        let found = lost(by(reason));
        assert_eq!(
            found,
            is_lost.then(|| reason.word().to_owned()).as_slice(),
            "{reason}"
        );
    }
    let nameless = Runner {
        under_way: None,
        ..by(Reason::Evicted)
    };
    let heard = Runner {
        heard: Some(Box::new(named())),
        ..nameless.clone()
    };
    assert!(lost(nameless).is_empty(), "nobody says which job it was");
    assert_eq!(lost(heard), ["Evicted"], "GitHub says which job it was");
    // A job can fill its node's disk
    let mut by_use = by(Reason::Evicted);
    by_use.disruption = Some(Disruption {
        by_own_use: true,
        ..evicted(20)
    });
    assert!(lost(by_use).is_empty());
}

#[test]
fn a_pod_that_proves_something_stays_until_the_status_has_its_job() {
    // Given a status that tells that the runner failed, and nothing of its job
    let gone = || taken(&wishing(1), JOB, Reason::Evicted, 20);
    let mut pool = wishing(1);
    let wish = pool.spec_mut().rerun.take();
    step(&mut pool, &observed(vec![gone()]));
    pool.spec_mut().rerun = wish;
    let removes = |plan: &Plan| {
        let mut actions = plan.actions.iter();
        actions.any(|action| matches!(action, Action::Drain(pod) if pod.name == JOB))
    };
    // Then the pod goes when it has that, too
    assert!(!removes(&step(&mut pool, &observed(vec![gone()]))));
    assert!(removes(&step(&mut pool, &observed(vec![gone()]))));
}

#[test]
fn a_job_that_ended_while_its_pod_was_evicted_was_ended_by_that() {
    let done = |seconds: Option<i64>| {
        let done = EndedJob {
            job: named(),
            started: None,
            finished: ago(30),
            refused: None,
            gpus: vec![],
            exceeded_minutes: None,
        };
        Runner {
            end: Some(End::JobDone(named())),
            done: Some(Box::new(done)),
            under_way: None,
            disruption: seconds.map(evicted),
            ..taken(&wishing(1), JOB, Reason::Evicted, 20)
        }
    };
    assert_eq!(lost(done(Some(32))), ["Evicted"]);
    assert!(lost(done(Some(28))).is_empty(), "it had ended before");
    assert!(lost(done(None)).is_empty(), "a plain end");
}

#[test]
fn a_job_ends_with_its_node_where_that_is_back_in_another_boot() {
    for (what, boot, seconds, lost) in [
        ("rebooted", Some("boot-2"), 29, true),
        ("the same boot", Some("boot-1"), 29, false),
        ("a node that nobody sees", None, 29, false),
        ("rebooted long after", Some("boot-2"), 30, false),
    ] {
        // Given an agent that ended in the middle of its job, and what its node tells
        let mut pool = wishing(1);
        let mut observed = observed(vec![]);
        let cut = Cut {
            boot: "boot-1".to_owned(),
            seen: ago(seconds),
        };
        observed.reruns.ended = vec![Ended {
            cut: Some(cut),
            ..ended()
        }];
        let node = "node-1".to_owned();
        observed.reruns.boots = boot
            .map(|boot| (node, boot.to_owned()))
            .into_iter()
            .collect();
        let plan = step(&mut pool, &observed);
        // Then it was the reboot, where that is told soon; until then it is looked at again and again
        let causes: Vec<_> = pool
            .status
            .reruns
            .iter()
            .map(|e| e.cause.known().unwrap())
            .collect();
        let expected = lost.then_some(RerunCause::NodeLoss);
        assert_eq!(causes, expected.as_slice(), "{what}");
        let waits = plan.wake.is_some_and(|wake| wake <= AGAIN);
        assert_eq!(waits, seconds < 30, "{what}");
        // And a pool that does not care runs nothing again
        pool.status.reruns.clear();
        let wish = pool.spec_mut().rerun.as_mut().unwrap();
        wish.on_node_loss = false;
        step(&mut pool, &observed);
        assert!(pool.status.reruns.is_empty(), "{what}");
    }
}

#[test]
fn only_an_agent_of_whose_end_nobody_says_why_may_have_ended_with_its_node() {
    let pool = wishing(1);
    let boots = BTreeMap::from([(JOB.to_owned(), "boot-1".to_owned())]);
    let cut = |reason: Reason, boots: &BTreeMap<String, String>| {
        let mut gone = taken(&pool, JOB, reason, 20);
        (gone.uid, gone.devices) = (JOB.to_owned(), vec!["GPU-1".to_owned()]);
        let known = remember(&pool, [&gone].into_iter(), boots, vec![], NOW);
        let again = remember(
            &pool,
            [&gone].into_iter(),
            boots,
            known.clone(),
            NOW.after(AGAIN),
        );
        assert_eq!(again, known, "it is seen once");
        known[0].cut.clone()
    };
    let seen = Cut {
        boot: "boot-1".to_owned(),
        seen: NOW,
    };
    for (reason, is_cut) in [
        (Reason::JobCutShort, true),
        (Reason::EndedWithoutJob, true),
        (Reason::AgentEnded, true),
        (Reason::OutOfMemory, false),
        (Reason::DeadlineExceeded, false),
        (Reason::GpuLost, false),
        (Reason::Evicted, false),
    ] {
        let expected = is_cut.then(|| seen.clone());
        assert_eq!(cut(reason, &boots), expected, "{reason}");
    }
    assert_eq!(
        cut(Reason::JobCutShort, &BTreeMap::new()),
        None,
        "nobody saw it run"
    );
}

#[test]
fn the_last_job_of_a_runner_is_the_one_that_ended_with_it() {
    // Given a persistent runner that ended in its second job
    let pool = wishing(1);
    let mut gone = taken(&pool, JOB, Reason::AgentEnded, 20);
    gone.devices = vec!["GPU-1".to_owned()];
    gone.done = Some(Box::new(EndedJob {
        job: Job {
            run: "16".to_owned(),
            ..named()
        },
        started: None,
        finished: ago(60),
        refused: None,
        gpus: vec![],
        exceeded_minutes: None,
    }));
    let known = remember(&pool, [&gone].into_iter(), &BTreeMap::new(), vec![], NOW);
    let runs: Vec<u64> = known.iter().map(|job| job.job.run.1).collect();
    assert_eq!((runs, known[0].at), (vec![17], ago(20)));
}

#[test]
fn jobs_are_remembered_for_a_gate_that_may_yet_fail() {
    let pool = wishing(1);
    let none = BTreeMap::new();
    let mut done = runner(&pool, JOB, RunnerPhase::Finished);
    done.devices = vec!["GPU-1".to_owned()];
    done.done = Some(Box::new(EndedJob {
        job: named(),
        started: None,
        finished: ago(60),
        refused: None,
        gpus: vec![],
        exceeded_minutes: None,
    }));
    let known = remember(&pool, [&done].into_iter(), &none, vec![], NOW);
    assert_eq!(known, [ended()]);
    // Though its pod has gone
    let known = remember(&pool, [].into_iter(), &none, known, NOW);
    assert_eq!(known, [ended()]);
    assert_eq!(
        remember(&pool, [].into_iter(), &none, known, NOW.after(HOUR)),
        []
    );
    // And after a restart, those that are in the status
    let mut observed = observed(vec![done]);
    observed.reruns.ended = vec![];
    let mut pool = pool;
    step(&mut pool, &observed);
    assert_eq!(
        remember(&pool, [].into_iter(), &none, vec![], NOW),
        [ended()]
    );
}

#[test]
fn a_job_of_an_address_that_the_pool_has_left_is_run_again_there_and_not_at_its_namesake() {
    let run = |url: &str| {
        // Given a job whose node went away, on a runner of before the address changed
        let mut pool = wishing(1);
        pool.status.registered_at = Some(url.to_owned());
        let mut runner = failed(&pool, JOB, gate_failure(Class::Node));
        let Some(End::Failed(failure)) = &mut runner.end else {
            unreachable!()
        };
        failure.reason = Reason::NodeLost;
        runner.url = Some(url.to_owned());
        runner.under_way = Some(Box::new(Job {
            job: "train".to_owned(),
            run: "17".to_owned(),
            attempt: "1".to_owned(),
            ..Job::default()
        }));
        step(&mut pool, &observed(vec![runner]));
        let blamed = pool.status.reruns.first();
        blamed.map(|entry| (entry.repository.clone(), entry.url.clone().unwrap()))
    };
    // Then it is the job of the first repository
    let page = "https://github.com/acme/before/actions/runs/17";
    assert_eq!(
        run("https://github.com/acme/before"),
        Some(("acme/before".to_owned(), page.to_owned()))
    );
    // And at another server, which the credentials are not for, nothing is asked
    assert_eq!(run("https://ghe.example.com/acme/widgets"), None);
}

#[test]
fn a_job_that_the_pool_did_not_let_in_is_blamed_on_nothing() {
    // Given a runner whose job ended before its first step, by the pool's own word
    let mut pool = wishing(1);
    let mut done = runner(&pool, JOB, RunnerPhase::Finished);
    done.devices = vec!["GPU-1".to_owned()];
    done.heard = Some(Box::new(named()));
    done.done = Some(Box::new(EndedJob {
        job: named(),
        started: None,
        finished: ago(60),
        refused: Some("pull requests from forks are not allowed".to_owned()),
        gpus: vec![],
        exceeded_minutes: None,
    }));
    let none = BTreeMap::new();
    // Then nothing is remembered of it for a gate that may yet fail
    assert_eq!(remember(&pool, [&done].into_iter(), &none, vec![], NOW), []);
    // ... after a restart neither
    let mut observed = observed(vec![done.clone()]);
    step(&mut pool, &observed);
    assert_eq!(pool.status.last_jobs.len(), 1);
    assert_eq!(remember(&pool, [].into_iter(), &none, vec![], NOW), []);
    // And a drain of its node did not end it
    done.end = Some(End::JobDone(named()));
    done.disruption = Some(evicted(61));
    observed.runners = vec![done];
    step(&mut pool, &observed);
    assert!(pool.status.reruns.is_empty(), "{:?}", pool.status.reruns);
}
