//! Given a situation as the operator sees it, then these words lead to what is to be done. The status is the plan's own.

use std::sync::Arc;

use cudarunner_crds::{CudaRunner, RunnerPhase, Scaling};
use gate_report::Class;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::fixture::{NOW, ago, gate_failure, node, observed, resource, runner};
use crate::model::github::{QueuedJob, ScaleSet, Statistics};
use crate::model::node_marks::Quarantined;
use crate::model::pool::PoolKey;
use crate::model::runner::{End, Failure, Waiting};
use crate::model::scale_set::{Heard, Known, Listening, ScaleSetFacts, Trouble};
use crate::shares::Share;
use crate::{Access, Observed, Queue, plan};

/// A resource, changed like this, of which this is seen, with the plan's status.
pub(super) fn planned(
    change: impl FnOnce(&mut CudaRunner),
    see: impl FnOnce(&Pool, &mut Observed),
) -> CudaRunner {
    let mut resource = resource();
    resource.spec.replicas = Some(2);
    change(&mut resource);
    let pool = Pool::read(&resource, false);
    let mut observed = observed(vec![]);
    see(&pool, &mut observed);
    let status = plan(&pool, &observed, NOW).status;
    resource.status = Some(status);
    resource
}

/// What is said of it.
fn said(change: impl FnOnce(&mut CudaRunner), see: impl FnOnce(&Pool, &mut Observed)) -> String {
    let causes = causes(&planned(change, see));
    let said: Vec<String> = causes
        .into_iter()
        .map(|cause| format!("{}: {}", cause.about, cause.message))
        .collect();
    said.join("\n")
}

pub(super) fn as_it_is(_: &mut CudaRunner) {}

/// A queue with jobs that ask for these labels.
pub(super) fn queue_of(observed: &mut Observed, jobs: &[&[&str]]) {
    let job = |labels: &&[&str]| QueuedJob {
        run: 17,
        name: "train".to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..QueuedJob::default()
    };
    observed.queue = Some(Arc::new(Queue {
        at: ago(1),
        asked: None,
        jobs: Ok(Some(jobs.iter().map(job).collect())),
        registered: Some([].into()),
        shut_out: None,
    }));
}

pub(super) fn runners(pool: &Pool, observed: &mut Observed, phases: &[RunnerPhase]) {
    let names = ["pool-aaaaa", "pool-bbbbb", "pool-ccccc", "pool-ddddd"];
    let all = names.iter().zip(phases);
    observed.runners = all
        .map(|(name, phase)| runner(pool, name, *phase))
        .collect();
}

pub(super) fn refused(reason: Reason, message: &str, transient: bool) -> Access {
    let message = message.to_owned();
    Access::Refused {
        reason,
        message,
        transient,
    }
}

pub(super) fn waits(observed: &mut Observed, reason: &str, message: &str, container: Option<&str>) {
    let runner = observed.runners.last_mut().unwrap();
    runner.since = ago(300);
    runner.waiting_since = Some(ago(300));
    runner.waiting = Some(Waiting {
        reason: reason.into(),
        message: message.to_owned(),
        container: container.map(str::to_owned),
        image: container.map(|_| "a/b:1".to_owned()),
    });
}

pub(super) fn scaled(resource: &mut CudaRunner, source: &str) {
    let scaling = serde_json::json!({"minRunners": 0, "maxRunners": 2, "source": source});
    resource.spec.scaling = Some(serde_json::from_value::<Scaling>(scaling).unwrap());
    resource.spec.replicas = None;
}

pub(super) fn failed(pool: &Pool, observed: &mut Observed, failure: Failure) {
    runners(pool, observed, &[RunnerPhase::Failed]);
    observed.runners[0].end = Some(End::Failed(failure));
    observed.nodes = Some((1..5).map(|n| node(&format!("node-{n}"))).collect());
}

pub(super) const CUDA: &[&str] = &["self-hosted", "cuda"];

fn set(labels: &[&str]) -> ScaleSet {
    ScaleSet {
        id: 7,
        name: "pool-1b4e28ba".to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
    }
}

/// A scale set with three jobs that wait, which is offered one runner.
pub(super) fn scale_set(observed: &mut Observed, trouble: Option<Reason>) {
    let share = Share {
        runners: 1,
        placed: 1,
        ..Share::default()
    };
    observed.share = Some(Arc::new(share));
    observed.scale_set = Some(ScaleSetFacts {
        known: Known::Present(set(CUDA)),
        trouble: trouble.map(|reason| Trouble {
            reason,
            message: "another session is open".to_owned(),
        }),
        listening: Some(Listening {
            set: 7,
            capacity: 1,
            heard: Heard {
                statistics: Some(Statistics {
                    available: 3,
                    assigned: 1,
                    running: 1,
                }),
                is_settled: true,
                ..Heard::default()
            },
        }),
        ..ScaleSetFacts::default()
    });
}

