//! Until when this process may write.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use tokio::sync::RwLock;
use tokio::time::Instant;
use tower::BoxError;
use tracing::Instrument as _;

use super::{DURATION, MARGIN};

/// Until when this process may write, by its own clock. Without leader election there is no end.
#[derive(Clone, Debug, Default)]
pub struct Fence(Option<Arc<Gate>>);

#[derive(Debug, Default)]
struct Gate {
    until: Mutex<Option<Instant>>,
    /// Each write that is under way reads it.
    writes: Arc<RwLock<()>>,
}

/// A write that came too late.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this replica could not renew its lease in time, so another one may act by now")]
pub struct NotLeading;

impl Fence {
    /// A fence that is closed until the lease is renewed for the first time.
    pub(crate) fn closed() -> Self {
        Self(Some(Arc::default()))
    }

    /// Whether a write may begin.
    pub fn check(&self) -> Result<(), NotLeading> {
        let is_open = match &self.0 {
            None => true,
            Some(gate) => gate.until().is_some_and(|until| Instant::now() < until),
        };
        is_open.then_some(()).ok_or(NotLeading)
    }

    /// Sends a request of whoever acts. One that writes is refused when the fence is closed, and goes on to its answer when
    /// nobody waits for that any more: `close` must know of it.
    pub async fn send(
        &self,
        client: Client,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
        let Some(gate) = self.0.as_ref().filter(|_| *request.method() != Method::GET) else {
            return Ok(client.send(request).await?);
        };
        let under_way = Arc::clone(&gate.writes).read_owned().await;
        self.check()?;
        let sent = async move {
            let answer = client.send(request).await;
            drop(under_way);
            answer
        };
        Ok(tokio::spawn(sent.in_current_span()).await??)
    }

    /// Waits until no write may begin any more; for ever without leader election.
    pub(super) async fn closes(&self) {
        let Some(gate) = &self.0 else {
            return std::future::pending().await;
        };
        while self.check().is_ok() {
            let moment = *gate.until();
            tokio::time::sleep_until(moment.unwrap_or_else(Instant::now)).await;
        }
    }

    /// The lease was renewed by a request that began at `moment`.
    pub(super) fn renewed(&self, moment: Instant) {
        if let Some(gate) = &self.0 {
            let mut until = gate.until();
            *until = (*until).max(Some(moment + DURATION - MARGIN));
        }
    }

    /// Lets no write begin any more, and waits until those that have begun are answered.
    pub(super) async fn close(&self) {
        if let Some(gate) = &self.0 {
            *gate.until() = None;
            drop(gate.writes.write().await);
        }
    }
}

impl Gate {
    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
