//! `runner-init container-hook`: what the agent calls for a job with a container of its own, and `runner-init agent`, which
//! starts the agent in the container beside it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::job::{ASKED_STATE, JOB_TICKET, Pod, container, giving, running, state, text};
use common::registrar::{JIT, Registrar, TICKET, admitted, answer, refusal, registration};
use common::{Running, catches_term, report, signal, until};
use gate_report::Step;
use gate_report::contract::{file, gate};
use gate_report::wire::{JOB_CONTAINER, REGISTRATIONS, REPORTS, TICKETS};
use rustix::net::{self, AddressFamily, SocketType};
use serde_json::{Value, json};

fn made() -> (&'static str, Vec<String>) {
    (JOB_CONTAINER, vec![answer(200, "", &json!({}))])
}

#[test]
fn a_job_gets_its_container() {
    let registrar = giving();
    let pod = Pod::of_a_job(&registrar);
    for name in [
        "node20/bin/node",
        "node24_alpine/bin/node",
        "node24/lib/x",
        "npm/bin/node",
    ] {
        let file = pod.agent("externals").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, name).unwrap();
    }
    let _gpu = pod.gpu();
    let mut wanted = container("cuda:1", "--gpus all --cpus 2");
    wanted["systemMountVolumes"] = json!([
        {"sourceVolumePath": "/var/run/docker.sock", "targetVolumePath": "/var/run/docker.sock", "readOnly": false},
        {"sourceVolumePath": pod.agent("externals"), "targetVolumePath": "/__e", "readOnly": true},
    ]);
    wanted["environmentVariables"]["TOKEN"] = json!("s3cret");
    wanted["userMountVolumes"] = json!([{"sourceVolumePath": "cache", "targetVolumePath": pod.dir.join("new/cache"), "readOnly": false}]);
    let (code, said, response) = pod.prepare(&wanted, &json!([]));
    // Then the job has what it asked for, and is told of the rest
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("options: --gpus: satisfied") && said.contains("--cpus: ignored"),
        "{said}"
    );
    assert_eq!(response["context"]["services"], json!([]));
    assert!(response["isAlpine"].is_boolean() && response["state"].is_object());
    assert!(pod.dir.join("new/cache").is_dir());
    assert_eq!(pod.step("[ \"$TOKEN\" = s3cret ] || exit 9").0, Some(0));
    // And the actions their Node.js, but nothing else
    for (name, there) in [
        ("node20/bin/node", true),
        ("node24_alpine/bin/node", true),
        ("node24/lib/x", false),
        ("npm/bin/node", false),
    ] {
        assert_eq!(pod.dir.join("e").join(name).exists(), there, "{name}");
    }
    let mode = fs::metadata(pod.dir.join("e/node20/bin/node"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o755);
    // The registrar was asked with the job's own ticket, and nobody printed a secret
    let asked = registrar.asked(JOB_CONTAINER);
    let [(head, body)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert!(
        head.contains(&format!("authorization: bearer {JOB_TICKET}")),
        "{head}"
    );
    assert_eq!(
        serde_json::from_str::<Value>(body).unwrap(),
        json!({"image": "cuda:1", "services": []})
    );
    for secret in ["s3cret", JOB_TICKET, TICKET] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_anybody_is_asked() {
    let registrar = giving();
    let pod = Pod::of_a_job(&registrar).with(gate::JOB_SHM_BYTES, "1024");
    let (code, said, response) = pod.prepare(
        &container("cuda:1", "--privileged --shm-size 1g --memory 1g"),
        &json!([]),
    );
    assert_eq!((code, &response), (Some(1), &Value::Null));
    let errors: Vec<&str> = said.lines().collect();
    assert!(
        matches!(errors[..], [a, b] if a.starts_with("::error::options: --privileged")
            && b.contains("spec.sharedMemory")),
        "{said}"
    );
    // A job without a container
    let (code, said, _) = pod.prepare(&Value::Null, &json!([container("redis", "")]));
    assert_eq!(code, Some(1));
    assert!(said.contains("needs a container of its own"), "{said}");
    assert!(registrar.asked(JOB_CONTAINER).is_empty());
}

#[test]
fn kubernetes_words_reach_the_job_within_seconds() {
    let failed = json!({"state": "Failed", "reason": "ErrImagePull", "message": "manifest unknown\n::set-env::x"});
    let none = json!([]);
    for (answers, words) in [
        (
            vec![
                made(),
                (
                    ASKED_STATE,
                    vec![
                        state(&json!({"state": "Pulling"}), &none),
                        state(&failed, &none),
                    ],
                ),
            ],
            "::error::Image cuda:1: ErrImagePull: manifest unknown ::set-env::x",
        ),
        (
            vec![
                made(),
                (
                    ASKED_STATE,
                    vec![state(
                        &json!({"state": "Pulling"}),
                        &json!([running(), failed]),
                    )],
                ),
            ],
            "::error::Image db: ErrImagePull",
        ),
        (
            vec![(JOB_CONTAINER, vec![refusal(403, "", "NoJobContainers")])],
            "refused, NoJobContainers: because of NoJobContainers",
        ),
        (
            vec![made(), (ASKED_STATE, vec![refusal(403, "", "Gone")])],
            "Gone",
        ),
    ] {
        let pod = Pod::of_a_job(&Registrar::with_paths(answers));
        let began = Instant::now();
        let (code, said, response) = pod.prepare(
            &container("cuda:1", ""),
            &json!([container("redis", ""), container("db", "")]),
        );
        assert_eq!((code, response), (Some(1), Value::Null), "{said}");
        assert!(
            said.lines().last().unwrap().contains(words),
            "{words} is not in {said}"
        );
        assert!(began.elapsed() < Duration::from_secs(20), "{words}");
    }
}

#[test]
fn a_job_begins_when_its_services_take_connections() {
    // A port that is taken, and at which nobody listens yet
    let redis = net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    net::bind(&redis, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let redis = TcpListener::from(redis);
    let port = redis.local_addr().unwrap().port();
    let pulling = state(&running(), &json!([{"state": "Pulling"}, running()]));
    let registrar = Registrar::with_paths(vec![
        made(),
        (
            ASKED_STATE,
            vec![pulling, state(&running(), &json!([running(), running()]))],
        ),
    ]);
    let pod = Pod::of_a_job(&registrar);
    let _gpu = pod.gpu();
    let mut service = container(
        "ghcr.io/acme/redis:7",
        "--health-cmd 'redis-cli ping' --network-alias cache",
    );
    service["portMappings"] = json!([format!("1234:{port}"), "53/udp"]);
    let (listening, began) = (Duration::from_millis(2500), Instant::now());
    std::thread::spawn(move || {
        std::thread::sleep(listening);
        net::listen(&redis, 8).unwrap();
        while redis.accept().is_ok() {}
    });
    let (code, said, response) = pod.prepare(
        &container("cuda:1", ""),
        &json!([service, container("postgres", "")]),
    );
    assert_eq!(code, Some(0), "{said}");
    assert!(began.elapsed() >= listening);
    // Then the context has them in their order, and their names are known
    let services = &response["context"]["services"];
    assert_eq!(
        services[0]["ports"],
        json!({port.to_string(): port.to_string(), "53": "53"})
    );
    assert_eq!(services[1]["ports"], json!({}));
    assert_eq!(
        pod.read("hosts"),
        "127.0.0.1\tlocalhost\n127.0.0.1\tcache\n127.0.0.1\tpostgres\n"
    );
    assert!(
        said.contains("reachable at localhost, and as cache"),
        "{said}"
    );
}

#[test]
fn names_that_cannot_be_written_are_told_and_the_job_goes_on() {
    let pod = Pod::of_a_job(&giving());
    fs::remove_file(pod.dir.join("hosts")).unwrap();
    let _gpu = pod.gpu();
    let (code, said, _) = pod.prepare(&container("cuda:1", ""), &json!([container("redis", "")]));
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("The names redis could not be written into /etc/hosts"),
        "{said}"
    );
}

#[test]
fn what_the_container_cannot_do_fails_the_job_and_says_why() {
    for (options, words) in [
        ("--user no-such-user", "no user no-such-user"),
        ("--ulimit no-such-limit=1", "no limit no-such-limit"),
        ("-v cache:/proc/cache", "/proc/cache could not be made"),
    ] {
        let pod = Pod::of_a_job(&giving());
        let _gpu = pod.gpu();
        let (code, said, _) = pod.prepare(&container("cuda:1", options), &json!([]));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(words), "{words} is not in {said}");
    }
}

#[test]
fn user_and_limits_are_the_steps_own() {
    let pod = Pod::of_a_job(&giving());
    let _gpu = pod.gpu();
    let is_root = common::job::is_root();
    let user = if is_root { "-u 4242:4243" } else { "" };
    let (code, said, _) = pod.prepare(
        &container("cuda:1", &format!("--ulimit nofile=99:100 {user}")),
        &json!([]),
    );
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = pod.step("ulimit -Sn; ulimit -Hn; id -u; id -g");
    assert_eq!(code, Some(0));
    let expected = if is_root {
        "99\n100\n4242\n4243\n"
    } else {
        "99\n100\n"
    };
    assert!(said.starts_with(expected), "{said}");
    // Its output can be opened by name
    let (code, said) = pod.step("echo out >/dev/stdout; echo err >/dev/stderr");
    assert_eq!((code, said.as_str()), (Some(0), "out\nerr\n"));
}

#[test]
fn containers_of_actions_are_refused() {
    let pod = Pod::of_a_job(&giving());
    for args in [
        json!({"image": "alpine:3"}),
        json!({"dockerfile": "/x/Dockerfile", "image": null}),
    ] {
        let asked = json!({"command": "run_container_step", "responseFile": "/dev/null", "args": args, "state": null});
        let output = pod.hook(&asked);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).starts_with("::error::Actions that bring their own container"));
    }
}