/// The situations, what is said in each, and the words that must be among it.
#[expect(clippy::too_many_lines, reason = "a table")]
fn situations() -> Vec<(&'static str, String, &'static str)> {
    let idle: &[RunnerPhase] = &[RunnerPhase::Idle, RunnerPhase::Idle];
    let busy: &[RunnerPhase] = &[RunnerPhase::Busy, RunnerPhase::Busy];
    let gpus = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu";
    vec![
        (
            "nothing is wrong and nothing waits",
            said(as_it_is, |pool, seen| runners(pool, seen, idle)),
            "",
        ),
        (
            "a job waits for a pool without runners",
            said(
                |resource| resource.spec.replicas = Some(0),
                |_, seen| queue_of(seen, &[CUDA]),
            ),
            "1 job waits, and spec.replicas is 0: no runner comes. `kubectl scale cudarunner pool --replicas 1 --namespace ci`",
        ),
        (
            "all runners of a fixed number are busy",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, busy);
                queue_of(seen, &[CUDA, CUDA, CUDA]);
            }),
            "3 jobs wait until a runner has ended its job: spec.replicas is 2, and all are busy",
        ),
        (
            "all runners of a range are busy",
            said(
                |resource| scaled(resource, "Poll"),
                |pool, seen| {
                    runners(pool, seen, busy);
                    queue_of(seen, &[CUDA]);
                },
            ),
            "1 job waits until a runner has ended its job: spec.scaling.maxRunners is 2, and all are busy",
        ),
        (
            "a job waits beside an idle runner",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, idle);
                queue_of(seen, &[CUDA]);
            }),
            "the run is held by its own concurrency group or environment, or its repository is not in the runner group",
        ),
        (
            "a job waits for runners that start",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, &[RunnerPhase::Gated, RunnerPhase::Preparing]);
                queue_of(seen, &[CUDA]);
            }),
            "The first runner has not come online yet",
        ),
        (
            "a job asks for a label that nobody has",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, idle);
                queue_of(seen, &[&["self-hosted", "cuda", "a100"]]);
            }),
            "this pool lacks a100. Add it to spec.labels",
        ),
        (
            "the repository is not in the runner group",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, idle);
                queue_of(seen, &[CUDA]);
                let queue = Arc::make_mut(seen.queue.as_mut().unwrap());
                queue.shut_out = Some("acme/widgets".to_owned());
            }),
            "Add the repository to the group in the organization's settings",
        ),
        (
            "the queue of a fixed number cannot be read",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, idle);
                queue_of(seen, &[]);
                let queue = Arc::make_mut(seen.queue.as_mut().unwrap());
                queue.jobs = Err("the token may not read Actions".to_owned());
            }),
            "QueueServed (NotReadable): the token may not read Actions",
        ),
        (
            "the queue that a range follows cannot be read",
            said(
                |resource| scaled(resource, "Poll"),
                |_, seen| {
                    queue_of(seen, &[]);
                    let queue = Arc::make_mut(seen.queue.as_mut().unwrap());
                    queue.jobs = Err("the token may not read Actions".to_owned());
                },
            ),
            "RunnersOnline (QueueNotReadable): the token may not read Actions",
        ),
        (
            "one of four runners finds no node",
            said(
                |resource| resource.spec.replicas = Some(4),
                |pool, seen| {
                    let three = [RunnerPhase::Idle, RunnerPhase::Idle, RunnerPhase::Idle];
                    runners(
                        pool,
                        seen,
                        &[&three[..], &[RunnerPhase::Unscheduled]].concat(),
                    );
                    waits(seen, "Unschedulable", gpus, None);
                },
            ),
            "RunnersOnline (Unschedulable): Runners are online, though not all that are wanted: No node has 1 x nvidia.com/gpu free",
        ),
        (
            "no node has a GPU",
            said(as_it_is, |pool, seen| {
                seen.nodes = Some(vec![]);
                runners(pool, seen, &[RunnerPhase::Unscheduled]);
                waits(seen, "Unschedulable", "no node", None);
            }),
            "No node offers nvidia.com/gpu: add a node with a GPU, or look whether the device plugin runs on those that have one",
        ),
        (
            "a scheduling gate holds the pod",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, &[RunnerPhase::Unscheduled]);
                seen.runners[0].waiting = Some(Waiting {
                    reason: "SchedulingGated".into(),
                    message: "kueue.x-k8s.io/admission (queue gpus)".to_owned(),
                    container: None,
                    image: None,
                });
            }),
            "RunnersOnline (SchedulingGated): A scheduling gate holds the pod: kueue.x-k8s.io/admission (queue gpus). Kubernetes looks for no node",
        ),
        (
            "the next GPU is for another pool",
            said(as_it_is, |_, seen| {
                seen.share = Some(Arc::new(Share {
                    is_contended: true,
                    ..Share::default()
                }));
            }),
            "RunnersOnline (WaitsForShare): The GPUs that this pool may use are taken",
        ),
        (
            "no node has so many GPUs",
            said(
                |resource| resource.spec.gpu.count = Some(16),
                |pool, seen| {
                    seen.nodes = Some(vec![]);
                    runners(pool, seen, &[RunnerPhase::Unscheduled]);
                    waits(seen, "Unschedulable", "no node", None);
                },
            ),
            "No node offers 16 of nvidia.com/gpu at a time; ask for fewer in spec.gpu.count",
        ),
        (
            "an image cannot be pulled",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, &[RunnerPhase::Preparing]);
                waits(seen, "ImagePullBackOff", "not found", Some("runner"));
            }),
            "check its name and the imagePullSecrets in spec.template",
        ),
        (
            "a container lacks its ConfigMap",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, &[RunnerPhase::Preparing]);
                waits(
                    seen,
                    "CreateContainerConfigError",
                    "configmap \"x\" not found",
                    Some("runner"),
                );
            }),
            "fix what spec.template names, or make what it lacks",
        ),
        (
            "an image or a volume takes long",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, &[RunnerPhase::Preparing]);
                seen.runners[0].since = ago(600);
                seen.runners[0].created = ago(600);
            }),
            "`kubectl describe pod pool-aaaaa` tells which",
        ),
        (
            "a quota refuses the pods",
            said(as_it_is, |_, seen| {
                seen.pod_refused = Some("exceeded quota: gpus".to_owned());
            }),
            "Kubernetes did not take the pod: exceeded quota: gpus",
        ),
        (
            "a device fails its gate",
            said(as_it_is, |pool, seen| {
                failed(pool, seen, gate_failure(Class::Device));
            }),
            "GpuHealthy (NodesQuarantined): Quarantined: node-1",
        ),
        (
            "every gate fails by a setting of the pool",
            said(as_it_is, |pool, seen| {
                failed(pool, seen, gate_failure(Class::Config));
            }),
            "Stalled (GateFailed): the gate failed",
        ),
        (
            "a field is not one that this version acts on",
            said(
                |resource| resource.spec.github.url = "https://github.com".to_owned(),
                |_, _| {},
            ),
            "Stalled (",
        ),
        (
            "GitHub is down, and runners are idle",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, idle);
                seen.access = refused(Reason::Unreachable, "GitHub cannot be reached", true);
            }),
            "CredentialsValid (Unreachable): GitHub cannot be reached",
        ),
        (
            "the credentials are refused",
            said(as_it_is, |_, seen| {
                seen.access = refused(Reason::Unauthorized, "GitHub refuses the token", false);
            }),
            "Stalled (Unauthorized): GitHub refuses the token",
        ),
        (
            "the scale set is another operator's",
            said(
                |resource| scaled(resource, "ScaleSet"),
                |_, seen| {
                    seen.scale_set = Some(ScaleSetFacts {
                        known: Known::Present(set(CUDA)),
                        trouble: Some(Trouble {
                            reason: Reason::ScaleSetUnavailable,
                            message: "another session is open".to_owned(),
                        }),
                        ..ScaleSetFacts::default()
                    });
                },
            ),
            "RunnersOnline (ScaleSetUnavailable): another session is open",
        ),
        (
            "the scale set has other labels",
            said(
                |resource| scaled(resource, "ScaleSet"),
                |_, seen| {
                    seen.scale_set = Some(ScaleSetFacts {
                        known: Known::Present(set(&["pool-1b4e28ba"])),
                        ..ScaleSetFacts::default()
                    });
                },
            ),
            "Write runs-on: pool-1b4e28ba in the workflows",
        ),
        (
            "the GPUs that are there do not suffice",
            said(
                |resource| scaled(resource, "ScaleSet"),
                |pool, seen| {
                    runners(pool, seen, &[RunnerPhase::Busy]);
                    scale_set(seen, None);
                },
            ),
            "3 jobs wait for a GPU: those that are there and free for this pool suffice for 1 of 2 runners (busy: 1)",
        ),
        (
            "every node is quarantined",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, &[RunnerPhase::Unscheduled]);
                waits(seen, "Unschedulable", gpus, None);
                seen.quarantined = vec![quarantined("node-1")];
            }),
            "Every node that is known to have such GPUs is quarantined after a failure: node-1",
        ),
        (
            "a node is quarantined, and the runners on the others are busy",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, busy);
                queue_of(seen, &[CUDA]);
                ten_nodes(seen);
            }),
            "1 job waits until a runner has ended its job: spec.replicas is 2, and all are busy\nGpuHealthy (NodesQuarantined): Quarantined: node-9",
        ),
        (
            "a node is quarantined, and a runner has none",
            said(as_it_is, |pool, seen| {
                runners(pool, seen, &[RunnerPhase::Busy, RunnerPhase::Unscheduled]);
                waits(seen, "Unschedulable", gpus, None);
                queue_of(seen, &[CUDA]);
                ten_nodes(seen);
            }),
            "No node has 1 x nvidia.com/gpu free for this pool",
        ),
        (
            "webhooks do not come, and all runners are busy",
            said(
                |resource| scaled(resource, "Webhook"),
                |pool, seen| {
                    runners(pool, seen, busy);
                    queue_of(seen, &[CUDA]);
                },
            ),
            "spec.scaling.maxRunners is 2, and all are busy\nWebhookReady (WebhooksOff): ",
        ),
        (
            "the pool goes, and a job still runs",
            said(going, |pool, seen| {
                runners(pool, seen, &[RunnerPhase::Busy]);
                queue_of(seen, &[CUDA]);
            }),
            "takes no new jobs: those that wait need another pool with their labels. The jobs on pool-aaaaa are waited for (spec.deletionPolicy: WaitForJobs), until 1970-01-12T13:55:40Z at the latest",
        ),
        (
            "the pool goes with its jobs",
            said(
                |resource| {
                    going(resource);
                    resource.spec.deletion_policy = DeletionPolicy::Now;
                },
                |pool, seen| runners(pool, seen, &[RunnerPhase::Busy]),
            ),
            "The jobs on pool-aaaaa are being ended (spec.deletionPolicy: Now)",
        ),
        (
            "the pool goes, and nothing runs",
            said(going, |_, _| {}),
            "At 1970-01-12T13:55:40Z the resource goes in any case (spec.teardownTimeout), and an Event says what is left where",
        ),
    ]
}

