use super::*;
use jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::json;

#[test]
fn a_pod_that_kubernetes_took_away_is_kept_until_that_is_told() {
    // Given pods of which one was evicted, and two deleted, one of them idle, in the state in which they vanish
    let pods = Pods::default();
    let key = fixture_key();
    for (name, conditions) in [
        (
            "pool-aaaaa",
            json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]),
        ),
        ("pool-bbbbb", json!([])),
        (
            "pool-ccccc",
            json!([{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]),
        ),
    ] {
        let phase = if name == "pool-ccccc" {
            "Running"
        } else {
            "Failed"
        };
        let pod = json!({
            "metadata": {"name": name, "namespace": "ci"},
            "spec": {
                "initContainers": [{"name": "gpu", "image": "runner:1"}],
                "containers": [{"name": "main", "image": "gate:1"}],
            },
            "status": {"phase": phase, "conditions": conditions, "initContainerStatuses": [{
                "name": "gpu", "image": "", "imageID": "", "ready": true, "restartCount": 1,
                "state": {"running": {}},
            }]},
        });
        pods.remove(&key, &serde_json::from_value(pod).unwrap(), false);
    }

    // Then the first is still shown, and gone when it has been reported
    let names = |reported: bool| -> Vec<String> {
        let (_, vanished) = pods.look(&key, "", |_| reported);
        vanished.into_iter().map(|runner| runner.name).collect()
    };
    assert_eq!(names(false), ["pool-aaaaa"]);
    assert_eq!(names(true), Vec::<String>::new());
    assert_eq!(names(false), Vec::<String>::new());
}

#[test]
fn a_pool_has_no_runners_of_an_earlier_one_of_its_name() {
    // Given a runner, and one that has vanished
    let (pods, key) = (Pods::default(), fixture_key());
    pods.apply(&idle("pool-aaaaa"), true);
    let mut deleted = holder("pool-bbbbb", "pool", Some("pool"), "Running");
    deleted.owner_references_mut()[0].uid = "u".to_owned();
    pods.delete(&deleted, true);
    let has = |uid: &str| {
        let (there, vanished) = pods.look(&key, uid, |_| false);
        (there.len(), vanished.len())
    };
    // Then they are the pool's whose uid they name
    assert_eq!(has("u"), (1, 1));
    // And nobody tells the next one that they were its own
    assert_eq!(has("v"), (0, 0));
}

#[test]
fn of_runners_that_nobody_asks_for_the_last_are_kept() {
    let pods = Pods::default();
    let mut pod = holder("pool-aaaaa", "pool", Some("pool"), "Running");
    for number in 0..=MOST_VANISHED {
        pod.metadata.namespace = Some(number.to_string());
        pods.delete(&pod, false);
    }
    let kept = pods.vanished_ones();
    assert_eq!(kept.len(), MOST_VANISHED);
    assert_eq!(kept[0].pool.namespace, "1");
}

#[test]
fn all_runners_of_a_node_that_is_drained_are_kept_until_they_are_told_of() {
    // Given many pods that are evicted at once
    let (pods, key) = (Pods::default(), fixture_key());
    for number in 0..40 {
        let pod = holder(&format!("pool-{number}"), "pool", Some("pool"), "Running");
        pods.delete(&pod, true);
    }
    // Then each is shown until it is told of
    let vanished = |is_told: &dyn Fn(&Runner) -> bool| pods.look(&key, "pool", is_told).1;
    assert_eq!(vanished(&|_| false).len(), 40);
    assert_eq!(vanished(&|runner| runner.name != "pool-7").len(), 1);
    assert_eq!(vanished(&|_| false).len(), 1);
}

#[test]
fn who_takes_over_tells_what_the_one_before_may_have_had_no_time_for() {
    // Given a replica that stands by, and pods that go: one that waited for a node, and one that was evicted with its job
    let (pods, key) = (Pods::default(), fixture_key());
    pods.delete(
        &holder("pool-aaaaa", "pool", Some("pool"), "Pending"),
        false,
    );
    let mut evicted = holder("pool-bbbbb", "pool", Some("pool"), "Failed");
    let target =
        json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]);
    evicted.status.as_mut().unwrap().conditions = serde_json::from_value(target).unwrap();
    pods.delete(&evicted, false);
    // When it leads soon, then the first may have been removed by the one that led, and the other is told
    let vanished = || -> Vec<String> {
        let (_, vanished) = pods.look(&key, "pool", |_| false);
        vanished.into_iter().map(|runner| runner.name).collect()
    };
    pods.begin(Timestamp::now());
    assert_eq!(vanished(), ["pool-bbbbb"]);
    // When it leads much later, then that is told long since
    pods.begin(Timestamp::now().after(TAKEOVER));
    assert_eq!(vanished(), Vec::<String>::new());
}

