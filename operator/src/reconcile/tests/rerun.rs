//! A job that is run again, whenever the operator is killed meanwhile: not twice, and not never. And one whose node was
//! rebooted.

use std::sync::atomic::AtomicU32;

use cudarunner_crds::Rerun;
use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::github::tests::stub::{Reply, Seen, Stub, error, here, page, reply};
use crate::watch::nodes::Nodes;

/// The runner of the job, whose pod is evicted in the middle of it.
const RUNNER: &str = "pool-aaaaa";
/// GitHub's number of the job.
const JOB: u64 = 5;
/// More reconciles than it takes.
const MANY: u32 = 8;
/// The reconcile that asks GitHub to run the job again.
const ASKS: u32 = 3;

/// When the operator is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    Never,
    /// After so many reconciles.
    After(u32),
    /// After one whose status cannot be stored.
    Unstored(u32),
    /// With its request on the way: GitHub has carried it out, and the answer finds nobody.
    Unanswered,
}

/// A GitHub with a workflow run that is red, and that counts its attempts.
struct GitHub {
    stub: Stub,
    /// What the stored status said of the job when it was run again.
    states: Arc<Mutex<Vec<Value>>>,
    /// The check runs on the commit.
    notes: Arc<Mutex<Vec<Value>>>,
}

impl GitHub {
    async fn start(cluster: &Cluster) -> Self {
        let states = Arc::<Mutex<Vec<Value>>>::default();
        let notes = Arc::<Mutex<Vec<Value>>>::default();
        let written = Arc::clone(&notes);
        let (record, stored, attempt) = (Arc::clone(&states), cluster.clone(), AtomicU32::new(1));
        let script = move |seen: &Seen, _: usize| {
            if is_rerun(seen) {
                let said = stored.5.lock().unwrap()["reruns"][0]["state"].clone();
                record.lock().unwrap().push(said);
                attempt.fetch_add(1, Ordering::Relaxed);
                return reply(201, &json!({}));
            }
            if seen.path.contains("/check-runs") {
                let mut notes = written.lock().unwrap();
                if seen.method == Method::POST {
                    notes.push(seen.body.clone());
                    return reply(201, &json!({}));
                }
                let all = json!({"total_count": notes.len(), "check_runs": *notes});
                return reply(200, &all);
            }
            answer(seen, attempt.load(Ordering::Relaxed))
        };
        let stub = Stub::start(script).await;
        Self {
            stub,
            states,
            notes,
        }
    }

    /// Returns once a job has been run again.
    async fn is_asked(&self) {
        while self.states.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

fn is_rerun(seen: &Seen) -> bool {
    seen.method == Method::POST && seen.path.ends_with(&format!("/jobs/{JOB}/rerun"))
}

fn answer(seen: &Seen, attempt: u32) -> Reply {
    let (path, _) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
    let at = Timestamp::now().to_string();
    let (_, asked) = path.split_once("/repos/acme/widgets").unwrap_or_default();
    match asked {
        "/actions/runners" => reply(200, &page(0, &[])),
        "/actions/runs/17" => reply(
            200,
            &json!({
                "id": 17, "status": if attempt == 1 { "completed" } else { "in_progress" }, "conclusion": null,
                "html_url": "", "created_at": at, "head_sha": "5ca1ab1e", "workflow_id": 3, "head_branch": "main",
                "head_repository": {"id": 1}, "event": "push", "run_attempt": attempt,
            }),
        ),
        "/actions/runs/17/jobs" => reply(
            200,
            &json!({"total_count": 1, "jobs": [{
                "id": JOB, "name": "train", "status": "completed", "conclusion": "failure", "completed_at": at,
                "runner_name": RUNNER, "run_attempt": 1,
            }]}),
        ),
        "/actions/workflows/3/runs" => reply(200, &json!({"total_count": 0, "workflow_runs": []})),
        _ => error(404, "Not Found"),
    }
}

/// A pool that runs such jobs again, as its status is stored.
fn wishing(cluster: &Cluster, github: &Stub) -> Arc<CudaRunner> {
    stored(cluster, github, |resource| {
        resource.spec.rerun = Some(Rerun {
            on_gpu_fault: false,
            on_node_loss: true,
            limit: 1,
        });
    })
}

/// The pod, as its eviction left it.
fn evicted() -> Value {
    let now = Timestamp::now().to_string();
    let mark = json!({"mark": "started", "job": "train", "run": "17", "attempt": "1", "repository": "acme/widgets"});
    json!({
        "phase": "Failed",
        "conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "lastTransitionTime": now,
        }],
        "initContainerStatuses": [{
            "name": "gpu", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"terminated": {"exitCode": 137, "message": mark.to_string(), "finishedAt": now}},
        }],
    })
}

/// A cluster, and what its operators did before the one that runs now.
struct World {
    cluster: Cluster,
    pod: Option<Value>,
    told: usize,
}

impl World {
    fn new(github: &Stub, cluster: Cluster) -> Self {
        furnish(&cluster, github);
        Self {
            cluster,
            pod: Some(evicted()),
            told: 0,
        }
    }

    /// Takes in what an operator did.
    fn note(&mut self) {
        for (method, path, sent) in std::mem::take(&mut *self.cluster.0.lock().unwrap()) {
            if method == Method::DELETE && path.ends_with(RUNNER) {
                self.pod = None;
            }
            self.told += usize::from(sent["reason"] == "JobRunAgain");
        }
    }

