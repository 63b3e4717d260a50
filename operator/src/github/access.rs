//! What the credentials may do.

use std::{collections::BTreeMap, time::Duration};

use super::{Client, Error, Scope};

/// What the credentials turned out to be good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessCheck {
    /// What the App was granted, such as `administration: write`. Empty for a token, which does not say.
    pub permissions: BTreeMap<String, String>,
}

impl Client {
    /// Whether the credentials are accepted, reach the scope and may manage its runners.
    ///
    /// Costs what [`Client::list_runners`] costs, and a token for an App that has none yet. What a token may write is
    /// not reported before it is tried.
    pub async fn check_access(&self, max_age: Duration) -> Result<AccessCheck, Error> {
        let permissions = match self.transport.minted().await? {
            None => BTreeMap::new(),
            Some(minted) => {
                self.granted(&minted.permissions)?;
                minted.permissions.as_ref().clone()
            }
        };
        self.list_runners(max_age).await?;
        Ok(AccessCheck { permissions })
    }

    fn granted(&self, permissions: &BTreeMap<String, String>) -> Result<(), Error> {
        let scope = self.url().scope();
        let forbidden = |message: String| Error::Forbidden {
            action: format!("manage the runners of {scope}"),
            advice: format!("grant {}", scope.permission()),
            message,
        };
        let Some(needed) = app_permission(scope) else {
            return Err(forbidden(
                "a GitHub App cannot manage the runners of an enterprise".into(),
            ));
        };
        match permissions.get(needed).map(String::as_str) {
            Some("write" | "admin") => Ok(()),
            // An answer without any permissions is an old server's: the listing will show.
            None if permissions.is_empty() => Ok(()),
            Some(level) => Err(forbidden(format!(
                "the App has {needed}: {level}, it needs write"
            ))),
            None => Err(forbidden(format!("the App lacks {needed}: write"))),
        }
    }
}

/// The key of the permission in the answer that gives a token:
/// <https://docs.github.com/en/rest/apps/apps?apiVersion=2022-11-28#create-an-installation-access-token-for-an-app>.
const fn app_permission(scope: &Scope) -> Option<&'static str> {
    match scope {
        Scope::Repository { .. } => Some("administration"),
        Scope::Organization { .. } => Some("organization_self_hosted_runners"),
        Scope::Enterprise { .. } => None,
    }
}
