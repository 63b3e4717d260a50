//! The task that listens: it opens a session, polls, hands on what it hears, and acknowledges what was acted on.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

use super::pace::Pace;
use super::{ListenerConfig, Received, lock};
use crate::github::{Error, Message, Session, Statistics};
use cuda_runner_plan::model::backoff;
use cuda_runner_plan::model::runner::Job;
use cuda_runner_plan::model::scale_set::Trouble;
use cuda_runner_plan::reason::Reason;

/// The first pause after a request that failed, or a session that somebody else has.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// The longest.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(1);
/// After so many failures in a row the pool says so.
const WORTH_A_WORD: i32 = 3;
/// A reconcile that takes longer did not act on a message: it is heard again.
const RECONCILE: Duration = Duration::from_secs(30);
/// A poll that was cut off after such a time has heard nothing. The service ends one itself after about 50 seconds.
const CUT_OFF: Range<Duration> = Duration::from_secs(10)..Duration::from_mins(1);
/// An answer without news within this time came at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Ends of jobs that are remembered: more than any pool's runners that end between two reconciles.
const REMEMBERED: usize = 20_000;

/// What came of a poll.
enum Poll {
    /// Something has happened.
    Message(Message),
    /// Nothing has.
    Quiet,
    /// It was cut short: GitHub is to hear of another capacity.
    Cut,
}

/// Whether the same request, in the same session, may work later.
fn may_pass(error: &Error) -> bool {
    matches!(
        error,
        Error::Server { .. }
            | Error::RateLimited { .. }
            | Error::Unreachable { .. }
            | Error::Malformed { .. }
    )
}

/// What the task is told by the reconciles.
pub(super) struct Orders {
    /// How many jobs may be assigned at a time.
    pub(super) capacities: watch::Receiver<usize>,
    /// The number of the last news that was acted on.
    pub(super) acts: watch::Receiver<u64>,
    /// The session that the status names.
    pub(super) sessions: watch::Receiver<Option<String>>,
}

/// It ends by itself where its scale set has vanished.
pub(super) struct Task {
    config: ListenerConfig,
    orders: Orders,
    received: Arc<Mutex<Received>>,
    left_over: Option<String>,
    /// The last message of this session.
    heard: Option<u64>,
    /// Whether the session's token was renewed since GitHub last answered.
    has_refreshed: bool,
    failures: i32,
    pace: Pace,
}

impl Task {
    pub(super) fn new(
        config: ListenerConfig,
        orders: Orders,
        received: Arc<Mutex<Received>>,
        left_over: Option<String>,
    ) -> Self {
        Self {
            config,
            orders,
            received,
            left_over,
            heard: None,
            has_refreshed: false,
            failures: 0,
            pace: Pace::new(),
        }
    }

    /// Opens sessions until the scale set is gone.
    pub(super) async fn run(mut self) {
        loop {
            let error = match self.open().await {
                // Whatever was not found: whether the scale set itself is gone, the next session tells.
                Ok(session) => self.listen(session).await,
                Err(Error::NotFound { message, .. }) => {
                    tracing::warn!(pool = %self.config.pool, set = self.config.set, message, "the scale set has vanished");
                    lock(&self.received).gone = Some(Timestamp::now());
                    self.wake();
                    return;
                }
                Err(error) => {
                    self.look_for_lost(&error).await;
                    error
                }
            };
            self.pause(&error).await;
        }
    }

    /// Opens a session. One that is open already may be ours, of a process that has ended.
    async fn open(&mut self) -> Result<Session, Error> {
        let (client, set) = (&self.config.client, self.config.set);
        let opened = client.open_session(set, &self.config.owner).await;
        let (Err(Error::Conflict { .. }), Some(left_over)) = (&opened, &self.left_over) else {
            return opened;
        };
        client.close_session(set, left_over).await?;
        self.left_over = None;
        client.open_session(set, &self.config.owner).await
    }

    /// Notes whether what is in the way is a session of this pool's whose name never arrived: the answer was lost, or the
    /// process ended before it was written down. Nobody can end such a session, and it lasts for minutes; but a scale
    /// set that has nothing to do can be made anew.
    async fn look_for_lost(&self, error: &Error) {
        let is_ours =
            matches!(error, Error::Conflict { message } if message.contains(&self.config.owner));
        let is_lost = is_ours
            && matches!(
                self.config.client.is_unused(self.config.set).await,
                Ok(true)
            );
        let was_lost = std::mem::replace(&mut lock(&self.received).heard.is_lost, is_lost);
        if is_lost && !was_lost {
            tracing::warn!(pool = %self.config.pool, set = self.config.set, "a session of this pool is open whose name is not known; the scale set has nothing to do, and is made anew");
            self.wake();
        }
    }

