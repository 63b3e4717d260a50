use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::SignedDuration;
use serde_json::json;

use super::*;
use crate::github::tests::stub::{Stub, page, reply, runner};
use crate::reconcile::tests::{Cluster, context, shows};
use cuda_runner_plan::{Access, fixture};

fn pod() -> PodIdentity {
    PodIdentity {
        namespace: "ci".to_owned(),
        name: "pool-aaaaa".to_owned(),
        uid: "u".to_owned(),
        node: None,
    }
}

fn backend(ctx: &Arc<Context>) -> OperatorBackend {
    let client = ctx.client.clone();
    OperatorBackend::new(Arc::clone(ctx), Arc::new(Waker::new().0), client)
}

/// The pod as the watch shows it: its container of the GPUs in this image and state, after so many starts.
fn shown(image: &str, state: &serde_json::Value, starts: i32, ready: bool) -> serde_json::Value {
    let pod = pod();
    json!({
        "metadata": {
            "name": pod.name, "namespace": pod.namespace, "uid": pod.uid,
            "labels": {"cudarunner.dev/pool": "pool"},
            "ownerReferences": [{"apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner", "name": "pool", "uid": fixture::pool(1).uid}],
        },
        "spec": {
            "initContainers": [{"name": "gpu", "image": image}],
            "containers": [{"name": "main", "image": "gate:1"}],
        },
        "status": {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "initContainerStatuses": [{
                "name": "gpu", "image": "", "imageID": "", "ready": ready, "restartCount": starts, "state": state,
            }],
        },
    })
}

#[tokio::test]
async fn a_restart_gives_no_pod_a_second_registration() {
    // Given an operator that has just started: its books are empty, and its stores show the cluster
    let ctx = context(&Cluster::default()).await;
    let backend = backend(&ctx);
    let running = json!({"running": {"startedAt": "2026-01-01T00:00:06Z"}});
    let pull = json!({"waiting": {"reason": "ErrImagePull"}});
    let ended = |code: i32| json!({"terminated": {"exitCode": code}});
    for (pod_shown, wanted) in [
        (shown("gate:1", &running, 0, false), "Known(false)"),
        // The image is being changed, is pulled, and then the agent comes up: it may ask again for a lost answer
        (shown("runner:1", &running, 0, false), "Known(true)"),
        (shown("runner:1", &pull, 0, false), "Known(true)"),
        (shown("runner:1", &running, 1, false), "Known(true)"),
        // It has come up: nobody who asks now means well
        (shown("runner:1", &running, 1, true), "Served"),
        (shown("runner:1", &ended(0), 1, false), "Closing"),
        (shown("gate:1", &ended(12), 0, false), "Closing"),
    ] {
        // When the pod shows how far it has come
        ctx.pods
            .apply(&serde_json::from_value(pod_shown.clone()).unwrap(), true);
        // Then it is served until it has been online
        let found = match backend.runner(&pod()).await {
            RunnerLookup::Known(runner) => format!("Known({})", runner.let_in),
            other => format!("{other:?}"),
        };
        assert_eq!(found, wanted, "{pod_shown:#}");
    }
    // And one that an earlier pool of this name has left is not served as this one's
    let mut left = shown("gate:1", &running, 0, false);
    left["metadata"]["ownerReferences"][0]["uid"] = json!("earlier");
    ctx.pods.apply(&serde_json::from_value(left).unwrap(), true);
    let found = backend.runner(&pod()).await;
    assert!(matches!(found, RunnerLookup::NotYetKnown), "{found:?}");
}

/// A runner whose pod names this image.
fn known(image: Option<&str>, let_in: bool) -> KnownRunner {
    let any = Version::new(0, 0);
    KnownRunner {
        pool: PoolKey {
            namespace: "ci".to_owned(),
            name: "pool".to_owned(),
        },
        policy: Policy {
            devices: Some(1),
            min_compute_capability: any,
            min_cuda_version: any,
            require_managed_memory: false,
            require_peer_access: false,
            require_preflight: false,
            pod: "pool-aaaaa".to_owned(),
            node: None,
        },
        image: image.map(str::to_owned),
        let_in,
        shared: false,
        takes_containers: false,
    }
}

/// The same where jobs bring their containers.
fn of_containers(let_in: bool) -> KnownRunner {
    KnownRunner {
        takes_containers: true,
        ..known(None, let_in)
    }
}

