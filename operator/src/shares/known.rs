//! A pool as every operator sees it, from its resource alone: the shares of several operators rest on that.

use std::sync::Arc;

use cudarunner_crds::{CudaRunner, CudaRunnerStatus, OperatorStatus};
use jiff::Timestamp;
use kube::ResourceExt as _;

use cuda_runner_plan::shares::{Claim, Needs};

/// What is kept of a pool. Its author decides on none of the sizes: each is bounded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Known {
    /// The resource.
    pub uid: String,
    /// The operator that serves it.
    pub operator: Option<OperatorStatus>,
    /// What it needs.
    pub needs: Arc<Needs>,
    is_deleting: bool,
    claim: Claim,
    served: Option<Timestamp>,
}

impl Known {
    /// What a resource tells. `needs` are its own as every operator sees them, [`Needs::seen`].
    #[must_use]
    pub fn of(resource: &CudaRunner, needs: Arc<Needs>) -> Self {
        let none = CudaRunnerStatus::default();
        let status = resource.status.as_ref().unwrap_or(&none);
        Self {
            uid: resource.uid().unwrap_or_default(),
            operator: resource.operator().cloned(),
            is_deleting: resource.metadata.deletion_timestamp.is_some(),
            claim: Claim::of(&needs, status),
            served: served(status),
            needs,
        }
    }

    /// What it would have, where it has so many runners with a node, and some operators are `gone`. Whom no operator serves can
    /// use no GPU: it has what its runners hold.
    #[must_use]
    pub fn claim(&self, runners: usize, is_gone: impl Fn(&OperatorStatus) -> bool) -> Claim {
        let operator = self.operator.as_ref();
        let is_served = operator.is_some_and(|operator| !is_gone(operator));
        if self.is_deleting || !is_served {
            return Claim::default();
        }
        self.claim.clone().seen(&self.needs, runners)
    }

    /// When a runner of its last began or ended, where the last that has a pod began at `begun`.
    #[must_use]
    pub fn served(&self, begun: Option<Timestamp>) -> Option<Timestamp> {
        self.served.max(begun)
    }
}

/// When a runner last ended, as a status tells.
#[must_use]
pub fn served(status: &CudaRunnerStatus) -> Option<Timestamp> {
    let jobs = status.last_jobs.iter().map(|job| job.finished_at.0);
    let failures = status.last_failures.iter().map(|failure| failure.at.0);
    jobs.chain(failures).max()
}