/// Ten nodes, of which another pool has found one broken.
pub(super) fn ten_nodes(observed: &mut Observed) {
    observed.nodes = Some((1..=10).map(|n| node(&format!("node-{n}"))).collect());
    observed.quarantined = vec![quarantined("node-9")];
}

/// In deletion for a minute, after the operator has seen it.
fn going(resource: &mut CudaRunner) {
    let pool = Pool::read(resource, false);
    resource.status = Some(plan(&pool, &observed(vec![]), NOW).status);
    resource.metadata.deletion_timestamp = Some(Time(ago(60)));
}

/// A node that another pool has found broken.
pub(super) fn quarantined(node: &str) -> Quarantined {
    let entry = serde_json::json!({"node": node, "class": "node", "code": 803, "message": "the driver is another one", "failures": 1, "since": Time(ago(60)), "until": Time(NOW + SignedDuration::from_mins(29))});
    Quarantined {
        pool: PoolKey {
            namespace: "theirs".to_owned(),
            name: "other".to_owned(),
        },
        entry: serde_json::from_value(entry).unwrap(),
    }
}

#[test]
fn each_situation_is_told_once_and_in_words_that_lead_to_the_end_of_it() {
    let all = situations();
    assert!(all.len() >= 30, "{}", all.len());
    for (situation, said, words) in all {
        assert_eq!(said.is_empty(), words.is_empty(), "{situation}: {said}");
        assert!(said.contains(words), "{situation}: {said}");
        let lines: Vec<_> = said.lines().collect();
        for (place, line) in lines.iter().enumerate() {
            let (_, message) = line.split_once(": ").unwrap();
            let others = lines
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != place);
            for (_, other) in others {
                assert!(!other.contains(message), "{situation}, twice: {said}");
            }
        }
    }
}