#[test]
fn an_end_that_was_seen_is_kept_where_the_watch_missed_that_the_pod_went() {
    // Given a runner that was evicted, and one that waits for jobs
    let (pods, key) = (Pods::default(), fixture_key());
    let mut evicted = idle("pool-aaaaa");
    let status = evicted.status.get_or_insert_default();
    status.phase = Some("Failed".to_owned());
    status.reason = Some("Evicted".to_owned());
    pods.apply(&evicted, true);
    pods.apply(&idle("pool-bbbbb"), true);
    // When a new list of the pods has neither
    pods.retain(&Scope::Cluster, &HashSet::new(), true);
    // Then the first is kept until it is told of
    let (there, vanished) = pods.look(&key, "u", |_| false);
    let vanished: Vec<&str> = vanished.iter().map(|runner| runner.name.as_str()).collect();
    assert_eq!((there.len(), &vanished[..]), (0, &["pool-aaaaa"][..]));
}

/// A pod of this name, that is ready.
fn idle(name: &str) -> Pod {
    let pod = json!({
        "metadata": {
            "name": name, "namespace": "ci", "uid": name, "labels": {cudarunner_crds::POOL_LABEL: "pool"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "CudaRunner", "name": "pool", "uid": "u"}
            ],
        },
        "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]},
    });
    serde_json::from_value(pod).unwrap()
}

#[test]
fn each_pod_that_goes_is_kept_until_it_is_told_of() {
    // Given three pods, of which one goes while the watch looks, and one while it does not
    let (pods, key) = (Pods::default(), fixture_key());
    for name in ["pool-aaaaa", "pool-bbbbb", "pool-ccccc"] {
        pods.apply(&idle(name), true);
    }
    pods.remove(&key, &idle("pool-aaaaa"), true);
    let listed = HashSet::from([("ci".to_owned(), "pool-ccccc".to_owned())]);
    assert_eq!(pods.retain(&Scope::Cluster, &listed, true).len(), 1);

    // Then both are kept, and each is told of once
    let names = || -> Vec<String> {
        let gone = pods.gone(&key).into_iter();
        gone.map(|gone| gone.runner.name.clone()).collect()
    };
    assert_eq!(names(), ["pool-aaaaa", "pool-bbbbb"]);
    assert!(pods.told("pool-aaaaa"));
    assert!(!pods.told("pool-aaaaa"));
    assert_eq!(names(), ["pool-bbbbb"]);

    // And where another replica leads, nothing is kept
    pods.remove(&key, &idle("pool-ccccc"), false);
    assert_eq!(names(), ["pool-bbbbb"]);
    pods.forget(&key);
    assert_eq!(names(), Vec::<String>::new());
}

/// The same pod with a gate that has passed on a device, on a node that it has since then.
fn passed(name: &str, bound: Timestamp) -> Pod {
    let report = json!({
        "schema": gate_report::SCHEMA, "devices": [{"uuid": "GPU-1"}],
    });
    let mut pod = serde_json::to_value(idle(name)).unwrap();
    pod["spec"] = json!({
        "nodeName": "node-1",
        "initContainers": [{"name": "gpu", "image": "runner:1"}],
        "containers": [{"name": "main", "image": "gate:1"}],
    });
    pod["status"] = json!({
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": bound.to_string()}],
        "initContainerStatuses": [{
            "name": "gpu", "image": "", "imageID": "", "ready": true, "restartCount": 1,
            "state": {"running": {}},
            "lastState": {"terminated": {"exitCode": 0, "message": report.to_string()}},
        }],
    });
    serde_json::from_value(pod).unwrap()
}

