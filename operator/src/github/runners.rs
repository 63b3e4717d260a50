//! Runners: listing, finding, removing, and the JIT configuration.
//!
//! The endpoints are documented at <https://docs.github.com/en/rest/actions/self-hosted-runners?apiVersion=2022-11-28>.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Method, StatusCode};
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Client, Error,
    ask::{Answer, Ask, Tag},
    body::{self, AtMost, MOST_LABELS, PER_PAGE, Room, short, short_or_none},
    budget::Cost,
};
use cuda_runner_plan::model::github::Entry;
use cuda_runner_plan::model::url::encode;

/// A list of more pages would use up a whole minute's requests: of such a scope runners are asked for by name.
const MOST_PAGES: usize = 200;
/// Names that are asked for at a time.
const AT_ONCE: usize = 8;

/// One runner's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRunner {
    /// GitHub's number for it.
    pub id: u64,
    /// Its name, unique within the scope.
    pub name: String,
    /// Whether an agent is connected.
    pub online: bool,
    /// Whether it has a job.
    pub busy: bool,
    /// Names of its labels.
    pub labels: Vec<String>,
    /// Version of its agent, once one has connected.
    pub version: Option<String>,
}

/// The runners of a scope, at one time. Listing lags: absence is no proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerList {
    /// In GitHub's order.
    pub runners: Vec<ListedRunner>,
    /// When the listing was begun.
    pub at: Timestamp,
    /// Whether these are all. A scope that has too many shows none here: see [`Client::list_runners_of`].
    pub is_whole: bool,
}

impl From<ListedRunner> for Entry {
    fn from(runner: ListedRunner) -> Self {
        Self {
            id: runner.id,
            name: runner.name,
            busy: runner.busy,
            online: Some(runner.online),
            version: runner.version,
            of_scale_set: false,
        }
    }
}

/// What became of an entry that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is removed.
    Deleted,
    /// It was not there.
    Gone,
    /// It has a job and stays.
    Busy,
}

/// What a JIT configuration is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JitRequest {
    /// Name of the runner.
    pub name: String,
    /// All its labels, `self-hosted` too: GitHub adds none.
    pub labels: Vec<String>,
    /// From [`Client::runner_group_id`].
    pub group_id: u64,
    /// Folder for the job's files, `_work` by custom.
    pub work_folder: String,
}

/// A registered runner, and what its agent needs to be it.
#[derive(Clone, Debug)]
pub struct JitConfig {
    /// GitHub's number for the runner.
    pub runner_id: u64,
    /// The agent's configuration, base64, as GitHub gave it.
    pub encoded: SecretString,
    /// Whether a request before this one got no answer. It may still arrive, and register the name anew.
    pub lost_one: bool,
}

impl JitConfig {
    /// A damaged configuration would only be noticed by the agent, which then ends with 0.
    pub(super) fn checked(runner_id: u64, encoded: String, action: &str) -> Result<Self, Error> {
        let is_whole = general_purpose::STANDARD.decode(encoded.trim()).is_ok();
        if encoded.is_empty() || !is_whole {
            return Err(Error::Malformed {
                action: action.to_owned(),
                message: "the configuration is not base64".into(),
            });
        }
        Ok(Self {
            runner_id,
            encoded: encoded.into(),
            lost_one: false,
        })
    }
}

/// A listing, with what is needed to ask whether it is still true.
pub(super) struct Pages {
    listing: Arc<RunnerList>,
    pages: Vec<Arc<Page>>,
}

struct Page {
    tag: Option<Tag>,
    total: usize,
    runners: Vec<ListedRunner>,
    _place: OwnedSemaphorePermit,
}

impl Client {
    /// All runners of the scope, at most `max_age` old.
    ///
    /// Pools of one scope share the answer; a question whose answer is unchanged costs nothing at GitHub.
    pub async fn list_runners(&self, max_age: Duration) -> Result<Arc<RunnerList>, Error> {
        let pages = self
            .listing
            .get(
                |last| last.at.elapsed() < max_age,
                |last| self.read_pages(last),
            )
            .await?;
        Ok(pages.listing.clone())
    }

    /// All runners of the scope, or, where those are too many to be read, the ones of these names.
    pub async fn list_runners_of(
        &self,
        names: &BTreeSet<String>,
        max_age: Duration,
    ) -> Result<Arc<RunnerList>, Error> {
        let all = self.list_runners(max_age).await?;
        if all.is_whole {
            return Ok(all);
        }
        let found: Vec<_> = stream::iter(names.clone())
            .map(|name| async move { self.find_runner(&name).await })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(Arc::new(RunnerList {
            runners: found.into_iter().flatten().collect(),
            at: all.at,
            is_whole: false,
        }))
    }

