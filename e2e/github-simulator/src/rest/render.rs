//! Parts that several answers share: accounts, repositories, commits, Apps.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    call::Call,
    state::{Repository, RequiredStatusChecks, World, fork_id},
    text,
};

/// A login as a user or an organization.
#[must_use]
pub fn account(world: &World, call: &Call, login: &str) -> Value {
    let organization = world.organizations.get(&login.to_lowercase());
    let url = format!("{}/users/{login}", call.api);
    let site = &call.site;
    json!({
        "login": login,
        "id": organization.map_or(1, |organization| organization.id),
        "node_id": format!("O_{login}"),
        "avatar_url": format!("{site}/avatars/{login}"),
        "gravatar_id": "",
        "url": url,
        "html_url": format!("{site}/{login}"),
        "followers_url": format!("{url}/followers"),
        "following_url": format!("{url}/following{{/other_user}}"),
        "gists_url": format!("{url}/gists{{/gist_id}}"),
        "starred_url": format!("{url}/starred{{/owner}}{{/repo}}"),
        "subscriptions_url": format!("{url}/subscriptions"),
        "organizations_url": format!("{url}/orgs"),
        "repos_url": format!("{url}/repos"),
        "events_url": format!("{url}/events{{/privacy}}"),
        "received_events_url": format!("{url}/received_events"),
        "type": if organization.is_some() { "Organization" } else { "User" },
        "site_admin": false,
    })
}

/// An organization, as events carry it; none where the login is a user's.
#[must_use]
pub fn organization(world: &World, call: &Call, login: &str) -> Option<Value> {
    let id = world.organizations.get(&login.to_lowercase())?.id;
    let url = format!("{}/orgs/{login}", call.api);
    Some(json!({
        "login": login,
        "id": id,
        "node_id": format!("O_{login}"),
        "url": url,
        "repos_url": format!("{url}/repos"),
        "events_url": format!("{url}/events"),
        "hooks_url": format!("{url}/hooks"),
        "issues_url": format!("{url}/issues"),
        "members_url": format!("{url}/members{{/member}}"),
        "public_members_url": format!("{url}/public_members{{/member}}"),
        "avatar_url": format!("{}/avatars/{login}", call.site),
        "description": "",
    }))
}

/// A repository in short form, as runs and check suites carry it.
#[must_use]
pub fn repository(world: &World, call: &Call, repository: &Repository) -> Value {
    let Repository {
        id,
        full_name,
        private,
        ..
    } = repository;
    short(world, call, (*id, full_name), *private)
}

/// A fork in the same form: nothing else is known of it.
#[must_use]
pub fn fork(world: &World, call: &Call, full_name: &str) -> Value {
    let mut shown = short(world, call, (fork_id(full_name), full_name), false);
    shown["fork"] = true.into();
    shown
}

fn short(world: &World, call: &Call, (id, full_name): (u64, &str), private: bool) -> Value {
    let (owner, name) = full_name.split_once('/').unwrap_or_default();
    let url = format!("{}/repos/{full_name}", call.api);
    let mut shown = json!({
        "id": id,
        "node_id": format!("R_{id}"),
        "name": name,
        "full_name": full_name,
        "owner": account(world, call, owner),
        "private": private,
        "html_url": format!("{}/{full_name}", call.site),
        "description": null,
        "fork": false,
        "url": url,
    });
    for (name, suffix) in [
        ("archive_url", "/{archive_format}{/ref}"),
        ("assignees_url", "/assignees{/user}"),
        ("blobs_url", "/git/blobs{/sha}"),
        ("branches_url", "/branches{/branch}"),
        ("collaborators_url", "/collaborators{/collaborator}"),
        ("comments_url", "/comments{/number}"),
        ("commits_url", "/commits{/sha}"),
        ("compare_url", "/compare/{base}...{head}"),
        ("contents_url", "/contents/{+path}"),
        ("contributors_url", "/contributors"),
        ("deployments_url", "/deployments"),
        ("downloads_url", "/downloads"),
        ("events_url", "/events"),
        ("forks_url", "/forks"),
        ("git_commits_url", "/git/commits{/sha}"),
        ("git_refs_url", "/git/refs{/sha}"),
        ("git_tags_url", "/git/tags{/sha}"),
        ("hooks_url", "/hooks"),
        ("issue_comment_url", "/issues/comments{/number}"),
        ("issue_events_url", "/issues/events{/number}"),
        ("issues_url", "/issues{/number}"),
        ("keys_url", "/keys{/key_id}"),
        ("labels_url", "/labels{/name}"),
        ("languages_url", "/languages"),
        ("merges_url", "/merges"),
        ("milestones_url", "/milestones{/number}"),
        (
            "notifications_url",
            "/notifications{?since,all,participating}",
        ),
        ("pulls_url", "/pulls{/number}"),
        ("releases_url", "/releases{/id}"),
        ("stargazers_url", "/stargazers"),
        ("statuses_url", "/statuses/{sha}"),
        ("subscribers_url", "/subscribers"),
        ("subscription_url", "/subscription"),
        ("tags_url", "/tags"),
        ("teams_url", "/teams"),
        ("trees_url", "/git/trees{/sha}"),
    ] {
        shown[name] = format!("{url}{suffix}").into();
    }
    shown
}

