//! The way to GitHub: credentials from the cluster, and what GitHub says of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::given;
use crate::context::Context;
use crate::github::{
    Agent, CaBundle, Client, Credentials, Error, GitHubUrl, HeldLabels, ProxyUser, ProxyWay,
    RepositoryJobs,
};
use crate::memory::GitHubMemory;
use crate::watch::objects::Lookup;
use crate::watch::part::{Data, Keyed, Part};
use cuda_runner_plan::model::backoff;
use cuda_runner_plan::model::pool::{Pool, Spec};
use cuda_runner_plan::model::scale_set::Known;
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::model::webhook::Heard;
use cuda_runner_plan::reason::Reason;
use cuda_runner_plan::runners::SWEEP;
use cuda_runner_plan::scale_set::number;
use cuda_runner_plan::webhook::read_again;
use cuda_runner_plan::{Access, Entry, Listing, Queue};

/// The first pause after an attempt that failed.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(10);
/// The longest.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(10);
/// How old an answer may be that does not have to show what has just happened: pools of one repository that start
/// together, or look again at the same time, share it.
const SHARED: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Clone, Debug)]
struct NoClient {
    reason: Reason,
    message: String,
}

/// The client of a pool, made from its Secret and its ConfigMap; with what identifies it.
struct Found {
    client: Arc<Client>,
    identity: String,
}

/// Reads what is due from GitHub into the pool's memory; the client, where there is one.
pub async fn look(ctx: &Context, pool: &Pool, now: Timestamp) -> Option<Arc<Client>> {
    let Ok(spec) = &pool.spec else {
        return ctx.clients.last.in_use(pool);
    };
    let found = match find(ctx, pool, spec).await {
        Ok(found) => found,
        Err(none) => {
            let Some(found) = last_known(ctx, pool) else {
                refuse(ctx, pool, none);
                return None;
            };
            found
        }
    };
    ctx.clients.last.uses(pool, &found.client);
    let (due, queue_due, max_age) = due(ctx, pool, &found.identity, now);
    if due || queue_due {
        let first = ctx
            .memory
            .with(pool, |memory| memory.github.access == Access::Unchecked);
        let names = names(ctx, pool);
        let answer = ask(&found.client, spec, &names, first, max_age).await;
        let agents = match (&answer, scale_set_of(ctx, pool)) {
            (Ok(_), Some(set)) => Some(found.client.agents_of(set, max_age).await),
            _ => None,
        };
        let queue = match &answer {
            Ok(listing) if queue_due => {
                Some(read_queue(&found.client, pool, spec, listing, max_age).await)
            }
            _ => None,
        };
        if answer.is_ok() {
            let (url, client) = (spec.url.to_string(), Arc::clone(&found.client));
            ctx.clients.last.worked(pool, url, client);
        }
        let pods = pods_of(ctx, pool);
        ctx.memory.with(pool, |memory| {
            memory.refresh = false;
            take_in(&mut memory.github, pool, answer, agents, now);
            find_place(&mut memory.github, &found.client, &pods);
            keep_queue(&mut memory.github, &names, queue);
        });
    }
    Some(found.client)
}

/// Whether the pool's runners are to be listed now, whether its queue is to be read, and how old an answer may be. What came by
/// another way to GitHub is forgotten.
fn due(ctx: &Context, pool: &Pool, identity: &str, now: Timestamp) -> (bool, bool, Duration) {
    let leaving = given::leaving(ctx, pool);
    ctx.memory.with(pool, |memory| {
        let github = &mut memory.github;
        if github.identity != identity {
            *github = GitHubMemory {
                identity: identity.to_owned(),
                ..GitHubMemory::default()
            };
        }
        let heard = &memory.webhook;
        (
            is_due(github, memory.refresh, now),
            is_queue_due(github, pool, heard, &leaving, now),
            max_age(github, pool, memory.refresh, heard, now),
        )
    })
}

