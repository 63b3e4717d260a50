//! Pods whose jobs bring their containers: the agent in the main container, the gate and then the job in the one of the GPUs.

use cuda_runner_plan::model::runner::{JOB_ANNOTATION, PASSED_ANNOTATION, REPORT_ANNOTATION};
use gate_report::wire::ContainerState;

use super::*;

/// When the gate has passed.
const PASSED: &str = "2026-01-01T00:00:09Z";

/// A pod in some moment: what its annotations say, the image of the container of the GPUs, and its statuses.
fn at(annotations: &Value, image: &str, status: &Value) -> Runner {
    let pod = json!({
        "metadata": {
            "name": "pool-aaaaa", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": annotations,
        },
        "spec": {
            "nodeName": "node-1",
            "initContainers": [
                {"name": "prepare", "image": "gate:1"},
                {"name": "gpu", "image": image, "restartPolicy": "Always", "resources": {"limits": {"memory": "8Gi"}}},
            ],
            "containers": [{
                "name": "main", "image": "runner:1", "resources": {"limits": {"memory": "1Gi"}},
                "command": ["/run/cuda-runner-agent/bin/runner-init", "agent"],
            }],
            "ephemeralContainers": [{"name": "debugger-x"}, {"name": "svc-0"}, {"name": "svc-1"}],
        },
        "status": status,
    });
    read(&serde_json::from_value(pod).unwrap())
}

fn noted() -> Value {
    let report = r#"{"schema":"cudarunner.dev/gate-report/v1","outcome":"passed","devices":[{"uuid":"GPU-1"}]}"#;
    json!({PASSED_ANNOTATION: PASSED, REPORT_ANNOTATION: report})
}

fn with_job(first: &str) -> Value {
    let mut all = noted();
    all[JOB_ANNOTATION] = json!(first);
    all
}

fn status(gpu: &Value, main: &Value) -> Value {
    json!({
        "phase": "Running", "conditions": [bound()],
        "initContainerStatuses": gpu, "containerStatuses": main,
    })
}

/// The agent's container.
fn agent(state: &Value, ready: bool, started: bool) -> Value {
    json!([{
        "name": "main", "image": "", "imageID": "", "ready": ready, "started": started, "restartCount": 0,
        "state": state,
    }])
}

fn terminated(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {
        "exitCode": code, "reason": reason, "message": message, "startedAt": "2026-01-01T00:00:06Z",
        "finishedAt": "2026-01-01T00:09:00Z",
    }})
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

/// The gate's image is on, and these annotations.
fn in_the_gates(annotations: &Value, gpu: &Value, main: &Value) -> Runner {
    at(annotations, "gate:1", &status(gpu, main))
}

/// The image of the first job is on, and its agent is busy.
fn for_job(gpu: &Value) -> Runner {
    let busy = agent(&running(), false, true);
    at(&with_job("1"), "cuda:13", &status(gpu, &busy))
}

/// A runner that has not ended, and of which nothing is said but what its agent's container says.
#[track_caller]
fn is(moment: &str, runner: &Runner, phase: RunnerPhase, since: &str) {
    assert_eq!(runner.phase, phase, "{moment}");
    assert_eq!(runner.since.to_string(), since, "{moment}");
    assert_eq!(runner.end, None, "{moment}");
    // And no trouble of a job's image is the pool's
    let is_agents = runner
        .container_trouble()
        .is_none_or(|w| w.container.as_deref() == Some("main"));
    assert!(is_agents, "{moment}: {:?}", runner.waiting);
    let is_noted = since == PASSED;
    assert_eq!(runner.gate_passed, is_noted, "{moment}");
    assert_eq!(runner.devices.len(), usize::from(is_noted), "{moment}");
}

