//! Which of several replicas acts, and until when.
//!
//! The way of client-go: a lease is another's until it was not renewed for its time by our own clock, whatever time is written
//! in it, and every write of it names the version that was read, so that of two replicas the slower is refused.
//!
//! The lease tells who acts. That alone does not stop a process which cannot renew it, because it hears nothing: so it also
//! goes by its own clock, and stops to write before any other replica could have the lease.
//!
//! An operator without leader election has a lease, too, by which other operators see that it is there. It renews it seldom,
//! for a long time each, and nothing that the operator does hangs on it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use cudarunner_crds::OperatorStatus;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt as _};
use tokio::time::Instant;

mod fence;

pub use fence::{Fence, NotLeading};

/// Name of the Lease, in the operator's namespace, where no other is given.
pub const LEASE: &str = "cuda-runner-operator";
/// Label of the Lease, and of the operator's pods, with [`LEASE`] as its value: so they are found by whatever name.
pub const LABEL: &str = "app.kubernetes.io/name";
/// Annotation of the Lease: the selector of the pools that its holder serves. All where absent.
pub const SELECTOR: &str = "cudarunner.dev/pool-selector";
/// Annotation of the Lease: the namespaces of the pools that its holder serves, with commas. All where absent.
pub const NAMESPACES: &str = "cudarunner.dev/watch-namespaces";
/// For so long the lease is its holder's after each renewal.
const DURATION: Duration = Duration::from_secs(30);
/// The same, as the Lease has it.
const DURATION_SECONDS: i32 = 30;
/// The time of the lease of an operator without leader election, as the Lease has it: half an hour. One that ended without a
/// word keeps its pools, and a replica with an election, from going on for so long.
pub const ALONE_SECONDS: i32 = 1800;
/// Its holder stops to write when so much of it is left: what is on its way by then arrives in time, or is cut off.
const MARGIN: Duration = Duration::from_secs(5);
/// How often its holder renews it: one renewal may be lost, and another.
const RENEW: Duration = Duration::from_secs(10);
/// How often a replica that stands by looks at the lease, and its holder tries again.
const RETRY: Duration = Duration::from_secs(2);
/// How often an operator without leader election renews it.
const RENEW_ALONE: Duration = Duration::from_mins(10);
/// How often such an operator tries again, which may have no right to Leases and needs none to act.
const RETRY_ALONE: Duration = Duration::from_mins(1);

/// One replica's part in the election.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// What other operators are to know of this one.
    annotations: BTreeMap<&'static str, Option<String>>,
    fence: Fence,
    /// Whether there is no other replica.
    is_alone: bool,
    seen: Seen,
    /// The lease as it was last written by us; `None` when it must be read again.
    held: Option<Lease>,
    /// Whether it was said that an operator without leader election has it.
    has_said: bool,
}

impl Election {
    /// Each request of `client` must be answered in a few seconds, or fail.
    #[must_use]
    pub fn new(client: Client, operator: &OperatorStatus, identity: &str) -> Self {
        Self {
            leases: Api::namespaced(client, &operator.namespace),
            name: operator.name.clone(),
            identity: identity.to_owned(),
            annotations: BTreeMap::new(),
            fence: Fence::closed(),
            is_alone: false,
            seen: Seen::default(),
            held: None,
            has_said: false,
        }
    }

    /// The same, where the Lease says which pools are served.
    #[must_use]
    pub fn serving(mut self, selector: Option<String>, namespaces: &[String]) -> Self {
        let namespaces = (!namespaces.is_empty()).then(|| namespaces.join(","));
        self.annotations = BTreeMap::from([(SELECTOR, selector), (NAMESPACES, namespaces)]);
        self
    }

