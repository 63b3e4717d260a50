//! Files of a repository: there are only workflow files.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{answer::Answer, call::Call, rest::repos, state::World, text};

/// `GET …/contents/{path}`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = repos::named(world, call)?;
    let reference = call.query("ref").unwrap_or(&repository.default_branch);
    let branch = reference.strip_prefix("refs/heads/").unwrap_or(reference);
    if !repository.branches.contains_key(branch) {
        return Err(Answer::error(
            404,
            &format!("No commit found for the ref {reference}"),
        ));
    }
    let path = call.parameter("path");
    let workflow = repository
        .workflows
        .values()
        .find(|workflow| {
            workflow.path == path
                && (workflow.branches.is_empty() || workflow.branches.contains(branch))
        })
        .ok_or_else(Answer::not_found)?;
    let url = format!(
        "{}/repos/{}/contents/{path}?ref={}",
        call.api,
        repository.full_name,
        text::percent_encode(branch)
    );
    let page = format!(
        "{}/{}/blob/{branch}/{path}",
        call.site, repository.full_name
    );
    let sha = format!("{:040x}", workflow.id);
    let blob = format!(
        "{}/repos/{}/git/blobs/{sha}",
        call.api, repository.full_name
    );
    Ok(Answer::json(
        200,
        json!({
            "type": "file",
            "encoding": "base64",
            "size": workflow.content.len(),
            "name": path.rsplit('/').next().unwrap_or_default(),
            "path": path,
            "content": STANDARD.encode(&workflow.content),
            "sha": sha,
            "url": url,
            "git_url": blob,
            "html_url": page,
            "download_url": null,
            "_links": {"git": blob, "self": url, "html": page},
        }),
    ))
}
