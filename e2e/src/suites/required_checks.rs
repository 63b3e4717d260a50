//! The verified jobs become required checks, beside whatever the user requires, and go with the pool.

use anyhow::{Result, ensure};
use github_simulator::{
    control::{NewBranch, NewRun, NewWorkflow, UpdateRepository},
    faults::Action,
    state::Conclusion,
};
use serde_json::{Value, json};

use super::Ctx;
use super::context::{SOON, job};

/// What the user requires on `main`.
const OWN: &str = "fmt";
/// The jobs of the workflow.
const JOBS: [&str; 2] = ["gpu", "build"];
/// The request that adds to what a branch requires.
const ADD: &str = "repos/add-status-check-contexts";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a protected branch with a check of the user's, one without protection, and one whose name has a slash
    let branches = [
        branch("main", Some(&[OWN])),
        branch("dev", None),
        branch("release/1", Some(&[])),
    ];
    workflow(ctx).await?;
    update(ctx, &branches).await?;
    let before = lasting(ctx).await?;
    names_wait_for_a_pull_request(ctx).await?;
    the_users_checks_stay(ctx).await?;
    the_last_pool_out_removes(ctx).await?;
    ensure!(lasting(ctx).await? == before, "GitHub is not as it was");
    a_branch_in_the_way_is_named(ctx).await?;
    a_ruleset(ctx).await?;
    ensure!(lasting(ctx).await? == before, "GitHub is not as it was");
    Ok(())
}

/// Green is not enough: a name that pull requests do not report would block them all.
async fn names_wait_for_a_pull_request(ctx: &Ctx) -> Result<()> {
    let wanted =
        json!([{"name": "main"}, {"name": "dev", "ifProtected": true}, {"name": "release/1"}]);
    ctx.apply(&pool(ctx, "one", &json!({"branches": wanted})))
        .await?;
    ctx.condition("one", "WorkflowVerified", "True", "Verified")
        .await?;
    let reported = ctx
        .condition("one", "ChecksRequired", "False", "NotSeenOnPullRequest")
        .await?;
    ensure!(reported.contains("gpu, build"), "{reported}");
    ensure!(required(ctx, "main").await? == [OWN], "required unseen");

    // When a pull request has run the workflow, and GitHub's answer to the first change is lost
    let mark = ctx.last_call().await?;
    ctx.inject(ADD, 1, Action::DropAfter).await?;
    pull_request(ctx).await?;
    let changes = async || {
        let mut changes = ctx.calls(mark).await?;
        changes.retain(|call| {
            call.path.contains(&ctx.repository) && call.operation_id.as_deref() == Some(ADD)
        });
        anyhow::Ok(changes)
    };
    // The next look at pull requests is due within half a minute, and the one after a lost answer a minute later
    ctx.wait_for("an answer to be lost", SOON, async || {
        let lost = changes().await?.iter().any(|call| call.fault.is_some());
        Ok(lost.then_some(()))
    })
    .await?;
    // Then they are required where there is protection, and the other branch is not changed
    let reported = ctx
        .condition("one", "ChecksRequired", "True", "Required")
        .await?;
    ensure!(
        reported.contains("Required on main, release/1: gpu, build")
            && reported.contains("not changed: dev"),
        "{reported}"
    );
    ensure!(required(ctx, "main").await? == [OWN, "gpu", "build"]);
    ensure!(required(ctx, "release/1").await? == JOBS);
    // Once each: GitHub was asked what became of the change, not to make it again
    let changes = changes().await?;
    ensure!(changes.len() == 2, "{changes:#?}");
    let lost = changes.iter().filter(|call| call.fault.is_some()).count();
    ensure!(lost == 1, "no answer was lost: {changes:#?}");
    Ok(())
}

/// A person edits meanwhile: what they add stays, and what they took of ours comes back.
async fn the_users_checks_stay(ctx: &Ctx) -> Result<()> {
    update(ctx, &[branch("main", Some(&[OWN, "docs", "gpu"]))]).await?;
    ctx.annotate("one", cudarunner_crds::LOOK_AGAIN, "drift")
        .await?;
    ctx.wait_for("the drift to be repaired", SOON, async || {
        Ok((required(ctx, "main").await? == [OWN, "docs", "gpu", "build"]).then_some(()))
    })
    .await?;
    // And they take their own away again
    update(ctx, &[branch("main", Some(&[OWN, "gpu", "build"]))]).await
}

/// Two pools require the same: the first one out changes nothing, the second one takes its checks along.
async fn the_last_pool_out_removes(ctx: &Ctx) -> Result<()> {
    // Its runners would take the other pool's jobs
    ctx.scale("one", 0).await?;
    let wanted = json!([{"name": "main"}]);
    ctx.apply(&pool(ctx, "two", &json!({"branches": wanted})))
        .await?;
    ctx.condition("two", "ChecksRequired", "True", "Required")
        .await?;
    ctx.delete("one").await?;
    ensure!(required(ctx, "main").await? == [OWN, "gpu", "build"]);
    ensure!(required(ctx, "release/1").await?.is_empty());
    ctx.delete("two").await?;
    ensure!(required(ctx, "main").await? == [OWN]);
    Ok(())
}