#[test]
fn that_a_gate_passed_is_known_though_its_pod_is_gone_for_as_long_as_it_matters() {
    // Given pods whose gates passed, of which one is deleted, one makes room for a namesake, and one goes unwatched
    let (pods, key, now) = (Pods::default(), fixture_key(), Timestamp::now());
    let names = ["pool-aaaaa", "pool-bbbbb", "pool-ccccc", "pool-ddddd"];
    let bound = |number| now - SignedDuration::from_secs(number);
    for (name, number) in names.into_iter().zip(1..) {
        pods.apply(&passed(name, bound(number)), false);
    }
    assert_eq!(pods.passes(now), None, "before a list");
    pods.remove(&key, &passed("pool-aaaaa", bound(1)), false);
    let mut namesake = idle("pool-bbbbb");
    namesake.metadata.uid = Some("another".to_owned());
    pods.apply(&namesake, false);
    let listed =
        HashSet::from(["pool-bbbbb", "pool-ddddd"].map(|n| ("ci".to_owned(), n.to_owned())));
    pods.retain(&Scope::Cluster, &listed, false);

    // Then each is known, and with which device; from when on that is all, the list says
    let passes = |now| pods.passes(now).unwrap();
    let known = |now| {
        passes(now)
            .all
            .into_iter()
            .map(|p| p.bound)
            .collect::<BTreeSet<_>>()
    };
    let here = |pass: &Pass| pass.node == "node-1" && pass.devices == ["GPU-1"];
    assert_eq!(known(now), (1..5).map(bound).collect());
    assert!(passes(now).all.iter().all(here) && passes(now).since >= now);

    // And nothing is kept of what matters no more
    let later = now.after(RECENT);
    assert!(known(later).is_empty());
    let gone = || pods.gone_passes().all.len();
    assert_eq!(gone(), 3);
    for pass in &mut pods.gone_passes().all {
        pass.bound = now - RECENT;
    }
    pods.remove(&key, &passed("pool-ddddd", bound(4)), false);
    assert_eq!(gone(), 1);
}

#[test]
fn where_too_many_gates_have_passed_it_is_known_since_when_none_is_missing() {
    let (pods, key, now) = (Pods::default(), fixture_key(), Timestamp::now());
    pods.retain(&Scope::Cluster, &HashSet::new(), false);
    let mut one = read(&passed("pool-aaaaa", now));
    for number in 0..=i64::try_from(MOST_PASSES).unwrap() {
        one.life.bound = Some(now + SignedDuration::from_secs(number));
        pods.keep(&key, one.clone(), false);
    }
    // Then the first is missing, and a job that ended before that has no proof
    let passes = pods.passes(now).unwrap();
    assert_eq!(passes.all.len(), MOST_PASSES);
    assert!(passes.all.iter().all(|pass| pass.bound > passes.since));
}

#[test]
fn a_pod_whose_name_another_one_has_by_now_is_told_of() {
    let (pods, key) = (Pods::default(), fixture_key());
    let mut pod = idle("pool-0");
    pods.apply(&pod, true);
    pod.metadata.uid = Some("another".to_owned());
    pods.apply(&pod, true);
    let gone = pods.gone(&key);
    assert_eq!((gone.len(), gone[0].runner.uid.as_str()), (1, "pool-0"));
}

#[test]
fn of_those_that_nobody_tells_of_the_oldest_are_dropped() {
    let (pods, key) = (Pods::default(), fixture_key());
    let mut one = read(&idle("pool-aaaaa"));
    for number in 0..=MOST_GONE {
        one.uid = number.to_string();
        pods.note_gone(&key, one.clone(), Timestamp::UNIX_EPOCH);
    }
    assert_eq!(pods.gone(&key).len(), MOST_GONE);
}

