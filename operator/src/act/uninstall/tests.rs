//! With an API server of two pools that are held.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use cuda_runner_plan::fixture;

/// What a pool does when its finalizer is taken off.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// It is gone permanently.
    LetsGo,
    /// Somebody puts it back.
    ComesBack,
    /// It has changed once meanwhile.
    Changes,
    /// A webhook refuses.
    Refuses,
    /// It names another operator.
    IsOthers,
}

/// The pools, by name: whether they are held, and what they do.
type Pools = BTreeMap<String, (bool, Manner)>;

#[derive(Clone)]
struct Server(Arc<Mutex<Pools>>, Arc<Mutex<Vec<String>>>);

impl Server {
    fn new(first: Manner, second: Manner) -> Self {
        let pools = [("first", first), ("second", second)];
        let held = pools.map(|(name, manner)| (name.to_owned(), (true, manner)));
        Self(Arc::new(Mutex::new(held.into())), Arc::default())
    }

    /// Runs the command on it: what comes of it, and the pools that are still held.
    async fn uninstall(&self) -> (Result<(), UninstallError>, Vec<String>) {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move {
                let (parts, body) = request.into_parts();
                body.collect().await.unwrap();
                Ok::<_, Infallible>(this.answer(&parts.method, parts.uri.path()))
            }
        });
        let args = Uninstall {
            operator_namespace: "system".to_owned(),
            operator_selector: "a=b".to_owned(),
            watch_namespace: vec![],
            pool_selector: None,
            lease_name: "operator".to_owned(),
        };
        let ended = uninstall(&Client::new(service, "default"), &args).await;
        let pools = self.0.lock().unwrap();
        let held = pools.iter().filter(|(_, (held, _))| *held);
        (ended, held.map(|(name, _)| name.clone()).collect())
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Body> {
        let mut pools = self.0.lock().unwrap();
        let name = path.rsplit('/').next().unwrap_or_default();
        if method == Method::DELETE {
            self.1.lock().unwrap().push(path.to_owned());
        }
        let (status, answer) = match (method, name) {
            (&Method::GET, "pods") => (200, json!({"metadata": {}, "items": []})),
            (&Method::GET, "cudarunners") => (200, json!({"metadata": {}, "items": list(&pools)})),
            (&Method::PATCH, name) => {
                let (held, manner) = pools.get_mut(name).unwrap();
                match manner {
                    Manner::LetsGo => *held = false,
                    Manner::ComesBack | Manner::IsOthers => {}
                    Manner::Changes => *manner = Manner::LetsGo,
                    Manner::Refuses => return refusal(403),
                }
                if *manner == Manner::LetsGo && *held {
                    return refusal(409);
                }
                (200, json!({"metadata": {"name": name}}))
            }
            _ => (201, json!({})),
        };
        respond(status, &answer)
    }
}

fn list(pools: &Pools) -> Vec<Value> {
    let held = pools.iter().filter(|(_, (held, _))| *held);
    held.map(|(name, (_, manner))| {
        let mut pool = serde_json::to_value(fixture::resource()).unwrap();
        pool["metadata"]["name"] = json!(name);
        pool["metadata"]["uid"] = json!(name);
        pool["metadata"]["finalizers"] = json!([FINALIZER]);
        let operator = if *manner == Manner::IsOthers {
            "another"
        } else {
            "operator"
        };
        pool["status"]["operator"] = json!({"namespace": "system", "name": operator});
        pool["status"]["conditions"] = json!([]);
        pool
    })
    .collect()
}

fn refusal(code: u16) -> Response<Body> {
    respond(
        code,
        &json!({"status": "Failure", "message": "no", "reason": "", "code": code}),
    )
}

fn respond(status: u16, body: &Value) -> Response<Body> {
    let body = Body::from(body.to_string().into_bytes());
    Response::builder().status(status).body(body).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_lease_goes_last_so_that_another_operator_can_take_the_pools() {
    let leases = "/apis/coordination.k8s.io/v1/namespaces/system/leases/operator";
    for (manner, removed) in [(Manner::LetsGo, vec![leases]), (Manner::Refuses, vec![])] {
        let server = Server::new(manner, Manner::LetsGo);
        let _ = server.uninstall().await;
        assert_eq!(*server.1.lock().unwrap(), removed);
    }
}

#[tokio::test(start_paused = true)]
async fn every_pool_is_let_go_one_that_changes_meanwhile_too() {
    let (ended, held) = Server::new(Manner::Changes, Manner::LetsGo)
        .uninstall()
        .await;
    ended.unwrap();
    assert!(held.is_empty(), "{held:?}");
}

#[tokio::test(start_paused = true)]
async fn another_operators_pool_is_not_fought_over() {
    let (ended, _) = Server::new(Manner::LetsGo, Manner::ComesBack)
        .uninstall()
        .await;
    let error = ended.unwrap_err();
    assert!(matches!(&error, UninstallError::ComesBack(pool) if pool.ends_with("second")));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_names_another_operator_keeps_its_finalizer() {
    let (ended, held) = Server::new(Manner::LetsGo, Manner::IsOthers)
        .uninstall()
        .await;
    ended.unwrap();
    assert_eq!(held, ["second"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_changed_does_not_hold_the_others() {
    let (ended, held) = Server::new(Manner::Refuses, Manner::LetsGo)
        .uninstall()
        .await;
    let error = ended.unwrap_err().to_string();
    assert!(
        error.contains("first") && error.contains("run it again"),
        "{error}"
    );
    assert_eq!(held, ["first"]);
}
