//! Credentials that do not work: a condition that says what to do, no pod, no storm, and recovery once they are fixed.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::LOOK_AGAIN;
use futures::future::try_join_all;
use github_simulator::{
    control::{NewCredential, NewEnterprise, NewOrganization, NewRunnerGroup},
    faults::{Action, Fault},
};
use serde_json::{Value, json};

use super::Ctx;
use super::context::merge;
use crate::{example, simulator};

/// A pool with this fault makes at most so many calls until it is fixed.
const STORM: usize = 12;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let good = example::app(&ctx.github, &ctx.namespace, &ctx.repository).await?;
    secrets(ctx, &good).await?;
    refusals(ctx).await?;
    runner_group(ctx).await?;
    enterprise(ctx).await?;
    rotation(ctx).await
}

/// What is wrong with the Secret is said without asking GitHub.
async fn secrets(ctx: &Ctx, good: &Value) -> Result<()> {
    let without = |key: &str| {
        let mut data = good.clone();
        data.as_object_mut().map(|data| data.remove(key));
        data
    };
    let with = |key: &str, value: &str| {
        let mut data = good.clone();
        data[key] = json!(value);
        data
    };
    let cases: &[(&str, Option<Value>, &str, &[&str])] = &[
        ("no-secret", None, "SecretNotFound", &["creds", "app-id"]),
        (
            "no-key",
            Some(without("private-key")),
            "SecretInvalid",
            &["private-key"],
        ),
        (
            "bad-key",
            Some(with("private-key", "not a key")),
            "SecretInvalid",
            &["private-key"],
        ),
        (
            "bad-id",
            Some(with("app-id", "twelve")),
            "SecretInvalid",
            &["app-id"],
        ),
        ("empty", Some(json!({})), "SecretInvalid", &["token"]),
    ];
    // Given pools whose Secrets are wrong, each in its own way
    let mark = ctx.last_call().await?;
    let secret = |pool: &str| format!("creds-{pool}");
    for (name, data, ..) in cases {
        if let Some(data) = data {
            example::secret(&ctx.client, &ctx.namespace, &secret(name), data).await?;
        }
        let credentials = json!({"github": {"credentialsRef": {"name": secret(name)}}});
        ctx.apply(&ctx.pool(name, credentials)).await?;
    }
    // Then each says what to do, and does nothing
    for (name, _, reason, words) in cases {
        says(ctx, name, reason, words).await?;
    }
    let calls = ctx.calls(mark).await?;
    ensure!(
        calls.is_empty(),
        "GitHub was asked without credentials: {calls:#?}"
    );
    // And when the Secrets are fixed, the runners come at once: one makes room for the other, there are four GPUs
    let fixed = cases.iter().map(async |(name, ..)| {
        fixed(ctx, name, &secret(name), good)
            .await
            .with_context(|| (*name).to_owned())
    });
    try_join_all(fixed).await?;
    Ok(())
}

/// What GitHub refuses is told apart, with its own advice.
async fn refusals(ctx: &Ctx) -> Result<()> {
    let cases: &[(&str, u16, &str, &[&str])] = &[
        ("refused-401", 401, "Unauthorized", &["credentials"]),
        (
            "refused-403",
            403,
            "Forbidden",
            &["grant", "Administration"],
        ),
        ("refused-404", 404, "NotFound", &["not found"]),
    ];
    for (name, status, reason, words) in cases {
        // Another App: pools with the same credentials share what GitHub has said a moment ago.
        let good = example::app(&ctx.github, name, &ctx.repository).await?;
        example::secret(&ctx.client, &ctx.namespace, "creds", &good).await?;
        let mark = ctx.last_call().await?;
        let action = Action::Answer {
            status: *status,
            body: None,
            headers: [].into(),
            after_handling: false,
        };
        let fault = Fault {
            path: Some("^/repos/".to_owned()),
            action,
            ..Fault::default()
        };
        ctx.github.inject(&fault).await?;
        ctx.apply(&ctx.pool(
            name,
            json!({"github": {"credentialsRef": {"name": "creds"}}}),
        ))
        .await?;
        says(ctx, name, reason, words).await?;
        let calls = ctx.calls(mark).await?.len();
        ensure!(calls <= STORM, "{name}: {calls} calls for one refusal");
        ctx.github.clear_faults().await?;
        // Time alone brings it back, at the latest; a change of the Secret does at once.
        fixed(ctx, name, "creds", &good).await?;
    }
    // A repository that does not exist, and one whose owner has not installed the App
    for (name, repository, reason) in [
        ("no-such", format!("{}-not", ctx.repository), "NotFound"),
        ("other-owner", simulator::REPOSITORY.to_owned(), "Forbidden"),
    ] {
        let url = format!("{}/{repository}", ctx.cluster.github);
        ctx.apply(&ctx.pool(name, json!({"github": {"url": url}})))
            .await?;
        says(ctx, name, reason, &[&repository]).await?;
        // The spec is fixed instead
        ctx.apply(&ctx.pool(name, json!({}))).await?;
        ctx.idle(name, 1).await?;
        ctx.delete(name).await?;
    }
    Ok(())
}