#[test]
fn a_pool_that_nobody_has_looked_at_says_so() {
    let mut resource = resource();
    let only = |resource: &CudaRunner| {
        let [cause] = causes(resource).try_into().unwrap();
        let Cause { about, .. } = cause;
        about
    };
    assert_eq!(only(&resource), "No status");
    // Nor has anybody where the CRD alone has spoken
    let said = serde_json::json!({"conditions": [{
        "type": "Ready", "status": "Unknown", "reason": "NotSeen", "message": "",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }]});
    resource.status = Some(serde_json::from_value(said).unwrap());
    assert_eq!(only(&resource), "No status");
    // Nor is the status of one spec the status of the next
    let pool = Pool::read(&resource, false);
    let mut observed = observed(vec![]);
    runners(&pool, &mut observed, &[RunnerPhase::Idle]);
    resource.status = Some(plan(&pool, &observed, NOW).status);
    assert_eq!(causes(&resource), vec![]);
    resource.metadata.generation = Some(2);
    assert_eq!(only(&resource), "Old status");
}

#[test]
fn a_job_that_waits_is_not_told_of_the_trouble_of_others() {
    // Given a pool whose runners are busy, and a job that nobody serves beside one that waits for them
    let mut resource = resource();
    let pool = Pool::read(&resource, false);
    let mut observed = observed(vec![]);
    runners(&pool, &mut observed, &[RunnerPhase::Busy]);
    queue_of(&mut observed, &[CUDA, &["self-hosted", "cuda", "b300"]]);
    resource.status = Some(plan(&pool, &observed, NOW).status);
    // Then what holds the job is the number of runners, and the other one is told of behind that
    let why = of_waiting(&resource, 1).unwrap();
    assert_eq!(why.about, "spec.replicas", "{}", why.message);
    let abouts: Vec<_> = causes(&resource).into_iter().map(|c| c.about).collect();
    assert_eq!(abouts, ["spec.replicas", "QueueServed (LabelMissing)"]);
}

