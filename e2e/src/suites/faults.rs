//! GitHub's bad days: lost answers, errors, limits, a list that lags, entries that vanish. Each pool comes up, works and
//! goes, without a restart and without a storm of requests.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::VERIFY;
use futures::{
    StreamExt as _, TryStreamExt as _,
    future::{FutureExt as _, LocalBoxFuture},
    stream,
};
use github_simulator::{
    control::{Budget, NewRepository, NewWorkflow, UpdateWorkflow},
    faults::Action,
    state::Seen,
};
use serde_json::{Value, json};

use super::Ctx;
use super::context::{SOON, job};
use crate::example;

const JIT: &str = "actions/generate-runner-jitconfig-for-repo";
const LIST: &str = "actions/list-self-hosted-runners-for-repo";
const DELETE: &str = "actions/delete-self-hosted-runner-from-repo";
const DISPATCH: &str = "actions/create-workflow-dispatch";
/// Pools at a time: there are four GPUs.
const AT_ONCE: usize = 4;
/// Requests to GitHub for one pool that comes and goes, the tries that failed included.
const REQUESTS: usize = 25;
/// GitHub's list shows a new runner so much later: its absence proves nothing.
const LAG: Duration = Duration::from_secs(3);
/// Of a budget that is used up, until the next hour: the operator has to meet it and say so before.
const RESET: u32 = 25;

/// What goes wrong with which request, and how often.
type Trouble = (&'static str, u32, Action);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let lag = |lag: Duration| json!({"listingLagMillis": lag.as_millis()});
    ctx.github.change_settings(&lag(LAG)).await?;
    let lived = stream::iter(lives(ctx))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await;
    ctx.github.change_settings(&lag(Duration::ZERO)).await?;
    lived.map(drop)
}

/// Those that take the longest begin.
fn lives(ctx: &Ctx) -> Vec<LocalBoxFuture<'_, Result<()>>> {
    let bad_days = [
        (
            "lost",
            vec![
                (LIST, 1, Action::DropAfter),
                (JIT, 1, Action::DropAfter),
                (DELETE, 1, Action::DropAfter),
            ],
        ),
        (
            "failing",
            vec![
                (LIST, 1, answer(503)),
                (JIT, 2, answer(502)),
                (DELETE, 2, answer(500)),
            ],
        ),
        // With a token that is fresh
        (
            "refused",
            vec![
                (LIST, 1, answer(401)),
                (JIT, 1, Action::DropBefore),
                (JIT, 1, answer(409)),
            ],
        ),
        (
            "limited",
            vec![
                (LIST, 1, limited(429, "Too many requests")),
                (
                    JIT,
                    1,
                    limited(403, "You have exceeded a secondary rate limit"),
                ),
            ],
        ),
    ];
    let mut lives = vec![named("invalid", invalid(ctx))];
    for (name, troubles) in bad_days {
        lives.push(named(name, a_bad_day(ctx, name, troubles)));
    }
    lives.push(named("removed", removed_behind_our_back(ctx)));
    lives.push(named("used-up", a_budget_used_up(ctx)));
    lives.push(named("workflow", a_workflow_that_does_not_start(ctx)));
    lives
}

fn named<'a>(
    name: &'static str,
    life: impl Future<Output = Result<()>> + 'a,
) -> LocalBoxFuture<'a, Result<()>> {
    async move { life.await.context(name) }.boxed_local()
}

/// Whatever goes wrong, there is one entry, then none, and the operator did not ask for ever.
async fn a_bad_day(ctx: &Ctx, name: &str, troubles: Vec<Trouble>) -> Result<()> {
    let ctx = &with_repository(ctx, name).await?;
    let mark = ctx.last_call().await?;
    let hits: u32 = troubles.iter().map(|(_, times, _)| times).sum();
    for trouble in troubles {
        let (operation, times, action) = trouble;
        ctx.inject(operation, times, action).await?;
    }
    ctx.apply(&ctx.pool(name, json!({}))).await?;
    ctx.idle(name, 1).await?;
    ensure!(ctx.entries().await?.len() == 1, "more than one entry");
    ctx.delete(name).await?;
    ensure!(ctx.entries().await?.is_empty(), "an entry is left");
    let calls = ctx.own_calls(mark).await?;
    ensure!(
        calls.len() <= REQUESTS,
        "{} requests: {calls:#?}",
        calls.len()
    );
    let met = calls.iter().filter(|call| call.fault.is_some()).count();
    ensure!(met == usize::try_from(hits)?, "{met} faults: {calls:#?}");
    ctx.github.delete_repository(&ctx.repository).await?;
    Ok(())
}

/// What GitHub will not register is reported in GitHub's words; when it does, the pool goes on by itself.
async fn invalid(ctx: &Ctx) -> Result<()> {
    const WORDS: &str = "Labels is too long (maximum is 256 characters)";
    let ctx = &with_repository(ctx, "invalid").await?;
    let body = json!({
        "message": "Validation Failed",
        "errors": [{"message": WORDS}],
        "documentation_url": "https://docs.github.com/rest",
    });
    ctx.inject(JIT, 1, answer_with(422, Some(body), BTreeMap::new()))
        .await?;
    ctx.apply(&ctx.pool("invalid", json!({}))).await?;
    let said = ctx
        .condition("invalid", "Stalled", "True", "RegistrationRefused")
        .await?;
    ensure!(said.contains(WORDS), "{said}");
    ctx.idle("invalid", 1).await?;
    ctx.condition("invalid", "Stalled", "False", "Progressing")
        .await?;
    ctx.delete("invalid").await?;
    ctx.github.delete_repository(&ctx.repository).await?;
    Ok(())
}

