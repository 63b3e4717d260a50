//! A process that waits for the cluster at its start lives, and says what it waits for.
#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An API server that nobody reaches.
const NOWHERE: &str = "
apiVersion: v1
kind: Config
current-context: nowhere
contexts: [{name: nowhere, context: {cluster: nowhere, user: nobody}}]
clusters: [{name: nowhere, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: nobody, user: {}}]
";

/// Ends with the test.
struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The answer, once there is one.
fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(address).ok()?;
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn who_waits_for_the_cluster_lives_and_is_not_ready() {
    // Given an API server that is not reached
    let folder = tempfile();
    let config = folder.join("kubeconfig");
    std::fs::write(&config, NOWHERE).unwrap();
    // And a port that is free, at an address that no other process's test has
    let own = Ipv4Addr::from(0x7f40_0000 | std::process::id() & 0x3f_ffff);
    let address = TcpListener::bind((own, 0)).unwrap().local_addr().unwrap();

    for election in [&[][..], &["--leader-elect"]] {
        // When the operator starts
        let operator = Command::new(env!("CARGO_BIN_EXE_cuda-runner-operator"))
            .args(["run", "--gate-image=example/cuda-smoke:1"])
            .arg(format!("--health-listen={address}"))
            .args(election)
            .env("KUBECONFIG", &config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut operator = Operator(operator.unwrap());

        // Then it is alive, and neither ready nor ended
        let by = Instant::now() + Duration::from_secs(30);
        let alive = loop {
            if let Some(answer) = ask(address, "/livez") {
                break answer;
            }
            assert!(Instant::now() < by, "nobody answers");
            assert_eq!(operator.0.try_wait().unwrap(), None, "it has ended");
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
        for path in ["/readyz", "/metrics"] {
            let answer = ask(address, path).unwrap();
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            assert!(
                answer.ends_with("waiting for the registrar's Service and certificate authority")
            );
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// A folder of this test's own.
fn tempfile() -> std::path::PathBuf {
    let name = format!("cuda-runner-start-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
