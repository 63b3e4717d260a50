//! A pool that is woken by webhooks: at once, and by the right number of runners whatever becomes of deliveries.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::LOOK_AGAIN;
use github_simulator::{
    control::{NewCredential, NewJob, NewOrganization, NewRepository},
    state::{Level, Seen},
};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Ctx, SOON, context::merge};
use crate::{deploy, example};

/// A port on the node that is free.
const PORT: u16 = 30083;
/// The Secret of the webhook, and what is in it.
const SECRET: &str = "hook";
const VALUE: &str = "a secret that nobody guesses";
/// The queue is read so soon after an event: long before it would be without.
const AT_ONCE: Duration = Duration::from_secs(10);
/// The request by which the operator reads the queue.
const QUEUE: &str = "/actions/runs?status=queued";
/// What is lost shows when the queue is read once more, half a minute after an event: long before it would be without.
const ONCE_MORE: Duration = Duration::from_mins(3);

/// Events of one webhook have the queue read at most every two seconds: after this time without a read they are done with.
const DONE_WITH: SignedDuration = SignedDuration::from_secs(5);
/// So long the deliveries of the first trouble are kept back.
const HELD: SignedDuration = SignedDuration::from_secs(1);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let node = ctx.cluster.link.as_ref().context("no real node")?.node;
    let url = format!("webhook.url=http://{node}:{PORT}");
    let port = format!("webhook.service.nodePort={PORT}");
    let on = [
        "webhook.enabled=true",
        &url,
        "webhook.service.type=NodePort",
        &port,
    ];
    deploy::with_values(&ctx.cluster, &on, async || woken(ctx).await).await
}

async fn woken(ctx: &Ctx) -> Result<()> {
    let owner = Owner::new(ctx).await?;
    // Given a pool whose webhook nobody has entered yet: the condition says what to enter
    let data = json!({"secret": VALUE});
    example::secret(&ctx.client, &ctx.namespace, SECRET, &data).await?;
    let scaling = json!({
        "maxRunners": 4, "source": "Webhook", "webhook": {"secretRef": {"name": SECRET}},
    });
    ctx.apply(&ctx.pool("pool", json!({"scaling": scaling})))
        .await?;
    let message = ctx
        .condition("pool", "WebhookReady", "False", "WebhookMissing")
        .await?;
    let status = ctx.status("pool").await?.webhook;
    let url = status.context("the status names no webhook")?.url;
    ensure!(message.contains(&url), "{message}");

    // When it is entered, then GitHub's ping is enough to see that it works
    let hook = owner.enter(&url).await?;
    ctx.condition("pool", "WebhookReady", "True", "WebhookDelivers")
        .await?;

    // When a job is queued just after the queue was read, then it is read at once
    let last = read_of_the_queue(ctx, Timestamp::UNIX_EPOCH, SOON).await?;
    let queued = Timestamp::now();
    let first = ctx.hold("first").await?;
    let read = read_of_the_queue(ctx, queued, AT_ONCE).await?;
    ensure!(read.n > last.n, "{read:?}");
    ctx.picked_up(first).await?;
    troubles(ctx, &owner, &hook).await?;

    // When all is over, then nothing is left
    ctx.github.release(first).await?;
    ctx.succeeded(first).await?;
    ctx.wait_for("no runner to be left", SOON, async || {
        Ok(ctx.pods().await?.is_empty().then_some(()))
    })
    .await?;
    owner.ask(Method::DELETE, &format!("/{hook}"), None).await?;
    of_the_organization(ctx, &owner, &url).await?;
    ctx.delete("pool").await?;
    made(ctx, &owner).await
}

