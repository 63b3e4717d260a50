//! GitHub Apps, their installations and tokens.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::{Call, Principal},
    rest::{render, runners::hour_from},
    state::{App, Installation, InstallationToken, Level, World},
    text,
};

fn caller<'a>(world: &'a World, call: &Call) -> Result<&'a App, Answer> {
    match call.principal {
        Principal::App(id) => world.apps.get(&id).ok_or_else(Answer::not_found),
        _ => Err(Answer::not_found()),
    }
}

/// `GET /app`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let app = caller(world, call)?;
    let count = world
        .installations
        .values()
        .filter(|installation| installation.app_id == app.id)
        .count();
    let mut shown = render::app(world, call, app.id, &app.slug, &app.owner, app.created_at);
    shown["client_id"] = app.client_id.clone().into();
    shown["installations_count"] = count.into();
    shown["permissions"] = json!(app.permissions);
    Ok(Answer::json(200, shown))
}

fn show(world: &World, call: &Call, app: &App, installation: &Installation) -> Value {
    let account = &installation.account;
    let organization = world.organizations.get(&account.to_lowercase());
    let url = format!("{}/app/installations/{}", call.api, installation.id);
    let at = text::time(installation.created_at);
    json!({
        "id": installation.id,
        "client_id": app.client_id,
        "account": render::account(world, call, account),
        "repository_selection": if installation.repositories.is_some() { "selected" } else { "all" },
        "access_tokens_url": format!("{url}/access_tokens"),
        "repositories_url": format!("{}/installation/repositories", call.api),
        "html_url": format!("{}/organizations/{account}/settings/installations/{}", call.site, installation.id),
        "app_id": app.id,
        "app_slug": app.slug,
        "target_id": organization.map_or(1, |organization| organization.id),
        "target_type": if organization.is_some() { "Organization" } else { "User" },
        "permissions": installation.permissions,
        "events": [],
        "created_at": at,
        "updated_at": at,
        "single_file_name": null,
        "suspended_by": null,
        "suspended_at": installation.suspended_at.map(text::time),
    })
}

/// `GET /app/installations`
pub fn installations(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let app = caller(world, call)?;
    let all = world
        .installations
        .values()
        .filter(|installation| installation.app_id == app.id)
        .map(|installation| show(world, call, app, installation))
        .collect();
    Ok(Answer::page(None, call.page(all)))
}

fn own<'a>(world: &'a World, call: &Call) -> Result<(&'a App, &'a Installation), Answer> {
    let app = caller(world, call)?;
    let installation = world
        .installations
        .get(&call.number("installation_id")?)
        .filter(|installation| installation.app_id == app.id)
        .ok_or_else(Answer::not_found)?;
    Ok((app, installation))
}

/// `GET /app/installations/{installation_id}`
pub fn installation(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (app, installation) = own(world, call)?;
    Ok(Answer::json(200, show(world, call, app, installation)))
}

/// `GET /repos/{owner}/{repo}/installation`
pub fn of_repository(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let app = caller(world, call)?;
    let name = call.repository_name();
    let owner = call.parameter("owner");
    let installation = world
        .installations
        .values()
        .find(|installation| {
            installation.app_id == app.id
                && installation.account.eq_ignore_ascii_case(owner)
                && world.repository(&name).is_some()
                && installation
                    .repositories
                    .as_ref()
                    .is_none_or(|names| names.contains(&name))
        })
        .ok_or_else(Answer::not_found)?;
    Ok(Answer::json(200, show(world, call, app, installation)))
}

/// `GET /orgs/{org}/installation`
pub fn of_organization(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let login = call.parameter("org").to_lowercase();
    if !world.organizations.contains_key(&login) {
        return Err(Answer::not_found());
    }
    of_account(world, call, &login)
}

/// `GET /users/{username}/installation`
pub fn of_user(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let login = call.parameter("username").to_lowercase();
    if world.organizations.contains_key(&login) {
        return Err(Answer::not_found());
    }
    of_account(world, call, &login)
}

