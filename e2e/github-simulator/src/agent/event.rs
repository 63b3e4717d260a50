//! What a job is told of the event that started its run: parts of the context `github`, and the payload.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::state::{Repository, Run, fork_id};

/// The pull request of a run that names none.
const PULL_REQUEST: u64 = 1;

/// The ref, and what belongs to it, as variables of the context `github`.
pub(super) fn refs(run: &Run, repository: &Repository) -> BTreeMap<&'static str, String> {
    let number = run.pull_request.unwrap_or(PULL_REQUEST);
    let branch = |name: &str| (format!("refs/heads/{name}"), name.to_owned(), "branch");
    let of_a_pull = run.event.starts_with("pull_request");
    let (reference, name, kind) = if run.event == "pull_request_target" {
        branch(&repository.default_branch)
    } else if of_a_pull {
        let name = format!("{number}/merge");
        (format!("refs/pull/{name}"), name, "branch")
    } else {
        branch(&run.branch)
    };
    let mut refs = BTreeMap::from([
        ("ref", reference),
        ("ref_name", name),
        ("ref_type", kind.to_owned()),
    ]);
    if of_a_pull {
        refs.insert("head_ref", run.branch.clone());
        refs.insert("base_ref", repository.default_branch.clone());
    }
    refs
}

/// The payload, as far as something here reads it.
pub(super) fn payload(run: &Run, repository: &Repository) -> Value {
    let own = json!({
        "id": repository.id,
        "full_name": repository.full_name,
        "private": repository.private,
        "fork": false,
    });
    let head = match &run.fork {
        Some(name) => {
            json!({"id": fork_id(name), "full_name": name, "private": false, "fork": true})
        }
        None => own.clone(),
    };
    match run.event.as_str() {
        "schedule" => json!({"schedule": "0 4 * * *"}),
        "workflow_run" => json!({
            "action": "completed",
            "workflow_run": {"head_branch": run.branch, "head_sha": run.sha, "head_repository": head},
            "repository": own,
        }),
        event if event.starts_with("pull_request") => {
            let number = run.pull_request.unwrap_or(PULL_REQUEST);
            json!({
                "action": "synchronize",
                "number": number,
                "pull_request": {
                    "number": number,
                    "head": {"ref": run.branch, "sha": run.sha, "repo": head},
                    "base": {"ref": repository.default_branch, "repo": own},
                },
                "repository": own,
            })
        }
        _ => json!({
            "ref": format!("refs/heads/{}", run.branch),
            "after": run.sha,
            "repository": own,
        }),
    }
}
