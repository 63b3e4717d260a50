//! Which of several replicas acts, and until when.
//!
//! The lease tells who acts. That alone does not stop a process which cannot renew it, because it hears nothing: so it also
//! goes by its own clock, and stops to write before any other replica could have the lease.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, Client};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

use crate::insist::{insist, passes};

/// Name of the Lease, in the operator's namespace.
const LEASE: &str = "cuda-runner-operator";
/// For so long the lease is its holder's after each renewal.
const DURATION: Duration = Duration::from_secs(30);
/// It is renewed when so much of that is left.
const GRACE: Duration = Duration::from_secs(15);
/// Its holder stops to write when so much of it is left: what is on its way by then arrives in time, or is cut off.
const MARGIN: Duration = Duration::from_secs(5);

/// How often a replica that stands by looks at the lease.
const LOOK: Duration = Duration::from_secs(2);
/// So long it tries to have one that is free, before it looks again: eight requests, of a slow API server too.
const TURN: Duration = Duration::from_secs(15);

/// Waits until this replica leads. The channel turns false when it does not any more: whoever acts must stop at once.
/// `client` must be one that [`Fence::renewals`] looks at.
///
/// The manager compares the holder's clock with ours, so it is let near a lease only that has not changed for its time by
/// our clock alone.
pub async fn lead(
    client: Client,
    namespace: &str,
    identity: &str,
) -> Result<watch::Receiver<bool>, LeaseManagerError> {
    let leases = Api::<Lease>::namespaced(client.clone(), namespace);
    let mut seen = Seen::default();
    loop {
        match leases.get_opt(LEASE).await {
            Ok(lease) => {
                let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
                if seen.is_free(&spec, identity, Instant::now()) {
                    let (mut leading, manager) =
                        compete(client.clone(), namespace, identity).await?;
                    let wins = leading.wait_for(|leads| *leads);
                    if matches!(tokio::time::timeout(TURN, wins).await, Ok(Ok(_))) {
                        return Ok(leading);
                    }
                    // It gives back what it may have got by now: no other of ours may have it meanwhile.
                    drop(leading);
                    if let Ok(Err(error)) = manager.await {
                        tracing::warn!(%error, "the lease was not given back");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the lease cannot be read"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The lease as it was last seen, and since when.
#[derive(Default)]
struct Seen(Option<(LeaseSpec, Instant)>);

impl Seen {
    /// Whether nobody else holds the lease: it has no holder, or was not renewed for its time while we looked.
    fn is_free(&mut self, spec: &LeaseSpec, identity: &str, now: Instant) -> bool {
        let since = match &self.0 {
            Some((last, since)) if last == spec => *since,
            _ => now,
        };
        self.0 = Some((spec.clone(), since));
        let said = spec.lease_duration_seconds.unwrap_or_default();
        let said = Duration::from_secs(said.max(0).unsigned_abs().into());
        match spec.holder_identity.as_deref() {
            None | Some("") => true,
            Some(holder) => holder == identity || now - since >= said.max(DURATION),
        }
    }
}

/// The manager's task.
type Managing = tokio::task::JoinHandle<Result<LeaseManager, LeaseManagerError>>;

/// Has the manager try to get the lease, and keep it.
async fn compete(
    client: Client,
    namespace: &str,
    identity: &str,
) -> Result<(watch::Receiver<bool>, Managing), LeaseManagerError> {
    let manager = insist("the lease", may_pass, || {
        LeaseManagerBuilder::new(client.clone(), LEASE)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_duration(DURATION.as_secs())
            .with_grace(GRACE.as_secs())
            .build()
    })
    .await?;
    // The manager ends when all receivers are gone.
    Ok(manager.watch().await)
}

/// Whether the lease may be had at another try. Another replica may make or take away the object at the same time.
fn may_pass(error: &LeaseManagerError) -> bool {
    match error {
        LeaseManagerError::KubeError(error) => passes(error),
        LeaseManagerError::LeaseAlreadyExists(_) | LeaseManagerError::NonexistentLease(_) => true,
        LeaseManagerError::InconsistentState(_) | LeaseManagerError::ControlChannelError(_) => {
            false
        }
    }
}

/// Until when this process may write, by its own clock. Without leader election there is no end.
#[derive(Clone, Debug, Default)]
pub struct Fence(Option<Arc<Mutex<Option<Instant>>>>);

/// A write that came too late.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this replica could not renew its lease in time, so another one may act by now")]
pub struct NotLeading;

impl Fence {
    /// A fence that is closed until the lease is renewed for the first time.
    #[must_use]
    pub fn closed() -> Self {
        Self(Some(Arc::default()))
    }

    /// Whether a write may begin.
    pub fn check(&self) -> Result<(), NotLeading> {
        let is_open = match &self.0 {
            None => true,
            Some(until) => lock(until).is_some_and(|until| Instant::now() < until),
        };
        is_open.then_some(()).ok_or(NotLeading)
    }

    /// Waits until writes may begin.
    pub async fn opens(&self) {
        while self.check().is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until no write may begin any more; for ever without leader election.
    pub async fn closes(&self) {
        let Some(until) = &self.0 else {
            return std::future::pending().await;
        };
        while self.check().is_ok() {
            let moment = *lock(until);
            tokio::time::sleep_until(moment.unwrap_or_else(Instant::now)).await;
        }
    }

    /// The lease was renewed by a request that began at `moment`.
    fn renewed(&self, moment: Instant) {
        if let Some(until) = &self.0 {
            let mut until = lock(until);
            *until = (*until).max(Some(moment + DURATION - MARGIN));
        }
    }

    /// Sees to it that renewals open the fence: for the client that renews the lease, and for nothing else.
    #[must_use]
    pub fn renewals(&self) -> Renewals {
        Renewals(self.clone())
    }

    /// Refuses writes when the fence is closed: for the client of whoever acts.
    pub fn refuse<B>(&self, request: Request<B>) -> Result<Request<B>, BoxError> {
        if *request.method() != Method::GET {
            self.check()?;
        }
        Ok(request)
    }
}

fn lock(until: &Mutex<Option<Instant>>) -> std::sync::MutexGuard<'_, Option<Instant>> {
    until.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks for renewals among the requests of a client.
#[derive(Clone, Debug)]
pub struct Renewals(Fence);

impl<S> Layer<S> for Renewals {
    type Service = Renewing<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Renewing {
            inner,
            fence: self.0.clone(),
        }
    }
}

/// A client whose renewals open the fence.
#[derive(Clone, Debug)]
pub struct Renewing<S> {
    inner: S,
    fence: Fence,
}

impl<S, A, B> Service<Request<A>> for Renewing<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let renews = *request.method() == Method::PATCH;
        let fence = self.fence.clone();
        // The lease runs from the time that is in the request, which is before this.
        let began = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if renews && answer.status().is_success() {
                fence.renewed(began);
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use tower::ServiceExt as _;

    /// A renewal that takes `answer` to be answered with `status`.
    async fn renew(fence: &Fence, answer: Duration, status: u16) {
        let server = tower::service_fn(move |_: Request<()>| async move {
            tokio::time::sleep(answer).await;
            Ok::<_, BoxError>(Response::builder().status(status).body(()).unwrap())
        });
        let request = Request::patch("/lease").body(()).unwrap();
        let renewing = fence.renewals().layer(server);
        renewing.oneshot(request).await.unwrap();
    }

    fn write(fence: &Fence) -> bool {
        fence
            .refuse(Request::post("/pods").body(()).unwrap())
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn writing_ends_before_the_lease_can_be_anothers() {
        // Given a lease that was had with an answer that took two seconds
        let fence = Fence::closed();
        assert!(!write(&fence));
        renew(&fence, Duration::from_secs(2), 200).await;

        // Then this replica may write until five seconds before its end, counted from when the renewal began
        tokio::time::advance(Duration::from_secs(22)).await;
        assert!(write(&fence));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!write(&fence));
        assert!(
            fence
                .refuse(Request::get("/pods").body(()).unwrap())
                .is_ok()
        );
        fence.closes().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_counts_from_when_it_began_and_only_if_it_worked() {
        let fence = Fence::closed();
        renew(&fence, Duration::ZERO, 200).await;
        // When renewals fail, or hang for so long that their time is over
        renew(&fence, Duration::from_secs(10), 500).await;
        renew(&fence, Duration::from_secs(40), 200).await;
        // Then nothing may be written, whatever came at last
        assert!(!write(&fence));

        // And one in time keeps the fence open for the time of that one
        renew(&fence, Duration::from_secs(1), 200).await;
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(write(&fence));
        let started = Instant::now();
        fence.closes().await;
        assert_eq!(started.elapsed(), Duration::from_secs(4));
    }

    #[test]
    fn a_lease_is_free_when_nobody_renews_it_whatever_its_holders_clock_says() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let held = |renewed: i64| LeaseSpec {
            holder_identity: Some("other".to_owned()),
            lease_duration_seconds: Some(30),
            renew_time: Some(MicroTime(jiff::Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        };
        // Given a holder whose clock is a day behind or ahead, and who renews, then the lease is its own
        let mut seen = Seen::default();
        let day = 86_400;
        for (time, renewed) in [(0, -day), (15, day), (30, 0), (59, 0)] {
            assert!(!seen.is_free(&held(renewed), "me", at(time)), "{time}");
        }
        // When it was not renewed for its time by our clock, then it is free
        assert!(seen.is_free(&held(0), "me", at(60)));

        // One that nobody has, or that was ours, is free at once
        for holder in [None, Some(""), Some("me")] {
            let spec = LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                ..held(0)
            };
            assert!(Seen::default().is_free(&spec, "me", at(0)), "{holder:?}");
        }
    }

    #[tokio::test]
    async fn without_an_election_nothing_is_refused() {
        assert!(write(&Fence::default()));
    }
}
