//! `cuda-smoke gate` with a registrar that answers as it is told, over real TLS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{faulty, folder, report, smoke};
use gate_report::Report;
use gate_report::contract::gate;
use serde_json::{Value, json};
use tokio_rustls::rustls::{ServerConnection, StreamOwned};

const TOKEN: &str = "service-account-token-of-the-pod";
const JIT: &str = "c2VjcmV0LWNvbmZpZw==";

/// A registrar that gives these answers, one for each request, the last one again and again.
struct Registrar {
    address: SocketAddr,
    ca: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Registrar {
    fn start(answers: &[String]) -> Self {
        let (config, ca) = common::own_authority();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answers) = (Arc::clone(&requests), answers.to_vec());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = seen.lock().unwrap().len();
                let answer = answers
                    .get(number)
                    .or(answers.last())
                    .cloned()
                    .unwrap_or_default();
                let mut tls =
                    StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
                let Some(request) = read(&mut tls) else {
                    continue;
                };
                seen.lock().unwrap().push(request);
                // A client that has gone away is the test's own matter.
                let _ = tls.write_all(answer.as_bytes());
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        });
        Self {
            address,
            ca,
            requests,
        }
    }

    fn bodies(&self) -> Vec<Report> {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .map(|request| report(request.split_once("\r\n\r\n").unwrap().1))
            .collect()
    }
}

/// One request, head and body; `None` where the client did not get so far.
fn read(stream: &mut impl std::io::Read) -> Option<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        text.extend_from_slice(&buffer[..count]);
        let so_far = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = so_far.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            line.to_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        });
        if body.len() >= length.unwrap_or(0_usize) {
            return Some(so_far);
        }
    }
}

fn answer(status: u16, headers: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
}

fn given() -> String {
    answer(
        200,
        "",
        &json!({"kind": "JitConfig", "encodedJitConfig": JIT}),
    )
}

fn refusal(status: u16, headers: &str, reason: &str) -> String {
    answer(
        status,
        headers,
        &json!({"reason": reason, "message": format!("because of {reason}")}),
    )
}

/// A pod's files, and the gate in it.
struct Pod {
    dir: PathBuf,
}

impl Pod {
    fn new() -> Self {
        let dir = folder("pod");
        fs::write(dir.join("token"), TOKEN).unwrap();
        fs::create_dir(dir.join("run")).unwrap();
        Self { dir }
    }

    fn gate(&self, simulated: &Value, registrar: &Registrar) -> Command {
        let mut gate = smoke(simulated);
        gate.arg("gate")
            .env(
                gate::REGISTRAR_URL,
                format!("https://{}", registrar.address),
            )
            .env(gate::REGISTRAR_CA, &registrar.ca)
            .env(gate::TOKEN_FILE, self.dir.join("token"))
            .env(gate::REGISTRATION_DIR, self.dir.join("run"))
            .env(gate::TERMINATION_LOG, self.dir.join("log"))
            .env(gate::EXPECTED_DEVICES, "1")
            .env(gate::REGISTRATION_TIMEOUT_SECONDS, "2")
            .env(gate::POD, "pool-abcde")
            .env(gate::NODE, "node-a")
            .env(gate::NAMESPACE, "ci");
        gate
    }

    fn run(&self, simulated: &Value, registrar: &Registrar) -> (i32, Report) {
        let output = self.gate(simulated, registrar).output().unwrap();
        let log = fs::read_to_string(self.dir.join("log")).unwrap();
        no_secret_in(&output, &log);
        (output.status.code().unwrap(), report(&log))
    }

    fn left(&self) -> Vec<String> {
        let mut left: Vec<_> = fs::read_dir(self.dir.join("run"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        left
    }
}

fn no_secret_in(output: &Output, log: &str) {
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    for secret in [TOKEN, JIT] {
        assert!(
            !printed.contains(secret) && !log.contains(secret),
            "{secret} was written: {printed}{log}"
        );
    }
}

#[test]
fn a_registration_token_is_left_in_a_file_of_its_own() {
    let token = "AABBCCDDEEFF";
    let given = answer(
        200,
        "",
        &json!({"kind": "RegistrationToken", "token": token}),
    );
    let registrar = Registrar::start(&[given]);
    let pod = Pod::new();
    let (code, _) = pod.run(&json!({}), &registrar);
    assert_eq!(code, 0);
    assert_eq!(
        pod.left(),
        [
            "gpu.sh",
            "job-completed.sh",
            "job-started.sh",
            "team-hook.sh",
            "token"
        ]
    );
    let file = pod.dir.join("run/token");
    assert_eq!(fs::read_to_string(&file).unwrap(), token);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o666,
        "an image may have any user"
    );
}

#[test]
fn who_passes_gets_a_registration_and_the_hooks() {
    let registrar = Registrar::start(&[given()]);
    let pod = Pod::new();
    let (code, report) = pod.run(&json!({}), &registrar);
    assert_eq!((code, report.passed()), (0, true));
    assert_eq!(
        pod.left(),
        [
            "gpu.sh",
            "jitconfig",
            "job-completed.sh",
            "job-started.sh",
            "team-hook.sh"
        ]
    );
    let file = pod.dir.join("run/jitconfig");
    assert_eq!(fs::read_to_string(&file).unwrap(), JIT);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o666,
        "an image may have any user"
    );
    let request = registrar.requests.lock().unwrap()[0].clone();
    assert!(
        request.starts_with("POST /v1/registrations HTTP/1.1"),
        "{request}"
    );
    assert!(
        request
            .to_lowercase()
            .contains(&format!("authorization: bearer {TOKEN}")),
        "{request}"
    );
    let sent = &registrar.bodies()[0];
    assert_eq!(
        (
            sent.pod.as_deref(),
            sent.node.as_deref(),
            sent.devices.len()
        ),
        (Some("pool-abcde"), Some("node-a"), 1)
    );
}

