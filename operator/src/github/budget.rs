//! Keeps everything that uses one credential within GitHub's limits.
//!
//! The limits are documented at
//! <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api?apiVersion=2022-11-28>, what to do
//! about them at <https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api>.
//!
//! A request that would break a limit is not sent and does not wait: its caller gets [`Error::RateLimited`] with the
//! time at which it may try again, and so does every later caller until then. [`Ledger`] decides, as a value with the
//! time passed in; [`Budget`] adds the clock, the lock, and the bound on requests at once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderMap, StatusCode, header};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::Error;

/// GitHub allows 100 at once to everything that uses the credential; we are not alone.
const AT_ONCE: usize = 50;
/// How long a request may wait for others to end before it is sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The window of the limits by the minute.
const MINUTE: SignedDuration = SignedDuration::from_mins(1);
/// GitHub: 900 points a minute, where reading costs 1 and writing 5.
const POINTS_PER_MINUTE: u32 = 900;
/// GitHub: 80 requests a minute that make content.
const WRITES_PER_MINUTE: usize = 80;
/// GitHub: without a better hint, wait for at least a minute.
const PAUSE: SignedDuration = SignedDuration::from_mins(1);
/// No hint of the server's is believed beyond this: quotas are by the hour.
pub(super) const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(3_660);

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// It changes nothing.
    Read,
    /// It makes or removes something.
    Write,
    /// It registers a runner. GitHub bounds these apart from other writes, at 1,500 in five minutes
    /// (<https://docs.github.com/en/actions/reference/limits>), which the points keep to on their own.
    Registration,
}

impl Cost {
    const fn points(self) -> u32 {
        match self {
            Self::Read => 1,
            Self::Write | Self::Registration => 5,
        }
    }

    /// One word for metrics. Stable.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Registration => "registration",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// With what was asked for.
    Done,
    /// Nothing has changed, for which GitHub charges nothing.
    NotModified,
    /// With an address elsewhere that is not followed.
    Redirected,
    /// With a limit.
    Limited,
    /// With another refusal.
    Refused,
    /// With a failure of the server.
    Failed,
    /// Without an answer.
    Unanswered,
}

impl Ending {
    /// One word for metrics. Stable.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Done => "2xx",
            Self::NotModified => "304",
            Self::Redirected => "3xx",
            Self::Limited => "limited",
            Self::Refused => "4xx",
            Self::Failed => "5xx",
            Self::Unanswered => "none",
        }
    }

    fn of(answer: &Signs) -> Self {
        match answer.status {
            StatusCode::NOT_MODIFIED => Self::NotModified,
            _ if answer.is_limit() => Self::Limited,
            status if status.is_redirection() => Self::Redirected,
            status if status.is_client_error() => Self::Refused,
            status if status.is_server_error() => Self::Failed,
            _ => Self::Done,
        }
    }
}

/// What was spent, for metrics and for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Requests that were sent.
    pub sent: u64,
    /// Of these, answered with "not modified", which GitHub does not count.
    pub not_modified: u64,
    /// Of these, answered with a limit.
    pub limited: u64,
    /// Requests that were not sent, because of a limit.
    pub held_back: u64,
    /// How those ended that were sent.
    pub endings: BTreeMap<(Cost, Ending), u64>,
    /// What GitHub grants each hour, where it says so.
    pub limit: Option<u64>,
    /// What is left of it.
    pub remaining: Option<u64>,
    /// Until when nothing is sent, where a limit was met.
    pub paused_until: Option<Timestamp>,
}

/// A limit that keeps a request from being sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// When it is worth trying again.
    pub until: Timestamp,
    /// Which limit.
    pub reason: String,
}

impl From<Limit> for Error {
    fn from(limit: Limit) -> Self {
        Self::RateLimited {
            until: limit.until,
            reason: limit.reason,
        }
    }
}

/// The books of one credential. Pure: the time is passed in.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    recent: VecDeque<(Timestamp, Cost)>,
    /// The limit that was met last, and when.
    pause: Option<(Timestamp, Limit)>,
    usage: Usage,
}

