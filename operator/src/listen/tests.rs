//! Given a scale set's queue, then what is heard is acted on before it is acknowledged.

use futures::StreamExt as _;
use futures::channel::mpsc::UnboundedReceiver;
use kube::runtime::reflector::ObjectRef;
use serde_json::{Value, json};

use std::time::{Duration, Instant};

use super::*;
use crate::github::Statistics;
use crate::github::tests::stub::{Reply, Seen, Stub, hang_up, raw, reply};

impl Listener {
    /// One that has heard of these ends of jobs since then, and hears nothing more.
    pub(crate) fn of(opened: Timestamp, completed: &[&str]) -> Self {
        let received = Received {
            heard: Heard {
                opened: Some(opened),
                ..Heard::default()
            },
            completed: completed.iter().map(|name| (*name).to_owned()).collect(),
            jobs: BTreeMap::new(),
            queued: BTreeMap::new(),
            named: BTreeMap::new(),
            gone: None,
        };
        Self {
            client: None,
            set: 7,
            identity: String::new(),
            capacity: watch::Sender::new(1),
            acted_on: watch::Sender::new(0),
            stored: watch::Sender::new(None),
            received: Arc::new(Mutex::new(received)),
            task: tokio::spawn(std::future::pending::<()>()).abort_handle(),
        }
    }

    /// The same, whose scale set was then found to have vanished.
    pub(crate) fn with_vanished(self, at: Timestamp) -> Self {
        lock(&self.received).gone = Some(at);
        self
    }
}

/// An Actions service that says what it is asked, and answers by `script`.
async fn service(
    mut script: impl FnMut(&str, &str) -> Reply + Send + 'static,
) -> (Stub, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (asked, asks) = tokio::sync::mpsc::unbounded_channel();
    let stub = Stub::start(move |seen: &Seen, _| {
        let host = seen.header("host").unwrap().to_owned();
        if seen.path.ends_with("/registration-token") {
            return reply(
                201,
                &json!({"token": "AREG", "expires_at": "2030-01-01T00:00:00Z"}),
            );
        }
        if seen.path.ends_with("/runner-registration") {
            let token = "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln";
            return reply(
                200,
                &json!({"url": format!("https://{host}/t"), "token": token}),
            );
        }
        let path = seen.path.replace("?api-version=6.0-preview", "");
        let path = path.replace("/t/_apis/runtime/runnerscalesets/", "set ");
        let capacity = seen.header("x-scalesetmaxcapacity").unwrap_or_default();
        let line = format!("{} {path} {capacity}", seen.method);
        let answer = script(line.trim(), &host);
        asked.send(line.trim().to_owned()).unwrap();
        answer
    })
    .await;
    (stub, asks)
}

fn session(host: &str) -> Reply {
    reply(
        200,
        &json!({
            "sessionId": "mine", "messageQueueUrl": format!("https://{host}/q?s=mine"),
            "messageQueueAccessToken": "QUEUE", "statistics": {"totalAssignedJobs": 1}
        }),
    )
}

fn message(id: u64, assigned: usize) -> Reply {
    reply(
        200,
        &json!({"messageId": id, "body": "[]", "statistics": {"totalAssignedJobs": assigned}}),
    )
}

fn conflict() -> Reply {
    reply(
        409,
        &json!({"typeName": "RunnerScaleSetSessionConflictException", "message": "taken"}),
    )
}

fn config(
    stub: &Stub,
) -> (
    ListenerConfig,
    UnboundedReceiver<ObjectRef<cudarunner_crds::CudaRunner>>,
) {
    let (waker, woken) = Waker::new();
    waker.listen();
    let config = ListenerConfig {
        client: stub.client("o/r"),
        identity: String::new(),
        set: 7,
        pool: PoolKey {
            namespace: "ci".to_owned(),
            name: "pool".to_owned(),
        },
        waker: Arc::new(waker),
        owner: "me".to_owned(),
    };
    (config, woken)
}

