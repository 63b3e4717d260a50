//! The pool's scale set, and what was heard of it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use crate::context::Context;
use crate::github::{Client, Error, NewScaleSet, ScaleSet};
use crate::memory::ScaleSetMemory;
use cuda_runner_plan::Access;
use cuda_runner_plan::model::backoff;
use cuda_runner_plan::model::pool::{Pool, RegistrationKind};
use cuda_runner_plan::model::runner::Runner;
use cuda_runner_plan::model::scale_set::{Known, Listening, ScaleSetFacts};
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::scale_set::number;

/// The first pause after an attempt that failed.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(5);
/// The longest.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(10);
/// How soon a set whose session is lost is made anew once more.
const REMADE_AGAIN: SignedDuration = SignedDuration::from_mins(10);
/// The pause after one that has vanished more than once.
const VANISHED_AGAIN: SignedDuration = SignedDuration::from_secs(30);
/// A job that no runner takes in time is taken back, and assigned again, up to three times. This long after, whatever is on
/// its way for it is still of use.
const ASSIGNED_AGAIN: SignedDuration = SignedDuration::from_mins(5);
/// GitHub tells of a job's end within this time. Later it is not counted on.
const TOLD: SignedDuration = SignedDuration::from_secs(60);

/// Reads the scale set where that is due; `None` for a pool that has none and needs none.
pub async fn look<'a>(
    ctx: &Context,
    pool: &Pool,
    runners: impl Iterator<Item = &'a Runner>,
    client: Option<&Client>,
    now: Timestamp,
) -> Option<ScaleSetFacts> {
    let needs_one = pool
        .spec
        .as_ref()
        .is_ok_and(|spec| spec.registration == RegistrationKind::ScaleSet);
    if !needs_one && pool.status.scale_set.is_none() {
        return None;
    }
    let identity = ctx
        .memory
        .with(pool, |memory| memory.github.identity.clone());
    let gone = ctx.listeners.gone(pool, &identity);
    let is_due = ctx.memory.with(pool, |memory| {
        let set = &mut memory.github.scale_set;
        if let Some(at) = gone.filter(|at| set.vanished != Some(*at)) {
            set.has_vanished(at, now);
        }
        set.known == Known::Unknown
            && memory.github.access == Access::Granted
            && set.not_before.is_none_or(|at| at <= now)
    });
    if let Some(client) = client.filter(|_| is_due) {
        let answer = find(pool, client).await;
        ctx.memory.with(pool, |memory| {
            let set = &mut memory.github.scale_set;
            match answer {
                Ok(found) => set.read(found),
                Err(error) => set.failed(&error, false, &pool.uid, now),
            }
        });
    }
    let heard = ctx.listeners.heard(pool, &identity);
    Some(ctx.memory.with(pool, |memory| {
        let expected: BTreeSet<String> = memory.expected.keys().cloned().collect();
        facts(&mut memory.github.scale_set, heard, runners, &expected, now)
    }))
}

/// By its number where that is known: its group may have changed. Else by its name, which no other pool's has, in the group
/// in which it was to be made.
async fn find(pool: &Pool, client: &Client) -> Result<Option<ScaleSet>, Error> {
    let known = pool.status.scale_set.as_ref();
    let id = known.and_then(number);
    if let Some(id) = id
        && let Some(set) = client.scale_set(id).await?
        && set.name == pool.scale_set_name()
    {
        return Ok(Some(set));
    }
    let intent = known.filter(|_| id.is_none());
    let group = match (intent, &pool.spec) {
        (Some(intent), _) => intent.runner_group.as_deref(),
        (None, Ok(spec)) => spec.runner_group.as_deref(),
        (None, Err(_)) => None,
    };
    let name = pool.scale_set_name();
    if intent.is_some() {
        client.find_intended(&name, group).await
    } else {
        client.find_scale_set(&name, group).await
    }
}

/// Notes of runners that ended what GitHub says that they had to do, where nothing here tells.
pub fn name_jobs<'a>(ctx: &Context, pool: &Pool, runners: impl Iterator<Item = &'a mut Runner>) {
    ctx.listeners.with(pool, |listener| {
        let Some(listener) = listener else {
            return;
        };
        for runner in runners.filter(|r| r.done.is_none()) {
            runner.heard = listener.job_of(&runner.name).map(Box::new);
        }
    });
}