    /// Hears messages until the session is over; why it is.
    async fn listen(&mut self, mut session: Session) -> Error {
        self.left_over = Some(session.id.clone());
        tracing::info!(pool = %self.config.pool, set = session.set, "listening for jobs");
        {
            let mut received = lock(&self.received);
            received.heard.session = Some(session.id.clone());
            received.heard.opened = Some(Timestamp::now());
            received.heard.is_settled = false;
            received.heard.is_lost = false;
        }
        self.stand(session.statistics);
        self.until_stored(&session.id).await;
        self.heard = None;
        let mut last = 0;
        loop {
            self.pace.turn().await;
            let outcome = match self.hear(&mut session, last).await {
                Ok(Poll::Message(message)) => match self.take_in(&mut session, message, last).await
                {
                    Ok(number) => {
                        last = number;
                        self.worked();
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                Ok(Poll::Quiet) => {
                    self.settle();
                    Ok(())
                }
                Ok(Poll::Cut) => Ok(()),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {}
                Err(error) if may_pass(&error) => self.pause(&error).await,
                Err(error) => return error,
            }
        }
    }

    /// Waits until the status names the session. The first poll has jobs assigned, and with those a session that nobody
    /// can name would be in the way for minutes.
    async fn until_stored(&mut self, session: &str) {
        let sessions = &mut self.orders.sessions;
        let is_stored = sessions.wait_for(|stored| stored.as_deref() == Some(session));
        // Where no status can be written for so long, jobs are worth more.
        let _ = tokio::time::timeout(RECONCILE, is_stored).await;
    }

    /// Notes where the scale set stands, as a session says it; where it does not, what was heard last holds.
    fn stand(&self, statistics: Option<Statistics>) {
        let mut received = lock(&self.received);
        received.heard.stands(statistics, 0, Timestamp::now());
        received.heard.number += 1;
        drop(received);
        self.wake();
    }

    /// Renews the session's token, once between two answers.
    async fn refresh(&mut self, session: &mut Session, refused: Error) -> Result<(), Error> {
        if self.has_refreshed {
            return Err(refused);
        }
        *session = self.config.client.refresh_session(session).await?;
        self.has_refreshed = true;
        self.stand(session.statistics);
        Ok(())
    }

    /// One long poll, which a change of the capacity cuts short. A token that has run out is renewed once.
    ///
    /// What comes between us and GitHub may end a poll early: one that has waited for a while has heard nothing.
    async fn hear(&mut self, session: &mut Session, last: u64) -> Result<Poll, Error> {
        let client = Arc::clone(&self.config.client);
        let capacity = *self.orders.capacities.borrow_and_update();
        let start = Instant::now();
        let answer = tokio::select! {
            answer = client.next_message(session, last, capacity) => answer,
            changed = self.orders.capacities.changed() => {
                if changed.is_err() {
                    // The listener is gone, and this task with it.
                    std::future::pending::<()>().await;
                }
                return Ok(Poll::Cut);
            }
        };
        match answer {
            Err(refused @ Error::Unauthorized { .. }) => {
                self.refresh(session, refused).await?;
                Ok(Poll::Cut)
            }
            Err(Error::Unreachable {
                undelivered: false, ..
            }) if CUT_OFF.contains(&start.elapsed()) => Ok(Poll::Quiet),
            Ok(Some(message)) => {
                self.pace.read(message.length);
                Ok(Poll::Message(message))
            }
            Ok(None) => {
                self.brought_nothing(capacity);
                self.rest(start + AT_ONCE).await;
                Ok(Poll::Quiet)
            }
            Err(error) => Err(error),
        }
    }

    /// Notes that GitHub had no job for a scale set that was offered so many runners, where it has fewer.
    fn brought_nothing(&self, capacity: usize) {
        let mut received = lock(&self.received);
        let heard = &mut received.heard;
        let Some(statistics) = heard.statistics.filter(|_| !heard.is_quiet) else {
            return;
        };
        heard.is_quiet = statistics.assigned < capacity;
        let is_news = heard.is_quiet && statistics.available > 0;
        drop(received);
        if is_news {
            self.wake();
        }
    }

    /// A server that answers at once has no time for a poll: the next one waits until `moment`, or for another capacity.
    async fn rest(&mut self, moment: Instant) {
        tokio::select! {
            () = tokio::time::sleep_until(moment) => {}
            // The sender lives as long as this task.
            _ = self.orders.capacities.changed() => {}
        }
    }

    /// Hands a message on, and acknowledges it once it was acted on. The last message that was.
    async fn take_in(
        &mut self,
        session: &mut Session,
        message: Message,
        last: u64,
    ) -> Result<u64, Error> {
        let number = {
            let mut received = lock(&self.received);
            // One that comes again is the same news.
            if self.heard != Some(message.id) {
                received.heard.number += 1;
            }
            received.heard.is_settled = true;
            let ended = message.completed.len();
            received
                .heard
                .stands(message.statistics, ended, Timestamp::now());
            if received.completed.len() < REMEMBERED {
                received.completed.extend(message.completed);
            }
            if received.jobs.len() < REMEMBERED {
                let jobs = message.jobs.into_iter();
                received
                    .jobs
                    .extend(jobs.map(|job| (job.runner.clone(), Job::heard(&job))));
            }
            received.queue(message.queued, REMEMBERED);
            received.name(message.waiting);
            received.heard.number
        };
        self.heard = Some(message.id);
        if !message.available.is_empty() {
            self.acquire(session, &message.available).await?;
        }
        self.wake();
        let acted = self.orders.acts.wait_for(|acted| *acted >= number);
        if !matches!(tokio::time::timeout(RECONCILE, acted).await, Ok(Ok(_))) {
            return Ok(last);
        }
        self.acknowledge(session, message.id).await?;
        Ok(message.id)
    }

    /// Acquires jobs. A refusal is the end of it: they may be somebody else's by now, and a message that is not
    /// acknowledged would keep all others from coming.
    async fn acquire(&mut self, session: &mut Session, jobs: &[i64]) -> Result<(), Error> {
        let client = Arc::clone(&self.config.client);
        let mut answer = client.acquire_jobs(session, jobs).await;
        if let Err(refused @ Error::Unauthorized { .. }) = answer {
            self.refresh(session, refused).await?;
            answer = client.acquire_jobs(session, jobs).await;
        }
        self.unless_refused(answer, "jobs were not acquired")
    }

    async fn acknowledge(&mut self, session: &mut Session, message: u64) -> Result<(), Error> {
        let client = Arc::clone(&self.config.client);
        let mut answer = client.acknowledge(session, message).await;
        if let Err(refused @ Error::Unauthorized { .. }) = answer {
            self.refresh(session, refused).await?;
            answer = client.acknowledge(session, message).await;
        }
        self.unless_refused(answer, "a message was not acknowledged")
    }

    /// What cannot work later either is told to the log alone.
    fn unless_refused(&self, answer: Result<(), Error>, what: &str) -> Result<(), Error> {
        match answer {
            Err(error) if !may_pass(&error) && !matches!(error, Error::Unauthorized { .. }) => {
                tracing::warn!(pool = %self.config.pool, set = self.config.set, %error, "{what}");
                Ok(())
            }
            answer => answer,
        }
    }

    /// Notes that GitHub does what is asked.
    fn worked(&mut self) {
        self.failures = 0;
        self.has_refreshed = false;
        if lock(&self.received).heard.trouble.take().is_some() {
            self.wake();
        }
    }

    /// Notes that a poll was answered, and that nothing has changed since the session was opened.
    fn settle(&mut self) {
        self.worked();
        let was_settled = std::mem::replace(&mut lock(&self.received).heard.is_settled, true);
        if !was_settled {
            self.wake();
        }
    }

    /// Waits, each time longer; tells the pool of what lasts.
    async fn pause(&mut self, error: &Error) {
        self.failures = self.failures.saturating_add(1);
        tracing::info!(pool = %self.config.pool, set = self.config.set, category = error.category(), %error, "not listening");
        let key = &self.config.pool.name;
        let own = backoff::exponential(FIRST_PAUSE, LONGEST_PAUSE, self.failures, key);
        let pause = error.pause_of_at_least(own, Timestamp::now());
        if self.failures >= WORTH_A_WORD || pause > LONGEST_PAUSE {
            let trouble = trouble_of(error);
            let mut received = lock(&self.received);
            let is_news = received.heard.trouble.as_ref() != Some(&trouble);
            received.heard.trouble = Some(trouble);
            drop(received);
            if is_news {
                self.wake();
            }
        }
        tokio::time::sleep(pause.unsigned_abs()).await;
    }

    fn wake(&self) {
        self.config.waker.wake(&self.config.pool);
    }
}

fn trouble_of(error: &Error) -> Trouble {
    match error {
        Error::Conflict { message } => Trouble {
            reason: Reason::SessionHeld,
            message: format!(
                "Another process listens for this scale set's jobs, and this one stands by ({message}); is a second operator running, or did the last one end a moment ago?"
            ),
        },
        error => error.into(),
    }
}