/// One whose session's name is in the status as soon as there is one.
fn start(config: ListenerConfig, capacity: usize, left_over: Option<String>) -> Listener {
    let listener = Listener::start(config, capacity, left_over);
    listener.stored("mine");
    listener
}

fn assigned(listener: &Listener) -> Option<usize> {
    let (listening, _) = listener.snapshot();
    listening.heard.statistics.map(|s: Statistics| s.assigned)
}

#[tokio::test]
async fn no_job_is_assigned_in_a_session_that_the_status_does_not_name() {
    let (stub, mut asks) = service(|line, host| match line {
        "POST set 7/sessions" => session(host),
        _ => raw(202, ""),
    })
    .await;
    let (config, mut woken) = config(&stub);
    // Given a session that has been opened, and another one in the status
    let listener = Listener::start(config, 4, None);
    listener.stored("old");
    woken.next().await.unwrap();
    assert_eq!(asks.recv().await.unwrap(), "POST set 7/sessions");
    // Then nothing is polled
    let soon = Duration::from_millis(300);
    assert!(tokio::time::timeout(soon, asks.recv()).await.is_err());
    // Until the status names it
    listener.stored("mine");
    assert_eq!(asks.recv().await.unwrap(), "GET /q?s=mine 4");
}

#[tokio::test]
async fn a_message_is_acknowledged_once_it_was_acted_on() {
    let (stub, mut asks) = service(|line, host| match line {
        "POST set 7/sessions" => session(host),
        "GET /q?s=mine 4" => message(1, 2),
        "DELETE /q/1?s=mine" => reply(204, &Value::Null),
        // Nothing further: the poll is answered at once here, and would be at the end of its time.
        _ => raw(202, ""),
    })
    .await;
    let (config, mut woken) = config(&stub);
    let listener = start(config, 4, None);

    // What the session says when it is opened is news, and the message is
    woken.next().await.unwrap();
    woken.next().await.unwrap();
    assert_eq!(assigned(&listener), Some(2));
    assert_eq!(asks.recv().await.unwrap(), "POST set 7/sessions");
    assert_eq!(asks.recv().await.unwrap(), "GET /q?s=mine 4");
    assert!(
        asks.try_recv().is_err(),
        "nothing before a reconcile has acted"
    );

    listener.acted_on(1);
    tokio::task::yield_now().await;
    assert!(asks.try_recv().is_err(), "an older one was acted on");
    listener.acted_on(2);
    assert_eq!(asks.recv().await.unwrap(), "DELETE /q/1?s=mine");
    assert_eq!(
        asks.recv().await.unwrap(),
        "GET /q?s=mine&lastMessageId=1 4"
    );
}

#[tokio::test]
async fn a_server_that_answers_each_poll_at_once_is_polled_at_a_pace() {
    // Given a server that answers each poll with the message that was acknowledged, and with other numbers each time
    let mut assigned = 0;
    let (stub, mut asks) = service(move |line, host| match line {
        "POST set 7/sessions" => session(host),
        line if line.starts_with("GET /q") => {
            assigned = (assigned + 1) % 2;
            message(1, assigned)
        }
        _ => reply(204, &Value::Null),
    })
    .await;
    let (config, mut woken) = config(&stub);
    let listener = start(config, 4, None);
    listener.acted_on(u64::MAX);

    // When all is acted on at once, and each time another capacity is told
    let (mut asked, mut capacity) = (0, 0);
    let (more, start) = (20, Instant::now());
    while asked < 2 * (pace::AT_ONCE + more) {
        asks.recv().await.unwrap();
        asked += 1;
        while woken.try_recv().is_ok() {
            capacity = (capacity + 1) % 2;
            listener.advertise(capacity);
        }
    }
    // Then it is asked for polls and acknowledgements at a pace, after so many at once
    let least = pace::APART * (more / 2);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
}

