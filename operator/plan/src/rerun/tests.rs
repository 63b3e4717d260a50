//! Given what ended a job, and who says so, then it is run again, or not.

use cudarunner_crds::RunnerPhase;
use gate_report::Class;

use super::*;
use crate::fixture::{NOW, ago, first_node, gate_failure, node, observed, pool, runner};
use crate::model::github::{Run, RunJob};
use crate::model::node_marks::Quarantined;
use crate::model::pool::{Pool, PoolKey};
use crate::model::rerun::{CheckNote, Ended, NamedJob, Pass, Passes, RerunFacts};
use crate::model::runner::{Disruption, End, EndedJob, Failure, Job, Runner};
use crate::{Observed, Plan};

mod evidence;
mod properties;
mod verdicts;

const JOB: &str = "pool-aaaaa";

/// A pool that runs first attempts again.
fn wishing(limit: i32) -> Pool {
    let mut pool = pool(1);
    pool.spec_mut().rerun = Some(Rerun {
        on_gpu_fault: true,
        on_node_loss: true,
        limit,
    });
    pool
}

fn key() -> RunKey {
    ("acme/widgets".to_owned(), 17)
}

/// A job that ended a minute ago on the first device of node-1.
fn ended() -> Ended {
    Ended {
        runner: JOB.to_owned(),
        node: "node-1".to_owned(),
        devices: vec!["GPU-1".to_owned()],
        job: NamedJob {
            name: "train".to_owned(),
            run: key(),
            attempt: Some(1),
        },
        at: ago(60),
        cut: None,
    }
}

/// A gate that found a wrong result on that device.
fn broken() -> Failure {
    Failure {
        code: None,
        code_name: Some("WrongResult".to_owned()),
        device: Some("GPU-1".to_owned()),
        ..gate_failure(Class::Device)
    }
}

fn failed(pool: &Pool, name: &str, failure: Failure) -> Runner {
    let mut failed = runner(pool, name, RunnerPhase::Failed);
    failed.end = Some(End::Failed(failure));
    failed
}

/// The job has ended, and the next gate failed.
fn world(pool: &Pool, gate: Failure) -> Observed {
    let mut observed = observed(vec![failed(pool, "pool-bbbbb", gate)]);
    observed.reruns.ended = vec![ended()];
    observed.reruns.passes = Some(passes(vec![]));
    observed
}

/// The gates that passed within the last hour.
fn passes(all: Vec<Pass>) -> Passes {
    Passes {
        since: NOW - HOUR,
        all,
    }
}

fn run(status: &str, attempt: u32) -> Run {
    Run {
        id: 17,
        status: status.to_owned(),
        conclusion: None,
        html_url: String::new(),
        created_at: ago(600),
        check_suite_id: None,
        head_sha: Some("5ca1ab1e".to_owned()),
        workflow_id: Some(3),
        head_branch: Some("main".to_owned()),
        head_repository: Some(1),
        event: Some("push".to_owned()),
        attempt,
    }
}

fn job(id: u64, on: &str, conclusion: &str) -> RunJob {
    RunJob {
        id,
        name: "train (cuda)".to_owned(),
        status: "completed".to_owned(),
        conclusion: Some(conclusion.to_owned()),
        created_at: None,
        started_at: None,
        completed_at: Some(ago(59)),
        runner_name: Some(on.to_owned()),
        labels: vec![],
        html_url: None,
        attempt: 1,
    }
}

/// What GitHub says of a run that is over, with these jobs.
fn over(jobs: Vec<RunJob>) -> RunFacts {
    RunFacts {
        read: NOW,
        run: Some(run("completed", 1)),
        jobs,
        latest: vec![run("completed", 1)],
    }
}

/// One reconcile, whose status is stored.
fn step(pool: &mut Pool, observed: &Observed) -> Plan {
    let plan = crate::plan(pool, observed, NOW);
    pool.status = plan.status.clone();
    plan
}

