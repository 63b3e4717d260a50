//! Pods whose jobs bring their containers: the agent in the main container, the gate and then the job in the one of the GPUs.

use cuda_runner_plan::model::runner::{
    JOB_ANNOTATION, JobPod, PASSED_ANNOTATION, REPORT_ANNOTATION,
};
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

#[test]
fn a_runner_is_as_far_as_its_agent_and_the_change_of_the_image_is_no_fault() {
    let (gate, none) = (gate(&running()), json!({}));
    let up = |ready, started| agent(&running(), ready, started);
    let pull = waiting("ErrImagePull", "not found");
    let in_the_gates = |annotations: &Value, gpu: &Value, main: &Value| {
        at(annotations, "gate:1", &status(gpu, main))
    };
    let for_job = |gpu: &Value, main: &Value| at(&with_job("1"), "cuda:13", &status(gpu, main));
    let changed = |state: &Value| gpu(0, state, &none, false);
    let job = gpu(1, &running(), &passed(), true);
    for (moment, runner, phase, since) in [
        (
            "nothing runs yet",
            in_the_gates(
                &none,
                &super::gate(&none),
                &agent(&waiting("PodInitializing", ""), false, false),
            ),
            RunnerPhase::Preparing,
            "2026-01-01T00:00:01Z",
        ),
        (
            "the agent's container is there and waits for the gate",
            in_the_gates(&none, &gate, &up(false, false)),
            RunnerPhase::Gated,
            "2026-01-01T00:00:06Z",
        ),
        (
            "the agent's image is pulled, and the gate has passed",
            in_the_gates(&noted(), &gate, &agent(&pull, false, false)),
            RunnerPhase::Starting,
            PASSED,
        ),
        (
            "the agent connects",
            in_the_gates(&noted(), &gate, &up(false, false)),
            RunnerPhase::Starting,
            PASSED,
        ),
        (
            "it waits for a job",
            in_the_gates(&noted(), &gate, &up(true, true)),
            RunnerPhase::Idle,
            PASSED,
        ),
        (
            "it has one, and the image is still the gate's",
            in_the_gates(&noted(), &gate, &up(false, true)),
            RunnerPhase::Busy,
            PASSED,
        ),
        (
            "the gate is still there",
            for_job(&changed(&running()), &up(false, true)),
            RunnerPhase::Busy,
            PASSED,
        ),
        (
            "the image is pulled",
            for_job(
                &changed(&waiting("ContainerCreating", "")),
                &up(false, true),
            ),
            RunnerPhase::Busy,
            PASSED,
        ),
        (
            "the image is not there",
            for_job(&changed(&pull), &up(false, true)),
            RunnerPhase::Busy,
            PASSED,
        ),
        (
            "the job runs",
            for_job(&job, &up(false, true)),
            RunnerPhase::Busy,
            PASSED,
        ),
        (
            "the job's container was killed",
            for_job(
                &gpu(2, &running(), &terminated(137, "OOMKilled", ""), true),
                &up(false, true),
            ),
            RunnerPhase::Busy,
            PASSED,
        ),
    ] {
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
}

#[test]
fn the_jobs_container_is_shown_in_the_kubelets_words() {
    let none = json!({});
    let failed = |reason: &str, message: &str| ContainerState::Failed {
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let oom = "The container gpu was killed at its memory limit of 8Gi. Raise limits.memory in spec.jobContainers.resources; where it names none, a LimitRange of the namespace sets it.";
    let table = [
        (
            "the gate is still there",
            "1",
            gpu(0, &running(), &none, true),
            ContainerState::Pulling,
        ),
        (
            "its end is shown",
            "1",
            gpu(0, &terminated(0, "Completed", ""), &none, false),
            ContainerState::Pulling,
        ),
        (
            "it is pulled",
            "1",
            gpu(0, &waiting("ContainerCreating", ""), &passed(), false),
            ContainerState::Pulling,
        ),
        (
            "the kubelet has too much to do",
            "1",
            gpu(
                0,
                &waiting("ErrImagePull", "pull QPS exceeded"),
                &passed(),
                false,
            ),
            ContainerState::Pulling,
        ),
        (
            "it is not there",
            "1",
            gpu(
                0,
                &waiting("ErrImagePull", "manifest unknown"),
                &passed(),
                false,
            ),
            failed("ImagePullBackOff", "manifest unknown"),
        ),
        (
            "the same in the pause after it",
            "1",
            gpu(
                0,
                &waiting(
                    "ImagePullBackOff",
                    "Back-off pulling image \"x\": ErrImagePull: manifest unknown",
                ),
                &passed(),
                false,
            ),
            failed("ImagePullBackOff", "manifest unknown"),
        ),
        (
            "it cannot be made",
            "1",
            gpu(
                0,
                &waiting("CreateContainerConfigError", "image will run as root"),
                &passed(),
                false,
            ),
            failed("CreateContainerConfigError", "image will run as root"),
        ),
        (
            "it cannot be started",
            "1",
            gpu(
                1,
                &waiting("CrashLoopBackOff", "back-off 10s"),
                &terminated(128, "StartError", "unsatisfied condition: cuda>=13"),
                false,
            ),
            failed("StartError", "unsatisfied condition: cuda>=13"),
        ),
        (
            "it runs",
            "1",
            gpu(1, &running(), &passed(), true),
            ContainerState::Running,
        ),
        (
            "it was killed",
            "1",
            gpu(1, &terminated(137, "OOMKilled", ""), &passed(), false),
            failed("OOMKilled", oom),
        ),
        (
            "and started again",
            "1",
            gpu(2, &running(), &terminated(137, "OOMKilled", ""), true),
            failed("OOMKilled", oom),
        ),
        (
            "it ended by itself",
            "1",
            gpu(
                2,
                &waiting("CrashLoopBackOff", ""),
                &terminated(1, "Error", "whatever a job wrote"),
                false,
            ),
            failed("Error", "The container gpu ended with code 1."),
        ),
        // Its container was started again in the gate's image, before the job
        (
            "the gate is there for the second time",
            "2",
            gpu(1, &running(), &terminated(137, "Error", ""), true),
            ContainerState::Pulling,
        ),
        (
            "the job after it",
            "2",
            gpu(2, &running(), &terminated(0, "Completed", ""), true),
            ContainerState::Running,
        ),
    ];
    for (moment, first, gpu, expected) in table {
        let main = agent(&running(), false, true);
        let runner = at(&with_job(first), "cuda:13", &status(&gpu, &main));
        let job = runner.job_pod.unwrap();
        assert_eq!(job.container, Some(expected), "{moment}");
        assert_eq!(job.image.as_deref(), Some("cuda:13"));
    }
    // Before a job has asked for one, and in a pod whose jobs run in the agent's container
    let idle = at(
        &noted(),
        "gate:1",
        &status(&gate(&running()), &agent(&running(), true, true)),
    );
    let job = idle.job_pod.unwrap();
    assert_eq!((job.image, job.container, job.starts), (None, None, 0));
    assert_eq!(pod(&json!({"phase": "Pending"})).job_pod, None::<JobPod>);
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
