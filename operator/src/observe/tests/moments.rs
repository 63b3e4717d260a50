//! Given a pod in a moment of its life, between its gate's start and the end of either, then this is what it shows.

use super::*;

/// A running pod in this moment: how far its runner has come, and what is wrong with it.
fn moment(let_in: bool, gpu: &Value, online: bool, unready_since: &str) -> Runner {
    let ready = gpu[0]["ready"] == true && online;
    let ready = json!({
        "type": "ContainersReady", "status": if ready { "True" } else { "False" },
        "lastTransitionTime": unready_since
    });
    let status = json!({
        "phase": "Running", "conditions": [bound(), ready],
        "initContainerStatuses": gpu, "containerStatuses": main(online)
    });
    pod_of(&spec(let_in), &status)
}

const BEGIN: &str = "2026-01-01T00:00:01Z";
const LATER: &str = "2026-01-01T00:10:00Z";

/// Given a container of a pod that was let in or not, and whether its agent has been online, then this is its phase.
#[track_caller]
fn assert_phase(let_in: bool, gpu: &Value, online: bool, unready: &str, phase: RunnerPhase) {
    let runner = moment(let_in, gpu, online, unready);
    assert_eq!(runner.phase, phase, "{gpu:#}");
    assert_eq!(runner.end, None, "{gpu:#}");
    assert_eq!(runner.gate_passed, let_in);
    let runs = let_in && gpu[0]["restartCount"] == 1;
    assert_eq!(runner.agent_running, runs, "{gpu:#}");
}

#[test]
fn each_step_of_the_gate_and_of_the_change_after_it_is_a_phase() {
    let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": "m"}});
    let killed = json!({"terminated": {"exitCode": 137}});
    let change = |state: &Value, before: &Value| gpu(0, state, before, false);
    for (let_in, gpu, phase) in [
        (
            false,
            gate(&waiting("PodInitializing")),
            RunnerPhase::Preparing,
        ),
        (false, gate(&running()), RunnerPhase::Gated),
        // The image is being changed: the gate is still there, or its end, or its container waits
        (true, gate(&running()), RunnerPhase::Starting),
        (true, gate(&passed()), RunnerPhase::Starting),
        (
            true,
            change(&waiting("ContainerCreating"), &passed()),
            RunnerPhase::Starting,
        ),
        (
            true,
            change(&waiting("ErrImagePull"), &passed()),
            RunnerPhase::Starting,
        ),
        // Killed, because it did not end in time
        (
            true,
            change(&waiting("ContainerCreating"), &killed),
            RunnerPhase::Starting,
        ),
    ] {
        assert_phase(let_in, &gpu, false, BEGIN, phase);
    }
}

#[test]
fn each_step_of_the_agent_is_a_phase() {
    for (gpu, online, unready, phase) in [
        (
            agent(&running(), false),
            false,
            BEGIN,
            RunnerPhase::Starting,
        ),
        // The kubelet has forgotten the container before
        (
            gpu(1, &running(), &json!({}), false),
            false,
            BEGIN,
            RunnerPhase::Starting,
        ),
        (agent(&running(), true), false, BEGIN, RunnerPhase::Idle),
        (agent(&running(), true), true, BEGIN, RunnerPhase::Idle),
        (agent(&running(), false), true, LATER, RunnerPhase::Busy),
        // A job came before anybody had seen it ready
        (agent(&running(), false), true, BEGIN, RunnerPhase::Busy),
        // A kubelet that was restarted has forgotten that the main container is started
        (agent(&running(), false), false, LATER, RunnerPhase::Busy),
    ] {
        assert_phase(true, &gpu, online, unready, phase);
    }
}

#[test]
fn an_image_that_cannot_be_pulled_after_the_gate_is_the_agents() {
    let pulled = json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}});
    let gpu = gpu(0, &pulled, &passed(), false);
    let runner = moment(true, &gpu, false, BEGIN);
    let waiting = runner.waiting.unwrap().to_string();
    assert_eq!(
        waiting,
        "container gpu, image runner:1: ImagePullBackOff: not found"
    );
    assert_eq!(runner.since.to_string(), "2026-01-01T00:00:05Z");
    assert_eq!(runner.devices, ["GPU-1"], "the gate's report is there");
}