#[tokio::test]
async fn what_a_poll_with_room_does_not_bring_does_not_wait() {
    let (stub, _asks) = service(|line, host| match line {
        "POST set 7/sessions" => reply(
            200,
            &json!({
                "sessionId": "mine", "messageQueueUrl": format!("https://{host}/q?s=mine"),
                "messageQueueAccessToken": "QUEUE",
                "statistics": {"totalAssignedJobs": 1, "totalAvailableJobs": 3}
            }),
        ),
        _ => raw(202, ""),
    })
    .await;
    let (config, mut woken) = config(&stub);
    // Given a scale set that has as many jobs as it is offered, while others wait
    let listener = start(config, 1, None);
    let heard = || listener.snapshot().0.heard;
    while !heard().is_settled {
        woken.next().await.unwrap();
    }
    // Then a poll that brings nothing says nothing of them
    assert!(!heard().is_quiet);
    // When it is offered more, and nothing comes, then they do not wait for it any more
    listener.advertise(2);
    while !heard().is_quiet {
        woken.next().await.unwrap();
    }
}

#[tokio::test]
async fn a_session_that_a_process_before_left_open_is_ended() {
    let mut is_open = true;
    let (stub, mut asks) = service(move |line, host| match line {
        "POST set 7/sessions" if is_open => conflict(),
        "POST set 7/sessions" => session(host),
        "DELETE set 7/sessions/old" => {
            is_open = false;
            reply(204, &Value::Null)
        }
        _ => raw(202, ""),
    })
    .await;
    let (config, mut woken) = config(&stub);
    let listener = start(config, 4, Some("old".to_owned()));
    woken.next().await.unwrap();
    assert_eq!(assigned(&listener), Some(1));
    for line in [
        "POST set 7/sessions",
        "DELETE set 7/sessions/old",
        "POST set 7/sessions",
    ] {
        assert_eq!(asks.recv().await.unwrap(), line);
    }
}

#[tokio::test]
async fn a_session_of_somebody_else_is_stood_by_for_and_said() {
    let (stub, mut asks) = service(|_, _| conflict()).await;
    let (config, mut woken) = config(&stub);
    let listener = start(config, 4, None);
    woken.next().await.unwrap();
    let (listening, _) = listener.snapshot();
    assert_eq!(listening.heard.trouble.unwrap().reason, "SessionHeld");
    for _ in 0..3 {
        assert_eq!(asks.recv().await.unwrap(), "POST set 7/sessions");
    }
}

#[tokio::test]
async fn a_scale_set_that_has_vanished_ends_the_listening() {
    let gone = || {
        reply(
            404,
            &json!({"typeName": "RunnerScaleSetNotFoundException", "message": "no"}),
        )
    };
    let mut opened = 0;
    let (stub, mut asks) = service(move |line, host| match line {
        "POST set 7/sessions" => {
            opened += 1;
            if opened < 3 { session(host) } else { gone() }
        }
        // What is not found at a poll is the session, to begin with
        _ => gone(),
    })
    .await;
    let (config, mut woken) = config(&stub);
    let listener = start(config, 4, None);
    while listener.gone().is_none() {
        woken.next().await.unwrap();
    }
    for line in [
        "POST set 7/sessions",
        "GET /q?s=mine 4",
        "POST set 7/sessions",
        "GET /q?s=mine 4",
        "POST set 7/sessions",
    ] {
        assert_eq!(asks.recv().await.unwrap(), line);
    }
}