/// `expected` are the pods that the watch does not show yet: GitHub may tell of the end of their job before that.
fn facts<'a>(
    memory: &mut ScaleSetMemory,
    heard: Option<(Listening, BTreeSet<String>)>,
    runners: impl Iterator<Item = &'a Runner>,
    expected: &BTreeSet<String>,
    now: Timestamp,
) -> ScaleSetFacts {
    let (mut listening, completed) = heard.unzip();
    // Whatever keeps sessions from being opened, a set that was just made anew does not fix it.
    if let (Some(listening), Some(remade)) = (&mut listening, memory.remade) {
        listening.heard.is_lost &= remade.after(REMADE_AGAIN) < now;
    }
    let completed = completed.unwrap_or_default();
    // What was over by then is not in the session's first numbers.
    let opened = listening.as_ref().and_then(|l| l.heard.opened);
    let mut finishing: BTreeSet<String> = expected.intersection(&completed).cloned().collect();
    let mut seen = BTreeSet::new();
    for runner in runners {
        seen.insert(runner.name.as_str());
        let is_told = completed.contains(&runner.name);
        let finished = runner.done.as_ref().map(|done| done.finished);
        if finished.is_some() && finished >= opened && !is_told {
            memory.ended.entry(runner.name.clone()).or_insert(now);
        }
        // Idle, where the watch is behind, or the agent hangs.
        if is_told && runner.is_online() {
            finishing.insert(runner.name.clone());
        }
    }
    let is_there = |name: &String| seen.contains(name.as_str()) || expected.contains(name);
    memory.ended.retain(|name, since| {
        let is_open = !completed.contains(name) && Some(*since) >= opened;
        is_open && (is_there(name) || now < since.after(TOLD))
    });
    let untold = memory.ended.values().map(|since| since.after(TOLD));
    let untold: Vec<Timestamp> = untold.filter(|until| now < *until).collect();
    let taken_back = listening.as_ref().and_then(|l| l.heard.taken_back);
    ScaleSetFacts {
        known: memory.known.clone(),
        asked: memory.asked.clone(),
        is_unwritten: memory.is_unwritten,
        trouble: memory.trouble.clone(),
        not_before: memory.not_before,
        listening,
        ended: untold.len(),
        recount: untold.into_iter().min(),
        finishing,
        awaited_until: taken_back
            // One that lies ahead is of a clock that was set back since.
            .filter(|at| *at <= now)
            .map(|at| at.after(ASSIGNED_AGAIN))
            .filter(|until| now < *until),
    }
}

impl ScaleSetMemory {
    /// Notes what is there. What could not be written is still to be.
    fn read(&mut self, found: Option<ScaleSet>) {
        self.known = found.map_or(Known::Absent, Known::Present);
        self.not_before = None;
        if !self.is_unwritten {
            self.trouble = None;
            self.failures = 0;
        }
    }

    /// Notes that GitHub says there is none any more. One that goes on to vanish is looked for again after a pause.
    fn has_vanished(&mut self, at: Timestamp, now: Timestamp) {
        self.known = Known::Unknown;
        let is_again = self
            .vanished
            .is_some_and(|before| at < before.after(LONGEST_PAUSE));
        if is_again {
            self.not_before = Some(now.after(VANISHED_AGAIN));
        }
        self.vanished = Some(at);
    }

    /// Notes that GitHub changed what is there.
    pub fn written(&mut self, now_there: Known, asked: Option<NewScaleSet>) {
        self.known = now_there;
        self.asked = asked;
        self.trouble = None;
        self.failures = 0;
        self.is_unwritten = false;
        self.not_before = None;
    }