/// A webhook of the organization does as well: events of other repositories are ignored.
async fn of_the_organization(ctx: &Ctx, owner: &Owner<'_>, url: &str) -> Result<()> {
    let (organization, _) = ctx.repository.split_once('/').context("no owner")?;
    let new = NewOrganization {
        login: organization.to_owned(),
        ..NewOrganization::default()
    };
    ctx.github.create_organization(&new).await?;
    let hooks = format!("/orgs/{organization}/hooks");
    let made = owner.send(Method::POST, &hooks, Some(&entry(url))).await?;
    // When another repository has a job, then it is ignored
    let other = format!("{organization}/webhook-other");
    let repository = NewRepository {
        full_name: other.clone(),
        ..NewRepository::default()
    };
    ctx.github.create_repository(&repository).await?;
    let ignored = results(ctx, "ignored").await?;
    let job = NewJob {
        repository: other.clone(),
        name: "elsewhere".to_owned(),
        labels: ["self-hosted", "cuda"].map(str::to_owned).into(),
        ..NewJob::default()
    };
    ctx.github.queue(&job).await?;
    ctx.wait_for("the event to be ignored", AT_ONCE, async || {
        Ok((results(ctx, "ignored").await? > ignored).then_some(()))
    })
    .await?;
    // When its own has one, then it is woken
    let accepted = results(ctx, "accepted").await?;
    let job = ctx.queue("of-the-organization", "true").await?;
    ctx.wait_for("the event to wake the pool", AT_ONCE, async || {
        Ok((results(ctx, "accepted").await? > accepted).then_some(()))
    })
    .await?;
    ctx.succeeded(job).await?;
    let hook = format!("{hooks}/{}", made["id"]);
    owner.send(Method::DELETE, &hook, None).await?;
    ctx.github.delete_repository(&other).await?;
    Ok(())
}

/// How many deliveries had this result, by the operator's metrics.
async fn results(ctx: &Ctx, result: &str) -> Result<u64> {
    let page = deploy::metrics(&ctx.client).await?.concat();
    let name = format!("cudarunner_webhook_deliveries_total{{result=\"{result}\"}} ");
    let count = page.lines().find_map(|line| line.strip_prefix(&name));
    Ok(count.map_or(Ok(0), str::parse)?)
}

/// Where the credentials may, the operator makes the webhook itself, keeps it as it should be, and removes it.
async fn made(ctx: &Ctx, owner: &Owner<'_>) -> Result<()> {
    // Given a webhook of somebody else, and two pools of credentials that may make their own
    let other = owner.enter("http://127.0.0.1:1/hooks/other").await?;
    token(ctx, "webhook-pool", Level::Write).await?;
    let pool = of_token("Webhook", None);
    for name in ["one", "two"] {
        ctx.apply(&ctx.pool(name, pool.clone())).await?;
    }

    // Then there is one webhook for both, and GitHub's ping comes by it
    for name in ["one", "two"] {
        ctx.condition(name, "WebhookReady", "True", "WebhookDelivers")
            .await?;
    }
    let url = ctx.status("one").await?.webhook.context("no webhook")?.url;
    let own = owner.of(&url).await?;
    ensure!(own.len() == 1, "{own:#?}");

    // When somebody switches it off, then it is switched on again
    let path = format!("/{}", own[0]["id"]);
    let off = json!({"active": false});
    owner.ask(Method::PATCH, &path, Some(&off)).await?;
    ctx.annotate("one", LOOK_AGAIN, "off").await?;
    ctx.wait_for("the webhook to be on again", SOON, async || {
        let own = owner.of(&url).await?;
        Ok((own.len() == 1 && own[0]["active"] == true).then_some(()))
    })
    .await?;

    // When one pool goes, then it stays, and it goes with the last one; what is another's stays
    ctx.delete("one").await?;
    ensure!(
        owner.of(&url).await?.len() == 1,
        "it went with the first pool"
    );
    ctx.delete("two").await?;
    let left = owner.ask(Method::GET, "", None).await?;
    let left = left.as_array().context("no list")?;
    ensure!(
        left.len() == 1 && left[0]["id"].as_u64() == other.parse().ok(),
        "{left:#?}"
    );
    owner
        .ask(Method::DELETE, &format!("/{other}"), None)
        .await?;
    not_forgotten(ctx, owner).await?;
    entered(ctx, owner).await
}