fn asked(plan: &Plan) -> Vec<NewAttempt> {
    let actions = plan.actions.iter();
    let asked = actions.filter_map(|action| match action {
        Action::RunAgain(new) => Some(new.clone()),
        _ => None,
    });
    asked.collect()
}

/// What a commit is to be told unless it was.
fn untold(plan: &Plan) -> Vec<CheckNote> {
    let actions = plan.actions.iter();
    let untold = actions.filter_map(|action| match action {
        Action::TellCommit(untold) => Some(untold.note.clone()),
        _ => None,
    });
    untold.collect()
}

fn state(pool: &Pool) -> Vec<(RerunState, Option<&str>)> {
    let reruns = pool.status.reruns.iter();
    reruns
        .map(|e| (e.state.known().unwrap(), e.reason.as_deref()))
        .collect()
}

fn told(plan: &Plan, reason: Reason) -> Vec<&str> {
    let news = plan.news.iter().filter(|n| n.reason == reason);
    news.map(|n| n.note.as_str()).collect()
}

/// A runner that Kubernetes took away so many seconds ago, in the middle of the job.
fn taken(pool: &Pool, name: &str, reason: Reason, seconds: i64) -> Runner {
    let at = ago(seconds);
    let failure = Failure::new(reason, Class::Transient, String::new(), at, true);
    Runner {
        under_way: Some(Box::new(named())),
        disruption: Some(evicted(seconds)),
        ..failed(pool, name, failure)
    }
}

fn evicted(seconds: i64) -> Disruption {
    Disruption {
        reason: "EvictionByEvictionAPI".into(),
        message: String::new(),
        at: Some(ago(seconds)),
        by_own_use: false,
    }
}

fn named() -> Job {
    Job {
        job: "train".to_owned(),
        run: "17".to_owned(),
        attempt: "1".to_owned(),
        repository: "acme/widgets".to_owned(),
        ..Job::default()
    }
}

#[test]
fn a_job_whose_device_the_next_gate_finds_broken_is_run_again_once() {
    let mut pool = wishing(1);
    let mut observed = world(&pool, broken());
    // Given a job and a gate: the wish is in the status, and nothing is asked
    assert_eq!(asked(&step(&mut pool, &observed)), []);
    assert_eq!(state(&pool), [(RerunState::Waiting, None)]);
    let entry = &pool.status.reruns[0];
    assert_eq!(entry.device.as_deref(), Some("GPU-1"));
    assert_eq!(entry.code_name.as_deref(), Some("WrongResult"));

    // When the run goes on, then it is waited for
    let going_on = RunFacts {
        run: Some(run("in_progress", 1)),
        ..over(vec![])
    };
    observed.reruns.runs.insert(key(), going_on);
    assert_eq!(asked(&step(&mut pool, &observed)), []);
    assert_eq!(state(&pool), [(RerunState::Waiting, None)]);

    // When it is over, then the request is in the status before it is sent
    observed
        .reruns
        .runs
        .insert(key(), over(vec![job(5, JOB, "failure")]));
    assert_eq!(asked(&step(&mut pool, &observed)), []);
    assert_eq!(state(&pool), [(RerunState::Requested, None)]);
    let sent = asked(&step(&mut pool, &observed));
    assert_eq!((sent.len(), sent[0].job, sent[0].run), (1, Some(5), 17));
    assert_eq!(sent[0].note.sha, "5ca1ab1e");
    for part in ["train \\(cuda\\)", "GPU-1", "WrongResult", "node-1"] {
        assert!(sent[0].note.summary.contains(part), "{:?}", sent[0].note);
    }

    // When GitHub runs it again, then that is reported once
    observed.reruns.answers.insert(key(), Answer::Started);
    observed.reruns.runs.clear();
    let plan = step(&mut pool, &observed);
    assert_eq!(untold(&plan), [], "whoever asked has told it");
    let notes = told(&plan, Reason::JobRunAgain);
    assert!(
        notes.len() == 1 && notes[0].contains("train (cuda)"),
        "{notes:?}"
    );
    assert_eq!(
        (asked(&plan), state(&pool)),
        (vec![], vec![(RerunState::Started, None)])
    );

    // And whatever is seen of it afterwards changes nothing
    observed.reruns.answers.clear();
    observed
        .reruns
        .runs
        .insert(key(), over(vec![job(5, JOB, "failure")]));
    let plan = step(&mut pool, &observed);
    assert_eq!((asked(&plan), plan.news), (vec![], vec![]));
}

