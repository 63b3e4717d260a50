//! `runner-init job`: the first process of a job's own container runs the agent's steps, whatever the job does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::job::{Pod, container, giving, step, text};
use common::{Running, signal, until};
use gate_report::contract::file;
use serde_json::json;

#[test]
fn a_step_ends_with_its_own_code() {
    let pod = Pod::of_a_job(&giving());
    let _gpu = pod.gpu();
    pod.prepared();
    for (line, code) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -s KILL $$", 137),
        ("kill -s SEGV $$", 139),
        ("kill -s TERM $$", 143),
        ("exec /no/such/program", 127),
    ] {
        assert_eq!(pod.step(line).0, Some(code), "{line}");
    }
}

#[test]
fn a_step_has_the_images_environment_and_the_jobs() {
    let pod = Pod::of_a_job(&giving());
    let _gpu = pod.gpu();
    let options = format!(
        "-e OF_THE_OPTIONS=4 -e OF_THE_STEP=5 -w {}",
        pod.dir.display()
    );
    let (code, said, _) = pod.prepare(&container("cuda:1", &options), &json!([]));
    assert_eq!(code, Some(0), "{said}");
    // Its input is empty: it would wait for ever otherwise
    let line = "cat; env | grep -E '^(OF_|HOME|PATH|CUDA_SMOKE)'; pwd";
    let mut asked = step(line);
    asked["args"]["prependPath"] = json!(["/first dir", "/second"]);
    asked["args"]["workingDirectory"] = json!(null);
    let said = text(&pod.hook(&asked));
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    let path = format!("PATH=/first dir:/second:{}", std::env::var("PATH").unwrap());
    let mut expected = vec![
        "HOME=/github/home",
        "OF_THE_CONTAINER=3",
        "OF_THE_IMAGE=1",
        "OF_THE_OPTIONS=4",
        "OF_THE_STEP=2",
        &path,
        pod.dir.to_str().unwrap(),
    ];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    // An older agent writes the folders as one text
    asked["args"]["prependPath"] = json!("/a:/b");
    assert!(text(&pod.hook(&asked)).contains("PATH=/a:/b:"));
}

#[test]
fn what_a_step_cannot_be_is_said() {
    let pod = Pod::of_a_job(&giving());
    let _gpu = pod.gpu();
    // Before the job's container was prepared
    let (code, said) = pod.step("exit 0");
    assert_eq!(code, Some(1));
    assert!(said.contains("has not been prepared"), "{said}");
    pod.prepared();
    let (code, said, _) = pod.prepare(&container("cuda:1", ""), &json!([container("redis", "")]));
    assert_eq!(code, Some(1));
    assert!(said.contains("prepared already"), "{said}");
    assert!(!pod.read("hosts").contains("redis"));
    let refused = |field: &str, value: serde_json::Value, words: &str| {
        let mut asked = step("exit 0");
        asked["args"][field] = value;
        let output = pod.hook(&asked);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.starts_with("::error::") && said.contains(words),
            "{said}"
        );
    };
    refused(
        "entryPoint",
        json!("no-such-shell"),
        "no-such-shell could not be started",
    );
    refused(
        "workingDirectory",
        json!("/no/such"),
        "working directory /no/such is not in",
    );
    refused("entryPointArgs", json!(["-c", "'x"]), "quote");
}

#[test]
fn output_comes_as_it_is_printed_and_each_to_its_place() {
    let pod = Pod::of_a_job(&giving());
    let _gpu = pod.gpu();
    pod.prepared();
    let line =
        "printf one; echo two >&2; while [ ! -e \"$RUN/go\" ]; do sleep 0.02; done; printf three";
    let mut hook = pod.start_hook(&step(line));
    let mut one = [0; 3];
    hook.stdout.as_mut().unwrap().read_exact(&mut one).unwrap();
    assert_eq!(&one, b"one");
    fs::write(pod.run("go"), "").unwrap();
    let output = hook.wait_with_output().unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"three"[..], &b"two\n"[..])
    );
}

