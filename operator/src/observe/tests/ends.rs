//! Given a pod in some moment of its life, then it is reported how far it has come, and why it ended.

use cudarunner_crds::RunnerPhase;
use gate_report::{Class, Report};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use cuda_runner_plan::fixture::{observed, pool};
use cuda_runner_plan::health;
use cuda_runner_plan::model::runner::{End, Failure, Runner};

/// When the pods of these tests were made.
const MADE: Timestamp = Timestamp::constant(1_000_000, 0);

fn at(seconds: i64) -> String {
    (MADE + SignedDuration::from_secs(seconds)).to_string()
}

fn read(spec: &Value, status: &Value) -> Runner {
    let pod = json!({
        "metadata": {"name": "pool-aaaaa", "uid": "u", "creationTimestamp": at(0)},
        "spec": spec,
        "status": status
    });
    crate::observe::pod::read(&serde_json::from_value(pod).unwrap())
}

fn container(name: &str, state: &Value) -> Value {
    json!({"name": name, "image": "registry/image:1", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

fn done(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "message": message, "startedAt": at(5), "finishedAt": at(7)}})
}

fn bound() -> Value {
    json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": at(1)})
}

fn failure(runner: &Runner) -> &Failure {
    match &runner.end {
        Some(End::Failed(failure)) => failure,
        other => panic!("no failure: {other:?}"),
    }
}

/// The images of a pod's containers: whether it was let in.
fn spec(let_in: bool) -> Value {
    let image = if let_in {
        "registry/runner:1"
    } else {
        "registry/gate:1"
    };
    json!({
        "initContainers": [{"name": "gpu", "image": image, "restartPolicy": "Always"}],
        "containers": [{"name": "main", "image": "registry/gate:1"}],
    })
}

/// The container of the GPUs as the agent's, after a gate that passed.
fn agent(state: &Value) -> Value {
    let mut agent = container("gpu", state);
    agent["restartCount"] = json!(1);
    agent["lastState"] = done(0, "Completed", "{}");
    agent
}

/// A pod whose init containers are in these states, and whose main container waits for them.
fn starting(spec: &Value, init: &[(&str, Value)]) -> Runner {
    let init: Vec<Value> = init
        .iter()
        .map(|(name, state)| container(name, state))
        .collect();
    let idle = container("main", &waiting("PodInitializing", ""));
    read(
        spec,
        &json!({
            "phase": "Pending", "conditions": [bound()],
            "initContainerStatuses": init, "containerStatuses": [idle]
        }),
    )
}

const COMPLETED: &str = r#"{"mark":"completed","job":"build","run":"7","repository":"a/b"}"#;

/// A runner that came online 6 s after its pod was made, in a moment of its later life.
fn been_online(moment: usize, unready: i64) -> Value {
    let running = json!({"running": {"startedAt": at(6)}});
    let ended = |code, message: &str| json!({"terminated": {"exitCode": code, "message": message, "startedAt": at(6), "finishedAt": at(unready)}});
    let before = done(0, "Completed", "{}");
    let (number, state, last, started) = match moment {
        0 => (1, running, before, true),
        // For a moment after a restart of a kubelet before 1.35.
        1 => (1, running, before, false),
        2 => (1, ended(0, COMPLETED), before, true),
        3 => (1, ended(1, ""), before, true),
        4 => (
            1,
            waiting("CrashLoopBackOff", "back-off"),
            ended(0, COMPLETED),
            false,
        ),
        5 => (2, running, ended(0, COMPLETED), true),
        _ => (1, ended(137, ""), before, false),
    };
    let mut gpu = container("gpu", &state);
    gpu["restartCount"] = json!(number);
    gpu["lastState"] = last;
    let mut main = container("main", &json!({"running": {"startedAt": at(2)}}));
    main["started"] = json!(started);
    let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": at(unready)});
    json!({
        "phase": "Running", "conditions": [bound(), ready],
        "initContainerStatuses": [gpu], "containerStatuses": [main]
    })
}

proptest! {
    #[test]
    fn a_runner_that_was_online_never_goes_back_and_is_never_overdue(
        moment in 0usize..7,
        unready in 7i64..40_000,
        hours in 0i64..2_000,
    ) {
        let pool = pool(1);
        let runner = read(&spec(true), &been_online(moment, unready));
        prop_assert!(
            !matches!(
                runner.phase,
                RunnerPhase::Unscheduled | RunnerPhase::Preparing | RunnerPhase::Gated | RunnerPhase::Starting
            ),
            "{:?}", runner.phase
        );
        let now = MADE + SignedDuration::from_hours(hours);
        let health = health::assess(&pool, &observed(vec![runner]), now);
        prop_assert!(health.overdue.is_empty());
    }
}

