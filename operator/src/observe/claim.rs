//! The template of the pool's claims, from which the claim of a re-test is made.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use kube::Api;

use super::taints_devices;
use crate::context::Context;
use cuda_runner_plan::model::claim::ClaimTemplate;
use cuda_runner_plan::model::pool::{GpuRequest, Pool};
use cuda_runner_plan::model::runner::{End, Runner};
use cuda_runner_plan::model::time::Shift as _;

/// For how long a template is believed that was read. It cannot be changed, only be replaced.
const FRESH: SignedDuration = SignedDuration::from_mins(1);

/// Reads it where a device of the pool's is kept off, or will be.
pub(super) async fn look(
    ctx: &Context,
    pool: &Pool,
    runners: &[Runner],
    now: Timestamp,
) -> ClaimTemplate {
    let Ok(GpuRequest::Claim(name)) = pool.spec.as_ref().map(|spec| &spec.gpu) else {
        return ClaimTemplate::Unread;
    };
    let has_failed =
        |r: &Runner| matches!(&r.end, Some(End::Failed(failure)) if failure.device.is_some());
    let is_wanted =
        pool.status.quarantine.iter().any(|e| e.device.is_some()) || runners.iter().any(has_failed);
    if !is_wanted || !taints_devices(ctx) {
        ctx.memory.with(pool, |memory| memory.claim_template = None);
        return ClaimTemplate::Unread;
    }
    let known = ctx
        .memory
        .with(pool, |memory| memory.claim_template.clone());
    let known = known.filter(|(of, _, at)| of == name && now < at.after(FRESH));
    if let Some((_, template, _)) = known {
        return template;
    }
    let api = Api::<ResourceClaimTemplate>::namespaced(ctx.client.clone(), &pool.key.namespace);
    let template = match api.get_opt(name).await {
        Ok(Some(template)) => {
            let claims = template.spec.and_then(|spec| spec.spec);
            ClaimTemplate::Read(Arc::new(claims.unwrap_or_default()))
        }
        Ok(None) => ClaimTemplate::Unreadable,
        Err(error) => {
            tracing::warn!(pool = %pool.key, template = name, %error, "the ResourceClaimTemplate could not be read, and tainted devices are not tried again by a claim of their own; may the operator get resourceclaimtemplates?");
            match error {
                kube::Error::Api(status) if status.code == 403 => ClaimTemplate::Unreadable,
                _ => ClaimTemplate::Unread,
            }
        }
    };
    ctx.memory.with(pool, |memory| {
        memory.claim_template = Some((name.clone(), template.clone(), now));
    });
    template
}