#[test]
fn a_runner_is_as_far_as_its_agent() {
    let (at_work, none) = (gate(&running()), json!({}));
    let up = |ready, started| agent(&running(), ready, started);
    let to_come = agent(&waiting("PodInitializing", ""), false, false);
    let pulled = agent(&waiting("ErrImagePull", "not found"), false, false);
    is(
        "nothing runs yet",
        &in_the_gates(&none, &gate(&none), &to_come),
        RunnerPhase::Preparing,
        "2026-01-01T00:00:01Z",
    );
    is(
        "the agent's container is there and waits for the gate",
        &in_the_gates(&none, &at_work, &up(false, false)),
        RunnerPhase::Gated,
        "2026-01-01T00:00:06Z",
    );
    for (moment, main, phase) in [
        ("the agent's image is pulled", pulled, RunnerPhase::Starting),
        (
            "the agent connects",
            up(false, false),
            RunnerPhase::Starting,
        ),
        ("it waits for a job", up(true, true), RunnerPhase::Idle),
        (
            "it has one, and the image is still the gate's",
            up(false, true),
            RunnerPhase::Busy,
        ),
    ] {
        let runner = in_the_gates(&noted(), &at_work, &main);
        is(moment, &runner, phase, PASSED);
    }
}

#[test]
fn the_change_of_a_jobs_image_and_what_becomes_of_it_is_no_fault_of_the_runner() {
    let changed = |state: &Value| gpu(0, state, &json!({}), false);
    let killed = terminated(137, "OOMKilled", "");
    for (moment, gpu) in [
        ("the gate is still there", changed(&running())),
        (
            "the image is pulled",
            changed(&waiting("ContainerCreating", "")),
        ),
        (
            "the image is not there",
            changed(&waiting("ErrImagePull", "not found")),
        ),
        ("the job runs", gpu(1, &running(), &passed(), true)),
        ("it was killed", gpu(2, &running(), &killed, true)),
    ] {
        is(moment, &for_job(&gpu), RunnerPhase::Busy, PASSED);
    }
}

/// What is said of a job's container that was on from this start of the container of the GPUs.
fn said(first: &str, gpu: &Value) -> ContainerState {
    let main = agent(&running(), false, true);
    let runner = at(&with_job(first), "cuda:13", &status(gpu, &main));
    let job = runner.job_pod.unwrap();
    assert_eq!(job.image.as_deref(), Some("cuda:13"));
    job.container.unwrap()
}

