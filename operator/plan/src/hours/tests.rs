//! Lives of runners, and what they count as.

use proptest::prelude::*;

use super::*;
use crate::fixture::{NOW, ago, hardware, observed, pool, runner};
use crate::model::life::Life;
use crate::model::runner::{EndedJob, Job};
use gate_report::Class;

/// A runner that got its node 100 seconds ago, and was online from the 10th second on.
fn life() -> Life {
    Life {
        bound: Some(ago(100)),
        online: Some(ago(90)),
        over: Some(NOW),
        ..Life::default()
    }
}

fn failed(reason: Reason) -> End {
    let failure = Failure::new(reason, Class::Transient, String::new(), NOW, false);
    End::Failed(failure)
}

fn done(started: i64) -> EndedJob {
    EndedJob {
        job: job(started),
        started: Some(ago(started)),
        finished: NOW,
        refused: None,
        gpus: vec![],
        exceeded_minutes: None,
    }
}

fn job(started: i64) -> Job {
    Job {
        job: "train".to_owned(),
        run: "17".to_owned(),
        attempt: "2".to_owned(),
        workflow: "CI".to_owned(),
        repository: "acme/widgets".to_owned(),
        at: ago(started).as_second().to_string(),
    }
}

/// A runner of that life, which ended so.
fn ended(life: Life, end: Option<End>) -> Runner {
    Runner {
        created: ago(120),
        life,
        end,
        ..runner(&pool(1), "pool-aaaaa", RunnerPhase::Finished)
    }
}

fn seconds_of(runner: Runner) -> (u64, u64, u64, u64) {
    let Seconds {
        gate,
        idle,
        job,
        lost,
    } = used(&Gone { runner, at: NOW });
    (gate, idle, job, lost)
}

/// The same, of which nobody saw its containers end.
fn deleted(life: Life, reached: RunnerPhase) -> Runner {
    Runner {
        reached,
        ..ended(life, None)
    }
}

fn asked(life: Life) -> Life {
    Life {
        asked: true,
        ..life
    }
}

fn never_online() -> Life {
    Life {
        online: None,
        ..life()
    }
}

fn busy(since: i64) -> Life {
    Life {
        busy: Some(ago(since)),
        ..life()
    }
}

fn persistent() -> Life {
    Life {
        is_persistent: true,
        was_busy: 30,
        ..life()
    }
}

#[track_caller]
fn assert_used(what: &str, runner: Runner, expected: (u64, u64, u64, u64)) {
    assert_eq!(seconds_of(runner), expected, "{what}");
}

#[test]
fn each_second_of_a_runner_has_its_use() {
    let with_job = |life: Life, done: EndedJob| Runner {
        done: Some(Box::new(done)),
        ..ended(life, Some(End::JobDone(job(40))))
    };
    let no_start = EndedJob {
        started: None,
        ..done(40)
    };
    let removed = |life: Life, reason| ended(asked(life), Some(failed(reason)));

    assert_used("a job", with_job(life(), done(40)), (10, 50, 40, 0));
    let job = with_job(busy(60), no_start);
    assert_used("a job without a start", job, (10, 30, 60, 0));
    let idle = removed(life(), Reason::EndedWithoutJob);
    assert_used("removed while idle", idle, (10, 90, 0, 0));
    let idle = removed(life(), Reason::Evicted);
    assert_used("drained while idle", idle, (10, 90, 0, 0));
    let gate = removed(never_online(), Reason::GateFailed);
    assert_used("removed in its gate", gate, (100, 0, 0, 0));
    let idle = deleted(life(), RunnerPhase::Idle);
    assert_used("deleted by force while idle", idle, (10, 90, 0, 0));
    let many = removed(persistent(), Reason::EndedWithoutJob);
    assert_used("persistent", many, (10, 60, 30, 0));
    assert_used("without a node", ended(Life::default(), None), (0, 0, 0, 0));
}

