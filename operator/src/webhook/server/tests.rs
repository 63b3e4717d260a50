//! What becomes of what GitHub delivers, and of what others send.

use std::fmt::Write as _;
use std::net::SocketAddr;

use secrecy::SecretString;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const HOOK: &str = "0123456789abcdef";
const NEW: &str = "It's a Secret to Everybody";
const OLD: &str = "the secret before that one";

/// What the endpoint has said to it.
#[derive(Clone, Default)]
struct Played(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    outcomes: Vec<Outcome>,
    events: Vec<Option<JobEvent>>,
}

impl Played {
    fn outcomes(&self) -> Vec<Outcome> {
        std::mem::take(&mut self.0.lock().unwrap().outcomes)
    }

    fn events(&self) -> Vec<Option<JobEvent>> {
        std::mem::take(&mut self.0.lock().unwrap().events)
    }
}

impl Desk for Played {
    async fn secrets(&self, id: &str) -> Option<Vec<SecretString>> {
        let secrets = || [NEW, OLD].map(|text| text.to_owned().into()).to_vec();
        (id == HOOK).then(secrets)
    }

    async fn pass_on(&self) {
        std::future::pending::<()>().await;
    }

    fn arrived(&self, _: &str, event: Option<JobEvent>) -> bool {
        let of_another = |event: &JobEvent| event.repository != "acme/widgets";
        if event.as_ref().is_some_and(of_another) {
            return false;
        }
        self.0.lock().unwrap().events.push(event);
        true
    }

    fn count(&self, outcome: Outcome) {
        self.0.lock().unwrap().outcomes.push(outcome);
    }
}

async fn served() -> (SocketAddr, Played) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let played = Played::default();
    tokio::spawn(serve(Some((listener, played.clone()))));
    (address, played)
}

fn signed(secret: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, body);
    let mut signature = String::from("sha256=");
    for byte in tag.as_ref() {
        write!(signature, "{byte:02x}").unwrap();
    }
    signature
}

/// A delivery, to be changed.
struct Delivery {
    path: String,
    secret: String,
    guid: String,
    event: &'static str,
    kind: &'static str,
    body: Vec<u8>,
    more: &'static str,
}

fn delivery(guid: &str, repository: &str) -> Delivery {
    let body = json!({
        "action": "queued",
        "workflow_job": {"id": guid, "labels": ["cuda"]},
        "repository": {"full_name": repository},
    });
    Delivery {
        path: format!("/below/hooks/{HOOK}"),
        secret: NEW.to_owned(),
        guid: guid.to_owned(),
        event: "workflow_job",
        kind: "application/json",
        body: body.to_string().into_bytes(),
        more: "",
    }
}

/// Sends it; the status of the answer.
async fn send(address: SocketAddr, delivery: &Delivery) -> u16 {
    let signature = signed(&delivery.secret, &delivery.body);
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: x\r\nx-github-event: {}\r\nx-github-delivery: {}\r\nx-hub-signature-256: {signature}\r\ncontent-type: {}\r\n{}content-length: {}\r\n\r\n",
        delivery.path,
        delivery.event,
        delivery.guid,
        delivery.kind,
        delivery.more,
        delivery.body.len()
    );
    ask(address, head.as_bytes(), &delivery.body).await
}

async fn ask(address: SocketAddr, head: &[u8], body: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head).await.unwrap();
    // It may be refused before it is there.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    answer
        .split(' ')
        .nth(1)
        .map_or(0, |status| status.parse().unwrap())
}

