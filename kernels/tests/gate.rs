//! `cuda-smoke prepare` and `cuda-smoke gate` with a registrar that answers as it is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::registrar::{Registrar, TICKET, admitted, answer, refusal, ticket};
use common::{Running, faulty, folder, report, side_by_side, signal, smoke, until};
use gate_report::Report;
use gate_report::contract::{file, gate};
use gate_report::exit;
use gate_report::wire::{REPORTS, TICKETS};
use serde_json::{Value, json};

const TOKEN: &str = "service-account-token-of-the-pod";

/// A pod's files, and our programs in it.
struct Pod {
    dir: PathBuf,
}

impl Pod {
    fn new() -> Self {
        let dir = folder("pod");
        fs::write(dir.join("token"), TOKEN).unwrap();
        fs::create_dir(dir.join("run")).unwrap();
        fs::write(dir.join("init"), "a program").unwrap();
        Self { dir }
    }

    /// A pod with a ticket.
    fn prepared() -> Self {
        let pod = Self::new();
        fs::write(pod.dir.join("run").join(file::TICKET), TICKET).unwrap();
        pod
    }

    fn command(&self, command: &str, simulated: &Value, registrar: &Registrar) -> Command {
        let mut smoke = smoke(simulated);
        smoke
            .arg(command)
            .env(gate::REGISTRAR_URL, registrar.url())
            .env(gate::REGISTRAR_CA, &registrar.ca)
            .env(gate::REGISTRATION_DIR, self.dir.join("run"))
            .env(gate::TERMINATION_LOG, self.dir.join("log"))
            .env(gate::POD, "pool-abcde")
            .env(gate::NODE, "node-a")
            .env(gate::NAMESPACE, "ci");
        smoke
    }

    fn gate(&self, simulated: &Value, registrar: &Registrar) -> Command {
        let mut gate = self.command("gate", simulated, registrar);
        gate.env(gate::EXPECTED_DEVICES, "1");
        gate
    }

    fn prepare(&self, registrar: &Registrar) -> Command {
        let mut prepare = self.command("prepare", &json!({}), registrar);
        prepare
            .env(gate::TOKEN_FILE, self.dir.join("token"))
            .env(gate::RUNNER_INIT, self.dir.join("init"));
        prepare
    }

    /// The exit code and the report of a program that ends.
    fn ended(&self, command: &mut Command) -> (i32, Report) {
        let output = command.output().unwrap();
        let log = fs::read_to_string(self.dir.join("log")).unwrap();
        no_secret_in(&output, &log);
        (output.status.code().unwrap(), report(&log))
    }

