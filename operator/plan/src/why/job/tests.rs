//! Given what the fleet knows, then these words are said of a job.

use super::*;
use crate::fixture::{NOW, ago};
use crate::fleet::{API_VERSION, Device, Held, Node, Operator, Waiting};

const PAGE: &str = "https://github.com/acme/widgets/actions/runs/17/job/170";

fn job(name: &str, run: i64, id: Option<i64>) -> Job {
    let url = "https://github.com/acme/widgets/actions/runs";
    Job {
        id,
        name: name.to_owned(),
        repository: Some("acme/widgets".to_owned()),
        workflow: Some("ci".to_owned()),
        run_id: Some(run),
        url: Some(format!("{url}/{run}")),
    }
}

fn waits(name: &str, run: i64, id: Option<i64>, labels: &[&str]) -> WaitingJob {
    WaitingJob {
        job: job(name, run, id),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        since: Some(ago(90)),
    }
}

fn pool(name: &str, url: &str) -> Pool {
    Pool {
        namespace: "ci".to_owned(),
        name: name.to_owned(),
        url: format!("https://github.com/{url}"),
        labels: vec!["self-hosted".to_owned(), "cuda".to_owned()],
        ready: true,
        held: vec![],
        gpu: "1 x nvidia.com/gpu".to_owned(),
        runners: 1,
        pending: 0,
        gated: 0,
        online: 1,
        busy: 0,
        devices: vec![],
        other_devices: None,
        quarantined: 0,
        queue: Waiting::default(),
    }
}

fn ends(name: &str, run: i64, at: Timestamp, result: &str) -> Event {
    Event {
        at,
        kind: EventKind::Job,
        result: result.to_owned(),
        failed: result != "success",
        pool: "ci/pool".to_owned(),
        runner: "pool-aaaaa".to_owned(),
        node: Some("node-1".to_owned()),
        devices: vec!["GPU-a".to_owned()],
        job: Some(job(name, run, None)),
        message: None,
    }
}

/// A device on which a runner runs a job.
fn device(job: Option<Job>) -> Device {
    Device {
        pool: Some("ci/pool".to_owned()),
        runner: Some("pool-aaaaa".to_owned()),
        since: Some(ago(30)),
        job,
        ..Device::new(DeviceState::Job)
    }
}

/// A fleet with one pool of acme/widgets, as the operator that leads knows it.
fn fleet() -> Fleet {
    Fleet {
        api_version: API_VERSION.to_owned(),
        generated_at: NOW,
        operator: Some(Operator {
            name: "operator-1".to_owned(),
            version: "0.1.0".to_owned(),
            since: ago(3_600),
            leads: true,
        }),
        further_operators: vec![],
        not_read: vec![],
        not_served: None,
        devices: [].into(),
        nodes_visible: true,
        others_visible: true,
        nodes: vec![Node {
            name: "node-1".to_owned(),
            ready: Some(true),
            cordoned: false,
            gpus: Some(8),
            product: None,
            devices: vec![],
        }],
        nodes_not_listed: 0,
        pools: vec![pool("pool", "acme/widgets")],
        pools_not_listed: 0,
        unserved: vec![],
        unserved_not_listed: 0,
        history: vec![],
        hours: None,
    }
}

/// What is said of a job in a fleet that is changed like this.
fn said(asked: &str, change: impl FnOnce(&mut Fleet)) -> (Vec<State>, String) {
    let mut fleet = fleet();
    change(&mut fleet);
    let answer = of(&fleet, &Asked::parse(asked).unwrap(), &[]);
    let states = answer.jobs.iter().map(|told| told.state).collect();
    let says = answer.jobs.into_iter().map(|told| told.says);
    let lines: Vec<String> = says.chain(answer.notes).collect();
    (states, lines.join("\n"))
}

fn queue(fleet: &mut Fleet, jobs: Vec<WaitingJob>) {
    let queue = &mut fleet.pools[0].queue;
    queue.jobs = i32::try_from(jobs.len()).unwrap();
    queue.waiting = jobs;
    queue.as_of = Some(ago(1));
    queue.why = Some("spec.replicas: 2 jobs wait until a runner has ended its job".to_owned());
}

fn missing(fleet: &mut Fleet) {
    let wanted = ["self-hosted", "cuda", "b300"];
    fleet.unserved = vec![waits("train", 17, Some(170), &wanted)];
    fleet.pools.push(pool("far", "acme/other"));
}

