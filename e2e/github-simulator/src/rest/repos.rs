//! Repositories, organizations, branches and what the server says of itself.

use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::{Call, Principal},
    rest::render,
    state::{Branch, CredentialKind, Repository, World},
    text,
};

/// The repository that the path names; authorization has seen it already.
pub(crate) fn named<'a>(world: &'a World, call: &Call) -> Result<&'a Repository, Answer> {
    world
        .repository(&call.repository_name())
        .ok_or_else(Answer::not_found)
}

/// A private repository of a free plan has no protection at all.
pub(crate) fn paid(repository: &Repository) -> Result<(), Answer> {
    if repository.private && !repository.paid_plan {
        return Err(Answer::error(
            403,
            "Upgrade to GitHub Pro or make this repository public to enable this feature.",
        ));
    }
    Ok(())
}

/// `GET /repos/{owner}/{repo}`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = named(world, call)?;
    let admin = match &call.principal {
        Principal::User(credential) => match &credential.kind {
            CredentialKind::Classic { admin, .. } => *admin,
            CredentialKind::FineGrained { permissions } => {
                permissions.contains_key("administration")
            }
        },
        Principal::Installation(token) => token.permissions.contains_key("administration"),
        _ => false,
    };
    Ok(Answer::json(
        200,
        render::full_repository(world, call, repository, admin),
    ))
}

/// `GET /orgs/{org}`
pub fn organization(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let login = world
        .organizations
        .get(&call.parameter("org").to_lowercase())
        .map(|organization| organization.login.clone())
        .ok_or_else(Answer::not_found)?;
    let mut body = render::organization(world, call, &login).ok_or_else(Answer::not_found)?;
    body["description"] = Value::Null;
    let more = json!({
        "has_organization_projects": false,
        "has_repository_projects": false,
        "public_repos": 0,
        "public_gists": 0,
        "followers": 0,
        "following": 0,
        "html_url": format!("{}/{login}", call.site),
        "type": "Organization",
        "created_at": "2020-01-01T00:00:00Z",
        "updated_at": "2020-01-01T00:00:00Z",
        "archived_at": null,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    Ok(Answer::json(200, body))
}

/// `GET /meta`
pub fn meta(world: &mut World, _call: &Call) -> Result<Answer, Answer> {
    let mut body = json!({"verifiable_password_authentication": false});
    if !world.settings.server_version.is_empty() {
        body["installed_version"] = world.settings.server_version.clone().into();
    }
    Ok(Answer::json(200, body))
}

/// The branch that the path names.
pub(crate) fn branch<'a>(
    world: &'a World,
    call: &Call,
) -> Result<(&'a Repository, &'a Branch), Answer> {
    let repository = named(world, call)?;
    let branch = repository
        .branches
        .get(call.parameter("branch"))
        .ok_or_else(|| Answer::error(404, "Branch not found"))?;
    Ok((repository, branch))
}

/// `GET /repos/{owner}/{repo}/branches`
pub fn branches(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = named(world, call)?;
    let url = format!("{}/repos/{}", call.api, repository.full_name);
    let wanted = call.query("protected").map(|text| text == "true");
    let all = repository
        .branches
        .iter()
        .filter(|(_, branch)| wanted.is_none_or(|wanted| branch.protection.is_some() == wanted))
        .map(|(name, branch)| {
            json!({
                "name": name,
                "commit": {"sha": branch.sha, "url": format!("{url}/commits/{}", branch.sha)},
                "protected": branch.protection.is_some(),
            })
        })
        .collect();
    Ok(Answer::page(None, call.page(all)))
}

/// `GET /repos/{owner}/{repo}/branches/{branch}`
pub fn get_branch(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (repository, branch) = branch(world, call)?;
    let name = call.parameter("branch");
    let url = format!("{}/repos/{}", call.api, repository.full_name);
    let page = format!("{}/{}", call.site, repository.full_name);
    let at = text::time(repository.created_at);
    let person = json!({"name": "Octo Cat", "email": "octocat@example.com", "date": at});
    let own = format!("{url}/branches/{}", text::percent_encode(name));
    let checks: Vec<Value> = branch
        .protection
        .as_ref()
        .and_then(|protection| protection.required_status_checks.as_ref())
        .map(render::required_checks)
        .unwrap_or_default();
    let contexts: Vec<&Value> = checks
        .iter()
        .filter_map(|check| check.get("context"))
        .collect();
    let level = match &branch.protection {
        Some(protection) if protection.required_status_checks.is_some() => "non_admins",
        _ => "off",
    };
    Ok(Answer::json(
        200,
        json!({
            "name": name,
            "commit": {
                "sha": branch.sha,
                "node_id": format!("C_{}", branch.sha),
                "url": format!("{url}/commits/{}", branch.sha),
                "html_url": format!("{page}/commit/{}", branch.sha),
                "comments_url": format!("{url}/commits/{}/comments", branch.sha),
                "commit": {
                    "url": format!("{url}/git/commits/{}", branch.sha),
                    "author": person,
                    "committer": person,
                    "message": "Work",
                    "comment_count": 0,
                    "tree": {"sha": branch.sha, "url": format!("{url}/git/trees/{}", branch.sha)},
                },
                "author": null,
                "committer": null,
                "parents": [],
            },
            "_links": {"self": own, "html": format!("{page}/tree/{name}")},
            "protected": branch.protection.is_some(),
            "protection": {
                "enabled": branch.protection.is_some(),
                "required_status_checks": {
                    "enforcement_level": level,
                    "contexts": contexts,
                    "checks": checks,
                },
            },
            "protection_url": format!("{own}/protection"),
        }),
    ))
}
