//! What is known of the webhook of a pool.

use cudarunner_crds::CudaRunner;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::reflector::Store;
use secrecy::SecretString;

use crate::context::Context;
use crate::github::{Client, Error};
use crate::watch::objects::Lookup;
use crate::watch::part::{Data, Keyed, Part};
use crate::webhook::{HookName, Webhooks};
use cuda_runner_plan::Access;
use cuda_runner_plan::model::pool::{Pool, PoolKey};
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::model::webhook::WebhookFacts;
use cuda_runner_plan::runners::SWEEP;
use cuda_runner_plan::webhook::{PREVIOUS_SECRET, SECRET};

/// Shorter secrets can be guessed.
const SHORTEST: usize = 16;

/// What is known of the webhook of a pool that is to have one, or has one.
pub async fn look(
    ctx: &Context,
    pool: &Pool,
    client: Option<&Client>,
    now: Timestamp,
) -> Option<WebhookFacts> {
    let spec = pool.spec.as_ref().ok();
    let hook = spec.and_then(|spec| HookName::of(pool, spec));
    if hook.is_none() && pool.status.webhook.is_none() {
        return None;
    }
    let wanted = ctx.webhooks.as_ref().zip(hook.as_ref());
    let url = wanted.map(|(webhooks, hook)| webhooks.address(hook));
    let secret = match wanted {
        Some((webhooks, hook)) => secrets_of(ctx, webhooks, hook, &pool.key).await,
        None => Err(String::new()),
    };
    if let (Some(client), Some(url), true) = (client, &url, secret.is_ok()) {
        read(ctx, pool, client, url, now).await;
    }
    let version = wanted
        .zip(secret.as_ref().ok())
        .and_then(|((webhooks, _), secrets)| Some(webhooks.keys().version(secrets.first()?)));
    let is_shared = is_shared(ctx, pool);
    Some(ctx.memory.with(pool, |memory| {
        let heard = &mut memory.webhook;
        if let Some(spec) = spec.filter(|_| url.is_some() && pool.deleting.is_none()) {
            let queue = memory.github.queue.as_deref();
            memory.hook.listen(pool, spec, queue, heard, now);
        }
        let (hook, heard) = (&memory.hook, *heard);
        WebhookFacts {
            secret_trouble: secret.err().filter(|_| url.is_some()),
            url,
            secret_version: version,
            written: hook.written.clone(),
            heard,
            hook: hook.known.clone(),
            trouble: hook.trouble.clone(),
            not_before: hook.not_before,
            failing: hook.failing(&heard),
            is_untold: hook.is_untold(now),
            removal: hook.removal.clone(),
            is_shared,
        }
    }))
}

/// Reads the webhook where that is due.
async fn read(ctx: &Context, pool: &Pool, client: &Client, url: &str, now: Timestamp) {
    let (is_due, is_quiet, before) = ctx.memory.with(pool, |memory| {
        let is_in = memory.github.access == Access::Granted && pool.deleting.is_none();
        let is_due = is_in && memory.hook.is_due(pool, now);
        if is_due {
            memory.hook.asks(pool);
        }
        let heard = memory.webhook;
        // What comes needs no further word.
        let is_quiet = heard.at.is_none_or(|at| at.after(SWEEP) <= now);
        (is_due, is_quiet, heard)
    });
    if !is_due {
        return;
    }
    let answer = async {
        let found = client.find_hook(url).await?;
        let failing = match &found {
            Some(hook) if is_quiet => client.last_failure(hook.id).await?,
            _ => None,
        };
        Ok::<_, Error>((found, failing))
    };
    let answer = answer.await;
    let was_there = pool.status.webhook.as_ref().is_some_and(|w| w.id.is_some());
    ctx.memory.with(pool, |memory| match answer {
        Ok((found, failing)) => {
            let is_gone = was_there && found.is_none();
            memory.hook.read(found, now);
            // What has come meanwhile is newer than that.
            if (is_gone || failing.is_some()) && memory.webhook == before {
                memory.hook.stops(failing, &mut memory.webhook, now);
            }
        }
        Err(error) => memory.hook.failed(&error, &pool.uid, now),
    });
}