/// What cannot be done has its own words.
async fn a_branch_in_the_way_is_named(ctx: &Ctx) -> Result<()> {
    let bare = NewBranch {
        name: "bare".to_owned(),
        protected: true,
        required_checks: None,
    };
    update(ctx, &[bare]).await?;
    for (branch, reason) in [
        ("absent", "BranchNotFound"),
        ("dev", "BranchNotProtected"),
        ("bare", "StatusChecksNotEnabled"),
    ] {
        let wanted = json!({"branches": [{"name": branch}], "allowUnseen": true});
        ctx.apply(&pool(ctx, "three", &wanted)).await?;
        let reported = ctx
            .condition("three", "ChecksRequired", "False", reason)
            .await?;
        ensure!(reported.contains(branch), "{reported}");
    }
    ctx.delete("three").await?;
    let update = UpdateRepository {
        remove_branches: vec!["bare".to_owned()],
        ..UpdateRepository::default()
    };
    ctx.github
        .update_repository(&ctx.repository, &update)
        .await?;
    Ok(())
}

/// A ruleset needs no protection, and is the pool's own.
async fn a_ruleset(ctx: &Ctx) -> Result<()> {
    let wanted = json!({"mode": "Ruleset", "branches": [{"name": "dev"}, {"name": "main", "ifProtected": true}]});
    ctx.apply(&pool(ctx, "four", &wanted)).await?;
    ctx.condition("four", "ChecksRequired", "True", "Required")
        .await?;
    let rulesets = repository(ctx).await?["rulesets"].clone();
    ensure!(
        rulesets.as_array().is_some_and(|all| all.len() == 1),
        "{rulesets}"
    );
    let include = &rulesets[0]["conditions"]["ref_name"]["include"];
    ensure!(
        *include == json!(["refs/heads/dev", "refs/heads/main"]),
        "{rulesets}"
    );
    ctx.delete("four").await
}

fn branch(name: &str, required: Option<&[&str]>) -> NewBranch {
    NewBranch {
        name: name.to_owned(),
        protected: required.is_some(),
        required_checks: required.map(|all| all.iter().map(|&c| c.to_owned()).collect()),
    }
}

/// A person's edit.
async fn update(ctx: &Ctx, branches: &[NewBranch]) -> Result<()> {
    let update = UpdateRepository {
        branches: branches.to_vec(),
        ..UpdateRepository::default()
    };
    ctx.github
        .update_repository(&ctx.repository, &update)
        .await?;
    Ok(())
}

/// Written once: what is written anew is another workflow to GitHub, without the pull requests of the first.
async fn workflow(ctx: &Ctx) -> Result<()> {
    let workflow = NewWorkflow {
        name: "cuda".to_owned(),
        file: "cuda.yml".to_owned(),
        events: ["pull_request", "workflow_dispatch"]
            .map(str::to_owned)
            .into(),
        jobs: JOBS
            .iter()
            .map(|key| job(key, &["self-hosted", "cuda"], "true"))
            .collect(),
        ..NewWorkflow::default()
    };
    ctx.write_workflow(workflow).await
}

/// A pull request whose run is over.
async fn pull_request(ctx: &Ctx) -> Result<()> {
    let run = NewRun {
        repository: ctx.repository.clone(),
        workflow: "cuda.yml".to_owned(),
        event: "pull_request".to_owned(),
        pull_request: Some(1),
        conclusion: Some(Conclusion::Success),
        ..NewRun::default()
    };
    ctx.github.start_run(&run).await?;
    Ok(())
}

fn pool(ctx: &Ctx, name: &str, required: &Value) -> Value {
    let jobs: Vec<Value> = JOBS.iter().map(|name| json!({"name": name})).collect();
    let verify = json!({"workflow": "cuda.yml", "ref": "main", "jobs": jobs});
    ctx.pool(name, json!({"verify": verify, "requiredChecks": required}))
}

async fn lasting(ctx: &Ctx) -> Result<Value> {
    let mut repository = repository(ctx).await?;
    // Runners come and go; the suites' own check looks at them.
    if let Some(repository) = repository.as_object_mut() {
        repository.remove("runners");
    }
    Ok(repository)
}

async fn repository(ctx: &Ctx) -> Result<Value> {
    let state = ctx.github.state().await?;
    Ok(state.lasting["repositories"][&ctx.repository].clone())
}

/// The contexts that a branch requires, in GitHub's order.
async fn required(ctx: &Ctx, branch: &str) -> Result<Vec<String>> {
    let repository = repository(ctx).await?;
    let checks = &repository["branches"][branch]["protection"]["requiredStatusChecks"]["checks"];
    let all = checks.as_array().into_iter().flatten();
    let names = all.filter_map(|check| check["context"].as_str());
    Ok(names.map(str::to_owned).collect())
}
