//! Given what waits, then so many runners are wanted, and so many jobs may come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarunner_crds::RunnerPhase::*;
use cudarunner_crds::{Arch, ScalingSource};
use proptest::prelude::*;

use super::*;
use crate::fixture::{NOW, ago, first_node, gate_failure, observed, runner, scaled};
use crate::model::github::{QueuedJob, Statistics};
use crate::model::runner::{EndedJob, Job, Waiting};
use crate::model::scale_set::{Heard, Listening, ScaleSetFacts, Trouble};
use crate::reason::Reason;
use crate::shares::vain::Vain;
use crate::shares::{Member, Share, shares};
use crate::{Action, Plan, Queue, health, plan};

fn pool(source: ScalingSource, min: i32, max: i32) -> Pool {
    let mut pool = Pool::read(&scaled(source, min, max), false);
    pool.status.observed_generation = Some(1);
    pool
}

/// What GitHub says of a scale set that may have `capacity` jobs.
fn heard(capacity: usize, available: usize, assigned: usize) -> ScaleSetFacts {
    ScaleSetFacts {
        listening: Some(Listening {
            set: 7,
            capacity,
            heard: Heard {
                is_quiet: false,
                number: 1,
                is_settled: true,
                is_lost: false,
                session: Some("session".to_owned()),
                opened: Some(ago(100)),
                statistics: Some(Statistics {
                    available,
                    assigned,
                    running: 0,
                }),
                trouble: None,
                oldest: None,
                taken_back: None,
            },
        }),
        ..ScaleSetFacts::default()
    }
}

#[test]
fn what_is_on_its_way_is_kept_for_a_job_that_was_taken_back() {
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let with = |phases: &[cudarunner_crds::RunnerPhase]| {
        let runners = phases.iter().enumerate();
        observed(
            runners
                .map(|(n, phase)| runner(&pool, &format!("pool-aaaa{n}"), *phase))
                .collect(),
        )
    };
    for phase in [Unscheduled, Preparing, Gated, Starting] {
        for (available, awaited_until, removed) in [
            (0, None, 1),
            (1, None, 0),
            (0, Some(NOW), 0),
            (1, Some(NOW), 0),
        ] {
            let mut seen = with(&[phase]);
            seen.scale_set = Some(ScaleSetFacts {
                awaited_until,
                ..heard(8, available, 0)
            });
            let found = names(&plan(&pool, &seen, NOW));
            assert_eq!(
                found,
                (0, removed),
                "{phase:?} {available} {awaited_until:?}"
            );
        }
    }
    // Those that wait for nothing go, and no more than there may be stays
    let mut seen = with(&[Idle, Idle]);
    seen.scale_set = Some(heard(8, 1, 0));
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 2));
    let mut seen = with(&[Preparing; 10]);
    seen.scale_set = Some(heard(8, 1, 0));
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 2));
}

#[test]
fn a_job_that_no_runner_had_is_taken_back_and_one_that_ended_is_not() {
    let at = |assigned| {
        Some(Statistics {
            assigned,
            ..Statistics::default()
        })
    };
    for (before, now, ended, is_taken_back) in [
        (2, 1, 0, true),
        (2, 1, 1, false),
        (2, 2, 0, false),
        (1, 2, 0, false),
        (3, 1, 1, true),
    ] {
        let mut heard = Heard::default();
        heard.stands(at(before), 0, ago(10));
        heard.stands(None, 0, ago(5));
        heard.stands(at(now), ended, NOW);
        assert_eq!(
            heard.taken_back.is_some(),
            is_taken_back,
            "{before} {now} {ended}"
        );
    }
}

fn names(plan: &Plan) -> (usize, usize) {
    let count = |wanted: &dyn Fn(&&Action) -> bool| plan.actions.iter().filter(wanted).count();
    (
        count(&|a| matches!(a, Action::CreatePod(_))),
        count(&|a| matches!(a, Action::DeletePod(_) | Action::Drain(_))),
    )
}