#[test]
fn nothing_of_the_output_is_lost_and_none_of_it_is_kept() {
    const BYTES: usize = 30_000_000;
    let pod = Pod::of_a_job(&giving());
    let gpu = pod.gpu();
    pod.prepared();
    let mut hook = pod.start_hook(&step(&format!("head -c {BYTES} /dev/zero; exit 9")));
    // While nobody reads
    std::thread::sleep(Duration::from_millis(700));
    let status = fs::read_to_string(format!("/proc/{}/status", gpu.0.id())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 20_000, "{peak} kB");
    let mut all = vec![];
    hook.stdout.as_mut().unwrap().read_to_end(&mut all).unwrap();
    assert_eq!((all.len(), hook.wait().unwrap().code()), (BYTES, Some(9)));
}

#[test]
fn signals_reach_the_steps_whole_group() {
    let pod = Pod::of_a_job(&giving());
    let _gpu = pod.gpu();
    pod.prepared();
    for name in ["INT", "TERM"] {
        // The shell waits for a child, which the signal must reach as well
        let line = format!(
            "trap 'exit 5' {name}; (trap 'echo child; exit 0' {name}; true >\"$RUN/{name}\"; while :; do sleep 0.02; done); wait"
        );
        let hook = pod.start_hook(&step(&line));
        until("started", || pod.run(name).exists());
        signal(hook.id(), name);
        let output = hook.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{name}");
        assert_eq!(output.stdout, b"child\n", "{name}");
    }
}

fn lives(pid: &str) -> bool {
    // What is dead and not reaped has no memory.
    fs::read_to_string(format!("/proc/{}/status", pid.trim())).is_ok_and(|s| s.contains("VmSize"))
}

#[test]
fn a_step_whose_hook_was_killed_goes_on_no_longer() {
    let pod = Pod::of_a_job(&giving());
    let _gpu = pod.gpu();
    pod.prepared();
    let mut hook = pod.start_hook(&step(
        "trap '' INT TERM; echo $$ >\"$RUN/pid\"; sleep 60; sleep 60",
    ));
    until("started", || pod.read("run/pid").ends_with('\n'));
    assert!(lives(&pod.read("run/pid")));
    hook.kill().unwrap();
    hook.wait().unwrap();
    until("gone", || !lives(&pod.read("run/pid")));
    assert_eq!(pod.step("exit 4").0, Some(4));
}

#[test]
fn a_step_that_was_cut_off_is_never_green() {
    let registrar = giving();
    let pod = Pod::of_a_job(&registrar);
    let mut gpu = pod.gpu();
    pod.prepared();
    // Given a step that runs
    let hook = pod.start_hook(&step("echo $$ >\"$RUN/pid\"; exec sleep 60"));
    until("started", || pod.read("run/pid").ends_with('\n'));
    // When the container is killed
    signal(gpu.0.id(), "KILL");
    gpu.0.wait().unwrap();
    signal(pod.read("run/pid").trim().parse().unwrap(), "KILL");
    // And no container is there
    let (code, said) = pod.step("exit 0");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot be reached"), "{said}");
    // Or another one
    let _again = pod.gpu();
    let output = hook.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("while the step ran"), "{said}");
    until("listening again", || {
        UnixStream::connect(pod.run(file::JOB_SOCKET)).is_ok()
    });
    let (code, said) = pod.step("exit 0");
    assert_eq!(code, Some(1));
    assert!(said.contains("The job's container was restarted"), "{said}");
    // And nothing starts a job there
    let (code, said, _) = pod.prepare(&container("cuda:1", ""), &json!([]));
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn a_step_does_not_wait_for_what_it_left_behind() {
    let pod = Pod::of_a_job(&giving());
    let gpu = pod.gpu();
    pod.prepared();
    for (number, left) in ["sleep 60", "while :; do echo x; sleep 0.01; done", "yes"]
        .into_iter()
        .enumerate()
    {
        let line = format!("({left}) & echo $! >\"$RUN/left-{number}\"; echo begun; exit 6");
        let began = Instant::now();
        let (code, said) = pod.step(&line);
        assert_eq!(code, Some(6));
        assert!(said.contains("begun"), "{said}");
        assert!(began.elapsed() < Duration::from_secs(20), "{left}");
    }
    // It goes on, and can print
    std::thread::sleep(Duration::from_millis(200));
    for number in 0..3 {
        assert!(lives(&pod.read(&format!("run/left-{number}"))), "{number}");
    }
    drop(gpu);
    for number in 0..3 {
        let left = pod.read(&format!("run/left-{number}"));
        signal(left.trim().parse().unwrap(), "KILL");
    }
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&[kind][..], &length, content].concat()
}

