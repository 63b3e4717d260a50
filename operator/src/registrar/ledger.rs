//! Who has had what: one registration for each pod, and so many requests a minute for each pool.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::time::Instant;

use super::bucket::{Bucket, Rate};
use super::{PoolKey, Registration};

/// A pod that has had its registration is remembered for this long: its token ends sooner, and its gate long before.
const REMEMBERED: Duration = Duration::from_hours(24);
/// A registration is kept for this long, for a gate whose answer got lost.
const KEPT: Duration = Duration::from_mins(1);
/// So many registrations are kept at most: what a thousand runners that start at once need.
const MOST_KEPT: usize = 1024;

/// The registrar's books. A restart empties them: the cluster, the pods' deadlines and GitHub's own rules stand behind
/// them.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
    /// Whether no other process answers gates as long as this one is there.
    is_alone: bool,
}

#[derive(Debug, Default)]
struct Entries {
    pods: HashMap<String, Entry>,
    /// Pods whose report was admitted.
    admitted: HashMap<String, Instant>,
    /// What the jobs of pods have asked for, in short.
    jobs: HashMap<String, (Digest, Instant)>,
    /// How often the pods with jobs ask.
    looks: HashMap<String, Bucket>,
    /// Pods on their way out: they get none, whatever became of earlier attempts.
    closed: HashMap<String, Instant>,
    answers: VecDeque<Answer>,
    pools: HashMap<PoolKey, Bucket>,
    tidied: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    /// This process has made the pod, and nobody has asked for it.
    Made(Instant),
    UnderWay,
    /// It was tried, and GitHub may have made the runner's entry all the same.
    Tried(Instant),
    Done(Instant),
}

/// A registration that was made a moment ago.
#[derive(Debug)]
struct Answer {
    uid: String,
    ticket: Digest,
    registration: Registration,
    at: Instant,
}

/// A token or a ticket in short: two that differ in anything differ here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest([u8; digest::SHA256_OUTPUT_LEN]);

impl Digest {
    /// That of these bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut short = [0; digest::SHA256_OUTPUT_LEN];
        short.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
        Self(short)
    }
}

/// Whether a pod may be registered.
#[derive(Debug)]
pub(super) enum Claim {
    /// Yes, and nobody else for it meanwhile.
    Granted(Granted),
    /// Another request of this pod is being answered.
    UnderWay,
    /// It was registered a moment ago, for this same ticket: here is the answer again.
    Again(Registration),
    /// It has had its registration.
    Done,
    /// It is on its way out.
    Closed,
}

/// The right to register a pod; given back when dropped.
#[derive(Debug)]
pub(super) struct Granted {
    ledger: Arc<Ledger>,
    uid: String,
    ticket: Digest,
    done: Option<Registration>,
}

impl Granted {
    /// The pod has this registration.
    pub(super) fn done(mut self, registration: Registration) {
        self.done = Some(registration);
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        let at = Instant::now();
        let uid = std::mem::take(&mut self.uid);
        let mut entries = self.ledger.lock();
        let Some(registration) = self.done.take() else {
            entries.pods.insert(uid, Entry::Tried(at));
            return;
        };
        entries.pods.insert(uid.clone(), Entry::Done(at));
        if entries.answers.len() >= MOST_KEPT {
            entries.answers.pop_front();
        }
        entries.answers.push_back(Answer {
            uid,
            ticket: self.ticket,
            registration,
            at,
        });
    }
}

impl Ledger {
    /// The books of a process that is the only one to answer gates as long as it is there. Where there may be another, take
    /// [`default`](Self::default).
    #[must_use]
    pub fn alone() -> Self {
        Self {
            is_alone: true,
            ..Self::default()
        }
    }

    /// Notes that this process has made the pod with this uid: these books cover its whole life. No clock says so as surely.
    pub fn made(&self, uid: &str) {
        let made = Entry::Made(Instant::now());
        self.lock().pods.entry(uid.to_owned()).or_insert(made);
    }

    /// Whether GitHub may hold an entry that the registrar made for the pod with this uid.
    ///
    /// - `Some(true)`: it was registered, or is being registered at this moment.
    /// - `Some(false)`: nobody has ever tried to, and these books cover the pod's whole life.
    /// - `None`: not known. An attempt may have had an effect, the process was started after the pod was made, or another
    ///   replica may have answered. Ask GitHub.
    #[must_use]
    pub fn is_registered(&self, uid: &str) -> Option<bool> {
        match self.lock().pods.get(uid) {
            Some(Entry::UnderWay | Entry::Done(_)) => Some(true),
            Some(Entry::Made(_)) if self.is_alone => Some(false),
            Some(Entry::Made(_) | Entry::Tried(_)) | None => None,
        }
    }

    /// The same, of a pod that is about to be removed: from now on it gets no registration.
    #[must_use]
    pub fn close(&self, uid: &str) -> Option<bool> {
        self.lock().closed.insert(uid.to_owned(), Instant::now());
        self.is_registered(uid)
    }

