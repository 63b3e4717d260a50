//! Starts the parts and ends with the first of them that ends.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::SignedDuration;
use kube::Client;
use kube::runtime::events::Reporter;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::act::events::Events;
use crate::act::hours;
use crate::config::Config;
use crate::context::{CONTROLLER, CREATIONS, Context, STATUS_WRITES};
use crate::controllers::control;
use crate::ended::EndedRunners;
use crate::error::RunError;
use crate::fleet::{self, Source};
use crate::github::Clients;
use crate::kubernetes::{self, api_server, fenced};
use crate::lease::{Election, Fence};
use crate::listen::Listeners;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::owner::Ownership;
use crate::per_pool::PerPool;
use crate::registrar::address::registrar_address;
use crate::registrar::{self, Bounds, CaStore, Ledger, Limits, Parts, Rate, Reviewer};
use crate::registration::OperatorBackend;
use crate::server::{self, Started};
use crate::shares::Shares;
use crate::specs::Specs;
use crate::telemetry::Telemetry;
use crate::watch::Waker;
use crate::watch::objects::{Breadth, Objects};
use crate::watch::stores::Stores;
use crate::webhook::desk::OperatorDesk;
use crate::webhook::keys::Keys;
use crate::webhook::{self, Webhooks};

/// Bounds of the registrar: what a thousand runners that start at once need, with three requests each, and not much more.
const LIMITS: Limits = Limits {
    // An address may be a whole cluster's, where the operator is outside of it.
    door: Bounds {
        connections: 1024,
        per_address: 128,
        handshakes_per_address: 32,
        arrivals: Rate {
            burst: 768,
            per_minute: 9000,
        },
        refusals: Rate {
            burst: 16,
            per_minute: 30,
        },
    },
    reviews: 64,
    pool: Rate {
        burst: 3000,
        per_minute: 3600,
    },
    // The agent's hook asks each second.
    looks: Rate {
        burst: 10,
        per_minute: 120,
    },
    request_timeout: Duration::from_secs(30),
};

/// Runs until a signal comes or a part fails.
pub async fn run(config: Config, telemetry: Arc<Telemetry>) -> Result<(), RunError> {
    let client = kubernetes::renewing().await?;
    let selector = config.pool_selector.as_ref().map(ToString::to_string);
    let mut election = Election::new(client, &config.operator(), &config.identity)
        .serving(selector, &config.watch_namespace);
    if !config.leader_elect {
        election = election.alone();
    }
    // First of all: a process that waits for what must be there lives.
    let health = listen(config.health_listen).await?;
    let started: Arc<OnceLock<Started>> = Arc::default();
    let ended = tokio::select! {
        _ = server::serve(health, Arc::clone(&started)) => Err(RunError::Ended("the health endpoint")),
        ended = operate(&config, telemetry, &mut election, &started) => ended,
        () = signal() => {
            tracing::info!("a signal asks for the end");
            Ok(())
        }
    };
    if let Some(started) = started.get() {
        hours::report_waiting(&started.ctx);
    }
    election.release().await;
    ended
}

/// Starts the parts, and ends with the first of them that ends.
async fn operate(
    config: &Config,
    telemetry: Arc<Telemetry>,
    election: &mut Election,
    started: &OnceLock<Started>,
) -> Result<(), RunError> {
    let client = kubernetes::client().await?;
    let (registrar_url, names) = registrar_address(config, &client).await?;
    let ca = CaStore::open(client.clone(), &config.operator_namespace, names).await?;
    let webhooks = webhooks(config, &client).await?;
    let (waker, woken) = Waker::new();
    let waker = Arc::new(waker);
    let stores = Stores::watch(config, &client, &waker);
    let filled = stores.filled.clone();
    let beginning = Beginning {
        client: client.clone(),
        registrar_url,
        ca: Arc::clone(&ca),
        waker: Arc::clone(&waker),
        stores,
        fence: election.fence(),
        webhooks,
    };
    let ctx = Arc::new(beginning.context(config).await);

    // It is set once.
    let _ = started.set(Started {
        waits: filled.clone(),
        ctx: Arc::clone(&ctx),
    });
    let endpoint = listen(config.registrar_listen).await?;
    let admin = match config.admin_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let page = match config.fleet.fleet_listen {
        Some(address) => {
            let source = Source::new(config, &ctx, filled.clone());
            Some((listen(address).await?, source))
        }
        None => None,
    };
    let hooks = endpoint_of_webhooks(config, &ctx, &client).await?;
    let registrar = registrar::serve(
        endpoint,
        ca.server_config(),
        Parts {
            reviewer: Reviewer::new(client.clone()),
            ca: Arc::clone(&ca),
            backend: Arc::new(OperatorBackend::new(Arc::clone(&ctx), waker, client)),
            ledger: Arc::clone(&ctx.ledger),
            limits: LIMITS,
        },
        std::future::pending(),
    );
    tokio::select! {
        () = registrar => Err(RunError::Ended("the registrar")),
        _ = server::serve_admin(admin, telemetry) => Err(RunError::Ended("the admin endpoint")),
        () = fleet::server::serve(page, config.fleet.fleet_host.clone()) => Err(RunError::Ended("the fleet page")),
        () = webhook::server::serve(hooks) => Err(RunError::Ended("the endpoint of webhooks")),
        () = Arc::clone(&ca).maintain() => Err(RunError::Ended("the upkeep of the certificate authority")),
        ended = control(election, ctx, woken, filled) => ended,
    }
}

