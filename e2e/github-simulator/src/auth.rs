//! Who asks, and whether they may.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

use crate::{
    answer::Answer,
    call::{Call, Principal},
    state::{Credential, CredentialKind, Level, Repository, World},
};

/// Reads the `Authorization` header.
pub fn identify(world: &World, header: Option<&str>, now: Timestamp) -> Result<Principal, Answer> {
    let Some(header) = header else {
        return Ok(Principal::Anonymous);
    };
    let secret = header
        .split_once(' ')
        .filter(|(scheme, _)| {
            scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token")
        })
        .map(|(_, secret)| secret.trim())
        .ok_or_else(bad_credentials)?;
    if let Some(token) = world.installation_tokens.get(secret) {
        let suspended = world
            .installations
            .get(&token.installation)
            .is_none_or(|installation| installation.suspended_at.is_some());
        return if token.expires_at <= now {
            Err(bad_credentials())
        } else if suspended {
            Err(Answer::error(403, "This installation has been suspended"))
        } else {
            Ok(Principal::Installation(token.clone()))
        };
    }
    if let Some(credential) = world.credentials.get(secret) {
        return Ok(Principal::User(credential.clone()));
    }
    if secret.split('.').count() == 3 {
        return app(world, secret, now).map(Principal::App);
    }
    Err(bad_credentials())
}

fn bad_credentials() -> Answer {
    Answer::error(401, "Bad credentials")
}

/// Verifies an App's JWT as GitHub does.
fn app(world: &World, jwt: &str, now: Timestamp) -> Result<u64, Answer> {
    let undecodable = || Answer::error(401, "A JSON web token could not be decoded");
    let header = jsonwebtoken::decode_header(jwt).map_err(|_| undecodable())?;
    if header.alg != Algorithm::RS256 {
        return Err(undecodable());
    }
    let claims: Value = jwt
        .split('.')
        .nth(1)
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok())
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(undecodable)?;
    let issuer = match claims.get("iss") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => {
            return Err(Answer::error(
                401,
                "Missing 'issuer' claim ('iss') in assertion",
            ));
        }
    };
    let app = world
        .apps
        .values()
        .find(|app| app.id.to_string() == issuer || app.client_id == issuer)
        .ok_or_else(|| Answer::error(404, "Integration not found"))?;
    let mut validation = Validation::new(Algorithm::RS256);
    // `in_time` judges the times.
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    let genuine = app.public_keys.iter().any(|pem| {
        DecodingKey::from_rsa_pem(pem.as_bytes())
            .is_ok_and(|key| jsonwebtoken::decode::<Value>(jwt, &key, &validation).is_ok())
    });
    if !genuine {
        return Err(undecodable());
    }
    in_time(&claims, now.as_second())?;
    Ok(app.id)
}

/// The times in a JWT, judged with GitHub's own words.
fn in_time(claims: &Value, now: i64) -> Result<(), Answer> {
    let issued = claims.get("iat").and_then(Value::as_i64).ok_or_else(|| {
        Answer::error(
            401,
            "'Issued at' claim ('iat') must be an Integer representing the time that the \
             assertion was issued",
        )
    })?;
    let expires = claims
        .get("exp")
        .and_then(Value::as_i64)
        .filter(|expires| *expires > now)
        .ok_or_else(|| {
            Answer::error(
                401,
                "'Expiration time' claim ('exp') must be a numeric value representing the future \
                 time at which the assertion expires",
            )
        })?;
    if expires > now + 600 {
        return Err(Answer::error(
            401,
            "'Expiration time' claim ('exp') is too far in the future",
        ));
    }
    if issued > now {
        return Err(Answer::error(
            401,
            "'Issued at' claim ('iat') must be an Integer representing the time that the \
             assertion was issued",
        ));
    }
    Ok(())
}

