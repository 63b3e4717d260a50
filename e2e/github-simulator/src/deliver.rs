//! Carries deliveries to where webhooks want them.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use http::{Request, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::Instant;

use crate::{
    shared::Shared,
    state::{Scope, Side, Violation, World},
};

/// GitHub waits no longer for an answer, see
/// <https://docs.github.com/en/webhooks/using-webhooks/best-practices-for-using-webhooks>.
const PATIENCE: Duration = Duration::from_secs(10);
/// What forged deliveries are signed with.
const FORGED: &str = "somebody else's secret";

/// A delivery on its way.
struct Parcel {
    hook: u64,
    delivery: u64,
    request: Result<Request<Full<Bytes>>, http::Error>,
}

/// Begins what is due; each goes its own way.
pub(crate) fn begin(shared: &Arc<Shared>) {
    let parcels = {
        let mut world = shared.world();
        let parcels = due(&mut world);
        for parcel in &parcels {
            check(&mut world, shared, parcel);
        }
        parcels
    };
    for parcel in parcels {
        let shared = Arc::clone(shared);
        tokio::spawn(async move { carry(&shared, parcel).await });
    }
}

/// What is told is as GitHub describes it.
fn check(world: &mut World, shared: &Shared, parcel: &Parcel) {
    let hook = world.hooks.get(&parcel.hook);
    let mut made = hook.into_iter().flat_map(|hook| &hook.deliveries);
    let Some(sent) = made.find(|sent| sent.id == parcel.delivery) else {
        return;
    };
    let action = sent.action.as_deref();
    let complaints = shared
        .description
        .check_event(&sent.event, action, &sent.payload);
    let what = format!("event {} {}", sent.event, action.unwrap_or_default());
    world
        .violations
        .extend(complaints.into_iter().map(|complaint| Violation {
            request: 0,
            side: Side::Answer,
            what: what.clone(),
            operation_id: None,
            complaint,
        }));
}

fn due(world: &mut World) -> Vec<Parcel> {
    let now = world.now();
    let (mut ready, later): (Vec<_>, Vec<_>) = std::mem::take(&mut world.outbox)
        .into_iter()
        .partition(|(_, _, not_before)| *not_before <= now);
    world.outbox = later;
    // Those that were kept back go in the opposite order.
    ready.sort_by_key(|(hook, delivery, not_before)| {
        let hook = world.hooks.get(hook);
        let mut made = hook.into_iter().flat_map(|hook| &hook.deliveries);
        let is_held = made.any(|made| made.id == *delivery && made.at < *not_before);
        let number = i64::try_from(*delivery).unwrap_or_default();
        (*not_before, if is_held { -number } else { number })
    });
    let parcels = ready.into_iter();
    parcels
        .filter_map(|(hook, delivery, _)| parcel(world, hook, delivery))
        .collect()
}

fn parcel(world: &World, hook: u64, delivery: u64) -> Option<Parcel> {
    let entry = world.hooks.get(&hook)?;
    let sent = entry.deliveries.iter().find(|d| d.id == delivery)?;
    let body = sent.payload.to_string();
    let secret = if sent.forged {
        Some(FORGED)
    } else {
        entry.secret.as_deref()
    };
    let kind = match entry.content_type.as_str() {
        "json" => "application/json",
        _ => "application/x-www-form-urlencoded",
    };
    let (target, target_id) = target(world, &entry.scope);
    let mut request = Request::post(&entry.url)
        .header(header::USER_AGENT, "GitHub-Hookshot/sim")
        .header(header::CONTENT_TYPE, kind)
        .header("x-github-event", &sent.event)
        .header("x-github-delivery", &sent.guid)
        .header("x-github-hook-id", hook)
        .header("x-github-hook-installation-target-type", target)
        .header("x-github-hook-installation-target-id", target_id);
    if let Some(secret) = secret {
        request = request.header("x-hub-signature-256", signature(secret, body.as_bytes()));
    }
    Some(Parcel {
        hook,
        delivery,
        request: request.body(Full::from(body)),
    })
}

/// Where a webhook is: the kind, and its number.
fn target(world: &World, scope: &Scope) -> (&'static str, u64) {
    match scope {
        Scope::Repository(name) => {
            let id = world.repository(name).map_or(0, |repository| repository.id);
            ("repository", id)
        }
        Scope::Organization(login) => {
            let organization = world.organizations.get(login);
            (
                "organization",
                organization.map_or(0, |organization| organization.id),
            )
        }
        Scope::Enterprise(_) => ("business", 0),
    }
}

/// The header by which a receiver knows GitHub.
#[must_use]
pub fn signature(secret: &str, body: &[u8]) -> String {
    use std::fmt::Write as _;
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mut text = "sha256=".to_owned();
    for byte in hmac::sign(&key, body).as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

async fn carry(shared: &Shared, parcel: Parcel) {
    let begun = Instant::now();
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let (code, word) = match parcel.request {
        Err(error) => (502, error.to_string()),
        Ok(request) => match tokio::time::timeout(PATIENCE, client.request(request)).await {
            Err(_) => (504, "timed out".to_owned()),
            Ok(Err(_)) => (502, "failed to connect to host".to_owned()),
            Ok(Ok(answer)) => {
                let status = answer.status();
                let word = if status.is_success() {
                    "OK"
                } else {
                    status.canonical_reason().unwrap_or("unknown")
                };
                (status.as_u16(), word.to_owned())
            }
        },
    };
    let mut world = shared.world();
    if let Some(hook) = world.hooks.get_mut(&parcel.hook) {
        hook.last = Some((code, word.clone()));
        let sent = hook.deliveries.iter_mut().find(|d| d.id == parcel.delivery);
        if let Some(sent) = sent {
            sent.outcome = Some((code, word, begun.elapsed().as_secs_f64()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::signature;

    #[test]
    fn the_signature_is_the_one_of_githubs_documentation() {
        let expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert_eq!(
            signature("It's a Secret to Everybody", b"Hello, World!"),
            expected
        );
    }
}