#[test]
fn what_is_no_command_of_the_agents_fails_and_is_not_repeated() {
    let pod = Pod::of_a_job(&giving());
    for input in [
        json!("s3cret"),
        json!({"command": "s3cret", "args": {}}),
        json!({"command": "prepare_job", "args": {"container": "s3cret"}}),
        json!({"command": "run_script_step", "args": {"entryPoint": 5, "environmentVariables": {"A": "s3cret"}}}),
        json!({"command": "run_script_step", "args": null}),
    ] {
        let output = pod.hook(&input);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.starts_with("::error::") && !said.contains("s3cret"),
            "{said}"
        );
    }
    // A job that never got its container has nothing to clean
    let cleanup =
        json!({"command": "cleanup_job", "responseFile": "/dev/null", "args": {}, "state": {}});
    assert_eq!(pod.hook(&cleanup).status.code(), Some(0));
}

#[test]
fn why_a_container_was_lost_is_told_in_kubernetes_words() {
    let killed = json!({"state": "Failed", "reason": "OOMKilled", "message": "The container was killed for its memory."});
    let registrar = Registrar::with_paths(vec![
        made(),
        (
            ASKED_STATE,
            vec![
                state(&running(), &json!([])),
                state(&running(), &json!([])),
                state(&killed, &json!([])),
            ],
        ),
    ]);
    let pod = Pod::of_a_job(&registrar);
    let mut gpu = pod.gpu();
    pod.prepared();
    let hook = pod.start_hook(&common::job::step("echo $$ >\"$RUN/pid\"; exec sleep 60"));
    until("started", || pod.read("run/pid").ends_with('\n'));
    gpu.0.kill().unwrap();
    gpu.0.wait().unwrap();
    signal(pod.read("run/pid").trim().parse().unwrap(), "KILL");
    let output = hook.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("OOMKilled: The container was killed for its memory."),
        "{said}"
    );
}

