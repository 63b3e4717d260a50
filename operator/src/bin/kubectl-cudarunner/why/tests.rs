//! What is said of a pool, of its operator, and in which time.

use cuda_runner_operator::lease::{NAMESPACES, SELECTOR};
use cuda_runner_plan::why::job::Asked;
use cudarunner_crds::OperatorStatus;

use super::*;
use crate::fixture;
use crate::played::{Answered, Late, answers, pools_of};
use crate::top::tests::{DOCUMENT, SERVICES, service};

fn answer(pool: CudaRunner) -> Answer {
    Answer { pool, doubt: None }
}

#[test]
fn what_holds_is_said_and_what_does_not_is_left_out() {
    let text = text(&answer(fixture::pool("my-pool")));
    fixture::fits(&text);
    insta::assert_snapshot!(text);
    fixture::in_the_reference(&text);
    assert!(!text.contains("Accepted") && !text.contains("Ready ("));
}

#[test]
fn a_pool_that_nothing_holds_says_so() {
    let text = text(&answer(fixture::pool("spare")));
    assert!(text.starts_with("Nothing holds"), "{text}");
}

#[test]
fn a_pool_that_is_not_ready_for_a_reason_that_may_pass_says_it() {
    let mut pool = fixture::pool("my-pool");
    let status = pool.status.as_mut().unwrap();
    status.conditions.retain(|c| c.type_ == "Ready");
    (status.gated, status.pending) = (0, 0);
    status.conditions[0].status = "False".to_owned();
    assert!(text(&answer(pool)).starts_with("Ready ("));
}

#[test]
fn what_a_runner_waits_for_is_said_though_others_are_online() {
    let mut pool = fixture::pool("spare");
    let status = pool.status.as_mut().unwrap();
    let word = "container runner, image a/b:1: ImagePullBackOff: not found";
    status.runners.truncate(1);
    status.runners[0].waiting = Some(word.to_owned());
    let text = text(&answer(pool.clone()));
    assert!(
        text.replace('\n', " ").contains("waits: container runner"),
        "{text}"
    );
    assert_eq!(json(&answer(pool))["waiting"].as_object().unwrap().len(), 1);
}

#[test]
fn each_thing_is_said_once() {
    // Given three failures in a row for the same reason, which a condition tells too
    let mut pool = fixture::pool("my-pool");
    let status = pool.status.as_mut().unwrap();
    let failure = status.last_failures[0].clone();
    status.last_failures = vec![failure.clone(), failure.clone(), failure.clone()];
    // Then its words are there once, and one line tells of all three
    let text = text(&answer(pool)).replace("\n  ", " ");
    assert_eq!(text.matches(&failure.message).count(), 1, "{text}");
    assert!(
        text.contains("and 2 before (GateFailed): as above"),
        "{text}"
    );
}

#[test]
fn programs_get_the_causes_too() {
    let doubted = Answer {
        pool: fixture::pool("my-pool"),
        doubt: Some("old".to_owned()),
    };
    let json = json(&doubted);
    assert_eq!(json["causes"][0]["about"], "RunnersOnline (Unschedulable)");
    assert_eq!(
        (&json["queued"], &json["looked"]),
        (&json!(2), &json!(false))
    );
}

#[test]
fn of_all_pools_those_are_told_that_something_holds() {
    let (held, free) = (fixture::pool("my-pool"), fixture::pool("spare"));
    let of = |pools: &[CudaRunner], is_absent: bool, is_known: bool| {
        text_of_all(&All {
            pools: pools.to_vec(),
            absent: vec![is_absent; pools.len()],
            is_known,
        })
    };
    let text = of(&[free.clone(), held.clone()], false, true);
    fixture::fits(&text);
    assert!(text.starts_with("ci/my-pool\n  RunnersOnline ("), "{text}");
    assert!(
        text.ends_with("Nothing holds the other pools, 1 of 2.\n"),
        "{text}"
    );
    let free = [free];
    assert_eq!(
        of(&free, false, true),
        "Nothing holds any of the 1 pools.\n"
    );
    assert_eq!(of(&[], false, true), "There is no CudaRunner.\n");
    // Of what nobody serves nobody knows that nothing holds it
    let text = of(&[free[0].clone(), held], true, true);
    assert!(
        text.starts_with("No operator serves any of the 2 pools: "),
        "{text}"
    );
    assert!(
        text.contains("\nci/my-pool\n") && !text.contains("Nothing holds"),
        "{text}"
    );
    // ... and who does not know that says so
    let text = of(&free, false, false);
    assert!(
        text.contains("as they were last seen. Whether an operator"),
        "{text}"
    );
}

