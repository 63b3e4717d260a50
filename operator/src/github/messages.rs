//! The queue of a scale set: a session, and the messages that come by long poll.
//!
//! GitHub does not document these requests; they are those of its client, <https://github.com/actions/scaleset>.

use std::time::Duration;

use gate_report::clean;
use http::{Method, StatusCode};
use jiff::Timestamp;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Client, Error, JobOf, QueuedJob, Statistics,
    body::{AtMost, or_empty},
    service::ServiceAsk,
};

/// The service answers a poll after 50 seconds at the latest.
const POLL: Duration = Duration::from_secs(75);
/// A message tells of 50 jobs at most, each in some 1,500 bytes.
const LONGEST_BODY: usize = 512 * 1024;
/// More is no message of GitHub's.
const MOST_JOBS: usize = 100;
/// No runner's name is longer.
const LONGEST_NAME: usize = 256;
/// Labels of a job that are remembered.
const MOST_LABELS: usize = 32;
/// What the service makes a number of its own from.
const NO_ID: &str = "00000000-0000-0000-0000-000000000000";

/// A session: nobody else hears of the scale set's jobs while it is open.
#[derive(Clone)]
pub struct Session {
    /// The service's name for it.
    pub id: String,
    /// The scale set.
    pub set: u64,
    /// Where the scale set stood when it was opened, or went on, where the service said it.
    pub statistics: Option<Statistics>,
    queue: String,
    token: SecretString,
}

/// What has happened. It comes again until it is acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// How long it was, in bytes.
    pub length: usize,
    /// Its number.
    pub id: u64,
    /// Where the scale set stands now.
    pub statistics: Option<Statistics>,
    /// Jobs that wait to be acquired, by their numbers.
    pub available: Vec<i64>,
    /// Runners whose job has ended.
    pub completed: Vec<String>,
    /// Jobs that runners have taken or ended, as GitHub names them.
    pub jobs: Vec<JobOf>,
    /// Jobs that wait for a runner, and those that do no more, by their numbers.
    pub queued: Vec<(i64, Queued)>,
    /// Those of them that wait and have a name, as GitHub describes them.
    pub waiting: Vec<(i64, QueuedJob)>,
}

/// What a message says of the wait of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// It waits since then, and is nobody's yet.
    Available(Timestamp),
    /// It waits since then for a runner of this scale set.
    Assigned(Timestamp),
    /// It waits no more.
    Over,
}

impl Client {
    /// Opens a session. Where one is open already that is an [`Error::Conflict`]; where the scale set is gone, an
    /// [`Error::NotFound`].
    pub async fn open_session(&self, set: u64, owner: &str) -> Result<Session, Error> {
        let action = format!("open a session for the scale set {set}");
        let body = json!({"sessionId": NO_ID, "ownerName": owner});
        let wire: WireSession = {
            let answer = self
                .ask_service(Method::POST, &sessions(set), &[], Some(body), &action)
                .await?;
            self.read(answer.of_tokens(&action)?, &action)?
        };
        let id = wire.session_id.clone();
        let session = self.session(set, wire, &action);
        if session.is_err() && !id.is_empty() {
            // It is open all the same, and would keep every other one from being opened.
            self.close_session(set, &id).await?;
        }
        session
    }

    /// Has a session's queue opened with a fresh token.
    pub async fn refresh_session(&self, session: &Session) -> Result<Session, Error> {
        let action = format!("go on with the session of the scale set {}", session.set);
        let path = format!("{}/{}", sessions(session.set), session.id);
        let answer = self
            .ask_service(Method::PATCH, &path, &[], None, &action)
            .await?;
        let wire = self.read(answer.of_tokens(&action)?, &action)?;
        self.session(session.set, wire, &action)
    }

    /// Ends a session, whether it is open or not.
    pub async fn close_session(&self, set: u64, id: &str) -> Result<(), Error> {
        let action = format!("end the session of the scale set {set}");
        let path = format!("{}/{id}", sessions(set));
        let answer = self
            .ask_service(Method::DELETE, &path, &[], None, &action)
            .await?;
        match answer.status {
            // One that is over already is refused as bad.
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Ok(()),
            status if status.is_success() => Ok(()),
            _ => Err(self.exception(&answer, &action)),
        }
    }

