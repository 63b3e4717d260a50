//! What GitHub's word on the run means.

use cudarunner_crds::Word;

use super::*;

/// What becomes of a wish when GitHub says this of the run.
fn judged(cause: RerunCause, limit: i32, read: RunFacts) -> Vec<(RerunState, Option<String>)> {
    let mut pool = wishing(limit);
    let mut observed = match cause {
        RerunCause::GpuFault => world(&pool, broken()),
        RerunCause::NodeLoss => observed(vec![taken(&pool, JOB, Reason::Evicted, 60)]),
    };
    step(&mut pool, &observed);
    assert_eq!(pool.status.reruns.len(), 1);
    observed.reruns.runs.insert(key(), read);
    step(&mut pool, &observed);
    let said = state(&pool).into_iter();
    said.map(|(state, reason)| (state, reason.map(str::to_owned)))
        .collect()
}

/// The job ended red.
fn red() -> RunFacts {
    over(vec![job(5, JOB, "failure")])
}

fn cancelled(seconds: i64) -> RunFacts {
    let job = job(5, JOB, "cancelled");
    over(vec![RunJob {
        completed_at: Some(ago(seconds)),
        ..job
    }])
}

/// Another run of the workflow, on a branch of the same name.
fn other(id: u64, sha: &str) -> Run {
    Run {
        id,
        head_sha: Some(sha.to_owned()),
        ..run("queued", 1)
    }
}

/// It ended red, and these are the last runs.
fn among(others: Vec<Run>) -> RunFacts {
    RunFacts {
        latest: others,
        ..red()
    }
}

/// It ended red, and the newest run of the branch is this one.
fn newest(id: u64, sha: &str) -> RunFacts {
    among(vec![other(id, sha), run("completed", 1)])
}

#[test]
fn a_job_that_something_else_ended_is_run_again() {
    use RerunCause::{GpuFault, NodeLoss};
    for (what, cause, read) in [
        ("it failed", GpuFault, red()),
        ("it failed", NodeLoss, red()),
        ("the same commit runs", GpuFault, newest(18, "5ca1ab1e")),
        ("an older commit ran", GpuFault, newest(16, "0ddba11")),
        ("cancelled by the loss", NodeLoss, cancelled(58)),
    ] {
        let expected = [(RerunState::Requested, None)];
        assert_eq!(judged(cause, 1, read), expected, "{what}, {cause:?}");
    }
}

#[test]
fn what_the_loss_of_a_pod_cancels_it_cancels_before_its_agent_ends() {
    // Given a pod that was evicted a minute ago, whose agent took forty seconds to end
    let mut pool = wishing(1);
    let gone = Runner {
        disruption: Some(evicted(60)),
        ..taken(&pool, JOB, Reason::Evicted, 20)
    };
    let mut observed = observed(vec![gone]);
    step(&mut pool, &observed);
    // When its job was cancelled in between, then nobody's wish was it
    observed.reruns.runs.insert(key(), cancelled(50));
    step(&mut pool, &observed);
    assert_eq!(state(&pool), [(RerunState::Requested, None)]);
}

#[test]
fn a_job_is_left_as_it_is_where_another_attempt_would_be_of_no_use() {
    use RerunCause::{GpuFault, NodeLoss};
    let gone = RunFacts {
        run: None,
        ..over(vec![])
    };
    let mut anew = red();
    (anew.run, anew.jobs[0].attempt) = (Some(run("completed", 2)), 2);
    let mut before = red();
    before.jobs[0].completed_at = Some(ago(60 + 16 * 60));
    let well = over(vec![job(5, JOB, "success")]);
    let elsewhere = over(vec![job(5, "pool-x", "failure")]);
    for (what, cause, read, reason) in [
        ("it went well", GpuFault, well, Reason::RerunNotNeeded),
        ("another's job", GpuFault, elsewhere, Reason::RerunNotNeeded),
        ("the run is gone", GpuFault, gone, Reason::RerunRefused),
        ("it was run again", GpuFault, anew, Reason::RerunNotNeeded),
        (
            "a newer commit runs",
            GpuFault,
            newest(18, "0ddba11"),
            Reason::RerunNotNeeded,
        ),
        (
            "somebody cancelled it",
            GpuFault,
            cancelled(59),
            Reason::RerunNotNeeded,
        ),
        (
            "cancelled before the loss",
            NodeLoss,
            cancelled(70),
            Reason::RerunNotNeeded,
        ),
        ("red long before", NodeLoss, before, Reason::RerunNotNeeded),
    ] {
        let expected = [(RerunState::Skipped, Some(reason.word().to_owned()))];
        assert_eq!(judged(cause, 1, read), expected, "{what}, {cause:?}");
    }
}

