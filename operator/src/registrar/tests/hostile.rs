//! Those who mean no good: they get nothing, learn nothing, and hold nobody up.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gate_report::Report;
use gate_report::wire::{REGISTRATIONS, REPORTS, TICKETS};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::kubernetes::token;
use super::stub::{HONEST, JIT, body, known_as, limits, registrar, report};
use crate::registrar::{Decision, admit};

#[tokio::test]
async fn a_pod_is_reviewed_once() {
    let registrar = registrar(limits(), None).await;
    // Given a pod that asks for its ticket again and again, and then goes on with it
    for _ in 0..2 {
        assert_eq!(registrar.show("good").await.0, 200);
    }
    assert_eq!(registrar.ask("good").await.0, 200);
    assert_eq!(registrar.reviews.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_no_tls_ends() {
    let registrar = registrar(limits(), None).await;
    let mut stream = registrar.reach(HONEST).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    ends(&mut stream).await;
}

/// Waits until the other side has hung up.
async fn ends(stream: &mut (impl AsyncRead + Unpin)) {
    let rest = tokio::time::timeout(Duration::from_secs(10), async {
        // A reset is an end, too.
        let _ = stream.read_to_end(&mut vec![]).await;
    });
    rest.await.expect("the connection is still open");
}

#[tokio::test]
async fn who_says_nothing_is_hung_up_on() {
    let registrar = registrar(limits(), None).await;
    // Given one who says nothing before the handshake, one after it, and one whose request has no end
    let mut before = registrar.reach(HONEST).await.unwrap();
    let bundle = registrar.ca.bundle();
    let mut after = registrar.connect(&bundle, HONEST).await.unwrap();
    let mut long = registrar.connect(&bundle, HONEST).await.unwrap();
    let head = format!("POST {REPORTS} HTTP/1.1\r\nx: {}", "x".repeat(100_000));
    let _ = long.write_all(head.as_bytes()).await;
    // Then each is hung up on
    tokio::join!(ends(&mut before), ends(&mut after), ends(&mut long));
}

#[tokio::test]
async fn hostile_neighbours_do_not_hold_a_gate_up() {
    let registrar = Arc::new(registrar(limits(), None).await);
    // Given one who holds as many silent connections as it gets, and opens another for each that is hung up on
    let silent = tokio::spawn({
        let registrar = Arc::clone(&registrar);
        async move {
            let mut held = std::collections::VecDeque::new();
            loop {
                held.extend(registrar.reach([127, 0, 0, 2]).await);
                if held.len() > 500 {
                    held.pop_front();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    // And one who shows token after token that look like a runner's
    let flood = |from: [u8; 4]| {
        let registrar = Arc::clone(&registrar);
        tokio::spawn(async move {
            for number in 0.. {
                let token = token(&format!("guess-{number}"), "pool-a", "u-a");
                let _ = registrar.post_from(from, TICKETS, Some(&token), "").await;
            }
        })
    };
    let floods = [127, 127, 127, 127].map(|first| flood([first, 0, 0, 3]));
    let begun = async {
        while registrar.reviews.load(Ordering::SeqCst) < 4 {
            tokio::task::yield_now().await;
        }
    };
    let begun = tokio::time::timeout(Duration::from_secs(20), begun);
    begun.await.expect("nobody comes in");
    // When a pod comes for its ticket, and its gate, again and again for a while
    let started = Instant::now();
    assert_eq!(registrar.show("good").await.0, 200);
    let mut times = vec![];
    for _ in 0..4 {
        let asked = Instant::now();
        let passed = body(&report("pool-a"));
        assert_eq!(registrar.bring("pool-a", passed).await.status(), 200);
        times.push(asked.elapsed());
    }
    // Then it is served at once
    // Well before the silent ones are hung up on; one of them a machine may hold up that has other things to do.
    times.sort();
    assert!(times[2] < Duration::from_secs(3), "{times:?}");
    // And the API server was hardly asked: a burst, and one a second
    let most = limits().door.refusals.burst as usize + 2 * floods.len();
    let reviews = registrar.reviews.load(Ordering::SeqCst);
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    assert!(reviews <= most + seconds, "{reviews} reviews");
    for task in floods.into_iter().chain([silent]) {
        task.abort();
    }
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_no_ticket_and_no_registration_is_logged() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let registrar = registrar(limits(), None).await;
    registrar.ask("good").await;
    // A test beside this one may have met the line when nobody wanted it, and registered it after this subscriber.
    tracing::callsite::rebuild_interest_cache();
    for _ in 0..30 {
        registrar.show("forged-token").await;
    }
    registrar.show("unsigned").await;
    let (key, ticket) = (registrar.ca.ticket_key(), registrar.ticket_of("pool-a"));
    let log = String::from_utf8_lossy(&written.0.lock().unwrap()).into_owned();
    // Those who are sent away are told of, now and then, and in short
    let reported = log.matches("the registrar does not know who asks").count();
    assert!((1..25).contains(&reported), "reported {reported} times");
    let (key, token) = (key.text().expose_secret(), known_as("good"));
    for secret in [JIT, "forged-token", &token, &ticket, key] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn words_of_others_are_cut_before_they_are_passed_on() {
    let registrar = registrar(limits(), None).await;
    let answer = registrar
        .post(TICKETS, Some(&known_as("unsigned")), "")
        .await;
    let said: Value = serde_json::from_slice(answer.body()).unwrap();
    let message = said["message"].as_str().unwrap();
    assert!(
        message.contains("unknown") && message.chars().count() <= 2000,
        "{message}"
    );
    assert!(!message.contains(char::is_control), "{message:?}");
}

/// One line of a head that says what it should not, or anything at all.
fn line() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        "(Content-Length|Transfer-Encoding|Expect|Authorization|Host): \\PC{0,40}\r\n"
            .prop_map(String::into_bytes),
        Just(format!("POST {REGISTRATIONS} HTTP/1.1\r\n").into_bytes()),
        Just(b"\r\n\r\n".to_vec()),
        Just(format!("Authorization: Bearer {}\r\n", known_as("good")).into_bytes()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_a_request_is_it_ends_and_the_next_is_answered(
        requests in proptest::collection::vec((0..3_usize, proptest::collection::vec(line(), 0..6)), 6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let registrar = registrar(limits(), None).await;
            let bundle = registrar.ca.bundle();
            for (path, request) in requests {
                let path = [TICKETS, REPORTS, REGISTRATIONS][path];
                let mut stream = registrar.connect(&bundle, HONEST).await?;
                let mut bytes = format!("POST {path} HTTP/1.1\r\n").into_bytes();
                bytes.extend(request.concat());
                // It may be hung up on in the middle.
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                ends(&mut stream).await;
            }
            let passed = body(&report("pool-a"));
            prop_assert_eq!(registrar.bring("pool-a", passed).await.status(), 200);
            Ok::<(), TestCaseError>(())
        })?;
    }
}

/// A good report with one value in it replaced.
fn changed(report: &Value, at: usize, with: &Value) -> Value {
    fn places(value: &mut Value, left: &mut usize, with: &Value) {
        if *left == 0 {
            *value = with.clone();
        }
        *left = left.wrapping_sub(1);
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| places(item, left, with)),
            Value::Object(fields) => fields
                .values_mut()
                .for_each(|item| places(item, left, with)),
            _ => {}
        }
    }
    let mut report = report.clone();
    places(&mut report, &mut { at }, with);
    report
}

proptest! {
    #[test]
    fn whatever_a_report_holds_it_is_judged_in_a_few_plain_words(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        at in 0..40_usize,
        text in "\\PC{0,50}|[\u{0}-\u{1f}\u{7f}-\u{9f}]{1,20}",
        number in any::<f64>(),
        times in 1..2000_usize,
    ) {
        let policy = super::admit::policy();
        let judge = |bytes: &[u8]| {
            let Ok(report) = serde_json::from_slice::<Report>(bytes) else {
                return Ok(());
            };
            if let Decision::Refuse { message, .. } = admit(&report, &policy) {
                prop_assert!(message.chars().count() <= 2500, "{} characters", message.len());
                prop_assert!(!message.contains(char::is_control), "{:?}", message);
            }
            Ok(())
        };
        judge(&bytes)?;
        let good = serde_json::to_value(super::admit::report()).unwrap();
        let long = Value::from(text.repeat(times));
        for with in [Value::Null, Value::from(number), Value::from(text), long] {
            judge(changed(&good, at, &with).to_string().as_bytes())?;
        }
    }
}