fn lost_by_condition(fleet: &mut Fleet) {
    fleet.operator = None;
    fleet.pools[0].held = vec![Held {
        type_: "QueueServed".to_owned(),
        reason: "LabelMissing".to_owned(),
        message: "The job train of run 17 asks for [cuda, b300], and no runner has all of these; this pool lacks b300. Add it to spec.labels".to_owned(),
    }];
}

/// What it is, what is said in it, the states of the jobs, and the words that must be among it.
type Situation = (
    &'static str,
    (Vec<State>, String),
    Vec<State>,
    &'static [&'static str],
);

/// The situations.
#[expect(clippy::too_many_lines, reason = "a table")]
fn situations() -> Vec<Situation> {
    use State::{Ended, Running, Unserved, Waiting};
    let cuda: &[&str] = &["cuda"];
    vec![
        (
            "it waits behind another, and the pool says why",
            said(PAGE, |fleet| {
                let jobs = vec![
                    waits("build", 16, Some(160), cuda),
                    waits("train", 17, Some(170), cuda),
                ];
                queue(fleet, jobs);
            }),
            vec![Waiting],
            &[
                "The job train of run 17 in acme/widgets waits since 1970-01-12T13:45:10Z. It asks for [cuda], and ci/pool would take it. 1 job in the queue is older. Why it waits: spec.replicas: 2 jobs wait until",
            ],
        ),
        (
            "two jobs of its run wait, and it is the one with the number",
            said(PAGE, |fleet| {
                let jobs = vec![
                    waits("build", 17, Some(169), cuda),
                    waits("train", 17, Some(170), cuda),
                ];
                queue(fleet, jobs);
            }),
            vec![Waiting],
            &["The job train of run 17"],
        ),
        (
            "the page of a run means all of its jobs",
            said("https://github.com/acme/widgets/actions/runs/17", |fleet| {
                let jobs = vec![
                    waits("build", 17, Some(169), cuda),
                    waits("train", 17, Some(170), cuda),
                ];
                queue(fleet, jobs);
            }),
            vec![Waiting, Waiting],
            &["The job build of run 17", "The job train of run 17"],
        ),
        (
            "two pools would take it",
            said("TRAIN", |fleet| {
                fleet.pools.push(pool("spare", "acme/widgets"));
                for pool in &mut fleet.pools {
                    pool.queue.waiting = vec![waits("train", 17, Some(170), cuda)];
                }
            }),
            vec![Waiting],
            &[
                "and ci/pool or ci/spare would take it. It is the oldest in the queue of ci/pool. Nothing that is known stands in its way",
            ],
        ),
        (
            "the queue was read long ago",
            said("train", |fleet| {
                queue(fleet, vec![waits("train", 17, Some(170), cuda)]);
                fleet.pools[0].queue.as_of = Some(ago(200));
            }),
            vec![Waiting],
            &["`kubectl cudarunner why pool --namespace ci` has it read now"],
        ),
        (
            "it waits for a scale set, which does not get its number",
            said(PAGE, |fleet| {
                queue(fleet, vec![waits("train", 17, None, cuda)]);
            }),
            vec![Waiting],
            &["Which of the jobs of its run has the number 170 is not known"],
        ),
        (
            "no pool takes it",
            said(PAGE, missing),
            vec![Unserved],
            &[
                "no pool takes it: it asks for [self-hosted, cuda, b300]. ci/pool comes nearest, and lacks b300. Add what is missing to spec.labels",
            ],
        ),
        (
            "no pool takes it, and the statuses alone say so",
            said(PAGE, lost_by_condition),
            vec![Unserved],
            &["this pool lacks b300", "fleetPage.enabled"],
        ),
        (
            "it runs, on two devices",
            said(PAGE, |fleet| {
                let of = || device(Some(job("train", 17, None)));
                fleet.nodes[0].devices = vec![of(), of()];
            }),
            vec![Running],
            &[
                "runs since 1970-01-12T13:46:10Z, on the runner pool-aaaaa of ci/pool, on the node node-1",
            ],
        ),
        (
            "it runs, and the queue was read before",
            said("train", |fleet| {
                let mut running = job("train", 17, None);
                running.repository = Some("Acme/Widgets".to_owned());
                fleet.nodes[0].devices = vec![device(Some(running))];
                queue(fleet, vec![waits("train", 17, Some(170), cuda)]);
            }),
            vec![Running],
            &["on the runner pool-aaaaa"],
        ),
        (
            "it has failed, and a later attempt waits",
            said("train", |fleet| {
                fleet.history = vec![ends("train", 17, ago(100), "failure")];
                queue(fleet, vec![waits("train", 17, Some(171), cuda)]);
            }),
            vec![Waiting, Ended],
            &[
                "ci/pool would take it",
                "has ended at 1970-01-12T13:45:00Z, on the runner pool-aaaaa of ci/pool, on the node node-1: failure",
            ],
        ),
        (
            "it has ended, and GitHub has not said how",
            said(PAGE, |fleet| {
                fleet.history = vec![ends("train", 17, ago(10), "unknown")];
            }),
            vec![Ended],
            &["GitHub has not said how"],
        ),
        (
            "a job of the same run in another repository is another",
            said(
                "https://github.com/acme/gadgets/actions/runs/17/job/170",
                |fleet| {
                    queue(fleet, vec![waits("train", 17, Some(170), cuda)]);
                },
            ),
            vec![],
            &[
                "No pool is for acme/gadgets at https://github.com, so none takes its jobs. Pools are for: https://github.com/acme/widgets",
            ],
        ),
        (
            "an Enterprise Server is not github.com",
            said(
                "https://github.acme.corp/acme/widgets/actions/runs/17/job/170",
                |fleet| {
                    queue(fleet, vec![waits("train", 17, Some(170), cuda)]);
                },
            ),
            vec![],
            &["No pool is for acme/widgets at https://github.acme.corp"],
        ),
        (
            "a job of an Enterprise Server",
            said(
                "https://github.acme.corp/acme/widgets/actions/runs/17/job/170?pr=3#step:2:1",
                |fleet| {
                    queue(fleet, vec![waits("train", 17, Some(170), cuda)]);
                    fleet.pools[0].url = "https://github.acme.corp/acme".to_owned();
                },
            ),
            vec![Waiting],
            &["ci/pool would take it"],
        ),
        (
            "nothing is known of it, and jobs run without a name",
            said(PAGE, |fleet| {
                fleet.pools[0].busy = 2;
                fleet.nodes[0].devices = vec![device(Some(job("other", 18, None)))];
                fleet.pools[0].queue.waiting_not_listed = 7;
            }),
            vec![],
            &[
                "Nothing is known of run 17 in acme/widgets",
                "ci/pool ([self-hosted, cuda])",
                "7 jobs wait of which no more is known",
                "1 of their runners run jobs whose names are known when they have ended",
                "`kubectl cudarunner why POOL` has it read now",
            ],
        ),
        (
            "nothing is known of it, and nobody has asked the operator",
            said("train", |fleet| fleet.operator = None),
            vec![],
            &[
                "Nothing is known of the job train",
                "from the statuses of the pools alone",
                "fleetPage.enabled",
            ],
        ),
        (
            "the replica that answers stands by",
            said("train", |fleet| {
                fleet.operator.as_mut().unwrap().leads = false;
            }),
            vec![],
            &["operator-1 answered, which stands by"],
        ),
    ]
}