/// An API server that answers every request so, and how often it was asked.
fn answering(code: u16) -> (kube::Client, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let body = if code == 200 {
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {}})
    } else {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "its own words", "reason": "x", "code": code})
    };
    let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
        count.fetch_add(1, Ordering::SeqCst);
        let body = kube::client::Body::from(body.to_string().into_bytes());
        let answer = http::Response::builder().status(code).body(body);
        async { Ok::<_, std::convert::Infallible>(answer.unwrap()) }
    });
    (kube::Client::new(service, "default"), asked)
}

#[tokio::test]
async fn an_image_is_put_on_once_and_a_refusal_is_told_in_the_api_servers_words() {
    let ctx = context(&Cluster::default()).await;
    let agents = || known(Some("runner:1"), false);
    for (code, runner, requests, expected) in [
        (200, agents(), 1, "Ok"),
        // The watch shows it already
        (200, known(Some("runner:1"), true), 0, "Ok"),
        (200, known(None, false), 0, "Refused NoImage"),
        (404, agents(), 1, "Refused ImageNotChanged"),
        (403, agents(), 1, "Refused ImageNotChanged"),
        (422, known(Some(" "), false), 1, "Refused ImageNotChanged"),
        (409, agents(), 1, "Retry ImageNotChanged"),
        (500, agents(), 1, "Retry ImageNotChanged"),
        (429, agents(), 1, "Retry ImageNotChanged"),
        // Where jobs bring their containers, the pass is noted on the pod
        (200, of_containers(false), 1, "Ok"),
        (200, of_containers(true), 0, "Ok"),
        (403, of_containers(false), 1, "Refused PassNotNoted"),
        (500, of_containers(false), 1, "Retry PassNotNoted"),
    ] {
        // Given an API server that answers so
        let (client, asked) = answering(code);
        let backend = OperatorBackend::new(Arc::clone(&ctx), Arc::new(Waker::new().0), client);
        // When a runner is let in
        let outcome = match backend.let_in(&pod(), &runner, "{}").await {
            Ok(()) => "Ok".to_owned(),
            Err(RegisterError::Refused { reason, message }) => {
                assert!(
                    requests == 0 || message.contains("its own words"),
                    "{message}"
                );
                format!("Refused {reason}")
            }
            Err(RegisterError::Retry { reason, .. }) => format!("Retry {reason}"),
        };
        // Then that is what its gate hears, and no more was asked
        assert_eq!(outcome, expected, "{code}");
        assert_eq!(asked.load(Ordering::SeqCst), requests, "{code}");
    }
}

#[tokio::test]
async fn a_limit_that_outlasts_a_gate_is_told_by_the_pool() {
    let ctx = context(&Cluster::default()).await;
    let backend = backend(&ctx);
    let pool = Pool::read(&fixture::resource(), false);
    let access = || {
        ctx.memory
            .with(&pool, |memory| memory.github.access.clone())
    };
    let limit = |seconds| Error::RateLimited {
        until: Timestamp::now() + SignedDuration::from_secs(seconds),
        reason: "the credentials' 5000 requests an hour are used up".to_owned(),
    };

    // Given a limit that a gate waits out, then the pool goes on as it was
    let reported = backend.failed(&pool, &limit(20));
    assert!(
        matches!(reported, RegisterError::Retry { .. }),
        "{reported:?}"
    );
    assert_eq!(access(), Access::Unchecked);

    // Given one that lasts, then no further pod is made for it
    let reported = backend.failed(&pool, &limit(1800));
    assert!(
        matches!(reported, RegisterError::Retry { .. }),
        "{reported:?}"
    );
    let Access::Refused {
        reason,
        message,
        transient: true,
    } = access()
    else {
        panic!("{:?}", access())
    };
    assert_eq!(reason, "RateLimited");
    assert!(
        message.contains("requests an hour are used up"),
        "{message}"
    );
}