/// What there is before anything is observed or served.
struct Beginning {
    client: Client,
    registrar_url: String,
    ca: Arc<CaStore>,
    waker: Arc<Waker>,
    stores: Stores,
    fence: Fence,
    webhooks: Option<Arc<Webhooks>>,
}

impl Beginning {
    /// What all reconciles share.
    async fn context(self, config: &Config) -> Context {
        let Self {
            client,
            waker,
            fence,
            ..
        } = self;
        let acting = fenced(&client, &fence);
        // In namespaces that are named the chart grants no more than named objects.
        let breadth = if config.watch_namespace.is_empty() {
            Breadth::Namespace
        } else {
            Breadth::Object
        };
        Context {
            clients: Clients::new(config.reach.reach(api_server().await.into_iter())),
            ownership: Ownership::new(
                config.operator(),
                config.pool_selector.clone(),
                client.clone(),
            ),
            beside: self.stores.beside,
            pools: self.stores.pools,
            pods: self.stores.pods,
            nodes: self.stores.nodes,
            shares: Shares::new(self.stores.others, config.namespace_weights()),
            marking: config.marks.marking(),
            tainting: config.device_taints.tainting(),
            devices: self.stores.devices,
            secrets: Objects::new(client.clone(), Arc::clone(&waker), breadth),
            config_maps: Objects::new(client, Arc::clone(&waker), breadth),
            specs: Specs::new(config.insecure_github),
            memory: Memory::default(),
            ended: EndedRunners::default(),
            listeners: Listeners::default(),
            status_writes: PerPool::default(),
            status_turns: Arc::new(Semaphore::new(STATUS_WRITES)),
            metrics: Metrics::default().by_repository(config.metrics_by_repository),
            events: Events::start(
                acting.clone(),
                Reporter {
                    controller: CONTROLLER.to_owned(),
                    instance: Some(config.identity.clone()),
                },
            ),
            webhooks: self.webhooks,
            waker,
            creations: Semaphore::new(CREATIONS),
            ca: self.ca,
            ledger: Arc::new(books(config)),
            registrar_url: self.registrar_url,
            gate_image: config.gate_image.clone(),
            image_pull_policy: config.image_pull_policy.clone(),
            hung_after: SignedDuration::from_secs(config.hung_after_seconds.into()),
            insecure_github: config.insecure_github,
            client: acting,
            fence,
        }
    }
}

/// Where webhooks are taken, if anywhere.
async fn endpoint_of_webhooks(
    config: &Config,
    ctx: &Arc<Context>,
    client: &Client,
) -> Result<Option<(TcpListener, OperatorDesk)>, RunError> {
    let address = config.webhooks.webhook_listen;
    let Some((address, webhooks)) = address.zip(ctx.webhooks.clone()) else {
        return Ok(None);
    };
    let desk = OperatorDesk::new(Arc::clone(ctx), webhooks, client.clone());
    Ok(Some((listen(address).await?, desk)))
}

/// The webhooks that are taken, where any are.
async fn webhooks(config: &Config, client: &Client) -> Result<Option<Arc<Webhooks>>, RunError> {
    let endpoint = &config.webhooks;
    let Some((_, url)) = endpoint.webhook_listen.zip(endpoint.webhook_url.as_ref()) else {
        return Ok(None);
    };
    let keys = Keys::open(client.clone(), &config.operator_namespace).await?;
    Ok(Some(Arc::new(Webhooks::new(url, keys))))
}

/// Each of several replicas answers gates: none of them knows of all registrations.
fn books(config: &Config) -> Ledger {
    if config.leader_elect {
        Ledger::default()
    } else {
        Ledger::alone()
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