#[test]
fn a_branch_is_not_another_ones_of_the_same_name() {
    let of = |repository, event: &str, run: Run| Run {
        head_repository: repository,
        event: Some(event.to_owned()),
        ..run
    };
    let (own, fork, gone) = (Some(1), Some(9), None);
    for (what, (repository, event), newer, moved_on) in [
        ("a push", (own, "push"), vec![(own, "push")], true),
        (
            "a fork's pull request",
            (own, "push"),
            vec![(fork, "pull_request")],
            false,
        ),
        (
            "our push, before a fork's",
            (own, "push"),
            vec![(fork, "pull_request"), (own, "push")],
            true,
        ),
        ("by hand", (own, "push"), vec![(own, "schedule")], false),
        (
            "our push",
            (fork, "pull_request"),
            vec![(own, "push")],
            false,
        ),
        (
            "the same fork",
            (fork, "pull_request"),
            vec![(fork, "pull_request")],
            true,
        ),
        (
            "another fork",
            (fork, "pull_request"),
            vec![(Some(10), "pull_request")],
            false,
        ),
        (
            "a fork that was deleted",
            (fork, "pull_request"),
            vec![(gone, "pull_request")],
            false,
        ),
    ] {
        // Given newer runs for other commits, of branches of the same name; the newest one comes first
        let ids = (18..).take(newer.len()).collect::<Vec<u64>>();
        let newer = newer.into_iter().zip(ids.into_iter().rev());
        let newer =
            newer.map(|((repository, event), id)| of(repository, event, other(id, "0ddba11")));
        let mut read = among(newer.collect());
        read.run = read.run.map(|run| of(repository, event, run));
        // Then those of the same branch of the same repository count, by the same event
        let state = judged(RerunCause::GpuFault, 1, read)[0].0;
        assert_eq!(state == RerunState::Skipped, moved_on, "{what}");
    }
}

#[test]
fn an_attempt_beyond_the_limit_is_not_run_again() {
    for (limit, attempt, expected) in [
        (1, 1, (RerunState::Requested, None)),
        (1, 2, (RerunState::Skipped, Some("RerunLimit"))),
        (2, 2, (RerunState::Requested, None)),
        (2, 3, (RerunState::Skipped, Some("RerunLimit"))),
    ] {
        let mut pool = wishing(limit);
        let mut observed = world(&pool, broken());
        observed.reruns.ended[0].job.attempt = i32::try_from(attempt).ok();
        step(&mut pool, &observed);
        let mut read = over(vec![job(5, JOB, "failure")]);
        (read.run, read.jobs[0].attempt) = (Some(run("completed", attempt)), attempt);
        observed.reruns.runs.insert(key(), read);
        step(&mut pool, &observed);
        assert_eq!(state(&pool), [expected], "{limit} {attempt}");
    }
}

#[test]
fn an_entry_with_a_word_of_another_version_is_left_to_that_version() {
    for of_state in [true, false] {
        // Given a job that would be run again
        let mut pool = wishing(1);
        let mut seen = world(&pool, broken());
        step(&mut pool, &seen);
        seen.reruns
            .runs
            .insert(key(), over(vec![job(1, JOB, "failure")]));
        step(&mut pool, &seen);
        assert_eq!(
            asked(&step(&mut pool, &seen)).len(),
            1,
            "of the state: {of_state}"
        );

        // When its entry has a word that is not known, then nothing is run, and the entry stays as it is
        let entry = &mut pool.status.reruns[0];
        if of_state {
            entry.state = Word::Other("Cosmic".to_owned());
        } else {
            entry.cause = Word::Other("Cosmic".to_owned());
        }
        let before = pool.status.reruns.clone();
        let plan = step(&mut pool, &seen);
        assert_eq!(asked(&plan), [], "of the state: {of_state}");
        assert_eq!(plan.status.reruns, before);
    }
}