/// Where the credentials have expired, a webhook of the operator's is not forgotten.
async fn not_forgotten(ctx: &Ctx, owner: &Owner<'_>) -> Result<()> {
    ctx.apply(&ctx.pool("expired", of_token("Webhook", None)))
        .await?;
    ctx.condition("expired", "WebhookReady", "True", "WebhookDelivers")
        .await?;
    let url = ctx.status("expired").await?.webhook;
    let url = url.context("no webhook")?.url;

    // Given a token that GitHub does not accept any more, when the pool polls, then the webhook is known still
    ctx.github.delete_token("webhook-pool").await?;
    ctx.apply(&ctx.pool("expired", of_token("Poll", None)))
        .await?;
    ctx.condition("expired", "CredentialsValid", "False", "Unauthorized")
        .await?;
    let status = ctx.status("expired").await?.webhook;
    ensure!(status.is_some_and(|webhook| webhook.url == url));

    // When there is another token, then it is removed
    token(ctx, "webhook-pool-2", Level::Write).await?;
    ctx.wait_for("the webhook to be removed", ONCE_MORE, async || {
        let is_known = ctx.status("expired").await?.webhook.is_some();
        Ok((!is_known && owner.of(&url).await?.is_empty()).then_some(()))
    })
    .await?;
    ctx.delete("expired").await
}

/// What was entered by hand stays, and credentials that may only read ask for nothing else.
async fn entered(ctx: &Ctx, owner: &Owner<'_>) -> Result<()> {
    token(ctx, "webhook-reader", Level::Read).await?;
    ctx.apply(&ctx.pool("reads", of_token("Webhook", Some(SECRET))))
        .await?;
    ctx.condition("reads", "WebhookReady", "False", "WebhookMissing")
        .await?;
    let url = ctx.status("reads").await?.webhook;
    let url = url.context("no webhook")?.url;
    let hook = owner.enter(&url).await?;
    ctx.condition("reads", "WebhookReady", "True", "WebhookDelivers")
        .await?;
    // The operator has seen it when it has looked for it
    ctx.annotate("reads", LOOK_AGAIN, "seen").await?;
    ctx.wait_for("the webhook to be seen", SOON, async || {
        let status = ctx.status("reads").await?.webhook;
        Ok(status.and_then(|webhook| webhook.id))
    })
    .await?;
    let mark = ctx.last_call().await?;
    ctx.delete("reads").await?;
    let calls = ctx.own_calls(mark).await?;
    let removals = calls.iter().filter(|call| {
        call.method == "DELETE"
            && call.path.contains("/hooks/")
            && !call.credential.contains("owner")
    });
    ensure!(removals.count() == 0, "{calls:#?}");
    ensure!(owner.of(&url).await?.len() == 1, "it went with the pool");
    owner.ask(Method::DELETE, &format!("/{hook}"), None).await?;
    Ok(())
}

/// Makes a token that may do this to webhooks, and the Secret `token` with it.
async fn token(ctx: &Ctx, name: &str, hooks: Level) -> Result<()> {
    let permissions = [
        ("administration", Level::Write),
        ("repository_hooks", hooks),
        ("actions", Level::Read),
    ];
    let permissions = permissions.map(|(name, level)| (name.to_owned(), level));
    let new = NewCredential {
        name: name.to_owned(),
        permissions: Some(permissions.into_iter().collect()),
        ..NewCredential::default()
    };
    let token = json!({"token": ctx.github.create_token(&new).await?});
    example::secret(&ctx.client, &ctx.namespace, "token", &token).await
}

/// The spec of a pool with that token.
fn of_token(source: &str, secret: Option<&str>) -> Value {
    let mut scaling = json!({"maxRunners": 4, "source": source});
    if let Some(secret) = secret {
        scaling["webhook"] = json!({"secretRef": {"name": secret}});
    }
    json!({"github": {"credentialsRef": {"name": "token"}}, "scaling": scaling})
}