#[test]
fn each_situation_of_a_job_is_told_in_words_that_lead_to_the_end_of_it() {
    for (situation, (states, says), expected, words) in situations() {
        assert_eq!(states, expected, "{situation}: {says}");
        for word in words {
            assert!(says.contains(word), "{situation}: {says}\nlacks {word}");
        }
    }
}

/// A pool that has two runners, both busy.
fn busy(name: &str, url: &str) -> CudaRunner {
    let mut resource = crate::fixture::resource();
    resource.metadata.name = Some(name.to_owned());
    resource.spec.github.url = format!("https://github.com/{url}");
    resource.spec.replicas = Some(2);
    resource.status = Some(
        serde_json::from_value(serde_json::json!({
            "observedGeneration": 1, "replicas": 2, "online": 2, "busy": 2, "queued": 1,
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Online", "message": "",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            }],
        }))
        .unwrap(),
    );
    resource
}

#[test]
fn where_the_page_is_off_the_pools_for_the_repository_are_told_with_what_holds_their_jobs() {
    // Given three pools of which the statuses alone are known: one for another repository, one that is free, one that is full
    let mut free = busy("free", "acme");
    free.status.as_mut().unwrap().busy = 1;
    free.status.as_mut().unwrap().queued = 0;
    let resources = [
        busy("far", "acme/gadgets"),
        free,
        busy("full", "acme/widgets"),
    ];
    let mut fleet = fleet();
    fleet.operator = None;
    fleet.not_read = vec!["the fleet page is off".to_owned()];
    fleet.pools = vec![
        pool("far", "acme/gadgets"),
        pool("free", "acme"),
        pool("full", "acme/widgets"),
    ];
    let said = |fleet: &Fleet, asked: &str, by_status: &[CudaRunner]| {
        let answer = of(fleet, &Asked::parse(asked).unwrap(), by_status);
        let pools: Vec<_> = answer.pools.iter().map(|p| p.pool.clone()).collect();
        (pools, answer)
    };
    // Then those for the job's are named, first the one that holds its jobs up, and why, as of the pool itself
    let (pools, answer) = said(&fleet, PAGE, &resources);
    assert_eq!(pools, ["ci/full", "ci/free"]);
    assert_eq!(answer.pools[0].causes, crate::why::causes(&resources[2]));
    assert_eq!(answer.pools[0].causes[0].about, "spec.replicas");
    assert_eq!(answer.pools[1].causes, []);
    // And one sentence says what is not known, why not, and how it could be
    let unread: Vec<_> = answer
        .notes
        .iter()
        .filter(|note| note.contains("fleetPage.enabled=true"))
        .collect();
    assert_eq!(unread.len(), 1, "{:?}", answer.notes);
    assert!(
        unread[0].contains("because the fleet page is off"),
        "{unread:?}"
    );
    // A name tells no repository
    assert_eq!(said(&fleet, "train", &resources).0, Vec::<String>::new());

    // When an operator's document has all of them but one, then that one is told by its status
    fleet.operator = Some(Operator {
        name: "operator-1".to_owned(),
        version: "0.1.0".to_owned(),
        since: ago(3_600),
        leads: true,
    });
    let (pools, answer) = said(&fleet, PAGE, &resources[2..]);
    assert_eq!(pools, ["ci/full"]);
    let notes = answer.notes.join("\n");
    assert!(
        notes.contains("from the statuses of the pools alone, of ci/full:")
            && notes.contains("ci/free ([self-hosted, cuda])"),
        "{notes}"
    );
    // ... and of a job of another repository nothing is said of it
    let other = "https://github.com/acme/gadgets/actions/runs/17/job/170";
    let (pools, answer) = said(&fleet, other, &resources[2..]);
    assert_eq!(pools, Vec::<String>::new());
    let notes = answer.notes.join("\n");
    assert!(!notes.contains("statuses of the pools"), "{notes}");
}

