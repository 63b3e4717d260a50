//! Registration and removal tokens, and where the URLs point that they are used with.

use jiff::Timestamp;

use crate::state::{Scope, World};

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It does not exist, is for something else, was used, or has expired.
    Invalid,
    /// It belongs elsewhere.
    Elsewhere,
}

/// Finds where a URL such as `https://host/owner/name` points.
pub(crate) fn scope_of(world: &World, url: &str) -> Option<Scope> {
    // Under whichever name it was reached.
    let path = url
        .strip_prefix("https://")?
        .trim_start_matches(|c| c != '/')
        .trim_matches('/')
        .to_lowercase();
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["enterprises", slug] if world.enterprises.contains_key(*slug) => {
            Some(Scope::Enterprise((*slug).to_owned()))
        }
        [login] if world.organizations.contains_key(*login) => {
            Some(Scope::Organization((*login).to_owned()))
        }
        [_, _] if world.repositories.contains_key(&path) => Some(Scope::Repository(path)),
        _ => None,
    }
}

/// Uses a registration or removal token.
pub(crate) fn redeem(
    world: &mut World,
    secret: &str,
    scope: &Scope,
    removal: bool,
    now: Timestamp,
) -> Result<(), Refusal> {
    let single = world.settings.single_use_registration;
    let token = world
        .registration_tokens
        .get_mut(secret)
        .filter(|token| token.removal == removal && token.expires_at > now)
        .filter(|token| !single || token.uses == 0)
        .ok_or(Refusal::Invalid)?;
    if token.scope != *scope {
        return Err(Refusal::Elsewhere);
    }
    token.uses += 1;
    Ok(())
}