impl Ledger {
    /// Books a request, unless a limit forbids it.
    pub fn admit(&mut self, cost: Cost, now: Timestamp) -> Result<(), Limit> {
        let allowed = self.check(cost, now);
        match allowed {
            Ok(()) => {
                self.recent.push_back((now, cost));
                self.usage.sent += 1;
            }
            Err(_) => self.usage.held_back += 1,
        }
        allowed
    }

    fn check(&mut self, cost: Cost, now: Timestamp) -> Result<(), Limit> {
        if let Some(pause) = self.pause(now) {
            return Err(pause.clone());
        }
        // Where the clock was set back, what was booked before says nothing: it would age only when that time comes again.
        if self.recent.back().is_some_and(|(at, _)| now < *at) {
            self.recent.retain(|(at, _)| *at <= now);
        }
        while self
            .recent
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) >= MINUTE)
        {
            self.recent.pop_front();
        }
        let until = |at: Option<&(Timestamp, Cost)>| at.map_or(now, |(at, _)| *at) + MINUTE;
        let points: u32 = self.recent.iter().map(|(_, cost)| cost.points()).sum();
        if points + cost.points() > POINTS_PER_MINUTE {
            return Err(Limit {
                until: until(self.recent.front()),
                reason: format!("GitHub allows {POINTS_PER_MINUTE} points of requests a minute"),
            });
        }
        if cost == Cost::Write {
            let mut writes = self.recent.iter().filter(|(_, cost)| *cost == Cost::Write);
            let oldest = writes.next();
            if 1 + writes.count() >= WRITES_PER_MINUTE {
                return Err(Limit {
                    until: until(oldest),
                    reason: format!("GitHub allows {WRITES_PER_MINUTE} writes a minute"),
                });
            }
        }
        Ok(())
    }

    /// Reads what an answer says about limits. Gives the limit, where the answer is one.
    pub fn note(&mut self, answer: &Signs, now: Timestamp) -> Option<Limit> {
        if answer.status == StatusCode::NOT_MODIFIED {
            self.usage.not_modified += 1;
        }
        self.usage.limit = answer.limit.or(self.usage.limit);
        self.usage.remaining = answer.remaining.or(self.usage.remaining);
        if answer.is_limit() {
            self.usage.limited += 1;
        } else if answer.remaining != Some(0) {
            return None;
        }
        let limit = answer.reported(now);
        if self
            .pause(now)
            .is_none_or(|pause| pause.until < limit.until)
        {
            self.pause = Some((now, limit.clone()));
        }
        answer.is_limit().then_some(limit)
    }

    /// The limit that holds now. One that was met later than now is of a clock that was set back since.
    fn pause(&self, now: Timestamp) -> Option<&Limit> {
        let (met, limit) = self.pause.as_ref()?;
        (*met <= now && now < limit.until).then_some(limit)
    }

    fn count(&mut self, cost: Cost, ending: Ending) {
        *self.usage.endings.entry((cost, ending)).or_default() += 1;
    }

    /// What was spent.
    #[must_use]
    pub fn usage(&self, now: Timestamp) -> Usage {
        Usage {
            paused_until: self.pause(now).map(|pause| pause.until),
            ..self.usage.clone()
        }
    }
}

/// What an answer says about limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// HTTP status.
    pub status: StatusCode,
    /// `x-ratelimit-limit`.
    pub limit: Option<u64>,
    /// `x-ratelimit-remaining`.
    pub remaining: Option<u64>,
    /// `x-ratelimit-reset`, seconds since 1970 by the server's clock.
    pub reset: Option<i64>,
    /// `retry-after`, seconds.
    pub retry_after: Option<i64>,
    /// `date`, seconds since 1970: the server's clock.
    pub date: Option<i64>,
    /// Whether the error's message speaks of a limit.
    pub says_limit: bool,
}