/// A pod with a GPU, on a node of its own name.
fn holder(name: &str, label: &str, owner: Option<&str>, phase: &str) -> Pod {
    let owner = owner
        .map(|pool| json!({"apiVersion": "v1", "kind": "CudaRunner", "name": pool, "uid": pool}));
    let owners: Vec<_> = owner.into_iter().collect();
    let pod = json!({
        "metadata": {
            "name": name, "namespace": "ci", "labels": {cudarunner_crds::POOL_LABEL: label},
            "ownerReferences": owners,
        },
        "spec": {
            "nodeName": (phase != "Pending").then_some(name),
            "containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        },
        "status": {"phase": phase},
    });
    serde_json::from_value(pod).unwrap()
}

/// Who has which pods, and that each that is there counts once.
fn assert_counted(pods: &Pods, there: &BTreeMap<String, Pod>) {
    let mut of_pools = vec![];
    let mut held = Others::new();
    pods.add_others(&mut held, |pool, runner| {
        of_pools.push((pool.name.clone(), runner.name.clone()));
        false
    });
    let is_over = |pod: &Pod| pod.status.clone().unwrap().phase.unwrap() == "Succeeded";
    let holding = there.values().filter(|pod| !is_over(pod));
    let nodes = holding.filter_map(|pod| pod.spec.clone().unwrap().node_name);
    let one = BTreeMap::from([("nvidia.com/gpu".to_owned(), 1)]);
    assert_eq!(held, nodes.map(|node| (node, one.clone())).collect());

    let owned = there.values().filter_map(|pod| {
        let owner = &pod.owner_references().first()?.name;
        let is_own = pod.labels()[cudarunner_crds::POOL_LABEL] == *owner;
        is_own.then(|| (owner.clone(), pod.name_any()))
    });
    of_pools.sort();
    assert_eq!(
        of_pools,
        owned
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
}

proptest! {
    #[test]
    fn a_pod_with_a_pools_label_counts_once_whoever_owns_it(
        steps in proptest::collection::vec((0..3_usize, 0..2_usize, 0..3_usize, 0..5_usize), 1..24)
    ) {
        let (pods, mut there) = (Pods::default(), BTreeMap::new());
        for (pod, label, owner, what) in steps {
            let name = ["pool-a-1", "pool-a-2", "pool-b-1"][pod];
            let label = ["pool-a", "pool-b"][label];
            let owner = [Some("pool-a"), Some("pool-b"), None][owner];
            if let Some(phase) = ["Pending", "Running", "Succeeded"].get(what) {
                let pod = holder(name, label, owner, phase);
                pods.apply(&pod, true);
                there.insert(name.to_owned(), pod);
            } else if what == 3 {
                // It may be another's as it goes.
                if there.remove(name).is_some() {
                    pods.delete(&holder(name, label, owner, "Running"), true);
                }
            } else {
                there.remove(name);
                let listed = there.values().map(pod_key).collect();
                pods.retain(&Scope::Cluster, &listed, true);
            }
            assert_counted(&pods, &there);
        }
    }
}

#[test]
fn a_runner_that_loses_its_pool_is_told_of_once_and_wakes_it() {
    // Given a runner
    let (pods, key) = (Pods::default(), fixture_key());
    let apply = |owner| pods.apply(&holder("pool-aaaaa", "pool", owner, "Running"), true);
    assert_eq!(apply(Some("pool")), Some(vec![key.clone()]));
    // When its pool is deleted and leaves it behind, then the pool has it no more
    assert_eq!(apply(None), Some(vec![key.clone()]));
    assert_eq!(apply(None), None);
    assert_eq!(pods.of(&key, "pool"), []);
    assert_eq!(pods.gone(&key).len(), 1);
    // And however often it comes and goes, it is told of once: others' hours would have no place else
    assert_eq!(apply(Some("pool")), Some(vec![key.clone()]));
    assert_eq!(apply(None), Some(vec![key.clone()]));
    assert_eq!(pods.gone(&key).len(), 1);
    // And what it holds is forgotten with it, and of a scope that is not listed it is not
    let other = Scope::Namespace("other".to_owned());
    assert_eq!(pods.retain(&other, &HashSet::new(), true), []);
    assert_eq!(pods.strays().len(), 1);
    pods.delete(&holder("pool-aaaaa", "pool", None, "Running"), true);
    assert!(pods.strays().is_empty());
}

fn fixture_key() -> PoolKey {
    PoolKey {
        namespace: "ci".to_owned(),
        name: "pool".to_owned(),
    }
}

use http::{Request, Response};
use kube::client::Body;
use std::convert::Infallible;

#[tokio::test]
async fn pods_are_read_a_few_at_a_time() {
    let (asked, mut first) = tokio::sync::mpsc::channel(1);
    let service = tower::service_fn(move |request: Request<Body>| {
        let asked = asked.clone();
        async move {
            let _ = asked.send(request.uri().to_string()).await;
            std::future::pending::<()>().await;
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    });
    let client = Client::new(service, "default");
    let (ready, _) = flag::channel(false);
    let waker = Arc::new(Waker::new().0);
    let following = follow(client, Scope::Cluster, Arc::default(), waker, ready);
    let uri = tokio::select! {
        uri = first.recv() => uri.unwrap(),
        () = following => panic!("the watch ended"),
    };
    assert!(uri.contains(&format!("limit={PAGE}")), "{uri}");
}