#[tokio::test]
async fn a_persistent_runner_does_not_take_the_name_of_another_pools_runner() {
    let ctx = context(&Cluster::default()).await;
    let backend = backend(&ctx);
    let mut pool = fixture::pool(1);
    pool.spec_mut().persistent = true;
    let spec = pool.spec.as_ref().unwrap();
    let (own, other) = (pool.ownership_label(), "cudarunner-0a1b2c3d");
    for (label, status, busy, is_given) in [
        (own.as_str(), "online", false, true),
        (other, "online", false, false),
        (other, "offline", true, false),
        // Its agent is gone: the pool has moved here, or has gone without a word
        (other, "offline", false, true),
        ("cuda", "online", false, true),
    ] {
        // Given an entry of the name of a runner that has passed its gate
        let mut entry = runner(9, "pool-0", status, busy);
        entry["labels"] = json!([{"name": label}]);
        let listed = page(1, &[entry]);
        let stub = Stub::start(move |seen, _| match seen.method {
            http::Method::GET => reply(200, &listed),
            _ => reply(201, &json!({"token": "AABBCC"})),
        })
        .await;
        // When it asks for a token
        let given = registration_token(&stub.client("acme"), &pool, spec, "pool-0").await;

        // Then it gets one, or ends at once and says whose the name is
        let Err(error) = given else {
            assert!(is_given, "{label} {status}");
            assert_eq!(stub.seen().len(), 2);
            continue;
        };
        assert!(!is_given, "{label} {status}: {error}");
        let RegisterError::Refused { reason, message } = backend.not_made(&pool, spec, &error)
        else {
            panic!("{error}");
        };
        assert_eq!(reason, "Conflict");
        let owner = format!("by another pool ({other}); give this pool another name");
        assert!(
            message.contains("a runner pool-0 ") && message.contains(&owner),
            "{message}"
        );
        assert_eq!(stub.seen().len(), 1);
    }
    // And one whose name is random costs no request more
    pool.spec_mut().persistent = false;
    let stub = Stub::start(|_, _| reply(201, &json!({"token": "AABBCC"}))).await;
    let spec = pool.spec.as_ref().unwrap();
    let given = registration_token(&stub.client("acme"), &pool, spec, "pool-abcde").await;
    assert!(given.is_ok() && stub.seen().len() == 1);
}

/// A pod whose jobs bring their containers, as the watch shows it: with these annotations, and its agent ready or not.
fn shown_for_containers(annotations: &serde_json::Value, ready: bool) -> serde_json::Value {
    let running = json!({"running": {"startedAt": "2026-01-01T00:00:06Z"}});
    let mut pod = shown("gate:1", &running, 0, true);
    pod["metadata"]["annotations"] = annotations.clone();
    pod["spec"]["containers"][0]["command"] = json!(["/run/x/bin/runner-init", "agent"]);
    pod["status"]["containerStatuses"] = json!([{
        "name": "main", "image": "", "imageID": "", "ready": ready, "restartCount": 0, "state": running,
    }]);
    pod
}

#[tokio::test]
async fn a_restarted_operator_knows_from_the_pod_that_its_gate_has_passed() {
    // Given an operator that has just started, and pods whose jobs bring their containers
    let ctx = context(&Cluster::default()).await;
    let backend = backend(&ctx);
    let passed = json!({"cudarunner.dev/gate-passed": "2026-01-01T00:00:09Z"});
    for (annotations, ready, registers, takes_job) in [
        (json!({}), false, "Known(false, true)", "Known(false)"),
        (passed.clone(), false, "Known(true, true)", "Known(true)"),
        // It is online: nobody who asks for a registration now means well, and its job may come
        (passed, true, "Served", "Known(true)"),
    ] {
        let pod_shown = shown_for_containers(&annotations, ready);
        ctx.pods
            .apply(&serde_json::from_value(pod_shown).unwrap(), true);
        let found = match backend.runner(&pod()).await {
            RunnerLookup::Known(known) => {
                format!("Known({}, {})", known.let_in, known.takes_containers)
            }
            other => format!("{other:?}"),
        };
        assert_eq!(found, registers);
        let found = match backend.job_runner(&pod()).await {
            RunnerLookup::Known(known) => format!("Known({})", known.let_in),
            other => format!("{other:?}"),
        };
        assert_eq!(found, takes_job);
    }
    // And no job brings a container into the agent's own
    let plain = shown("runner:1", &json!({"running": {}}), 1, true);
    ctx.pods
        .apply(&serde_json::from_value(plain).unwrap(), true);
    assert_eq!(backend.job_runner(&pod()).await, RunnerLookup::Unknown);
}

#[tokio::test]
async fn a_gate_that_asks_again_is_counted_once() {
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let backend = backend(&ctx);
    let asks = |uid: &str| PodIdentity {
        uid: uid.to_owned(),
        ..pod()
    };
    let runner = known(None, false);
    let line = |count| {
        format!(
            r#"cudarunner_gate_outcomes_total{{namespace="ci",pool="pool",class="",code="",product=""}} {count}"#
        )
    };
    let report = Report::new("0");
    for _ in 0..2 {
        backend
            .note_report(&asks("1"), &runner, &report, &Decision::Admit)
            .await;
        shows(&ctx, &line(1)).unwrap();
    }
    backend
        .note_report(&asks("2"), &runner, &report, &Decision::Admit)
        .await;
    shows(&ctx, &line(2)).unwrap();
}