#[test]
fn one_runner_for_each_job_beside_those_that_wait_for_one() {
    let pool = pool(ScalingSource::ScaleSet, 1, 8);
    let mut seen = observed(vec![runner(&pool, "pool-aaaaa", Idle)]);
    for (assigned, wanted) in [(0, 0), (3, 3), (20, 7)] {
        seen.scale_set = Some(heard(8, 0, assigned));
        assert_eq!(names(&plan(&pool, &seen, NOW)), (wanted, 0), "{assigned}");
    }
}

#[test]
fn until_something_is_heard_nothing_comes_and_nothing_goes() {
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let idle = || ["pool-aaaaa", "pool-bbbbb"].map(|name| runner(&pool, name, Idle));
    let mut seen = observed(idle().to_vec());
    seen.scale_set = Some(ScaleSetFacts::default());
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 0));
    let mut opened = heard(8, 0, 0);
    if let Some(listening) = &mut opened.listening {
        listening.heard.is_settled = false;
    }
    seen.scale_set = Some(opened);
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 0));
    seen.scale_set = Some(heard(8, 0, 0));
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 2));
}

#[test]
fn a_job_that_has_ended_here_is_not_counted_until_github_says_so() {
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let mut seen = observed(vec![runner(&pool, "pool-aaaaa", Busy)]);
    // GitHub counts two jobs, and one of them has just ended here
    seen.scale_set = Some(ScaleSetFacts {
        ended: 1,
        ..heard(8, 0, 2)
    });
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 0));
}

#[test]
fn a_job_that_github_knows_to_be_over_costs_no_idle_runner() {
    let pool = pool(ScalingSource::ScaleSet, 1, 8);
    let mut seen = observed(vec![
        runner(&pool, "pool-aaaaa", Busy),
        runner(&pool, "pool-bbbbb", Idle),
    ]);
    let mut view = heard(8, 0, 0);
    view.finishing.insert("pool-aaaaa".to_owned());
    seen.scale_set = Some(view);
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 0));
}

#[test]
fn runners_that_are_about_to_end_take_up_their_place() {
    let pool = pool(ScalingSource::ScaleSet, 0, 2);
    let busy = ["pool-aaaaa", "pool-bbbbb"].map(|name| runner(&pool, name, Busy));
    let mut seen = observed(busy.to_vec());
    let mut view = heard(2, 0, 2);
    view.finishing.insert("pool-aaaaa".to_owned());
    seen.scale_set = Some(view);
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 0), "two at most");
}

#[test]
fn what_was_heard_before_the_line_went_dead_is_no_guide() {
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let mut seen = observed(vec![runner(&pool, "pool-aaaaa", Idle)]);
    let mut view = heard(8, 0, 4);
    if let Some(listening) = &mut view.listening {
        listening.heard.trouble = Some(Trouble {
            reason: Reason::ScaleSetUnavailable,
            message: "down".to_owned(),
        });
    }
    seen.scale_set = Some(view);
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(names(&planned), (0, 0));
    let online = planned.status.conditions.iter();
    let online = online.filter(|c| c.reason == "ScaleSetUnavailable");
    assert!(online.count() >= 2, "and it is said");
}

#[test]
fn jobs_that_wait_for_more_gpus_have_pods_that_wait_for_nodes() {
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let mut seen = observed(vec![runner(&pool, "pool-aaaaa", Busy)]);
    seen.scale_set = Some(heard(1, 3, 1));
    assert_eq!(names(&plan(&pool, &seen, NOW)), (3, 0));
    // While there is room, what waits is assigned in a moment, here or to another scale set with these labels
    seen.scale_set = Some(heard(8, 3, 1));
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 0));
}

fn capacity_of(pool: &Pool, seen: &Observed) -> usize {
    capacity_beside(pool, seen, 0)
}