#[test]
fn whatever_is_sent_to_the_socket_the_next_step_runs() {
    let pod = Pod::of_a_job(&giving());
    let mut gpu = pod.gpu();
    pod.prepared();
    let connect = || UnixStream::connect(pod.run(file::JOB_SOCKET)).unwrap();
    for rubbish in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 100_000],
        vec![b'r', 255, 255, 255, 255],
        frame(b'r', b"{}"),
        frame(
            b'r',
            br#"{"run":{"argv":[],"env":{},"cwd":null,"path":[]}}"#,
        ),
        frame(
            b'r',
            br#"{"run":{"argv":["a\u0000b"],"env":{"=\u0000":""},"cwd":"\u0000","path":[]}}"#,
        ),
        frame(b'x', &[0]),
        frame(b's', &[9]),
        vec![],
    ] {
        let mut stream = connect();
        // It may hang up in the middle.
        let _ = stream.write_all(&rubbish);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(
            pod.step("exit 4").0,
            Some(4),
            "after {:?}",
            &rubbish[..rubbish.len().min(30)]
        );
    }
    // A signal for process 0 is none, and rubbish behind a request ends the step
    let sleeping = br#"{"run":{"argv":["sleep","60"],"env":{},"cwd":null,"path":[]}}"#;
    for behind in [frame(b's', &[0]), frame(b's', &[200])] {
        connect()
            .write_all(&[frame(b'r', sleeping), behind].concat())
            .unwrap();
    }
    let mut stream = connect();
    stream
        .write_all(&[frame(b'r', sleeping), frame(b'o', b"x")].concat())
        .unwrap();
    let mut answer = vec![];
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty(), "{answer:?}");
    // Thousands of connections: some places, and a plain answer to the others
    let many: Vec<UnixStream> = (0..900).map(|_| connect()).collect();
    until("full", || {
        pod.step("exit 0").1.contains("too many connections")
    });
    drop(many);
    until("free again", || pod.step("exit 4").0 == Some(4));
    assert!(gpu.0.try_wait().unwrap().is_none());
    let threads = fs::read_dir(format!("/proc/{}/task", gpu.0.id()))
        .unwrap()
        .count();
    assert!(threads < 30, "{threads} threads");
}

#[test]
fn a_client_that_says_nothing_keeps_its_place_for_seconds_only() {
    let pod = Pod::of_a_job(&giving());
    let _gpu = pod.gpu();
    pod.prepared();
    let many: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(pod.run(file::JOB_SOCKET)).unwrap())
        .collect();
    until("full", || pod.step("exit 0").0 == Some(1));
    until("free again", || pod.step("exit 4").0 == Some(4));
    drop(many);
}

#[test]
fn a_gpu_that_vanished_fails_the_step() {
    let pod = Pod::of_a_job(&giving());
    let device = pod.dir.join("nvidiactl");
    fs::write(&device, "").unwrap();
    let _gpu = pod.gpu();
    pod.prepared();
    assert_eq!(pod.step("exit 4").0, Some(4));
    fs::remove_file(device).unwrap();
    let (code, said) = pod.step("exit 4");
    assert_eq!(code, Some(1));
    assert!(said.contains("GPU has vanished"), "{said}");
}

#[test]
fn the_gates_image_is_the_same_as_in_any_pod() {
    let pod = Pod::of_a_job(&giving());
    // One that fails
    fs::remove_file(pod.run(file::PASSED)).unwrap();
    pod.gate("exit 12");
    let mut gpu = Running(pod.gpu_command().spawn().unwrap());
    assert_eq!((gpu.code(), pod.read("run/exit").as_str()), (12, "12"));
    fs::remove_file(pod.run(file::EXIT)).unwrap();
    // One that passes
    pod.gate("true >\"$CUDA_SMOKE_REGISTRATION_DIR/passed\"; exec sleep 60");
    let mut gpu = Running(pod.gpu_command().spawn().unwrap());
    until("passed", || pod.run(file::PASSED).exists());
    signal(gpu.0.id(), "TERM");
    assert_eq!(gpu.code(), 143);
    assert!(!pod.run(file::JOB_SOCKET).exists() && !pod.run(file::STARTED).exists());
    // And then an image that nobody cleared takes no steps
    fs::remove_file(pod.run(file::PASSED)).unwrap();
    fs::remove_file(pod.dir.join("image/cuda-smoke")).unwrap();
    let mut gpu = Running(pod.gpu_command().spawn().unwrap());
    assert_eq!((gpu.code(), pod.read("run/exit").as_str()), (10, "10"));
    assert!(!pod.run(file::JOB_SOCKET).exists());
}

