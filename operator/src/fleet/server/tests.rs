use std::sync::atomic::AtomicU32;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::page::tests::sample;
use super::*;
use crate::connection::PATIENCE;

/// A fleet that somebody changes by hand.
#[derive(Default)]
struct Played {
    nodes: Arc<AtomicU32>,
    is_missing: bool,
}

impl Knows for Played {
    fn missing(&self) -> Vec<&'static str> {
        if self.is_missing {
            vec!["the nodes"]
        } else {
            vec![]
        }
    }

    fn fleet(&self, now: Timestamp) -> Fleet {
        let mut fleet = sample(self.nodes.load(Ordering::Relaxed));
        fleet.generated_at = now;
        fleet
    }
}

/// Serves it; where.
async fn served(played: Played) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hosts = vec!["gpus.example.com".to_owned()];
    tokio::spawn(serve(Some((listener, played)), hosts));
    address
}

/// The whole answer.
async fn ask(address: std::net::SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{head}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn every_answer_has_the_headers_and_no_other_origin_may_read_it() {
    let address = served(Played::default()).await;
    for (request, status) in [
        ("GET /", 200),
        ("GET /api/fleet", 200),
        ("GET /hours", 200),
        ("GET /hours.csv", 200),
        ("GET /pool?namespace=ci&name=pool", 200),
        ("GET /pool?namespace=ci&name=other", 404),
        ("GET /device", 404),
        ("GET /device?uuid=%3Cscript%3E", 404),
        ("GET /style.css", 200),
        ("GET /script.js", 200),
        ("GET /icon.svg", 200),
        ("GET /../../etc/passwd", 404),
        ("GET /metrics", 404),
        ("POST /api/fleet", 405),
        ("DELETE /", 405),
    ] {
        let head = format!("{request} HTTP/1.1\r\nhost: localhost\r\norigin: https://evil.example");
        let answer = ask(address, &head).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
        for (name, value) in HEADERS {
            assert!(
                answer.contains(&format!("{name}: {value}\r\n")),
                "{request}: {name}"
            );
        }
        assert!(!answer.contains("access-control"), "{request}");
        assert!(!answer.contains("set-cookie"), "{request}");
    }
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_refused() {
    let address = served(Played::default()).await;
    for (host, status) in [
        ("host: evil.example", 421),
        ("x: y", 421),
        ("host: gpus.example.com", 200),
        ("host: 127.0.0.1:8082", 200),
    ] {
        let answer = ask(address, &format!("GET /api/fleet HTTP/1.1\r\n{host}")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{host}: {answer}"
        );
        assert_eq!(answer.contains("apiVersion"), status == 200);
    }
}

#[tokio::test]
async fn until_all_is_read_the_page_says_what_is_missing() {
    let played = Played {
        is_missing: true,
        ..Played::default()
    };
    let answer = ask(
        served(played).await,
        "GET /api/fleet HTTP/1.1\r\nhost: localhost",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.ends_with("reads the nodes\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_page_that_waits_hears_of_a_change_and_of_nothing_else() {
    let nodes = Arc::new(AtomicU32::new(1));
    let played = Played {
        nodes: Arc::clone(&nodes),
        is_missing: false,
    };
    let shared = Arc::new(Shared::new(played, vec![]));
    let mut seen = shared.changes.subscribe();
    let looking = {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { look(&shared).await })
    };
    // Given a page that may have been shown before something changed: it hears so at once
    tokio::time::timeout(LOOK * 2, seen.changed())
        .await
        .unwrap()
        .unwrap();
    // And that nothing changes from then on but the time
    let quiet = tokio::time::timeout(LOOK * 5, seen.changed()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // When a node comes
    nodes.store(2, Ordering::Relaxed);
    // Then it is said
    tokio::time::timeout(LOOK * 5, seen.changed())
        .await
        .unwrap()
        .unwrap();
    // And whoever comes when nobody has waited for a while is told at once, as the first one was
    drop(seen);
    tokio::time::sleep(LOOK * 2).await;
    let mut seen = shared.changes.subscribe();
    seen.mark_unchanged();
    tokio::time::timeout(LOOK * 2, seen.changed())
        .await
        .unwrap()
        .unwrap();
    looking.abort();
}

#[tokio::test]
async fn connections_are_bounded() {
    let address = served(Played::default()).await;
    // Given as many as there may be, which say nothing
    let mut silent = vec![];
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // Then a further one is hung up on
    let mut further = TcpStream::connect(address).await.unwrap();
    let mut nothing = [0; 1];
    let read = tokio::time::timeout(PATIENCE / 2, further.read(&mut nothing)).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    // And they are, too, when they have said nothing for long enough
    for mut stream in silent {
        let read = tokio::time::timeout(PATIENCE * 2, stream.read(&mut nothing)).await;
        assert!(matches!(read, Ok(Ok(0 | 1) | Err(_))), "{read:?}");
    }
    let answer = ask(address, "GET /api/fleet HTTP/1.1\r\nhost: localhost").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