    /// The same of an operator without leader election: nobody else has its lease, whoever is its holder, and it acts whether
    /// it has the lease or not.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.is_alone = true;
        self.fence = Fence::default();
        self
    }

    /// Whether there is no election.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// What is open only while the lease is ours.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Waits until the lease is ours.
    pub async fn win(&mut self) {
        let pause = if self.is_alone { RETRY_ALONE } else { RETRY };
        while !matches!(self.attempt().await, Ok(true)) {
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes the lease of an operator without leader election, renews it, and never ends.
    pub async fn hold(&mut self) -> Infallible {
        loop {
            self.win().await;
            tokio::time::sleep(RENEW_ALONE).await;
        }
    }

    /// Renews the lease, until it is another's or may soon be.
    pub async fn keep(&mut self) {
        let fence = self.fence.clone();
        let renew = async {
            let mut pause = RENEW;
            loop {
                tokio::time::sleep(pause).await;
                pause = match self.attempt().await {
                    Ok(true) => RENEW,
                    Ok(false) => return,
                    Err(_) => RETRY,
                };
            }
        };
        tokio::select! {
            () = renew => {}
            () = fence.closes() => {}
        }
    }

    /// Gives the lease back, if it is ours, when all writes that have begun are answered. None begins any more.
    pub async fn release(&mut self) {
        if self.fence.check().is_err() {
            return;
        }
        if tokio::time::timeout(MARGIN, self.fence.close())
            .await
            .is_err()
        {
            tracing::warn!(
                "a write is not answered yet, so the lease is not given back: it runs out"
            );
            return;
        }
        let mut given = self.give_back().await;
        if given.as_ref().is_err_and(is_conflict) {
            // Somebody has put a label on it, say: it is read anew.
            given = self.give_back().await;
        }
        if let Err(error) = given {
            tracing::warn!(%error, "the lease was not given back: it runs out");
        }
    }

    async fn give_back(&mut self) -> kube::Result<()> {
        let Some(mut lease) = self.last().await? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() == Some(&self.identity) {
            spec.holder_identity = None;
            // From when on it is known that no next replica comes.
            spec.lease_duration_seconds = Some(DURATION_SECONDS);
            self.leases
                .replace(&self.name, &PostParams::default(), &lease)
                .await?;
        }
        Ok(())
    }

    /// Takes the lease, or renews it; `false` when it is another's.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let answer = self.take().await;
        match &answer {
            Err(error) if is_conflict(error) => {
                tracing::debug!("another replica has written the lease first");
            }
            Err(error) => {
                tracing::warn!(%error, name = self.name, "the Lease could be neither taken nor renewed, and is tried again");
            }
            Ok(_) => {}
        }
        answer
    }

    async fn take(&mut self) -> kube::Result<bool> {
        let last = self.last().await?;
        let spec = last.as_ref().map(|lease| lease.spec.clone());
        let spec = spec.map(Option::unwrap_or_default);
        let now = Instant::now();
        if !self.is_alone && !self.seen.is_free(spec.as_ref(), &self.identity, now) {
            self.say_who_is_waited_for(spec.as_ref());
            return Ok(false);
        }
        let ours = Some(self.ours(spec.as_ref()));
        let is_new = last.is_none();
        let mut lease = last.unwrap_or_default();
        lease.metadata.name = Some(self.name.clone());
        lease
            .labels_mut()
            .insert(LABEL.to_owned(), LEASE.to_owned());
        for (key, value) in &self.annotations {
            let annotations = lease.annotations_mut();
            match value {
                Some(value) => annotations.insert((*key).to_owned(), value.clone()),
                None => annotations.remove(*key),
            };
        }
        lease.spec = ours;
        let params = PostParams::default();
        let began = Instant::now();
        // What was read has its version with it: whoever has written since wins.
        let lease = if is_new {
            self.leases.create(&params, &lease).await?
        } else {
            self.leases.replace(&self.name, &params, &lease).await?
        };
        self.fence.renewed(began);
        self.held = Some(lease);
        Ok(true)
    }

    /// Says once that the lease is that of an operator without leader election: if it is gone, its time is long.
    fn say_who_is_waited_for(&mut self, found: Option<&LeaseSpec>) {
        let alone = found.filter(|spec| spec.lease_duration_seconds == Some(ALONE_SECONDS));
        let holder = alone.and_then(|spec| spec.holder_identity.as_deref());
        if let Some(holder) = holder.filter(|_| !self.has_said) {
            tracing::warn!(
                holder,
                name = self.name,
                "an operator that was installed without leader election has the Lease: this one waits until that one ends; if it is gone without a word, for half an hour, or until the Lease is deleted"
            );
            self.has_said = true;
        }
    }

    /// The lease as it was last written by us, or else as it is.
    async fn last(&mut self) -> kube::Result<Option<Lease>> {
        match self.held.take() {
            Some(lease) => Ok(Some(lease)),
            None => self.leases.get_opt(&self.name).await,
        }
    }

    /// The lease when it is ours.
    fn ours(&self, last: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let was_ours =
            last.is_some_and(|last| last.holder_identity.as_ref() == Some(&self.identity));
        let last = last.cloned();
        let transitions = last
            .as_ref()
            .map(|last| last.lease_transitions.unwrap_or(0));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(if self.is_alone {
                ALONE_SECONDS
            } else {
                DURATION_SECONDS
            }),
            renew_time: now.clone(),
            acquire_time: match &last {
                Some(last) if was_ours => last.acquire_time.clone(),
                _ => now,
            },
            lease_transitions: match transitions {
                Some(transitions) if !was_ours => Some(transitions.saturating_add(1)),
                transitions => Some(transitions.unwrap_or(0)),
            },
            ..last.unwrap_or_default()
        }
    }
}

