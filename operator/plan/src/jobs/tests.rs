use cudarunner_crds::{DeviceStatus, LeftStatus, RunnerPhase};
use gate_report::usage::GpuUsage;

use super::*;
use crate::fixture::{NOW, ago, observed, pool, runner};
use crate::model::runner::Job;
use crate::{Action, plan};

/// What GitHub says at a planned.
type Change = fn(&mut Observed);

/// A runner that has run `job` of the run 17, and ended so many seconds ago.
fn ended(pool: &Pool, name: &str, job: &str, seconds: i64) -> Runner {
    let mut runner = runner(pool, name, RunnerPhase::Finished);
    runner.done = Some(Box::new(EndedJob {
        job: Job {
            job: job.to_owned(),
            run: "17".to_owned(),
            attempt: "1".to_owned(),
            workflow: "cuda".to_owned(),
            repository: "Acme/widgets".to_owned(),
            ..Job::default()
        },
        started: Some(ago(seconds + 34)),
        finished: ago(seconds),
        refused: None,
        gpus: vec![],
        exceeded_minutes: None,
    }));
    runner
}

fn answer(runner: &str, name: &str, conclusion: Option<&str>) -> RunJob {
    RunJob {
        id: 1,
        name: name.to_owned(),
        status: "completed".to_owned(),
        conclusion: conclusion.map(str::to_owned),
        created_at: None,
        started_at: None,
        completed_at: None,
        runner_name: Some(runner.to_owned()),
        labels: vec![],
        html_url: None,
        attempt: 1,
    }
}

fn run17() -> RunKey {
    ("Acme/widgets".to_owned(), 17)
}

/// The pool as the next reconcile finds it.
fn after(pool: &Pool, plan: &Plan) -> Pool {
    let mut pool = pool.clone();
    pool.status = plan.status.clone();
    pool
}

