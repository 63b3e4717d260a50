//! `runner-init` as the first process of a pod's containers: each row of what it has to do, with real processes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::registrar::{JIT, Registrar, TICKET, admitted, answer, refusal, registration, ticket};
use common::runner::{Pod, as_the_first_process, giving};
use common::{Running, catches_term, faulty, program, report, signal, until};
use gate_report::Step;
use gate_report::contract::{file, gate};
use gate_report::preflight::Check;
use gate_report::wire::{REGISTRATIONS, REPORTS, TICKETS};
use serde_json::json;

/// A script that says that it is there, and then does this.
fn agent(script: &str) -> String {
    format!("true >\"$RUN/agent\"\n{script}")
}

#[test]
fn the_containers_end_as_the_agent_did() {
    let registrar = giving();
    for (agent, code) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -s KILL $$", 137),
        ("kill -s SEGV $$", 139),
        ("kill -s TERM $$", 143),
        ("exec /no/such/program", 127),
    ] {
        let pod = Pod::passed(&registrar);
        let mut main = pod.main();
        assert_eq!(pod.gpu(agent).code(), code, "{agent}");
        assert_eq!(pod.exit(), code.to_string(), "{agent}");
        assert_eq!(main.code(), code, "{agent}");
    }
}

#[test]
fn the_agent_finds_its_registration_and_nothing_of_the_ticket() {
    let registrar = giving();
    let pod = Pod::passed(&registrar);
    let seen = r#"ls "$RUN" >"$RUN/../seen"; cat "$RUN/jitconfig" >"$RUN/../jit"; env >"$RUN/../env"; [ "$1" = argument ]"#;
    assert_eq!(pod.gpu(seen).code(), 0);
    let read = |name: &str| fs::read_to_string(pod.dir.join(name)).unwrap();
    let seen: Vec<String> = read("seen").lines().map(Into::into).collect();
    for (name, there) in [
        (file::TICKET, false),
        (file::STARTED, true),
        (file::JIT_CONFIG, true),
    ] {
        assert_eq!(seen.iter().any(|seen| seen == name), there, "{name}");
    }
    assert_eq!(read("jit"), JIT);
    assert!(!read("env").contains(TICKET));
    let asked = registrar.asked(REGISTRATIONS);
    let [(head, body)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert!(
        head.contains(&format!("authorization: bearer {TICKET}")),
        "{head}"
    );
    assert_eq!(body, "{}");
    let mode = fs::metadata(pod.run(file::JIT_CONFIG))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o666, "an image may have any user");
}

#[test]
fn a_registration_token_has_a_file_of_its_own() {
    let token = json!({"kind": "RegistrationToken", "token": "AABBCC"});
    let registrar = Registrar::start(&[answer(200, "", &token)]);
    let pod = Pod::passed(&registrar);
    assert_eq!(pod.gpu("exit 0").code(), 0);
    assert_eq!(fs::read_to_string(pod.run(file::TOKEN)).unwrap(), "AABBCC");
}

#[test]
fn signals_reach_the_agent_and_it_is_waited_for() {
    let registrar = giving();
    for name in ["TERM", "INT", "HUP", "USR1"] {
        let pod = Pod::passed(&registrar);
        let trap = format!("trap 'sleep 0.2; exit 5' {name}");
        let script = agent("while :; do sleep 0.05; done");
        let mut gpu = pod.gpu(&format!("{trap}\n{script}"));
        until("started", || pod.has("agent"));
        signal(gpu.0.id(), name);
        assert_eq!((gpu.code(), pod.exit().as_str()), (5, "5"), "{name}");
    }
}

