//! Two replicas of the operator: one acts, both answer gates under one authority, and the other takes over.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::ListParams};
use serde_json::json;

use super::Ctx;
use crate::{
    audit::{self, Audit},
    deploy,
    helm::NAMESPACE,
};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given two replicas with a leader election
    let two = ["replicas=2", "leaderElection.enabled=true"];
    deploy::with_values(&ctx.cluster, &two, async || with_two(ctx).await).await
}

async fn with_two(ctx: &Ctx) -> Result<()> {
    let mut audit = Audit::from_now(&ctx.cluster)?;
    ctx.apply(&ctx.pool("pool", json!({"replicas": 2}))).await?;
    ctx.idle("pool", 2).await?;

    // When gates have come to both of them
    let mut answered = BTreeSet::new();
    let mut round = 0;
    while answered.len() < 2 {
        round += 1;
        ensure!(
            round < 20,
            "only {answered:?} of two replicas answers gates"
        );
        let job = ctx.queue("another", "true").await?;
        ctx.succeeded(job).await?;
        ctx.idle("pool", 2).await?;
        answered.extend(
            audit
                .new_requests()?
                .into_iter()
                .filter(audit::Request::is_image_change)
                .filter_map(|change| change.pod),
        );
    }

    // Then no gate was sent away: both have the same authority
    let status = ctx.status("pool").await?;
    ensure!(
        status.last_failures.is_empty(),
        "{:?}",
        status.last_failures
    );

    // When the one that acts is killed
    let leader = holder(ctx).await?;
    deploy::kill_pod(&ctx.cluster, &ctx.client, &leader).await?;

    // Then the other acts
    let job = ctx.queue("after", "true").await?;
    ctx.succeeded(job).await?;
    ctx.wait_for("another leader", super::SOON, async || {
        Ok((holder(ctx).await? != leader).then_some(()))
    })
    .await?;
    ctx.idle("pool", 2).await?;
    ctx.delete("pool").await
}

/// The pod that holds the lease.
async fn holder(ctx: &Ctx) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(ctx.client.clone(), NAMESPACE);
    let all = leases.list(&ListParams::default()).await?.items;
    let holders: Vec<_> = all
        .into_iter()
        .filter_map(|lease| lease.spec?.holder_identity)
        .collect();
    ensure!(holders.len() == 1, "not one leader: {holders:?}");
    Ok(holders.into_iter().next().unwrap_or_default())
}