#[test]
fn what_is_started_again_without_another_image_is_over() {
    // Given what the kubelet starts again though it ended: its main container has not ended yet
    let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:00:05Z"}});
    let failed = json!({"terminated": {"exitCode": 12, "finishedAt": "2026-01-01T00:00:05Z"}});
    let done = r#"{"mark":"completed","job":"build","run":"7","repository":"a/b"}"#;
    let done = json!({"terminated": {"exitCode": 0, "message": done, "finishedAt": "2026-01-01T00:00:05Z"}});
    let pause = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let again = json!({"terminated": {"exitCode": 137, "finishedAt": "2026-01-01T00:00:09Z"}});
    for state in [&running(), &pause, &again] {
        let waits = usize::from(state == &pause);
        for (let_in, first, reason) in [
            (false, &killed, Some("OutOfMemory")),
            (false, &failed, Some("GateFailed")),
            (true, &killed, Some("OutOfMemory")),
            (true, &done, None),
        ] {
            let number = i32::from(let_in) + 1 - i32::try_from(waits).unwrap();
            // Then its first end counts
            let gpu = gpu(number, state, first, false);
            let runner = moment(let_in, &gpu, false, BEGIN);
            let found = match &runner.end {
                Some(End::JobDone(_)) => None,
                Some(End::Failed(failure)) => Some(failure.reason.word()),
                None => panic!("it goes on: {gpu:#}"),
            };
            assert_eq!(found, reason, "{gpu:#}");
            assert_eq!(runner.since.to_string(), "2026-01-01T00:00:05Z");
        }
    }
}

#[test]
fn what_kept_the_agent_from_starting_is_told_in_our_programs_words_and_blames_no_device() {
    let said = |class: Class, name: &str| {
        Report {
            failure: Some(gate_report::Failure {
                class,
                step: gate_report::Step::Preflight,
                code: None,
                code_name: name.into(),
                call: None,
                device: None,
                uuid: None,
                message: "The image has no nvcc.".into(),
                advice: "Add it.".into(),
                confidence: gate_report::Confidence::High,
                shared: false,
            }),
            ..Report::new("1")
        }
        .summary()
    };
    let preflight = gate_report::preflight::FAILED;
    for (code, name, expected) in [
        (10, preflight, ("PreflightFailed", Class::Config)),
        (15, "", ("RegistrationRefused", Class::Refused)),
        (16, "", ("RegistrarUnreachable", Class::Transient)),
        (70, "", ("GateFailed", Class::Internal)),
        // What only a gate may say is the agent's own end here
        (12, "", ("EndedWithoutJob", Class::Transient)),
        (13, "", ("EndedWithoutJob", Class::Transient)),
        (1, preflight, ("EndedWithoutJob", Class::Transient)),
    ] {
        let class = Class::from_exit_code(code).unwrap_or(Class::Config);
        let runner = ended(code, "Error", &said(class, name));
        let told = failure(&runner);
        assert_eq!((told.reason.word(), told.class), expected, "{code}");
        assert_eq!((told.code, &told.device), (None, &None));
        let ours = expected.0 != "EndedWithoutJob";
        assert_eq!(told.message == "The image has no nvcc. Add it.", ours);
    }
    // Nor is it believed of one that was online: a job can write the same
    let words = said(Class::Config, preflight);
    let end = json!({"terminated": {"exitCode": 10, "message": words, "finishedAt": "2026-01-01T00:20:00Z"}});
    let runner = moment(true, &agent(&end, false), true, BEGIN);
    assert_eq!(failure(&runner).reason, "EndedWithoutJob");
}

#[test]
fn a_pod_that_is_deleted_while_its_image_is_changed_is_nobodys_fault() {
    let stopped = json!({"terminated": {"exitCode": 143, "finishedAt": "2026-01-01T00:00:05Z"}});
    let status = json!({
        "phase": "Failed", "conditions": [bound()],
        "initContainerStatuses": gate(&stopped), "containerStatuses": main(false)
    });
    let runner = pod_of(&spec(true), &status);
    assert_eq!(failure(&runner).reason, "PodLost");
    assert!(failure(&runner).registered, "nobody knows better");
}

#[test]
fn a_runner_of_an_older_version_keeps_its_job_over_an_upgrade() {
    // Given a pod that an older operator made: its gate was a container of its own, and its agent the main one
    let read = |state: Value, ready: bool| {
        let status = json!({
            "phase": "Running", "conditions": [bound()],
            "initContainerStatuses": [{"name": "gate", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}],
            "containerStatuses": [{
                "name": "runner", "image": "", "imageID": "", "ready": ready, "started": true, "restartCount": 0,
                "state": state
            }]
        });
        let spec = json!({"nodeName": "node-1", "initContainers": [{"name": "gate"}], "containers": [{"name": "runner"}]});
        pod_of(&spec, &status)
    };
    // Then what it does is read as ever
    assert_eq!(read(running(), true).phase, RunnerPhase::Idle);
    assert_eq!(read(running(), false).phase, RunnerPhase::Busy);
    let done = r#"{"mark":"completed","job":"build","run":"7","repository":"a/b"}"#;
    let ended = json!({"terminated": {"exitCode": 0, "message": done}});
    assert_eq!(read(ended, false).phase, RunnerPhase::Finished);
    // And one whose agent has not begun is replaced: nobody registers it any more
    let waits = json!({"waiting": {"reason": "PodInitializing"}});
    assert_eq!(read(waits, false).phase, RunnerPhase::Preparing);
}