#[test]
fn whether_a_runner_is_idle_is_for_its_own_container_to_say() {
    for (is_ready, phase) in [(true, RunnerPhase::Idle), (false, RunnerPhase::Busy)] {
        // Given a pod that is not ready, because a sidecar of it is down
        let mut status = been_online(0, 1800);
        let sidecar = container("vpn", &waiting("CrashLoopBackOff", "back-off"));
        status["initContainerStatuses"]
            .as_array_mut()
            .unwrap()
            .push(sidecar);
        // When the agent's container says whether it has a job, then that is what the runner is
        status["initContainerStatuses"][0]["ready"] = json!(is_ready);
        let runner = read(&spec(true), &status);
        assert_eq!(runner.phase, phase);
    }
}

#[test]
fn a_readiness_gate_says_nothing_of_the_agent() {
    // Given a pod that a readiness gate has never let be ready, and whose agent has been online
    let mut status = been_online(1, 1800);
    status["conditions"][1]["type"] = json!("ContainersReady");
    let never = json!({"type": "Ready", "status": "False", "lastTransitionTime": at(1)});
    status["conditions"].as_array_mut().unwrap().push(never);
    let runner = read(&spec(true), &status);
    // Then it is known to have been
    assert_eq!(runner.phase, RunnerPhase::Busy);
}

#[test]
fn a_container_that_has_ended_is_the_runners_end_before_its_pod_says_so() {
    for (moment, phase) in [
        (2, RunnerPhase::Finished),
        (3, RunnerPhase::Failed),
        (4, RunnerPhase::Finished),
        (5, RunnerPhase::Finished),
    ] {
        let runner = read(&spec(true), &been_online(moment, 1800));
        assert_eq!(runner.phase, phase, "{moment}");
        assert_eq!(runner.since.to_string(), at(1800), "{moment}");
    }
}

#[test]
fn what_a_container_waits_for_is_told_whichever_it_is() {
    let missing = r#"secret "hf-token" not found"#;
    let runner = starting(
        &spec(false),
        &[
            ("prepare", done(0, "Completed", "")),
            ("fetch", waiting("CreateContainerConfigError", missing)),
        ],
    );
    let reported = runner.waiting.unwrap().to_string();
    assert_eq!(
        reported,
        r#"container fetch, image registry/image:1: CreateContainerConfigError: secret "hf-token" not found"#
    );
}

#[test]
fn an_image_that_is_not_there_is_told_in_the_same_words_at_each_attempt_and_between() {
    let cause = "pull access denied, repository does not exist";
    let words = |reason: &str, message: &str| {
        let states = [("prepare", waiting(reason, message))];
        starting(&spec(false), &states).waiting
    };
    let between = format!("Back-off pulling image \"x\": ErrImagePull: {cause}");
    let reported = words("ImagePullBackOff", &between).unwrap();
    assert_eq!(Some(&reported), words("ErrImagePull", cause).as_ref());
    assert_eq!(
        (reported.reason.as_str(), reported.message.as_str()),
        ("ImagePullBackOff", cause)
    );
}

#[test]
fn an_init_container_of_the_template_that_fails_is_named_with_its_last_words() {
    let states = [
        ("prepare", done(0, "Completed", "")),
        ("externals", done(1, "Error", "copying\ncp: no such file\n")),
    ];
    let runner = starting(&spec(false), &states);
    let failure = failure(&runner);
    assert_eq!(
        (failure.reason.word(), failure.class),
        ("InitContainerFailed", Class::Config)
    );
    for word in ["externals", "code 1", "cp: no such file"] {
        assert!(failure.message.contains(word), "{}", failure.message);
    }
    assert_eq!(runner.phase, RunnerPhase::Failed);

    // One that Kubernetes starts again has not ended the pod.
    let sidecar = json!({"containers": [], "initContainers": [{"name": "externals", "restartPolicy": "Always"}]});
    assert_eq!(starting(&sidecar, &states).end, None);
}

/// The summary of a gate whose test process was killed.
fn killed() -> String {
    Report {
        failure: Some(gate_report::Failure {
            class: Class::Node,
            step: gate_report::Step::Init,
            code: None,
            code_name: "Crash".into(),
            call: None,
            device: None,
            uuid: None,
            message: "the test process died of signal 9 (SIGKILL) in cuInit".into(),
            advice: "Reinstall the driver.".into(),
            confidence: gate_report::Confidence::Medium,
            shared: false,
        }),
        ..Report::new("1")
    }
    .summary()
}