#[test]
fn the_signature_is_the_one_of_githubs_documentation() {
    let documented = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert_eq!(signed(NEW, b"Hello, World!"), documented);
    let mut headers = HeaderMap::new();
    for (text, is_one) in [
        (documented.to_owned(), true),
        (documented.to_uppercase(), false),
        (documented.replace("sha256", "sha1"), false),
        (documented[..70].to_owned(), false),
        (format!("{documented}00"), false),
        (documented.replace("75", "+5"), false),
        (String::new(), false),
    ] {
        headers.insert("x-hub-signature-256", text.parse().unwrap());
        let read = signature(&headers);
        assert_eq!(read.is_some(), is_one, "{text}");
        if let Some(read) = read {
            let key = hmac::Key::new(hmac::HMAC_SHA256, NEW.as_bytes());
            hmac::verify(&key, b"Hello, World!", &read).unwrap();
        }
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn what_github_delivers_wakes_and_nothing_else_does() {
    type Change = fn(&mut Delivery);
    let (address, played) = served().await;
    let cases: &[(&str, Change, u16, Outcome, usize)] = &[
        ("an event", |_| {}, 202, Outcome::Accepted, 1),
        (
            "by the old secret",
            |d| d.secret = OLD.to_owned(),
            202,
            Outcome::Accepted,
            1,
        ),
        ("a ping", |d| d.event = "ping", 202, Outcome::Accepted, 1),
        (
            "forged",
            |d| d.secret = "guessed".to_owned(),
            401,
            Outcome::BadSignature,
            0,
        ),
        (
            "no secret",
            |d| d.secret = String::new(),
            401,
            Outcome::BadSignature,
            0,
        ),
        (
            "unknown",
            |d| d.path = "/hooks/other".to_owned(),
            401,
            Outcome::UnknownHook,
            0,
        ),
        (
            "no name",
            |d| d.path = "/".to_owned(),
            401,
            Outcome::UnknownHook,
            0,
        ),
        (
            "another event",
            |d| d.event = "push",
            202,
            Outcome::Ignored,
            0,
        ),
        (
            "no number",
            |d| d.guid = "g".repeat(65),
            202,
            Outcome::Ignored,
            0,
        ),
        (
            "a form",
            |d| d.kind = "application/x-www-form-urlencoded",
            415,
            Outcome::NotJson,
            0,
        ),
        (
            "with a charset",
            |d| d.kind = "application/json; charset=utf-8",
            202,
            Outcome::Accepted,
            1,
        ),
        (
            "no JSON",
            |d| d.body = b"{".to_vec(),
            202,
            Outcome::Ignored,
            0,
        ),
        (
            "deep",
            |d| d.body = b"[".repeat(100_000),
            202,
            Outcome::Ignored,
            0,
        ),
        (
            "long",
            |d| d.body = vec![b' '; LONGEST_BODY + 1],
            413,
            Outcome::TooLarge,
            0,
        ),
        (
            "as long as can be",
            |d| d.body.resize(LONGEST_BODY, b' '),
            202,
            Outcome::Accepted,
            1,
        ),
    ];
    for (number, (what, change, status, outcome, events)) in cases.iter().enumerate() {
        let mut delivery = delivery(&format!("guid-{number}"), "acme/widgets");
        change(&mut delivery);
        assert_eq!(send(address, &delivery).await, *status, "{what}");
        assert_eq!(played.outcomes(), [*outcome], "{what}");
        assert_eq!(played.events().len(), *events, "{what}");
    }
    // One of another repository, by a webhook of an organization
    let other = delivery("guid-other", "acme/gadgets");
    assert_eq!(send(address, &other).await, 202);
    assert_eq!(played.outcomes(), [Outcome::Ignored]);
}

#[tokio::test]
async fn a_delivery_counts_once_however_often_it_comes() {
    let (address, played) = served().await;
    let mut again = delivery("guid-1", "acme/widgets");
    let mut told = vec![];
    for guid in ["guid-1", "guid-1", "guid-2"] {
        again.guid = guid.to_owned();
        assert_eq!(send(address, &again).await, 202);
        told.extend(played.outcomes());
    }
    assert_eq!(
        told,
        [Outcome::Accepted, Outcome::Replayed, Outcome::Replayed]
    );
    assert_eq!(played.events().len(), 1);

    // What was refused is not remembered: GitHub delivers it again with the right secret
    let mut late = delivery("guid-3", "acme/widgets");
    late.secret = "wrong".to_owned();
    send(address, &late).await;
    late.secret = NEW.to_owned();
    send(address, &late).await;
    assert_eq!(
        played.outcomes(),
        [Outcome::BadSignature, Outcome::Accepted]
    );
}

#[tokio::test]
async fn a_body_in_pieces_is_refused_when_it_becomes_too_long() {
    let (address, played) = served().await;
    let head = format!(
        "POST /hooks/{HOOK} HTTP/1.1\r\nhost: x\r\nx-hub-signature-256: {}\r\ntransfer-encoding: chunked\r\n\r\n",
        signed(NEW, b"")
    );
    let piece = [
        format!("{:x}\r\n", 1 << 16).into_bytes(),
        vec![b' '; 1 << 16],
        b"\r\n".to_vec(),
    ]
    .concat();
    assert_eq!(ask(address, head.as_bytes(), &piece.repeat(17)).await, 413);
    assert_eq!(played.outcomes(), [Outcome::TooLarge]);
}

#[tokio::test]
async fn other_methods_and_other_paths_say_nothing() {
    let (address, played) = served().await;
    for request in ["GET /hooks/x", "PUT /", "DELETE /hooks/0123456789abcdef"] {
        let head = format!("{request} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(ask(address, head.as_bytes(), b"").await, 405, "{request}");
    }
    assert_eq!(played.outcomes(), []);
}

#[tokio::test]
async fn whoever_is_slow_holds_up_nobody() {
    // Given more senders than there may be, of which none comes to an end
    let (address, played) = served().await;
    let mut slow = vec![];
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(b"POST /hooks/").await;
        slow.push(stream);
    }
    // Then they are hung up on in time, and GitHub's delivery is taken
    let begun = tokio::time::Instant::now();
    let fresh = delivery("guid-1", "acme/widgets");
    while send(address, &fresh).await != 202 {
        assert!(begun.elapsed() < LONGEST * 3, "nobody was let in");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(played.outcomes().contains(&Outcome::Accepted));

    // And who claims all the room for bodies has it until the deadline, and no longer
    let head = format!(
        "POST /hooks/{HOOK} HTTP/1.1\r\nhost: x\r\nx-hub-signature-256: {}\r\ncontent-length: {LONGEST_BODY}\r\n\r\n",
        signed(NEW, b"")
    );
    drop(slow);
    let mut greedy = vec![];
    for _ in 0..ROOM / (LONGEST_BODY >> 10) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        greedy.push(stream);
    }
    let begun = tokio::time::Instant::now();
    let mut number = 2;
    loop {
        let next = delivery(&format!("guid-{number}"), "acme/widgets");
        match send(address, &next).await {
            202 => break,
            status => assert!([503, 0].contains(&status), "{status}"),
        }
        assert!(
            begun.elapsed() < LONGEST * 3,
            "the room is never given back"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
        number += 1;
    }
}