#[test]
fn what_a_runner_was_in_when_it_failed_is_lost() {
    let in_a_job = |life: Life, reason| Runner {
        under_way: Some(Box::new(job(40))),
        ..ended(life, Some(failed(reason)))
    };
    let broke = |life: Life, reason| ended(life, Some(failed(reason)));

    let gate = broke(never_online(), Reason::GateFailed);
    assert_used("a gate that failed", gate, (0, 0, 0, 100));
    let gate = deleted(never_online(), RunnerPhase::Gated);
    assert_used("deleted by force in its gate", gate, (0, 0, 0, 100));
    let job = deleted(busy(60), RunnerPhase::Busy);
    assert_used("deleted by force in a job", job, (10, 30, 0, 60));
    let job = in_a_job(life(), Reason::JobCutShort);
    assert_used("killed in a job", job, (10, 50, 0, 40));
    let job = in_a_job(asked(life()), Reason::Evicted);
    assert_used("drained in a job", job, (10, 50, 0, 40));
    let agent = broke(life(), Reason::GpuLost);
    assert_used("an agent that broke", agent, (10, 0, 0, 90));
    let many = Life {
        busy: Some(ago(20)),
        ..persistent()
    };
    let many = broke(many, Reason::JobCutShort);
    assert_used("persistent, killed in a job", many, (10, 40, 30, 20));
}

proptest! {
    #[test]
    fn the_uses_add_up_to_the_time_held(
        moments in prop::array::uniform5(prop::option::of(0..200_i64)),
        was_busy in 0..500_u64,
        marks in prop::option::of(0..200_i64),
        asked: bool, is_persistent: bool, has_done: bool,
        how in 0..5_usize,
    ) {
        let [bound, online, idle, busy, over] = moments.map(|second| second.map(ago));
        let life = Life { bound, online, idle, busy, was_busy, over, asked, is_persistent };
        let ends = [
            None,
            Some(End::JobDone(job(10))),
            Some(failed(Reason::GateFailed)),
            Some(failed(Reason::JobCutShort)),
            Some(failed(Reason::EndedWithoutJob)),
        ];
        let mut runner = ended(life, ends[how].clone());
        runner.under_way = marks.filter(|_| !has_done).map(job).map(Box::new);
        runner.done = marks.filter(|_| has_done).map(done).map(Box::new);
        let held = bound.map_or(0, |bound| seconds(bound, over.unwrap_or(NOW)));
        prop_assert_eq!(used(&Gone { runner, at: NOW }).sum(), held);
    }
}

#[test]
fn what_a_later_look_does_not_show_any_more_is_kept() {
    let pool = pool(1);
    let mut last = runner(&pool, "pool-aaaaa", RunnerPhase::Gated);
    last.life = Life {
        bound: Some(ago(100)),
        ..Life::default()
    };
    let mut look = |phase, change: &dyn Fn(&mut Runner)| {
        let mut now = runner(&pool, "pool-aaaaa", phase);
        now.life.bound = Some(ago(100));
        change(&mut now);
        now.follow(&last);
        last = now.clone();
        // The same look again changes nothing.
        let mut again = now.clone();
        again.follow(&now);
        assert_eq!(again, now);
        now.life
    };
    // Given a persistent runner that is online, has a job, waits again, and has another
    let idle = |since| {
        move |r: &mut Runner| {
            r.life.idle = Some(since);
            r.life.online = Some(since);
        }
    };
    let busy = |since| move |r: &mut Runner| r.life.busy = Some(since);
    look(RunnerPhase::Idle, &idle(ago(90)));
    assert_eq!(look(RunnerPhase::Busy, &busy(ago(80))).busy, Some(ago(80)));
    let life = look(RunnerPhase::Idle, &idle(ago(70)));
    assert_eq!(
        (life.was_busy, life.busy, life.online),
        (10, None, Some(ago(90)))
    );
    look(RunnerPhase::Busy, &busy(ago(60)));
    // When it ends in that, and is removed after it
    let life = look(RunnerPhase::Failed, &|r| r.life.over = Some(ago(5)));
    assert_eq!(
        (life.was_busy, life.busy, life.asked),
        (10, Some(ago(60)), false)
    );
    let life = look(RunnerPhase::Terminating, &|r| {
        r.end = Some(failed(Reason::JobCutShort));
        r.life.asked = true;
    });
    assert!(!life.asked, "it had ended before");

    // And what its gate saw, once it has ended
    let mut passed = runner(&pool, "pool-aaaaa", RunnerPhase::Busy);
    passed.devices = vec!["GPU-1".to_owned()];
    for (end, devices) in [(None, 0), (Some(End::JobDone(job(40))), 1)] {
        let mut now = runner(&pool, "pool-aaaaa", RunnerPhase::Finished);
        now.devices.clear();
        now.end = end;
        now.follow(&passed);
        assert_eq!(now.devices.len(), devices);
    }

    // And nothing is taken from a namesake
    let mut other = runner(&pool, "pool-aaaaa", RunnerPhase::Gated);
    other.uid = "another".to_owned();
    other.follow(&last);
    assert_eq!(other.life, Life::default());
}