fn deleted(plan: &Plan) -> Vec<&str> {
    let actions = plan.actions.iter();
    actions
        .filter_map(|action| match action {
            Action::DeletePod(target) => Some(target.name.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_job_that_the_status_lacks_is_asked_for_and_told_by_the_write_that_notes_it() {
    // Given a job that ended a while ago, and a status that waits to be written
    let pool = pool(1);
    let mut seen = observed(vec![ended(&pool, "pool-aaaaa", "build", 12)]);
    let noted = noted(&pool, seen.runners.iter());
    assert_eq!(
        to_ask(&noted, &seen.verification),
        BTreeSet::from([run17()])
    );
    assert!(next_look(&noted, &seen.jobs).is_some_and(|at| at <= NOW));

    // When GitHub has said how it ended before that
    let jobs = vec![answer("pool-aaaaa", "build", Some("success"))];
    seen.jobs.runs.insert(run17(), Some(jobs));
    let plan = plan(&pool, &seen, NOW);

    // Then the status that is written has it, and it is reported
    let job = &plan.status.last_jobs[0];
    assert_eq!(job.conclusion.as_deref(), Some("success"));
    assert!(!job.awaits_conclusion && plan.unrecorded.contains("pool-aaaaa"));
    assert_eq!(plan.news.len(), 1);
}

#[test]
fn a_job_is_noted_before_its_pod_goes_and_told_when_github_has_said_how_it_ended() {
    let pool = pool(1);
    // Given a runner that has ended with its job
    let mut seen = observed(vec![ended(&pool, "pool-aaaaa", "build", 4)]);
    let first = plan(&pool, &seen, NOW);
    // Then the job is in the status, with what its marks say, and the pod stays until that is written
    let [job] = first.status.last_jobs.as_slice() else {
        panic!("{:?}", first.status.last_jobs)
    };
    let page = "https://github.com/Acme/widgets/actions/runs/17";
    assert_eq!(job.url.as_deref(), Some(page));
    assert_eq!(job.node.as_deref(), Some("node-1"));
    assert!(job.awaits_conclusion && job.conclusion.is_none());
    assert!(first.unrecorded.contains("pool-aaaaa"));
    assert!(deleted(&first).is_empty(), "{:?}", first.actions);
    assert!(first.news.is_empty(), "{:?}", first.news);
    let creates = |a: &Action| matches!(a, Action::CreatePod(_));
    let is_made = first.actions.iter().any(creates);
    assert!(is_made, "its successor does not wait");

    // When that is done, it goes, and GitHub is to be asked for the run once
    let pool = after(&pool, &first);
    let second = plan(&pool, &seen, NOW);
    assert_eq!(deleted(&second), ["pool-aaaaa"]);
    assert!(second.unrecorded.is_empty());
    assert_eq!(second.status, first.status, "no entry twice");
    assert_eq!(
        to_ask(&pool.status.last_jobs, &seen.verification),
        BTreeSet::from([run17()])
    );
    let look = next_look(&pool.status.last_jobs, &seen.jobs);
    assert_eq!(look, Some(ago(4) + SETTLE));

    // When it has answered, the job is reported with its name
    let jobs = vec![
        answer("pool-zzzzz", "other", Some("success")),
        answer("pool-aaaaa", "build (12.4)", Some("failure")),
    ];
    seen.jobs.runs.insert(run17(), Some(jobs));
    seen.runners.clear();
    let third = plan(&pool, &seen, NOW);
    let job = &third.status.last_jobs[0];
    assert_eq!(job.conclusion.as_deref(), Some("failure"));
    assert!(!job.awaits_conclusion);
    let [news] = third.news.as_slice() else {
        panic!("{:?}", third.news)
    };
    assert!(!news.warning, "the runner did its work");
    assert_eq!(
        news.note,
        "build (12.4): failure after 34 s on pool-aaaaa, https://github.com/Acme/widgets/actions/runs/17"
    );

    // And once only
    let pool = after(&pool, &third);
    let last = plan(&pool, &seen, NOW);
    assert!(last.news.is_empty() && to_ask(&pool.status.last_jobs, &seen.verification).is_empty());
}

#[test]
fn the_job_of_a_runner_that_has_one_is_known_again_whatever_its_times() {
    // Given a job in the status, of a runner whose pod is still there
    let first = ended(&pool(1), "pool-aaaaa", "build", 4);
    let pool = after(
        &pool(1),
        &plan(&pool(1), &observed(vec![first.clone()]), NOW),
    );
    // When another process, or another look, makes something else of its node's clock
    let count = |persistent: bool, told: Option<Told>| {
        let mut again = first.clone();
        again.life.is_persistent = persistent;
        again.told = told;
        again.done.as_mut().unwrap().finished = ago(2);
        plan(&pool, &observed(vec![again]), NOW)
            .status
            .last_jobs
            .len()
    };
    let told = Told {
        job: Some(ago(4)),
        ..Told::default()
    };
    // Then it is the same, but for a runner that may have had another one of the run
    for told in [None, Some(told)] {
        assert_eq!(count(false, told), 1, "{told:?}");
        assert_eq!(count(true, told), 2, "{told:?}");
    }
}

#[test]
fn a_job_without_an_answer_is_given_up_and_told_without_one() {
    let first = pool(1);
    let seen = observed(vec![ended(&first, "pool-aaaaa", "build", 1)]);
    let pool = after(&first, &plan(&first, &seen, NOW));
    let cases: [(Timestamp, Change); 3] = [
        (NOW + GIVE_UP, |_| {}),
        (NOW + SETTLE, |seen| {
            seen.jobs.runs.insert(run17(), None);
        }),
        (NOW + SETTLE, |seen| {
            seen.jobs.denied_until = Some(NOW + SignedDuration::from_mins(1));
        }),
    ];
    for (now, change) in cases {
        let mut seen = observed(vec![]);
        change(&mut seen);
        // Before there was a batch, nothing is reported one by one
        let early = crate::plan(&pool, &seen, NOW);
        assert!(early.status.last_jobs[0].awaits_conclusion && early.news.is_empty());
        seen.jobs.looked = Some(now);
        let plan = plan(&pool, &seen, now);
        assert!(!plan.status.last_jobs[0].awaits_conclusion);
        assert!(plan.status.last_jobs[0].conclusion.is_none());
        assert!(plan.news[0].note.starts_with("build: ended after 34 s"));
    }
    // A run that is still under way is asked for again
    let mut seen = observed(vec![]);
    let open = answer("pool-aaaaa", "build", None);
    seen.jobs.runs.insert(run17(), Some(vec![open]));
    let plan = plan(&pool, &seen, NOW);
    assert!(plan.status.last_jobs[0].awaits_conclusion && plan.news.is_empty());
}

#[test]
fn each_attempt_has_its_own_end_on_a_runner_that_keeps_its_name() {
    let pool = pool(1);
    let mut job = noted(&pool, [ended(&pool, "pool-0", "build", 12)].iter()).remove(0);
    for (attempt, second, end) in [
        (Some(1), None, Some("failure")),
        (Some(2), None, None),
        (Some(1), Some("success"), Some("failure")),
        (Some(2), Some("success"), Some("success")),
        (None, Some("success"), Some("success")), // no mark says which it was: the last one
    ] {
        job.attempt = attempt;
        let mut jobs = [
            answer("pool-0", "build", Some("failure")),
            answer("pool-0", "build", second),
        ];
        jobs[1].attempt = 2;
        jobs[1].completed_at = Some(NOW);
        let found = found(&job, &jobs).and_then(|job| job.conclusion.as_deref());
        assert_eq!(found, end, "{attempt:?} {second:?}");
    }
}

#[test]
fn what_the_verification_has_read_is_not_asked_for() {
    let first = pool(1);
    let seen = observed(vec![ended(&first, "pool-aaaaa", "build", 1)]);
    let pool = after(&first, &plan(&first, &seen, NOW));
    let mut seen = observed(vec![]);
    seen.verification.run_id = Some(17);
    seen.verification.jobs = vec![answer("pool-aaaaa", "build", Some("success"))];
    assert!(to_ask(&pool.status.last_jobs, &seen.verification).is_empty());
    let plan = plan(&pool, &seen, NOW);
    assert_eq!(
        plan.status.last_jobs[0].conclusion.as_deref(),
        Some("success")
    );
}

#[test]
fn marks_lead_to_the_pools_own_github_only() {
    let pool = pool(1);
    let forged = |change: fn(&mut Job)| {
        let mut runner = ended(&pool, "pool-aaaaa", "build", 1);
        change(&mut runner.done.as_mut().unwrap().job);
        plan(&pool, &observed(vec![runner]), NOW).status.last_jobs[0].clone()
    };
    let elsewhere = forged(|job| job.repository = "evil/../../x".to_owned());
    assert_eq!(elsewhere.repository.as_deref(), Some("acme/widgets"));
    for run in ["", "0", "-1", "17/../..", "99999999999999999999999"] {
        let mut runner = ended(&pool, "pool-aaaaa", "build", 1);
        runner.done.as_mut().unwrap().job.run = run.to_owned();
        let plan = plan(&pool, &observed(vec![runner]), NOW);
        let job = &plan.status.last_jobs[0];
        assert_eq!((&job.url, job.awaits_conclusion), (&None, false), "{run}");
        assert_eq!(plan.news.len(), 1, "reported at once");
    }
}

#[test]
fn a_job_is_of_the_address_at_which_its_runner_registered() {
    let (left, never) = (
        "https://github.com/acme/before",
        "https://github.com/evil/x",
    );
    // Given a pool that has moved a moment ago, or longer ago, or never to where a pod says that it is
    for (url, registered_at, left_at, of) in [
        (left, left, None, "acme/before"),
        (
            left,
            "https://github.com/acme/widgets",
            Some(left),
            "acme/before",
        ),
        (
            never,
            "https://github.com/acme/widgets",
            Some(left),
            "acme/widgets",
        ),
    ] {
        let mut pool = pool(1);
        pool.status.registered_at = Some(registered_at.to_owned());
        let left_at = left_at.map(|url| LeftStatus {
            url: url.to_owned(),
            ..LeftStatus::default()
        });
        pool.status.left_at = left_at.into_iter().collect();
        let mut runner = ended(&pool, "pool-aaaaa", "build", 1);
        runner.url = Some(url.to_owned());
        runner.done.as_mut().unwrap().job.repository = of.to_owned();
        // When its job has ended, then it is of the repository where it ran, and asked for with that one's credentials alone
        let plan = plan(&pool, &observed(vec![runner]), NOW);
        let job = &plan.status.last_jobs[0];
        assert_eq!(job.repository.as_deref(), Some(of), "{url}");
        let page = format!("https://github.com/{of}/actions/runs/17");
        assert_eq!(job.url, Some(page));
        assert_eq!(job.awaits_conclusion, of == "acme/widgets");
    }
}

#[test]
fn the_list_is_bounded_and_what_leaves_it_is_told() {
    let first = pool(20);
    let names: Vec<String> = (10..22).map(|n| format!("pool-aaa{n}")).collect();
    let at = |range: std::ops::Range<usize>| {
        let runners = names[range].iter().zip(0..);
        runners
            .map(|(name, n)| ended(&first, name, "build", 100 - n))
            .collect::<Vec<_>>()
    };
    // Given ten jobs in the status, and their pods still there
    let ten = plan(&first, &observed(at(0..10)), NOW);
    let pool = after(&first, &ten);
    // When two more end
    let twelve = plan(&pool, &observed(at(0..12)), NOW);
    // Then the two oldest have left, and are reported though nobody knows how they ended
    let runners: Vec<&str> = twelve
        .status
        .last_jobs
        .iter()
        .map(|job| job.runner.as_str())
        .collect();
    assert_eq!(runners.len(), MAX_LAST_JOBS);
    assert_eq!((runners[0], runners[9]), ("pool-aaa21", "pool-aaa12"));
    assert_eq!(twelve.unrecorded.len(), 2);
    assert!(
        deleted(&twelve)
            .iter()
            .all(|name| !["pool-aaa20", "pool-aaa21"].contains(name))
    );
    assert!(twelve.news[0].note.contains("pool-aaa10"));
    // And they are not taken for new ones while their pods are there
    let again = plan(&after(&pool, &twelve), &observed(at(0..12)), NOW);
    assert_eq!(again.status.last_jobs, twelve.status.last_jobs);
    assert!(again.news.is_empty(), "{:?}", again.news);
}

/// The same, of whose GPU something is known.
fn watched(pool: &Pool, name: &str, seconds: i64) -> Runner {
    let mut runner = ended(pool, name, "cuda", seconds);
    let gpus = vec![GpuUsage {
        uuid: "GPU-1".to_owned(),
        ..GpuUsage::default()
    }];
    runner.devices = vec!["GPU-1".to_owned()];
    if let Some(done) = &mut runner.done {
        done.gpus = gpus;
    }
    runner
}

#[test]
fn jobs_that_end_together_are_each_told_once_however_late_their_ends_are_seen() {
    // Given thirty jobs that ended within three seconds, whose ends are seen a few at a time, the last ones first
    let mut pool = pool(1);
    let all: Vec<Runner> = (0..30)
        .map(|n| watched(&pool, &format!("pool-{n:02}"), 10 + n / 10))
        .collect();
    let mut plans: Vec<Plan> = vec![];
    for seen in [4, 4, 17, 18, 30, 30] {
        let mut runners = all[..seen].to_vec();
        if let Some(last) = plans.last() {
            last.are_told(&mut runners);
        }
        let planned = plan(&pool, &observed(runners), NOW);
        pool = after(&pool, &planned);
        plans.push(planned);
    }
    // Then each is told once
    let jobs = plans.iter().flat_map(|plan| &plan.watched_jobs);
    let mut told: Vec<String> = jobs.map(|job| job.runner.clone()).collect();
    told.sort();
    let names: Vec<String> = all.iter().map(|runner| runner.name.clone()).collect();
    assert_eq!(told, names);
}

#[test]
fn a_note_has_room_for_some_and_counts_the_rest() {
    let pool = pool(1);
    let spec = pool.spec.as_ref().unwrap();
    let jobs: Vec<JobStatus> = (0..10)
        .map(|n| {
            let runner = ended(&pool, &format!("pool-aaaa{n}"), &"ü".repeat(40), 1);
            entry(&pool, spec, &runner, runner.done.as_ref().unwrap())
        })
        .collect();
    let note = note(&jobs.iter().collect::<Vec<_>>());
    assert!(note.len() <= NOTE, "{}", note.len());
    assert!(note.ends_with(" more"), "{note}");
}

#[test]
fn the_jobs_of_a_pool_that_is_deleted_are_told_before_their_pods_go() {
    let mut pool = pool(1);
    pool.deleting = Some(ago(10));
    let seen = observed(vec![ended(&pool, "pool-aaaaa", "build", 4)]);
    let first = plan(&pool, &seen, NOW);
    let reported: Vec<_> = first.news.iter().map(|n| n.reason.as_str()).collect();
    assert_eq!(reported, ["JobCompleted"]);
    assert!(deleted(&first).is_empty(), "{:?}", first.actions);
    let second = plan(&after(&pool, &first), &seen, NOW);
    assert!(second.news.is_empty(), "{:?}", second.news);
    assert_eq!(deleted(&second), ["pool-aaaaa"]);
}

#[test]
fn a_job_that_left_no_mark_is_told_by_what_github_said_of_it() {
    // Given a runner that failed before the job's first hook, and that GitHub had given a job
    let mut pool = pool(1);
    pool.status.observed_generation = Some(1);
    let mut failed = runner(&pool, "pool-aaaaa", RunnerPhase::Failed);
    failed.heard = Some(Box::new(Job {
        job: "test".to_owned(),
        run: "17".to_owned(),
        repository: "acme/widgets".to_owned(),
        ..Job::default()
    }));
    let planned = plan(&pool, &observed(vec![failed.clone()]), NOW);

    // Then the job is among the last ones, and the failure says which it was, once
    let jobs = &planned.status.last_jobs;
    assert_eq!((jobs.len(), jobs[0].job.as_str()), (1, "test"));
    assert_eq!(jobs[0].run_id, Some(17));
    let said = "GitHub had given it the job test of run 17 in acme/widgets.";
    assert!(planned.status.last_failures[0].message.ends_with(said));
    pool.status = planned.status;
    let again = plan(&pool, &observed(vec![failed.clone()]), NOW);
    assert_eq!(again.status.last_jobs.len(), 1);

    // ... also when its end is seen at another time, by the API server's word or by marks that come late
    let Some(End::Failed(failure)) = &mut failed.end else {
        panic!("{:?}", failed.end)
    };
    failure.at = failure.at.after(SignedDuration::from_secs(7));
    let mut late = ended(&pool, "pool-aaaaa", "test", 2);
    late.done.as_mut().unwrap().job.repository = "acme/widgets".to_owned();
    for seen in [failed.clone(), late] {
        let again = plan(&pool, &observed(vec![seen]), NOW);
        assert_eq!(again.status.last_jobs.len(), 1);
        assert!(again.unrecorded.is_empty(), "{:?}", again.unrecorded);
        assert!(!again.news.iter().any(|news| news.reason == "JobCompleted"));
    }
    // ... and two jobs of one run that left their marks on a runner that may have two are two
    let mut two = vec![];
    for seconds in [40, 2] {
        let mut runner = ended(&pool, "pool-bbbbb", "test", seconds);
        runner.life.is_persistent = true;
        let next = plan(&pool, &observed(vec![runner]), NOW);
        pool = after(&pool, &next);
        two.push(pool.status.last_jobs.len());
    }
    assert_eq!(two, [2, 3]);

    // And where nothing was heard, nothing is said
    let mut pool = super::super::fixture::pool(1);
    pool.status.observed_generation = Some(1);
    failed.heard = None;
    let planned = plan(&pool, &observed(vec![failed]), NOW);
    assert!(planned.status.last_jobs.is_empty());
}

#[test]
fn what_a_jobs_gpus_did_is_noted_once_and_stays() {
    // Given a job whose pod speaks of its own device and of another
    let pool = pool(1);
    let mut done = ended(&pool, "pool-aaaaa", "cuda", 20);
    done.devices = vec!["GPU-1".to_owned()];
    let usage = |uuid: &str| GpuUsage {
        uuid: uuid.to_owned(),
        energy_joules: Some(900),
        ..GpuUsage::default()
    };
    if let Some(done) = &mut done.done {
        done.gpus = vec![usage("GPU-1"), usage("GPU-2")];
    }
    let seen = observed(vec![done]);
    // When
    let planned = plan(&pool, &seen, NOW);
    // Then
    let noted = &planned.status.last_jobs[0].gpu;
    let uuids: Vec<&str> = noted.iter().map(|gpu| gpu.uuid.as_str()).collect();
    assert_eq!(uuids, ["GPU-1"]);
    assert_eq!(planned.watched_jobs.len(), 1);
    // And once it is in the status, it is counted no more
    let again = plan(&after(&pool, &planned), &seen, NOW);
    assert_eq!(again.status.last_jobs[0].gpu, *noted);
    assert!(again.watched_jobs.is_empty());
}

#[test]
fn a_job_that_the_pool_does_not_take_is_told_once_with_its_reason_and_blames_nobody() {
    let why = "it was started by schedule on refs/heads/main, and spec.jobs.allow.events has push";
    let pool = pool(1);
    let mut refused = ended(&pool, "pool-aaaaa", "cuda", 20);
    if let Some(done) = &mut refused.done {
        (done.refused, done.started) = (Some(why.to_owned()), None);
    }
    let seen = observed(vec![refused]);
    // When
    let planned = plan(&pool, &seen, NOW);
    // Then
    let told = |planned: &Plan| -> Vec<String> {
        let told = planned.news.iter();
        told.filter(|n| n.warning && n.reason == Reason::JobNotAllowed)
            .map(|notice| notice.note.clone())
            .collect()
    };
    assert_eq!(
        told(&planned),
        [format!(
            "Job cuda of run 17 of the workflow cuda in Acme/widgets was ended on pool-aaaaa before its first step: {why}."
        )]
    );
    assert_eq!(planned.refused_jobs, 1);
    assert_eq!(planned.status.last_jobs[0].refused.as_deref(), Some(why));
    assert!(planned.failed.is_empty() && planned.status.last_failures.is_empty());
    // And once it is in the status, it is told no more
    let again = plan(&after(&pool, &planned), &seen, NOW);
    assert_eq!((told(&again), again.refused_jobs), (vec![], 0));
}

#[test]
fn a_device_that_is_named_is_used_as_before() {
    // Given a pool whose jobs end well on one device, and one job that has just failed on another
    let mut pool = pool(1);
    let device = |uuid: &str, jobs, failed| DeviceStatus {
        uuid: uuid.to_owned(),
        node: Some("node-1".to_owned()),
        jobs,
        failed,
        suspect: false,
    };
    pool.status.devices = vec![device("GPU-1", 60, 2), device("GPU-2", 9, 8)];
    let mut runner = ended(&pool, "pool-aaaaa", "cuda", 20);
    runner.devices = vec!["GPU-2".to_owned()];
    let mut seen = observed(vec![runner]);
    let failed = answer("pool-aaaaa", "cuda", Some("failure"));
    seen.jobs.runs = [(run17(), Some(vec![failed]))].into();

    // When its end is known
    let first = plan(&pool, &seen, NOW);

    // Then the device is named, once, and the next pod may get it
    let told = |plan: &Plan| {
        plan.news
            .iter()
            .filter(|n| n.reason == "DeviceSuspect")
            .count()
    };
    assert_eq!(told(&first), 1);
    let named = &first.status.devices[1];
    assert_eq!((named.jobs, named.failed, named.suspect), (10, 9, true));
    assert_eq!(first.status.quarantine, []);
    let second = plan(&after(&pool, &first), &seen, NOW);
    assert_eq!(told(&second), 0);
    assert_eq!(second.status.devices, first.status.devices);
    seen.runners.clear();
    let third = plan(&after(&pool, &first), &seen, NOW);
    let new = third.actions.iter().find_map(|action| match action {
        Action::CreatePod(new) => Some(new),
        _ => None,
    });
    let new = new.expect("a pod is made");
    assert!(new.avoids.is_empty() && new.shuns.is_empty());
}

#[test]
fn a_job_that_took_too_long_is_told_once_with_its_limit_and_blames_nobody() {
    let pool = pool(1);
    let mut late = ended(&pool, "pool-aaaaa", "cuda", 20);
    if let Some(done) = &mut late.done {
        done.exceeded_minutes = Some(30);
    }
    let seen = observed(vec![late]);
    let planned = plan(&pool, &seen, NOW);
    let told = |planned: &Plan| -> Vec<String> {
        let told = planned.news.iter();
        told.filter(|n| n.warning && n.reason == Reason::JobTimedOut)
            .map(|notice| notice.note.clone())
            .collect()
    };
    assert_eq!(
        told(&planned),
        [
            "Job cuda of run 17 of the workflow cuda in Acme/widgets was ended on pool-aaaaa because it took longer than the 30 minutes of spec.jobs.maxMinutes."
        ]
    );
    assert_eq!((planned.timed_out_jobs, planned.refused_jobs), (1, 0));
    assert_eq!(planned.status.last_jobs[0].exceeded_minutes, Some(30));
    assert!(planned.failed.is_empty() && planned.status.last_failures.is_empty());
    let again = plan(&after(&pool, &planned), &seen, NOW);
    assert_eq!((told(&again), again.timed_out_jobs), (vec![], 0));
}
