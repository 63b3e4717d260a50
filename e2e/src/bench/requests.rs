//! What a runner costs in requests, its whole life long; and what a pool costs that has nothing to do.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

use super::{
    Bed, Run,
    bed::gated_pool,
    figure::{Budget, Figure, number},
    player::{Player, Runner},
};
use crate::{
    audit::{Audit, Request},
    suites::{Ctx, context::is_read_of_jobs},
};

/// Runners of the pool.
const RUNNERS: usize = 5;
/// Nothing was asked for so long: what there was to do is done.
const QUIET: Duration = Duration::from_secs(10);
/// How long that may take.
const LIMIT: Duration = Duration::from_mins(2);
/// How long a pool must be idle.
const IDLE: Duration = Duration::from_mins(1);

/// How runners end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// All that there are at the same time: their share of the status is small.
    Together,
    /// One in ten seconds: each has the pool's status written.
    OneByOne,
}

impl Pace {
    /// Runners that are counted in one run. Five runs of them stay below what GitHub allows in a minute.
    fn lives(self) -> usize {
        match self {
            Self::Together => 20,
            // With fewer, what begins and ends the series would count for much.
            Self::OneByOne => 12,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Together => "five end at a time",
            Self::OneByOne => "one ends every 10 s",
        }
    }
}

/// Requests and calls for each runner: create, review, change of the image, delete, and a share of the status. The floor is
/// a pod that is created and deleted.
pub(super) async fn run(run: &Run, pace: Pace) -> Result<Vec<Figure>> {
    let words = pace.words();
    run.story.step(&format!("requests for a runner, {words}"));
    let (mut requests, mut calls) = (vec![], vec![]);
    Bed::with(2 * RUNNERS, async |bed| {
        let ctx = bed.ctx("requests").await?;
        let mut pool = AtRest::new(bed, &ctx).await?;
        for _ in 0..run.runs.min(5) {
            let (kubernetes, github) = pool.lives(pace).await?;
            requests.push(kubernetes);
            calls.push(github);
        }
        Ok(())
    })
    .await?;
    Ok(vec![
        Figure {
            name: format!("requests to Kubernetes for a runner, {words}"),
            unit: "requests",
            ours: requests,
            floor: vec![2.0],
            budget: Some(Budget::AtMost(4.0)),
        },
        Figure {
            name: format!("calls to GitHub for a runner, {words}"),
            unit: "calls",
            ours: calls,
            floor: vec![1.0],
            budget: Some(Budget::AtMost(1.0)),
        },
    ])
}

/// What an idle pool asks in a minute.
pub(super) async fn idle(run: &Run) -> Result<Vec<Figure>> {
    run.story.step("an idle pool, for a minute");
    let (requests, calls) = Bed::with(2 * RUNNERS, async |bed| {
        let ctx = bed.ctx("idle").await?;
        let mut pool = AtRest::new(bed, &ctx).await?;
        let mark = ctx.last_call().await?;
        sleep(IDLE).await;
        Ok((pool.audit.new_calls()?.len(), ctx.calls(mark).await?.len()))
    })
    .await?;
    let figure = |what: &str, unit, count| {
        anyhow::Ok(Figure {
            name: format!("{RUNNERS} idle runners for a minute: {what}"),
            unit,
            ours: vec![number(count)?],
            floor: vec![0.0],
            budget: Some(Budget::AtMost(0.0)),
        })
    };
    Ok(vec![
        figure("requests to Kubernetes", "requests", requests)?,
        figure("calls to GitHub", "calls", calls)?,
    ])
}

/// A pool whose runners are idle, and whose operator has nothing left to do.
struct AtRest<'a> {
    ctx: &'a Ctx,
    player: Player<'a>,
    runners: Vec<Runner>,
    audit: Audit,
}

impl<'a> AtRest<'a> {
    async fn new(bed: &Bed, ctx: &'a Ctx) -> Result<Self> {
        bed.started().await?;
        ctx.apply(&ctx.pool("pool", gated_pool(RUNNERS))).await?;
        let mut player = Player::new(ctx);
        let runners = player.bring_up(&[], RUNNERS).await?;
        ctx.idle("pool", RUNNERS).await?;
        let audit = Audit::from_now(&bed.cluster)?;
        let mut pool = Self {
            ctx,
            player,
            runners,
            audit,
        };
        pool.settled().await?;
        Ok(pool)
    }

    /// Runners end and others come; what each has cost at Kubernetes and at GitHub.
    async fn lives(&mut self, pace: Pace) -> Result<(f64, f64)> {
        let mark = self.ctx.last_call().await?;
        let lives = pace.lives();
        let mut ended = 0;
        while ended < lives {
            let (count, pause) = match pace {
                Pace::Together => (RUNNERS, Duration::ZERO),
                Pace::OneByOne => (1, QUIET),
            };
            let next = Instant::now() + pause;
            for runner in self.runners.drain(..count) {
                self.player.finish(&runner).await?;
                ended += 1;
            }
            let new = self.player.bring_up(&self.runners, RUNNERS).await?;
            self.runners.extend(new);
            tokio::time::sleep_until(next).await;
        }
        self.ctx.idle("pool", RUNNERS).await?;
        let requests = self.settled().await?;
        let changes = requests.iter().filter(|r| r.is_image_change()).count();
        ensure!(changes == lives, "{changes} changes for {lives} runners");
        let calls = self.ctx.calls(mark).await?;
        // How jobs ended costs a call for each run, not for each runner; the played jobs name one run, which GitHub
        // does not have.
        let registering = calls.iter().filter(|c| !is_read_of_jobs(c)).count();
        Ok((
            number(requests.len())? / number(lives)?,
            number(registering)? / number(lives)?,
        ))
    }

    /// Waits until there is nothing left to do; gives the requests until then.
    async fn settled(&mut self) -> Result<Vec<Request>> {
        let ctx = self.ctx;
        let reported = async || {
            let jobs = ctx.status("pool").await?.last_jobs;
            Ok(jobs.iter().all(|job| !job.awaits_conclusion))
        };
        self.audit.settled(LIMIT, reported).await
    }
}
