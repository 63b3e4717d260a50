use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use jiff::SignedDuration;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{advance, sleep};
use tower::BoxError;

use super::*;

/// As `RENEWAL` in `run.rs`: a request that is not answered by then has failed.
const ANSWERED: Duration = Duration::from_secs(5);

fn operator() -> OperatorStatus {
    OperatorStatus {
        namespace: "system".to_owned(),
        name: LEASE.to_owned(),
    }
}

/// An API server that has one lease.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lease: Option<Value>,
    version: u64,
    /// What was asked, in order.
    asked: Vec<Method>,
}

/// What a replica's requests meet on their way.
#[derive(Clone, Copy)]
struct Way {
    seed: u64,
    /// So far the replica's clock is ahead.
    ahead: SignedDuration,
    /// Of a hundred requests, so many are late or lost.
    troubled: u64,
}

const GOOD: Way = Way {
    seed: 1,
    ahead: SignedDuration::ZERO,
    troubled: 0,
};

impl Server {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn holder(&self) -> Option<String> {
        let state = self.state();
        let holder = state.lease.as_ref()?["spec"]["holderIdentity"].as_str();
        holder.map(str::to_owned)
    }

    /// A client whose requests go that way.
    fn client(&self, way: Way) -> Client {
        let server = self.clone();
        let number = Arc::new(Mutex::new(way.seed));
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            let draw = || {
                let mut number = number.lock().unwrap();
                *number = number
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                *number >> 33
            };
            let is_troubled = draw() % 100 < way.troubled;
            let late = || Duration::from_millis(if is_troubled { draw() % 6_000 } else { 10 });
            let (there, back) = (late(), late());
            async move {
                // What is sent arrives, also when nobody waits for the answer any more.
                let answer = tokio::spawn(async move {
                    sleep(there).await;
                    let (method, path) =
                        (request.method().clone(), request.uri().path().to_owned());
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let answer = server.answer(&method, &path, &body, way.ahead);
                    sleep(back).await;
                    answer
                });
                let answer = tokio::time::timeout(ANSWERED, answer).await?;
                Ok::<_, BoxError>(answer?)
            }
        });
        Client::new(service, "system")
    }

    fn election(&self, identity: &str, way: Way) -> (Election, Fence) {
        let election = Election::new(self.client(way), &operator(), identity);
        let fence = election.fence();
        (election, fence)
    }

    fn answer(
        &self,
        method: &Method,
        path: &str,
        body: &[u8],
        ahead: SignedDuration,
    ) -> Response<Body> {
        let mut state = self.state();
        state.asked.push(method.clone());
        if path.ends_with("/pods") {
            return said(201, &json!({"metadata": {"name": "a"}}));
        }
        let there = state
            .lease
            .as_ref()
            .map(|lease| &lease["metadata"]["resourceVersion"]);
        if *method == Method::GET {
            return state
                .lease
                .as_ref()
                .map_or_else(|| refused(404, "NotFound"), |l| said(200, l));
        }
        let mut lease: Value = serde_json::from_slice(body).unwrap();
        match there {
            None if *method == Method::PUT => return refused(404, "NotFound"),
            Some(_) if *method == Method::POST => return refused(409, "AlreadyExists"),
            Some(version) if *version != lease["metadata"]["resourceVersion"] => {
                return refused(409, "Conflict");
            }
            _ => {}
        }
        if let Some(renewed) = lease["spec"]["renewTime"].as_str() {
            let renewed: Timestamp = renewed.parse().unwrap();
            lease["spec"]["renewTime"] = json!(MicroTime(renewed + ahead));
        }
        state.version += 1;
        lease["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.lease = Some(lease.clone());
        said(200, &lease)
    }
}

fn said(status: u16, body: &Value) -> Response<Body> {
    let body = Body::from(body.to_string().into_bytes());
    Response::builder().status(status).body(body).unwrap()
}

fn refused(code: u16, reason: &str) -> Response<Body> {
    said(
        code,
        &json!({"kind": "Status", "status": "Failure", "reason": reason, "message": "no", "code": code}),
    )
}

fn is_open(fence: &Fence) -> bool {
    fence.check().is_ok()
}