/// What a caller needs.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// Nothing.
    Anyone,
    /// An App's JWT.
    App,
    /// A permission on the repository of the path.
    Repository(&'static str, Level),
    /// A permission on the organization of the path.
    Organization(&'static str, Level),
    /// A classic token of an administrator of the enterprise of the path.
    Enterprise,
}

/// Whether the caller may do what the operation needs.
pub fn authorize(world: &World, call: &Call, need: Need) -> Result<(), Answer> {
    match need {
        Need::Anyone => Ok(()),
        Need::App => match call.principal {
            Principal::App(_) => Ok(()),
            Principal::Anonymous => Err(unauthenticated()),
            _ => Err(Answer::error(401, "A JSON web token could not be decoded")),
        },
        Need::Repository(permission, level) => on_repository(world, call, permission, level),
        Need::Organization(permission, level) => on_organization(world, call, permission, level),
        Need::Enterprise => on_enterprise(world, call),
    }
}

fn unauthenticated() -> Answer {
    Answer::error(401, "Requires authentication")
}

fn on_repository(world: &World, call: &Call, permission: &str, level: Level) -> Result<(), Answer> {
    let name = call.repository_name();
    let repository = world.repository(&name).ok_or_else(Answer::not_found)?;
    if let Principal::App(_) = call.principal {
        // Only /app and what is below it takes a JWT.
        return Err(bad_credentials());
    }
    if matches!(call.principal, Principal::Anonymous) {
        return Err(if repository.private {
            Answer::not_found()
        } else {
            unauthenticated()
        });
    }
    let granted = if sees(world, &call.principal, repository) {
        repository_level(world, &call.principal, permission)
    } else if repository.private {
        return Err(Answer::not_found());
    } else {
        // Everybody may look at what is public.
        ["metadata", "contents", "actions", "checks"]
            .contains(&permission)
            .then_some(Level::Read)
    };
    if granted >= Some(level) {
        return Ok(());
    }
    Err(refused(&call.principal))
}

fn on_organization(
    world: &World,
    call: &Call,
    permission: &str,
    level: Level,
) -> Result<(), Answer> {
    let login = call.parameter("org").to_lowercase();
    if !world.organizations.contains_key(&login) {
        return Err(Answer::not_found());
    }
    match &call.principal {
        Principal::Anonymous => Err(unauthenticated()),
        Principal::App(_) => Err(bad_credentials()),
        Principal::Installation(token) => {
            let own = world
                .installations
                .get(&token.installation)
                .is_some_and(|installation| installation.account.to_lowercase() == login);
            if !own {
                Err(Answer::not_found())
            } else if token.permissions.get(permission).copied() >= Some(level) {
                Ok(())
            } else {
                Err(refused(&call.principal))
            }
        }
        Principal::User(credential) => organization_user(credential, permission, level)
            .then_some(())
            .ok_or_else(|| refused(&call.principal)),
    }
}

fn on_enterprise(world: &World, call: &Call) -> Result<(), Answer> {
    let slug = call.parameter("enterprise").to_lowercase();
    if !world.enterprises.contains_key(&slug) {
        return Err(Answer::not_found());
    }
    let wanted = ["manage_runners:enterprise", "admin:enterprise"];
    match &call.principal {
        Principal::Anonymous => Err(unauthenticated()),
        Principal::User(credential) if scope(credential, &wanted) => Ok(()),
        // An enterprise hides from whoever may not administer it.
        _ => Err(Answer::not_found()),
    }
}

fn refused(principal: &Principal) -> Answer {
    match principal {
        Principal::Installation(_) => Answer::error(403, "Resource not accessible by integration"),
        Principal::User(Credential {
            kind: CredentialKind::FineGrained { .. },
            ..
        }) => Answer::error(403, "Resource not accessible by personal access token"),
        Principal::User(_) => Answer::error(403, "Must have admin rights to Repository."),
        _ => Answer::not_found(),
    }
}

fn scope(credential: &Credential, wanted: &[&str]) -> bool {
    match &credential.kind {
        CredentialKind::Classic { scopes, admin } => {
            *admin && wanted.iter().any(|scope| scopes.contains(*scope))
        }
        CredentialKind::FineGrained { .. } => false,
    }
}

fn organization_user(credential: &Credential, permission: &str, level: Level) -> bool {
    match &credential.kind {
        CredentialKind::Classic { .. } => {
            let wanted: &[&str] = match permission {
                "organization_hooks" => &["admin:org_hook"],
                _ => &["admin:org", "manage_runners:org"],
            };
            scope(credential, wanted)
        }
        CredentialKind::FineGrained { permissions } => {
            permissions.get(permission).copied() >= Some(level)
        }
    }
}

/// Whether a repository exists for the caller.
#[must_use]
pub fn sees(world: &World, principal: &Principal, repository: &Repository) -> bool {
    let name = repository.full_name.to_lowercase();
    let within = |selected: &Option<BTreeSet<String>>| {
        selected.as_ref().is_none_or(|names| names.contains(&name))
    };
    match principal {
        Principal::Anonymous | Principal::App(_) => false,
        Principal::Installation(token) => {
            world
                .installations
                .get(&token.installation)
                .is_some_and(|installation| {
                    installation
                        .account
                        .eq_ignore_ascii_case(repository.owner())
                        && within(&installation.repositories)
                })
                && within(&token.repositories)
        }
        Principal::User(credential) => {
            let reads = match &credential.kind {
                CredentialKind::Classic { scopes, .. } => {
                    scopes.contains("repo")
                        || (!repository.private && scopes.contains("public_repo"))
                }
                CredentialKind::FineGrained { .. } => true,
            };
            reads && within(&credential.repositories)
        }
    }
}

/// How far the caller's permission for repositories goes.
fn repository_level(world: &World, principal: &Principal, permission: &str) -> Option<Level> {
    let granted = |permissions: &BTreeMap<String, Level>| {
        if permission == "metadata" {
            Some(Level::Read)
        } else {
            permissions.get(permission).copied()
        }
    };
    match principal {
        Principal::Anonymous | Principal::App(_) => None,
        // What the installation was granted may have shrunk since the token was made.
        Principal::Installation(token) => granted(&token.permissions).min(
            world
                .installations
                .get(&token.installation)
                .and_then(|installation| granted(&installation.permissions)),
        ),
        Principal::User(credential) => match &credential.kind {
            CredentialKind::Classic { admin: true, .. } => Some(Level::Write),
            // Everybody else looks, but not at what administrators administer.
            CredentialKind::Classic { .. } if permission != "administration" => Some(Level::Read),
            CredentialKind::Classic { .. } => None,
            CredentialKind::FineGrained { permissions } => granted(permissions),
        },
    }
}