#[test]
fn the_commit_is_told_the_device_the_code_and_the_report() {
    // Given a gate that met an error of the driver's
    let mut pool = wishing(1);
    let found = Failure {
        code: Some(700),
        code_name: Some("CUDA_ERROR_ILLEGAL_ADDRESS".to_owned()),
        message: "GPU-1: an illegal address.".to_owned(),
        ..broken()
    };
    let mut observed = world(&pool, found);
    step(&mut pool, &observed);
    let red = over(vec![job(5, JOB, "failure")]);
    observed.reruns.runs.insert(key(), red);
    step(&mut pool, &observed);
    // When its job is run again, then the check run has all of it, and the page of the run
    let sent = asked(&step(&mut pool, &observed));
    let said = "**train \\(cuda\\)**, attempt 1

- Runner: pool-aaaaa
- Node: node-1
- Device: GPU-1
- Code: 700
- Found: CUDA\\_ERROR\\_ILLEGAL\\_ADDRESS
- Report: The next gate on the job's device failed: GPU-1: an illegal address.

";
    let note = &sent[0].note;
    assert_eq!(note.summary, said);
    assert_eq!(note.title, "GPU fault, job run again");
    let page = "https://github.com/acme/widgets/actions/runs/17";
    assert_eq!(note.url.as_deref(), Some(page));
}

#[test]
fn several_jobs_of_a_run_are_run_again_by_one_request() {
    // Given a node that takes two jobs of one run with it
    let mut pool = wishing(1);
    let runners = [JOB, "pool-ccccc"].map(|name| taken(&pool, name, Reason::NodeLost, 60));
    let mut observed = observed(runners.into());
    step(&mut pool, &observed);
    let jobs = vec![job(5, JOB, "failure"), job(6, "pool-ccccc", "failure")];
    observed.reruns.runs.insert(key(), over(jobs));
    step(&mut pool, &observed);
    let sent = asked(&step(&mut pool, &observed));
    assert_eq!((sent.len(), sent[0].job), (1, None));
    observed.reruns.answers.insert(key(), Answer::Started);
    let plan = step(&mut pool, &observed);
    assert_eq!(told(&plan, Reason::JobRunAgain).len(), 2);
}

/// Two jobs of one run that ended red on two devices of a node; the gate on the first has failed. One reconcile after that was
/// stored.
fn two_on_a_node() -> (Pool, Observed) {
    let mut pool = wishing(1);
    let mut observed = world(&pool, broken());
    let second = Ended {
        runner: "pool-ccccc".to_owned(),
        devices: vec!["GPU-2".to_owned()],
        ..ended()
    };
    observed.reruns.ended.push(second);
    let jobs = vec![job(5, JOB, "failure"), job(6, "pool-ccccc", "failure")];
    observed.reruns.runs.insert(key(), over(jobs));
    step(&mut pool, &observed);
    step(&mut pool, &observed);
    (pool, observed)
}

/// The gate on the second device fails, too.
fn fails_too(pool: &Pool, observed: &mut Observed, at: Timestamp) {
    let device = Some("GPU-2".to_owned());
    let gate = Failure {
        device,
        at,
        ..broken()
    };
    observed.runners.push(failed(pool, "pool-ddddd", gate));
}