/// The pool's scale set: as this process made it, or as the status has it, which a replica reads that stands by.
pub fn scale_set_of(ctx: &Context, pool: &Pool) -> Option<u64> {
    let memory = &ctx.memory;
    let known = memory.with(pool, |memory| memory.github.scale_set.known.clone());
    match known {
        Known::Present(set) => Some(set.id),
        Known::Absent => None,
        Known::Unknown => {
            let set = pool.status.scale_set.as_ref()?;
            // Of another pool's set all runners would look like ours that nobody needs.
            number(set).filter(|_| set.name == pool.scale_set_name())
        }
    }
}

/// The client of a pool as the registrar needs it: without asking GitHub anything.
pub async fn client_of(ctx: &Context, pool: &Pool) -> Option<Arc<Client>> {
    let spec = pool.spec.as_ref().ok()?;
    let client = find(ctx, pool, spec).await.ok()?.client;
    // A replica that stands by looks at no pool: it keeps the client by this.
    ctx.clients.last.uses(pool, &client);
    Some(client)
}

/// A deletion goes on with what the pool had: its Secret may have been deleted with it.
fn last_known(ctx: &Context, pool: &Pool) -> Option<Found> {
    pool.deleting?;
    let url = pool.spec.as_ref().ok()?.url.to_string();
    let last = &ctx.clients.last;
    Some(Found {
        client: last.at(pool, &url).or_else(|| last.in_use(pool))?,
        identity: ctx
            .memory
            .with(pool, |memory| memory.github.identity.clone()),
    })
}

/// Without a Secret a pool can do nothing. The client is kept for its end alone: a namespace that is deleted loses its
/// Secrets before its pools.
fn refuse(ctx: &Context, pool: &Pool, none: NoClient) {
    ctx.memory.with(pool, |memory| {
        memory.github = GitHubMemory {
            access: Access::Refused {
                reason: none.reason,
                message: none.message,
                transient: false,
            },
            ..GitHubMemory::default()
        };
    });
}

/// The client for an address that the pool has left: with the credentials that it has now, where they are for the same
/// server; else, or where a pool in deletion has none any more, with those that last worked there.
pub async fn client_at(ctx: &Context, pool: &Pool, url: &str) -> Result<Arc<Client>, String> {
    let spec = pool.spec.as_ref().map_err(ToString::to_string)?;
    let url = GitHubUrl::parse(url, ctx.insecure_github).map_err(|e| e.to_string())?;
    let last = || ctx.clients.last.at(pool, &url.to_string());
    // What is good at one server is no other one's to know.
    if url.origin() != spec.url.origin() {
        return last().ok_or_else(|| {
            format!(
                "the credentials are for {}, and are not sent to {}; what the pool has left there is removed by hand",
                spec.url.origin(),
                url.origin()
            )
        });
    }
    match find_at(ctx, pool, spec, &url).await {
        Ok(found) => Ok(found.client),
        Err(none) => {
            let last = pool.deleting.and_then(|_| last());
            last.ok_or(none.message)
        }
    }
}

/// The client for a change at an address that the pool has left: the one that GitHub last answered there. A pool without any
/// credentials changes nothing.
pub async fn let_in_at(ctx: &Context, pool: &Pool, url: &str) -> Result<Arc<Client>, String> {
    let now = client_at(ctx, pool, url).await?;
    Ok(ctx.clients.last.at(pool, url).unwrap_or(now))
}

async fn find(ctx: &Context, pool: &Pool, spec: &Spec) -> Result<Found, NoClient> {
    find_at(ctx, pool, spec, &spec.url).await
}