async fn runner_group(ctx: &Ctx) -> Result<()> {
    // Given an organization without the group that the pool names
    let organization = ctx.repository.split('/').next().unwrap_or_default();
    let url = format!("{}/{organization}", ctx.cluster.github);
    let pool = |group: &str| {
        ctx.pool(
            "group",
            json!({"github": {"url": url, "runnerGroup": group}}),
        )
    };
    ctx.apply(&pool("gpus")).await?;
    says(ctx, "group", "NotFound", &["gpus"]).await?;
    // When it is named rightly
    let default = NewOrganization {
        login: organization.to_owned(),
        ..NewOrganization::default()
    };
    ctx.github.create_organization(&default).await?;
    ctx.apply(&pool("default")).await?;
    // Then the runner comes
    ctx.condition("group", "RunnersOnline", "True", "Online")
        .await?;

    // Given a group that does not admit the repository that is to prove the pool
    let name = ctx.repository.rsplit('/').next().unwrap_or_default();
    let admits = async |repositories: &[&str]| {
        let group = NewRunnerGroup {
            name: "gpus".to_owned(),
            selected: Some(
                repositories
                    .iter()
                    .map(|&name| format!("{organization}/{name}"))
                    .collect(),
            ),
        };
        let organization = NewOrganization {
            groups: vec![group],
            ..default.clone()
        };
        ctx.github.create_organization(&organization).await
    };
    admits(&["other"]).await?;
    let mut proven = pool("gpus");
    let verify = json!({"workflow": "gpu.yml", "ref": "main", "repository": ctx.repository, "jobs": [{"name": "gpu"}]});
    merge(&mut proven["spec"], json!({"verify": verify}));
    ctx.apply(&proven).await?;
    // Then that is said
    ctx.annotate("group", LOOK_AGAIN, "first").await?;
    let said = ctx
        .condition("group", "QueueServed", "False", "RunnerGroupShut")
        .await?;
    ensure!(
        said.contains(&ctx.repository) && said.contains("group gpus"),
        "{said}"
    );
    // Until it does
    admits(&[name]).await?;
    ctx.annotate("group", LOOK_AGAIN, "second").await?;
    ctx.condition("group", "QueueServed", "Unknown", "NotListed")
        .await?;
    ctx.delete("group").await?;
    ctx.github.create_organization(&default).await?;
    Ok(())
}