/// Deliveries are repeated, lost, forged, or come when their job is over: each job has one runner in the end. Each case begins
/// when the events of the one before are done with, so that nothing but its own deliveries, or the read half a minute after an
/// event, can find its job.
async fn troubles(ctx: &Ctx, owner: &Owner<'_>, hook: &str) -> Result<()> {
    repeated(ctx).await?;
    for (name, troubles) in [("lost", "lose"), ("forged", "forge")] {
        let (newest, accepted) = (
            owner.newest(hook, "").await?,
            results(ctx, "accepted").await?,
        );
        trouble(ctx, &json!({troubles: true})).await?;
        let job = ctx.hold(name).await?;
        taken(ctx, job).await?;
        // No delivery has told of it: it was found when the queue was read once more
        ensure!(
            results(ctx, "accepted").await? == accepted,
            "{name}: accepted"
        );
        let now = owner.newest(hook, "").await?;
        ensure!(
            (now > newest) == (name == "forged"),
            "{name}: {newest}, {now}"
        );
        trouble(ctx, &json!({})).await?;
        finish(ctx, job).await?;
    }
    let failed = owner.ask(Method::GET, &failures(hook), None).await?;
    ensure!(
        failed[0]["status_code"] == 401,
        "nobody refused what was forged: {failed:#}"
    );
    reordered(ctx, owner, hook).await
}

/// What comes several times, late and with an approval makes one runner.
async fn repeated(ctx: &Ctx) -> Result<()> {
    let troubles = json!({"repeat": 3, "holdMillis": HELD.as_millis(), "approvals": true});
    trouble(ctx, &troubles).await?;
    let job = ctx.hold("repeated").await?;
    taken(ctx, job).await?;
    trouble(ctx, &json!({})).await?;
    finish(ctx, job).await
}

/// Where `in_progress` and `completed` of a job come before its `queued`, that makes no other runner.
async fn reordered(ctx: &Ctx, owner: &Owner<'_>, hook: &str) -> Result<()> {
    // Given a job whose `queued` was refused, and that runs
    let accepted = results(ctx, "accepted").await?;
    let before = owner.newest(hook, "?status=failure").await?;
    trouble(ctx, &json!({"forge": true})).await?;
    let job = ctx.hold("reordered").await?;
    let queued = ctx
        .wait_for("its event to be refused", SOON, async || {
            let failed = owner.ask(Method::GET, &failures(hook), None).await?;
            let is_new = failed[0]["id"].as_u64() > Some(before);
            Ok(is_new.then(|| failed[0].clone()))
        })
        .await?;
    ensure!(queued["action"] == "queued", "{queued:#}");
    trouble(ctx, &json!({})).await?;
    taken(ctx, job).await?;
    // When it ends, and both events have come
    finish(ctx, job).await?;
    let others = results(ctx, "accepted").await?;
    ensure!(others >= accepted + 2, "{accepted} accepted, then {others}");

    // When its owner has GitHub deliver the first once more, then it wakes the pool, and makes no other runner
    let runners = names(ctx).await?;
    let again = Timestamp::now();
    let attempt = format!("/{hook}/deliveries/{}/attempts", queued["id"]);
    owner.ask(Method::POST, &attempt, Some(&json!({}))).await?;
    ctx.wait_for("the delivery once more", SOON, async || {
        Ok((results(ctx, "accepted").await? > others).then_some(()))
    })
    .await?;
    at_rest(ctx, again).await?;
    let now = names(ctx).await?;
    ensure!(now.is_subset(&runners), "{runners:?}, then {now:?}");
    Ok(())
}

/// The names of the runners' pods.
async fn names(ctx: &Ctx) -> Result<BTreeSet<String>> {
    let pods = ctx.pods().await?;
    Ok(pods.iter().map(ResourceExt::name_any).collect())
}

/// What happens to deliveries from now on, and nothing else.
async fn trouble(ctx: &Ctx, troubles: &Value) -> Result<()> {
    let mut all = json!({
        "repeat": 0, "holdMillis": 0, "approvals": false, "lose": false, "forge": false,
    });
    merge(&mut all, troubles.clone());
    let settings = json!({"deliveries": all});
    ctx.github.change_settings(&settings).await?;
    Ok(())
}