    /// The runner of this name, asked afresh.
    pub async fn find_runner(&self, name: &str) -> Result<Option<ListedRunner>, Error> {
        // A server that does not know the filter answers with everything: still right, in more pages.
        let query = format!("name={}&", encode(name));
        for number in 1..=MOST_PAGES {
            let page = self.read_page(&query, number, None).await?;
            if page.is_of_too_many() {
                return Err(Error::Malformed {
                    action: format!("find the runner {name} of {}", self.url().scope()),
                    message: format!(
                        "the server names {} of them, and more than {} cannot be read",
                        page.total,
                        MOST_PAGES * PER_PAGE
                    ),
                });
            }
            let last = page.is_last(number);
            if let Some(runner) = page.runners.iter().find(|runner| runner.name == name) {
                return Ok(Some(runner.clone()));
            }
            if last {
                break;
            }
        }
        Ok(None)
    }

    /// Removes a runner's entry. One that has a job stays.
    pub async fn delete_runner(&self, id: u64) -> Result<Deletion, Error> {
        let ask = Ask::write(
            Method::DELETE,
            format!("{}/{id}", self.url().runners_path()),
            format!("remove runner {id} of {}", self.url().scope()),
        );
        let answer = self.transport.send(&ask).await?;
        match answer.status {
            StatusCode::NO_CONTENT => Ok(Deletion::Deleted),
            // GitHub hides what the credentials may not see: only a list without it proves that it is gone.
            StatusCode::NOT_FOUND => {
                let listing = self.list_runners(Duration::ZERO).await?;
                match listing.runners.iter().find(|runner| runner.id == id) {
                    None if listing.is_whole => Ok(Deletion::Gone),
                    _ => Err(self.refusal(&answer, &ask)),
                }
            }
            // Its message is "Runner … is currently running a job and cannot be deleted", or near that; nothing else
            // about a DELETE could be unprocessable.
            StatusCode::UNPROCESSABLE_ENTITY => Ok(Deletion::Busy),
            _ => Err(self.refusal(&answer, &ask)),
        }
    }

    /// Registers a runner that takes one job.
    ///
    /// An answer that got lost, or an entry that an earlier try left behind, is found by name, removed and made anew.
    /// An entry of this name that is online or busy is an [`Error::Conflict`].
    pub async fn generate_jit_config(&self, request: &JitRequest) -> Result<JitConfig, Error> {
        let mut lost_one = false;
        let mut in_doubt = false;
        let mut made_room = false;
        // At most: an answer is lost, the name turns out to be taken, and the third request works.
        loop {
            let error = match self.post_jit(request).await {
                Ok(config) => return Ok(JitConfig { lost_one, ..config }),
                Err(error) => error,
            };
            lost_one |= error.is_unanswered();
            if error.leaves_doubt() && !in_doubt {
                // Names are unique: even where the entry is not listed yet, asking again makes no second one.
                in_doubt = true;
                made_room |= self.make_room(&request.name).await?;
            } else if matches!(error, Error::Conflict { .. }) && !made_room {
                made_room = self.make_room(&request.name).await?;
                if !made_room {
                    // It is taken, and not listed yet.
                    return Err(error);
                }
            } else {
                return Err(error);
            }
        }
    }

    /// A token with which `config.sh` registers a runner. It is valid for about an hour.
    ///
    /// An answer that got lost does no harm: nothing is registered before the token is used.
    pub async fn registration_token(&self) -> Result<SecretString, Error> {
        let ask = Ask {
            method: Method::POST,
            cost: Cost::Registration,
            ..Ask::get(
                format!("{}/registration-token", self.url().runners_path()),
                format!("make a registration token of {}", self.url().scope()),
            )
        };
        let answer = self.transport.send(&ask).await?;
        if answer.status != StatusCode::CREATED {
            return Err(self.refusal(&answer, &ask));
        }
        let wire: WireToken = answer.json(&ask)?;
        if wire.token.trim().is_empty() {
            return Err(Error::Malformed {
                action: ask.action,
                message: "the token is empty".into(),
            });
        }
        Ok(wire.token.into())
    }

    async fn post_jit(&self, request: &JitRequest) -> Result<JitConfig, Error> {
        let body = WireJitRequest {
            name: &request.name,
            runner_group_id: request.group_id,
            labels: &request.labels,
            work_folder: &request.work_folder,
        };
        let action = format!(
            "register runner {} with {}",
            request.name,
            self.url().scope()
        );
        let ask = Ask {
            method: Method::POST,
            cost: Cost::Registration,
            body: Some(
                serde_json::to_vec(&body).map_err(|error| Error::Validation {
                    action: action.clone(),
                    message: error.to_string(),
                })?,
            ),
            ..Ask::get(
                format!("{}/generate-jitconfig", self.url().runners_path()),
                action,
            )
        };
        let answer = self.transport.send(&ask).await?;
        if answer.status != StatusCode::CREATED {
            return Err(self.refusal(&answer, &ask));
        }
        let wire: WireJitConfig = answer.json(&ask)?;
        JitConfig::checked(wire.runner.id, wire.encoded_jit_config, &ask.action)
    }

    /// Removes a left-over entry of this name. False where there is none.
    async fn make_room(&self, name: &str) -> Result<bool, Error> {
        let Some(runner) = self.find_runner(name).await? else {
            return Ok(false);
        };
        let scope = self.url().scope();
        let taken = |why: &str| Error::Conflict {
            message: format!(
                "a runner named {name} is already registered with {scope} and {why}; it was left alone"
            ),
        };
        if runner.busy {
            return Err(taken("has a job"));
        }
        if runner.online {
            return Err(taken("is online"));
        }
        match self.delete_runner(runner.id).await? {
            Deletion::Deleted | Deletion::Gone => Ok(true),
            Deletion::Busy => Err(taken("has a job")),
        }
    }