/// The lease as it was last seen, whether it is still there, and since when that is so.
#[derive(Default)]
struct Seen(Option<(LeaseSpec, bool, Instant)>);

impl Seen {
    /// Whether nobody else holds the lease: it has no holder, or was not renewed for its time while we looked.
    fn is_free(&mut self, found: Option<&LeaseSpec>, identity: &str, now: Instant) -> bool {
        let (holder, is_recent) = self.look(found, now);
        match holder.as_deref() {
            None | Some("") => true,
            Some(holder) => holder == identity || !is_recent,
        }
    }

    /// What was seen counts from now on.
    fn begins_anew(&mut self, now: Instant) {
        if let Some((_, _, since)) = &mut self.0 {
            *since = now;
        }
    }

    /// Who is named as its holder, and whether it has changed within its time while we looked.
    fn look(&mut self, found: Option<&LeaseSpec>, now: Instant) -> (Option<String>, bool) {
        let (last, was_there, since) = self.0.take().unwrap_or((LeaseSpec::default(), true, now));
        // The holder of one that was deleted may not know that yet.
        let spec = found.cloned().unwrap_or_else(|| last.clone());
        let is_there = found.is_some();
        let is_same = last == spec && was_there == is_there;
        let since = if is_same { since } else { now };
        // Whoever deletes one with a long time says that its holder is gone.
        let said = spec.lease_duration_seconds.filter(|_| is_there);
        let said = said.unwrap_or_default();
        let said = Duration::from_secs(said.max(0).unsigned_abs().into());
        let is_recent = now - since < said.max(DURATION);
        let holder = spec.holder_identity.clone();
        self.0 = Some((spec, is_there, since));
        (holder, is_recent)
    }
}

/// Whether another has written it in between.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Who looks less often than this did not look all the time.
const OFTEN: Duration = Duration::from_mins(1);

/// The Lease of another operator, as it is seen again and again.
#[derive(Default)]
pub struct OtherLease {
    seen: Seen,
    looked: Option<Instant>,
}

impl OtherLease {
    /// Whether somebody holds it, and whether it has changed within its time while we looked. A time in which we did not look,
    /// because the API server was away, say, is none in which it was not renewed.
    pub fn see(&mut self, found: Option<&Lease>) -> (bool, bool) {
        let now = Instant::now();
        let looked = self.looked.replace(now);
        if looked.is_some_and(|looked| now - looked > OFTEN) {
            self.seen.begins_anew(now);
        }
        let spec = found.map(|lease| lease.spec.clone().unwrap_or_default());
        let (holder, is_recent) = self.seen.look(spec.as_ref(), now);
        let has_holder = holder.is_some_and(|holder| !holder.is_empty());
        (has_holder && is_recent, is_recent)
    }
}

#[cfg(test)]
mod tests;