#[test]
fn who_was_cut_off_says_so_and_starts_nothing() {
    // Given an agent whose first process is killed
    let registrar = giving();
    let pod = Pod::passed(&registrar);
    let mut gpu = pod.gpu(&agent("echo $$ >\"$RUN/pid\"; exec sleep 60"));
    until("started", || {
        fs::read_to_string(pod.run("pid")).is_ok_and(|pid| pid.ends_with('\n'))
    });
    let orphan = fs::read_to_string(pod.run("pid")).unwrap();
    signal(gpu.0.id(), "KILL");
    gpu.0.wait().unwrap();
    // In a container the kernel ends it with the first process; here that is ours to do.
    signal(orphan.trim().parse().unwrap(), "KILL");
    fs::remove_file(pod.run("agent")).unwrap();
    // When the kubelet restarts the container
    let mut main = pod.main();
    let mut again = pod.gpu(&agent(""));
    // Then the pod ends, and this start waits for that
    assert_eq!(main.code(), 137);
    assert!(again.0.try_wait().unwrap().is_none());
    signal(again.0.id(), "TERM");
    assert_eq!(again.code(), 137);
    assert!(!pod.has("agent"), "a second agent was started");
    assert_eq!(registrar.asked(REGISTRATIONS).len(), 1);
}

#[test]
fn who_lost_the_ticket_before_the_agent_was_cut_off_too() {
    let pod = Pod::passed(&giving());
    fs::write(pod.run(file::TICKET), "").unwrap();
    let mut gpu = pod.gpu(&agent(""));
    assert_eq!(pod.main().code(), 137);
    signal(gpu.0.id(), "TERM");
    assert_eq!(gpu.code(), 137);
    assert!(!pod.has("agent"));
}

#[test]
fn an_end_tells_whether_the_agent_was_online_and_keeps_what_its_log_says() {
    let mark = "{\"mark\":\"online\"}\n";
    for (agent, code, log, printed) in [
        ("exit 0", 0, "", ""),
        ("true >\"$RUN/online\"; exit 0", 0, mark, ""),
        (
            "true >\"$RUN/online\"; echo why; exit 3",
            3,
            "",
            "why\n{\"mark\":\"online\"}\n",
        ),
        (
            "true >\"$RUN/online\"; echo said >>\"$RUN/../log\"; exit 3",
            3,
            "said\n{\"mark\":\"online\"}\n",
            "",
        ),
    ] {
        let pod = Pod::passed(&giving());
        // As the kubelet makes it.
        fs::write(pod.dir.join("log"), "").unwrap();
        assert_eq!(pod.gpu(agent).code(), code, "{agent}");
        assert_eq!(pod.log(), log, "{agent}");
        let output = fs::read_to_string(pod.dir.join("output")).unwrap();
        assert!(output.ends_with(printed), "{agent}: {output}");
        assert_eq!(output.contains("mark"), !printed.is_empty(), "{agent}");
    }
}