/// A replica that begins again when it has lost the lease.
async fn replica(mut election: Election) {
    loop {
        election.win().await;
        election.keep().await;
        election.fence.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_found_by_its_label_and_says_which_pools_are_served() {
    let server = Server::default();
    let (election, _) = server.election("one", GOOD);
    let mut election = election.serving(Some("shard=a".to_owned()), &["ml".to_owned()]);
    election.win().await;
    let lease = server.state().lease.clone().unwrap();
    assert_eq!(lease["metadata"]["labels"], json!({LABEL: LEASE}));
    assert_eq!(
        lease["metadata"]["annotations"],
        json!({SELECTOR: "shard=a", NAMESPACES: "ml"})
    );
}

#[tokio::test(start_paused = true)]
async fn no_two_replicas_may_write_at_once_whatever_their_requests_and_clocks_do() {
    for seed in 0..12 {
        // Given replicas whose clocks are far apart, and whose requests are late, lost, or overtake each other
        let server = Server::default();
        let replicas: Vec<_> = [-15, 0, 15]
            .into_iter()
            .zip(0..)
            .map(|(ahead, number)| {
                let way = Way {
                    seed: seed * 3 + number,
                    ahead: SignedDuration::from_secs(ahead),
                    troubled: [0, 30, 95][(seed % 3) as usize],
                };
                let (election, fence) = server.election(&format!("replica-{number}"), way);
                (tokio::spawn(replica(election)), fence)
            })
            .collect();

        // When they run for ten minutes, in which some lose the lease and start again
        let mut led = 0;
        for _ in 0..6_000 {
            sleep(Duration::from_millis(100)).await;
            let open = replicas.iter().filter(|(_, fence)| is_open(fence)).count();
            // Then never may two of them write
            assert!(open <= 1, "{open} of them at once, with the seed {seed}");
            led += open;
        }
        // ... and there is one that may as long as requests arrive at all
        let least = [5_900, 5_000, 300][(seed % 3) as usize];
        assert!(led >= least, "{led} of 6000 with the seed {seed}");
        for (task, _) in replicas {
            task.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_one_request() {
    let server = Server::default();
    let (mut election, fence) = server.election("one", GOOD);
    election.win().await;
    let acquired = server.state().lease.clone().unwrap()["spec"]["acquireTime"].clone();
    let kept = tokio::time::timeout(Duration::from_secs(45), election.keep()).await;
    assert!(kept.is_err() && is_open(&fence));
    let state = server.state();
    let put = Method::PUT;
    assert_eq!(
        state.asked,
        [
            Method::GET,
            Method::POST,
            put.clone(),
            put.clone(),
            put.clone(),
            put
        ]
    );
    let spec = &state.lease.as_ref().unwrap()["spec"];
    assert_eq!(
        (&spec["acquireTime"], &spec["leaseTransitions"]),
        (&acquired, &json!(0))
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_deleted_is_its_holders_who_makes_it_anew() {
    // Given a holder, and one that stands by
    let server = Server::default();
    let (mut holder, fence) = server.election("holder", GOOD);
    holder.win().await;
    let (other, others) = server.election("other", GOOD);
    let standing = tokio::spawn(replica(other));
    let holding = tokio::spawn(async move { holder.keep().await });
    sleep(Duration::from_secs(5)).await;
    // When the object is deleted
    server.state().lease = None;
    sleep(Duration::from_secs(20)).await;
    // Then nobody else has taken it
    assert_eq!(server.holder().as_deref(), Some("holder"));
    assert!(is_open(&fence) && !is_open(&others));
    // ... and when nobody makes it anew, then another has it after its time
    holding.abort();
    server.state().lease = None;
    sleep(Duration::from_secs(35)).await;
    assert!(is_open(&others) && !is_open(&fence));
    standing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_back_when_the_writes_under_way_are_answered() {
    for (slow, is_given_back) in [(3, true), (20, false)] {
        // Given a leader with a write under way for which nobody waits any more, and one that stands by
        let server = Server::default();
        let (mut election, fence) = server.election("one", GOOD);
        election.win().await;
        let answered = Arc::new(Notify::new());
        let reported = Arc::clone(&answered);
        let slow = Duration::from_secs(slow);
        let service = tower::service_fn(move |_: Request<Body>| {
            let reported = Arc::clone(&reported);
            async move {
                sleep(slow).await;
                reported.notify_one();
                Ok::<_, BoxError>(said(200, &json!({})))
            }
        });
        let client = Client::new(service, "ci");
        let pod = || Request::post("/pods").body(Body::empty()).unwrap();
        let write = fence.send(client.clone(), pod());
        let _ = tokio::time::timeout(Duration::from_secs(1), write).await;

        // When it ends
        election.release().await;

        // Then no write begins, and the lease is free only if nothing of it is under way
        assert!(fence.send(client, pod()).await.is_err());
        let is_answered = tokio::time::timeout(Duration::ZERO, answered.notified()).await;
        assert_eq!(is_answered.is_ok(), is_given_back);
        assert_eq!(server.holder().is_none(), is_given_back);
        let (mut other, _) = server.election("other", GOOD);
        let wins = tokio::time::timeout(Duration::from_secs(3), other.win()).await;
        assert_eq!(wins.is_ok(), is_given_back);
        if is_given_back {
            let state = server.state();
            assert_eq!(state.lease.as_ref().unwrap()["spec"]["leaseTransitions"], 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_anothers_is_not_given_back() {
    let server = Server::default();
    let (mut election, fence) = server.election("one", GOOD);
    election.win().await;
    advance(DURATION).await;
    let (mut other, _) = server.election("one-too", GOOD);
    other.win().await;
    assert!(!is_open(&fence));
    election.release().await;
    assert_eq!(server.holder().as_deref(), Some("one-too"));
}

#[tokio::test(start_paused = true)]
async fn writing_ends_before_the_lease_can_be_anothers() {
    // Given a lease that was had with a request that began two seconds ago
    let (server, fence) = (Server::default(), Fence::closed());
    let client = server.client(GOOD);
    let write = async || {
        let request = Request::post("/pods").body(Body::empty()).unwrap();
        fence.send(client.clone(), request).await.is_ok()
    };
    assert!(!write().await);
    let began = Instant::now();
    advance(Duration::from_secs(2)).await;
    fence.renewed(began);

    // Then this replica may write until five seconds before its end, counted from when the renewal began
    advance(Duration::from_secs(22)).await;
    assert!(write().await);
    advance(Duration::from_secs(1)).await;
    assert!(!write().await);
    let read = Request::get("/api/pods").body(Body::empty()).unwrap();
    assert!(fence.send(client.clone(), read).await.is_ok());
    fence.closes().await;

    // And an older renewal that is answered late takes nothing away
    fence.renewed(Instant::now());
    fence.renewed(began);
    assert!(write().await);
    let started = Instant::now();
    fence.closes().await;
    assert!(started.elapsed() > Duration::from_secs(24));
}

#[test]
fn a_lease_is_free_when_nobody_renews_it_whatever_its_holders_clock_says() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let held = |renewed: i64| LeaseSpec {
        holder_identity: Some("other".to_owned()),
        lease_duration_seconds: Some(30),
        renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
        ..LeaseSpec::default()
    };
    // Given a holder whose clock is a day behind or ahead, and who renews, then the lease is its own
    let mut seen = Seen::default();
    let day = 86_400;
    for (time, renewed) in [(0, -day), (15, day), (30, 0), (59, 0)] {
        assert!(
            !seen.is_free(Some(&held(renewed)), "me", at(time)),
            "{time}"
        );
    }
    // When it was not renewed for its time by our clock, then it is free
    assert!(seen.is_free(Some(&held(0)), "me", at(60)));

    // One that nobody has, that was ours, or that is not there, is free at once
    for holder in [None, Some(""), Some("me")] {
        let spec = LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            ..held(0)
        };
        assert!(
            Seen::default().is_free(Some(&spec), "me", at(0)),
            "{holder:?}"
        );
    }
    assert!(Seen::default().is_free(None, "me", at(0)));
}

#[tokio::test]
async fn without_an_election_nothing_is_refused() {
    let client = Server::default().client(GOOD);
    let request = Request::post("/pods").body(Body::empty()).unwrap();
    assert!(Fence::default().send(client, request).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_operator_without_an_election_has_its_lease_until_it_ends_or_somebody_deletes_it() {
    let server = Server::default();
    let seen = |other: &mut OtherLease| {
        let lease = server.state().lease.clone();
        let lease = lease.map(|lease| serde_json::from_value::<Lease>(lease).unwrap());
        other.see(lease.as_ref())
    };
    // Given the lease of one that ended without a word
    let before = server.election("before", GOOD).0;
    before.alone().win().await;

    // When the next one starts, then it has the lease at once, and acts all the same
    let mut own = server.election("own", GOOD).0.alone();
    let fence = own.fence();
    assert!(is_open(&fence));
    let holding = tokio::spawn(async move {
        let held = tokio::time::timeout(Duration::from_hours(2), own.hold()).await;
        (held.is_err(), own)
    });

    // Then other operators see that it is there for as long as they look, and a replica with an election waits
    let mut other = OtherLease::default();
    let (mut next, _) = server.election("next", GOOD);
    let standing = tokio::time::timeout(Duration::from_hours(2), next.win());
    let looking = async {
        sleep(Duration::from_secs(1)).await;
        for _ in 0..1400 {
            assert_eq!(seen(&mut other), (true, true));
            sleep(Duration::from_secs(5)).await;
        }
    };
    let (stood, ()) = tokio::join!(standing, looking);
    assert!(stood.is_err() && is_open(&fence));
    assert_eq!(server.holder().as_deref(), Some("own"));
    // Its renewals are few: two hours and twelve of them
    let state = server.state().asked.clone();
    let puts = state.iter().filter(|method| **method == Method::PUT);
    assert_eq!(puts.count(), 12);
    let (has_held, mut own) = holding.await.unwrap();
    assert!(has_held);

    // When it is gone with its lease, then that is seen half a minute later
    let there = server.state().lease.take();
    assert_eq!(seen(&mut other), (true, true));
    advance(DURATION).await;
    assert_eq!(seen(&mut other), (false, false));

    // When it ends, then the lease has no holder, whoever has put a label on it meanwhile, and the next replica may come for
    // half a minute
    let mut labelled = there.unwrap();
    labelled["metadata"]["resourceVersion"] = json!("of another");
    server.state().lease = Some(labelled);
    assert_eq!(seen(&mut other), (true, true));
    own.release().await;
    assert_eq!(seen(&mut other), (false, true));
    advance(DURATION).await;
    assert_eq!(seen(&mut other), (false, false));
    next.win().await;
}

#[tokio::test(start_paused = true)]
async fn of_one_without_an_election_that_ended_without_a_word_the_lease_is_free_after_half_an_hour()
{
    // Given its lease, another operator that looks all the time, and a replica with an election
    let server = Server::default();
    server.election("lost", GOOD).0.alone().win().await;
    let lease = server.state().lease.clone().unwrap();
    let lease: Lease = serde_json::from_value(lease).unwrap();
    let mut other = OtherLease::default();
    let (mut next, _) = server.election("next", GOOD);
    let begun = Instant::now();
    let looking = async {
        while other.see(Some(&lease)).0 {
            sleep(Duration::from_secs(5)).await;
        }
        begun.elapsed()
    };
    let winning = async {
        next.win().await;
        begun.elapsed()
    };
    // Then both have waited for its time
    let (seen, won) = tokio::join!(looking, winning);
    for waited in [seen, won] {
        let over = waited.saturating_sub(Duration::from_mins(30));
        assert!(
            over <= Duration::from_secs(5) && waited.as_secs() >= 1800,
            "{waited:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_in_which_nobody_could_look_is_none_in_which_a_lease_was_not_renewed() {
    // Given the lease of an operator without an election, and an API server that is away for hours
    let server = Server::default();
    server.election("own", GOOD).0.alone().win().await;
    let lease = server.state().lease.clone().unwrap();
    let lease: Lease = serde_json::from_value(lease).unwrap();
    let mut other = OtherLease::default();
    assert_eq!(other.see(Some(&lease)), (true, true));
    advance(Duration::from_hours(3)).await;
    // Then its holder has time to renew it
    assert_eq!(other.see(Some(&lease)), (true, true));
    advance(Duration::from_secs(5)).await;
    assert_eq!(other.see(Some(&lease)), (true, true));
}