#[test]
fn jobs_of_a_run_whose_devices_are_found_broken_one_after_the_other_are_run_again_at_once() {
    // Given that a gate may yet speak of the other red job of the run
    let (mut pool, mut observed) = two_on_a_node();
    assert_eq!(state(&pool), [(RerunState::Waiting, None)]);
    // When it does, two seconds later, then one request is for both
    fails_too(&pool, &mut observed, ago(18));
    step(&mut pool, &observed);
    let both = [(RerunState::Requested, None), (RerunState::Requested, None)];
    assert_eq!(state(&pool), both);
    let sent = asked(&step(&mut pool, &observed));
    assert_eq!((sent.len(), sent[0].job), (1, None));
}

#[test]
fn a_red_job_whose_device_is_well_is_not_waited_for_and_no_other_one_for_long() {
    // Given a gate that passes on the other one's device
    let (mut pool, mut observed) = two_on_a_node();
    observed.reruns.passes.as_mut().unwrap().all = vec![Pass {
        node: "node-1".to_owned(),
        devices: vec!["GPU-2".to_owned()],
        bound: ago(19),
    }];
    step(&mut pool, &observed);
    assert_eq!(asked(&step(&mut pool, &observed))[0].job, Some(5));

    // Given that no gate says anything of it for a minute
    let (mut pool, mut observed) = two_on_a_node();
    let later = NOW.after(SETTLE);
    observed.reruns.runs.get_mut(&key()).unwrap().read = later;
    for number in 0..2 {
        let plan = crate::plan(&pool, &observed, later);
        pool.status = plan.status.clone();
        let jobs: Vec<_> = asked(&plan).iter().map(|new| new.job).collect();
        assert_eq!(jobs, vec![Some(5); number]);
    }
    // When one does after all, then its job is left out, and that is said as it is
    let mut read = over(vec![]);
    read.run = Some(run("in_progress", 2));
    observed.reruns.runs.insert(key(), read);
    fails_too(&pool, &mut observed, later);
    let plan = crate::plan(&pool, &observed, later);
    pool.status = plan.status;
    let plan = crate::plan(&pool, &observed, later);
    let second = plan.status.reruns.iter().find(|e| e.runner == "pool-ccccc");
    let message = second.unwrap().message.as_deref().unwrap();
    assert_eq!(
        message,
        "The workflow run had another attempt before this was known. If the job is still red there, run it again by hand."
    );
}

#[test]
fn a_sick_pool_does_not_hide_behind_what_is_run_again() {
    // Given twenty nodes that each take a job with them
    let mut pool = wishing(1);
    let gone = (0..30_u32).map(|n| {
        let mut gone = taken(&pool, &format!("pool-{n:05}"), Reason::Evicted, 60);
        gone.under_way = Some(Box::new(Job {
            run: (100 + n).to_string(),
            ..named()
        }));
        gone
    });
    let mut observed_ = observed(gone.collect());
    let plan = step(&mut pool, &observed_);
    let count = |pool: &Pool, wanted| state(pool).iter().filter(|(s, _)| *s == wanted).count();
    assert_eq!(count(&pool, RerunState::Waiting), MOST_AN_HOUR);
    let paused = told(&plan, Reason::RerunsPaused).len();
    assert_eq!(paused, MAX_RERUNS - MOST_AN_HOUR + 1);
    let last = plan.news.iter().rfind(|n| n.reason == Reason::RerunsPaused);
    assert!(
        last.unwrap().note.contains(", and 9 more: not run again"),
        "{last:?}"
    );
    // Then nothing is said twice, and no list grows
    plan.are_told(&mut observed_.runners);
    let plan = step(&mut pool, &observed_);
    assert_eq!(
        (
            told(&plan, Reason::RerunsPaused).len(),
            pool.status.reruns.len()
        ),
        (0, MAX_RERUNS)
    );

    // Given a pool most of whose nodes fail the gate
    let mut pool = wishing(1);
    let mut observed = world(&pool, broken());
    observed.nodes = Some(vec![node("node-1"), node("node-2")]);
    let mut second = failed(&pool, "pool-ddddd", broken());
    second.node = Some("node-2".to_owned());
    observed.runners.push(second);
    step(&mut pool, &observed);
    assert_eq!(state(&pool), [(RerunState::Skipped, Some("RerunsPaused"))]);
}

