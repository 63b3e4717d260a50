//! The simulated service, as a job's container meets it.
#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::TcpStream,
    process::{Command, Stdio},
};

fn service() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulated-service"));
    command.env_clear();
    command
}

#[test]
fn it_does_not_start_without_a_password() {
    let ended = service().env("PORT", "0").output().unwrap();

    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("POSTGRES_PASSWORD is not set"), "{said}");
}

#[test]
fn it_says_what_it_has_and_never_the_password() {
    // Given a service with a password, and a GPU by its environment
    let mut running = service()
        .envs([("PORT", "0"), ("POSTGRES_PASSWORD", "hunter22")])
        .env("NVIDIA_VISIBLE_DEVICES", "all")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(running.stdout.take().unwrap());
    stdout.read_line(&mut said).unwrap();

    // When somebody connects
    let port = said.trim().rsplit_once(':').unwrap().1.parse().unwrap();
    let mut answer = String::new();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.read_to_string(&mut answer).unwrap();

    // Then one line tells it, and a SIGTERM ends it well
    assert!(
        answer.starts_with("gpu=NVIDIA_VISIBLE_DEVICES:all"),
        "{answer}"
    );
    assert!(answer.ends_with(" password=8\n"), "{answer}");
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(0));
}