/// Waits until the job runs, and until it has a runner beside that of the first job, and there is no other.
async fn taken(ctx: &Ctx, job: u64) -> Result<()> {
    ctx.wait_for("the job to be picked up", ONCE_MORE, async || {
        Ok(ctx.github.job(job).await?.started_at)
    })
    .await?;
    ctx.wait_for("two runners, one for each job", SOON, async || {
        Ok((ctx.pods().await?.len() == 2).then_some(()))
    })
    .await
}

/// Ends the job, and waits until its events are done with.
async fn finish(ctx: &Ctx, job: u64) -> Result<()> {
    let released = Timestamp::now();
    ctx.github.release(job).await?;
    ctx.succeeded(job).await?;
    at_rest(ctx, released).await
}

/// Waits until the operator has read the queue after this moment, and is done with it.
async fn at_rest(ctx: &Ctx, after: Timestamp) -> Result<()> {
    ctx.wait_for(
        "the queue to be read, and then left alone",
        SOON,
        async || {
            let calls = ctx.own_calls(0).await?;
            let reads = calls
                .iter()
                .filter(|call| call.at > after && call.path.contains(QUEUE));
            let last = reads.map(|call| call.at).max();
            let since = last.map(|last| Timestamp::now().duration_since(last));
            Ok(since.is_some_and(|since| since > DONE_WITH).then_some(()))
        },
    )
    .await
}

/// The path of the deliveries that failed, newest first.
fn failures(hook: &str) -> String {
    format!("/{hook}/deliveries?status=failure")
}

/// The first time that the operator read the queue after a moment.
async fn read_of_the_queue(ctx: &Ctx, after: Timestamp, limit: Duration) -> Result<Seen> {
    ctx.wait_for("the queue to be read", limit, async || {
        let calls = ctx.own_calls(0).await?;
        let mut reads = calls
            .into_iter()
            .filter(|call| call.at > after && call.path.contains(QUEUE));
        Ok(reads.next_back())
    })
    .await
}

/// Whoever administers the repository.
struct Owner<'a> {
    ctx: &'a Ctx,
    token: String,
}

impl<'a> Owner<'a> {
    async fn new(ctx: &'a Ctx) -> Result<Self> {
        let new = NewCredential {
            name: "webhook-owner".to_owned(),
            scopes: Some(["repo", "admin:org_hook"].map(str::to_owned).into()),
            admin: true,
            ..NewCredential::default()
        };
        let token = ctx.github.create_token(&new).await?;
        Ok(Self { ctx, token })
    }

    /// A request about the repository's webhooks.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let path = format!("/repos/{}/hooks{path}", self.ctx.repository);
        self.send(method, &path, body).await
    }

    /// Any request.
    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("authorization", bearer.as_str()), ("user-agent", "owner")];
        let (status, _, answer) = self.ctx.github.send(method, path, &headers, body).await?;
        ensure!(
            status.is_success(),
            "{status}: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }

    /// The webhooks that deliver to an address.
    async fn of(&self, url: &str) -> Result<Vec<Value>> {
        let all = self.ask(Method::GET, "", None).await?;
        let mut all = all.as_array().cloned().unwrap_or_default();
        all.retain(|hook| hook["config"]["url"] == url);
        Ok(all)
    }

    /// The number of the newest delivery of a webhook, of those that the query asks for.
    async fn newest(&self, hook: &str, query: &str) -> Result<u64> {
        let path = format!("/{hook}/deliveries{query}");
        let all = self.ask(Method::GET, &path, None).await?;
        Ok(all[0]["id"].as_u64().unwrap_or_default())
    }

    /// Enters a webhook as a person would; gives GitHub's number for it.
    async fn enter(&self, url: &str) -> Result<String> {
        let made = self.ask(Method::POST, "", Some(&entry(url))).await?;
        Ok(made["id"].to_string())
    }
}

/// What a person enters.
fn entry(url: &str) -> Value {
    json!({
        "name": "web", "active": true, "events": ["workflow_job"],
        "config": {"url": url, "content_type": "json", "secret": VALUE, "insecure_ssl": "0"},
    })
}