async fn find_at(
    ctx: &Context,
    pool: &Pool,
    spec: &Spec,
    url: &GitHubUrl,
) -> Result<Found, NoClient> {
    let credentials = credentials(ctx, pool, spec).await?;
    let ca = ca_bundle(ctx, pool, spec).await?;
    let through = proxy_way(ctx, pool, spec).await?;
    let client = ctx
        .clients
        .client(
            &pool.key.namespace,
            url,
            &credentials,
            ca.as_ref(),
            through.as_ref(),
        )
        .map_err(|e| NoClient {
            reason: e.reason(),
            message: e.to_string(),
        })?;
    Ok(Found {
        client,
        identity: format!("{url} {:?} {ca:?} {through:?}", credentials.fingerprint()),
    })
}

async fn credentials(ctx: &Context, pool: &Pool, spec: &Spec) -> Result<Credentials, NoClient> {
    let name = &spec.secret;
    let part = Part::credentials(name);
    let data = secret(ctx, pool, &part, "app-id and private-key, or token").await?;
    ctx.clients.credentials(&data).map_err(|e| NoClient {
        reason: Reason::SecretInvalid,
        message: format!("Secret {name}: {e}"),
    })
}

/// The proxy, with the user that it asks for.
async fn proxy_way(ctx: &Context, pool: &Pool, spec: &Spec) -> Result<Option<ProxyWay>, NoClient> {
    let Some(proxy) = spec.proxy.clone() else {
        return Ok(None);
    };
    let Some(name) = proxy.secret() else {
        return Ok(Some(ProxyWay { proxy, user: None }));
    };
    let data = secret(ctx, pool, &Part::proxy_user(name), "username and password").await?;
    let user = ProxyUser::from_secret_data(&data).map_err(|e| NoClient {
        reason: Reason::SecretInvalid,
        message: format!("Secret {name} of spec.github.proxy: {e}"),
    })?;
    Ok(Some(ProxyWay {
        user: Some(user),
        proxy,
    }))
}

/// The data of a Secret that should have these keys.
async fn secret(
    ctx: &Context,
    pool: &Pool,
    part: &Part,
    keys: &str,
) -> Result<Arc<Data>, NoClient> {
    let (name, namespace) = (&part.name, &pool.key.namespace);
    match ctx.secrets.get(&pool.key, part).await {
        Lookup::Found(data) => Ok(data),
        Lookup::Missing => Err(NoClient {
            reason: Reason::SecretNotFound,
            message: format!(
                "The Secret {name} does not exist in the namespace {namespace}; create it with the keys {keys}"
            ),
        }),
        Lookup::TooLong => Err(NoClient {
            reason: Reason::SecretInvalid,
            message: format!(
                "Secret {name}: {keys} have more than {} KiB together; store nothing else under these keys",
                Secret::MOST / 1024
            ),
        }),
        Lookup::Unreadable => Err(NoClient {
            reason: Reason::SecretNotReadable,
            message: format!(
                "The Secret {name} could not be read; may the operator list and watch it in the namespace {namespace}?"
            ),
        }),
    }
}

async fn ca_bundle(ctx: &Context, pool: &Pool, spec: &Spec) -> Result<Option<CaBundle>, NoClient> {
    let Some(reference) = &spec.ca_bundle else {
        return Ok(None);
    };
    let place = format!("key {} of the ConfigMap {}", reference.key, reference.name);
    let unusable = |why: String| NoClient {
        reason: Reason::CaBundleInvalid,
        message: format!("The {place} cannot be used: {why}"),
    };
    let part = Part::certificates(reference);
    let found = match ctx.config_maps.get(&pool.key, &part).await {
        Lookup::Found(data) => Some(data),
        Lookup::Missing | Lookup::Unreadable => None,
        Lookup::TooLong => {
            return Err(unusable(format!(
                "it has more than {} KiB; store only the authorities that the system does not have",
                ConfigMap::MOST / 1024
            )));
        }
    };
    let pem = found.as_ref().and_then(|data| data.get(&reference.key));
    let pem = pem.ok_or_else(|| NoClient {
        reason: Reason::CaBundleNotFound,
        message: format!(
            "There is no {place} in the namespace {}; create it with the certificates as PEM",
            pool.key.namespace
        ),
    })?;
    let bundle = CaBundle::from_pem(pem).map_err(|e| unusable(e.to_string()))?;
    Ok(Some(bundle))
}