#[test]
fn a_crash_between_request_and_answer_repeats_nothing() {
    // Given a request that was sent by an operator that is gone
    let mut pool = wishing(1);
    let mut observed = world(&pool, broken());
    step(&mut pool, &observed);
    observed
        .reruns
        .runs
        .insert(key(), over(vec![job(5, JOB, "failure")]));
    step(&mut pool, &observed);
    let sent = asked(&step(&mut pool, &observed));
    assert_eq!(sent.len(), 1);
    observed.reruns = RerunFacts::default();
    // Then nothing is sent before the run is read
    assert_eq!(asked(&step(&mut pool, &observed)), []);
    // ... and nothing where it shows that the request came through
    let mut read = over(vec![]);
    read.run = Some(run("queued", 2));
    observed.reruns.runs.insert(key(), read);
    let plan = step(&mut pool, &observed);
    assert_eq!(
        (asked(&plan), state(&pool)),
        (vec![], vec![(RerunState::Started, None)])
    );
    assert_eq!(told(&plan, Reason::JobRunAgain).len(), 1);
    // ... of which the commit may not have been told: the one that asked may have died before that
    let untold = untold(&plan);
    assert_eq!((untold.len(), untold[0].sha.as_str()), (1, "5ca1ab1e"));
    assert_eq!(untold[0].id, sent[0].note.id);
    assert_eq!(untold[0].summary, sent[0].note.summary);
    // ... and no later reconcile tells it
    assert_eq!(self::untold(&step(&mut pool, &observed)), []);
}

#[test]
fn a_refusal_is_told_once_and_ends_it() {
    let mut pool = wishing(1);
    let mut observed = world(&pool, broken());
    step(&mut pool, &observed);
    let message = "the credentials may not run the job 5 again".to_owned();
    let reason = Reason::RerunNotAllowed;
    observed
        .reruns
        .answers
        .insert(key(), Answer::Refused { reason, message });
    let plan = step(&mut pool, &observed);
    assert_eq!(told(&plan, reason).len(), 1);
    assert!(step(&mut pool, &observed).news.is_empty());
    assert_eq!(
        state(&pool),
        [(RerunState::Skipped, Some("RerunNotAllowed"))]
    );
}

#[test]
fn a_run_that_may_not_be_read_ends_the_wish_for_its_own_jobs_alone() {
    for (denied, is_skipped) in [(key(), true), (("acme/before".to_owned(), 17), false)] {
        let mut pool = wishing(1);
        let mut observed = world(&pool, broken());
        step(&mut pool, &observed);
        let message = "the credentials may not read it.".to_owned();
        observed.reruns.denied.insert(denied, message);
        step(&mut pool, &observed);
        let skipped = state(&pool)[0].0 == RerunState::Skipped;
        assert_eq!(skipped, is_skipped);
    }
}

#[test]
fn without_the_wish_nothing_is_run_again_and_nothing_is_kept() {
    for (gpu, node, expected) in [(true, false, 1), (false, true, 0)] {
        let mut pool = wishing(1);
        pool.spec_mut().rerun = Some(Rerun {
            on_gpu_fault: gpu,
            on_node_loss: node,
            limit: 1,
        });
        let observed = world(&pool, broken());
        step(&mut pool, &observed);
        assert_eq!(pool.status.reruns.len(), expected);
        pool.spec_mut().rerun = None;
        step(&mut pool, &observed);
        assert!(pool.status.reruns.is_empty());
    }
}