    /// Whether a scale set has neither jobs nor runners; no, where the service does not say so.
    pub async fn is_unused(&self, set: u64) -> Result<bool, Error> {
        let action = format!("read what the scale set {set} has to do");
        let path = format!("_apis/runtime/runnerscalesets/{set}");
        let answer = self
            .ask_service(Method::GET, &path, &[], None, &action)
            .await?;
        let wire: WireSet = self.read(&answer, &action)?;
        let said = wire.statistics.unwrap_or_default();
        let numbers = [said.assigned, said.running, said.acquired, said.registered];
        Ok(numbers.iter().all(|number| *number == Some(0)))
    }

    fn session(&self, set: u64, wire: WireSession, action: &str) -> Result<Session, Error> {
        if wire.message_queue_url.is_empty()
            || !self.transport.is_as_secure(&wire.message_queue_url)
            || wire.message_queue_access_token.is_empty()
        {
            return Err(Error::Malformed {
                action: action.to_owned(),
                message: "it names no queue, or gives no token for it".into(),
            });
        }
        let of_set = wire.runner_scale_set.unwrap_or_default();
        let of_set = of_set.statistics.and_then(Into::into);
        Ok(Session {
            id: wire.session_id,
            set,
            statistics: wire.statistics.and_then(Into::into).or(of_set),
            queue: wire.message_queue_url,
            token: wire.message_queue_access_token.into(),
        })
    }

    /// Waits for the next message after `last`, about 50 seconds; `None` where none came.
    ///
    /// `capacity` is how many jobs may be assigned to the scale set, those that run included. An
    /// [`Error::Unauthorized`] means that the session has to be refreshed.
    pub async fn next_message(
        &self,
        session: &Session,
        last: u64,
        capacity: usize,
    ) -> Result<Option<Message>, Error> {
        let mut url = session.queue.clone();
        if last > 0 {
            let separator = if url.contains('?') { '&' } else { '?' };
            url = format!("{url}{separator}lastMessageId={last}");
        }
        let ask = ServiceAsk {
            capacity: Some(capacity),
            deadline: POLL,
            ..ServiceAsk::new(
                Method::GET,
                url,
                &session.token,
                format!("hear of jobs of the scale set {}", session.set),
            )
        };
        let answer = self.send_service(&ask).await?;
        match answer.status {
            StatusCode::ACCEPTED => Ok(None),
            // Seen now and then: <https://github.com/actions/actions-runner-controller/issues/4285>.
            StatusCode::OK if answer.body().is_empty() => Ok(None),
            _ => {
                let wire: WireMessage = self.read(&answer, &ask.action)?;
                Ok(Some(Message {
                    length: answer.body().len(),
                    ..wire.into()
                }))
            }
        }
    }

    /// Takes a message off the queue, whether it is there or not.
    pub async fn acknowledge(&self, session: &Session, message: u64) -> Result<(), Error> {
        let (path, query) = session
            .queue
            .split_once('?')
            .unwrap_or((&session.queue, ""));
        let ask = ServiceAsk::new(
            Method::DELETE,
            format!("{path}/{message}?{query}"),
            &session.token,
            format!(
                "acknowledge message {message} of the scale set {}",
                session.set
            ),
        );
        let answer = self.send_service(&ask).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(()),
            status if status.is_success() => Ok(()),
            _ => Err(self.exception(&answer, &ask.action)),
        }
    }

    /// Takes jobs that a server offers instead of assigning them. Others may have been faster.
    pub async fn acquire_jobs(&self, session: &Session, jobs: &[i64]) -> Result<(), Error> {
        let action = format!("acquire jobs for the scale set {}", session.set);
        let path = format!("_apis/runtime/runnerscalesets/{}/acquirejobs", session.set);
        let answer = self
            .ask_service_with(
                &session.token,
                Method::POST,
                &path,
                Some(json!(jobs)),
                &action,
            )
            .await?;
        match answer.status {
            StatusCode::OK => Ok(()),
            _ => Err(self.exception(&answer, &action)),
        }
    }
}