/// Whether GitHub is to be asked now.
fn is_due(github: &GitHubMemory, refresh: bool, now: Timestamp) -> bool {
    if github.not_before.is_some_and(|moment| now < moment) {
        return false;
    }
    let stale = github
        .listing
        .as_ref()
        // What was read later than now was read before the clock was set back.
        .is_none_or(|l| now >= l.at.after(SWEEP) || now < l.at);
    github.access != Access::Granted || refresh || stale
}

/// Whether the queue is to be read now: at the first look, at each sweep, and when somebody asks.
fn is_queue_due(
    github: &GitHubMemory,
    pool: &Pool,
    heard: &Heard,
    leaving: &[(String, Timestamp)],
    now: Timestamp,
) -> bool {
    if pool.deleting.is_some() || github.not_before.is_some_and(|moment| now < moment) {
        return false;
    }
    let spec = pool.spec.as_ref().ok().filter(|spec| spec.reads_queue());
    github.queue.as_ref().is_none_or(|q| {
        let due = spec.map_or_else(|| q.at.after(SWEEP), |spec| read_again(spec, q.at, heard));
        let is_sought = given::is_sought(leaving, &github.given, q.at, now);
        q.asked != pool.look_again || now >= due || now < q.at || is_sought
    })
}

/// How old an answer may be. What somebody asks for, or what is to show a change of ours, is read afresh; and what is read
/// because of an event, after that.
fn max_age(
    github: &GitHubMemory,
    pool: &Pool,
    refresh: bool,
    heard: &Heard,
    now: Timestamp,
) -> Duration {
    let last = github.queue.as_ref();
    if refresh || last.is_some_and(|q| q.asked != pool.look_again) {
        return Duration::ZERO;
    }
    let event = heard.read_at.filter(|at| last.is_some_and(|q| q.at < *at));
    let since = event.and_then(|at| Duration::try_from(now.duration_since(at)).ok());
    since.map_or(SHARED, |since| since.min(SHARED))
}

/// The queue, and what it holds of answers.
type QueueRead = (Queue, (Option<RepositoryJobs>, HeldLabels));

fn keep_queue(github: &mut GitHubMemory, names: &BTreeSet<String>, read: Option<QueueRead>) {
    if let Some((queue, (jobs, labels))) = read {
        if let Some(jobs) = &jobs {
            given::note(&mut github.given, names, jobs);
        }
        github.queue = Some(Arc::new(queue));
        github.queue_held = Some((jobs.map(|jobs| jobs.waiting), labels));
    }
}

/// The names of the pool's pods.
fn pods_of(ctx: &Context, pool: &Pool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    ctx.pods.each(&pool.key, &pool.uid, |runner| {
        names.insert(runner.name.clone());
    });
    names
}

/// The queue, with what it holds of answers. One that cannot be read stops nothing: the runners do not need it.
async fn read_queue(
    client: &Client,
    pool: &Pool,
    spec: &Spec,
    listing: &crate::github::RunnerList,
    max_age: Duration,
) -> QueueRead {
    let read = client.repository_jobs(max_age).await;
    let labels = Arc::clone(&listing.labels);
    let jobs =
        |jobs: &Option<RepositoryJobs>| jobs.as_ref().map(|jobs| Arc::<[_]>::clone(&jobs.waiting));
    let queue = Queue {
        at: listing.at,
        asked: pool.look_again.clone(),
        jobs: read.as_ref().map(jobs).map_err(ToString::to_string),
        registered: listing.is_whole.then(|| Arc::<[_]>::clone(&labels)),
        shut_out: shut_out(client, spec).await,
    };
    (queue, (read.ok().flatten(), labels))
}