#[test]
fn an_address_that_is_none_of_a_job_is_refused() {
    for text in [
        "https://github.com/acme/widgets",
        "https://github.com/acme/widgets/pull/3",
        "https://github.com/acme/widgets/actions/runs/x",
        "https://github.com/acme/widgets/actions/runs/7/job",
        "https:///acme/widgets/actions/runs/7",
        "http://",
    ] {
        let refused = Asked::parse(text).unwrap_err();
        assert!(refused.contains("is not the address of a job"), "{refused}");
    }
    // The page of an attempt, and of a job of it
    let asked = Asked::parse("https://GitHub.com/acme/widgets/actions/runs/7/attempts/2/").unwrap();
    let Asked::Page(page) = asked else {
        panic!("a name");
    };
    assert_eq!(
        (page.run, page.job, page.origin.as_str()),
        (7, None, "https://github.com")
    );
}

#[test]
fn of_many_jobs_some_are_told_and_the_others_counted() {
    let (states, says) = said("train", |fleet| {
        fleet.history = (0..30)
            .map(|run| ends("train", run, ago(run), "success"))
            .collect();
    });
    assert_eq!(states.len(), MOST);
    assert!(says.contains("20 more jobs could be meant"), "{says}");
}

/// What the plan says of a job that nobody serves is what is looked for here.
#[test]
fn the_condition_of_a_missing_label_is_understood() {
    use crate::model::github::QueuedJob;
    let job = QueuedJob {
        run: 17,
        name: "train of run x".to_owned(),
        labels: vec!["cuda".to_owned(), "b300".to_owned()],
        ..QueuedJob::default()
    };
    let spec = crate::fixture::pool(1).spec.unwrap();
    let message = crate::queue::lost(&spec, &job);
    let (states, _) = said("train of run x", |fleet| {
        lost_by_condition(fleet);
        fleet.pools[0].held[0].message = message;
    });
    assert_eq!(states, [State::Unserved]);
}
