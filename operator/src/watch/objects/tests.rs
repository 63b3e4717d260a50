use std::collections::BTreeMap;
use std::convert::Infallible;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use k8s_openapi::api::core::v1::Secret;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::*;

type Change = fn(&Cluster);
type Said = UnsyncBoxBody<Bytes, Infallible>;

fn said(what: &Value) -> Said {
    Full::from(what.to_string()).boxed_unsync()
}

const LIMIT: Duration = Duration::from_mins(1);

/// Whether a request wants no more than metadata.
fn is_bare(request: &Request<Body>) -> bool {
    let accept = request.headers().get(http::header::ACCEPT);
    accept.is_some_and(|accept| {
        let accept = accept.to_str().unwrap();
        accept.contains("PartialObjectMetadata")
    })
}

/// Whether a request is about one object.
fn selects(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.contains("fieldSelector")
}

/// An API server that takes a moment, and has Secrets in one namespace.
#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Whether only what is named may be listed and watched.
    is_narrow: bool,
    /// What a list or watch of all is answered with, if not with what there is.
    trouble: Option<u16>,
    /// Value and version of each Secret.
    secrets: BTreeMap<String, (String, u64)>,
    version: u64,
    /// Watches that are open: what they select, whether they want no more than metadata, and where to tell of changes.
    watches: Vec<(Option<String>, bool, UnboundedSender<String>)>,
    /// Reads by name.
    reads: Vec<String>,
    /// Whether reads by name fail.
    is_away: bool,
    /// Reads that are under way, and the most that were at a time.
    under_way: (usize, usize),
}

impl Cluster {
    fn with(secrets: impl IntoIterator<Item = String>) -> Self {
        let this = Self::default();
        for name in secrets {
            this.put(&name, "first");
        }
        this
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    fn objects(&self, breadth: Breadth) -> (Arc<Objects<Secret>>, Woken) {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move {
                let is_read = selects(&request) && !is_bare(&request);
                if is_read {
                    let (now, most) = &mut this.state().under_way;
                    *now += 1;
                    *most = (*most).max(*now);
                }
                sleep(Duration::from_millis(100)).await;
                if is_read {
                    this.state().under_way.0 -= 1;
                }
                Ok::<_, Infallible>(this.answer(&request))
            }
        });
        let (waker, woken) = Waker::new();
        waker.listen();
        let client = Client::new(service, "ci");
        (
            Arc::new(Objects::new(client, Arc::new(waker), breadth)),
            Woken(woken),
        )
    }

    fn answer(&self, request: &Request<Body>) -> Response<Said> {
        let query = request.uri().query().unwrap_or_default();
        let is_bare = is_bare(request);
        let name = query
            .split('&')
            .find_map(|field| field.strip_prefix("fieldSelector=metadata.name%3D"))
            .map(str::to_owned);
        let mut state = self.state();
        if state.is_narrow && name.is_none() {
            let refusal = json!({"kind": "Status", "status": "Failure", "reason": "Forbidden", "message": "no", "code": 403});
            return Response::builder()
                .status(403)
                .body(said(&refusal))
                .unwrap();
        }
        if state.is_away && name.is_some() {
            let trouble =
                json!({"kind": "Status", "status": "Failure", "message": "no", "code": 503});
            return Response::builder()
                .status(503)
                .body(said(&trouble))
                .unwrap();
        }
        if let Some(code) = state.trouble.filter(|_| name.is_none()) {
            let trouble = json!({"kind": "Status", "status": "Failure", "reason": "InternalError", "message": "no", "code": code});
            return Response::builder()
                .status(code)
                .body(said(&trouble))
                .unwrap();
        }
        if query.contains("watch=true") {
            let (sender, lines) = unbounded();
            state.watches.push((name, is_bare, sender));
            let frames =
                lines.map(|line: String| Ok::<_, Infallible>(Frame::data(Bytes::from(line))));
            return Response::new(StreamBody::new(frames).boxed_unsync());
        }
        let selected = |secret: &&String| name.as_ref().is_none_or(|name| name == *secret);
        let names = state.secrets.keys().filter(selected);
        let items: Vec<Value> = names.map(|name| state.object(name, is_bare)).collect();
        let version = state.version.to_string();
        let kind = if is_bare {
            "PartialObjectMetadataList"
        } else {
            "SecretList"
        };
        let api = if is_bare { "meta.k8s.io/v1" } else { "v1" };
        state.reads.extend(name.filter(|_| !is_bare));
        let list = json!({"kind": kind, "apiVersion": api, "metadata": {"resourceVersion": version}, "items": items});
        Response::new(said(&list))
    }

    fn put(&self, name: &str, value: &str) {
        let mut state = self.state();
        state.version += 1;
        let entry = (value.to_owned(), state.version);
        let is_new = state.secrets.insert(name.to_owned(), entry).is_none();
        state.tell(name, if is_new { "ADDED" } else { "MODIFIED" });
    }

    fn remove(&self, name: &str) {
        let mut state = self.state();
        state.version += 1;
        state.tell(name, "DELETED");
        state.secrets.remove(name);
    }

    /// Watches that somebody still listens to.
    fn watches(&self) -> usize {
        let mut state = self.state();
        state.watches.retain(|(_, _, sender)| !sender.is_closed());
        state.watches.len()
    }

    fn reads(&self) -> Vec<String> {
        std::mem::take(&mut self.state().reads)
    }
}