    fn run(&self, simulated: &Value, registrar: &Registrar) -> (i32, Report) {
        self.ended(&mut self.gate(simulated, registrar))
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join("run").join(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        let metadata = fs::metadata(self.dir.join("run").join(name)).unwrap();
        metadata.permissions().mode() & 0o777
    }
}

/// With little time for the registrar: the test waits for all of it.
fn hurried(mut command: Command) -> Command {
    command.env(gate::REGISTRATION_TIMEOUT_SECONDS, "6");
    command
}

fn no_secret_in(output: &Output, log: &str) {
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    for secret in [TOKEN, TICKET] {
        assert!(
            !printed.contains(secret) && !log.contains(secret),
            "{secret} was written: {printed}{log}"
        );
    }
}

/// A registrar at whose address nobody is. A port that was given back another test may have by now; this one nobody gets.
fn nobody() -> Registrar {
    Registrar {
        address: ([127, 0, 0, 1], 1).into(),
        ..Registrar::start(&[])
    }
}

/// One that has another's authority.
fn impostor(answer: String) -> Registrar {
    Registrar {
        ca: Registrar::start(&[]).ca,
        ..Registrar::start(&[answer])
    }
}

#[test]
fn prepare_brings_the_programs_the_settings_and_the_ticket() {
    // Given a pod whose other variables are no business of the gate's
    let registrar = Registrar::with_paths(vec![(TICKETS, vec![ticket()])]);
    let pod = Pod::new();
    let mut prepare = pod.prepare(&registrar);
    prepare
        .env("LD_PRELOAD", "")
        .env("https_proxy", "http://proxy:3128")
        .env(gate::MIN_CUDA_VERSION, "12.4");
    // When
    let output = prepare.output().unwrap();
    // Then
    no_secret_in(&output, "");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(pod.text(file::RUNNER_INIT), "a program");
    let hooks = [
        file::GPU,
        file::TEAM_HOOK,
        file::ALLOW,
        file::JOB_STARTED,
        file::JOB_COMPLETED,
    ];
    for program in hooks.into_iter().chain([file::RUNNER_INIT]) {
        assert_eq!(pod.mode(program), 0o755, "{program}");
    }
    assert_eq!(pod.text(file::TICKET), TICKET);
    assert_eq!(pod.mode(file::TICKET), 0o666, "an image may have any user");
    let settings: serde_json::Map<String, Value> =
        serde_json::from_str(&pod.text(file::SETTINGS)).unwrap();
    let expected = [
        (gate::REGISTRAR_URL, registrar.url()),
        (gate::MIN_CUDA_VERSION, "12.4".to_owned()),
        (gate::NODE, "node-a".to_owned()),
        ("https_proxy", "http://proxy:3128".to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(settings.get(name), Some(&json!(value)), "{name}");
    }
    for name in ["PATH", "HOME", "LD_PRELOAD", "SIMCUDA"] {
        assert!(!settings.contains_key(name), "{name}");
    }
    let asked = registrar.asked(TICKETS);
    let [(head, body)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert!(head.contains(&format!("authorization: bearer {TOKEN}")));
    assert_eq!(body, "");
}

#[test]
fn without_a_ticket_the_pod_ends_and_says_why() {
    let cases = [
        (
            Registrar::start(&[refusal(403, "", "NoRunner")]),
            exit::REFUSED,
            "because of NoRunner",
        ),
        (
            Registrar::start(&[refusal(503, "", "NotYetKnown")]),
            exit::UNREACHABLE,
            "because of NotYetKnown",
        ),
        // The last try is cut short by the deadline, and says nothing of its own.
        (
            Registrar::start(&[refusal(503, "", "NotYetKnown"), String::new()]),
            exit::UNREACHABLE,
            "because of NotYetKnown",
        ),
        (
            Registrar::start(&[String::new()]),
            exit::UNREACHABLE,
            "in time: it did not answer",
        ),
        (nobody(), exit::UNREACHABLE, "refused"),
        (impostor(ticket()), exit::UNREACHABLE, "certificate"),
        (
            Registrar::start(&[answer(200, "", &json!({"ticket": "two words"}))]),
            exit::INTERNAL,
            "used",
        ),
    ];
    side_by_side(cases, |(registrar, code, words)| {
        let pod = Pod::new();
        let prepare = pod.prepare(&registrar);
        let is_waited_for = code == exit::UNREACHABLE;
        let mut prepare = if is_waited_for {
            hurried(prepare)
        } else {
            prepare
        };
        let (ended, report) = pod.ended(&mut prepare);
        let message = report.failure.unwrap().message;
        assert_eq!(ended, i32::from(code), "{message}");
        assert!(
            message.to_lowercase().contains(&words.to_lowercase()),
            "{message}"
        );
        assert!(!pod.dir.join("run").join(file::TICKET).exists());
    });
}

#[test]
fn who_passes_reports_and_waits_for_its_end() {
    // Given a registrar that is restarted after its first answer
    let answers = vec![admitted(), refusal(503, "", "NotYetKnown"), admitted()];
    let registrar = Registrar::with_paths(vec![(REPORTS, answers)]);
    let pod = Pod::prepared();
    // When
    let mut gate = pod.gate(&json!({}), &registrar);
    let mut gate = Running(
        gate.stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    // Then the report comes again
    until("asked three times", || registrar.asked(REPORTS).len() >= 3);
    assert!(gate.0.try_wait().unwrap().is_none());
    for (head, body) in registrar.asked(REPORTS) {
        assert!(
            head.contains(&format!("authorization: bearer {TICKET}")),
            "{head}"
        );
        let sent = report(&body);
        assert_eq!(
            (
                sent.pod.as_deref(),
                sent.node.as_deref(),
                sent.devices.len()
            ),
            (Some("pool-abcde"), Some("node-a"), 1)
        );
    }
    assert!(report(&pod.text(file::PASSED)).passed());
    assert!(report(&fs::read_to_string(pod.dir.join("log")).unwrap()).passed());
    // And when the image is changed, it goes
    signal(gate.0.id(), "TERM");
    assert_eq!(gate.code(), 143);
}

#[test]
fn who_fails_reports_and_ends() {
    let registrar = Registrar::start(&[answer(202, "", &json!(null))]);
    let pod = Pod::prepared();
    let (code, ended) = pod.run(
        &faulty(json!({"call": "cuMemcpyDtoH_v2", "code": 214})),
        &registrar,
    );
    assert_eq!((code, ended.failure.unwrap().code), (12, Some(214)));
    assert!(!pod.dir.join("run").join(file::PASSED).exists());
    let (_, body) = &registrar.asked(REPORTS)[0];
    assert_eq!(report(body).failure.unwrap().code, Some(214));
}

#[test]
fn a_refusal_is_final_and_its_words_are_kept() {
    for status in [401, 403] {
        let registrar = Registrar::start(&[refusal(status, "", "OtherNode")]);
        let (code, report) = Pod::prepared().run(&json!({}), &registrar);
        let failure = report.failure.unwrap();
        assert_eq!((code, failure.code_name.as_str()), (15, "OtherNode"));
        assert!(
            failure.message.contains("because of OtherNode"),
            "{}",
            failure.message
        );
        let asked = registrar.asked(REPORTS).len();
        assert_eq!(asked, 1, "a refusal was asked for twice");
    }
}

#[test]
fn a_busy_registrar_is_asked_again() {
    let later = refusal(429, "Retry-After: 1\r\n", "TooManyRequests");
    let no = refusal(403, "", "OtherNode");
    let registrar = Registrar::start(&[refusal(503, "", "NotYetKnown"), later, no]);
    let pod = Pod::prepared();
    let mut gate = pod.gate(&json!({}), &registrar);
    let (code, _) = pod.ended(&mut gate);
    assert_eq!(code, 15);
    assert_eq!(registrar.asked(REPORTS).len(), 3);
}

#[test]
fn one_who_does_not_answer_well_in_time_is_unreachable() {
    let busy = Registrar::start(&[refusal(503, "", "NotYetKnown")]);
    let cases = [
        (nobody(), "refused"),
        (busy, "because of NotYetKnown"),
        (impostor(admitted()), "certificate"),
    ];
    side_by_side(cases, |(registrar, words)| {
        let pod = Pod::prepared();
        let (code, report) = pod.ended(&mut hurried(pod.gate(&json!({}), &registrar)));
        let message = report.failure.unwrap().message.to_lowercase();
        assert_eq!(code, 16, "{message}");
        assert!(
            message.contains(&words.to_lowercase()),
            "{words}: {message}"
        );
    });
}

#[test]
fn a_signal_ends_the_gate_at_once() {
    let registrar = Registrar::start(&[admitted()]);
    let pod = Pod::prepared();
    let hang = faulty(json!({"call": "cuInit", "hang": true}));
    let mut gate = pod
        .gate(&hang, &registrar)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The child has begun when the parent has one.
    let children = format!("/proc/{0}/task/{0}/children", gate.id());
    until("started", || {
        !fs::read_to_string(&children).unwrap_or_default().is_empty()
    });
    let child = fs::read_to_string(&children).unwrap();
    signal(gate.id(), "TERM");
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
