//! The preflight in the gate: what the image lacks and what the network refuses, all in one report.

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
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{faulty, folder, report, smoke};
use gate_report::contract::gate;
use gate_report::preflight::{CheckOutcome, PreflightFinding};
use gate_report::{Class, Report, Step};
use serde_json::{Value, json};
use tokio_rustls::rustls::{ServerConnection, StreamOwned};

/// Serves connections one after the other.
fn serve(mut each: impl FnMut(std::net::TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(&mut each));
    address
}

/// Answers every request with this status.
fn answering(status: &'static str) -> SocketAddr {
    serve(move |mut stream| {
        // The whole head, or the client's next write would fail.
        let mut head = vec![];
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => head.extend(byte),
                _ => return,
            }
        }
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nLocation: https://nowhere.invalid/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    })
}

/// Accepts, and never says a word.
fn hanging() -> SocketAddr {
    let mut kept = vec![];
    serve(move |stream| kept.push(stream))
}

/// Where nobody is, and nobody may be: a port that was given back another test may have by now.
fn refusing() -> SocketAddr {
    ([127, 0, 0, 1], 1).into()
}

/// A server whose certificate is known to nobody but the file.
fn own_authority(folder: &Path) -> (SocketAddr, PathBuf) {
    let (config, ca) = common::own_authority();
    let file = folder.join("ca.crt");
    fs::write(&file, ca).unwrap();
    let address = serve(move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        let _ = tls.read(&mut [0; 4096]);
        let _ = tls.write_all(b"HTTP/1.1 204 X\r\nConnection: close\r\n\r\n");
        tls.conn.send_close_notify();
        let _ = tls.flush();
    });
    (address, file)
}

/// The gate in a folder of its own, with a registrar that is not there: a failing report ends with its own class.
struct Gate {
    folder: PathBuf,
    wanted: Value,
    environment: Vec<(&'static str, String)>,
}

impl Gate {
    fn new(wanted: Value) -> Self {
        Self {
            folder: folder("preflight"),
            wanted,
            environment: vec![],
        }
    }

    fn with(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }

    fn run(&self, simulated: &Value) -> (i32, Report) {
        let log = self.folder.join("log");
        let mut gate = smoke(simulated);
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            gate.env_remove(name).env_remove(name.to_uppercase());
        }
        let output = gate
            .arg("gate")
            .env_remove("SSL_CERT_FILE")
            .env(gate::REGISTRAR_URL, format!("https://{}", refusing()))
            .env(gate::REGISTRAR_CA, "none")
            .env(gate::REGISTRATION_DIR, &self.folder)
            .env(gate::REGISTRATION_TIMEOUT_SECONDS, "1")
            .env(gate::TERMINATION_LOG, &log)
            .env(gate::PREFLIGHT, self.wanted.to_string())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        let report = report(&fs::read_to_string(log).unwrap());
        (output.status.code().unwrap(), report)
    }
}

fn findings(report: &Report) -> &[PreflightFinding] {
    &report.preflight.as_ref().unwrap().findings
}

fn found(report: &Report, subject: &str) -> String {
    let finding = findings(report).iter().find(|f| f.subject == subject);
    finding.and_then(|f| f.found.clone()).unwrap_or_default()
}

#[test]
fn addresses_are_tried_at_the_same_time_and_each_trouble_has_its_name() {
    // Given
    let folder = folder("authority");
    let (private, _) = own_authority(&folder);
    let urls = [
        format!("http://{}/", refusing()),
        format!("http://{}/", hanging()),
        format!("https://{}/", hanging()),
        // Too long for a name: no name server is asked.
        format!("http://{}.invalid/", "x".repeat(64)),
        format!("https://{private}/"),
        format!("http://{}/", answering("404 Not Found")),
        format!("http://{}/", answering("302 Found")),
    ];
    // When
    let started = Instant::now();
    let (code, report) = Gate::new(json!({"egress": urls})).run(&json!({}));
    // Then: four of them take 5 s each
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(20),
        "one after the other: {took:?}"
    );
    let troubles: Vec<String> = urls.iter().map(|url| found(&report, url)).collect();
    assert_eq!(
        troubles,
        [
            "Refused",
            "TimedOut",
            "TimedOut",
            "NotResolved",
            "NotTrusted",
            "",
            ""
        ],
        "{report:#?}"
    );
    let failure = report.failure.unwrap();
    assert_eq!(
        (code, failure.class, failure.step),
        (10, Class::Config, Step::Preflight)
    );
    for url in &urls[..5] {
        assert!(
            failure.message.contains(url),
            "{url} is not in: {}",
            failure.message
        );
    }
}

#[test]
fn an_address_that_only_hangs_may_pass_by_itself() {
    let wanted = json!({"egress": [format!("http://{}/", hanging())]});
    let (code, report) = Gate::new(wanted).run(&json!({}));
    assert_eq!(
        (code, report.failure.unwrap().class),
        (11, Class::Transient)
    );
}

#[test]
fn the_clusters_own_authorities_are_trusted_too() {
    let folder = folder("authority");
    let (address, file) = own_authority(&folder);
    let url = format!("https://{address}/");
    let gate = Gate::new(json!({"egress": [url]}))
        .with("SSL_CERT_FILE", file.to_string_lossy().into_owned());
    let (_, report) = gate.run(&json!({}));
    assert_eq!(
        findings(&report)[0].outcome,
        CheckOutcome::Ok,
        "{report:#?}"
    );
}

#[test]
fn the_way_leads_through_the_proxy_except_where_it_must_not() {
    let proxy = answering("403 Forbidden");
    let direct = answering("200 OK");
    let by_proxy = "https://github.com/";
    let gate = Gate::new(json!({"egress": [by_proxy, format!("http://{direct}/")]}))
        .with("https_proxy", format!("http://user:secret@{proxy}"))
        .with("no_proxy", "127.0.0.1".to_owned());
    let (_, report) = gate.run(&json!({}));
    let [refused, ok] = findings(&report) else {
        panic!("{report:#?}")
    };
    assert_eq!(refused.found.as_deref(), Some("Proxy"), "{refused:?}");
    assert!(refused.message.contains(&proxy.to_string()), "{refused:?}");
    assert!(!serde_json::to_string(&report).unwrap().contains("secret"));
    assert_eq!(ok.outcome, CheckOutcome::Ok, "{ok:?}");
}

#[test]
fn network_and_gpu_are_told_at_once_and_the_gpu_decides() {
    let url = format!("http://{}/", refusing());
    // The image is looked at in the image
    let gate = Gate::new(json!({"image": true, "commands": ["cc"], "egress": [url]}));
    // A healthy GPU
    let (code, report) = gate.run(&json!({}));
    let failure = report.failure.as_ref().unwrap();
    assert_eq!((code, failure.code_name.as_str()), (10, "PreflightFailed"));
    assert!(failure.message.contains(&url), "{}", failure.message);
    assert_eq!((report.devices.len(), findings(&report).len()), (1, 1));
    // A broken one
    let (code, report) = gate.run(&faulty(json!({"call": "cuMemcpyDtoH_v2", "code": 214})));
    let failure = report.failure.as_ref().unwrap();
    assert_eq!(
        (code, failure.code, failure.class),
        (12, Some(214), Class::Device)
    );
    assert!(failure.message.contains(&url), "{}", failure.message);
    assert_eq!(findings(&report)[0].outcome, CheckOutcome::Failed);
}
