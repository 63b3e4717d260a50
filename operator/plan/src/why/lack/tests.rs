//! Given trouble and jobs that wait, then that is blamed which holds them, and nothing else. The status is the plan's own.

use std::sync::Arc;

use cudarunner_crds::{CudaRunnerStatus, RunnerPhase};
use gate_report::Class;

use super::*;
use crate::Observed;
use crate::fixture::{ago, gate_failure};
use crate::model::pool::Pool;
use crate::why::tests::{
    CUDA, as_it_is, failed, planned, queue_of, refused, runners, scale_set, scaled, ten_nodes,
    waits,
};
use crate::why::{causes, of_any_job, of_waiting};

const BUSY: &[RunnerPhase] = &[RunnerPhase::Busy, RunnerPhase::Busy];
const IDLE: &[RunnerPhase] = &[RunnerPhase::Busy, RunnerPhase::Idle];
const AT_GATE: &[RunnerPhase] = &[RunnerPhase::Busy, RunnerPhase::Gated];
const NO_NODE: &[RunnerPhase] = &[RunnerPhase::Busy, RunnerPhase::Unscheduled];
const ONE: &[RunnerPhase] = &[RunnerPhase::Busy];

const QUARANTINE: &str = "GpuHealthy (NodesQuarantined)";

/// Two runners are wanted, and a job waited when the status was last written.
fn waited(resource: &mut CudaRunner) {
    resource.status = Some(CudaRunnerStatus {
        queued: 1,
        observed_generation: Some(1),
        ..CudaRunnerStatus::default()
    });
}

fn unreadable(observed: &mut Observed) {
    queue_of(observed, &[]);
    let queue = Arc::make_mut(observed.queue.as_mut().unwrap());
    queue.jobs = Err("the token may not read Actions".to_owned());
}

/// Runners of which the last waits for a node in vain.
fn one_without_node(pool: &Pool, observed: &mut Observed) {
    runners(pool, observed, NO_NODE);
    waits(
        observed,
        "Unschedulable",
        "4 Insufficient nvidia.com/gpu",
        None,
    );
}

