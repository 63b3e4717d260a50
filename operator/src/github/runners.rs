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

use super::{
    Client, Error, Held,
    ask::{Answer, Ask, Tag},
    body::{self, AtMost, MOST_LABELS, PER_PAGE, name, short, short_or_none},
    budget::Cost,
    room::Place,
};
use cuda_runner_plan::Labels;
use cuda_runner_plan::model::github::Entry;
use cuda_runner_plan::model::pool::another_owner;
use cuda_runner_plan::model::url::encode;

/// A list of more pages would use up a whole minute's requests: of such a scope runners are asked for by name.
const MOST_PAGES: usize = 200;
/// Likewise of a list that takes more memory, in bytes: twenty thousand runners are some 3 MiB.
const MOST_OF_LIST: usize = 4 * 1024 * 1024;
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
    pub labels: Labels,
    /// Version of its agent, once one has connected.
    pub version: Option<String>,
}

/// The runners of a scope, at one time. Listing lags: absence is no proof.
#[derive(Clone, Debug)]
pub struct RunnerList {
    /// In GitHub's order.
    pub runners: Vec<Arc<ListedRunner>>,
    /// When the listing was begun.
    pub at: Timestamp,
    /// Whether these are all. A scope that has too many shows none here: see [`Client::list_runners_of`].
    pub is_whole: bool,
    /// The sets of labels that all runners of the scope have.
    pub labels: HeldLabels,
}

/// Sets of labels, with their place in the room: whoever judges jobs by them keeps them longer than the list.
pub type HeldLabels = Arc<Held<Arc<[Labels]>>>;

impl RunnerList {
    /// Some runners of a scope, read at that time.
    #[must_use]
    pub fn of_some(runners: Vec<Arc<ListedRunner>>, at: Timestamp) -> Self {
        Self {
            runners,
            at,
            is_whole: false,
            labels: Arc::new(Held::new([].into(), Place::default())),
        }
    }
}

/// What sets of labels take in memory, in bytes.
fn size_of_sets<'a>(sets: impl Iterator<Item = &'a Labels>) -> usize {
    let size = |set: &Labels| {
        let each = set.iter().map(|label| size_of::<String>() + label.len());
        size_of::<Labels>() + each.sum::<usize>()
    };
    sets.map(size).sum()
}

