//! Scale sets: what jobs are assigned to before a runner takes them, and the runners of one.
//!
//! GitHub does not document these requests; they are those of its client, <https://github.com/actions/scaleset>.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Agent, Client, Deletion, Error, Held, JitConfig, NewScaleSet, ScaleSet,
    body::{AtMost, MOST_LABELS, name, short},
    service::{EXPECTED, Exception},
};

const SETS: &str = "_apis/runtime/runnerscalesets";
/// Runners, as the service calls them; there is one pool of them for each scope.
const AGENTS: &str = "_apis/distributedtask/pools/0/agents";

/// A scope has at most 10,000 runners in a group; more than these are not listed.
const MOST_AGENTS: usize = 20_000;

/// All runners of a scope.
pub(super) type Agents = Arc<Held<Vec<Agent>>>;

impl Client {
    /// The scale set of this number. `None` is no proof that there is none: the list by name tells.
    pub async fn scale_set(&self, id: u64) -> Result<Option<ScaleSet>, Error> {
        let action = format!("read the scale set {id} of {}", self.url().scope());
        let path = format!("{SETS}/{id}");
        let answer = self
            .ask_service(Method::GET, &path, &[], None, &action)
            .await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(self.read::<WireSet>(&answer, &action)?.into()))
    }

    /// The scale set of this name in a runner group.
    pub async fn find_scale_set(
        &self,
        name: &str,
        group: Option<&str>,
    ) -> Result<Option<ScaleSet>, Error> {
        let action = format!("find the scale set {name} of {}", self.url().scope());
        let group = self.runner_group_id(group).await?.to_string();
        let query = [("runnerGroupId", group.as_str()), ("name", name)];
        let answer = self
            .ask_service(Method::GET, SETS, &query, None, &action)
            .await?;
        let found: List<WireSet> = self.read(&answer, &action)?;
        let mut sets = found.value.0.into_iter().map(ScaleSet::from);
        Ok(sets.find(|set| set.name == name))
    }

    /// The same of one that may have been made or not: in a runner group that there is no more, it was not.
    pub async fn find_intended(
        &self,
        name: &str,
        group: Option<&str>,
    ) -> Result<Option<ScaleSet>, Error> {
        match self.runner_group_id(group).await {
            Err(Error::NotFound { .. } | Error::Validation { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => self.find_scale_set(name, group).await,
        }
    }

    /// Makes a scale set. Where the answer gets lost, it can be found by its name.
    pub async fn create_scale_set(&self, new: &NewScaleSet) -> Result<ScaleSet, Error> {
        let action = format!("make the scale set {} of {}", new.name, self.url().scope());
        self.put_scale_set(Method::POST, SETS.to_owned(), new, &action)
            .await
    }

    /// Makes a scale set what it should be.
    pub async fn update_scale_set(&self, id: u64, new: &NewScaleSet) -> Result<ScaleSet, Error> {
        let action = format!(
            "change the scale set {} of {}",
            new.name,
            self.url().scope()
        );
        self.put_scale_set(Method::PATCH, format!("{SETS}/{id}"), new, &action)
            .await
    }

    async fn put_scale_set(
        &self,
        method: Method,
        path: String,
        new: &NewScaleSet,
        action: &str,
    ) -> Result<ScaleSet, Error> {
        let label = |name: &String| json!({"name": name, "type": "System"});
        let body = json!({
            "name": new.name,
            "runnerGroupId": self.runner_group_id(new.group.as_deref()).await?,
            "labels": new.labels.iter().map(label).collect::<Vec<Value>>(),
            // The agent's image is the pool's; one that updates itself would not be what was proven.
            "RunnerSetting": {"disableUpdate": true},
        });
        let answer = self
            .ask_service(method, &path, &[], Some(body), action)
            .await?;
        if answer.status.is_success() {
            return Ok(answer.read::<WireSet>(action, EXPECTED)?.into());
        }
        if Exception::of(&answer).is("RunnerScaleSetExistsException") {
            return Err(Error::Conflict {
                message: format!(
                    "{} has a scale set {} already",
                    self.url().scope(),
                    new.name
                ),
            });
        }
        Err(self.exception(&answer, action))
    }

    /// Removes a scale set with its runners. One that the service says is not there is as good; an answer that is not the
    /// service's says nothing.
    pub async fn delete_scale_set(&self, id: u64) -> Result<(), Error> {
        let action = format!("remove the scale set {id} of {}", self.url().scope());
        let path = format!("{SETS}/{id}");
        let answer = self
            .ask_service(Method::DELETE, &path, &[], None, &action)
            .await?;
        let is_gone = Exception::of(&answer).is("RunnerScaleSetNotFound");
        if answer.status.is_success() || is_gone {
            return Ok(());
        }
        Err(self.exception(&answer, &action))
    }

    /// Registers a runner of a scale set that takes one job.
    ///
    /// An answer that got lost, or an entry that an earlier try left behind, is found by name, removed and made anew.
    pub async fn scale_set_runner(
        &self,
        set: u64,
        name: &str,
        work_folder: &str,
    ) -> Result<JitConfig, Error> {
        let error = match self.post_runner(set, name, work_folder).await {
            Ok(config) => return Ok(config),
            Err(error) => error,
        };
        if !error.leaves_doubt() && !matches!(error, Error::Conflict { .. }) {
            return Err(error);
        }
        let Some(agent) = self.find_agent(name).await? else {
            return Err(error);
        };
        if self.delete_agent(agent.id).await? == Deletion::Busy {
            return Err(Error::Conflict {
                message: format!(
                    "a runner named {name} is already registered with {} and has a job; it was not removed",
                    self.url().scope()
                ),
            });
        }
        let config = self.post_runner(set, name, work_folder).await?;
        Ok(JitConfig {
            lost_one: error.is_unanswered(),
            ..config
        })
    }

    async fn post_runner(
        &self,
        set: u64,
        name: &str,
        work_folder: &str,
    ) -> Result<JitConfig, Error> {
        let action = format!("register runner {name} with {}", self.url().scope());
        let path = format!("{SETS}/{set}/generatejitconfig");
        let body = json!({"name": name, "workFolder": work_folder});
        let answer = self
            .ask_service(Method::POST, &path, &[], Some(body), &action)
            .await?;
        let wire: WireJitConfig = self.read(answer.of_tokens(&action)?, &action)?;
        JitConfig::checked(wire.runner.id, wire.encoded, &action)
    }

    /// The runner of this name, asked afresh.
    pub async fn find_agent(&self, name: &str) -> Result<Option<Agent>, Error> {
        let agents = self.list_agents(&[("agentName", name)]).await?;
        Ok(agents.into_iter().find(|agent| agent.name == name))
    }

    /// The runners of a scale set, in a list that is at most `max_age` old and shared by all pools of the scope. Listing
    /// lags: absence is no proof.
    pub async fn agents_of(&self, set: u64, max_age: Duration) -> Result<Vec<Agent>, Error> {
        let all = self.agents.get(
            |last| last.at.elapsed() < max_age,
            async |_| {
                let all = self.list_agents(&[]).await?;
                let each = all
                    .iter()
                    .map(|agent| size_of::<Agent>() + agent.name.len());
                let (size, action) = (each.sum(), self.listing_agents());
                Ok(Arc::new(self.held(all, size, &action)?))
            },
        );
        let all: Agents = all.await?;
        let of_set = all.iter().filter(|agent| agent.scale_set == Some(set));
        Ok(of_set.cloned().collect())
    }

    fn listing_agents(&self) -> String {
        format!("list the runners of {}", self.url().scope())
    }

    async fn list_agents(&self, query: &[(&str, &str)]) -> Result<Vec<Agent>, Error> {
        let action = self.listing_agents();
        let answer = self
            .ask_service(Method::GET, AGENTS, query, None, &action)
            .await?;
        let list: List<WireAgent> = self.read(&answer, &action)?;
        let agents = list.value.0.into_iter().map(|agent| Agent {
            id: agent.id,
            name: agent.name,
            scale_set: agent.scale_set.filter(|id| *id > 0),
        });
        Ok(agents.collect())
    }

    /// Removes a runner. One that has a job stays.
    pub async fn delete_agent(&self, id: u64) -> Result<Deletion, Error> {
        let action = format!("remove runner {id} of {}", self.url().scope());
        let path = format!("{AGENTS}/{id}");
        let not_found = {
            let answer = self
                .ask_service(Method::DELETE, &path, &[], None, &action)
                .await?;
            if answer.status.is_success() {
                return Ok(Deletion::Deleted);
            }
            let exception = Exception::of(&answer);
            if exception.is("JobStillRunningException") {
                return Ok(Deletion::Busy);
            }
            if exception.is("AgentNotFound") {
                return Ok(Deletion::Gone);
            }
            if answer.status != StatusCode::NOT_FOUND {
                return Err(self.exception(&answer, &action));
            }
            self.exception(&answer, &action)
        };
        // Not the service's own words: only a list without it proves that it is gone.
        let listed = self.list_agents(&[]).await?;
        if listed.iter().any(|agent| agent.id == id) {
            return Err(not_found);
        }
        Ok(Deletion::Gone)
    }
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "AtMost::default")]
    value: AtMost<T, MOST_AGENTS>,
}

#[derive(Deserialize)]
struct WireSet {
    id: u64,
    #[serde(deserialize_with = "short")]
    name: String,
    #[serde(default)]
    labels: AtMost<WireLabel, MOST_LABELS>,
}

#[derive(Deserialize)]
struct WireLabel {
    #[serde(deserialize_with = "short")]
    name: String,
}

impl From<WireSet> for ScaleSet {
    fn from(wire: WireSet) -> Self {
        Self {
            id: wire.id,
            name: wire.name,
            labels: wire.labels.0.into_iter().map(|label| label.name).collect(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireAgent {
    id: u64,
    #[serde(deserialize_with = "name")]
    name: String,
    #[serde(default, rename = "runnerScaleSetId")]
    scale_set: Option<u64>,
}

#[derive(Deserialize)]
struct WireJitConfig {
    runner: WireAgent,
    #[serde(rename = "encodedJITConfig")]
    encoded: String,
}