/// A runner that has run a job, and is gone.
fn gone() -> Gone {
    let mut runner = ended(life(), Some(End::JobDone(job(40))));
    runner.done = Some(Box::new(done(40)));
    runner.devices = vec!["GPU-1".to_owned(), "GPU-2".to_owned()];
    runner.hardware = Some(hardware("NVIDIA A100-SXM4-40GB", "580.95.05"));
    runner.devices_held.insert("nvidia.com/gpu".to_owned(), 2);
    runner.devices_held.insert("rdma/hca".to_owned(), 1);
    Gone { runner, at: NOW }
}

#[test]
fn a_runner_is_reported_once_how_its_job_ended_is_known_or_given_up() {
    // Given a runner that is gone, and whose job is in the status
    let mut pool = pool(1);
    let mut seen = observed(vec![]);
    seen.gone = vec![Arc::new(gone())];
    pool.status.last_jobs = jobs::noted(&pool, std::iter::once(&gone().runner));
    let at = |pool: &Pool, seen: &Observed, after: i64| {
        crate::plan(pool, seen, NOW + SignedDuration::from_secs(after)).ended
    };
    let is_whole = |ended: &[Ended]| ended.iter().map(|e| e.is_whole).collect::<Vec<_>>();

    // Then its conclusion is waited for
    assert_eq!(is_whole(&at(&pool, &seen, 1)), [false]);
    // ... not for ever, and not where nobody will ask
    assert_eq!(is_whole(&at(&pool, &seen, 361)), [true]);
    let mut deleted = pool.clone();
    deleted.deleting = Some(NOW);
    assert_eq!(is_whole(&at(&deleted, &seen, 1)), [true]);
    // When GitHub has said it
    let mut answered = seen.clone();
    let of_github = crate::model::github::RunJob {
        id: 1,
        name: "train (A100)".to_owned(),
        status: "completed".to_owned(),
        conclusion: Some("failure".to_owned()),
        created_at: Some(ago(70)),
        started_at: Some(ago(40)),
        completed_at: Some(NOW),
        runner_name: Some("pool-aaaaa".to_owned()),
        labels: vec![],
        html_url: None,
        attempt: 2,
    };
    let run = ("acme/widgets".to_owned(), 17);
    answered.jobs.runs.insert(run, Some(vec![of_github]));
    // Then this is the line
    let ended = at(&pool, &answered, 20);
    assert_eq!(is_whole(&ended), [true]);
    let line = serde_json::to_value(&ended[0].hours).unwrap();
    insta::assert_json_snapshot!(line);

    // And of a pod that only looks like the pool's own, or that is still there, nothing is told
    let mut others = gone();
    others.runner.owner = "another".to_owned();
    seen.gone = vec![Arc::new(others)];
    assert_eq!(at(&pool, &seen, 1), []);
    seen.gone = vec![Arc::new(gone())];
    seen.runners = vec![gone().runner];
    assert_eq!(at(&pool, &seen, 1), []);
}