/// The capacity of a pool that shares with nobody, while pods that are no runners hold so many GPUs of the first node.
fn capacity_beside(pool: &Pool, seen: &Observed, others: u32) -> usize {
    let spec = pool.spec.as_ref().unwrap();
    let mut seen = seen.clone();
    let held = |r: &&Runner| r.node.is_some();
    let held = seen.runners.iter().filter(held);
    let member = Member {
        key: pool.key.clone(),
        needs: spec.needs.clone().unwrap(),
        claim: Claim {
            wanted: 0,
            most: spec.size.max,
            is_full: false,
            avoids: BTreeSet::new(),
        },
        held: held.clone().map(|r| (r.node.clone().unwrap(), 1)).collect(),
        runners: held.count(),
        ending: 0,
        pending: 0,
        served: None,
        is_stuck: false,
        before: Arc::default(),
    };
    let others = [(
        "node-1".to_owned(),
        [("nvidia.com/gpu".to_owned(), others)].into(),
    )]
    .into();
    let nodes = seen.nodes.clone().unwrap_or_default();
    let shares = shares(&nodes, &others, &[member], &BTreeMap::new(), NOW);
    seen.share = shares.get(&pool.key).cloned().map(Arc::new);
    capacity(spec, &seen, &health::assess(pool, &seen, NOW), NOW).jobs
}

#[test]
fn what_can_run_may_come() {
    let many = pool(ScalingSource::ScaleSet, 0, 20);
    let few = pool(ScalingSource::ScaleSet, 0, 4);
    let mut seen = observed(vec![]);
    assert_eq!(capacity_of(&many, &seen), 8, "the node has eight GPUs");
    assert_eq!(capacity_of(&few, &seen), 4, "the pool has four runners");

    first_node(&mut seen).is_cordoned = true;
    assert_eq!(capacity_of(&many, &seen), 20, "a node may come");
    first_node(&mut seen).is_cordoned = false;

    // What runs on a node that takes no more is beside the room on others
    let mut other = observed(vec![]);
    first_node(&mut other).is_cordoned = true;
    other
        .nodes
        .as_mut()
        .unwrap()
        .push(crate::fixture::node("node-2"));
    other.runners = vec![runner(&many, "pool-aaaaa", Busy)];
    assert_eq!(
        capacity_of(&many, &other),
        9,
        "eight on the other, one here"
    );

    // What other pods hold is not for this one, and neither is what the scheduler finds taken
    assert_eq!(capacity_beside(&many, &observed(vec![]), 5), 3);
    assert_eq!(capacity_beside(&many, &observed(vec![]), 50), 0);
    let (busy, stuck) = (
        runner(&many, "pool-aaaaa", Busy),
        runner(&many, "pool-bbbbb", Unscheduled),
    );
    assert_eq!(capacity_of(&many, &observed(vec![busy, stuck])), 1);

    // A node that is not ready, or that the template does not select, does not count; and where none is left, one may come
    first_node(&mut seen).ready_since = None;
    assert_eq!(capacity_of(&many, &seen), 20);

    // Without a view of nodes, a pod that waits shows that there is no room
    seen.nodes = None;
    seen.runners = vec![
        runner(&many, "pool-aaaaa", Busy),
        runner(&many, "pool-bbbbb", Unscheduled),
    ];
    assert_eq!(capacity_of(&many, &seen), 1);
}

#[test]
fn a_selector_leaves_nodes_out() {
    let mut resource = scaled(ScalingSource::ScaleSet, 0, 20);
    resource.spec.template = Some(serde_json::json!(
        {"spec": {"nodeSelector": {"zone": "a"}, "containers": []}}
    ));
    let pool = Pool::read(&resource, false);
    let mut seen = observed(vec![]);
    assert_eq!(capacity_of(&pool, &seen), 20, "a node may come");
    first_node(&mut seen)
        .labels
        .insert("zone".into(), "a".into());
    assert_eq!(capacity_of(&pool, &seen), 8);
}

const GATE: &str = "kueue.x-k8s.io/admission";

/// What a scheduler says of a pod that it has not found a node for.
fn waits(runner: &mut Runner, reason: &str, message: &str) {
    runner.waiting = Some(Waiting {
        reason: reason.into(),
        message: message.to_owned(),
        container: None,
        image: None,
    });
}

