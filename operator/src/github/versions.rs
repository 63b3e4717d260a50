//! How long GitHub serves a version of the agent.
//!
//! The endpoint is documented for Enterprise Cloud only, at
//! <https://docs.github.com/en/enterprise-cloud@latest/rest/actions/self-hosted-runners>: a server without it says
//! nothing of versions.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};

use super::{Client, Error, Lifecycle, pages::What};
use cuda_runner_plan::model::url::encode;

/// How long an answer is good. The dates are weeks away, and move once for each release.
const DAY: Duration = Duration::from_hours(24);
/// When a question is put again that got no answer.
const AGAIN: Duration = Duration::from_mins(10);
/// Versions that are kept. Few are in use at a time, and a runner may claim any.
const MOST: usize = 64;

/// What was answered, with the time until which it is good.
#[derive(Default)]
pub(super) struct Lifecycles(Mutex<HashMap<String, (Instant, Option<Lifecycle>)>>);

impl Client {
    /// How long a version of the agent is served, where GitHub says it. Asked once a day for all pools of the address.
    pub async fn lifecycle(&self, version: &str) -> Option<Lifecycle> {
        // Held while asking, so that one asks for all.
        let mut kept = self.lifecycles.0.lock().await;
        let last = kept.get(version).copied();
        let now = Instant::now();
        if let Some((_, found)) = last.filter(|(until, _)| now < *until) {
            return found;
        }
        let path = format!(
            "{}/deprecations/{}",
            self.url().runners_path(),
            encode(version)
        );
        let action = format!("read how long the agent {version} is served");
        let what = What {
            action: &action,
            permission: self.url().scope().permission(),
        };
        let (found, good) = match self.ask_tagged::<WireLifecycle>(path, &what).await {
            Ok(found) => (found.map(|found| found.0), DAY),
            Err(Error::Forbidden { .. } | Error::Validation { .. }) => (None, DAY),
            Err(error) => {
                tracing::debug!(%error, "how long an agent is served is not known at the moment");
                (last.and_then(|(_, found)| found), AGAIN)
            }
        };
        if kept.len() >= MOST {
            kept.clear();
        }
        kept.insert(version.to_owned(), (now + good, found));
        found
    }
}

/// The answer in GitHub's form.
#[derive(Deserialize)]
#[serde(transparent)]
struct WireLifecycle(#[serde(with = "LifecycleForm")] Lifecycle);

#[derive(Deserialize)]
#[serde(remote = "Lifecycle")]
struct LifecycleForm {
    #[serde(rename = "registration_deprecates_at")]
    registration_ends: Option<Timestamp>,
    #[serde(rename = "runtime_deprecates_at")]
    runtime_ends: Option<Timestamp>,
}