/// An enterprise's runners serve all of its organizations. Apps cannot register there, tokens can.
async fn enterprise(ctx: &Ctx) -> Result<()> {
    let organization = ctx.repository.split('/').next().unwrap_or_default();
    let enterprise = NewEnterprise {
        slug: "works".to_owned(),
        organizations: [organization.to_owned()].into(),
        ..NewEnterprise::default()
    };
    ctx.github.create_enterprise(&enterprise).await?;
    let token = NewCredential {
        name: "works".to_owned(),
        scopes: Some(["manage_runners:enterprise".to_owned()].into()),
        admin: true,
        ..NewCredential::default()
    };
    let token = ctx.github.create_token(&token).await?;
    let keys = json!({"token": token});
    example::secret(&ctx.client, &ctx.namespace, "works", &keys).await?;
    let url = format!("{}/enterprises/works", ctx.cluster.github);
    let github = json!({"url": url, "credentialsRef": {"name": "works"}});
    ctx.apply(&ctx.pool("works", json!({"github": github})))
        .await?;
    ctx.condition("works", "RunnersOnline", "True", "Online")
        .await?;
    let job = ctx.queue("for-the-enterprise", "true").await?;
    let runner = ctx.succeeded(job).await?.runner.unwrap_or_default();
    ensure!(runner.starts_with("works-"), "{runner} took the job");
    ctx.delete("works").await?;
    let state = ctx.github.state().await?.lasting;
    let left = &state["enterprises"]["works"]["runners"];
    ensure!(left.as_array().is_some_and(Vec::is_empty), "{left:#}");
    Ok(())
}

/// A rotated Secret is used at once, and the runners stay.
async fn rotation(ctx: &Ctx) -> Result<()> {
    let token = async |name: &str| {
        let new = NewCredential {
            name: name.to_owned(),
            scopes: Some(["repo".to_owned()].into()),
            admin: true,
            ..NewCredential::default()
        };
        anyhow::Ok(json!({"token": ctx.github.create_token(&new).await?}))
    };
    // Given a pool with a token, and a runner
    example::secret(&ctx.client, &ctx.namespace, "creds", &token("first").await?).await?;
    ctx.apply(&ctx.pool(
        "rotated",
        json!({"github": {"credentialsRef": {"name": "creds"}}}),
    ))
    .await?;
    let before = ctx.idle("rotated", 1).await?;
    // When it is rotated and the old one is revoked
    let mark = ctx.last_call().await?;
    example::secret(
        &ctx.client,
        &ctx.namespace,
        "creds",
        &token("second").await?,
    )
    .await?;
    ctx.github.delete_token("first").await?;
    // Then the next call is made with the new one, without a restart and without losing the runner
    let used = ctx
        .wait_for("a call with the new token", super::SOON, async || {
            let calls = ctx.calls(mark).await?;
            Ok(calls
                .into_iter()
                .find(|call| call.credential.contains("second")))
        })
        .await?;
    ensure!(used.status.is_some_and(|status| status < 300), "{used:?}");
    ensure!(
        ctx.idle("rotated", 1).await? == before,
        "the rotation has cost a runner"
    );
    ctx.condition("rotated", "CredentialsValid", "True", "Accepted")
        .await?;
    ctx.delete("rotated").await
}

/// The pool says so, in these words, and has no pod.
async fn says(ctx: &Ctx, pool: &str, reason: &str, words: &[&str]) -> Result<()> {
    let message = ctx
        .condition(pool, "CredentialsValid", "False", reason)
        .await
        .map_err(|error| error.context(pool.to_owned()))?;
    for word in words {
        ensure!(
            message.contains(word),
            "{pool}: {word:?} is not in: {message}"
        );
    }
    ctx.condition(pool, "Stalled", "True", reason).await?;
    // Those of the case before may still be going.
    let pods = ctx
        .pods()
        .await?
        .into_iter()
        .filter_map(|pod| pod.metadata.name);
    let own: Vec<_> = pods
        .filter(|name| name.starts_with(&format!("{pool}-")))
        .collect();
    ensure!(
        own.is_empty(),
        "{pool}: there are pods without credentials: {own:?}"
    );
    Ok(())
}

/// Once the Secret is right the pool works, without a restart; then it is removed.
async fn fixed(ctx: &Ctx, pool: &str, secret: &str, good: &Value) -> Result<()> {
    example::secret(&ctx.client, &ctx.namespace, secret, good).await?;
    ctx.condition(pool, "CredentialsValid", "True", "Accepted")
        .await?;
    ctx.wait_for("a runner", super::SOON, async || {
        let mut entries = ctx.entries().await?.into_iter();
        let own = entries.find(|name| name.starts_with(&format!("{pool}-")));
        Ok(own.map(drop))
    })
    .await?;
    ctx.delete(pool).await
}