#[test]
fn where_others_come_there_are_pods_for_the_share_and_one_more_in_turn() {
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let shared = |runners, is_next| Share {
        runners,
        placed: 1,
        is_contended: true,
        is_next,
        kept: BTreeSet::from(["node-9".to_owned()]),
        ..Share::default()
    };
    // Given a runner with a job, and four jobs that wait
    for (share, made) in [
        (shared(1, false), 0),
        (shared(1, true), 1),
        (shared(3, false), 2),
        (
            Share {
                is_contended: false,
                ..shared(1, false)
            },
            4,
        ),
    ] {
        let mut seen = observed(vec![runner(&pool, "pool-aaaaa", Busy)]);
        seen.scale_set = Some(heard(8, 0, 5));
        seen.share = Some(Arc::new(share));
        let planned = plan(&pool, &seen, NOW);
        assert_eq!(names(&planned), (made, 0), "{:?}", seen.share);
        // The large runner's node is left to it, where there is another
        let shuns = planned.actions.iter().all(|action| match action {
            Action::CreatePod(new) => new.shuns.contains("node-9"),
            _ => true,
        });
        assert!(shuns);
        assert_eq!(planned.claim.wanted, 5, "what is wanted stays");
    }
    // Pods that were made while nobody else came go, the newest first, and none that has a node
    let waiting = ["pool-bbbbb", "pool-ccccc"].map(|name| runner(&pool, name, Unscheduled));
    let mut seen = observed(vec![runner(&pool, "pool-aaaaa", Busy)]);
    seen.runners.extend(waiting);
    seen.scale_set = Some(heard(8, 0, 3));
    seen.share = Some(Arc::new(shared(1, true)));
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 1));
    // What waits for something else is in nobody's way
    for runner in &mut seen.runners[1..] {
        waits(
            runner,
            "Unschedulable",
            "0/1 nodes are available: 1 Insufficient cpu.",
        );
    }
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 0));
}

#[test]
fn what_a_pool_claims_does_not_hang_on_what_it_is_given() {
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let mut claims = BTreeSet::new();
    for capacity in 0..8 {
        let mut seen = observed(vec![]);
        seen.scale_set = Some(heard(capacity, 2, 0));
        seen.share = Some(Arc::new(Share {
            runners: capacity,
            ..Share::default()
        }));
        let claim = plan(&pool, &seen, NOW).claim;
        claims.insert((claim.wanted, claim.most));
    }
    assert_eq!(claims, BTreeSet::from([(2, 8)]));
}

#[test]
fn a_pool_claims_no_gpus_that_it_cannot_use() {
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let mut seen = observed(vec![
        runner(&pool, "pool-aaaaa", Busy),
        runner(&pool, "pool-bbbbb", Unscheduled),
    ]);
    seen.scale_set = Some(heard(8, 0, 4));
    let claimed = |seen: &Observed| {
        let claim = plan(&pool, seen, NOW).claim;
        (claim.wanted, claim.most)
    };
    let taints = "1 node(s) had untolerated taint {team: a}, ".repeat(20);
    let cut = format!("0/21 nodes are available: {taints}9 Insufficient nvidia.com/gpu.");
    let cut = gate_report::clean(&cut, 400);
    for (reason, message, wanted) in [
        (
            "Unschedulable",
            "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            (4, 8),
        ),
        (
            "Unschedulable",
            "0/1 nodes are available: 1 Insufficient cpu.",
            (1, 1),
        ),
        // The GPUs come after the taints, where the message was cut
        ("Unschedulable", cut.as_str(), (4, 8)),
        ("SchedulingGated", GATE, (1, 1)),
    ] {
        waits(&mut seen.runners[1], reason, message);
        assert_eq!(claimed(&seen), wanted, "{message}");
    }
    // So it is where the scheduler says that GPUs are missing, on other nodes, and has left alone those that were free
    waits(
        &mut seen.runners[1],
        "Unschedulable",
        "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 2 Insufficient cpu.",
    );
    seen.share = Some(Arc::new(Share {
        vain: Vain {
            since: None,
            until: Some(NOW + SignedDuration::from_secs(1)),
            ..Vain::default()
        },
        ..Share::default()
    }));
    assert_eq!(claimed(&seen), (1, 1));
    seen.share = None;
    assert_eq!(claimed(&seen), (4, 8));
    // And what a gate holds is no room that is missing, and none that is there
    waits(&mut seen.runners[1], "SchedulingGated", GATE);
    let found = plan(&pool, &seen, NOW).capacity.unwrap();
    assert_eq!((found.jobs, found.limit), (1, Limit::SchedulingGates));
    assert_eq!(names(&plan(&pool, &seen, NOW)).1, 0, "it is not taken out");
    seen.access = Access::Unchecked;
    assert_eq!(claimed(&seen), (1, 1));
}