    /// Pages by number: octocrab drops the credentials on links to the next one.
    async fn read_pages(&self, last: Option<Arc<Pages>>) -> Result<Arc<Pages>, Error> {
        let at = Timestamp::now();
        let known = last
            .as_ref()
            .map(|last| last.pages.as_slice())
            .unwrap_or_default();
        let mut pages: Vec<Arc<Page>> = Vec::new();
        loop {
            let number = pages.len() + 1;
            let page = self.read_page("", number, known.get(number - 1)).await?;
            let (is_last, is_of_too_many) = (page.is_last(number), page.is_of_too_many());
            pages.push(page);
            if is_of_too_many {
                let runners = vec![];
                let is_whole = false;
                return Ok(Arc::new(Pages {
                    listing: Arc::new(RunnerList {
                        runners,
                        at,
                        is_whole,
                    }),
                    pages,
                }));
            }
            if is_last {
                break;
            }
        }
        // Entries move between pages while we read.
        let mut seen = HashSet::new();
        let all = pages.iter().flat_map(|page| &page.runners);
        let runners = all
            .filter(|runner| seen.insert(runner.id))
            .cloned()
            .collect();
        Ok(Arc::new(Pages {
            listing: Arc::new(RunnerList {
                runners,
                at,
                is_whole: true,
            }),
            pages,
        }))
    }

    async fn read_page(
        &self,
        query: &str,
        number: usize,
        known: Option<&Arc<Page>>,
    ) -> Result<Arc<Page>, Error> {
        let ask = Ask {
            tag: known.and_then(|page| page.tag.clone()),
            ..Ask::get(
                format!(
                    "{}?{query}per_page={PER_PAGE}&page={number}",
                    self.url().runners_path()
                ),
                format!("list the runners of {}", self.url().scope()),
            )
        };
        let answer = self.transport.send(&ask).await?;
        match (answer.status, known) {
            (StatusCode::OK, _) => Page::read(&answer, &ask, &self.transport.room).map(Arc::new),
            (StatusCode::NOT_MODIFIED, Some(known)) => Ok(Arc::clone(known)),
            _ => Err(self.refusal(&answer, &ask)),
        }
    }
}

impl Page {
    fn read(answer: &Answer, ask: &Ask, room: &Room) -> Result<Self, Error> {
        let wire: body::Page<WireRunner> = answer.json(ask)?;
        let malformed = |message: &str| Error::Malformed {
            action: ask.action.clone(),
            message: message.to_owned(),
        };
        let place = room.keep(answer.body().len());
        Ok(Self {
            tag: answer.tag(),
            total: wire
                .total
                .ok_or_else(|| malformed("it has no total_count"))?,
            runners: wire.items.into_iter().map(ListedRunner::from).collect(),
            _place: place.ok_or_else(|| {
                malformed("the lists of all servers together are too long to be kept")
            })?,
        })
    }

    /// Whether the list that it begins has more pages than are read.
    fn is_of_too_many(&self) -> bool {
        self.total > MOST_PAGES * PER_PAGE
    }

    fn is_last(&self, number: usize) -> bool {
        self.runners.is_empty() || number * PER_PAGE >= self.total
    }
}

#[derive(Serialize)]
struct WireJitRequest<'a> {
    name: &'a str,
    runner_group_id: u64,
    labels: &'a [String],
    work_folder: &'a str,
}

#[derive(Deserialize)]
struct WireJitConfig {
    runner: WireId,
    encoded_jit_config: String,
}

#[derive(Deserialize)]
struct WireToken {
    token: String,
}

#[derive(Deserialize)]
struct WireId {
    id: u64,
}

/// Read leniently: what some servers leave out or make null is no reason to know nothing.
#[derive(Deserialize)]
struct WireRunner {
    id: u64,
    #[serde(deserialize_with = "short")]
    name: String,
    #[serde(default, deserialize_with = "short_or_none")]
    status: Option<String>,
    #[serde(default)]
    busy: Option<bool>,
    #[serde(default)]
    labels: Option<AtMost<WireLabel, MOST_LABELS>>,
    #[serde(default, deserialize_with = "short_or_none")]
    version: Option<String>,
}

#[derive(Deserialize)]
struct WireLabel {
    #[serde(deserialize_with = "short")]
    name: String,
}

impl From<WireRunner> for ListedRunner {
    fn from(wire: WireRunner) -> Self {
        let status = wire.status.unwrap_or_default();
        Self {
            id: wire.id,
            name: wire.name,
            // GitHub lists no values. Only this word means that no agent is there; one that we do not know must not
            // lead to a removal.
            online: status != "offline",
            busy: wire.busy.unwrap_or_default(),
            labels: wire
                .labels
                .unwrap_or_default()
                .0
                .into_iter()
                .map(|label| label.name)
                .collect(),
            version: wire.version,
        }
    }
}
