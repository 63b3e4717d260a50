//! A registrar that answers as it is told, over real TLS.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio_rustls::rustls::{ServerConnection, StreamOwned};

pub const JIT: &str = "c2VjcmV0LWNvbmZpZw==";
pub const TICKET: &str = "ticket-of-the-pod";

/// Gives these answers, one for each request of a path, the last one again and again. Where one is
/// empty it says nothing and keeps the connection.
pub struct Registrar {
    pub address: SocketAddr,
    pub ca: String,
    pub requests: Arc<Mutex<Vec<String>>>,
}

impl Registrar {
    /// The same answers for all `POST`s.
    pub fn start(answers: &[String]) -> Self {
        Self::with_paths(vec![("/", answers.to_vec())])
    }

    /// Answers by path; a path is one of a `POST`, unless it has its own method before it.
    pub fn with_paths(answers: Vec<(&'static str, Vec<String>)>) -> Self {
        let (config, ca) = super::own_authority();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::<String>::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            let mut kept = vec![];
            for stream in listener.incoming().flatten() {
                let mut tls =
                    StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
                let Some(request) = read(&mut tls) else {
                    continue;
                };
                let is_of = |request: &str, path| request.starts_with(&with_method(path));
                let known = answers.iter().find(|(path, _)| is_of(&request, path));
                let (path, answers) = known.unwrap_or_else(|| panic!("{request}"));
                let mut seen = seen.lock().unwrap();
                let number = seen.iter().filter(|request| is_of(request, path)).count();
                let answer = answers.get(number).or(answers.last());
                let answer = answer.cloned().unwrap_or_default();
                seen.push(request);
                drop(seen);
                if answer.is_empty() {
                    kept.push(tls);
                    continue;
                }
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

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Heads and bodies of the requests for a path.
    pub fn asked(&self, path: &str) -> Vec<(String, String)> {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|request| request.starts_with(&format!("{} HTTP/1.1", with_method(path))))
            .map(|request| {
                let (head, body) = request.split_once("\r\n\r\n").unwrap();
                (head.to_lowercase(), body.to_owned())
            })
            .collect()
    }
}

fn with_method(path: &str) -> String {
    if path.starts_with('/') {
        format!("POST {path}")
    } else {
        path.to_owned()
    }
}

/// One request, head and body; `None` where the client did not get so far.
fn read(stream: &mut impl Read) -> Option<String> {
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

pub fn answer(status: u16, headers: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
}

pub fn registration() -> String {
    answer(
        200,
        "",
        &json!({"kind": "JitConfig", "encodedJitConfig": JIT}),
    )
}

pub fn refusal(status: u16, headers: &str, reason: &str) -> String {
    answer(
        status,
        headers,
        &json!({"reason": reason, "message": format!("because of {reason}")}),
    )
}

/// The answer to `prepare`.
pub fn ticket() -> String {
    answer(200, "", &json!({"ticket": TICKET}))
}

/// The answer to a gate that passed.
pub fn admitted() -> String {
    answer(200, "", &json!({}))
}