    /// A pod stays after all: its removal failed before anything could come of it.
    pub fn reopen(&self, uid: &str) {
        self.lock().closed.remove(uid);
    }

    /// Notes that a pod's report was admitted.
    pub(super) fn admit(&self, uid: &str) {
        let now = Instant::now();
        self.lock().admitted.insert(uid.to_owned(), now);
    }

    /// Whether a pod's report was admitted, by this process.
    pub(super) fn was_admitted(&self, uid: &str) -> bool {
        self.lock().admitted.contains_key(uid)
    }

    /// Notes what a pod's job asks for. A pod has one job: whether this is its first wish, or the same again.
    pub(super) fn choose(&self, uid: &str, wanted: Digest) -> bool {
        let mut entries = self.lock();
        let entry = entries.jobs.entry(uid.to_owned());
        entry.or_insert((wanted, Instant::now())).0 == wanted
    }

    /// Takes one look from what a pod may ask. `Err` says when the next is free.
    pub(super) fn look(&self, uid: &str, rate: Rate) -> Result<(), Duration> {
        let mut entries = self.lock();
        let looks = entries.looks.entry(uid.to_owned());
        looks.or_insert_with(|| Bucket::new(rate)).take(rate)
    }

    /// Whether a pod gets no registration any more.
    pub(crate) fn is_closed(&self, uid: &str) -> bool {
        self.lock().closed.contains_key(uid)
    }

    /// Whether a pod is being registered at this moment: GitHub may not show it yet.
    #[must_use]
    pub fn is_under_way(&self, uid: &str) -> bool {
        matches!(self.lock().pods.get(uid), Some(Entry::UnderWay))
    }

    /// Asks to register the pod with this uid, which has shown this ticket.
    pub(super) fn claim(self: &Arc<Self>, uid: &str, ticket: Digest) -> Claim {
        self.tidy();
        let mut entries = self.lock();
        let is_closed = entries.closed.contains_key(uid);
        match entries.pods.get(uid) {
            Some(Entry::UnderWay) => Claim::UnderWay,
            Some(Entry::Done(_)) => {
                let mut answers = entries.answers.iter();
                answers
                    .find(|answer| answer.uid == uid && answer.ticket == ticket)
                    .map_or(Claim::Done, |answer| {
                        Claim::Again(answer.registration.clone())
                    })
            }
            Some(Entry::Made(_) | Entry::Tried(_)) | None if is_closed => Claim::Closed,
            Some(Entry::Made(_) | Entry::Tried(_)) | None => {
                entries.pods.insert(uid.to_owned(), Entry::UnderWay);
                Claim::Granted(Granted {
                    ledger: Arc::clone(self),
                    uid: uid.to_owned(),
                    ticket,
                    done: None,
                })
            }
        }
    }

    /// Takes one request from what the pool may ask. `Err` says when the next is free.
    pub(super) fn take(&self, pool: &PoolKey, rate: Rate) -> Result<(), Duration> {
        let mut entries = self.lock();
        let bucket = entries
            .pools
            .entry(pool.clone())
            .or_insert_with(|| Bucket::new(rate));
        bucket.take(rate)
    }

    /// Erases the registrations that have been kept for their time, and forgets what is of no more use.
    pub(super) fn tidy(&self) {
        let now = Instant::now();
        let mut entries = self.lock();
        while entries.answers.front().is_some_and(|a| now - a.at >= KEPT) {
            entries.answers.pop_front();
        }
        entries.forget_old(now);
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// Once an hour: it walks over all of them.
    fn forget_old(&mut self, now: Instant) {
        if self
            .tidied
            .is_some_and(|at| now - at < Duration::from_hours(1))
        {
            return;
        }
        self.tidied = Some(now);
        self.closed.retain(|_, at| now - *at < REMEMBERED);
        self.admitted.retain(|_, at| now - *at < REMEMBERED);
        self.jobs.retain(|_, (_, at)| now - *at < REMEMBERED);
        self.looks
            .retain(|_, bucket| now - bucket.at() < Duration::from_hours(1));
        self.pods.retain(|_, entry| match entry {
            Entry::UnderWay => true,
            Entry::Made(at) | Entry::Tried(at) | Entry::Done(at) => now - *at < REMEMBERED,
        });
        self.pools
            .retain(|_, bucket| now - bucket.at() < Duration::from_hours(1));
    }
}

#[cfg(test)]
mod tests {
    use secrecy::{ExposeSecret as _, SecretString};

    use super::*;

    fn registration(text: &str) -> Registration {
        Registration::JitConfig(SecretString::from(text.to_owned()))
    }

    fn ticket() -> Digest {
        Digest::of(b"ticket")
    }