fn sessions(set: u64) -> String {
    format!("_apis/runtime/runnerscalesets/{set}/sessions")
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireSession {
    session_id: String,
    #[serde(deserialize_with = "or_empty")]
    message_queue_url: String,
    #[serde(deserialize_with = "or_empty")]
    message_queue_access_token: String,
    statistics: Option<WireStatistics>,
    runner_scale_set: Option<WireSet>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireSet {
    statistics: Option<WireStatistics>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireStatistics {
    #[serde(rename = "totalAvailableJobs")]
    available: Option<usize>,
    #[serde(rename = "totalAssignedJobs")]
    assigned: Option<usize>,
    #[serde(rename = "totalRunningJobs")]
    running: Option<usize>,
    #[serde(rename = "totalAcquiredJobs")]
    acquired: Option<usize>,
    #[serde(rename = "totalRegisteredRunners")]
    registered: Option<usize>,
}

impl From<WireStatistics> for Option<Statistics> {
    /// Without the number that runners follow there are none: that is not the same as no jobs.
    fn from(wire: WireStatistics) -> Self {
        Some(Statistics {
            available: wire.available.unwrap_or_default(),
            assigned: wire.assigned?,
            running: wire.running.unwrap_or_default(),
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMessage {
    message_id: u64,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    statistics: Option<WireStatistics>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireJob {
    message_type: String,
    runner_request_id: i64,
    /// What only names the job, whatever it is: an odd value must not cost the rest.
    #[serde(flatten)]
    names: serde_json::Map<String, Value>,
}

impl WireJob {
    /// Whose job it is, where it says so.
    fn of_runner(&self) -> Option<JobOf> {
        let reported = matches!(self.message_type.as_str(), "JobStarted" | "JobCompleted");
        let of = |name| self.name(name).unwrap_or_default();
        Some(JobOf {
            runner: self.name("runnerName").filter(|_| reported)?.to_owned(),
            name: self.name("jobDisplayName")?.to_owned(),
            run: self.run(),
            repository: format!("{}/{}", of("ownerName"), of("repositoryName")),
        })
    }

    /// The job that waits, where it has a name.
    fn waiting(&self) -> Option<QueuedJob> {
        let (Queued::Available(since) | Queued::Assigned(since)) = self.queued()? else {
            return None;
        };
        let text = |of| self.name(of).map(|name| clean(name, LONGEST_NAME));
        let labels = self.names.get("requestLabels").and_then(Value::as_array);
        let labels = labels.into_iter().flatten().filter_map(Value::as_str);
        Some(QueuedJob {
            id: None,
            run: self.run(),
            name: text("jobDisplayName")?,
            // `OWNER/NAME/.github/workflows/FILE@REF`, and no name.
            workflow: text("jobWorkflowRef").map(|path| file_of(&path).to_owned()),
            repository: text("ownerName")
                .zip(text("repositoryName"))
                .map(|(owner, name)| format!("{owner}/{name}")),
            labels: labels
                .take(MOST_LABELS)
                .map(|label| clean(label, LONGEST_NAME))
                .collect(),
            created_at: Some(since),
        })
    }

    fn run(&self) -> u64 {
        let run = self.names.get("workflowRunId").and_then(Value::as_u64);
        run.unwrap_or_default()
    }

    /// Since when it waits, or that it does no more, where it says so.
    fn queued(&self) -> Option<Queued> {
        let since = || {
            let since: Timestamp = self.name("queueTime")?.parse().ok()?;
            // A time that is not there is the year 1.
            Some(since).filter(|since| *since > Timestamp::UNIX_EPOCH)
        };
        match self.message_type.as_str() {
            "JobAvailable" => since().map(Queued::Available),
            "JobAssigned" => since().map(Queued::Assigned),
            "JobStarted" | "JobCompleted" => Some(Queued::Over),
            _ => None,
        }
    }

    /// A name of it, where it has one.
    fn name(&self, of: &str) -> Option<&str> {
        let name = self.names.get(of)?.as_str()?;
        (1..=LONGEST_NAME).contains(&name.len()).then_some(name)
    }
}

/// The file's name in the path of a workflow at some commit.
fn file_of(path: &str) -> &str {
    let path = path.split('@').next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

impl From<WireMessage> for Message {
    /// What cannot be read of the jobs is left out: the statistics are what counts, and a message that is not
    /// acknowledged would come for ever.
    fn from(wire: WireMessage) -> Self {
        let body = wire.body.filter(|body| body.len() <= LONGEST_BODY);
        let jobs: AtMost<Value, MOST_JOBS> = body
            .and_then(|body| serde_json::from_str(&body).ok())
            .unwrap_or_default();
        let mut message = Self {
            id: wire.message_id,
            statistics: wire.statistics.and_then(Into::into),
            ..Self::default()
        };
        for job in jobs.0 {
            let job: WireJob = serde_json::from_value(job).unwrap_or_default();
            message.jobs.extend(job.of_runner());
            let id = job.runner_request_id;
            message
                .queued
                .extend(job.queued().map(|queued| (id, queued)));
            message.waiting.extend(job.waiting().map(|job| (id, job)));
            match job.message_type.as_str() {
                "JobAvailable" => message.available.push(job.runner_request_id),
                "JobCompleted" => {
                    let runner = job.name("runnerName").map(str::to_owned);
                    message.completed.extend(runner);
                }
                _ => {}
            }
        }
        message
    }
}