#[tokio::test]
async fn what_passes_is_waited_for_in_the_same_session() {
    let failures = [
        || reply(503, &Value::Null),
        || reply(429, &Value::Null).with("retry-after", "1"),
        hang_up,
    ];
    let mut failures = failures.into_iter();
    let (stub, mut asks) = service(move |line, host| match line {
        "POST set 7/sessions" => session(host),
        _ => failures.next().map_or_else(|| message(1, 2), |fail| fail()),
    })
    .await;
    let (config, _woken) = config(&stub);
    let listener = start(config, 4, None);
    assert_eq!(asks.recv().await.unwrap(), "POST set 7/sessions");
    for _ in 0..4 {
        assert_eq!(asks.recv().await.unwrap(), "GET /q?s=mine 4");
    }
    while assigned(&listener) != Some(2) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A message that offers a job.
fn offer() -> Reply {
    let jobs = json!([{"messageType": "JobAvailable", "runnerRequestId": 5}]).to_string();
    reply(
        200,
        &json!({"messageId": 1, "body": jobs, "statistics": null}),
    )
}

/// What is asked after a message that offers a job, when `answer` is the answer to what acquires it, and the first
/// acknowledgement meets a token that has run out.
async fn asked_after_an_offer(mut answer: impl FnMut() -> Reply + Send + 'static) -> Vec<String> {
    let mut is_old = true;
    let (stub, mut asks) = service(move |line, host| match line {
        "POST set 7/sessions" | "PATCH set 7/sessions/mine" => session(host),
        "GET /q?s=mine 4" => offer(),
        "POST set 7/acquirejobs" => answer(),
        "DELETE /q/1?s=mine" if std::mem::take(&mut is_old) => raw(401, ""),
        "DELETE /q/1?s=mine" => reply(204, &Value::Null),
        _ => raw(202, ""),
    })
    .await;
    let (config, mut woken) = config(&stub);
    let listener = start(config, 4, None);
    let mut asked = vec![];
    loop {
        tokio::select! {
            _ = woken.next() => listener.acted_on(listener.snapshot().0.heard.number),
            line = asks.recv() => {
                let line = line.unwrap();
                if line.contains("lastMessageId=1") {
                    // What is null in a message says nothing
                    assert_eq!(assigned(&listener), Some(1));
                    return asked;
                }
                asked.push(line);
            }
        }
    }
}

#[tokio::test]
async fn a_job_that_cannot_be_acquired_does_not_block_the_queue() {
    let first = [
        "POST set 7/sessions",
        "GET /q?s=mine 4",
        "POST set 7/acquirejobs",
    ];
    let end = [
        "DELETE /q/1?s=mine",
        "PATCH set 7/sessions/mine",
        "DELETE /q/1?s=mine",
    ];
    for status in [400, 403, 404, 409, 422] {
        let asked = asked_after_an_offer(move || reply(status, &json!({"message": "taken"})));
        assert_eq!(asked.await, [first, end].concat(), "{status}");
    }
}

#[tokio::test]
async fn a_session_whose_queue_is_not_named_is_closed() {
    let mut is_bad = true;
    let (stub, mut asks) = service(move |line, host| match line {
        "POST set 7/sessions" if std::mem::take(&mut is_bad) => {
            reply(200, &json!({"sessionId": "bad", "messageQueueUrl": null}))
        }
        "POST set 7/sessions" => session(host),
        line if line.starts_with("DELETE") => reply(204, &Value::Null),
        _ => raw(202, ""),
    })
    .await;
    let (config, _woken) = config(&stub);
    let _listener = start(config, 4, None);
    for line in [
        "POST set 7/sessions",
        "DELETE set 7/sessions/bad",
        "POST set 7/sessions",
    ] {
        assert_eq!(asks.recv().await.unwrap(), line);
    }
}

#[tokio::test]
async fn where_a_set_stands_is_what_it_or_a_renewed_session_says() {
    // Null is not the same as no jobs
    for (said, expected) in [
        (json!({"statistics": null}), None),
        (json!({"statistics": {"totalAssignedJobs": null}}), None),
        (json!({"statistics": {"totalAssignedJobs": 3}}), Some(3)),
        (
            json!({"statistics": null, "runnerScaleSet": {"statistics": {"totalAssignedJobs": 4}}}),
            Some(4),
        ),
    ] {
        let mut has_run_out = true;
        let (stub, mut asks) = service(move |line, host| {
            let mut session = json!({
                "sessionId": "mine", "messageQueueUrl": format!("https://{host}/q?s=mine"),
                "messageQueueAccessToken": "QUEUE"
            });
            match line {
                "POST set 7/sessions" => reply(200, &session),
                "PATCH set 7/sessions/mine" => {
                    for (key, value) in said.as_object().unwrap() {
                        session[key] = value.clone();
                    }
                    reply(200, &session)
                }
                _ if std::mem::take(&mut has_run_out) => raw(401, ""),
                _ => raw(202, ""),
            }
        })
        .await;
        let (config, _woken) = config(&stub);
        let listener = start(config, 4, None);
        for _ in 0..4 {
            asks.recv().await.unwrap();
        }
        assert_eq!(assigned(&listener), expected);
    }
}

#[tokio::test]
async fn a_change_of_the_capacity_is_told_at_once() {
    let (stub, mut asks) = service(|line, host| match line {
        "POST set 7/sessions" => session(host),
        _ => raw(202, ""),
    })
    .await;
    let (config, _woken) = config(&stub);
    let listener = start(config, 4, None);
    let mut until = async |wanted: &str| {
        while asks.recv().await.unwrap() != wanted {}
    };
    until("GET /q?s=mine 4").await;
    listener.advertise(2);
    until("GET /q?s=mine 2").await;
}

#[tokio::test]
async fn a_token_that_has_run_out_is_renewed() {
    let mut has_run_out = true;
    let (stub, mut asks) = service(move |line, host| match line {
        "POST set 7/sessions" => session(host),
        "PATCH set 7/sessions/mine" => {
            has_run_out = false;
            session(host)
        }
        _ if has_run_out => raw(401, ""),
        _ => raw(202, ""),
    })
    .await;
    let (config, _woken) = config(&stub);
    let _listener = start(config, 4, None);
    for line in [
        "POST set 7/sessions",
        "GET /q?s=mine 4",
        "PATCH set 7/sessions/mine",
        "GET /q?s=mine 4",
    ] {
        assert_eq!(asks.recv().await.unwrap(), line);
    }
}

#[tokio::test]
async fn what_fails_after_each_message_is_said_and_not_hammered() {
    let (stub, mut asks) = service(|line, host| match line {
        "POST set 7/sessions" => session(host),
        "GET /q?s=mine 4" => message(1, 2),
        line if line.starts_with("DELETE set 7") => reply(204, &Value::Null),
        _ => reply(503, &json!({"message": "down"})),
    })
    .await;
    let (config, mut woken) = config(&stub);
    let listener = start(config, 4, None);
    let trouble = async {
        loop {
            woken.next().await.unwrap();
            let (listening, _) = listener.snapshot();
            listener.acted_on(listening.heard.number);
            if let Some(trouble) = listening.heard.trouble {
                return trouble;
            }
        }
    };
    assert_eq!(trouble.await.reason, "ScaleSetUnavailable");
    let mut acknowledged = 0;
    while let Ok(line) = asks.try_recv() {
        acknowledged += usize::from(line.starts_with("DELETE /q/1"));
    }
    assert_eq!(acknowledged, 3, "each pause is longer");
}

/// A service that has a session of this pool's open whose name nobody knows, until its scale set is made anew; the set
/// says this of itself. What is asked until the listener has made up its mind.
async fn when_a_session_is_lost(first: fn() -> Reply, stands: Value) -> (bool, Vec<String>) {
    let mut openings = 0;
    let (stub, mut asks) = service(move |line, _| match line {
        "POST set 7/sessions" => {
            openings += 1;
            let words = "The runner scale set pool already has an active session for owner me.";
            if openings == 1 {
                return first();
            }
            reply(
                409,
                &json!({"typeName": "RunnerScaleSetSessionConflict", "message": words}),
            )
        }
        "GET set 7" => reply(200, &json!({"id": 7, "name": "s", "statistics": stands})),
        _ => raw(202, ""),
    })
    .await;
    let (config, mut woken) = config(&stub);
    let listener = start(config, 4, None);
    let first_word = tokio::time::timeout(Duration::from_secs(20), woken.next());
    first_word.await.unwrap().unwrap();
    let mut asked = vec![];
    while let Ok(line) = asks.try_recv() {
        asked.push(line);
    }
    (listener.snapshot().0.heard.is_lost, asked)
}

#[tokio::test]
async fn a_session_of_ours_whose_name_never_arrived_is_known_by_its_owner() {
    let nothing = json!({"totalAvailableJobs": 3, "totalAssignedJobs": 0, "totalRunningJobs": 0,
        "totalAcquiredJobs": 0, "totalRegisteredRunners": 0});
    // Given an answer that was lost, then the next try finds it
    let (is_lost, asked) = when_a_session_is_lost(hang_up, nothing.clone()).await;
    assert!(is_lost);
    assert_eq!(
        asked,
        ["POST set 7/sessions", "POST set 7/sessions", "GET set 7"]
    );

    // Given a set that has something to do, or does not say all of it, then it is left alone
    let numbers = [
        "totalAssignedJobs",
        "totalRunningJobs",
        "totalAcquiredJobs",
        "totalRegisteredRunners",
    ];
    let cases = numbers
        .into_iter()
        .flat_map(|number| [json!(1), Value::Null].map(|said| (number, said)));
    let cases = cases.map(async |(number, said)| {
        let mut stands = nothing.clone();
        stands[number] = said;
        let (is_lost, _) = when_a_session_is_lost(conflict, stands).await;
        assert!(!is_lost, "{number}");
    });
    futures::future::join_all(cases).await;
}

#[test]
fn the_oldest_job_that_waits_is_known_as_long_as_it_waits() {
    let at = |second| Timestamp::constant(second, 0);
    let mut received = Received::default();
    let mut hears = |(available, assigned, running), news: &[(i64, Queued)]| {
        received.heard.statistics = Some(Statistics {
            available,
            assigned,
            running,
        });
        received.queue(news.to_vec(), 3);
        assert!(received.queued.len() <= 3);
        received.heard.oldest
    };
    let first = hears(
        (2, 0, 0),
        &[
            (1, Queued::Available(at(10))),
            (2, Queued::Available(at(20))),
        ],
    );
    assert_eq!(first, Some(at(10)));
    // The first is ours, then runs; the other one is somebody else's
    assert_eq!(
        hears((1, 1, 0), &[(1, Queued::Assigned(at(10)))]),
        Some(at(10))
    );
    assert_eq!(hears((1, 1, 1), &[(1, Queued::Over)]), Some(at(20)));
    assert_eq!(hears((0, 1, 1), &[]), None);
    // Where a message was missed, the numbers say that nobody waits
    assert_eq!(
        hears((0, 2, 1), &[(3, Queued::Assigned(at(30)))]),
        Some(at(30))
    );
    assert_eq!(hears((0, 2, 2), &[]), None);
    // And of many only some are remembered
    let many: Vec<_> = (0..10).map(|id| (id, Queued::Available(at(id)))).collect();
    assert_eq!(hears((10, 0, 0), &many), Some(at(0)));
}

#[test]
fn jobs_that_wait_are_known_by_name_until_they_run_and_as_far_as_there_is_room() {
    let waits = Queued::Available(Timestamp::constant(10, 0));
    let job_of = |name: &str| QueuedJob {
        name: name.to_owned(),
        ..QueuedJob::default()
    };
    let mut received = Received::default();
    received.queue(vec![(1, waits), (2, waits)], 20);
    // One of which nobody said that it waits is passed over
    received.name(vec![
        (1, job_of("train")),
        (2, job_of("build")),
        (3, job_of("lint")),
    ]);
    let listed = |received: &Received| {
        let all = received.named.values().map(|job| job.name.clone());
        all.collect::<Vec<_>>()
    };
    assert_eq!(listed(&received), ["train", "build"]);
    received.queue(vec![(1, Queued::Over)], 20);
    received.name(vec![]);
    assert_eq!(listed(&received), ["build"]);
    // Given texts of absurd length, no more is kept than there is room for
    for id in 4..20 {
        received.queue(vec![(id, waits)], 20);
        received.name(vec![(id, job_of(&"x".repeat(9_000)))]);
    }
    let kept: usize = received.named.values().map(QueuedJob::size).sum();
    assert!((120_000..=MOST_OF_NAMED).contains(&kept), "{kept}");
    assert_eq!(received.queued.len(), 17);
}