    fn granted(ledger: &Arc<Ledger>, uid: &str) -> Granted {
        match ledger.claim(uid, ticket()) {
            Claim::Granted(granted) => granted,
            other => panic!("not granted: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_registered_once() {
        let ledger = Arc::new(Ledger::default());
        let first = granted(&ledger, "u");
        assert!(matches!(ledger.claim("u", ticket()), Claim::UnderWay));
        // A failed attempt is given back
        drop(first);
        granted(&ledger, "u").done(registration("secret"));
        let other = Digest::of(b"another ticket");
        assert!(matches!(ledger.claim("u", other), Claim::Done));
        tokio::time::advance(REMEMBERED + Duration::from_hours(2)).await;
        assert!(
            matches!(ledger.claim("u", ticket()), Claim::Granted(_)),
            "it is remembered for ever"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_got_lost_is_given_again_for_a_minute() {
        let ledger = Arc::new(Ledger::default());
        granted(&ledger, "u").done(registration("secret"));
        // Given the same pod with the same ticket, within the minute, then the same answer, as often as it is lost
        for _ in 0..2 {
            let again = ledger.claim("u", ticket());
            assert!(
                matches!(&again, Claim::Again(Registration::JitConfig(jit)) if jit.expose_secret() == "secret"),
                "{again:?}"
            );
        }
        // And nobody else's
        assert!(matches!(ledger.claim("v", ticket()), Claim::Granted(_)));
        // When the minute is over, then it is erased
        tokio::time::advance(KEPT).await;
        ledger.tidy();
        assert!(ledger.lock().answers.is_empty(), "it is kept");
        assert!(matches!(ledger.claim("u", ticket()), Claim::Done));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_so_many_answers_are_kept() {
        let ledger = Arc::new(Ledger::default());
        for number in 0..=MOST_KEPT {
            granted(&ledger, &number.to_string()).done(registration("secret"));
        }
        assert_eq!(ledger.lock().answers.len(), MOST_KEPT);
        assert!(matches!(ledger.claim("0", ticket()), Claim::Done));
        assert!(matches!(ledger.claim("1", ticket()), Claim::Again(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn whether_a_pod_was_registered_is_said_where_it_is_known_alone() {
        let alone = Arc::new(Ledger::alone());
        let with_others = Arc::new(Ledger::default());

        // Given a pod that nobody has asked for: no, where these are all the books there are of it, whatever the clocks say
        for ledger in [&alone, &with_others] {
            ledger.made("made");
            assert_eq!(ledger.is_registered("of another process"), None);
        }
        assert_eq!(alone.is_registered("made"), Some(false));
        assert_eq!(with_others.is_registered("made"), None);

        for ledger in [&alone, &with_others] {
            let said = || ledger.is_registered("u");
            // When it is being registered, then yes, also where that was quicker than the answer to its creation
            let attempt = granted(ledger, "u");
            ledger.made("u");
            assert_eq!(said(), Some(true));
            // When that has failed, then nobody knows what GitHub has made of it
            drop(attempt);
            assert_eq!(said(), None);
            // When it was registered, then yes
            granted(ledger, "u").done(registration("secret"));
            assert_eq!(said(), Some(true));
        }
        // When it was made long ago, then nothing is known of it
        tokio::time::advance(REMEMBERED + Duration::from_hours(2)).await;
        alone.tidy();
        assert_eq!(alone.is_registered("made"), None);
    }

    #[test]
    fn a_pod_on_its_way_out_gets_no_registration() {
        let ledger = Arc::new(Ledger::alone());

        // Given a pod that was never registered, when it is closed, then it never will be
        ledger.made("u");
        assert_eq!(ledger.close("u"), Some(false));
        assert!(matches!(ledger.claim("u", ticket()), Claim::Closed));
        assert_eq!(ledger.close("u"), Some(false), "asked twice");

        // Given one that is being registered, or was, then it is known as such
        let attempt = granted(&ledger, "v");
        assert_eq!(ledger.close("v"), Some(true));
        assert!(ledger.is_under_way("v"));
        attempt.done(registration("secret"));
        assert_eq!(ledger.close("v"), Some(true));

        // Given one that stays after all, then it may be registered
        ledger.reopen("u");
        drop(granted(&ledger, "u"));

        // Given one whose attempt failed, then GitHub may have it, and it gets no other
        drop(granted(&ledger, "w"));
        assert_eq!(ledger.close("w"), None);
        assert!(matches!(ledger.claim("w", ticket()), Claim::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_has_a_burst_and_then_a_rate() {
        let ledger = Ledger::default();
        let pool = |name: &str| PoolKey {
            namespace: "ci".into(),
            name: name.into(),
        };
        let rate = Rate {
            burst: 3,
            per_minute: 60,
        };
        for _ in 0..3 {
            ledger.take(&pool("a"), rate).unwrap();
        }
        let wait = ledger.take(&pool("a"), rate).unwrap_err();
        assert!(
            wait <= Duration::from_secs(1) && wait > Duration::ZERO,
            "{wait:?}"
        );
        ledger.take(&pool("b"), rate).unwrap();
        tokio::time::advance(wait).await;
        ledger.take(&pool("a"), rate).unwrap();
    }
}
