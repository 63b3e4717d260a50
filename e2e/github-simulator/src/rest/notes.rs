//! Check runs that Apps make.

use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::{Call, Principal},
    rest::{render, repos},
    state::{Note, World},
    text,
};

/// `POST …/check-runs`
pub fn create(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = call.repository_name();
    repos::named(world, call)?;
    let Principal::Installation(token) = &call.principal else {
        return Err(Answer::error(
            403,
            "You must authenticate via a GitHub App.",
        ));
    };
    let installation = world.installations.get(&token.installation);
    let app = installation
        .map(|i| i.app_id)
        .ok_or_else(Answer::not_found)?;
    let sha = call.text("head_sha").unwrap_or_default().to_owned();
    if !world
        .runs
        .values()
        .any(|run| run.repository == repository && run.sha == sha)
    {
        return Err(Answer::error(
            422,
            &format!("No commit found for SHA: {sha}"),
        ));
    }
    let output = |part: &str| {
        let said = call.body["output"][part].as_str();
        said.unwrap_or_default().to_owned()
    };
    let note = Note {
        id: world.next_id(),
        check_suite: world.next_id(),
        repository,
        app,
        sha,
        external_id: call.text("external_id").unwrap_or_default().to_owned(),
        name: call.text("name").unwrap_or_default().to_owned(),
        conclusion: call.text("conclusion").unwrap_or("neutral").to_owned(),
        title: output("title"),
        summary: output("summary"),
        details_url: call.text("details_url").map(str::to_owned),
        at: call.now,
    };
    let shown = show(world, call, &note);
    world.notes.insert(note.id, note);
    Ok(Answer::json(201, shown))
}

/// Those on a commit, for lists.
#[must_use]
pub fn on_commit(world: &World, call: &Call, sha: &str) -> Vec<Value> {
    let repository = call.repository_name();
    let app = call.query("app_id");
    world
        .notes
        .values()
        .filter(|note| note.repository == repository && note.sha == sha)
        .filter(|note| {
            call.query("check_name")
                .is_none_or(|name| note.name == name)
        })
        .filter(|_| {
            call.query("status")
                .is_none_or(|status| status == "completed")
        })
        .filter(|note| app.is_none_or(|id| note.app.to_string() == id))
        .map(|note| show(world, call, note))
        .collect()
}

fn show(world: &World, call: &Call, note: &Note) -> Value {
    let url = format!(
        "{}/repos/{}/check-runs/{}",
        call.api, note.repository, note.id
    );
    let page = format!("{}/{}/runs/{}", call.site, note.repository, note.id);
    let at = text::time(note.at);
    let app = world.apps.get(&note.app);
    json!({
        "id": note.id,
        "head_sha": note.sha,
        "node_id": format!("CR_{}", note.id),
        "external_id": note.external_id,
        "url": url,
        "html_url": page,
        "details_url": note.details_url.as_ref().unwrap_or(&page),
        "status": "completed",
        "conclusion": note.conclusion,
        "started_at": at,
        "completed_at": at,
        "output": {
            "title": note.title,
            "summary": note.summary,
            "text": null,
            "annotations_count": 0,
            "annotations_url": format!("{url}/annotations"),
        },
        "name": note.name,
        "check_suite": {"id": note.check_suite},
        "app": app.map(|app| render::app(world, call, app.id, &app.slug, &app.owner, app.created_at)),
        "pull_requests": [],
    })
}