/// A workflow that is disabled is reported; when it is enabled, a start whose answer is lost is found and not repeated.
async fn a_workflow_that_does_not_start(ctx: &Ctx) -> Result<()> {
    let ctx = &with_repository(ctx, "workflow").await?;
    let workflow = NewWorkflow {
        name: "cuda".to_owned(),
        file: "cuda.yml".to_owned(),
        jobs: vec![job("gpu", &["self-hosted", "cuda"], "true")],
        ..NewWorkflow::default()
    };
    ctx.write_workflow(workflow).await?;
    let is = async |state: &str| {
        let update = UpdateWorkflow {
            state: Some(state.to_owned()),
        };
        let workflow = "cuda.yml";
        let done = ctx
            .github
            .update_workflow(&ctx.repository, workflow, &update);
        done.await
    };
    is("disabled_manually").await?;
    let verify = json!({"workflow": "cuda.yml", "ref": "main", "jobs": [{"name": "gpu"}]});
    ctx.apply(&ctx.pool("workflow", json!({"verify": verify})))
        .await?;
    let said = ctx
        .condition("workflow", "WorkflowVerified", "False", "WorkflowDisabled")
        .await?;
    ensure!(said.contains("cuda.yml"), "{said}");

    is("active").await?;
    ctx.inject(DISPATCH, 1, Action::DropAfter).await?;
    let mark = ctx.last_call().await?;
    ctx.annotate("workflow", VERIFY, "again").await?;
    ctx.condition("workflow", "WorkflowVerified", "True", "Verified")
        .await?;
    let calls = ctx.own_calls(mark).await?;
    let started = calls.iter().filter(|call| is_a(call, DISPATCH)).count();
    ensure!(started == 1, "started {started} times: {calls:#?}");
    ctx.delete("workflow").await?;
    ctx.github.delete_repository(&ctx.repository).await?;
    Ok(())
}

/// Credentials whose hour is used up: that is reported, there is no pod meanwhile, and no further question.
async fn a_budget_used_up(ctx: &Ctx) -> Result<()> {
    let keys = example::app(&ctx.github, "used-up", &ctx.repository).await?;
    let credential = format!(
        "installation:{}",
        keys["installation-id"].as_str().unwrap_or_default()
    );
    example::secret(&ctx.client, &ctx.namespace, "used-up", &keys).await?;
    let budget = Budget {
        credential: credential.clone(),
        remaining: 0,
        reset_seconds: RESET,
    };
    ctx.github.set_budget(&budget).await?;
    let mark = ctx.last_call().await?;
    let credentials = json!({"github": {"credentialsRef": {"name": "used-up"}}});
    ctx.apply(&ctx.pool("used-up", credentials)).await?;
    let said = ctx
        .condition("used-up", "CredentialsValid", "Unknown", "RateLimited")
        .await?;
    ensure!(said.contains("requests an hour are used up"), "{said}");
    ctx.idle("used-up", 1).await?;
    ctx.condition("used-up", "CredentialsValid", "True", "Accepted")
        .await?;
    let mut calls = ctx.calls(mark).await?;
    calls.retain(|call| call.credential == credential && call.status == Some(403));
    ensure!(calls.len() == 1, "asked on and on: {calls:#?}");
    ctx.delete("used-up").await
}

/// Somebody removes the entry of an idle runner on GitHub's page: another runner takes its place.
async fn removed_behind_our_back(ctx: &Ctx) -> Result<()> {
    let ctx = &with_repository(ctx, "removed").await?;
    ctx.apply(&ctx.pool("removed", json!({}))).await?;
    let first = ctx.idle("removed", 1).await?.remove(0);
    let runners = ctx.runners().await?;
    let id = runners.first().and_then(|runner| runner["id"].as_u64());
    let id = id.context("GitHub has no entry")?;
    ctx.github.delete_runner(id).await?;
    let second = ctx.other_idle("removed", &first).await?;
    ctx.wait_for("one entry", SOON, async || {
        Ok((ctx.entries().await? == [second.as_str()]).then_some(()))
    })
    .await?;
    ctx.delete("removed").await?;
    ctx.github.delete_repository(&ctx.repository).await?;
    Ok(())
}

/// The same with a repository of its own: faults hit by the path.
async fn with_repository(ctx: &Ctx, name: &str) -> Result<Ctx> {
    let own = Ctx {
        repository: format!("{}-{name}", ctx.repository),
        ..ctx.clone()
    };
    let repository = NewRepository {
        full_name: own.repository.clone(),
        ..NewRepository::default()
    };
    own.github.create_repository(&repository).await?;
    Ok(own)
}

fn is_a(call: &Seen, operation: &str) -> bool {
    call.operation_id.as_deref() == Some(operation)
}

fn answer(status: u16) -> Action {
    answer_with(status, None, BTreeMap::new())
}

fn limited(status: u16, message: &str) -> Action {
    let headers = BTreeMap::from([("retry-after".to_owned(), "2".to_owned())]);
    answer_with(status, Some(json!({"message": message})), headers)
}

fn answer_with(status: u16, body: Option<Value>, headers: BTreeMap<String, String>) -> Action {
    Action::Answer {
        status,
        body,
        headers,
        after_handling: false,
    }
}