const LEASES: &str = "GET /apis/coordination.k8s.io/v1/leases";
const PODS: &str = "GET /api/v1/pods";
const OF_A: &str = "GET /apis/coordination.k8s.io/v1/namespaces/gpu-a/leases";

/// A pool that names an operator which selects `shard=a`, in the namespace gpu-a.
fn of_a() -> Value {
    let mut pool = serde_json::to_value(fixture::pool("spare")).unwrap();
    let named = OperatorStatus {
        namespace: "gpu-a".to_owned(),
        name: "op-a".to_owned(),
    };
    pool["status"]["operator"] = serde_json::to_value(named).unwrap();
    pool
}

/// A Lease that was renewed just now.
fn lease(namespace: &str, annotations: &Value) -> Value {
    let renewed = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::now());
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": format!("op-{}", &namespace[4..]), "namespace": namespace, "annotations": annotations,
            "labels": {"app.kubernetes.io/name": "cuda-runner-operator"},
        },
        "spec": {"holderIdentity": "one", "renewTime": renewed},
    })
}

/// What is answered, by request, where no operator looks: the pool, and these.
fn unlooked(pool: Value, others: Vec<(&'static str, Answered)>) -> Late {
    let (one, all) = (format!("{}/spare", pools_of("ci")), pools_of("ci"));
    let mut late = Late::default()
        .on(&format!("PATCH {one}"), Answered::Object(pool.clone()))
        .on(&format!("GET {all}"), Answered::List(vec![pool]))
        .on(&format!("WATCH GET {all}"), Answered::Never);
    for (request, answer) in others {
        late = late.on(request, answer);
    }
    late
}

async fn doubted(late: Late) -> String {
    let answer = ask(&answers(late), "spare", LOOK).await.unwrap().unwrap();
    answer.doubt.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_operator_is_gone_is_told_of_the_one_that_runs_and_does_not_select_it() {
    // Given that the namespace of the pool's operator was deleted, with the Lease, and another operator runs elsewhere
    let b = json!({SELECTOR: "shard=b", NAMESPACES: "ml,hpc"});
    let said = doubted(unlooked(
        of_a(),
        vec![
            (OF_A, Answered::List(vec![])),
            (LEASES, Answered::List(vec![lease("gpu-b", &b)])),
            (PODS, Answered::List(vec![])),
        ],
    ))
    .await;
    assert_eq!(
        said,
        "The operator gpu-a/op-a, which served this pool, is gone: there is no Lease of it. So all of this is old. No operator that runs selects this pool, so nothing is done for it: gpu-b/op-b runs and serves the pools with the labels shard=b in the namespaces ml,hpc. Give the CudaRunner labels that one selects, or change poolSelector or watchNamespaces in the chart of one"
    );
}

#[tokio::test(start_paused = true)]
async fn an_operator_is_known_by_its_lease_or_by_its_pod() {
    let pod = json!({
        "metadata": {
            "name": "op-1", "namespace": "gpu-c",
            "labels": {"app.kubernetes.io/name": "cuda-runner-operator"},
        },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    let none = serde_json::to_value(fixture::pool("spare")).unwrap();
    let list = |all: Vec<Value>| Answered::List(all);
    for (pool, others, words) in [
        (
            of_a(),
            vec![
                (
                    OF_A,
                    list(vec![lease("gpu-a", &json!({SELECTOR: "shard=a"}))]),
                ),
                (LEASES, list(vec![])),
            ],
            "serves this pool no more",
        ),
        (
            of_a(),
            vec![(OF_A, list(vec![lease("gpu-a", &json!({}))]))],
            "The operator runs and has not looked",
        ),
        (
            none.clone(),
            vec![(LEASES, list(vec![])), (PODS, list(vec![pod]))],
            "The operator runs and has not looked",
        ),
        (
            none.clone(),
            vec![(LEASES, list(vec![])), (PODS, list(vec![]))],
            "No operator runs in this cluster",
        ),
        (
            none,
            vec![
                (LEASES, Answered::Refused(403)),
                (PODS, Answered::Refused(403)),
            ],
            "Does the operator run?",
        ),
    ] {
        let said = doubted(unlooked(pool, others)).await;
        assert!(said.contains(words), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_looked_leaves_no_doubt_and_the_newest_status_is_told() {
    // Given an operator that looks: whatever was asked, the pool in deletion is answered at once
    let mut pool = serde_json::to_value(fixture::pool("spare")).unwrap();
    let before = pool.clone();
    pool["metadata"]["deletionTimestamp"] = json!("2026-03-02T09:00:00Z");
    let all = pools_of("ci");
    let late = Late::default()
        .on(&format!("PATCH {all}/spare"), Answered::Object(before))
        .on(&format!("GET {all}"), Answered::List(vec![pool]));
    let start = Instant::now();
    let answer = ask(&answers(late), "spare", Duration::from_secs(30)).await;
    let answer = answer.unwrap().unwrap();
    assert_eq!(answer.doubt, None);
    assert!(answer.pool.metadata.deletion_timestamp.is_some());
    assert!(start.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_pool_is_a_job() {
    for refused in [404, 403] {
        let one = format!("{}/train", pools_of("ci"));
        let late = Late::default()
            .on(&format!("PATCH {one}"), Answered::Refused(refused))
            .on(&format!("GET {one}"), Answered::Refused(404));
        let answer = ask(&answers(late), "train", LOOK).await.unwrap();
        assert!(answer.is_none());
    }
    // What cannot be a name of a pool is not asked for
    let answer = ask(&answers(Late::default()), "build (12.4)", LOOK).await;
    assert!(answer.unwrap().is_none());
    // And who may not even see it is told so
    let one = format!("{}/spare", pools_of("ci"));
    let late = Late::default()
        .on(&format!("PATCH {one}"), Answered::Refused(403))
        .on(&format!("GET {one}"), Answered::Refused(403));
    let refused = ask(&answers(late), "spare", LOOK).await.err().unwrap();
    assert!(refused.contains("cannot be asked"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn who_may_not_change_a_pool_is_told_its_status_and_that_nobody_was_asked() {
    for (leases, words) in [
        (Answered::Refused(403), "Nobody was asked to look at GitHub"),
        (
            Answered::List(vec![lease("gpu-a", &json!({}))]),
            "Nobody was asked to look at GitHub",
        ),
        (Answered::List(vec![]), "is gone: there is no Lease of it"),
    ] {
        let one = format!("{}/spare", pools_of("ci"));
        let late = Late::default()
            .on(&format!("PATCH {one}"), Answered::Refused(403))
            .on(&format!("GET {one}"), Answered::Object(of_a()))
            .on(OF_A, leases.clone())
            .on(LEASES, leases)
            .on(PODS, Answered::Refused(403));
        let answer = ask(&answers(late), "spare", LOOK).await.unwrap().unwrap();
        let doubt = answer.doubt.clone().unwrap();
        assert!(doubt.contains(words), "{doubt}");
        let said = text(&answer);
        assert!(said.contains("Nothing holds this pool."), "{said}");
    }
}

/// What each form says first of pools whose operator is dead: all of them, a job, and `top`.
async fn first_lines(late: &Late) -> [String; 3] {
    const JOB: &str = "https://github.com/acme/widgets/actions/runs/17/job/170";
    let pools = answers(late.clone());
    let now = Timestamp::now();
    let all = text_of_all(&all(&pools, now).await.unwrap());
    let asked = Asked::parse(JOB).unwrap();
    let job = job::text(&job::ask(&pools, &asked, now).await.unwrap());
    let top = crate::top::text(&crate::top::fleet(&pools, now).await.unwrap());
    [all, job, top].map(|text| text.replace('\n', " "))
}

#[tokio::test(start_paused = true)]
async fn pools_that_no_operator_serves_are_told_first_in_every_form() {
    // Given statuses that look well, and no operator any more: uninstalled, or dead, or none that selects them
    let mut dead = lease("gpu-a", &json!({}));
    dead["spec"]["renewTime"] = json!("2026-01-01T00:00:00.000000Z");
    let other = lease("gpu-b", &json!({SELECTOR: "shard=b"}));
    let late = |leases: Answered| {
        Late::default()
            .on(&format!("GET {SERVICES}"), Answered::List(vec![]))
            .on(
                "GET /apis/cudarunner.dev/v1alpha1/cudarunners",
                Answered::List(vec![of_a()]),
            )
            .on(LEASES, leases)
            .on(PODS, Answered::List(vec![]))
            .on("GET /api/v1/nodes", Answered::List(vec![]))
            .each(BUSY)
    };
    for leases in [vec![], vec![dead], vec![other]] {
        let start = Instant::now();
        for text in first_lines(&late(Answered::List(leases.clone()))).await {
            assert!(text.starts_with("No operator serves ci/spare: "), "{text}");
            assert!(
                !text.contains("Nothing holds any") && !text.contains("page is off"),
                "{text}"
            );
        }
        assert!(start.elapsed() < Duration::from_secs(1));
    }
    // And where one does, or nobody can tell, it is not said
    let there = Answered::List(vec![lease("gpu-a", &json!({}))]);
    for leases in [there, Answered::Refused(403), Answered::Never] {
        for text in first_lines(&late(Answered::Refused(403)).on(LEASES, leases)).await {
            assert!(!text.contains("No operator serves"), "{text}");
        }
    }
}

/// The API server answers each request so late, a busy one's time.
const BUSY: Duration = Duration::from_millis(100);

#[tokio::test(start_paused = true)]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn an_answer_takes_less_than_a_second_whoever_does_not_answer() {
    const JOB: &str = "https://github.com/acme/widgets/actions/runs/17/job/170";
    let pools = "GET /apis/cudarunner.dev/v1alpha1/cudarunners";
    let services = format!("GET {SERVICES}");
    let one = format!("GET {}/spare", pools_of("ci"));
    let patch = format!("PATCH {}/spare", pools_of("ci"));
    let of_pool = |others| unlooked(of_a(), others).each(BUSY);
    let of_job = |page: Answered, after: Duration| {
        Late::default()
            .on(&services, Answered::List(vec![service()]))
            .on(pools, Answered::List(vec![of_a()]))
            .each(BUSY)
            .after(DOCUMENT, page, after)
    };
    let stands_by = crate::top::tests::of_operator(false);
    for (situation, asked, late) in [
        (
            "no operator looks, and its Lease is there",
            "spare",
            of_pool(vec![
                (OF_A, Answered::List(vec![lease("gpu-a", &json!({}))])),
                (LEASES, Answered::List(vec![])),
                (PODS, Answered::List(vec![])),
            ]),
        ),
        (
            "no operator is there",
            "spare",
            of_pool(vec![
                (OF_A, Answered::List(vec![])),
                (LEASES, Answered::List(vec![])),
                (PODS, Answered::List(vec![])),
            ]),
        ),
        (
            "neither an operator nor a list of Leases answers",
            "spare",
            of_pool(vec![
                (OF_A, Answered::Never),
                (LEASES, Answered::Never),
                (PODS, Answered::Never),
            ]),
        ),
        (
            "the page does not answer",
            JOB,
            of_job(Answered::Never, BUSY),
        ),
        (
            "the page is refused",
            JOB,
            of_job(Answered::Refused(503), BUSY),
        ),
        (
            "a replica that stands by answers each time, late",
            JOB,
            of_job(Answered::Object(stands_by), Duration::from_millis(200)),
        ),
        (
            "the pages are not listed",
            JOB,
            Late::default()
                .on(&services, Answered::Never)
                .on(pools, Answered::List(vec![of_a()]))
                .each(BUSY),
        ),
        (
            "neither a page nor a list of Leases answers",
            JOB,
            of_job(Answered::Never, BUSY)
                .on(LEASES, Answered::Never)
                .on(PODS, Answered::Never),
        ),
        (
            "all pools, and nobody lists Leases",
            "",
            Late::default()
                .on(pools, Answered::List(vec![of_a()]))
                .each(BUSY)
                .on(LEASES, Answered::Never)
                .on(PODS, Answered::Never),
        ),
        (
            "a pool that may not be changed, and nobody lists Leases",
            "spare",
            unlooked(of_a(), vec![])
                .on(&patch, Answered::Refused(403))
                .on(&one, Answered::Object(of_a()))
                .each(BUSY)
                .on(OF_A, Answered::Never)
                .on(LEASES, Answered::Never)
                .on(PODS, Answered::Never),
        ),
        (
            "the pages are off",
            JOB,
            Late::default()
                .on(&services, Answered::List(vec![]))
                .on(pools, Answered::List(vec![of_a()]))
                .each(BUSY),
        ),
    ] {
        let pools = answers(late);
        let start = Instant::now();
        if asked.is_empty() {
            all(&pools, fixture::NOW).await.unwrap();
        } else if asked == JOB {
            let asked = Asked::parse(asked).unwrap();
            job::ask(&pools, &asked, fixture::NOW).await.unwrap();
        } else {
            ask(&pools, asked, LOOK).await.unwrap().unwrap();
        }
        let took = start.elapsed();
        // What is left of a second is for the program's start and the connection.
        assert!(took <= Duration::from_millis(700), "{situation}: {took:?}");
    }
}