#[test]
fn the_agent_waits_for_the_gate() {
    let registrar = giving();
    let pod = Pod::of_a_job(&registrar);
    fs::remove_file(pod.run(file::PASSED)).unwrap();
    let seen = r#"ls "$AGENT" >"$AGENT/../seen"; cat "$AGENT/jitconfig" >"$AGENT/../jit"; exit 3"#;
    let mut main = pod.main(seen);
    std::thread::sleep(Duration::from_millis(300));
    assert!(main.0.try_wait().unwrap().is_none() && registrar.asked(REGISTRATIONS).is_empty());
    fs::write(pod.run(file::PASSED), "{}").unwrap();
    assert_eq!(main.code(), 3);
    assert_eq!(pod.read("jit"), JIT);
    let seen = pod.read("seen");
    let seen: Vec<&str> = seen.lines().collect();
    assert!(
        seen.contains(&file::STARTED) && !seen.contains(&file::TICKET),
        "{seen:?}"
    );
    assert!(
        !pod.run(file::TICKET).exists(),
        "the job's container could find it"
    );
    // It is not started twice
    let mut again = pod.main("exit 0");
    assert_eq!(again.code(), 137);
}

#[test]
fn without_a_gate_that_passed_there_is_no_agent() {
    // It failed
    let pod = Pod::of_a_job(&giving());
    fs::remove_file(pod.run(file::PASSED)).unwrap();
    let mut main = pod.main("exit 0");
    fs::write(pod.run(file::EXIT), "12").unwrap();
    assert_eq!(main.code(), 12);
    // It passed, and was refused then
    let refusing =
        Registrar::with_paths(vec![(REGISTRATIONS, vec![refusal(503, "", "NotAdmitted")])]);
    let pod = Pod::of_a_job(&refusing).with(gate::REGISTRATION_TIMEOUT_SECONDS, "600");
    let mut main = pod.main("exit 0");
    until("asked", || !refusing.asked(REGISTRATIONS).is_empty());
    fs::write(pod.run(file::EXIT), "15").unwrap();
    assert_eq!(main.code(), 15);
    // Nothing is known of it: the agent's own failure
    let pod = Pod::of_a_job(&refusing).with(gate::REGISTRATION_TIMEOUT_SECONDS, "2");
    assert_eq!(pod.main("exit 0").code(), 16);
    assert_eq!(
        report(&pod.read("log")).failure.unwrap().step,
        Step::Registration
    );
    // The image lacks something
    let wanted = r#"{"image":true,"commands":["no-such-command"]}"#;
    let pod = Pod::of_a_job(&giving()).with(gate::PREFLIGHT, wanted);
    assert_eq!(pod.main("exit 0").code(), 10);
    assert_eq!(
        report(&pod.read("log")).failure.unwrap().step,
        Step::Preflight
    );
}