impl State {
    fn object(&self, name: &str, is_bare: bool) -> Value {
        let (value, version) = &self.secrets[name];
        let metadata =
            json!({"name": name, "namespace": "ci", "resourceVersion": version.to_string()});
        if is_bare {
            return json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
        }
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": {"token": STANDARD.encode(value), "padding": STANDARD.encode([7; 9_000])}})
    }

    fn tell(&self, name: &str, what: &str) {
        for (selected, is_bare, sender) in &self.watches {
            if selected.as_ref().is_none_or(|selected| selected == name) {
                let event = json!({"type": what, "object": self.object(name, *is_bare)});
                let _ = sender.unbounded_send(format!("{event}\n"));
            }
        }
    }
}

struct Woken(
    futures::channel::mpsc::UnboundedReceiver<
        kube::runtime::reflector::ObjectRef<cudarunner_crds::CudaRunner>,
    >,
);

impl Woken {
    /// The pool that is woken next.
    async fn next(&mut self) -> String {
        let woken = tokio::time::timeout(LIMIT, self.0.next()).await;
        woken.expect("nobody was woken").unwrap().name
    }

    fn none(&mut self) {
        while self.0.try_recv().is_ok() {}
    }
}

fn pool(name: &str) -> PoolKey {
    PoolKey {
        namespace: "ci".to_owned(),
        name: name.to_owned(),
    }
}

/// What the pools here read of a Secret.
fn part(name: &str) -> Part {
    Part::credentials(name)
}

/// The value that pools read; nothing else is kept.
fn value(found: &Lookup) -> Option<String> {
    match found {
        Lookup::Found(data) => {
            assert!(data.values().map(Vec::len).sum::<usize>() < 100);
            Some(String::from_utf8(data["token"].clone()).unwrap())
        }
        Lookup::Missing => None,
        Lookup::TooLong => panic!("it is too long"),
        Lookup::Unreadable => panic!("it cannot be read"),
    }
}

/// All pools look at the Secret of this name at the same time.
async fn look(objects: &Arc<Objects<Secret>>, wanted: Vec<(PoolKey, String)>) -> Vec<Lookup> {
    // Each with a waker of its own, as reconciles have them.
    let mut reconciles = JoinSet::new();
    for (pool, name) in wanted {
        let objects = Arc::clone(objects);
        reconciles.spawn(async move { objects.get(&pool, &part(&name)).await });
    }
    reconciles.join_all().await
}