/// Whether another pool that stays has the webhook that the status names, and is to have it.
fn is_shared(ctx: &Context, pool: &Pool) -> bool {
    let Some(own) = &pool.status.webhook else {
        return false;
    };
    let wants = |other: &CudaRunner| {
        let other = ctx.specs.pool(other);
        // One whose spec cannot be read keeps what it has.
        let Ok(spec) = &other.spec else {
            return true;
        };
        let wanted = ctx.webhooks.as_ref().zip(HookName::of(&other, spec));
        wanted.is_some_and(|(webhooks, hook)| webhooks.address(&hook) == own.url)
    };
    ctx.pools.iter().flat_map(Store::state).any(|other| {
        let meta = &other.metadata;
        let status = other
            .status
            .as_ref()
            .and_then(|status| status.webhook.as_ref());
        meta.namespace.as_ref() == Some(&pool.key.namespace)
            && meta.uid.as_ref() != Some(&pool.uid)
            && meta.deletion_timestamp.is_none()
            && status.is_some_and(|status| status.url == own.url)
            && wants(&other)
    })
}

/// The secret that GitHub is given for the pool's webhook, and its version.
pub async fn secret_of(ctx: &Context, pool: &Pool) -> Option<(SecretString, String)> {
    let hook = HookName::of(pool, pool.spec.as_ref().ok()?)?;
    let webhooks = ctx.webhooks.as_ref()?;
    let secrets = secrets_of(ctx, webhooks, &hook, &pool.key).await.ok()?;
    let secret = secrets.into_iter().next()?;
    let version = webhooks.keys().version(&secret);
    Some((secret, version))
}

/// The secrets by which deliveries of a webhook are known, the one that GitHub is given first; or why there are none.
pub async fn secrets_of(
    ctx: &Context,
    webhooks: &Webhooks,
    hook: &HookName,
    pool: &PoolKey,
) -> Result<Vec<SecretString>, String> {
    match &hook.secret {
        None => Ok(webhooks.keys().secrets(hook)),
        Some(name) => user_secrets(ctx, pool, name).await,
    }
}

/// The secrets that a user's Secret has: the one that GitHub signs with, and the one before. Or what is wrong with it.
async fn user_secrets(
    ctx: &Context,
    pool: &PoolKey,
    name: &str,
) -> Result<Vec<SecretString>, String> {
    let namespace = &pool.namespace;
    match ctx.secrets.get(pool, &Part::webhook(name)).await {
        Lookup::Found(data) => parse(&data)
            .map_err(|why| format!("The Secret {name} of spec.scaling.webhook.secretRef: {why}")),
        Lookup::Missing => Err(format!(
            "The Secret {name} of spec.scaling.webhook.secretRef does not exist in the namespace {namespace}; create it with the key {SECRET}"
        )),
        Lookup::TooLong => Err(format!(
            "The Secret {name} of spec.scaling.webhook.secretRef: {SECRET} and {PREVIOUS_SECRET} have more than {} KiB together",
            Secret::MOST / 1024
        )),
        Lookup::Unreadable => Err(format!(
            "The Secret {name} of spec.scaling.webhook.secretRef could not be read; may the operator list and watch it in the namespace {namespace}?"
        )),
    }
}

fn parse(data: &Data) -> Result<Vec<SecretString>, String> {
    let text = |key: &str| {
        let read = data.get(key).map(|bytes| {
            // What is written into a file ends with a line feed, and what is entered at GitHub does not.
            let text = str::from_utf8(bytes)
                .ok()
                .map(|text| text.trim_end_matches(['\r', '\n']));
            let text = text.filter(|text| text.len() >= SHORTEST);
            text.map(|text| SecretString::from(text.to_owned()))
                .ok_or_else(|| {
                    format!("its key {key} is to be a text of at least {SHORTEST} characters")
                })
        });
        read.transpose()
    };
    let current = text(SECRET)?.ok_or_else(|| format!("it lacks the key {SECRET}"))?;
    let previous = text(PREVIOUS_SECRET)?;
    Ok(std::iter::once(current).chain(previous).collect())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn two_secrets_are_valid_while_one_is_rotated() {
        let data = |data: &[(&str, &str)]| -> Data {
            let data = data.iter();
            data.map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
                .collect()
        };
        let (new, old) = ("0123456789abcdef", "fedcba9876543210");
        let told = |given: &[(&str, &str)]| {
            let secrets = parse(&data(given))?;
            let told = secrets.iter().map(|s| s.expose_secret().to_owned());
            Ok::<Vec<String>, String>(told.collect())
        };
        assert_eq!(told(&[(SECRET, new)]).unwrap(), [new]);
        let with_line = format!("{new}\n");
        assert_eq!(
            told(&[(SECRET, &with_line), (PREVIOUS_SECRET, old)]).unwrap(),
            [new, old]
        );
        for wrong in [
            &[(PREVIOUS_SECRET, old)][..],
            &[(SECRET, "short")],
            &[(SECRET, new), (PREVIOUS_SECRET, "")],
        ] {
            told(wrong).unwrap_err();
        }
    }
}