#[test]
fn who_fails_reports_and_gets_nothing() {
    let registrar = Registrar::start(&[answer(202, "", &json!(null))]);
    let pod = Pod::new();
    let (code, report) = pod.run(
        &faulty(json!({"call": "cuMemcpyDtoH_v2", "code": 214})),
        &registrar,
    );
    assert_eq!((code, report.failure.unwrap().code), (12, Some(214)));
    assert!(pod.left().is_empty());
    assert_eq!(
        registrar.bodies()[0].failure.as_ref().unwrap().code,
        Some(214)
    );
}

#[test]
fn a_refusal_is_final_and_its_words_are_kept() {
    for status in [401, 403] {
        let registrar = Registrar::start(&[refusal(status, "", "OtherNode")]);
        let pod = Pod::new();
        let (code, report) = pod.run(&json!({}), &registrar);
        let failure = report.failure.unwrap();
        assert_eq!((code, failure.code_name.as_str()), (15, "OtherNode"));
        assert!(
            failure.message.contains("because of OtherNode"),
            "{}",
            failure.message
        );
        assert_eq!(
            registrar.requests.lock().unwrap().len(),
            1,
            "a refusal was asked for twice"
        );
        assert!(pod.left().is_empty());
    }
}

#[test]
fn a_busy_registrar_is_asked_again() {
    let later = refusal(429, "Retry-After: 1\r\n", "TooManyRequests");
    let registrar = Registrar::start(&[refusal(503, "", "NotYetKnown"), later, given()]);
    let pod = Pod::new();
    let mut gate = pod.gate(&json!({}), &registrar);
    let status = gate
        .env(gate::REGISTRATION_TIMEOUT_SECONDS, "30")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(registrar.requests.lock().unwrap().len(), 3);
}

#[test]
fn one_who_does_not_answer_well_in_time_is_unreachable() {
    let nobody = {
        let registrar = Registrar::start(&[]);
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        Registrar {
            address: free,
            ..registrar
        }
    };
    let busy = Registrar::start(&[refusal(503, "", "NotYetKnown")]);
    let impostor = Registrar {
        ca: Registrar::start(&[]).ca,
        ..Registrar::start(&[given()])
    };
    for (registrar, words) in [
        (nobody, "refused"),
        (busy, "because of NotYetKnown"),
        (impostor, "certificate"),
    ] {
        let pod = Pod::new();
        let (code, report) = pod.run(&json!({}), &registrar);
        let failure = report.failure.unwrap();
        assert_eq!(code, 16, "{}", failure.message);
        assert!(
            failure
                .message
                .to_lowercase()
                .contains(&words.to_lowercase()),
            "{words}: {}",
            failure.message
        );
        assert!(pod.left().is_empty());
    }
}

#[test]
fn a_signal_ends_the_gate_at_once() {
    let registrar = Registrar::start(&[given()]);
    let pod = Pod::new();
    let hang = faulty(json!({"call": "cuInit", "hang": true}));
    let mut gate = pod
        .gate(&hang, &registrar)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The child has begun when the parent has one.
    let children = format!("/proc/{0}/task/{0}/children", gate.id());
    let start = Instant::now();
    while fs::read_to_string(&children).unwrap_or_default().is_empty() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the test process was not started"
        );
        std::thread::yield_now();
    }
    let child = fs::read_to_string(&children).unwrap();
    assert!(
        Command::new("kill")
            .arg(gate.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    let status = gate.wait().unwrap();
    assert_eq!(status.code(), Some(143));
    // In a container the kernel ends it with the first process; here that is ours to do.
    Command::new("kill")
        .args(["-KILL", child.trim()])
        .status()
        .unwrap();
    let mut rest = String::new();
    gate.stdout
        .take()
        .unwrap()
        .read_to_string(&mut rest)
        .unwrap();
}