/// The pool's repository, where its runner group does not admit it. Where that cannot be read, nothing is said.
async fn shut_out(client: &Client, spec: &Spec) -> Option<String> {
    let repository = spec.repository.as_ref()?;
    let admitted = client
        .admits(spec.runner_group.as_deref(), repository)
        .await;
    let is_out = admitted.is_ok_and(|admitted| !admitted);
    is_out.then(|| repository.full_name().to_owned())
}

/// The names that the pool's runners have, or had when they were last listed; and its own, by which a server shows that it
/// finds runners by name.
fn names(ctx: &Context, pool: &Pool) -> BTreeSet<String> {
    let mut names = pods_of(ctx, pool);
    names.insert(pool.key.name.clone());
    ctx.memory.with(pool, |memory| {
        let listed = memory.github.listing.iter().flat_map(|last| &last.entries);
        names.extend(listed.map(|entry| entry.name.clone()));
        names.extend(memory.github.gone.iter().cloned());
    });
    names
}

/// Asks who we are and what we have there.
async fn ask(
    client: &Client,
    spec: &Spec,
    names: &BTreeSet<String>,
    first: bool,
    max_age: Duration,
) -> Result<Arc<crate::github::RunnerList>, Error> {
    if first {
        client.check_access(max_age).await?;
        client.runner_group_id(spec.runner_group.as_deref()).await?;
        // What the check has just read.
        return client.list_runners_of(names, SHARED).await;
    }
    client.list_runners_of(names, max_age).await
}

fn take_in(
    github: &mut GitHubMemory,
    pool: &Pool,
    answer: Result<Arc<crate::github::RunnerList>, Error>,
    agents: Option<Result<Vec<Agent>, Error>>,
    now: Timestamp,
) {
    match answer {
        Ok(listing) => {
            // Nothing is there before the status says so.
            let is_first = github.listing.is_none();
            let label = pool.ownership_label();
            let own = listing.runners.iter().filter(|r| r.labels.contains(&label));
            let mut entries: Vec<Entry> = own.map(|runner| Entry::from(&**runner)).collect();
            github.knows_names |=
                listing.is_whole || is_first && pool.status.registered_at.is_none();
            entries.extend(of_scale_set(github, &listing, agents));
            github.listing = Some(Listing {
                at: listing.at,
                entries,
                // What is not listed of a scale set goes with it.
                is_whole: github.knows_names,
            });
            github.gone.clear();
            github.access = Access::Granted;
            github.failures = 0;
            github.not_before = None;
        }
        Err(error) => refused(github, &error, &pool.uid, now),
    }
}

/// Finds a place for the entries of a pool. Where there is none, only those of its pods are kept: a server may say that any
/// number is the pool's.
fn find_place(github: &mut GitHubMemory, client: &Client, pods: &BTreeSet<String>) {
    let Some(listing) = &mut github.listing else {
        return;
    };
    // The last ones' place comes free first.
    github.listing_held = None;
    let size = |entry: &Entry| {
        let version = entry.version.as_ref().map_or(0, String::len);
        [size_of::<Entry>(), entry.name.len(), version]
    };
    github.listing_held = client.place(listing.entries.iter().flat_map(size).sum());
    if github.listing_held.is_none() {
        listing.entries.retain(|entry| pods.contains(&entry.name));
        listing.is_whole = false;
        github.knows_names = false;
    }
}

/// The runners of the scale set; those of the last list where the Actions service gave none. What the runners page says
/// of them is taken in.
fn of_scale_set(
    github: &GitHubMemory,
    listing: &crate::github::RunnerList,
    agents: Option<Result<Vec<Agent>, Error>>,
) -> Vec<Entry> {
    let last = || {
        let last = github.listing.iter().flat_map(|last| &last.entries);
        last.filter(|entry| entry.of_scale_set).cloned().collect()
    };
    let mut entries: Vec<Entry> = match agents {
        None => return vec![],
        Some(Ok(agents)) => agents.into_iter().map(Entry::of_scale_set).collect(),
        Some(Err(error)) => {
            tracing::info!(%error, "the runners of a scale set were not listed");
            last()
        }
    };
    for entry in &mut entries {
        if let Some(shown) = listing.runners.iter().find(|r| r.name == entry.name) {
            entry.busy = shown.busy;
            entry.online = Some(shown.online);
            entry.version.clone_from(&shown.version);
        }
    }
    entries
}