#[tokio::test(start_paused = true)]
async fn three_hundred_pools_with_a_secret_each_need_one_watch() {
    let names: Vec<String> = (0..300).map(|n| format!("secret-{n}")).collect();
    let cluster = Cluster::with(names.clone());
    let (objects, _woken) = cluster.objects(Breadth::Namespace);

    // Given 300 pools that look at their Secrets
    let start = Instant::now();
    let wanted = names.iter().map(|name| (pool(name), name.clone()));
    let found = look(&objects, wanted.collect()).await;

    // Then each has its own, soon, by one watch that tells no contents and one read each
    assert!(found.iter().all(|f| value(f).as_deref() == Some("first")));
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    // ... a few at a time: a whole object may be large
    assert_eq!(cluster.state().under_way, (0, READS));
    assert_eq!(cluster.watches(), 1);
    assert!(
        cluster
            .state()
            .watches
            .iter()
            .all(|(_, is_bare, _)| *is_bare)
    );
    assert_eq!(cluster.reads().len(), names.len());

    // And a second look asks nothing
    objects.get(&pool("secret-0"), &part("secret-0")).await;
    assert_eq!(cluster.reads(), Vec::<String>::new());

    // When the pools are gone, then nothing is watched
    for name in &names {
        objects.release(&pool(name), &[]);
    }
    sleep(Duration::from_secs(1)).await;
    cluster.put("secret-0", "second");
    assert_eq!(cluster.watches(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_an_object_wakes_the_pools_that_name_it() {
    // Given pools that name a Secret, where all of a namespace may be watched, where only named ones may, and where that
    // turns out
    for (breadth, is_narrow) in [
        (Breadth::Namespace, false),
        (Breadth::Object, true),
        (Breadth::Namespace, true),
    ] {
        let cluster = Cluster::with(["app".to_owned(), "other".to_owned()]);
        cluster.state().is_narrow = is_narrow;
        let (objects, mut woken) = cluster.objects(breadth);
        let now = async || value(&objects.get(&pool("a"), &part("app")).await);
        assert_eq!(now().await.as_deref(), Some("first"), "{breadth:?}");
        sleep(Duration::from_secs(1)).await;
        woken.none();

        // When another one changes, then nothing is read
        cluster.reads();
        cluster.put("other", "second");
        sleep(Duration::from_secs(1)).await;
        assert!(woken.0.try_recv().is_err() && cluster.reads().is_empty());

        // When it changes, goes and comes, then the pool is reported each time
        let changes: [(Change, Option<&str>); 3] = [
            (|cluster| cluster.put("app", "second"), Some("second")),
            (|cluster| cluster.remove("app"), None),
            (|cluster| cluster.put("app", "third"), Some("third")),
        ];
        for (change, wanted) in changes {
            change(&cluster);
            assert_eq!(woken.next().await, "a");
            assert_eq!(now().await.as_deref(), wanted, "{breadth:?}, {is_narrow}");
        }
        assert_eq!(cluster.watches(), 1);
        let watches = &cluster.state().watches;
        assert!(watches.iter().all(|(_, is_bare, _)| *is_bare));
    }
}

#[tokio::test(start_paused = true)]
async fn two_parts_of_one_object_are_kept_for_themselves() {
    // Given two pools that read different keys of one Secret
    let cluster = Cluster::with(["app".to_owned()]);
    let (objects, mut woken) = cluster.objects(Breadth::Namespace);
    let padding = Part::new("app", &["padding"]);
    let lengths = async |name: &str, part: &Part| match objects.get(&pool(name), part).await {
        Lookup::Found(data) => data.values().map(Vec::len).collect(),
        _ => vec![],
    };
    assert_eq!(lengths("a", &part("app")).await, [0, 5]);
    assert_eq!(lengths("b", &padding).await, [9_000, 0]);
    sleep(Duration::from_secs(1)).await;
    woken.none();

    // When it changes, then both are reported
    cluster.put("app", "second");
    let mut both = [woken.next().await, woken.next().await];
    both.sort();
    assert_eq!(both, ["a", "b"]);
    assert_eq!(lengths("a", &part("app")).await, [0, 6]);

    // And who lets go of the one has none of it any more
    objects.release(&pool("b"), &[part("app")]);
    sleep(Duration::from_secs(1)).await;
    woken.none();
    cluster.put("app", "third");
    assert_eq!(woken.next().await, "a");
    sleep(Duration::from_secs(1)).await;
    assert!(woken.0.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_change_while_no_watch_is_open_is_seen_with_the_next_list() {
    let cluster = Cluster::with(["app".to_owned()]);
    let (objects, mut woken) = cluster.objects(Breadth::Namespace);
    objects.get(&pool("a"), &part("app")).await;
    sleep(Duration::from_secs(1)).await;
    woken.none();

    // Given a watch that ends because the server does not know its version any more, and a change meanwhile
    let (_, _, sender) = cluster.state().watches.pop().unwrap();
    cluster.put("app", "second");
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410}});
    sender.unbounded_send(format!("{gone}\n")).unwrap();
    drop(sender);

    // Then the pool is reported all the same
    assert_eq!(woken.next().await, "a");
    let found = objects.get(&pool("a"), &part("app")).await;
    assert_eq!(value(&found).as_deref(), Some("second"));
}

#[tokio::test(start_paused = true)]
async fn an_object_is_read_soon_after_an_outage() {
    for outage in [5, 20, 60, 600].map(Duration::from_secs) {
        // Given an object that cannot be read while the API server is in trouble
        let cluster = Cluster::with(["app".to_owned()]);
        cluster.state().is_away = true;
        let (objects, mut woken) = cluster.objects(Breadth::Namespace);
        let found = objects.get(&pool("a"), &part("app")).await;
        assert!(matches!(found, Lookup::Unreadable));
        sleep(outage).await;

        // When that is over, then the pool is reported soon
        cluster.state().is_away = false;
        let end = Instant::now();
        assert_eq!(woken.next().await, "a");
        assert!(
            end.elapsed() < Duration::from_secs(10),
            "{outage:?}, {:?}",
            end.elapsed()
        );
        let found = objects.get(&pool("a"), &part("app")).await;
        assert_eq!(value(&found).as_deref(), Some("first"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_named_is_read_where_the_namespace_cannot_be_listed() {
    for code in [500, 503, 504, 410, 429] {
        // Given a namespace whose list fails, though not for want of a right
        let cluster = Cluster::with(["app".to_owned()]);
        cluster.state().trouble = Some(code);
        let (objects, mut woken) = cluster.objects(Breadth::Namespace);

        // Then what a pool names is read by its name, and watched
        let now = async || value(&objects.get(&pool("a"), &part("app")).await);
        assert_eq!(now().await.as_deref(), Some("first"), "{code}");
        sleep(Duration::from_secs(1)).await;
        woken.none();
        cluster.put("app", "second");
        assert_eq!(woken.next().await, "a");
        assert_eq!(now().await.as_deref(), Some("second"), "{code}");

        // When the list works again, then one watch of the namespace is enough
        cluster.state().trouble = None;
        sleep(AGAIN).await;
        assert_eq!(cluster.watches(), 1);
        assert!(
            cluster
                .state()
                .watches
                .iter()
                .all(|(name, ..)| name.is_none())
        );
        woken.none();
        cluster.put("app", "third");
        assert_eq!(woken.next().await, "a");
        assert_eq!(now().await.as_deref(), Some("third"), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_taken_away_later_leaves_what_is_named() {
    type Loss = fn(&mut State);
    let losses: [Loss; 2] = [
        |state| state.is_narrow = true,
        |state| state.trouble = Some(500),
    ];
    for loss in losses {
        // Given a good start
        let cluster = Cluster::with(["app".to_owned()]);
        let (objects, mut woken) = cluster.objects(Breadth::Namespace);
        objects.get(&pool("a"), &part("app")).await;
        sleep(Duration::from_secs(1)).await;

        // When the namespace may not, or cannot, be watched any more, and the watch ends
        loss(&mut cluster.state());
        cluster.state().watches.clear();
        sleep(Duration::from_mins(1)).await;
        woken.none();

        // Then changes of what is named are still seen
        cluster.put("app", "second");
        assert_eq!(woken.next().await, "a");
        let found = objects.get(&pool("a"), &part("app")).await;
        assert_eq!(value(&found).as_deref(), Some("second"));
    }
}
