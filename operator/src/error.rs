//! What can go wrong: in the steps of a reconcile, each with a category for logs and metrics, and at the start.

use crate::github;
use crate::guard::Panicked;
use crate::lease::NotLeading;
use crate::registrar::store::StoreError;
use crate::webhook::keys::KeysError;

/// Why an action was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The API server refused or did not answer.
    #[error("Kubernetes: {0}")]
    Kubernetes(#[from] kube::Error),
    /// GitHub refused or did not answer.
    #[error(transparent)]
    GitHub(#[from] github::Error),
    /// An action needs GitHub, and there are no credentials.
    #[error("there are no credentials with which to ask GitHub")]
    NoClient,
    /// A pod registers at an address that the pool's status does not have.
    #[error(
        "a runner registers at {0}, and status.registeredAt and status.leftAt do not have that address, so it cannot be asked whether it has a job; delete its pod when it has none"
    )]
    UnknownAddress(String),
    /// Another replica may act by now.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
}

/// Why a reconcile did not come to its end. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Some actions were not carried out; the first of them is named.
    #[error("{count} actions failed; the first: {first}")]
    Act {
        /// How many.
        count: usize,
        /// The first.
        first: ActError,
    },
    /// Who serves the pool could not be written: it may have changed meanwhile.
    #[error("this operator could not be named in the pool's status: {0}")]
    Owner(#[source] kube::Error),
    /// The status could not be written.
    #[error("the status could not be written: {0}")]
    Status(#[source] kube::Error),
    /// A mistake of ours.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl ReconcileError {
    /// One word, stable.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Act {
                first: ActError::GitHub(error),
                ..
            } => error.category(),
            Self::Act {
                first: ActError::NoClient,
                ..
            } => "NoCredentials",
            Self::Act {
                first: ActError::UnknownAddress(_),
                ..
            } => "UnknownAddress",
            Self::Act {
                first: ActError::NotLeading(_),
                ..
            } => "NotLeading",
            Self::Act { .. } | Self::Owner(_) => "Kubernetes",
            Self::Status(_) => "Status",
            Self::Panicked(_) => "Panic",
        }
    }
}

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
    Ca(#[from] StoreError),
    /// The keys of webhooks cannot be had.
    #[error("webhooks: {0}")]
    Webhooks(#[from] KeysError),
    /// The lease was lost: another replica acts now.
    #[error("this replica does not lead any more")]
    LeaseLost,
    /// A part that runs permanently ended.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}