/// The situations, and for each what is blamed of the waiting of a job, in order.
#[expect(clippy::too_many_lines, reason = "a table")]
fn situations() -> Vec<(&'static str, CudaRunner, &'static [&'static str])> {
    let busy = |see: fn(&mut Observed)| {
        planned(waited, move |pool, seen| {
            runners(pool, seen, BUSY);
            queue_of(seen, &[CUDA]);
            see(seen);
        })
    };
    let stalled = |seen: &mut Observed| {
        seen.access = refused(Reason::Unauthorized, "GitHub refuses the token", false);
    };
    let down = |seen: &mut Observed| {
        seen.access = refused(Reason::Unreachable, "GitHub cannot be reached", true);
    };
    vec![
        (
            "a node is quarantined, and all runners are busy",
            busy(ten_nodes),
            &["spec.replicas"],
        ),
        (
            "the queue cannot be read, and all runners are busy",
            busy(unreadable),
            &["spec.replicas"],
        ),
        (
            "GitHub is down, and all runners are busy",
            busy(down),
            &["spec.replicas"],
        ),
        (
            "no runner follows the busy ones, as the token is refused",
            busy(stalled),
            &["Stalled (Unauthorized)", "spec.replicas"],
        ),
        (
            "webhooks do not come, and all runners are busy",
            planned(
                |resource| scaled(resource, "Webhook"),
                |pool, seen| {
                    runners(pool, seen, BUSY);
                    queue_of(seen, &[CUDA]);
                },
            ),
            &["spec.scaling.maxRunners"],
        ),
        (
            "webhooks do not come, and the runner starts",
            planned(
                |resource| scaled(resource, "Webhook"),
                |pool, seen| {
                    runners(pool, seen, AT_GATE);
                    queue_of(seen, &[CUDA]);
                },
            ),
            &["Queue"],
        ),
        (
            "a node is quarantined, and a runner is idle",
            planned(as_it_is, |pool, seen| {
                runners(pool, seen, IDLE);
                queue_of(seen, &[CUDA]);
                ten_nodes(seen);
            }),
            &["Queue"],
        ),
        (
            "a node is quarantined, and the runner for the job is at the gate of another",
            planned(as_it_is, |pool, seen| {
                runners(pool, seen, AT_GATE);
                queue_of(seen, &[CUDA]);
                ten_nodes(seen);
            }),
            &["Queue"],
        ),
        (
            "a node is quarantined, and the runner for the job has none",
            planned(as_it_is, |pool, seen| {
                one_without_node(pool, seen);
                queue_of(seen, &[CUDA]);
                ten_nodes(seen);
            }),
            &["RunnersOnline (Unschedulable)", QUARANTINE],
        ),
        (
            "a node is quarantined, and more jobs wait than runners start",
            planned(
                |resource| resource.spec.replicas = Some(3),
                |pool, seen| {
                    let phases = [AT_GATE, &[RunnerPhase::Unscheduled]].concat();
                    runners(pool, seen, &phases);
                    // The scheduler has just been asked
                    seen.runners[2].since = ago(1);
                    queue_of(seen, &[CUDA, CUDA]);
                    ten_nodes(seen);
                },
            ),
            &[QUARANTINE],
        ),
        (
            "the last gate failed, its node is quarantined, and the next attempt is due",
            planned(as_it_is, |pool, seen| {
                failed(pool, seen, gate_failure(Class::Device));
                queue_of(seen, &[CUDA]);
            }),
            &[QUARANTINE],
        ),
        (
            "one of the runners finds no node, and another is idle",
            planned(
                |resource| resource.spec.replicas = Some(3),
                |pool, seen| {
                    let phases = [IDLE, &[RunnerPhase::Unscheduled]].concat();
                    runners(pool, seen, &phases);
                    waits(seen, "Unschedulable", "no node", None);
                    queue_of(seen, &[CUDA]);
                },
            ),
            &["Queue"],
        ),
        (
            "GitHub is down, and no runner is idle",
            planned(waited, |pool, seen| {
                runners(pool, seen, ONE);
                down(seen);
            }),
            &["CredentialsValid (Unreachable)"],
        ),
        (
            "GitHub is down, so what is known of the queue is old",
            planned(waited, |pool, seen| {
                runners(pool, seen, IDLE);
                down(seen);
            }),
            &["CredentialsValid (Unreachable)"],
        ),
        (
            "the queue that a range follows cannot be read",
            planned(
                |resource| {
                    scaled(resource, "Poll");
                    waited(resource);
                },
                |pool, seen| {
                    runners(pool, seen, ONE);
                    unreadable(seen);
                },
            ),
            &["RunnersOnline (QueueNotReadable)"],
        ),
        (
            "nobody hears of the jobs of a scale set, and a runner is idle",
            planned(
                |resource| scaled(resource, "ScaleSet"),
                |pool, seen| {
                    runners(pool, seen, IDLE);
                    scale_set(seen, Some(Reason::SessionHeld));
                    seen.share = None;
                },
            ),
            &["RunnersOnline (SessionHeld)"],
        ),
        (
            "a node is quarantined, and the other GPUs do not suffice",
            planned(
                |resource| scaled(resource, "ScaleSet"),
                |pool, seen| {
                    runners(pool, seen, ONE);
                    scale_set(seen, None);
                    ten_nodes(seen);
                },
            ),
            &[QUARANTINE, "GPUs"],
        ),
        (
            "a scale set is offered no more while GitHub is down",
            planned(
                |resource| scaled(resource, "ScaleSet"),
                |pool, seen| {
                    runners(pool, seen, ONE);
                    scale_set(seen, None);
                    down(seen);
                },
            ),
            &["CredentialsValid (Unreachable)"],
        ),
    ]
}

#[test]
fn what_holds_no_job_is_blamed_for_none() {
    for (situation, resource, blamed) in situations() {
        let status = resource.status.as_ref().unwrap();
        let queued = status.queued.max(1);
        let said = crate::why::holding(&resource, status, crate::why::Jobs::Wait(queued));
        let abouts: Vec<_> = said.iter().map(|cause| cause.about.as_str()).collect();
        assert_eq!(abouts, blamed, "{situation}: {said:?}");
        // ... by the page and of a job, and first of a pool
        let first = of_waiting(&resource, queued).unwrap();
        assert_eq!(first, said[0], "{situation}");
        if status.queued > 0 {
            assert_eq!(causes(&resource)[0], first, "{situation}");
        }
    }
}

#[test]
fn trouble_that_holds_no_job_is_told_behind_what_does() {
    // Given a pool whose runners are busy, with a quarantine, and with a job that asks for what nobody has
    let resource = planned(as_it_is, |pool, seen| {
        runners(pool, seen, BUSY);
        queue_of(seen, &[CUDA, &["self-hosted", "cuda", "b300"]]);
        ten_nodes(seen);
    });
    let abouts: Vec<_> = causes(&resource).into_iter().map(|c| c.about).collect();
    assert_eq!(
        abouts,
        [
            "spec.replicas",
            "QueueServed (LabelMissing)",
            "GpuHealthy (NodesQuarantined)"
        ]
    );
}

#[test]
fn of_a_job_that_nobody_knows_that_is_told_which_would_hold_it() {
    let of = |phases: &[RunnerPhase], jobs: &[&[&str]]| {
        let resource = planned(as_it_is, |pool, seen| {
            runners(pool, seen, phases);
            queue_of(seen, jobs);
            ten_nodes(seen);
        });
        let all = of_any_job(&resource).into_iter();
        all.map(|cause| format!("{}: {}", cause.about, cause.message))
            .collect::<Vec<_>>()
            .join("\n")
    };
    for (phases, jobs, said) in [
        (IDLE, &[][..], ""),
        (
            BUSY,
            &[],
            "spec.replicas: A job that comes waits until a runner has ended its job: spec.replicas is 2, and all are busy",
        ),
        (
            BUSY,
            &[CUDA],
            "spec.replicas: 1 job waits until a runner has ended its job: spec.replicas is 2, and all are busy",
        ),
        (
            AT_GATE,
            &[],
            "Queue: A job that comes waits for runners that start: 1 at the gate, 0 before it",
        ),
    ] {
        assert_eq!(of(phases, jobs), said);
    }
    let lost: &[&str] = &["self-hosted", "cuda", "b300"];
    let said = of(IDLE, &[lost]);
    assert!(said.starts_with("QueueServed (LabelMissing): "), "{said}");
}
