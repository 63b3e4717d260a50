//! The spine for devices: read what all pools quarantine and what drivers publish, plan, act. Nodes have their own,
//! [`crate::node_marks`].

use jiff::{SignedDuration, Timestamp};

use crate::act::device_rules;
use crate::context::Context;
use crate::guard;
use crate::node_marks::held;
use crate::watch::Waker;
use crate::watch::devices::Devices;
use cuda_runner_plan::device_taints::{self, Change, Effect, Owner};
use cuda_runner_plan::model::backoff;

/// The first pause after a write that failed, and the longest.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);
const AGAIN_AT_MOST: SignedDuration = SignedDuration::from_mins(2);

/// How devices are tainted.
#[derive(Clone, Debug)]
pub struct Tainting {
    /// What the taints do.
    pub effect: Effect,
    /// Name of the `ClusterRole` that the rules belong to.
    pub owner: String,
}

/// Taints devices permanently, and rests permanently where none are to be tainted.
pub async fn follow(ctx: &Context, waker: &Waker) {
    let Some((tainting, devices)) = ctx.tainting.as_ref().zip(ctx.devices.as_deref()) else {
        return std::future::pending().await;
    };
    let mut failures = 0_i32;
    loop {
        let done = guard::caught(reconcile(ctx, tainting, devices)).await;
        let wait = match done {
            Ok(Ok(next)) => {
                failures = 0;
                note(ctx, devices, true);
                next.map(|next| next.duration_since(Timestamp::now()))
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error,
                    "DeviceTaintRules cannot be written, and nodes are quarantined instead; may the operator create, patch and delete them, and get its ClusterRole?"
                );
                failures = failures.saturating_add(1);
                note(ctx, devices, false);
                Some(pause(failures))
            }
            Err(panicked) => {
                tracing::error!(%panicked, "the taints of devices are tried again");
                failures = failures.saturating_add(1);
                note(ctx, devices, false);
                Some(pause(failures))
            }
        };
        let sleep = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait.unsigned_abs()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = waker.rules.notified(), if failures == 0 => {}
            () = sleep => {}
        }
    }
}

fn pause(failures: i32) -> SignedDuration {
    backoff::exponential(AGAIN, AGAIN_AT_MOST, failures, "rules")
}

/// Where rules cannot be written, pools keep off nodes.
fn note(ctx: &Context, devices: &Devices, all: bool) {
    if devices.note_written(all) {
        ctx.waker.wake_all(&ctx.pools);
    }
}

/// Makes the rules what they should be; gives when time alone changes one.
async fn reconcile(
    ctx: &Context,
    tainting: &Tainting,
    devices: &Devices,
) -> Result<Option<Timestamp>, String> {
    let held = held(ctx);
    let Some(published) = devices.published().filter(|_| devices.is_served()) else {
        return Ok(None);
    };
    if held.is_empty() && !devices.has_rules() {
        return Ok(None);
    }
    let role = &tainting.owner;
    let owner = device_rules::owner(&ctx.client, role).await;
    let owner = owner.map_err(|error| error.to_string())?;
    let owner = owner.ok_or_else(|| format!("there is no ClusterRole {role}"))?;
    let (changes, next) = device_taints::plan(
        tainting.effect,
        &owner,
        &held,
        &published,
        &devices.rules(&owner),
        Timestamp::now(),
    );
    for change in changes {
        let written = write(ctx, devices, &owner, change).await;
        written.map_err(|error| error.to_string())?;
    }
    Ok(next)
}

async fn write(
    ctx: &Context,
    devices: &Devices,
    owner: &Owner,
    change: Change,
) -> Result<(), kube::Error> {
    match change {
        Change::Apply(rule) => {
            let made = device_rules::apply(&ctx.client, owner, &rule).await?;
            tracing::info!(
                rule = rule.name,
                uuid = rule.uuid,
                pool = rule.pool,
                device = rule.device,
                "tainted a device"
            );
            // The watch shows it later.
            devices.apply(&made);
        }
        Change::Delete { name, uid } => {
            device_rules::remove(&ctx.client, &name, &uid).await?;
            tracing::info!(rule = name, "a device is tainted no longer");
            devices.remove(&name);
        }
    }
    Ok(())
}
