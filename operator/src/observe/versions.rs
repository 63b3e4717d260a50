//! What GitHub says of the versions of agents: of the one in use, and of those that it refused.

use std::collections::{BTreeMap, BTreeSet};

use crate::github::{Client, Lifecycle};
use cuda_runner_plan::model::runner::End;
use cuda_runner_plan::{Observed, version};

/// Asks for each version once a day, and not at all where nothing is registered or refused.
pub async fn look(observed: &Observed, client: &Client) -> BTreeMap<String, Lifecycle> {
    let refused = observed.runners.iter().filter_map(|runner| {
        let Some(End::Failed(failure)) = &runner.end else {
            return None;
        };
        failure.refused.as_ref()?.version.as_deref()
    });
    let versions: BTreeSet<&str> = refused.chain(version::in_use(observed)).collect();
    let mut known = BTreeMap::new();
    for version in versions {
        if let Some(lifecycle) = client.lifecycle(version).await {
            known.insert(version.to_owned(), lifecycle);
        }
    }
    known
}