impl From<&ListedRunner> for Entry {
    fn from(runner: &ListedRunner) -> Self {
        Self {
            id: runner.id,
            name: runner.name.clone(),
            busy: runner.busy,
            online: Some(runner.online),
            version: runner.version.clone(),
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
    /// The one of them by which the pool knows its own.
    pub ownership_label: String,
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
    pages: Vec<Arc<Kept>>,
}

struct Page {
    tag: Option<Tag>,
    total: usize,
    runners: Vec<Arc<ListedRunner>>,
    /// What they take in memory, in bytes.
    size: usize,
}

/// A page with its place.
struct Kept {
    page: Page,
    _place: Place,
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
        let found = found.into_iter().flatten().collect();
        Ok(Arc::new(RunnerList::of_some(found, all.at)))
    }

    /// The runner of this name, asked afresh.
    pub async fn find_runner(&self, name: &str) -> Result<Option<Arc<ListedRunner>>, Error> {
        // A server that does not know the filter answers with everything: still right, in more pages.
        let query = format!("name={}&", encode(name));
        for number in 1..=MOST_PAGES {
            let Some(page) = self.read_page(&query, number, None).await? else {
                break;
            };
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
                return Ok(Some(Arc::clone(runner)));
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
        let not_found = {
            let answer = self.transport.send(&ask).await?;
            match answer.status {
                StatusCode::NO_CONTENT => return Ok(Deletion::Deleted),
                // Its message is "Runner … is currently running a job and cannot be deleted", or near that; nothing else
                // about a DELETE could be unprocessable.
                StatusCode::UNPROCESSABLE_ENTITY => return Ok(Deletion::Busy),
                StatusCode::NOT_FOUND => self.refusal(&answer, &ask),
                _ => return Err(self.refusal(&answer, &ask)),
            }
        };
        // GitHub hides what the credentials may not see: only a list without it proves that it is gone.
        let listing = self.list_runners(Duration::ZERO).await?;
        match listing.runners.iter().find(|runner| runner.id == id) {
            None if listing.is_whole => Ok(Deletion::Gone),
            _ => Err(not_found),
        }
    }

    /// Registers a runner that takes one job.
    ///
    /// An answer that got lost, or an entry that an earlier try left behind, is found by name, removed and made anew.
    /// An entry of this name that is online, busy or another pool's is an [`Error::Conflict`].
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
                made_room |= self.make_room(request).await?;
            } else if matches!(error, Error::Conflict { .. }) && !made_room {
                made_room = self.make_room(request).await?;
                if !made_room {
                    // It is taken, and not listed yet.
                    return Err(error);
                }
            } else {
                return Err(error);
            }
        }
    }

    /// Looks whether a runner may take this name with `--replace`, which asks for no owner. An [`Error::Conflict`] where the
    /// entry is another pool's and in use. One that is offline has no agent any more.
    pub async fn may_replace(&self, name: &str, ownership_label: &str) -> Result<(), Error> {
        let found = self.find_runner(name).await?;
        let in_use = found.filter(|runner| runner.online || runner.busy);
        let owner = in_use.as_ref();
        let owner = owner.and_then(|runner| another_owner(&runner.labels, ownership_label));
        owner.map_or(Ok(()), |label| {
            Err(Error::Conflict {
                message: format!(
                    "a runner {name} is registered with {} by another pool ({label}); give this pool another name",
                    self.url().scope()
                ),
            })
        })
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
        let wire: WireToken = answer.of_tokens(&ask.action)?.json(&ask)?;
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
        let wire: WireJitConfig = answer.of_tokens(&ask.action)?.json(&ask)?;
        JitConfig::checked(wire.runner.id, wire.encoded_jit_config, &ask.action)
    }

    /// Removes a left-over entry of this name. False where there is none.
    async fn make_room(&self, request: &JitRequest) -> Result<bool, Error> {
        let name = &request.name;
        let Some(runner) = self.find_runner(name).await? else {
            return Ok(false);
        };
        let scope = self.url().scope();
        let taken = |why: &str| Error::Conflict {
            message: format!(
                "a runner named {name} is already registered with {scope} and {why}; it was not removed"
            ),
        };
        if runner.busy {
            return Err(taken("has a job"));
        }
        if runner.online {
            return Err(taken("is online"));
        }
        if let Some(label) = another_owner(&runner.labels, &request.ownership_label) {
            return Err(taken(&format!("is another pool's ({label})")));
        }
        match self.delete_runner(runner.id).await? {
            Deletion::Deleted | Deletion::Gone => Ok(true),
            Deletion::Busy => Err(taken("has a job")),
        }
    }

    /// Pages by number: octocrab drops the credentials on links to the next one.
    ///
    /// A list that is too long, or that finds no room, shows no runners: they are asked for by name.
    async fn read_pages(&self, last: Option<Arc<Pages>>) -> Result<Arc<Pages>, Error> {
        // Whoever reads nothing else any more gives back what is kept of that, too.
        self.tagged.tidy();
        let at = Timestamp::now();
        let known = last
            .as_ref()
            .map(|last| last.pages.as_slice())
            .unwrap_or_default();
        let mut pages: Vec<Arc<Kept>> = Vec::new();
        let mut size = 0;
        let is_read = loop {
            let number = pages.len() + 1;
            let known = known.get(number - 1);
            let kept = match self
                .read_page("", number, known.map(|kept| &kept.page))
                .await?
            {
                Some(page) => self.keep_page(page).map(Arc::new),
                None => known.cloned(),
            };
            let Some(kept) = kept else { break false };
            let page = &kept.page;
            size += page.size;
            let (is_last, is_of_too_many) = (page.is_last(number), page.is_of_too_many());
            pages.push(kept);
            if is_of_too_many || size > MOST_OF_LIST {
                break false;
            }
            if is_last {
                break true;
            }
        };
        let labels = is_read
            .then(|| self.labels_of(&pages, last.as_deref()))
            .flatten();
        let Some(labels) = labels else {
            // The first is asked for again, for nothing.
            pages.truncate(1);
            let listing = Arc::new(RunnerList::of_some(vec![], at));
            return Ok(Arc::new(Pages { listing, pages }));
        };
        // Entries move between pages while we read.
        let mut seen = HashSet::new();
        let all = pages.iter().flat_map(|kept| &kept.page.runners);
        let runners = all.filter(|runner| seen.insert(runner.id));
        let listing = Arc::new(RunnerList {
            runners: runners.cloned().collect(),
            at,
            is_whole: true,
            labels,
        });
        Ok(Arc::new(Pages { listing, pages }))
    }

    /// The sets of labels on these pages: the last ones, where they are the same. `None` where there is no room for them.
    fn labels_of(&self, pages: &[Arc<Kept>], last: Option<&Pages>) -> Option<HeldLabels> {
        let all = pages.iter().flat_map(|kept| &kept.page.runners);
        let sets: BTreeSet<Labels> = all.map(|runner| Labels::clone(&runner.labels)).collect();
        let last = last.map(|last| &last.listing.labels);
        if let Some(same) = last.filter(|last| last.iter().eq(&sets)) {
            return Some(Arc::clone(same));
        }
        let place = self.transport.room.keep(size_of_sets(sets.iter()))?;
        Some(Arc::new(Held::new(sets.into_iter().collect(), place)))
    }

    fn keep_page(&self, page: Page) -> Option<Kept> {
        let place = self.transport.room.keep(page.size)?;
        Some(Kept {
            page,
            _place: place,
        })
    }

    /// A page of the list; `None` where it is as it is known.
    async fn read_page(
        &self,
        query: &str,
        number: usize,
        known: Option<&Page>,
    ) -> Result<Option<Page>, Error> {
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
            (StatusCode::OK, _) => Page::read(&answer, &ask).map(Some),
            (StatusCode::NOT_MODIFIED, Some(_)) => Ok(None),
            _ => Err(self.refusal(&answer, &ask)),
        }
    }
}

