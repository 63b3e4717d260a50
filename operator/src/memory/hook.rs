//! What is remembered of a pool's webhook on GitHub.

use jiff::{SignedDuration, Timestamp};

use crate::github::Error;
use cuda_runner_plan::Queue;
use cuda_runner_plan::model::backoff;
use cuda_runner_plan::model::pool::{Pool, Spec};
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::model::webhook::{Heard, Hook, KnownHook, NotRemoved, Removal, Written};
use cuda_runner_plan::runners::SWEEP;
use cuda_runner_plan::webhook::{heard_elsewhere, is_unheard, untold};

/// The first pause after an attempt that failed.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(10);
/// The longest.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(10);

/// What is remembered of a pool's webhook on GitHub.
#[derive(Default)]
pub struct HookMemory {
    /// The webhook, as last read.
    pub known: KnownHook,
    /// When.
    read: Option<Timestamp>,
    /// The request, by annotation, with which it was read.
    asked: Option<String>,
    /// The secret that was last given to it.
    pub written: Option<Written>,
    /// What became of the last attempt to remove one.
    pub removal: Option<Removal>,
    /// Attempts in a row to remove it that failed.
    unremoved: i32,
    /// What became of the last delivery, where it failed and nothing has come since.
    failing: Option<String>,
    /// What came before says nothing: the process was not there, or it was seen that nothing arrives.
    since: Option<Timestamp>,
    /// When the queue was first read with a job of which no event has told, and nothing has come since.
    untold: Option<Timestamp>,
    /// Why it could not be read or changed; cleared by the next success.
    pub trouble: Option<String>,
    failures: i32,
    /// No attempt before.
    pub not_before: Option<Timestamp>,
}

impl HookMemory {
    /// Whether it is to be read now: at the first look, at each sweep, and when somebody asks.
    #[must_use]
    pub fn is_due(&self, pool: &Pool, now: Timestamp) -> bool {
        let is_old = self.read.is_none_or(|read| read.after(SWEEP) <= now);
        self.not_before.is_none_or(|at| at <= now) && (is_old || self.asked != pool.look_again)
    }

    /// It is about to be read.
    pub fn asks(&mut self, pool: &Pool) {
        self.asked.clone_from(&pool.look_again);
    }

    /// Takes in what GitHub has.
    pub fn read(&mut self, found: Option<Hook>, now: Timestamp) {
        self.known = found.map_or(KnownHook::Absent, KnownHook::Present);
        self.failing = None;
        self.read = Some(now);
        self.succeeded();
    }

    /// Nothing arrives: the webhook by which it came is gone, or GitHub says that it `fails`.
    pub fn stops(&mut self, fails: Option<String>, heard: &mut Heard, now: Timestamp) {
        self.failing = fails;
        self.forget(heard, now);
    }

    /// What was heard until now says nothing any more.
    fn forget(&mut self, heard: &mut Heard, now: Timestamp) {
        if *heard != Heard::default() {
            self.since = Some(now);
            *heard = Heard::default();
        }
    }

    /// Notes whether events arrive: a job of which none told speaks against it, and what has come since for it, here or at a
    /// replica that stands by.
    pub fn listen(
        &mut self,
        pool: &Pool,
        spec: &Spec,
        queue: Option<&Queue>,
        heard: &mut Heard,
        now: Timestamp,
    ) {
        let since = *self.since.get_or_insert(now);
        let note = pool.look_again.as_deref();
        if let Some(elsewhere) = note.and_then(|note| heard_elsewhere(note, heard, since, now)) {
            *heard = elsewhere;
        }
        self.untold = self
            .untold
            .filter(|untold| heard.at.is_none_or(|at| at < *untold))
            .or_else(|| untold(spec, queue?, heard, since));
        if is_unheard(self.untold, now) {
            self.forget(heard, now);
        }
    }

    /// What became of GitHub's last delivery, where it failed and nothing has come since.
    #[must_use]
    pub fn failing(&self, heard: &Heard) -> Option<String> {
        self.failing.clone().filter(|_| heard.at.is_none())
    }

    /// Whether jobs come of which no event tells.
    #[must_use]
    pub fn is_untold(&self, now: Timestamp) -> bool {
        is_unheard(self.untold, now)
    }

    /// What there is to remove is another one from now on, whatever becomes of the request.
    pub fn writes(&mut self) {
        self.removal = None;
        self.unremoved = 0;
    }

    /// It is as it should be, with this secret. What is there is read once more.
    pub fn written(&mut self, written: Written) {
        self.written = Some(written);
        self.look_again();
        self.succeeded();
    }

    /// Takes in whether the one that delivers to this address is gone.
    pub fn removed(&mut self, url: &str, done: Result<(), Unremoved>, uid: &str, now: Timestamp) {
        if self.removal.as_ref().is_none_or(|last| last.url != url) {
            self.unremoved = 0;
        }
        let failed = done.err().map(|failed| {
            self.unremoved = self.unremoved.saturating_add(1);
            let pause = backoff::exponential(FIRST_PAUSE, LONGEST_PAUSE, self.unremoved, uid);
            NotRemoved {
                is_refusal: matches!(&failed, Unremoved::Failed(error) if is_refusal(error)),
                tries: self.unremoved,
                not_before: now.after(failed.pause_of_at_least(pause, now)),
                why: failed.why(),
            }
        });
        if failed.is_none() {
            self.written = None;
            self.look_again();
            self.succeeded();
        }
        self.removal = Some(Removal {
            url: url.to_owned(),
            failed,
        });
    }

    /// Something did not work.
    pub fn failed(&mut self, error: &Error, uid: &str, now: Timestamp) {
        if is_refusal(error) {
            self.known = KnownHook::NotAllowed(error.to_string());
            self.read = Some(now);
            self.succeeded();
            return;
        }
        self.look_again();
        self.trouble = Some(error.to_string());
        self.failures = self.failures.saturating_add(1);
        let pause = backoff::exponential(FIRST_PAUSE, LONGEST_PAUSE, self.failures, uid);
        self.not_before = Some(now.after(error.pause_of_at_least(pause, now)));
    }

    fn look_again(&mut self) {
        self.known = KnownHook::Unknown;
        self.read = None;
    }

    fn succeeded(&mut self) {
        self.trouble = None;
        self.failures = 0;
        self.not_before = None;
    }
}

/// Why a webhook was not removed.
pub enum Unremoved {
    /// GitHub could not be asked, for this reason.
    NotAsked(String),
    /// GitHub did not do it.
    Failed(Error),
}

impl Unremoved {
    fn why(self) -> String {
        match self {
            Self::NotAsked(why) => why,
            Self::Failed(error) => error.to_string(),
        }
    }

    fn pause_of_at_least(&self, own: SignedDuration, now: Timestamp) -> SignedDuration {
        match self {
            Self::NotAsked(_) => own,
            Self::Failed(error) => error.pause_of_at_least(own, now),
        }
    }
}

/// Whether the credentials are accepted, and may not see or write webhooks: GitHub hides what may not be seen.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Forbidden { .. } | Error::NotFound { .. })
}
