//! Starts the parts and ends with the first of them that ends.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cudarunner_crds::CudaRunner;
use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt as _};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use kube::client::{Body, ClientBuilder};
use kube::runtime::controller::{Config as ControllerConfig, Error as ControllerError};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{Controller, reflector::Store};
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch as flag};
use tower::limit::ConcurrencyLimitLayer;

use crate::act::events::Events;
use crate::config::Config;
use crate::context::{CONTROLLER, CREATIONS, Context};
use crate::github::Clients;
use crate::insist::{insist, passes};
use crate::lease::{Election, Fence};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::reconcile::{on_error, reconcile};
use crate::registrar::{self, Bounds, CaStore, Ledger, Limits, Parts, Rate, Reviewer, ServerNames};
use crate::registration::OperatorBackend;
use crate::server::{Started, Waits};
use crate::specs::Specs;
use crate::telemetry::Telemetry;
use crate::watch::nodes::{self, Nodes};
use crate::watch::objects::{Breadth, Objects};
use crate::watch::pods::{self, Pods};
use crate::watch::{Scope, Waker, pools};
use crate::{node_marks, server};
use cuda_runner_plan::model::pool::PoolKey;
use cuda_runner_plan::node_marks::Marking;

/// Requests to Kubernetes in flight, of all pools together. Visits are not bounded: most of them wait for GitHub, and
/// where that is slow its pools must not take the turns of others.
const REQUESTS: usize = 128;
/// Bounds of the registrar: what a thousand runners that start at once need, and not much more.
const LIMITS: Limits = Limits {
    // An address may be a whole cluster's, where the operator is outside of it.
    door: Bounds {
        connections: 1024,
        per_address: 128,
        handshakes_per_address: 32,
        arrivals: Rate {
            burst: 256,
            per_minute: 3000,
        },
        refusals: Rate {
            burst: 16,
            per_minute: 30,
        },
    },
    reviews: 64,
    pool: Rate {
        burst: 1000,
        per_minute: 1200,
    },
    request_timeout: Duration::from_secs(30),
};
/// A renewal of the lease is answered within this time.
const RENEWAL: Duration = Duration::from_secs(5);
/// A connection that says nothing for so long is dead, unless nothing was asked: an answer takes less, and a watch hears
/// something once a minute.
const SILENCE: Duration = Duration::from_secs(75);
/// What the controller takes for no bound.
const UNBOUNDED: u16 = 0;

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No way to the API server was found.
    #[error(
        "no Kubernetes API server: {0}; run in a pod with a service account, or set KUBECONFIG"
    )]
    Kubeconfig(#[source] kube::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The Service of the registrar is of no use.
    #[error(
        "the Service {service} gives pods no address of the registrar ({why}); create it, name another with --registrar-service, or give --registrar-url"
    )]
    Service {
        /// `NAMESPACE/NAME`.
        service: String,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate authority cannot be had.
    #[error("the registrar's certificate authority: {0}")]
    Ca(#[from] registrar::store::StoreError),
    /// The lease was lost: another replica acts now.
    #[error("this replica does not lead any more")]
    LeaseLost,
    /// A part that runs for good ended.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// Runs until a signal comes or a part fails.
pub async fn run(config: Config, telemetry: Arc<Telemetry>) -> Result<(), RunError> {
    let mut election = None;
    if config.leader_elect {
        let (client, namespace) = (renewing().await?, &config.operator_namespace);
        election = Some(Election::new(client, namespace, &config.identity));
    }
    // First of all: a process that waits for what must be there lives.
    let health = listen(config.health_listen).await?;
    let started = Arc::default();
    let ended = tokio::select! {
        _ = server::serve(health, Arc::clone(&started)) => Err(RunError::Ended("the health endpoint")),
        ended = operate(&config, telemetry, election.as_mut(), &started) => ended,
        () = signal() => {
            tracing::info!("a signal asks for the end");
            Ok(())
        }
    };
    if let Some(election) = &mut election {
        election.release().await;
    }
    ended
}

/// Starts the parts, and ends with the first of them that ends.
async fn operate(
    config: &Config,
    telemetry: Arc<Telemetry>,
    election: Option<&mut Election>,
    started: &OnceLock<Started>,
) -> Result<(), RunError> {
    let client = kubernetes().await?;
    let (registrar_url, names) = registrar_address(config, &client).await?;
    let ca = CaStore::open(client.clone(), &config.operator_namespace, names).await?;

    let (waker, woken) = Waker::new();
    let waker = Arc::new(waker);
    let watched = watch_all(config, &client, &waker);
    let fence = election.as_ref().map_or_else(Fence::default, |e| e.fence());
    let acting = fenced(&client, &fence);
    // In namespaces that are named the chart grants no more than named objects.
    let breadth = if config.watch_namespace.is_empty() {
        Breadth::Namespace
    } else {
        Breadth::Object
    };
    let ctx = Arc::new(Context {
        clients: Clients::new(config.reach.reach(api_server().await.into_iter())),
        pools: watched.pools,
        pods: watched.pods,
        nodes: watched.nodes,
        marking: marking(config),
        secrets: Objects::new(client.clone(), Arc::clone(&waker), breadth),
        config_maps: Objects::new(client.clone(), Arc::clone(&waker), breadth),
        specs: Specs::new(config.insecure_github),
        memory: Memory::default(),
        metrics: Metrics::default(),
        events: Events::start(Recorder::new(
            acting.clone(),
            Reporter {
                controller: CONTROLLER.to_owned(),
                instance: Some(config.identity.clone()),
            },
        )),
        waker: Arc::clone(&waker),
        creations: Semaphore::new(CREATIONS),
        ca: Arc::clone(&ca),
        ledger: Arc::new(books(config)),
        registrar_url,
        gate_image: config.gate_image.clone(),
        image_pull_policy: config.image_pull_policy.clone(),
        insecure_github: config.insecure_github,
        client: acting,
        fence,
    });

    // It is set once.
    let _ = started.set(Started {
        waits: watched.ready.clone(),
        ctx: Arc::clone(&ctx),
    });
    let endpoint = listen(config.registrar_listen).await?;
    let admin = match config.admin_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let backend = Arc::new(OperatorBackend::new(Arc::clone(&ctx), Arc::clone(&waker)));
    let registrar = registrar::serve(
        endpoint,
        ca.server_config(),
        Parts {
            reviewer: Reviewer::new(client.clone()),
            backend,
            ledger: Arc::clone(&ctx.ledger),
            limits: LIMITS,
        },
        std::future::pending(),
    );
    tokio::select! {
        () = registrar => Err(RunError::Ended("the registrar")),
        _ = server::serve_admin(admin, telemetry) => Err(RunError::Ended("the admin endpoint")),
        () = Arc::clone(&ca).maintain() => Err(RunError::Ended("the upkeep of the certificate authority")),
        ended = control(election, ctx, waker, woken, watched.ready) => ended,
    }
}

/// A client for the cluster that we are in, or that the kubeconfig names.
pub async fn kubernetes() -> Result<Client, RunError> {
    let bounded = ConcurrencyLimitLayer::new(REQUESTS);
    let builder = ClientBuilder::try_from(cluster().await?).map_err(RunError::Kubeconfig)?;
    Ok(builder.with_layer(&bounded).build())
}

/// The client that renews the lease: with a connection of its own, so that it waits for no other request.
async fn renewing() -> Result<Client, RunError> {
    let mut config = cluster().await?;
    // A renewal that hangs is tried again while the lease lasts.
    config.read_timeout = Some(RENEWAL);
    config.connect_timeout = Some(RENEWAL);
    Client::try_from(config).map_err(RunError::Kubeconfig)
}

/// The way to the API server.
async fn cluster() -> Result<kube::Config, RunError> {
    let found = kube::Config::infer().await;
    let mut config = found.map_err(|e| RunError::Kubeconfig(kube::Error::InferConfig(e)))?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Ok(config)
}

/// The same client for whoever acts: it writes nothing once another replica may lead.
fn fenced(client: &Client, fence: &Fence) -> Client {
    let (inner, fence) = (client.clone(), fence.clone());
    let checked = tower::service_fn(move |request: Request<Body>| {
        let (inner, fence) = (inner.clone(), fence.clone());
        async move { fence.send(inner, request).await }
    });
    Client::new(checked, client.default_namespace())
}

/// The API server's addresses: pools may not have the operator ask it.
async fn api_server() -> Vec<IpAddr> {
    let Ok(config) = kube::Config::infer().await else {
        return vec![];
    };
    let host = config.cluster_url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match tokio::net::lookup_host((host, 443)).await {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(error) => {
            tracing::warn!(host, %error, "the API server's address is not known: a pool may have the operator ask it");
            vec![]
        }
    }
}

/// Stores, and the channels that tell when they have been filled.
struct Stores {
    pools: Vec<Store<CudaRunner>>,
    pods: Arc<Pods>,
    nodes: Option<Arc<Nodes>>,
    ready: Waits,
}

/// Each of several replicas answers gates: none of them knows of all registrations.
fn books(config: &Config) -> Ledger {
    if config.leader_elect {
        Ledger::default()
    } else {
        Ledger::alone(Timestamp::now())
    }
}

fn marking(config: &Config) -> Marking {
    Marking {
        condition: config.marks.node_condition,
        taint: config.marks.node_taint,
    }
}

/// Starts the watches. Nodes are seen only by an operator for the whole cluster, and by one that marks them.
fn watch_all(config: &Config, client: &Client, waker: &Arc<Waker>) -> Stores {
    let mut watched = Stores {
        pools: vec![],
        pods: Arc::default(),
        nodes: None,
        ready: vec![],
    };
    for scope in Scope::of(&config.watch_namespace) {
        let (store, writer) = reflector::store();
        tokio::spawn(pools::follow(
            client.clone(),
            scope.clone(),
            writer,
            Arc::clone(waker),
        ));
        let (filled, is_filled) = flag::channel(false);
        let reader: Store<CudaRunner> = store.clone();
        tokio::spawn(async move {
            filled.send_replace(reader.wait_until_ready().await.is_ok());
        });
        watched.ready.push(("the CudaRunner resources", is_filled));
        watched.pools.push(store);
        let (filled, is_filled) = flag::channel(false);
        let pods = Arc::clone(&watched.pods);
        tokio::spawn(pods::follow(
            client.clone(),
            scope,
            pods,
            Arc::clone(waker),
            filled,
        ));
        watched.ready.push(("the runner pods", is_filled));
    }
    if config.watch_namespace.is_empty() || marking(config) != Marking::default() {
        let nodes = Arc::new(Nodes::default());
        let (filled, is_filled) = flag::channel(false);
        tokio::spawn(nodes::follow(
            client.clone(),
            Arc::clone(&nodes),
            watched.pools.clone(),
            Arc::clone(waker),
            filled,
        ));
        watched.ready.push(("the nodes", is_filled));
        watched.nodes = Some(nodes);
    }
    watched
}

/// Acts, for as long as this replica leads.
async fn control(
    election: Option<&mut Election>,
    ctx: Arc<Context>,
    waker: Arc<Waker>,
    mut woken: UnboundedReceiver<ObjectRef<CudaRunner>>,
    ready: Waits,
) -> Result<(), RunError> {
    let Some(election) = election else {
        return act(ctx, waker, woken, ready).await;
    };
    tracing::info!("standing by for the lease");
    waker.listen();
    tokio::select! {
        () = election.win() => {}
        () = forget_gone(&ctx, &mut woken) => return Err(RunError::Ended("the waker")),
    }
    tokio::select! {
        ended = act(ctx, waker, woken, ready) => ended,
        () = election.keep() => Err(RunError::LeaseLost),
    }
}

/// Acts, as soon as the cluster has been seen.
async fn act(
    ctx: Arc<Context>,
    waker: Arc<Waker>,
    woken: UnboundedReceiver<ObjectRef<CudaRunner>>,
    ready: Waits,
) -> Result<(), RunError> {
    for (name, mut filled) in ready {
        if filled.wait_for(|done| *done).await.is_err() {
            return Err(RunError::Ended(name));
        }
    }
    tracing::info!("acting");
    waker.listen();
    for resource in ctx.pools.iter().flat_map(Store::state) {
        waker.wake(&pools::key_of(&resource));
    }
    // Marking nodes never ends.
    tokio::select! {
        () = controllers(Arc::clone(&ctx), woken) => {}
        () = node_marks::follow(&ctx, &waker) => {}
    }
    Err(RunError::Ended("the controller"))
}

/// What is known of a pool goes with it, also while another replica leads: gates bring their reports to this one, too.
async fn forget_gone(ctx: &Context, woken: &mut UnboundedReceiver<ObjectRef<CudaRunner>>) {
    while let Some(pool) = woken.next().await {
        if ctx.pools.iter().all(|store| store.get(&pool).is_none()) {
            ctx.forget(&key(pool.namespace, pool.name));
        }
    }
}

fn key(namespace: Option<String>, name: String) -> PoolKey {
    PoolKey {
        namespace: namespace.unwrap_or_default(),
        name,
    }
}

/// One controller for each scope, fed by the wakes of its own resources.
async fn controllers(ctx: Arc<Context>, woken: UnboundedReceiver<ObjectRef<CudaRunner>>) {
    let mut inputs = vec![];
    let mut all = vec![];
    for store in &ctx.pools {
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        inputs.push((store.clone(), sender));
        all.push(controller(store.clone(), receiver, Arc::clone(&ctx)));
    }
    let route = woken.for_each(|pool| {
        // A pool that is gone is in none of them, and any finds that out.
        let input = inputs
            .iter()
            .find(|(store, _)| store.get(&pool).is_some())
            .or(inputs.first());
        if let Some((_, sender)) = input {
            // The controller ends only with the process.
            let _ = sender.unbounded_send(pool);
        }
        std::future::ready(())
    });
    tokio::join!(route, futures::future::join_all(all));
}

/// The watch of the resources is ours; the controller gets the wakes alone.
async fn controller(
    store: Store<CudaRunner>,
    woken: impl Stream<Item = ObjectRef<CudaRunner>> + Send + 'static,
    ctx: Arc<Context>,
) {
    Controller::for_stream(futures::stream::pending(), store)
        .with_config(ControllerConfig::default().concurrency(UNBOUNDED))
        .reconcile_on(woken)
        .run(reconcile, on_error, Arc::clone(&ctx))
        .for_each(|result| {
            match result {
                Err(ControllerError::ObjectNotFound(gone)) => {
                    ctx.forget(&key(gone.namespace, gone.name));
                }
                Err(ControllerError::QueueError(error)) => {
                    tracing::warn!(%error, "the controller's queue");
                }
                _ => {}
            }
            std::future::ready(())
        })
        .await;
}

/// The address of the registrar, and the names for its certificate.
///
/// Pods get the Service's address and not its name: a gate then needs no cluster DNS.
async fn registrar_address(
    config: &Config,
    client: &Client,
) -> Result<(String, ServerNames), RunError> {
    if let Some(url) = &config.registrar_url {
        let host = url
            .parse::<http::Uri>()
            .ok()
            .and_then(|uri| uri.host().map(|h| h.trim_matches(['[', ']']).to_owned()))
            .ok_or_else(|| RunError::Service {
                service: url.clone(),
                why: "it is no URL".to_owned(),
            })?;
        return Ok((url.trim_end_matches('/').to_owned(), server_names(&host)));
    }
    let (namespace, name) = (&config.operator_namespace, &config.registrar_service);
    let unusable = |why: String| RunError::Service {
        service: format!("{namespace}/{name}"),
        why,
    };
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let service = insist("the registrar's Service", passes, || services.get(name))
        .await
        .map_err(|e| unusable(e.to_string()))?;
    let spec = service.spec.unwrap_or_default();
    let address = spec
        .cluster_ip
        .filter(|ip| ip.parse::<IpAddr>().is_ok())
        .ok_or_else(|| unusable("it has no cluster IP".to_owned()))?;
    let port = spec.ports.iter().flatten().next().map_or(443, |p| p.port);
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.clone()
    };
    let mut names = server_names(&address);
    names.dns.push(format!("{name}.{namespace}.svc"));
    Ok((format!("https://{host}:{port}"), names))
}

fn server_names(host: &str) -> ServerNames {
    match host.parse() {
        Ok(ip) => ServerNames {
            ips: vec![ip],
            dns: vec![],
        },
        Err(_) => ServerNames {
            dns: vec![host.to_owned()],
            ips: vec![],
        },
    }
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen {
            address: address.to_string(),
            source,
        })
}

/// SIGTERM or SIGINT.
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::tests::{Cluster, context};
    use crate::watch::pools::reference;

    #[tokio::test]
    async fn what_is_known_of_a_pool_goes_with_it() {
        for leads in [true, false] {
            // Given a pool that the operator has counted something of, and that is in no store
            let ctx = context(&Cluster::default()).await;
            let gone = PoolKey {
                namespace: "ci".to_owned(),
                name: "gone".to_owned(),
            };
            ctx.metrics.registered(&gone, "ok");
            let is_known = || ctx.metrics.page(|_| true, vec![]).contains("gone");
            assert!(is_known());

            // When it is woken, on the replica that leads or on another
            let (sender, mut woken) = futures::channel::mpsc::unbounded();
            sender.unbounded_send(reference(&gone)).unwrap();
            let ctx = &ctx;
            let woken = async {
                if leads {
                    controller(ctx.pools[0].clone(), woken, Arc::clone(ctx)).await;
                } else {
                    forget_gone(ctx, &mut woken).await;
                }
            };

            // Then nothing is left of it
            let forgotten = async {
                while is_known() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                () = woken => panic!("it ended"),
                done = tokio::time::timeout(Duration::from_secs(10), forgotten) => done.unwrap(),
            }
        }
    }
}