#[test]
fn a_gate_without_memory_is_configuration_and_the_limit_is_named() {
    let limited = json!({"containers": [], "initContainers": [
        {"name": "gpu", "resources": {"limits": {"memory": "64Mi"}}}
    ]});
    let unlimited = json!({"containers": []});
    let report = killed();
    let counted = report.replace("Crash", "OutOfMemoryKill");
    for (spec, state, expected) in [
        // The whole container is killed, as with cgroup v2.
        (
            &limited,
            done(137, "OOMKilled", ""),
            ("OutOfMemory", Class::Config),
        ),
        // One process after the other, as with cgroup v1.
        (
            &limited,
            done(13, "Error", &report),
            ("OutOfMemory", Class::Config),
        ),
        // The same, where the kernel's count was seen.
        (
            &limited,
            done(10, "Error", &counted),
            ("OutOfMemory", Class::Config),
        ),
        (
            &unlimited,
            done(13, "Error", &report),
            ("GateFailed", Class::Transient),
        ),
        (
            &unlimited,
            done(10, "Error", &counted),
            ("GateFailed", Class::Transient),
        ),
    ] {
        let runner = starting(spec, &[("gpu", state)]);
        let failure = failure(&runner);
        assert_eq!((failure.reason.word(), failure.class), expected);
        assert_eq!(
            failure.message.contains("64Mi"),
            spec == &limited,
            "{}",
            failure.message
        );
        let is_named = failure
            .message
            .contains("container `runner` in spec.template");
        assert_eq!(is_named, spec == &limited, "{}", failure.message);
    }
}

#[test]
fn what_prepares_speaks_for_itself() {
    for (code, reason, expected) in [
        (15, "Error", ("RegistrationRefused", Class::Refused)),
        (16, "Error", ("RegistrarUnreachable", Class::Transient)),
        (70, "Error", ("GateFailed", Class::Internal)),
        (128, "StartError", ("GateFailed", Class::Transient)),
        (137, "OOMKilled", ("OutOfMemory", Class::Config)),
    ] {
        let runner = starting(&spec(false), &[("prepare", done(code, reason, "x"))]);
        let failure = failure(&runner);
        assert_eq!((failure.reason.word(), failure.class), expected, "{code}");
        assert!(!failure.registered);
        let is_ours = failure.message.contains("spec.smoke.resources");
        assert_eq!(is_ours, reason == "OOMKilled", "{}", failure.message);
    }
}

#[test]
fn a_gate_that_the_node_could_not_start_is_told_in_the_runtimes_words() {
    let hook =
        "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch";
    let low = "container init was OOM-killed (memory limit too low?)";
    for (code, reason, words, expected) in [
        (128, "StartError", hook, ("GateFailed", Class::Transient)),
        (128, "Error", hook, ("GateFailed", Class::Transient)),
        (
            127,
            "ContainerCannotRun",
            hook,
            ("GateFailed", Class::Transient),
        ),
        // That is the spec's.
        (128, "StartError", low, ("OutOfMemory", Class::Config)),
    ] {
        let states = [("gpu", done(code, reason, words))];
        let runner = starting(&spec(false), &states);
        let failure = failure(&runner);
        assert_eq!((failure.reason.word(), failure.class), expected, "{words}");
        let is_the_nodes = expected.1 == Class::Transient;
        assert_eq!(failure.message.contains(hook), is_the_nodes);
        // No other pool is bound by what a runtime says of this one's pods.
        assert_eq!(failure.code, None);
        assert_eq!(failure.code_name.is_some(), is_the_nodes);
    }
}

#[test]
fn a_pod_at_its_own_deadline_is_nobodys_fault() {
    let mut spec = spec(true);
    spec["activeDeadlineSeconds"] = json!(45);
    let end = json!({"terminated": {"exitCode": 137, "startedAt": at(6), "finishedAt": at(47)}});
    for status in [
        // The kubelet's words come some seconds later.
        json!({"phase": "Running", "startTime": at(1), "initContainerStatuses": [agent(&end)]}),
        json!({
            "phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline",
            "startTime": at(1), "initContainerStatuses": [agent(&end)]
        }),
    ] {
        let runner = read(&spec, &status);
        let failure = failure(&runner);
        assert_eq!(
            (failure.reason.word(), failure.class),
            ("DeadlineExceeded", Class::Transient)
        );
        assert!(failure.message.contains("45 s"), "{}", failure.message);
    }
}