    /// Notes that GitHub did not do what was asked. What is there is looked at again, after a pause.
    pub fn failed(&mut self, error: &Error, is_write: bool, key: &str, now: Timestamp) {
        self.is_unwritten |= is_write;
        self.failures = self.failures.saturating_add(1);
        let own = backoff::exponential(FIRST_PAUSE, LONGEST_PAUSE, self.failures, key);
        let pause = error.pause_of_at_least(own, now);
        self.not_before = Some(now.after(pause));
        self.known = Known::Unknown;
        self.trouble = Some(error.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::github::tests::scale_sets::service;
    use crate::github::tests::stub::{error, reply};
    use crate::listen::Listener;
    use crate::memory::PoolMemory;
    use crate::reconcile::tests::{Cluster, context};
    use cuda_runner_plan::fixture::{NOW, ago, pool, runner};
    use cuda_runner_plan::model::runner::{EndedJob, Job};
    use cuda_runner_plan::model::scale_set::Heard;
    use cudarunner_crds::{RunnerPhase, ScaleSetStatus};
    use serde_json::json;

    fn done(name: &str, finished: Timestamp) -> Runner {
        let mut runner = runner(&pool(1), name, RunnerPhase::Finished);
        runner.done = Some(Box::new(EndedJob {
            job: Job::default(),
            started: None,
            finished,
            refused: None,
            gpus: vec![],
            exceeded_minutes: None,
        }));
        runner
    }

    /// What a session has heard that was opened before these jobs ended.
    fn heard(completed: &[&str]) -> (Listening, BTreeSet<String>) {
        let heard = Heard {
            opened: Some(ago(100)),
            ..Heard::default()
        };
        let listening = Listening {
            set: 7,
            capacity: 1,
            heard,
        };
        let completed = completed.iter().map(|name| (*name).to_owned());
        (listening, completed.collect())
    }

    fn seen(
        memory: &mut ScaleSetMemory,
        completed: &[&str],
        runners: &[Runner],
        now: Timestamp,
    ) -> ScaleSetFacts {
        facts(
            memory,
            Some(heard(completed)),
            runners.iter(),
            &BTreeSet::new(),
            now,
        )
    }

    #[test]
    fn a_job_that_has_ended_is_taken_off_until_github_has_told_or_a_minute_is_over() {
        let mut memory = ScaleSetMemory::default();
        let pods = [done("pool-aaaaa", ago(1)), done("pool-bbbbb", ago(200))];
        let first = seen(&mut memory, &[], &pods, NOW);
        assert_eq!(
            (first.ended, first.recount),
            (1, Some(NOW + TOLD)),
            "the other was over before the session"
        );

        // Its pod may have gone meanwhile
        let later = NOW + SignedDuration::from_secs(30);
        assert_eq!(seen(&mut memory, &[], &[], later).ended, 1);
        assert_eq!(seen(&mut memory, &["pool-aaaaa"], &[], later).ended, 0);

        // And a pod that stays does not begin anew
        let mut memory = ScaleSetMemory::default();
        seen(&mut memory, &[], &pods, NOW);
        let over = NOW + TOLD + TOLD;
        assert_eq!(seen(&mut memory, &[], &pods, over).ended, 0);
        assert_eq!(seen(&mut memory, &[], &pods, over).ended, 0);
    }

    #[test]
    fn a_runner_that_github_has_done_with_is_finishing() {
        let mut memory = ScaleSetMemory::default();
        let busy = runner(&pool(1), "pool-aaaaa", RunnerPhase::Busy);
        let found = seen(&mut memory, &["pool-aaaaa"], &[busy], NOW);
        assert!(found.finishing.contains("pool-aaaaa"));

        // And so is one that the watch does not show yet
        let unseen = BTreeSet::from(["pool-bbbbb".to_owned()]);
        let heard = Some(heard(&["pool-bbbbb"]));
        let found = facts(&mut memory, heard, [].iter(), &unseen, NOW);
        assert!(found.finishing.contains("pool-bbbbb"));
    }

    #[tokio::test]
    async fn the_end_of_a_set_is_noted_once_however_long_its_listener_is_kept() {
        // Given a pool whose scale set was found to have vanished by its listener
        let ctx = context(&Cluster::default()).await;
        let mut pool = pool(1);
        pool.status.scale_set = Some(ScaleSetStatus::default());
        let listener = Listener::of(ago(100), &[]).with_vanished(ago(60));
        ctx.listeners.with(&pool, |kept| *kept = Some(listener));

        // When the pool looks, and looks again before there is another one, then it is no second one that has vanished
        for _ in 0..2 {
            let found = look(&ctx, &pool, [].iter(), None, NOW).await.unwrap();
            assert_eq!(found.listening, None);
            assert_eq!(found.not_before, None);
        }
        let noted = |memory: &mut PoolMemory| memory.github.scale_set.vanished;
        assert_eq!(ctx.memory.with(&pool, noted), Some(ago(60)));
    }

    #[tokio::test]
    async fn one_that_may_have_been_made_is_found_by_its_name_whatever_the_spec_says() {
        // Given a pool that was about to make a scale set, and registers in another way by now
        let ctx = context(&Cluster::default()).await;
        let mut pool = pool(1);
        pool.spec_mut().registration = RegistrationKind::JitConfig;
        pool.status.scale_set = Some(ScaleSetStatus {
            name: pool.scale_set_name(),
            ..ScaleSetStatus::default()
        });
        ctx.memory
            .with(&pool, |memory| memory.github.access = Access::Granted);
        let name = pool.scale_set_name();
        let stub = service(move |line, _| match line {
            line if line.contains("&runnerGroupId=1&name=") => {
                let set = json!({"id": 7, "name": name, "runnerGroupId": 1, "labels": []});
                reply(200, &json!({"count": 1, "value": [set]}))
            }
            _ => error(418, line),
        });
        let client = stub.await.client("acme/widgets");
        // When it looks, then the one that was made after all is there
        let found = look(&ctx, &pool, [].iter(), Some(&*client), NOW).await;
        let known = found.map(|facts| facts.known);
        assert!(
            matches!(&known, Some(Known::Present(set)) if set.id == 7),
            "{known:?}"
        );
    }

    #[test]
    fn a_set_that_vanishes_again_is_looked_for_after_a_pause() {
        // Given one that has vanished, then it is looked for at once
        let mut memory = ScaleSetMemory::default();
        memory.has_vanished(ago(60), ago(60));
        assert_eq!(memory.not_before, None);
        // When it vanishes again soon, then not at once
        memory.has_vanished(NOW, NOW);
        assert_eq!(memory.not_before, Some(NOW + VANISHED_AGAIN));
    }
}