#[test]
fn a_pool_whose_pods_are_refused_claims_what_it_was_given_in_vain_no_more() {
    // Given a pool that has a runner and wants four, and whose next pod a quota refuses
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let mut seen = observed(vec![runner(&pool, "pool-aaaaa", Busy)]);
    seen.scale_set = Some(heard(8, 0, 4));
    seen.pod_refused = Some("exceeded quota: gpus".to_owned());
    let wanted = |seen: &Observed| plan(&pool, seen, NOW).claim.wanted;
    // Then it claims the others all the same, until they were idle for it
    assert_eq!(wanted(&seen), 4);
    seen.share = Some(Arc::new(Share {
        vain: Vain {
            until: Some(NOW + SignedDuration::from_secs(1)),
            ..Vain::default()
        },
        ..Share::default()
    }));
    assert_eq!(wanted(&seen), 1);
    // And when a runner of those that it had has ended, then it claims that one's GPU for the next
    let mut share = Share::clone(seen.share.as_ref().unwrap());
    share.vain.had = 2;
    seen.share = Some(Arc::new(share));
    assert_eq!(wanted(&seen), 2);
}

#[test]
fn what_a_pool_would_have_is_in_its_status_where_other_operators_share() {
    // Given a scale set with two jobs, and one that was offered to nobody
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let mut seen = observed(vec![]);
    seen.scale_set = Some(heard(2, 1, 2));
    for (is_beside, demand) in [(true, Some((3, 8))), (false, None)] {
        seen.share = Some(Arc::new(Share {
            is_beside,
            ..Share::default()
        }));
        let told = plan(&pool, &seen, NOW).status.demand;
        assert_eq!(told.map(|d| (d.wanted, d.most)), demand);
    }
}

#[test]
fn nodes_of_another_architecture_are_left_out() {
    let mut both = observed(vec![]);
    let mut arm = crate::NodeFacts::clone(&crate::fixture::node("node-2"));
    let arch = ("kubernetes.io/arch".to_owned(), "arm64".to_owned());
    arm.labels.extend([arch]);
    arm.offers.insert("nvidia.com/gpu".to_owned(), 3);
    both.nodes.as_mut().unwrap().push(Arc::new(arm));
    for (arch, jobs) in [(Arch::Amd64, 8), (Arch::Arm64, 3)] {
        let mut resource = scaled(ScalingSource::ScaleSet, 0, 20);
        resource.spec.arch = arch;
        let mut pool = Pool::read(&resource, false);
        pool.status.observed_generation = Some(1);
        assert_eq!(capacity_of(&pool, &both), jobs, "{arch}");
    }
}

#[test]
fn a_pool_that_pauses_takes_what_is_online() {
    let pool = pool(ScalingSource::ScaleSet, 0, 8);
    let mut failed = runner(&pool, "pool-ccccc", Failed);
    failed.end = Some(crate::model::runner::End::Failed(gate_failure(
        gate_report::Class::Transient,
    )));
    failed.since = ago(1);
    if let Some(crate::model::runner::End::Failed(failure)) = &mut failed.end {
        failure.at = ago(1);
    }
    let mut busy = runner(&pool, "pool-aaaaa", Busy);
    busy.since = ago(100);
    let seen = observed(vec![failed, busy]);
    assert_eq!(capacity_of(&pool, &seen), 1);
}

fn queue(jobs: usize, at: Timestamp) -> Arc<Queue> {
    let job = QueuedJob {
        run: 1,
        name: "train".to_owned(),
        created_at: Some(ago(60)),
        labels: vec!["self-hosted".to_owned(), "cuda".to_owned()],
        ..QueuedJob::default()
    };
    let other = QueuedJob {
        labels: vec!["ubuntu-latest".to_owned()],
        ..job.clone()
    };
    let mut all = vec![job; jobs];
    all.push(other);
    Arc::new(Queue {
        at,
        asked: None,
        jobs: Ok(Some(all.into())),
        registered: Some([].into()),
        shut_out: None,
    })
}