fn failed(reason: &str, message: &str) -> ContainerState {
    ContainerState::Failed {
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

#[test]
fn a_jobs_image_is_pulled_until_it_runs() {
    let waits = |reason: &str, message: &str| gpu(0, &waiting(reason, message), &passed(), false);
    let ended = terminated(143, "Error", "");
    for (moment, first, gpu) in [
        (
            "the gate is still there",
            "1",
            gpu(0, &running(), &json!({}), true),
        ),
        ("its end is shown", "1", gpu(0, &ended, &json!({}), false)),
        ("it is pulled", "1", waits("ContainerCreating", "")),
        (
            "the kubelet has too much to do",
            "1",
            waits("ErrImagePull", "pull QPS exceeded"),
        ),
        (
            "the gate's container was started twice before the job",
            "2",
            gpu(1, &running(), &terminated(137, "Error", ""), true),
        ),
    ] {
        assert_eq!(said(first, &gpu), ContainerState::Pulling, "{moment}");
    }
    let first = gpu(1, &running(), &passed(), true);
    assert_eq!(said("1", &first), ContainerState::Running);
    let second = gpu(2, &running(), &ended, true);
    assert_eq!(said("2", &second), ContainerState::Running);
}

#[test]
fn a_jobs_image_that_does_not_start_is_told_in_the_kubelets_words() {
    let back_off = "Back-off pulling image \"x\": ErrImagePull: manifest unknown";
    for (reason, message, expected) in [
        (
            "ErrImagePull",
            "manifest unknown",
            failed("ImagePullBackOff", "manifest unknown"),
        ),
        (
            "ImagePullBackOff",
            back_off,
            failed("ImagePullBackOff", "manifest unknown"),
        ),
        (
            "CreateContainerConfigError",
            "image will run as root",
            failed("CreateContainerConfigError", "image will run as root"),
        ),
    ] {
        let gpu = gpu(0, &waiting(reason, message), &passed(), false);
        assert_eq!(said("1", &gpu), expected, "{reason}");
    }
    let refused = terminated(128, "StartError", "unsatisfied condition: cuda>=13");
    let gpu = gpu(1, &waiting("CrashLoopBackOff", ""), &refused, false);
    let expected = failed("StartError", "unsatisfied condition: cuda>=13");
    assert_eq!(said("1", &gpu), expected);
}

#[test]
fn a_jobs_container_that_has_ended_has_failed_whatever_came_after_it() {
    let killed = terminated(137, "OOMKilled", "");
    let oom = failed(
        "OOMKilled",
        "The container gpu was killed at its memory limit of 8Gi. Raise limits.memory in spec.jobContainers.resources; where it names none, a LimitRange of the namespace sets it.",
    );
    assert_eq!(said("1", &gpu(1, &killed, &passed(), false)), oom);
    assert_eq!(said("1", &gpu(2, &running(), &killed, true)), oom);
    let ended = terminated(1, "Error", "whatever a job wrote");
    let gpu = gpu(2, &waiting("CrashLoopBackOff", ""), &ended, false);
    let expected = failed("Error", "The container gpu ended with code 1.");
    assert_eq!(said("1", &gpu), expected);
}

#[test]
fn without_a_job_there_is_no_container_of_one() {
    // Before a job has asked for one, and in a pod whose jobs run in the agent's container
    let waits = agent(&running(), true, true);
    let idle = in_the_gates(&noted(), &gate(&running()), &waits);
    let job = idle.job_pod.unwrap();
    assert_eq!((job.image, job.container, job.starts), (None, None, 0));
    assert_eq!(pod(&json!({"phase": "Pending"})).job_pod, None);
}

#[test]
fn services_are_told_in_their_order_and_a_debugger_is_none() {
    let mut status = status(&gate(&running()), &agent(&running(), false, true));
    let of = |name: &str, state: &Value| json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
    let names = |runner: &Runner| -> Vec<(String, ContainerState)> {
        runner.job_pod.as_ref().unwrap().services.clone()
    };
    // Given services of which the kubelet says nothing yet
    let before = names(&at(&noted(), "gate:1", &status));
    let pulling = |name: &str| (name.to_owned(), ContainerState::Pulling);
    assert_eq!(before, [pulling("svc-0"), pulling("svc-1")]);
    // When one runs, and another has ended
    status["ephemeralContainerStatuses"] = json!([
        of("svc-1", &terminated(1, "Error", "")),
        of("debugger-x", &running()),
        of("svc-0", &running()),
    ]);
    // Then both are told
    let after = names(&at(&noted(), "gate:1", &status));
    let ended = ContainerState::Failed {
        reason: "Error".to_owned(),
        message: "The container svc-1 ended with code 1.".to_owned(),
    };
    assert_eq!(
        after,
        [
            ("svc-0".to_owned(), ContainerState::Running),
            ("svc-1".to_owned(), ended)
        ]
    );
}

#[test]
fn a_job_that_was_refused_is_done_with_its_reason_unless_one_had_begun() {
    let mark = |mark: &str| {
        format!(
            r#"{{"mark":"{mark}","job":"build","run":"7","repository":"a/b","why":"it was started\u0007 by push"}}"#
        )
    };
    for (marks, refused) in [
        (mark("refused"), Some("it was started by push")),
        // A job can write what it likes, and has been let in.
        (
            [mark("started"), mark("refused"), mark("completed")].join("\n"),
            None,
        ),
    ] {
        let main = agent(&terminated(0, "Completed", &marks), false, false);
        let status = status(&gpu(1, &running(), &passed(), true), &main);
        let runner = at(&with_job("1"), "cuda:13", &status);
        assert_eq!(runner.phase, RunnerPhase::Finished);
        assert!(matches!(&runner.end, Some(End::JobDone(job)) if job.run == "7"));
        assert_eq!(runner.done.unwrap().refused.as_deref(), refused);
    }
}

#[test]
fn a_job_that_took_too_long_is_done_with_its_limit() {
    let began = r#"{"mark":"started","job":"build","run":"7","repository":"a/b","at":"100"}"#;
    let ended = |minutes: &str| format!(r#"{{"mark":"timed-out","minutes":{minutes},"at":"160"}}"#);
    for (marks, job, limit) in [
        (format!("{began}\n{}", ended("30")), "7", Some(30)),
        // A job can write what it likes.
        (format!("{began}\n{}", ended("2147483647")), "7", Some(7200)),
        // It hung before the hook.
        (ended("30"), "", Some(30)),
        // One that has begun since is another.
        (format!("{}\n{began}", ended("30")), "", None),
    ] {
        let main = agent(&terminated(0, "Completed", &marks), false, false);
        let status = status(&gpu(1, &running(), &passed(), true), &main);
        let runner = at(&with_job("1"), "cuda:13", &status);
        let done = runner.done.unwrap();
        assert_eq!(
            (done.job.run.as_str(), done.exceeded_minutes),
            (job, limit),
            "{marks}"
        );
        assert_eq!(done.job.at, "160");
        assert!(runner.under_way.is_none() || limit.is_none());
    }
}

#[test]
fn a_runner_ends_as_its_agent_and_no_node_is_blamed_for_a_job() {
    let mark =
        |mark: &str| format!(r#"{{"mark":"{mark}","job":"build","run":"7","repository":"a/b"}}"#);
    let done = [mark("started"), mark("completed")].join("\n");
    let job = gpu(1, &running(), &passed(), true);
    let not_pulled = gpu(0, &waiting("ImagePullBackOff", "x"), &passed(), false);
    let killed = gpu(2, &running(), &terminated(137, "OOMKilled", ""), true);
    // Given jobs that ended, whatever became of their containers, then that is the runner's end
    for gpu in [&job, &not_pulled, &killed] {
        let main = agent(&terminated(0, "Completed", &done), false, false);
        let runner = at(&with_job("1"), "cuda:13", &status(gpu, &main));
        assert_eq!(runner.phase, RunnerPhase::Finished);
        assert!(
            matches!(&runner.end, Some(End::JobDone(job)) if job.job == "build"),
            "{:?}",
            runner.end
        );
        assert_eq!(
            runner.done.unwrap().finished.to_string(),
            "2026-01-01T00:09:00Z"
        );
    }
    // Given agents that ended otherwise
    let started = mark("started");
    for (code, reason, message, word, says) in [
        (
            137,
            "OOMKilled",
            started.as_str(),
            "OutOfMemory",
            "The container main was killed at its memory limit of 1Gi. Raise resources.limits.memory of the container `runner`",
        ),
        (143, "Error", &started, "JobCutShort", "build of run 7"),
        (7, "Error", "", "VersionRefusedOnce", "refused the agent"),
        (
            128,
            "StartError",
            "no such file",
            "ContainerNotStarted",
            "container `main` could not be started: no such file",
        ),
        (0, "Completed", "", "EndedWithoutJob", "ran no job"),
    ] {
        let main = agent(&terminated(code, reason, message), false, false);
        let runner = at(&noted(), "gate:1", &status(&gate(&running()), &main));
        let failure = failure(&runner);
        assert_eq!(failure.reason.word(), word);
        assert!(failure.message.contains(says), "{}", failure.message);
        assert_ne!(failure.class, Class::Node);
        assert!(failure.registered, "GitHub may still hold its entry");
    }
}

#[test]
fn a_gate_that_failed_is_told_and_not_the_agents_container_that_ends_with_it() {
    let report = Report {
        outcome: gate_report::Outcome::Failed,
        ..Report::new("1")
    };
    let gate = gate(&terminated(12, "Error", &report.summary()));
    let main = |state: &Value| agent(state, false, false);
    let ended = main(&terminated(12, "Error", ""));
    for (shown, expected) in [
        (status(&super::gate(&running()), &ended), None),
        (status(&gate, &main(&running())), Some("GateFailed")),
        (status(&gate, &ended), Some("GateFailed")),
    ] {
        let runner = at(&json!({}), "gate:1", &shown);
        let reason = match &runner.end {
            Some(End::Failed(failure)) => Some(failure.reason.word()),
            _ => None,
        };
        assert_eq!(reason, expected, "{shown:#}");
    }
    // An agent's container that never began says so, once its pod has ended with it
    let mut over = status(
        &super::gate(&running()),
        &main(&terminated(128, "StartError", "no such file")),
    );
    over["phase"] = json!("Failed");
    assert_eq!(
        failure(&at(&json!({}), "gate:1", &over)).reason,
        "ContainerNotStarted"
    );
    // A gate that is killed while it waits for a job is no failure of the node's, and not the runner's end
    let killed = gpu(1, &running(), &terminated(137, "Error", ""), true);
    let waits = at(
        &noted(),
        "gate:1",
        &status(&killed, &agent(&running(), true, true)),
    );
    assert_eq!((waits.phase, &waits.end), (RunnerPhase::Idle, &None));
}