#[test]
fn a_start_after_the_end_says_the_end_again() {
    // Given a runner that has ended and left marks
    let pod = Pod::passed(&giving());
    let mark = r#"printf '{"mark":"completed"}' >"$RUN/../log"; exit 4"#;
    assert_eq!(pod.gpu(mark).code(), 4);
    // When the kubelet restarts the container, with a new termination message
    fs::write(pod.dir.join("log"), "").unwrap();
    let mut gpu = pod.gpu(&agent(""));
    until("said again", || pod.log() == r#"{"mark":"completed"}"#);
    assert!(gpu.0.try_wait().unwrap().is_none());
    // Then
    signal(gpu.0.id(), "TERM");
    assert_eq!((gpu.code(), pod.exit().as_str()), (4, "4"));
    assert!(!pod.has("agent"));
}

#[test]
fn a_start_after_the_end_whose_sigterm_was_lost_ends_by_itself_and_the_same() {
    // Given a runner that has ended
    let pod = Pod::passed(&giving());
    assert_eq!(pod.gpu("exit 4").code(), 4);
    // When the container is started again and no signal reaches it, then it ends all the same
    let mut gpu = pod.gpu(&agent(""));
    until("ended", || gpu.0.try_wait().unwrap().is_some());
    assert_eq!((gpu.code(), pod.exit().as_str()), (4, "4"));
    assert!(!pod.has("agent"));
}

#[test]
fn before_the_agent_sigterm_ends_all_at_once_and_writes_no_end() {
    let busy = Registrar::start(&[refusal(503, "", "NotYetKnown")]);
    let testing = Pod::prepared("true >\"$MARK\"; exec sleep 60");
    let testing = {
        let mark = testing.run("mark");
        testing.with("MARK", &mark.to_string_lossy())
    };
    let passed = Pod::prepared("true >\"$MARK\"; exec sleep 60");
    let passed = {
        let mark = passed.run(file::PASSED);
        passed.with("MARK", &mark.to_string_lossy())
    };
    let looking =
        Pod::passed(&busy).with(gate::PREFLIGHT, r#"{"image":true,"cudaToolkit":"12.0"}"#);
    program(
        &looking.dir.join("nvcc"),
        "#!/bin/sh\ntrue >\"$RUN/mark\"; exec sleep 60",
    );
    let asking = Pod::passed(&busy).with(gate::REGISTRATION_TIMEOUT_SECONDS, "60");
    for (what, pod, mark, code) in [
        ("testing", &testing, "mark", 143),
        // With 0 the kubelet would say nothing of an image that it cannot pull.
        ("passed", &passed, file::PASSED, 143),
        ("looking at the image", &looking, "mark", 143),
        ("asking", &asking, file::PASSED, 143),
    ] {
        let path = format!("{}:{}", pod.dir.display(), std::env::var("PATH").unwrap());
        let mut gpu = Running(pod.command(&agent("")).env("PATH", path).spawn().unwrap());
        until(what, || pod.has(mark));
        if what == "asking" {
            until(what, || !busy.asked(REGISTRATIONS).is_empty());
        }
        let began = std::time::Instant::now();
        signal(gpu.0.id(), "TERM");
        assert_eq!(gpu.code(), code, "{what}");
        assert!(
            began.elapsed() < std::time::Duration::from_secs(20),
            "{what}"
        );
        assert_eq!(
            (pod.exit().as_str(), pod.has("agent")),
            ("", false),
            "{what}"
        );
        assert!(
            pod.has(file::TICKET),
            "{what}: another start could not go on"
        );
    }
    // And another start goes on
    let registrar = giving();
    let asking = asking
        .with(gate::REGISTRAR_URL, &registrar.url())
        .with(gate::REGISTRAR_CA, &registrar.ca);
    assert_eq!(asking.gpu(&agent("exit 6")).code(), 6);
}

#[test]
fn the_main_container_ends_at_sigterm_but_as_the_agent_did_where_that_is_known() {
    let pod = Pod::prepared("");
    let mut main = pod.main();
    // It listens to signals a moment after its start.
    until("listening", || catches_term(main.0.id()));
    signal(main.0.id(), "TERM");
    assert_eq!(main.code(), 143);
    // What a job wrote there is no code
    for (written, code) in [("9", 9), ("0", 0), ("300", 143), ("nine", 143)] {
        fs::write(pod.run(file::EXIT), written).unwrap();
        let mut main = pod.main();
        until("listening or ended", || {
            catches_term(main.0.id()) || main.0.try_wait().unwrap().is_some()
        });
        if main.0.try_wait().unwrap().is_none() {
            signal(main.0.id(), "TERM");
        }
        assert_eq!(main.code(), code, "{written}");
    }
}

#[test]
fn orphans_are_ours_and_are_reaped() {
    // Given an agent that leaves processes behind, which live no longer than itself
    let pod = Pod::passed(&giving());
    let orphan = r#"while [ ! -e "$RUN/go" ] && kill -0 $$; do sleep 0.05; done"#;
    let script = agent(&format!(
        "for i in 1 2 3 4 5; do ({orphan} & echo $! >>\"$RUN/orphans\"); done; exec sleep 300"
    ));
    let gpu = pod.gpu(&script);
    let orphans = || fs::read_to_string(pod.run("orphans")).unwrap_or_default();
    let children =
        || fs::read_to_string(format!("/proc/{0}/task/{0}/children", gpu.0.id())).unwrap();
    // When they are nobody else's
    until("five orphans", || {
        orphans().lines().count() == 5 && children().split_whitespace().count() == 6
    });
    // Then they are gone as soon as they have ended
    fs::write(pod.run("go"), "").unwrap();
    until("reaped", || children().split_whitespace().count() == 1);
    let still = |pid: &str| PathBuf::from(format!("/proc/{pid}")).exists();
    assert!(!orphans().lines().any(still), "{}", orphans());
    // In a container the kernel ends the agent with its first process.
    signal(children().trim().parse().unwrap(), "TERM");
}

#[test]
fn a_gate_that_fails_ends_the_pod_with_its_code_and_its_report() {
    let pod =
        Pod::prepared(r#"printf '{"outcome":"failed"}' >"$CUDA_SMOKE_TERMINATION_LOG"; exit 12"#);
    let mut main = pod.main();
    assert_eq!(pod.gpu(&agent("")).code(), 12);
    assert_eq!((pod.exit().as_str(), main.code()), ("12", 12));
    assert_eq!(pod.log(), r#"{"outcome":"failed"}"#);
    assert!(!pod.has("agent"));
    // Killed, and not to be started at all
    assert_eq!(Pod::prepared("kill -s KILL $$").gpu("").code(), 137);
    let broken = Pod::prepared("");
    fs::write(broken.gate_program(), "no program").unwrap();
    fs::set_permissions(broken.gate_program(), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(broken.gpu("").code(), 126);
    // One that ends well has no right to: the GPU would be free for a job that nobody has cleared
    let pod = Pod::prepared("exit 0");
    assert_eq!(pod.gpu(&agent("")).code(), 70);
    assert_eq!((pod.exit().as_str(), pod.has("agent")), ("70", false));
}

#[test]
fn nothing_of_a_template_reaches_the_gate() {
    let pod = Pod::prepared("env >\"$SEEN\"; exit 11").with("LD_LIBRARY_PATH", "/driver");
    let seen = pod.dir.join("seen");
    let pod = pod.with("SEEN", &seen.to_string_lossy());
    let mut gpu = pod.command("");
    let path = gate::OF_THE_DEVICE[0];
    let code = gpu
        .env("LD_PRELOAD", "")
        .env("CUDA_VISIBLE_DEVICES", "7")
        .env("LD_LIBRARY_PATH", "/theirs")
        .env(gate::REGISTRAR_URL, "https://10.0.0.1")
        .env(gate::PROGRAM, "/bin/true")
        .env(path, "/mps")
        .status()
        .unwrap()
        .code();
    assert_eq!(code, Some(11));
    let seen = fs::read_to_string(seen).unwrap();
    let names: Vec<&str> = seen
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    // What the shell itself sets is not ours.
    let own = ["PWD", "OLDPWD", "_", "SHLVL"];
    let known =
        |name: &&str| pod.settings.contains_key(*name) || own.contains(name) || *name == path;
    assert!(names.iter().all(known), "{seen}");
    assert!(
        seen.contains("LD_LIBRARY_PATH=/driver\n") && seen.contains("/mps"),
        "{seen}"
    );
}

#[test]
fn an_image_that_lacks_something_gets_no_registration() {
    let registrar = giving();
    let wanted = r#"{"image":true,"commands":["sh","no-such-command"]}"#;
    let pod = Pod::passed(&registrar).with(gate::PREFLIGHT, wanted);
    let mut main = pod.main();
    assert_eq!(pod.gpu(&agent("")).code(), 10);
    assert_eq!((pod.exit().as_str(), main.code()), ("10", 10));
    let report = pod.report();
    let failure = report.failure.unwrap();
    assert_eq!(
        (failure.step, report.node.as_deref()),
        (Step::Preflight, Some("node-a"))
    );
    assert!(
        failure.message.contains("no no-such-command"),
        "{}",
        failure.message
    );
    assert!(!pod.has("agent") && registrar.asked(REGISTRATIONS).is_empty());
    // One that lacks nothing but what a job can fetch is told of it
    let wanted = r#"{"image":true,"commands":["sh"],"rustToolchain":"nightly-none"}"#;
    let pod = Pod::passed(&registrar).with(gate::PREFLIGHT, wanted);
    assert_eq!(pod.gpu("exit 8").code(), 8);
    let printed = fs::read_to_string(pod.dir.join("output")).unwrap();
    assert!(
        printed.contains("nightly-none is not installed"),
        "{printed}"
    );
}

#[test]
fn what_the_look_at_the_image_did_not_leave_is_not_taken_for_good() {
    for broken in ["mkdir", "mkfifo"] {
        let pod = Pod::passed(&giving()).with(gate::PREFLIGHT, r#"{"image":true}"#);
        let made = Command::new(broken).arg(pod.run(file::PREFLIGHT)).status();
        assert!(made.unwrap().success());
        // A pipe is removed as another start's file is, a folder is not.
        let code = if broken == "mkdir" { 10 } else { 0 };
        assert_eq!(pod.gpu("exit 0").code(), code, "{broken}");
        if code == 10 {
            let preflight = pod.report().preflight.unwrap();
            assert_eq!(preflight.findings[0].check, Check::Image);
        }
    }
}

#[test]
fn without_a_registration_there_is_no_agent() {
    // A port that nobody else gets.
    let nobody = Registrar {
        address: ([127, 0, 0, 1], 1).into(),
        ..Registrar::start(&[])
    };
    for (registrar, code, name) in [
        (
            Registrar::start(&[refusal(403, "", "Closing")]),
            15,
            "Closing",
        ),
        (
            Registrar::start(&[refusal(503, "", "Slow")]),
            16,
            "RegistrarUnreachable",
        ),
        (nobody, 16, "RegistrarUnreachable"),
        (
            Registrar::start(&[answer(200, "", &json!({"kind": "New"}))]),
            70,
            "Internal",
        ),
    ] {
        let pod = Pod::passed(&registrar);
        // All of it is waited for.
        let pod = if code == 16 {
            pod.with(gate::REGISTRATION_TIMEOUT_SECONDS, "2")
        } else {
            pod
        };
        assert_eq!(pod.gpu(&agent("")).code(), code, "{name}");
        assert_eq!((pod.exit(), pod.has("agent")), (code.to_string(), false));
        let report = pod.report();
        let failure = report.failure.unwrap();
        assert_eq!(
            (failure.step, failure.code_name.as_str()),
            (Step::Registration, name)
        );
        assert_eq!(report.node.as_deref(), Some("node-a"));
    }
}

#[test]
fn an_image_that_no_gate_has_cleared_runs_no_agent() {
    let registrar = giving();
    let pod = Pod::passed(&registrar);
    fs::remove_file(pod.run(file::PASSED)).unwrap();
    assert_eq!(pod.gpu(&agent("")).code(), 10);
    assert_eq!((pod.exit().as_str(), pod.has("agent")), ("10", false));
    assert!(
        pod.report()
            .failure
            .unwrap()
            .message
            .contains("before the gate had passed")
    );
    assert!(registrar.asked(REGISTRATIONS).is_empty());
}

#[test]
fn hooks_and_probes_of_a_template_are_for_its_image() {
    let pod = Pod::passed(&giving());
    let code = |line: &[&str]| {
        let mut init = Command::new(pod.run(file::RUNNER_INIT));
        init.args(line)
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .code()
    };
    let hook = ["hook", "/bin/sh", "-c", "exit 3"];
    assert_eq!(code(&hook), Some(3));
    assert_eq!(code(&["hook", "/no/such/program"]), Some(127));
    fs::write(pod.gate_program(), "").unwrap();
    assert_eq!(code(&hook), Some(0));
    // And whether the agent has been online is known by a file
    assert_eq!(code(&["online"]), Some(1));
    fs::write(pod.run(file::ONLINE), "").unwrap();
    assert_eq!(code(&["online"]), Some(0));
    // What it does not know is no success
    for line in [&["gpu"][..], &["main", "x"], &["hook"], &["other"], &[]] {
        assert_eq!(code(line), Some(2), "{line:?}");
    }
}

#[test]
fn a_job_cannot_keep_the_end_from_being_written() {
    let pod = Pod::passed(&giving());
    let in_the_way = r#"mkdir -p "$RUN/exit/a" "$RUN/exit.partial/b"; exit 3"#;
    assert_eq!(pod.gpu(in_the_way).code(), 3);
    assert_eq!((pod.exit().as_str(), pod.main().code()), ("3", 3));
}

#[test]
fn the_first_process_hands_on_what_comes_from_inside() {
    let pod = Pod::passed(&giving());
    let script = "trap 'exit 5' TERM; kill -TERM 1; while :; do sleep 0.05; done";
    if let Some(code) = as_the_first_process(&pod, script) {
        assert_eq!((code, pod.exit().as_str()), (5, "5"));
    }
}

#[test]
fn what_a_job_left_running_is_gone_before_the_end_is_written() {
    let pod = Pod::passed(&giving());
    let script = r#"(while :; do mkdir -p "$RUN/exit/a" "$RUN/exit.partial/b"; done) 2>/dev/null & sleep 0.2; exit 3"#;
    if let Some(code) = as_the_first_process(&pod, script) {
        assert_eq!((code, pod.exit().as_str()), (3, "3"));
    }
}

#[test]
fn settings_that_cannot_be_read_are_told() {
    let pod = Pod::passed(&giving());
    let ending = pod.run(file::EXIT);
    fs::remove_file(pod.run(file::SETTINGS)).unwrap();
    assert_eq!(pod.gpu(&agent("")).code(), 70);
    assert_eq!(fs::read_to_string(ending).unwrap(), "70");
}

#[test]
fn the_whole_way_of_a_runner() {
    // Given
    let registrar = Registrar::with_paths(vec![
        (TICKETS, vec![ticket()]),
        (REPORTS, vec![admitted()]),
        (REGISTRATIONS, vec![registration()]),
    ]);
    for (simulated, code) in [
        (json!({}), 3),
        (faulty(json!({"call": "cuMemcpyDtoH_v2", "code": 214})), 12),
    ] {
        let pod = Pod::prepared("");
        fs::remove_dir_all(pod.dir.join("run")).unwrap();
        fs::create_dir(pod.dir.join("run")).unwrap();
        fs::write(pod.dir.join("token"), "token").unwrap();
        let smoke = env!("CARGO_BIN_EXE_cuda-smoke");
        // The driver's behaviour is a variable, and the gate has settings only.
        let simulation = format!("#!/bin/sh\nSIMCUDA='{simulated}' exec {smoke} \"$@\"\n");
        program(&pod.gate_program(), &simulation);
        // When
        let mut prepare = common::smoke(&json!({}));
        let prepared = prepare
            .arg("prepare")
            .envs(
                pod.settings
                    .iter()
                    .map(|(name, value)| (name, value.as_str().unwrap())),
            )
            .env(gate::REGISTRAR_URL, registrar.url())
            .env(gate::REGISTRAR_CA, &registrar.ca)
            .env(gate::REGISTRATION_DIR, pod.dir.join("run"))
            .env(gate::TOKEN_FILE, pod.dir.join("token"))
            .env(gate::RUNNER_INIT, env!("CARGO_BIN_EXE_runner-init"))
            .stdout(Stdio::null())
            .status();
        assert!(prepared.unwrap().success());
        let mut main = pod.main();
        let mut gpu = pod.gpu("exit 3");
        if code == 3 {
            let reports = registrar.asked(REPORTS).len();
            until("reported", || registrar.asked(REPORTS).len() > reports);
            signal(gpu.0.id(), "TERM");
            assert_eq!(gpu.code(), 143);
            assert!(report(&pod.log()).passed());
            fs::remove_file(pod.gate_program()).unwrap();
            gpu = pod.gpu("exit 3");
        }
        // Then
        assert_eq!((gpu.code(), main.code()), (code, code));
        assert!(report(&pod.log()).passed() == (code == 3));
    }
}