#[test]
fn sigterm_ends_the_container_at_once_and_its_steps() {
    let pod = Pod::of_a_job(&giving());
    let mut gpu = pod.gpu();
    pod.prepared();
    let hook = pod.start_hook(&step(
        "trap '' TERM; echo $$ >\"$RUN/pid\"; sleep 60; sleep 60",
    ));
    until("started", || pod.read("run/pid").ends_with('\n'));
    let began = Instant::now();
    signal(gpu.0.id(), "TERM");
    assert_eq!(gpu.code(), 0);
    assert!(began.elapsed() < Duration::from_secs(20));
    until("gone", || !lives(&pod.read("run/pid")));
    assert_ne!(hook.wait_with_output().unwrap().status.code(), Some(0));
}

/// `gpu` as the first process of a namespace of its own; `None` where this machine lets nobody make one.
fn as_the_first_process(pod: &Pod) -> Option<Running> {
    let namespace = [
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
    ];
    let mut tried = Command::new("unshare");
    if !tried
        .args(namespace)
        .arg("true")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("left out: no namespace can be made here");
        return None;
    }
    let mut gpu = Command::new("unshare");
    gpu.args(namespace)
        .arg(pod.run(file::RUNNER_INIT))
        .arg("job");
    pod.in_the_image(&mut gpu);
    let gpu = Running(gpu.stdin(Stdio::null()).spawn().unwrap());
    until("listening", || {
        UnixStream::connect(pod.run(file::JOB_SOCKET)).is_ok()
    });
    Some(gpu)
}

#[test]
fn nobody_inside_the_jobs_container_is_listened_to() {
    let pod = Pod::of_a_job(&giving());
    let Some(_gpu) = as_the_first_process(&pod) else {
        return;
    };
    pod.prepared();
    fs::write(pod.dir.join("asked"), step("exit 0").to_string()).unwrap();
    let hook = pod.agent(file::CONTAINERS);
    let line = format!(
        "/bin/sh {} <{} && exit 0; exit 7",
        hook.display(),
        pod.dir.join("asked").display()
    );
    // From outside it is done; the step's own try is not
    let (code, said) = pod.step(&line);
    assert_eq!(code, Some(7), "{said}");
}

#[test]
fn after_the_job_nothing_of_it_runs_and_orphans_are_reaped() {
    let pod = Pod::of_a_job(&giving());
    let Some(_gpu) = as_the_first_process(&pod) else {
        return;
    };
    pod.prepared();
    // No other run of this test has one of this length.
    let long = format!("61.{}", std::process::id());
    let line =
        format!("setsid sleep {long} & for i in 1 2 3; do (sleep 0.1 &) ; done; sleep 0.5; exit 0");
    assert_eq!(pod.step(&line).0, Some(0));
    let command_line = format!("sleep\0{long}\0");
    let left = || {
        let all = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .map(|entry| entry.path());
        all.filter(|path: &PathBuf| {
            fs::read(path.join("cmdline")).is_ok_and(|line| line == command_line.as_bytes())
        })
        .count()
    };
    until("left", || left() == 1);
    // No process that has ended is left unreaped
    let (code, said) =
        pod.step("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; exit 0");
    assert_eq!(code, Some(0), "{said}");
    let output = pod.hook(
        &json!({"command": "cleanup_job", "responseFile": "/dev/null", "args": {}, "state": {}}),
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    until("gone", || left() == 0);
    // The first process itself goes on
    assert_eq!(pod.step("exit 4").0, Some(4));
}
