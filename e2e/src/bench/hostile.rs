//! A server that answers with whatever it likes costs its own pools their runners, and no others anything.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use axum::body::Body;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Response, header};
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::AbortHandle, time::sleep};

use super::{
    Bed, Run,
    bed::pool,
    figure::{Budget, Figure},
    slow_github::{RUNNERS, scale_out},
};
use crate::{certs::Certificates, suites::Ctx, tls};

/// Pools at that server, a quarter for each of its ways.
const POOLS: usize = 100;
/// Well-behaved pools that are made, one after the other, without those and beside them.
const ROUNDS: usize = 5;
/// For so long the operator has asked that server, and asked again, before its memory is read.
const WHILE: Duration = Duration::from_mins(1);
/// What the names of the Secret and of the ConfigMap of its pools begin with.
const NAME: &str = "hostile";
/// A long body.
const LONG: usize = 16 * 1024 * 1024;
/// Runners of the page that has too many.
const TINY: usize = 883_000;

/// The operator's memory at its peak, and what a well-behaved pool has to wait. The floors are the memory with the
/// well-behaved pools alone, and what they wait then.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let (mut ours, mut floor) = (vec![], vec![]);
    let (mut peak, mut before) = (vec![], vec![]);
    for number in 0..run.runs {
        run.story.step(&format!(
            "beside a server that answers with whatever it likes: run {} of {}",
            number + 1,
            run.runs
        ));
        Bed::with(2 * ROUNDS * RUNNERS, async |bed| {
            bed.started().await?;
            floor.extend(rounds(bed, "alone").await?);
            before.push(bed.memory()?.1);
            let hostile = bed.ctx(NAME).await?;
            let server = Server::start(&hostile).await?;
            apply_all(&hostile, &server.origin).await?;
            ours.extend(rounds(bed, "beside").await?);
            sleep(WHILE).await;
            peak.push(bed.memory()?.1);
            drop(server);
            Ok(())
        })
        .await?;
    }
    Ok(vec![
        Figure {
            name: format!(
                "memory at its peak, {POOLS} pools at a server that answers with whatever it likes"
            ),
            unit: "MiB",
            ours: peak,
            floor: before,
            budget: Some(Budget::AtMost(128.0)),
        },
        Figure {
            name: format!("a new pool's {RUNNERS} pods beside them"),
            unit: "s",
            ours,
            floor,
            budget: Some(Budget::TimesFloor(1.25)),
        },
    ])
}

/// Makes well-behaved pools, one after the other; what each took.
async fn rounds(bed: &Bed, name: &str) -> Result<Vec<f64>> {
    let mut times = vec![];
    for number in 0..ROUNDS {
        times.push(scale_out(&bed.ctx(&format!("{name}-{number}")).await?).await?);
    }
    Ok(times)
}

/// Makes the pools of that server.
async fn apply_all(ctx: &Ctx, origin: &str) -> Result<()> {
    stream::iter((0..POOLS).map(anyhow::Ok))
        .try_for_each_concurrent(16, async |number| {
            let (way, _) = WAYS[number % WAYS.len()];
            let mut spec = pool(1);
            spec["github"] = json!({
                "url": format!("{origin}/{NAME}/{way}-{number}"),
                "credentialsRef": {"name": NAME},
                "caBundleRef": {"name": NAME},
            });
            ctx.apply(&ctx.pool(&format!("{NAME}-{number}"), spec))
                .await
        })
        .await
}

/// Makes an answer's body.
type Answer = fn(&Bodies) -> Body;

/// What it answers, by a part of the repository's name.
const WAYS: [(&str, Answer); 4] = [
    // Each page is good, and there is always another one.
    ("endless", |bodies| bodies.page.clone().into()),
    ("long", |bodies| bodies.long.clone().into()),
    ("tiny", |bodies| bodies.tiny.clone().into()),
    ("trickle", |_| {
        let drops = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(b" ")));
        Body::from_stream(drops.then(|drop| async {
            sleep(Duration::from_millis(500)).await;
            drop
        }))
    }),
];

/// Made once: the server is not to cost more than its answers do.
struct Bodies {
    page: Bytes,
    long: Bytes,
    tiny: Bytes,
}

impl Bodies {
    fn new() -> Self {
        let runner = |id: usize| json!({"id": id, "name": format!("runner-{id}"), "os": "linux", "status": "online", "busy": false, "labels": []});
        let runners: Vec<Value> = (1..=100).map(runner).collect();
        let page = json!({"total_count": u32::MAX, "runners": runners}).to_string();
        let long = format!(
            "{{\"total_count\": 1, \"runners\": [], \"x\": \"{}\"}}",
            "x".repeat(LONG)
        );
        let tiny = vec![r#"{"id":1,"name":""}"#; TINY].join(",");
        Self {
            page: page.into(),
            long: long.into(),
            tiny: format!("{{\"total_count\": {TINY}, \"runners\": [{tiny}]}}").into(),
        }
    }

    fn answer(&self, path: &str) -> Response<Body> {
        let way = WAYS.iter().find(|(name, _)| path.contains(name));
        let (_, body) = way.unwrap_or(&WAYS[0]);
        let mut answer = Response::new(body(self));
        let json = header::HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, json);
        answer
    }
}

/// The server. It ends with this.
struct Server {
    origin: String,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Starts it, beside the simulated GitHub; what its pools need to ask it lies in the namespace.
    async fn start(ctx: &Ctx) -> Result<Self> {
        let github = ctx.cluster.github.trim_start_matches("https://");
        let address = github.parse::<SocketAddr>().context("GitHub's address")?;
        let certs = Certificates::create(&ctx.cluster.dir.join(NAME), "A server")?;
        certs.server(NAME, &[], &[address.ip()])?;
        let read = |file: &str| std::fs::read_to_string(certs.path(file)).context("a certificate");
        let secret = json!({"metadata": {"name": NAME}, "stringData": {"token": "token"}});
        let authority = json!({"metadata": {"name": NAME}, "data": {"ca.crt": read("ca.crt")?}});
        let (secrets, maps): (Api<Secret>, Api<ConfigMap>) = (ctx.api(), ctx.api());
        secrets
            .create(&PostParams::default(), &serde_json::from_value(secret)?)
            .await?;
        maps.create(&PostParams::default(), &serde_json::from_value(authority)?)
            .await?;

        let certificate = read(&format!("{NAME}.crt"))?;
        let acceptor = tls::acceptor(&certificate, &read(&format!("{NAME}.key"))?)?;
        let listener = TcpListener::bind((address.ip(), 0)).await?;
        let origin = format!("https://{}", listener.local_addr()?);
        let bodies = Arc::new(Bodies::new());
        let task = tokio::spawn(tls::serve(listener, move |stream| {
            let bodies = Arc::clone(&bodies);
            tls::converse(acceptor.clone(), stream, move |request| {
                std::future::ready(Ok::<_, Infallible>(bodies.answer(request.uri().path())))
            })
        }));
        Ok(Self {
            origin,
            task: task.abort_handle(),
        })
    }
}
