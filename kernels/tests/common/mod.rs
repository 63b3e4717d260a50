//! The real binary, with the simulated driver where a node's driver would be.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a part of tests, of which each uses its own"
)]

pub mod job;
pub mod registrar;
pub mod runner;

use std::env;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use gate_report::{Failure, Report};
use jsonschema::Validator;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, crypto::aws_lc_rs};

/// A folder with the driver as a node has it, `libcuda.so.1`.
static DRIVER: LazyLock<PathBuf> = LazyLock::new(|| {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "simulated-driver"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(built.success(), "the simulated driver could not be built");
    let debug = Path::new(env!("CARGO_BIN_EXE_cuda-smoke"))
        .parent()
        .unwrap();
    let folder = folder("driver");
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        fs::copy(debug.join("libcuda.so"), folder.join(name)).unwrap();
    }
    folder
});

/// The report's schema, as it is published.
static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let text = include_str!("../../../docs/reference/gate-report.schema.json");
    jsonschema::validator_for(&serde_json::from_str(text).unwrap()).unwrap()
});

/// A fresh folder.
pub fn folder(name: &str) -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    // What an earlier process of this number left is still there.
    loop {
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{}-{name}-{number}", std::process::id()));
        match fs::create_dir(&folder) {
            Ok(()) => return folder,
            Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
        }
    }
}

/// Makes a script that can be run. Another process writes it: where this one does, a child that another thread has just
/// forked may still have it open, and Linux runs no file that is open for writing.
pub fn program(path: &Path, text: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", r#"cat >"$0" && chmod 755 "$0""#])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = writer.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    assert!(writer.wait().unwrap().success());
}

/// TLS with a certificate for this machine that nobody else knows; its PEM.
pub fn own_authority() -> (Arc<ServerConfig>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let certificate = params.self_signed(&key).unwrap();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    (Arc::new(config), certificate.pem())
}

/// The driver's file.
pub fn driver() -> PathBuf {
    DRIVER.join("libcuda.so.1")
}

/// `cuda-smoke`, with the driver and what it simulates.
pub fn smoke(simulated: &Value) -> Command {
    let mut command = without_driver();
    command
        .env("LD_LIBRARY_PATH", &*DRIVER)
        .env("SIMCUDA", simulated.to_string());
    command
}

/// `cuda-smoke` on a machine that has no driver.
pub fn without_driver() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-smoke"));
    command.env_remove("LD_LIBRARY_PATH").env_remove("SIMCUDA");
    command
}

/// Exit code and report of `check --json` on these devices.
pub fn check(simulated: &Value, arguments: &[&str]) -> (i32, Report) {
    read(
        &smoke(simulated)
            .args(["check", "--json"])
            .args(arguments)
            .output()
            .unwrap(),
    )
}

/// Exit code and report of a gate that printed one; its short form is looked at, too.
pub fn read(output: &Output) -> (i32, Report) {
    let code = output.status.code().expect("the supervisor itself died");
    let report = report(&String::from_utf8_lossy(&output.stdout));
    self::report(&report.summary());
    (code, report)
}

/// A report, which is as the published schema says.
pub fn report(text: &str) -> Report {
    let json: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let errors: Vec<_> = SCHEMA
        .iter_errors(&json)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:?} in {text}");
    serde_json::from_value(json).unwrap()
}

/// Why a gate failed.
pub fn failure(report: &Report) -> &Failure {
    let failure = report.failure.as_ref();
    failure.unwrap_or_else(|| panic!("passed: {report:?}"))
}

/// The seconds that a gate says it waited for an answer.
pub fn waited(failure: &Failure) -> u64 {
    let (_, wait) = failure.message.split_once("within ").unwrap();
    wait.split(' ').next().unwrap().parse().unwrap()
}

/// Tries all of these at the same time: most of that is waiting.
pub fn side_by_side<T: Send>(cases: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    let test = &test;
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || test(case));
        }
    });
}

/// One healthy device with this fault.
pub fn faulty(fault: Value) -> Value {
    json!({"devices": [{"profile": "a100"}], "faults": [fault]})
}

/// Waits until something holds, and says what it waited for.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_mins(2), "not {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal to a process.
pub fn signal(process: u32, name: &str) {
    let mut kill = Command::new("kill");
    let sent = kill.args(["-s", name, &process.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Whether a process has taken SIGTERM over, by its bit in `/proc/PID/status`; not one that is gone.
pub fn catches_term(process: u32) -> bool {
    const TERM: u64 = 1 << 14;
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mut lines = status.lines();
    let caught = lines.find_map(|line| line.strip_prefix("SigCgt:\t"));
    caught.is_some_and(|caught| u64::from_str_radix(caught, 16).unwrap() & TERM != 0)
}

/// A process that does not outlive its test.
pub struct Running(pub Child);

impl Running {
    /// Waits for its end; its exit code, which it must have.
    pub fn code(&mut self) -> i32 {
        until("ended", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().code().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