    /// An operator that has just been started: it knows what is stored, and sees the pod if that is still there.
    async fn operator(&mut self) -> Arc<Context> {
        self.note();
        let mut ctx = context(&self.cluster).await;
        Arc::get_mut(&mut ctx).unwrap().clients = Clients::new(here());
        if let Some(pod) = &self.pod {
            show_pod(&ctx, RUNNER, pod);
        }
        ctx
    }

    /// How the stored status has the job.
    fn state(&self) -> Value {
        self.cluster.5.lock().unwrap()["reruns"][0]["state"].clone()
    }
}

/// What came of a job whose operator was killed then: how the stored status had it whenever it was run again, how it has
/// it in the end, and how often that was told, by Events and on the commit.
async fn lived(kill: Kill) -> (Vec<Value>, Value, [usize; 2]) {
    let cluster = Cluster::default();
    let github = GitHub::start(&cluster).await;
    let mut world = World::new(&github.stub, cluster.clone());
    let mut operator = world.operator().await;
    for number in 1..=MANY {
        let pool = wishing(&cluster, &github.stub);
        let reconcile = reconcile(pool, Arc::clone(&operator));
        let is_killed = match kill {
            Kill::Unanswered if number == ASKS => {
                tokio::select! {
                    biased;
                    () = github.is_asked() => {}
                    done = reconcile => panic!("nobody was asked: {done:?}"),
                }
                true
            }
            Kill::Unstored(which) if number == which => {
                cluster.1.store(true, Ordering::Relaxed);
                reconcile.await.unwrap_err();
                cluster.1.store(false, Ordering::Relaxed);
                true
            }
            _ => {
                reconcile.await.unwrap();
                matches!(kill, Kill::After(which) if number == which)
            }
        };
        if is_killed {
            operator = world.operator().await;
        }
    }
    world.note();
    let asked = github.states.lock().unwrap().clone();
    let notes = github.notes.lock().unwrap().len();
    (asked, world.state(), [world.told, notes])
}

#[tokio::test]
async fn a_job_is_run_again_once_whenever_the_operator_is_killed() {
    let kills = (1..MANY).map(Kill::After);
    let unstored = [1, 2, 4].map(Kill::Unstored);
    let others = [Kill::Never, Kill::Unanswered];
    for kill in kills.chain(unstored).chain(others) {
        // Given an operator that is killed, and another one that finds what is stored
        let (asked, end, told) = lived(kill).await;
        // Then GitHub is asked once, when that is stored, and it is told once
        assert_eq!(asked, [json!("Requested")], "{kill:?}");
        assert_eq!((end, told), (json!("Started"), [1, 1]), "{kill:?}");
    }
}

/// The pod on its node, with its agent in this state.
fn on_node(phase: &str, agent: &Value) -> Pod {
    let pod = json!({
        "metadata": {
            "name": RUNNER, "namespace": "ci", "uid": RUNNER, "labels": {"cudarunner.dev/pool": "pool"},
            "ownerReferences": [{"apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner", "name": "pool", "uid": fixture::pool(1).uid}],
        },
        "spec": {
            "nodeName": "node-1",
            "initContainers": [{"name": "gpu", "image": "runner:1"}],
            "containers": [{"name": "main", "image": "gate:1"}],
        },
        "status": {
            "phase": phase,
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "initContainerStatuses": [{
                "name": "gpu", "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": agent,
            }],
        },
    });
    serde_json::from_value(pod).unwrap()
}

#[tokio::test]
async fn a_job_that_a_reboot_of_its_node_ended_is_run_again_and_one_that_killed_its_agent_is_not() {
    for (boot, causes) in [("boot-2", vec![json!("NodeLoss")]), ("boot-1", vec![])] {
        let cluster = Cluster::default();
        let github = GitHub::start(&cluster).await;
        let mut world = World::new(&github.stub, cluster.clone());
        world.pod = None;
        let mut operator = world.operator().await;
        let nodes = Arc::new(Nodes::default());
        Arc::get_mut(&mut operator).unwrap().nodes = Some(Arc::clone(&nodes));
        let look = async |pod: Pod, boot: &str| {
            let node =
                json!({"metadata": {"name": "node-1"}, "status": {"nodeInfo": {"bootID": boot}}});
            nodes.apply(&serde_json::from_value(node).unwrap());
            operator.pods.apply(&pod, true);
            let pool = wishing(&cluster, &github.stub);
            reconcile(pool, Arc::clone(&operator)).await.unwrap();
            let reruns = cluster.5.lock().unwrap()["reruns"].clone();
            let reruns = reruns.as_array().cloned().unwrap_or_default();
            reruns
                .into_iter()
                .map(|one| one["cause"].clone())
                .collect::<Vec<_>>()
        };
        // Given a job that runs on a node
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:06Z"}});
        assert!(
            look(on_node("Running", &running), "boot-1")
                .await
                .is_empty()
        );
        // When its kubelet shows the container as one that is not there any more, and a moment later its boot
        let mark = evicted()["initContainerStatuses"][0]["state"]["terminated"]["message"].clone();
        let ended = json!({"terminated": {
            "exitCode": 255, "reason": "Unknown", "message": mark, "finishedAt": Timestamp::now(),
        }});
        assert!(look(on_node("Failed", &ended), "boot-1").await.is_empty());
        // Then it was the reboot, where there was one
        assert_eq!(
            look(on_node("Failed", &ended), boot).await,
            causes,
            "{boot}"
        );
    }
}