#[test]
fn signals_end_the_wait_and_reach_the_agent() {
    let pod = Pod::of_a_job(&giving());
    let passed = fs::read(pod.run(file::PASSED)).unwrap();
    fs::remove_file(pod.run(file::PASSED)).unwrap();
    let agent = "trap 'exit 5' TERM; true >\"$AGENT/up\"; while :; do sleep 0.05; done";
    let mut main = pod.main(agent);
    until("listening", || catches_term(main.0.id()));
    signal(main.0.id(), "TERM");
    assert_eq!(main.code(), 143);
    fs::write(pod.run(file::PASSED), passed).unwrap();
    let mut main = pod.main(agent);
    until("up", || pod.agent("up").exists());
    signal(main.0.id(), "TERM");
    assert_eq!(main.code(), 5);
}

/// The pod's first container. What the agent has is in its own folder.
fn prepare(pod: &Pod) {
    for dir in ["run", "agent"] {
        fs::remove_dir_all(pod.dir.join(dir)).unwrap();
        fs::create_dir(pod.dir.join(dir)).unwrap();
    }
    fs::write(pod.dir.join("token"), "token").unwrap();
    let mut prepare = common::smoke(&json!({}));
    let settings = pod.settings.iter();
    let prepared = prepare
        .arg("prepare")
        .envs(settings.map(|(name, value)| (name, value.as_str().unwrap())))
        .env(gate::TOKEN_FILE, pod.dir.join("token"))
        .env(gate::RUNNER_INIT, env!("CARGO_BIN_EXE_runner-init"))
        .stdout(Stdio::null())
        .status();
    assert!(prepared.unwrap().success());
    for name in [
        file::JOB_TICKET,
        file::CONTAINERS,
        file::ALLOW,
        file::JOB_STARTED,
        file::TICKET,
    ] {
        assert!(pod.agent(name).exists(), "{name}");
        let is_shared = pod.run(name).exists();
        assert_eq!(is_shared, name == file::TICKET, "{name}");
    }
}

#[test]
fn the_whole_way_of_a_job() {
    // Given
    let both = answer(200, "", &json!({"ticket": TICKET, "job": JOB_TICKET}));
    let registrar = Registrar::with_paths(vec![
        (TICKETS, vec![both]),
        (REPORTS, vec![admitted()]),
        (REGISTRATIONS, vec![registration()]),
        made(),
        (
            ASKED_STATE,
            vec![state(&json!({"state": "Pulling"}), &json!([]))],
        ),
    ]);
    let pod = Pod::of_a_job(&registrar);
    // When the pod is prepared, the gate passes, and the agent registers
    prepare(&pod);
    pod.gate(&format!(
        "SIMCUDA='{{}}' exec {} \"$@\"",
        env!("CARGO_BIN_EXE_cuda-smoke")
    ));
    let mut gpu = Running(pod.gpu_command().stdout(Stdio::null()).spawn().unwrap());
    let agent = "while [ ! -e \"$AGENT/over\" ]; do sleep 0.05; done; exit 3";
    let mut main = pod.main(agent);
    until("registered", || pod.agent(file::JIT_CONFIG).exists());
    until("nothing left to report with", || {
        !pod.run(file::TICKET).exists()
    });
    // Then the gate waits, and says nothing more
    let reports = registrar.asked(REPORTS).len();
    std::thread::sleep(Duration::from_millis(5500));
    assert!(gpu.0.try_wait().unwrap().is_none());
    assert_eq!(registrar.asked(REPORTS).len(), reports);
    // When a job names its image, which is changed then
    let file = pod.dir.join("response.json");
    let asked = json!({"command": "prepare_job", "responseFile": file, "args": {"container": container("cuda:1", ""), "services": []}, "state": null});
    let hook = pod.start_hook(&asked);
    until("asked", || !registrar.asked(JOB_CONTAINER).is_empty());
    signal(gpu.0.id(), "TERM");
    assert_eq!(gpu.code(), 143);
    fs::remove_file(pod.dir.join("image/cuda-smoke")).unwrap();
    let mut gpu = pod.gpu();
    // Then it has its container, and the steps their codes
    let output = hook.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(fs::read_to_string(file).unwrap().contains("isAlpine"));
    assert_eq!(pod.step("exit 7").0, Some(7));
    fs::write(pod.agent("over"), "").unwrap();
    assert_eq!(main.code(), 3);
    signal(gpu.0.id(), "TERM");
    assert_eq!(gpu.code(), 0);
}
