//! Runner groups.
//!
//! The endpoints are documented at
//! <https://docs.github.com/en/rest/actions/self-hosted-runner-groups?apiVersion=2022-11-28> for organizations and at
//! <https://docs.github.com/en/enterprise-cloud@latest/rest/actions/self-hosted-runner-groups> for enterprises.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use serde::Deserialize;

use super::{Client, Error, Repository, Scope, transport::Ask, url::encode};

/// The group that is always there. A repository has no other.
const DEFAULT_GROUP: u64 = 1;
const DEFAULT_NAME: &str = "default";
/// Groups change rarely.
const MAX_AGE: Duration = Duration::from_mins(10);
const PER_PAGE: usize = 100;
/// This only stops a server that never comes to an end.
const MOST_PAGES: usize = 100;

/// Names and numbers.
pub(super) type Groups = Arc<[(String, u64)]>;

impl Client {
    /// Number of the runner group of this name; `None` is the default group, which is 1 and is not asked for.
    ///
    /// The answer is remembered for ten minutes; a name that is not in it is asked for again.
    pub async fn runner_group_id(&self, name: Option<&str>) -> Result<u64, Error> {
        let Some(name) = name else {
            return Ok(DEFAULT_GROUP);
        };
        if matches!(self.url().scope(), Scope::Repository { .. }) {
            if name.eq_ignore_ascii_case(DEFAULT_NAME) {
                return Ok(DEFAULT_GROUP);
            }
            return Err(Error::Validation {
                action: format!("use the runner group {name:?}"),
                message: format!(
                    "{} has no runner groups; remove spec.github.runnerGroup, or give the organization's address in spec.github.url",
                    self.url().scope()
                ),
            });
        }
        let find = |groups: &Groups| {
            groups
                .iter()
                .find(|(group, _)| group.eq_ignore_ascii_case(name))
                .map(|(_, id)| *id)
        };
        let groups = self
            .groups
            .get(
                |last| last.at.elapsed() < MAX_AGE && find(&last.value).is_some(),
                |_| self.read_groups(),
            )
            .await?;
        find(&groups).ok_or_else(|| Error::NotFound {
            what: format!("the runner group {name:?} of {}", self.url().scope()),
            message: match groups.len() {
                0 => "it has no groups that the credentials may see".into(),
                _ => format!("its groups are {}", names(&groups)),
            },
            advice: "create it, or change spec.github.runnerGroup".into(),
        })
    }

    /// Whether a repository may use the runner group of this name; `None` is the default group.
    ///
    /// Only an organization says so, and only of its own repositories: of all others it is supposed. An answer that has
    /// not changed costs nothing at GitHub.
    pub async fn admits(
        &self,
        group: Option<&str>,
        repository: &Repository,
    ) -> Result<bool, Error> {
        let (owner, name) = repository.parts();
        let is_own = matches!(self.url().scope(), Scope::Organization { name } if name.eq_ignore_ascii_case(owner));
        if !is_own {
            return Ok(true);
        }
        for number in 1..=MOST_PAGES {
            let path = format!(
                "{}/actions/runner-groups?visible_to_repository={}&per_page={PER_PAGE}&page={number}",
                self.url().owner_path(),
                encode(name)
            );
            let action = format!(
                "list the runner groups that admit {}",
                repository.full_name()
            );
            let page: Option<WirePage> = self.ask_tagged(path, &action).await?;
            // Without an answer nothing speaks against it.
            let Some(page) = page else { return Ok(true) };
            let is_it = |found: &WireGroup| match group {
                Some(group) => found.name.eq_ignore_ascii_case(group),
                None => found.id == DEFAULT_GROUP,
            };
            if page.runner_groups.iter().any(is_it) {
                return Ok(true);
            }
            if page.runner_groups.len() < PER_PAGE {
                break;
            }
        }
        Ok(false)
    }

    async fn read_groups(&self) -> Result<Groups, Error> {
        let mut groups = Vec::new();
        for number in 1..=MOST_PAGES {
            let ask = Ask::get(
                format!(
                    "{}/actions/runner-groups?per_page={PER_PAGE}&page={number}",
                    self.url().owner_path()
                ),
                format!("list the runner groups of {}", self.url().scope()),
            );
            let answer = self.transport.send(&ask).await?;
            if answer.status != StatusCode::OK {
                return Err(self.refusal(&answer, &ask));
            }
            let page: WirePage = answer.json(&ask)?;
            let is_last = page.runner_groups.len() < PER_PAGE;
            groups.extend(
                page.runner_groups
                    .into_iter()
                    .map(|group| (group.name, group.id)),
            );
            if is_last {
                break;
            }
        }
        Ok(groups.into())
    }
}

fn names(groups: &Groups) -> String {
    let mut names: Vec<_> = groups
        .iter()
        .take(10)
        .map(|(name, _)| name.as_str())
        .collect();
    if groups.len() > names.len() {
        names.push("…");
    }
    names.join(", ")
}

#[derive(Deserialize)]
struct WirePage {
    runner_groups: Vec<WireGroup>,
}

#[derive(Deserialize)]
struct WireGroup {
    /// The description calls it a number, not an integer.
    #[serde(deserialize_with = "whole")]
    id: u64,
    name: String,
}

fn whole<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let text = number.to_string();
    let digits = text.strip_suffix(".0").unwrap_or(&text);
    digits
        .parse()
        .map_err(|_| serde::de::Error::custom("no whole number"))
}
