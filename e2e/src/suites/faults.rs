//! GitHub's bad days: lost answers, errors, limits, lists that lag, entries that vanish. Each pool comes up, works and
//! goes without a restart and without a storm of requests.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use github_simulator::{
    control::NewRepository,
    faults::{Action, Fault},
};
use serde_json::json;

use super::Ctx;
use super::context::SOON;

const JIT: &str = "actions/generate-runner-jitconfig-for-repo";
const LIST: &str = "actions/list-self-hosted-runners-for-repo";
const DELETE: &str = "actions/delete-self-hosted-runner-from-repo";
/// Pools at a time: there are four GPUs.
const AT_ONCE: usize = 4;
/// Requests to GitHub for one pool that comes and goes, the tries that failed included.
const REQUESTS: usize = 25;

/// What goes wrong, and how often.
struct Case {
    name: &'static str,
    operation: &'static str,
    times: u32,
    action: fn() -> Action,
}

const CASES: &[Case] = &[
    Case {
        name: "registration-lost",
        operation: JIT,
        times: 1,
        action: || Action::DropAfter,
    },
    Case {
        name: "registration-never-sent",
        operation: JIT,
        times: 1,
        action: || Action::DropBefore,
    },
    Case {
        name: "registration-502",
        operation: JIT,
        times: 2,
        action: || answer(502),
    },
    Case {
        name: "registration-409",
        operation: JIT,
        times: 1,
        action: || answer(409),
    },
    Case {
        name: "registration-422",
        operation: JIT,
        times: 1,
        action: || answer(422),
    },
    Case {
        name: "secondary-limit",
        operation: JIT,
        times: 1,
        action: || limited(403, "You have exceeded a secondary rate limit"),
    },
    Case {
        name: "too-many-requests",
        operation: LIST,
        times: 1,
        action: || limited(429, "Too many requests"),
    },
    Case {
        name: "token-401",
        operation: LIST,
        times: 1,
        action: || answer(401),
    },
    Case {
        name: "list-503",
        operation: LIST,
        times: 2,
        action: || answer(503),
    },
    Case {
        name: "list-lost",
        operation: LIST,
        times: 2,
        action: || Action::DropAfter,
    },
    Case {
        name: "removal-lost",
        operation: DELETE,
        times: 1,
        action: || Action::DropAfter,
    },
    Case {
        name: "removal-500",
        operation: DELETE,
        times: 2,
        action: || answer(500),
    },
];

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    for cases in CASES.chunks(AT_ONCE) {
        let pools = cases.iter().map(async |case| {
            let lived = a_life(ctx, case.name, Some(case)).await;
            lived.with_context(|| case.name)
        });
        try_join_all(pools).await?;
    }
    // A list that shows a new runner only seconds later proves nothing by its absence
    ctx.github
        .change_settings(&json!({"listingLagMillis": 5000}))
        .await?;
    let lagging = a_life(ctx, "lagging", None).await;
    ctx.github
        .change_settings(&json!({"listingLagMillis": 0}))
        .await?;
    lagging.context("lagging")?;
    removed_behind_our_back(ctx).await.context("removed")
}

/// A pool comes up, has one entry, and goes, in a repository of its own.
async fn a_life(ctx: &Ctx, name: &str, case: Option<&Case>) -> Result<()> {
    let ctx = &with_repository(ctx, name).await?;
    let mark = ctx.last_call().await?;
    if let Some(case) = case {
        let fault = Fault {
            operation_id: Some(case.operation.to_owned()),
            path: Some(format!("/{}/", ctx.repository)),
            times: Some(case.times),
            action: (case.action)(),
            ..Fault::default()
        };
        ctx.github.inject(&fault).await?;
    }
    ctx.apply(&ctx.pool(name, json!({}))).await?;
    ctx.idle(name, 1).await?;
    ensure!(ctx.entries().await?.len() == 1, "more than one entry");
    ctx.delete(name).await?;
    ensure!(ctx.entries().await?.is_empty(), "an entry is left");
    let own = format!("/{}/", ctx.repository);
    let mut calls = ctx.calls(mark).await?;
    calls.retain(|call| call.path.contains(&own));
    ensure!(
        calls.len() <= REQUESTS,
        "{} requests: {calls:#?}",
        calls.len()
    );
    if case.is_some() {
        let hit = calls.iter().any(|call| call.fault.is_some());
        ensure!(hit, "the fault was never met: {calls:#?}");
    }
    ctx.github.delete_repository(&ctx.repository).await?;
    Ok(())
}

/// Somebody removes the entry of an idle runner on GitHub's page: another runner takes its place.
async fn removed_behind_our_back(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("removed", json!({}))).await?;
    let first = ctx.idle("removed", 1).await?.remove(0);
    let state = ctx.github.state().await?;
    let runners = state.lasting["repositories"][&ctx.repository]["runners"].clone();
    let id = runners[0]["id"].as_u64().context("GitHub has no entry")?;
    ctx.github.delete_runner(id).await?;
    let second = ctx.other_idle("removed", &first).await?;
    ctx.wait_for("one entry", SOON, async || {
        Ok((ctx.entries().await? == [second.as_str()]).then_some(()))
    })
    .await?;
    ctx.delete("removed").await
}

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

fn answer(status: u16) -> Action {
    Action::Answer {
        status,
        body: None,
        headers: BTreeMap::new(),
        after_handling: false,
    }
}

fn limited(status: u16, message: &str) -> Action {
    Action::Answer {
        status,
        body: Some(json!({"message": message})),
        headers: BTreeMap::from([("retry-after".to_owned(), "2".to_owned())]),
        after_handling: false,
    }
}