#[test]
fn what_is_left_at_another_address_and_cannot_be_asked_is_named() {
    let mut resource = planned(as_it_is, |_, _| {});
    let left = |message: Option<&str>| LeftStatus {
        url: "https://github.com/acme/before".to_owned(),
        scale_set: None,
        message: message.map(str::to_owned),
    };
    let mut said = |message| {
        resource.status.as_mut().unwrap().left_at = vec![left(message)];
        let all = causes(&resource);
        all.into_iter().find(|cause| cause.about == "Left behind")
    };
    // One that is only not empty yet is no trouble
    assert_eq!(said(None), None);
    let cause = said(Some("GitHub answered 404.")).unwrap();
    for words in [
        "https://github.com/acme/before",
        "answered 404. It is asked again",
        "credentials",
    ] {
        assert!(cause.message.contains(words), "{}", cause.message);
    }
}

#[test]
fn a_scale_set_whose_offer_is_full_may_have_jobs_that_nobody_knows_of() {
    // Given a set of up to two runners, with GPUs for one, and so many at work
    let said = |busy: &[RunnerPhase], available: usize| {
        let set = |resource: &mut CudaRunner| scaled(resource, "ScaleSet");
        let resource = planned(set, |pool, seen| {
            runners(pool, seen, busy);
            scale_set(seen, None);
            let heard = &mut seen.scale_set.as_mut().unwrap().listening;
            let statistics = &mut heard.as_mut().unwrap().heard.statistics;
            statistics.as_mut().unwrap().available = available;
        });
        assert_eq!(causes(&resource).is_empty(), available == 0);
        unheard(&resource)
    };
    let full = said(&[RunnerPhase::Busy], 0).unwrap();
    let ends = "A job that comes waits for a GPU: those that are there and free for this pool suffice for 1 of 2 runners (busy: 1). Add nodes, or look who else holds GPUs (kubectl describe nodes)";
    assert!(full.ends_with(ends), "{full}");
    assert!(full.contains("runners, here 1. "), "{full}");
    // Of those that are known the causes tell, and of one with an idle runner all are known
    assert_eq!(said(&[RunnerPhase::Busy], 3), None);
    assert_eq!(said(&[RunnerPhase::Idle], 0), None);
    // Nor is it said of a pool that reads its queue
    let read = planned(as_it_is, |pool, seen| {
        runners(pool, seen, &[RunnerPhase::Busy, RunnerPhase::Busy]);
    });
    assert_eq!(unheard(&read), None);
}