/// A repository in full.
#[must_use]
pub fn full_repository(world: &World, call: &Call, entry: &Repository, admin: bool) -> Value {
    let mut shown = repository(world, call, entry);
    let page = format!("{}/{}", call.site, entry.full_name);
    let host = call.site.rsplit('/').next().unwrap_or_default();
    let created = text::time(entry.created_at);
    let more = json!({
        "git_url": format!("git://{host}/{}.git", entry.full_name),
        "ssh_url": format!("git@{host}:{}.git", entry.full_name),
        "clone_url": format!("{page}.git"),
        "svn_url": page,
        "mirror_url": null,
        "homepage": null,
        "language": "Rust",
        "forks_count": 0,
        "stargazers_count": 0,
        "watchers_count": 0,
        "size": 1,
        "default_branch": entry.default_branch,
        "open_issues_count": 0,
        "has_issues": true,
        "has_projects": false,
        "has_wiki": false,
        "has_pages": false,
        "has_downloads": false,
        "has_discussions": false,
        "archived": false,
        "disabled": false,
        "visibility": if entry.private { "private" } else { "public" },
        "pushed_at": created,
        "created_at": created,
        "updated_at": created,
        "subscribers_count": 0,
        "network_count": 0,
        "license": null,
        "forks": 0,
        "open_issues": 0,
        "watchers": 0,
        "permissions": {"admin": admin, "maintain": admin, "push": admin, "triage": admin, "pull": true},
    });
    merge(&mut shown, more);
    shown
}

/// Adds the properties of `more` to `target`.
pub fn merge(target: &mut Value, more: Value) {
    if let (Value::Object(target), Value::Object(more)) = (target, more) {
        target.extend(more);
    }
}

/// The App that reports the checks of workflows.
#[must_use]
pub fn actions_app(world: &World, call: &Call) -> Value {
    app(
        world,
        call,
        world.settings.actions_app_id,
        "github-actions",
        "github",
        Timestamp::UNIX_EPOCH,
    )
}

/// An App.
#[must_use]
pub fn app(
    world: &World,
    call: &Call,
    id: u64,
    slug: &str,
    owner: &str,
    created_at: Timestamp,
) -> Value {
    let created = text::time(created_at);
    json!({
        "id": id,
        "slug": slug,
        "node_id": format!("A_{id}"),
        "owner": account(world, call, owner),
        "name": slug,
        "description": null,
        "external_url": call.site,
        "html_url": format!("{}/apps/{slug}", call.site),
        "created_at": created,
        "updated_at": created,
        "permissions": {},
        "events": [],
    })
}

/// A commit as runs and check suites carry it.
#[must_use]
pub fn simple_commit(sha: &str, at: Timestamp) -> Value {
    let person = json!({"name": "Octo Cat", "email": "octocat@example.com"});
    json!({
        "id": sha,
        "tree_id": sha,
        "message": "Work",
        "timestamp": text::time(at),
        "author": person,
        "committer": person,
    })
}

/// A pull request in short form.
#[must_use]
pub fn pull_request(
    call: &Call,
    repository: &Repository,
    number: u64,
    branch: &str,
    sha: &str,
) -> Value {
    let url = format!("{}/repos/{}", call.api, repository.full_name);
    let end = |name: &str| {
        json!({
            "ref": name,
            "sha": sha,
            "repo": {"id": repository.id, "url": url, "name": repository.name()},
        })
    };
    json!({
        "id": number,
        "number": number,
        "url": format!("{url}/pulls/{number}"),
        "head": end(branch),
        "base": end(&repository.default_branch),
    })
}

/// The checks as GitHub shows them.
#[must_use]
pub fn required_checks(required: &RequiredStatusChecks) -> Vec<Value> {
    required
        .checks
        .iter()
        .map(|check| json!({"context": check.context, "app_id": check.app_id}))
        .collect()
}