#[test]
fn an_agent_that_ended_as_soon_as_it_was_online_has_a_mark_of_it() {
    // Given an end that the kubelet shows without a sign of the moment before
    for (code, words) in [
        (0, "{\"mark\":\"online\"}"),
        (1, "GitHub said no\n{\"mark\":\"online\"}"),
    ] {
        let agent = agent(&done(code, "Error", words));
        let runner = read(
            &spec(true),
            &json!({"phase": "Running", "initContainerStatuses": [agent], "containerStatuses": super::main(false)}),
        );
        // Then it did not end at once
        let failure = failure(&runner);
        assert_ne!(failure.reason.word(), "AgentEndedAtOnce");
        assert!(!failure.message.contains("mark"), "{}", failure.message);
    }
}

#[test]
fn an_agent_that_hardly_starts_is_told_with_its_code_and_last_words() {
    let words = "cat: /run/cuda-runner/jitconfig: Permission denied";
    let agent = agent(&done(1, "Error", words));
    let runner = read(
        &spec(true),
        &json!({"phase": "Failed", "initContainerStatuses": [agent]}),
    );
    let failure = failure(&runner);
    assert_eq!(
        (failure.reason.word(), failure.code),
        ("AgentEndedAtOnce", Some(1))
    );
    assert!(failure.message.contains(words), "{}", failure.message);
}

#[test]
fn an_image_for_another_architecture_is_the_pools_mistake_and_named() {
    // Given a pod for Arm nodes
    let mut on_arm = spec(true);
    let asked = json!({"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]});
    on_arm["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [asked]}]}}});
    // When the kernel does not take the agent's shell, or the gate
    let shell = "/bin/sh could not be started: Exec format error (os error 8)";
    let agent = agent(&done(126, "Error", shell));
    let status = json!({"phase": "Failed", "initContainerStatuses": [agent]});
    let gate = "exec /cuda-smoke: exec format error";
    let by_runtime = "failed to create task: exec: \"/cuda-smoke\": exec format error";
    for (runner, of, words) in [
        (read(&on_arm, &status), "`gpu`", shell),
        (
            starting(&on_arm, &[("prepare", done(255, "Error", gate))]),
            "gate",
            gate,
        ),
        (
            starting(&on_arm, &[("prepare", done(128, "StartError", by_runtime))]),
            "gate",
            by_runtime,
        ),
    ] {
        // Then it is configuration, in these words
        let failure = failure(&runner);
        assert_eq!(
            (failure.reason.word(), failure.class),
            ("WrongArchitecture", Class::Config)
        );
        for word in [of, words, "linux/arm64"] {
            assert!(failure.message.contains(word), "{}", failure.message);
        }
    }
}

#[test]
fn a_job_is_told_whose_pod_the_node_refuses_when_its_kubelet_starts_anew() {
    let started = r#"{"mark":"started","job":"build","run":"7","repository":"a/b"}"#;
    let agent = agent(&done(137, "Error", started));
    let runner = read(
        &spec(true),
        &json!({
            "phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed",
            "initContainerStatuses": [agent]
        }),
    );
    let failure = failure(&runner);
    assert_eq!(failure.reason.word(), "PodRejected");
    assert!(
        failure.message.contains("build of run 7"),
        "{}",
        failure.message
    );
    assert!(failure.is_unasked(), "nobody here asked for it");
    assert_eq!(runner.under_way.unwrap().run, "7");
}

#[test]
fn an_agent_that_could_not_be_started_is_tried_again_first() {
    let agent = agent(&done(128, "StartError", "exec: not found"));
    let runner = read(
        &spec(true),
        &json!({"phase": "Failed", "initContainerStatuses": [agent]}),
    );
    let failure = failure(&runner);
    let expected = ("ContainerNotStarted", Class::Transient);
    assert_eq!((failure.reason.word(), failure.class), expected);
    assert!(!failure.message.contains("command"), "{}", failure.message);
}

#[test]
fn a_refused_pods_failure_is_of_now_and_not_of_its_creation() {
    let refused = json!({
        "phase": "Failed", "reason": "NodeAffinity", "message": "m", "startTime": at(90_000)
    });
    let runner = read(&json!({"containers": []}), &refused);
    assert_eq!(failure(&runner).at.to_string(), at(90_000));
}

#[test]
fn a_pod_that_was_deleted_by_force_is_told_unless_its_runner_was_idle() {
    let gone = |status: &str, ready_at: i64| {
        let mut pod = been_online(0, ready_at);
        pod["conditions"][1]["status"] = json!(status);
        pod["initContainerStatuses"][0]["ready"] = json!(status == "True");
        Failure::deleted(&read(&spec(true), &pod), MADE).map(|f| f.reason.word())
    };
    assert_eq!(gone("False", 30), Some("JobCutShort"));
    assert_eq!(gone("True", 30), None);
    let new = read(&json!({"containers": []}), &json!({"phase": "Pending"}));
    assert_eq!(Failure::deleted(&new, MADE).unwrap().reason, "PodDeleted");
}
