//! Which cluster, which namespace, and what may be seen of it.

use std::fmt::Debug;
use std::path::PathBuf;

use clap::Args;
use cudarunner_crds::CudaRunner;
use gate_report::{clean, clean_all};
use k8s_openapi::NamespaceResourceScope;
use kube::api::{ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Error, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Flags that kubectl has, too.
#[derive(Args, Default)]
pub(crate) struct Flags {
    /// Namespace; the kubeconfig's where absent.
    #[arg(short, long, global = true)]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig; the current one where absent.
    #[arg(long, global = true)]
    context: Option<String>,
    /// The kubeconfig; where absent, what KUBECONFIG names or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

impl Flags {
    /// Reads the kubeconfig. No request is made yet.
    pub(crate) async fn connect(self) -> Result<Pools, String> {
        let options = KubeConfigOptions {
            context: self.context,
            ..KubeConfigOptions::default()
        };
        let config = match self.kubeconfig {
            Some(path) => match Kubeconfig::read_from(path) {
                Ok(read) => Config::from_custom_kubeconfig(read, &options)
                    .await
                    .map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            },
            None if options.context.is_some() => Config::from_kubeconfig(&options)
                .await
                .map_err(|e| e.to_string()),
            None => Config::infer().await.map_err(|e| e.to_string()),
        };
        let client = config
            .and_then(|config| Client::try_from(config).map_err(|e| e.to_string()))
            .map_err(|e| format!("no Kubernetes API server: {e}; set KUBECONFIG"))?;
        let namespace = self
            .namespace
            .unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Pools { client, namespace })
    }
}

/// The pools of a namespace, and their neighbours where those may be seen.
pub(crate) struct Pools {
    /// The API server.
    pub(crate) client: Client,
    /// The namespace that was asked for.
    pub(crate) namespace: String,
}

/// What became of an annotation.
pub(crate) enum Annotated {
    /// The pool has it.
    Done(Box<CudaRunner>),
    /// Whoever asked may not change the pool, which is this.
    Forbidden(Box<CudaRunner>),
    /// There is no such pool, as far as may be seen.
    NotThere,
}

impl Pools {
    /// Pools of the namespace.
    pub(crate) fn api(&self) -> Api<CudaRunner> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// One pool.
    pub(crate) async fn get(&self, name: &str) -> Result<CudaRunner, String> {
        let read = self.api().get(name).await.map(shown);
        read.map_err(|e| {
            format!(
                "the CudaRunner {}/{name} cannot be read: {}",
                self.namespace,
                said(&e)
            )
        })
    }

    /// Gives a pool of the namespace an annotation, or reads it where that may not be.
    pub(crate) async fn annotate_if_there(
        &self,
        name: &str,
        annotation: &str,
        value: &str,
    ) -> Result<Annotated, String> {
        let is_part =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || !name.chars().all(is_part) {
            return Ok(Annotated::NotThere);
        }
        let refused = match patch(&self.api(), name, annotation, value).await {
            Ok(pool) => return Ok(Annotated::Done(Box::new(shown(pool)))),
            Err(Error::Api(status)) if status.code == 404 => return Ok(Annotated::NotThere),
            Err(e) => e,
        };
        // Who may not change pools may see them, or that there is none.
        match self.api().get_opt(name).await {
            Ok(None) => Ok(Annotated::NotThere),
            Ok(Some(pool)) if is_forbidden(&refused) => {
                Ok(Annotated::Forbidden(Box::new(shown(pool))))
            }
            _ => Err(not_asked(&self.namespace, name, &refused)),
        }
    }

    /// The pools of all namespaces, or of this one where no more may be listed; by namespace and name.
    pub(crate) async fn all(&self) -> Result<Vec<CudaRunner>, String> {
        let (mut all, _) = self.list::<CudaRunner>(&ListParams::default()).await?;
        all.sort_by_key(|pool| (pool.namespace(), pool.name_any()));
        Ok(all.into_iter().map(shown).collect())
    }

    /// Gives a pool of some namespace an annotation.
    pub(crate) async fn annotate(
        &self,
        namespace: &str,
        name: &str,
        annotation: &str,
        value: &str,
    ) -> Result<(), String> {
        let api = Api::<CudaRunner>::namespaced(self.client.clone(), namespace);
        let patched = patch(&api, name, annotation, value).await;
        patched
            .map(|_| ())
            .map_err(|e| not_asked(namespace, name, &e))
    }

    /// Objects of all namespaces, and `true`; of this namespace where no more may be listed.
    pub(crate) async fn list<K>(&self, which: &ListParams) -> Result<(Vec<K>, bool), String>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let client = self.client.clone();
        let all = match Api::<K>::all(client.clone()).list(which).await {
            Ok(list) => return Ok((list.items, true)),
            Err(e) if !is_forbidden(&e) => Err(e),
            Err(_) => {
                Api::<K>::namespaced(client, &self.namespace)
                    .list(which)
                    .await
            }
        };
        all.map(|list| (list.items, false))
            .map_err(|e| format!("no {} can be listed: {}", K::plural(&()), said(&e)))
    }
}

async fn patch(
    api: &Api<CudaRunner>,
    name: &str,
    annotation: &str,
    value: &str,
) -> kube::Result<CudaRunner> {
    let patch = json!({"metadata": {"annotations": {annotation: value}}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
}

fn not_asked(namespace: &str, name: &str, error: &Error) -> String {
    format!(
        "the CudaRunner {namespace}/{name} cannot be asked: {}",
        said(error)
    )
}

/// Characters of a text that is shown.
const LONGEST: usize = 4_096;

/// A thing as a terminal may show it. Whoever may write a status or a name must not write on other people's screens.
pub(crate) fn shown<T: Serialize + DeserializeOwned>(thing: T) -> T {
    let cleaned =
        serde_json::to_value(&thing).and_then(|value| serde_json::from_value(cleaned(value)));
    cleaned.unwrap_or(thing)
}

/// The same for what has not been read yet.
pub(crate) fn cleaned(mut value: Value) -> Value {
    clean_all(&mut value, LONGEST);
    value
}

/// A pool's `NAMESPACE/NAME`.
pub(crate) fn key(pool: &CudaRunner) -> String {
    format!(
        "{}/{}",
        pool.namespace().unwrap_or_default(),
        pool.name_any()
    )
}

/// What an API server says, without what the client adds.
pub(crate) fn said(error: &Error) -> String {
    match error {
        // Through its proxy others speak, too.
        Error::Api(status) if !status.message.is_empty() => clean(&status.message, LONGEST),
        other => clean(&other.to_string(), LONGEST),
    }
}

/// Whether an error stays, however often one asks.
pub(crate) fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 401 || status.code == 403)
}