/// Notes that GitHub did not do what was asked; the next attempt waits.
pub fn refused(github: &mut GitHubMemory, error: &Error, key: &str, now: Timestamp) {
    github.failures = github.failures.saturating_add(1);
    let pause = error
        .pause(now)
        .unwrap_or_else(|| backoff::exponential(FIRST_PAUSE, LONGEST_PAUSE, github.failures, key));
    github.not_before = Some(now.after(pause));
    github.access = Access::Refused {
        reason: error.reason(),
        message: error.to_string(),
        transient: error.is_transient(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use crate::github::tests::stub::{Stub, raw};
    use crate::reconcile::tests::{Cluster, context};
    use crate::watch::objects::{Breadth, Objects};
    use cuda_runner_plan::fixture;

    /// An operator whose API server has this data in each Secret and ConfigMap.
    async fn with_data(data: Value) -> Arc<Context> {
        let service = tower::service_fn(move |request: Request<Body>| {
            let item = json!({
                "metadata": {"name": "named", "namespace": "ci", "resourceVersion": "1"}, "data": data
            });
            async move {
                if request
                    .uri()
                    .query()
                    .unwrap_or_default()
                    .contains("watch=true")
                {
                    std::future::pending::<()>().await;
                }
                let list = json!({"metadata": {"resourceVersion": "1"}, "items": [item]});
                let body = Body::from(list.to_string().into_bytes());
                Ok::<_, Infallible>(Response::new(body))
            }
        });
        let client = kube::Client::new(service, "ci");
        let mut ctx = context(&Cluster::default()).await;
        let waker = Arc::clone(&ctx.waker);
        let inner = Arc::get_mut(&mut ctx).unwrap();
        inner.secrets = Objects::new(client.clone(), Arc::clone(&waker), Breadth::Object);
        inner.config_maps = Objects::new(client, waker, Breadth::Object);
        ctx
    }

    #[tokio::test]
    async fn what_is_too_long_is_refused_with_its_bound() {
        let pool = fixture::pool(1);
        let mut spec = Spec::clone(pool.spec.as_ref().unwrap());
        spec.ca_bundle = Some(cudarunner_crds::KeyReference {
            name: "ca".to_owned(),
            key: "ca.crt".to_owned(),
        });
        // Given a token, and certificates, of any length
        for (length, words) in [(40, None), (16 * 1024 + 1, Some("16 KiB"))] {
            let ctx = with_data(json!({"token": STANDARD.encode("t".repeat(length))})).await;
            let found = credentials(&ctx, &pool, &spec).await.err();
            let told = found.as_ref().map(|none| none.message.as_str());
            assert_eq!(told.is_some(), words.is_some(), "{told:?}");
            // Then one that is too long is refused, in words that name it and its bound
            if let (Some(none), Some(words)) = (&found, words) {
                assert_eq!(none.reason, Reason::SecretInvalid);
                assert!(none.message.contains(words) && none.message.contains(&spec.secret));
            }
        }
        for (length, words) in [(40, "no certificate"), (256 * 1024 + 1, "256 KiB")] {
            let ctx = with_data(json!({"ca.crt": "x".repeat(length)})).await;
            let none = ca_bundle(&ctx, &pool, &spec).await.unwrap_err();
            assert_eq!(none.reason, Reason::CaBundleInvalid);
            assert!(none.message.contains(words) && none.message.contains("ca.crt"));
        }
    }

    #[tokio::test]
    async fn a_replica_that_stands_by_keeps_the_client_of_a_pool() {
        // Given a pool that nobody looks at here
        let ctx = with_data(json!({"token": STANDARD.encode("ghp_token")})).await;
        let pool = fixture::pool(1);
        // When its gates have it register two runners, one after the other
        let first = Arc::downgrade(&client_of(&ctx, &pool).await.unwrap());
        let second = client_of(&ctx, &pool).await.unwrap();
        // Then both go by the same client, until the pool is gone
        assert!(
            first
                .upgrade()
                .is_some_and(|first| Arc::ptr_eq(&first, &second))
        );
        drop(second);
        ctx.forget(&pool.key);
        assert!(first.upgrade().is_none());
    }

    #[test]
    fn what_was_read_later_than_now_is_read_again() {
        // Given a list and a queue that were read a minute ago
        let (pool, now) = (fixture::pool(1), fixture::NOW);
        let github = |at: Timestamp| GitHubMemory {
            access: Access::Granted,
            listing: Some(Listing {
                at,
                entries: vec![],
                is_whole: true,
            }),
            queue: Some(Arc::new(Queue {
                at,
                asked: pool.look_again.clone(),
                jobs: Ok(None),
                registered: None,
                shut_out: None,
            })),
            ..GitHubMemory::default()
        };
        let are_due = |at: Timestamp| {
            let github = github(at);
            let queue = is_queue_due(&github, &pool, &Heard::default(), &[], now);
            [is_due(&github, false, now), queue]
        };
        assert_eq!(
            are_due(now.before(SignedDuration::from_mins(1))),
            [false; 2]
        );
        // When the clock is set back, then they are read again
        assert_eq!(are_due(now.after(SignedDuration::from_mins(1))), [true; 2]);
    }

    #[tokio::test]
    async fn runners_that_have_gone_are_asked_for_by_name_until_the_list_is_read() {
        // Given a pool in a scope whose list is too long, and a pod that went by itself
        let ctx = context(&Cluster::default()).await;
        let pool = fixture::pool(1);
        let pods = |names: &[&str]| {
            let pods = names
                .iter()
                .map(|name| ((*name).to_owned(), (*name).to_owned()));
            ctx.memory
                .with(&pool, |memory| memory.settle(&pods.collect(), fixture::NOW));
        };
        pods(&["pool-a", "pool-b"]);
        pods(&["pool-b"]);
        // Then its entry is asked for, and the pool's own name
        assert_eq!(
            names(&ctx, &pool),
            BTreeSet::from(["pool", "pool-a"].map(str::to_owned))
        );

        // When that has been read, then what was found is asked for
        let found = crate::github::ListedRunner {
            id: 1,
            name: "pool-c".to_owned(),
            online: false,
            busy: false,
            labels: [pool.ownership_label()].into(),
            version: None,
        };
        let found = vec![Arc::new(found)];
        let list = Arc::new(crate::github::RunnerList::of_some(found, fixture::NOW));
        ctx.memory.with(&pool, |memory| {
            take_in(&mut memory.github, &pool, Ok(list), None, fixture::NOW);
        });
        assert_eq!(
            names(&ctx, &pool),
            BTreeSet::from(["pool", "pool-c"].map(str::to_owned))
        );
    }

    #[test]
    fn a_list_by_name_is_whole_while_all_names_are_known() {
        let by_name = || {
            Ok(Arc::new(crate::github::RunnerList::of_some(
                vec![],
                fixture::NOW,
            )))
        };
        let mut pool = fixture::pool(1);
        let taken_in = |github: &mut GitHubMemory, pool: &Pool| {
            take_in(github, pool, by_name(), None, fixture::NOW);
            github.listing.as_ref().unwrap().is_whole
        };
        // Given a pool that has registered nothing yet, then all that it will have is known by name
        pool.status.registered_at = None;
        let mut github = GitHubMemory::default();
        assert!(taken_in(&mut github, &pool));
        pool.status.registered_at = Some("https://github.com/acme/widgets".to_owned());
        assert!(taken_in(&mut github, &pool));
        // Given an operator that has just started, then what was made before may be of any name
        assert!(!taken_in(&mut GitHubMemory::default(), &pool));
    }

    #[tokio::test]
    async fn entries_that_find_no_room_are_those_of_the_pools_pods_alone() {
        let stub = Stub::start(|_, _| raw(500, "")).await;
        let client = stub.client("o/r");
        let pods = BTreeSet::from(["pool-7".to_owned()]);
        let kept = |count| {
            let entries = (0..count).map(|id| Entry {
                id,
                name: format!("pool-{id}"),
                busy: false,
                online: None,
                version: Some("x".repeat(1000)),
                of_scale_set: false,
            });
            let mut github = GitHubMemory {
                listing: Some(Listing {
                    at: fixture::NOW,
                    entries: entries.collect(),
                    is_whole: true,
                }),
                ..GitHubMemory::default()
            };
            find_place(&mut github, &client, &pods);
            github
        };
        let entries = |github: &GitHubMemory| github.listing.as_ref().unwrap().entries.len();
        // Given few entries, then all are kept
        let few = kept(5_000);
        assert_eq!(entries(&few), 5_000);
        // Given more than there is room for beside them, then those of its pods
        let many = kept(5_000);
        assert_eq!(entries(&many), 1);
        let is_whole = |github: &GitHubMemory| github.listing.as_ref().unwrap().is_whole;
        assert!(is_whole(&few) && !is_whole(&many));
        // And once there is room, all
        drop(few);
        assert_eq!(entries(&kept(5_000)), 5_000);
    }

    #[tokio::test]
    async fn credentials_are_sent_to_their_own_server_alone() {
        // Given a pool that was at two other addresses, one of another server
        let ctx = with_data(json!({"token": STANDARD.encode("ghp_token")})).await;
        let pool = fixture::pool(1);
        let neighbour = "https://github.com/acme/gadgets";
        let stranger = "https://ghe.example.com/acme/widgets";
        // Then it asks at its own server with what it has now, and at the other one not at all
        let now = client_at(&ctx, &pool, neighbour).await.unwrap();
        let why = client_at(&ctx, &pool, stranger).await.err().unwrap();
        assert!(why.contains("https://ghe.example.com"), "{why}");
        // Unless it has worked there: with what worked
        let stub = Stub::start(|_, _| raw(500, "")).await;
        let before = stub.client("o/r");
        let last = &ctx.clients.last;
        last.worked(&pool, stranger.to_owned(), Arc::clone(&before));
        let found = client_at(&ctx, &pool, stranger).await.unwrap();
        assert!(Arc::ptr_eq(&found, &before));
        assert_ne!(now.credential(), before.credential());
    }

    #[tokio::test]
    async fn a_deletion_goes_on_at_each_address_with_the_client_that_last_worked_there() {
        const BEFORE: &str = "https://github.com/acme/gadgets";
        let ctx = context(&Cluster::default()).await;
        let stub = Stub::start(|_, _| raw(500, "")).await;
        let mut pool = fixture::pool(1);
        let here = pool.spec.as_ref().unwrap().url.to_string();
        for url in [here.as_str(), BEFORE] {
            let client = stub.client("o/r");
            ctx.clients.last.worked(&pool, url.to_owned(), client);
        }

        // Given a Secret that is gone, then a pool that is to stay can do nothing
        assert!(client_at(&ctx, &pool, BEFORE).await.is_err());
        assert!(last_known(&ctx, &pool).is_none());

        // And one in deletion goes on, at addresses where it has been
        pool.deleting = Some(fixture::NOW);
        assert!(client_at(&ctx, &pool, BEFORE).await.is_ok());
        assert!(last_known(&ctx, &pool).is_some());
        let never = "https://github.com/acme/other";
        assert!(client_at(&ctx, &pool, never).await.is_err());
    }
}