impl Signs {
    /// Reads an answer. `message` is that of GitHub's error, if it is one.
    #[must_use]
    pub fn read(status: StatusCode, headers: &HeaderMap, message: &str) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let number = |name| text(name).and_then(|text| text.trim().parse().ok());
        let message = message.to_ascii_lowercase();
        Self {
            status,
            limit: text("x-ratelimit-limit").and_then(|text| text.parse().ok()),
            remaining: text("x-ratelimit-remaining").and_then(|text| text.parse().ok()),
            reset: number("x-ratelimit-reset"),
            retry_after: number(header::RETRY_AFTER.as_str()),
            date: text(header::DATE.as_str())
                .and_then(|text| rfc2822::parse(text).ok())
                .map(|date| date.timestamp().as_second()),
            says_limit: message.contains("rate limit") || message.contains("abuse detection"),
        }
    }

    /// 403 means a missing permission as well: it is a limit only where something says so.
    fn is_limit(&self) -> bool {
        let hint = self.retry_after.is_some() || self.remaining == Some(0) || self.says_limit;
        self.status == StatusCode::TOO_MANY_REQUESTS
            || (self.status == StatusCode::FORBIDDEN && hint)
    }

    /// The limit that the answer is, if it is one.
    #[must_use]
    pub fn limit(&self, now: Timestamp) -> Option<Limit> {
        self.is_limit().then(|| self.reported(now))
    }

    fn reported(&self, now: Timestamp) -> Limit {
        Limit {
            until: now + self.pause(now).clamp(SignedDuration::ZERO, LONGEST_PAUSE),
            reason: match (self.remaining == Some(0), self.limit) {
                (true, Some(limit)) => {
                    format!("the credentials' {limit} requests an hour are used up")
                }
                (true, None) => "the credentials' requests of this hour are used up".into(),
                (false, _) => "GitHub asks to slow down (secondary rate limit)".into(),
            },
        }
    }

    /// The documented order: `retry-after`, else the reset where nothing remains, else a minute.
    fn pause(&self, now: Timestamp) -> SignedDuration {
        // A time that is long over is none: a server that names one would be asked every second.
        let known = |seconds: &i64| *seconds >= -PAUSE.as_secs();
        if let Some(seconds) = self.retry_after.filter(|seconds| *seconds >= 0) {
            return SignedDuration::from_secs(seconds.max(1));
        }
        // Against the server's own clock, so that a wrong one here does no harm.
        let since = self.date.unwrap_or(now.as_second());
        let reset = self.reset.filter(|_| self.remaining == Some(0));
        let left = reset.map(|reset| reset.saturating_sub(since));
        left.filter(known)
            .map_or(PAUSE, |left| SignedDuration::from_secs(left.max(1)))
    }
}

/// The [`Ledger`] of one credential, shared by all that use it.
#[derive(Debug)]
pub struct Budget {
    ledger: Mutex<Ledger>,
    slots: Semaphore,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            ledger: Mutex::default(),
            slots: Semaphore::new(AT_ONCE),
        }
    }
}

impl Budget {
    /// Waits for a free slot, and books the request. Hold the permit until the answer is read.
    pub async fn enter(&self, cost: Cost) -> Result<SemaphorePermit<'_>, Error> {
        // A pause is reported at once, not after waiting.
        if let Some(limit) = self.paused() {
            return Err(limit.into());
        }
        let slot = tokio::time::timeout(PATIENCE, self.slots.acquire()).await;
        let Ok(Ok(slot)) = slot else {
            return Err(Error::RateLimited {
                until: Timestamp::now() + SignedDuration::from_secs(1),
                reason: format!("{AT_ONCE} requests are under way already"),
            });
        };
        self.lock().admit(cost, Timestamp::now())?;
        Ok(slot)
    }

    /// Reads what an answer says about limits. Gives the error, where the answer is a limit.
    pub fn note(&self, cost: Cost, answer: &Signs) -> Result<(), Error> {
        let mut ledger = self.lock();
        ledger.count(cost, Ending::of(answer));
        match ledger.note(answer, Timestamp::now()) {
            Some(limit) => Err(limit.into()),
            None => Ok(()),
        }
    }

    /// Takes notice that no answer came.
    pub fn note_silence(&self, cost: Cost) {
        self.lock().count(cost, Ending::Unanswered);
    }

    /// What was spent.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.lock().usage(Timestamp::now())
    }

    fn paused(&self) -> Option<Limit> {
        let mut ledger = self.lock();
        let limit = ledger.pause(Timestamp::now()).cloned()?;
        ledger.usage.held_back += 1;
        Some(limit)
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
