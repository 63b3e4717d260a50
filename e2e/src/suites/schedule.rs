//! Runners that wait while a window of time is open.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::CudaRunner;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use kube::Api;
use serde_json::{Value, json};

use super::{Ctx, SOON};

/// A window opens at a whole minute, so far away at least: by then the pool has been looked at.
const AHEAD: SignedDuration = SignedDuration::from_secs(30);
/// By then the moment has come.
const OPENS_WITHIN: Duration = Duration::from_mins(2);
/// Its runner is made so soon after it opens, on a machine that has other things to do.
const AT_ONCE: SignedDuration = SignedDuration::from_secs(25);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a window that is always open, then its runner waits, though no job does
    ctx.apply(&pool(ctx, "00:00", "24:00")).await?;
    ctx.idle("pool", 1).await?;

    // When the window is one that opens tomorrow, then nobody waits
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    let day = tomorrow.to_zoned(TimeZone::UTC).strftime("%A").to_string();
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
    ctx.delete("pool").await?;
    opens_by_itself(ctx).await
}

/// A window opens because time passes, and for nothing else.
async fn opens_by_itself(ctx: &Ctx) -> Result<()> {
    // Given a window that opens in the next minute or the one after, then nobody waits until then
    let opens = next_minute(Timestamp::now())?;
    let (from, to) = (clock(opens), clock(opens + SignedDuration::from_hours(1)));
    ctx.apply(&pool(ctx, &from, &to)).await?;
    ctx.condition("pool", "Ready", "True", "ScaledToZero")
        .await?;
    let generation = generation(ctx).await?;
    let early = ctx
        .wait_for("the window to open", OPENS_WITHIN, async || {
            let count = ctx.pods().await?.len();
            let is_before = Timestamp::now() < opens;
            Ok((count > 0 || !is_before).then_some(count > 0 && is_before))
        })
        .await?;
    ensure!(!early, "a runner was made before {opens}");

    // When it opens, then a runner is made at once, by the spec as it was
    ctx.idle("pool", 1).await?;
    let pods = ctx.pods().await?;
    let made = pods.first().context("no pod is there any more")?;
    let made = made.metadata.creation_timestamp.as_ref();
    let made = made.context("a pod has no time")?.0;
    let late = made.duration_since(opens);
    ensure!(
        !late.is_negative() && late <= AT_ONCE,
        "the window opened at {opens}, and its runner was made at {made}"
    );
    ensure!(self::generation(ctx).await? == generation);
    ctx.delete("pool").await
}

/// The next whole minute that is far enough away.
fn next_minute(now: Timestamp) -> Result<Timestamp> {
    let second = (now + AHEAD).as_second();
    Ok(Timestamp::from_second((second / 60 + 1) * 60)?)
}

/// What the clock on the wall shows, in UTC.
fn clock(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%H:%M").to_string()
}

/// Which spec the pool has.
async fn generation(ctx: &Ctx) -> Result<Option<i64>> {
    let pools: Api<CudaRunner> = ctx.api();
    Ok(pools.get("pool").await?.metadata.generation)
}

fn pool(ctx: &Ctx, from: &str, to: &str) -> Value {
    let window = json!({"from": from, "to": to, "timeZone": "UTC", "minRunners": 1});
    ctx.pool(
        "pool",
        json!({"scaling": {"maxRunners": 2, "source": "Poll", "schedule": [window]}}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_minute_is_never_too_near() {
        for (now, next) in [
            ("2026-03-01T10:00:00Z", "2026-03-01T10:01:00Z"),
            ("2026-03-01T10:00:29Z", "2026-03-01T10:01:00Z"),
            ("2026-03-01T10:00:30Z", "2026-03-01T10:02:00Z"),
            ("2026-03-01T23:59:59Z", "2026-03-02T00:01:00Z"),
        ] {
            let found = next_minute(now.parse().unwrap()).unwrap();
            assert_eq!(found, next.parse::<Timestamp>().unwrap(), "{now}");
        }
        assert_eq!(clock("2026-03-02T00:01:00Z".parse().unwrap()), "00:01");
    }
}