fn of_account(world: &World, call: &Call, login: &str) -> Result<Answer, Answer> {
    let app = caller(world, call)?;
    let mut all = world.installations.values();
    let installation = all
        .find(|found| found.app_id == app.id && found.account.eq_ignore_ascii_case(login))
        .ok_or_else(Answer::not_found)?;
    Ok(Answer::json(200, show(world, call, app, installation)))
}

/// `POST /app/installations/{installation_id}/access_tokens`
pub fn access_token(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (_, installation) = own(world, call)?;
    if installation.suspended_at.is_some() {
        return Err(Answer::error(403, "This installation has been suspended"));
    }
    let permissions = narrow_permissions(installation, call.body.get("permissions"))?;
    let repositories = narrow_repositories(world, installation, &call.body)?;
    let mut body = json!({"permissions": permissions});
    body["repository_selection"] = if repositories.is_some() || installation.repositories.is_some()
    {
        "selected"
    } else {
        "all"
    }
    .into();
    if let Some(names) = &repositories {
        let shown: Vec<Value> = names
            .iter()
            .filter_map(|name| world.repository(name))
            .map(|repository| render::full_repository(world, call, repository, false))
            .collect();
        body["repositories"] = shown.into();
    }
    let secret = format!("ghs_{}", text::random_hex(18));
    let expires_at = hour_from(call.now);
    body["token"] = secret.clone().into();
    body["expires_at"] = text::time(expires_at).into();
    let installation = installation.id;
    world.installation_tokens.insert(
        secret,
        InstallationToken {
            installation,
            repositories,
            permissions,
            expires_at,
        },
    );
    Ok(Answer::json(201, body))
}

fn narrow_permissions(
    installation: &Installation,
    asked: Option<&Value>,
) -> Result<BTreeMap<String, Level>, Answer> {
    let Some(asked) = asked.filter(|asked| !asked.is_null()) else {
        let mut all = installation.permissions.clone();
        all.insert("metadata".to_owned(), Level::Read);
        return Ok(all);
    };
    let refused = || {
        Answer::error(
            422,
            "The permissions requested are not granted to this installation.",
        )
    };
    let mut asked: BTreeMap<String, Level> =
        serde_json::from_value(asked.clone()).map_err(|_| refused())?;
    for (name, level) in &asked {
        let granted = if name == "metadata" {
            Some(Level::Read)
        } else {
            installation.permissions.get(name).copied()
        };
        if granted < Some(*level) {
            return Err(refused());
        }
    }
    asked.insert("metadata".to_owned(), Level::Read);
    Ok(asked)
}

fn narrow_repositories(
    world: &World,
    installation: &Installation,
    body: &Value,
) -> Result<Option<BTreeSet<String>>, Answer> {
    let refused = || {
        Answer::error(
            422,
            "There is at least one repository that does not exist or is not accessible to the \
             parent installation.",
        )
    };
    let list = |name: &str| body.get(name).and_then(Value::as_array).cloned();
    let (names, ids) = (list("repositories"), list("repository_ids"));
    if names.is_none() && ids.is_none() {
        return Ok(None);
    }
    let mut narrowed = BTreeSet::new();
    for name in names.into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        narrowed.insert(format!("{}/{name}", installation.account).to_lowercase());
    }
    for id in ids.into_iter().flatten() {
        let repository = world
            .repositories
            .iter()
            .find(|(_, repository)| Some(repository.id) == id.as_u64())
            .ok_or_else(refused)?;
        narrowed.insert(repository.0.clone());
    }
    let reachable = narrowed.iter().all(|name| {
        world.repository(name).is_some()
            && installation
                .repositories
                .as_ref()
                .is_none_or(|names| names.contains(name))
    });
    if reachable {
        Ok(Some(narrowed))
    } else {
        Err(refused())
    }
}

/// `DELETE /installation/token`
pub fn revoke(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let Principal::Installation(token) = &call.principal else {
        return Err(Answer::error(
            403,
            "You must authenticate with an installation access token in order to revoke it.",
        ));
    };
    world.installation_tokens.retain(|_, other| {
        other.installation != token.installation || other.expires_at != token.expires_at
    });
    Ok(Answer::empty(204))
}
