//! Runners that wait while a window of time is open.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Ctx, SOON};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a window that is always open, then its runner waits, though no job does
    ctx.apply(&pool(ctx, "00:00", "24:00")).await?;
    ctx.idle("pool", 1).await?;

    // When the window is one that opens tomorrow, then nobody waits
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let day = tomorrow
        .to_zoned(jiff::tz::TimeZone::UTC)
        .strftime("%A")
        .to_string();
    let mut closed = pool(ctx, "08:00", "24:00");
    closed["spec"]["scaling"]["schedule"][0]["days"] = json!([day]);
    ctx.apply(&closed).await?;
    ctx.wait_for("no runner to be left", SOON, async || {
        Ok(ctx.pods().await?.is_empty().then_some(()))
    })
    .await?;
    ctx.condition("pool", "Ready", "True", "ScaledToZero")
        .await?;

    // And a time zone that there is not is named
    closed["metadata"]["name"] = json!("nowhere");
    closed["spec"]["scaling"]["schedule"][0]["timeZone"] = json!("Europe/Berln");
    ctx.apply(&closed).await?;
    ctx.condition("nowhere", "Stalled", "True", "InvalidSchedule")
        .await?;
    ctx.delete("nowhere").await?;
    ctx.delete("pool").await
}

fn pool(ctx: &Ctx, from: &str, to: &str) -> Value {
    let window = json!({"from": from, "to": to, "timeZone": "UTC", "minRunners": 1});
    ctx.pool(
        "pool",
        json!({"scaling": {"maxRunners": 2, "source": "Poll", "schedule": [window]}}),
    )
}