#[test]
fn the_queue_as_it_is_read_asks_for_runners_too() {
    let pool = pool(ScalingSource::Poll, 0, 8);
    let mut seen = observed(vec![runner(&pool, "pool-aaaaa", Busy)]);
    assert_eq!(names(&plan(&pool, &seen, NOW)), (0, 0), "not read yet");

    // Two jobs wait since the busy one was picked up
    seen.queue = Some(queue(2, ago(10)));
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(names(&planned), (2, 0));
    assert!(planned.wake.is_some_and(|wake| wake <= POLL));
    let mut refused = seen.clone();
    refused.queue = Some(queue(2, ago(300)));
    refused.ask_again = Some(NOW + SignedDuration::from_secs(40));
    refused.access = Access::Refused {
        reason: Reason::Server,
        message: "down".to_owned(),
        transient: true,
    };
    let wake = plan(&pool, &refused, NOW).wake;
    assert_eq!(wake, Some(SignedDuration::from_secs(40)), "no sooner");

    // One of those that waited when the queue was read runs by now
    seen.queue = Some(queue(2, ago(30)));
    assert_eq!(names(&plan(&pool, &seen, NOW)), (1, 0));

    // And one of them is over
    let mut over = runner(&pool, "pool-bbbbb", Finished);
    over.done = Some(Box::new(EndedJob {
        job: Job::default(),
        started: Some(ago(15)),
        finished: ago(5),
        refused: None,
        gpus: vec![],
        exceeded_minutes: None,
    }));
    seen.runners.push(over);
    assert_eq!(names(&plan(&pool, &seen, NOW)).0, 0);
}

proptest! {
    #[test]
    fn whatever_is_heard_there_are_never_too_many_and_no_busy_one_goes(
        (min, more) in (0..4_i32, 0..6_i32),
        pods in proptest::collection::vec((0..6_usize, any::<bool>()), 0..12),
        (capacity, available, assigned, ended) in (0..12_usize, 0..12_usize, 0..12_usize, 0..12_usize),
        is_settled in any::<bool>(),
    ) {
        let phases = [Unscheduled, Gated, Starting, Idle, Busy, Finished];
        let pool = pool(ScalingSource::ScaleSet, min, (min + more).max(1));
        let max = pool.spec.as_ref().unwrap().size.max;
        let name = |number: usize| format!("pool-{number:05}");
        let runners: Vec<Runner> = (0..).zip(&pods).map(|(n, (phase, _))| runner(&pool, &name(n), phases[*phase])).collect();
        let mut view = ScaleSetFacts { ended, ..heard(capacity, available, assigned) };
        view.finishing = (0..)
            .zip(&pods)
            .filter(|(_, (phase, reported))| *reported && phases[*phase] == Busy)
            .map(|(n, _)| name(n))
            .collect();
        if let Some(listening) = &mut view.listening {
            listening.heard.is_settled = is_settled;
        }
        let before = runners.iter().filter(|r| r.end.is_none()).count();
        let mut seen = observed(runners.clone());
        seen.scale_set = Some(view);

        let planned = plan(&pool, &seen, NOW);
        let (made, _) = names(&planned);
        let gone: Vec<&str> = planned.actions.iter().filter_map(|action| match action {
            Action::DeletePod(target) | Action::Drain(target) | Action::Evict(target) => Some(target.name.as_str()),
            _ => None,
        }).collect();
        let alive = runners.iter().filter(|r| r.end.is_none() && !gone.contains(&r.name.as_str())).count();
        prop_assert!(alive + made <= before.max(max), "{} pods of {max}", alive + made);
        let busy = runners.iter().filter(|r| r.phase == Busy);
        for runner in busy {
            prop_assert!(!gone.contains(&runner.name.as_str()), "{} goes", runner.name);
        }
    }
}
