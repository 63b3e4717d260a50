//! Runner groups.
//!
//! The endpoints are documented at
//! <https://docs.github.com/en/rest/actions/self-hosted-runner-groups?apiVersion=2022-11-28> for organizations and at
//! <https://docs.github.com/en/enterprise-cloud@latest/rest/actions/self-hosted-runner-groups> for enterprises.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;

use super::{
    Client, Error, Held, Repository, Scope,
    body::{short, whole},
    pages::{Item, What},
};
use cuda_runner_plan::model::url::encode;

/// The group that is always there. A repository has no other.
const DEFAULT_GROUP: u64 = 1;
const DEFAULT_NAME: &str = "default";
/// Groups change rarely.
const MAX_AGE: Duration = Duration::from_mins(10);

/// Names and numbers.
pub(super) type Groups = Arc<Held<Vec<(String, u64)>>>;

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
        let path = format!(
            "{}/actions/runner-groups?visible_to_repository={}",
            self.url().owner_path(),
            encode(name)
        );
        let what = What {
            action: &format!(
                "list the runner groups that admit {}",
                repository.full_name()
            ),
            permission: self.url().scope().permission(),
        };
        let groups: Vec<WireGroup> = match self.list(&path, &what).await {
            // Without an answer nothing speaks against it.
            Err(Error::NotFound { .. }) => return Ok(true),
            groups => groups?,
        };
        Ok(groups.iter().any(|found| match group {
            Some(group) => found.name.eq_ignore_ascii_case(group),
            None => found.id == DEFAULT_GROUP,
        }))
    }

    async fn read_groups(&self) -> Result<Groups, Error> {
        let what = What {
            action: &format!("list the runner groups of {}", self.url().scope()),
            permission: self.url().scope().permission(),
        };
        let path = format!("{}/actions/runner-groups", self.url().owner_path());
        let groups: Vec<WireGroup> = self.list(&path, &what).await?;
        let size = groups.iter().map(Item::size).sum();
        let groups = groups.into_iter().map(|group| (group.name, group.id));
        Ok(Arc::new(self.held(groups.collect(), size, what.action)?))
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

impl Item for WireGroup {
    fn size(&self) -> usize {
        size_of::<Self>() + self.name.len()
    }
}

#[derive(Deserialize)]
struct WireGroup {
    /// The description calls it a number, not an integer.
    #[serde(deserialize_with = "whole")]
    id: u64,
    #[serde(deserialize_with = "short")]
    name: String,
}