impl Page {
    fn read(answer: &Answer, ask: &Ask) -> Result<Self, Error> {
        let wire: body::Page<WireRunner> = answer.json(ask)?;
        let total = wire.total.ok_or_else(|| Error::Malformed {
            action: ask.action.clone(),
            message: "it has no total_count".to_owned(),
        })?;
        // Runners of one pool have the same.
        let mut labels = HashSet::new();
        let runners = wire.items.into_iter();
        let runners: Vec<_> = runners
            .map(|wire| Arc::new(wire.read(&mut labels)))
            .collect();
        let own = runners.iter().map(|runner| {
            let version = runner.version.as_ref().map_or(0, String::len);
            size_of::<ListedRunner>() + runner.name.len() + version
        });
        let sets = size_of_sets(labels.iter());
        Ok(Self {
            tag: answer.tag(),
            total,
            size: size_of::<Self>() + own.sum::<usize>() + sets,
            runners,
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
    #[serde(deserialize_with = "name")]
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

impl WireRunner {
    /// The runner; its labels are those of another one, where they are the same.
    fn read(self, known: &mut HashSet<Labels>) -> ListedRunner {
        let status = self.status.unwrap_or_default();
        let labels = self.labels.unwrap_or_default().0.into_iter();
        let labels: Labels = labels.map(|label| label.name).collect();
        let same = known.get(&labels).cloned();
        ListedRunner {
            id: self.id,
            name: self.name,
            // GitHub lists no values. Only this word means that no agent is there; one that we do not know must not
            // lead to a removal.
            online: status != "offline",
            busy: self.busy.unwrap_or_default(),
            labels: same.unwrap_or_else(|| {
                known.insert(Labels::clone(&labels));
                labels
            }),
            version: self.version,
        }
    }
}
