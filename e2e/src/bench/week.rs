//! A week of two fleets with the same jobs and the same GPU faults: the gate of one looks, that of the other lets all pass.

mod trace;

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::RELEASE;
use futures::future::{BoxFuture, try_join_all};
use gate_report::{Context, Failure, Outcome, Report, Step, fault};
use k8s_openapi::api::core::v1::{Node as KubernetesNode, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{
    Bed, Run,
    bed::{GPUS, gated_pool},
    figure::{Figure, number},
    player,
};
use crate::{
    deploy::Beside,
    faults::node::{Device, Devices, Node},
    kwok,
    random::Random,
    report::Story,
    suites::{Ctx, context::merge},
};
use trace::{Fault, Trace, WEEK};

/// So long is an hour here.
const HOUR: Duration = Duration::from_secs(10);
/// The pools, each with nodes of its own.
const FLEETS: [&str; 2] = ["gate", "no-gate"];
/// The one whose gate looks.
const LOOKS: usize = 0;
/// Nodes of each: what two cores carry.
const NODES: usize = 4;
/// Runners that wait for jobs. An assumption.
const WAITING: usize = 4;
/// How long a job takes to fail on a broken GPU, in hours. An assumption: it meets the GPU soon.
const AT_ONCE: f64 = 1.0 / 60.0;
/// `CUDA_ERROR_ECC_UNCORRECTABLE`: what a broken one answers.
const CODE: i32 = 214;
/// Hours. Later jobs would have another shape than the recorded one.
const LATEST: f64 = 1.0;
/// How often the quarantine is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Seconds, longer than the week: nobody misses an agent that is in a job.
const PATIENCE: u32 = 86_400;

/// What is said of a fleet, and in which unit. The first four of the hours are the operator's own uses.
const FIGURES: [(&str, &str); 9] = [
    (ENDED_WELL, "jobs"),
    (BEGUN_BROKEN, "jobs"),
    (BROKEN_MIDWAY, "jobs"),
    ("gate", HOURS),
    ("idle", HOURS),
    ("job", HOURS),
    ("lost", HOURS),
    (LOST_JOBS, HOURS),
    (QUARANTINED, HOURS),
];
const ENDED_WELL: &str = "jobs that ended well";
const BEGUN_BROKEN: &str = "jobs lost, begun on a broken GPU";
const BROKEN_MIDWAY: &str = "jobs lost, their GPU broke";
const LOST_JOBS: &str = "in jobs that were lost";
const QUARANTINED: &str = "in quarantine, without a runner";
const HOURS: &str = "GPU hours";

/// Counts of a fleet by what is said, hours in the week's time.
type Tally = BTreeMap<String, f64>;

/// Jobs lost to GPUs, and hours by use, of each fleet.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let mut weeks = vec![];
    for seed in (1..).take(run.runs) {
        let gpus = NODES * GPUS;
        let Trace { jobs, faults } = Trace::of(seed, gpus);
        let (jobs, faults) = (jobs.len(), faults.iter().flatten().count());
        run.story.step(&format!(
            "a week of two fleets of {gpus} GPUs, seed {seed}: {jobs} jobs and {faults} faults for each"
        ));
        weeks.push(Bed::with(2 * gpus, async |bed| one(bed, run, seed).await).await?);
    }
    let mut figures = vec![];
    for (number, fleet) in FLEETS.into_iter().enumerate() {
        for (what, unit) in FIGURES {
            let of = |week: &Vec<Tally>| week[number].get(what).copied().unwrap_or_default();
            figures.push(Figure {
                name: format!("a week, {fleet}: {what}"),
                unit,
                ours: weeks.iter().map(of).collect(),
                floor: vec![],
                budget: None,
            });
        }
    }
    Ok(figures)
}

async fn one(bed: &Bed, run: &Run, seed: u64) -> Result<Vec<Tally>> {
    let ctx = bed.ctx("week").await?;
    let settings = json!({"offlineSeconds": PATIENCE, "lostSeconds": PATIENCE});
    ctx.github.change_settings(&settings).await?;
    bed.started().await?;
    for (number, fleet) in FLEETS.into_iter().enumerate() {
        let nodes: Api<KubernetesNode> = Api::all(ctx.client.clone());
        let label = Patch::Merge(json!({"metadata": {"labels": {"fleet": fleet}}}));
        for node in number * NODES..(number + 1) * NODES {
            let params = PatchParams::default();
            nodes.patch(&kwok::name(node), &params, &label).await?;
        }
        ctx.apply(&ctx.pool(fleet, spec(fleet))).await?;
    }
    let week = Arc::new(Week::begin(seed));
    let node = Node::start(&ctx, Arc::<Week>::clone(&week));
    tokio::try_join!(queue(&ctx, &week), look(&ctx, &week, &run.story))?;
    for fleet in FLEETS {
        ctx.delete(fleet).await?;
    }
    drop(node);
    let mut tallies = week.state().tallies.clone();
    let log = bed.cluster.supervisor.log(Beside::NAME);
    let log = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    for line in lines.filter(|line: &Value| line["target"] == "runner_ended") {
        let fleet = FLEETS.iter().position(|fleet| line["pool"] == *fleet);
        let tally = fleet.and_then(|fleet| tallies.get_mut(fleet));
        let tally = tally.context("a line of a pool that there is not")?;
        for (by, seconds) in line["seconds"].as_object().into_iter().flatten() {
            let hours = seconds.as_f64().unwrap_or_default() / HOUR.as_secs_f64();
            *tally.entry(by.clone()).or_default() += hours;
        }
    }
    Ok(tallies)
}

fn spec(fleet: &str) -> Value {
    let mut spec = gated_pool(0);
    let own = json!({
        "replicas": null,
        "labels": ["self-hosted", fleet],
        "scaling": {"minRunners": WAITING, "maxRunners": NODES * GPUS},
        // Minutes are not compressed: it ends with the repair.
        "smoke": {"quarantineMinutes": 1440},
        "template": {"spec": {"nodeSelector": {"fleet": fleet}}},
    });
    merge(&mut spec, own);
    spec
}

/// Queues each job for both, at its time.
async fn queue(ctx: &Ctx, week: &Week) -> Result<()> {
    for (number, job) in week.trace.jobs.iter().enumerate() {
        sleep_until(week.moment(job.at)).await;
        let late = week.now() - job.at;
        ensure!(
            late < LATEST,
            "a job came {late:.1} h late: the machine is too slow for this, or has other things to do"
        );
        let name = format!("job-{number}");
        let name = name.as_str();
        try_join_all(FLEETS.map(async |fleet| {
            let labels = ["self-hosted", fleet];
            ctx.queue_for(name, &labels, "true", false).await
        }))
        .await?;
    }
    Ok(())
}

/// Counts the hours in quarantine until the week is over, and ends that of a node whose GPUs are repaired.
async fn look(ctx: &Ctx, week: &Week, story: &Story) -> Result<()> {
    let fleet = FLEETS[LOOKS];
    let mut before = week.now();
    while before < WEEK {
        sleep_until(Instant::now() + LOOK).await;
        let (status, now) = (ctx.status(fleet).await?, week.now());
        let mut repaired = None;
        for entry in &status.quarantine {
            let Some(node) = number_of(&entry.node) else {
                continue;
            };
            let mut state = week.state();
            let free = number(state.free[node].len())?;
            state.add(LOOKS, QUARANTINED, (now - before) * free);
            let is_sound = |gpu| week.trace.fault(node * GPUS + gpu, now, now).is_none();
            if (0..GPUS).all(is_sound) {
                repaired = Some(&entry.node);
            }
        }
        if let Some(node) = repaired {
            let release = format!("{node} {now}");
            ctx.annotate(fleet, RELEASE, &release).await?;
        }
        if (before / 24.0).floor() < (now / 24.0).floor() {
            let lost = week.state().lost();
            let day = (now / 24.0).floor();
            story.step(&format!("day {day}: {lost:?} jobs lost, of {FLEETS:?}"));
        }
        before = now;
    }
    Ok(())
}

/// The number of a simulated node.
fn number_of(node: &str) -> Option<usize> {
    (0..FLEETS.len() * NODES).find(|number| kwok::name(*number) == node)
}

/// The week, and the GPUs in it.
struct Week {
    trace: Trace,
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    /// GPUs without a runner, of each node.
    free: Vec<Vec<usize>>,
    random: Random,
    /// Of each fleet.
    tallies: Vec<Tally>,
}

impl State {
    /// Jobs of each fleet.
    fn lost(&self) -> Vec<f64> {
        let count = |tally: &Tally, what: &str| tally.get(what).copied().unwrap_or_default();
        let of = |tally| count(tally, BEGUN_BROKEN) + count(tally, BROKEN_MIDWAY);
        self.tallies.iter().map(of).collect()
    }

    fn add(&mut self, fleet: usize, what: &str, count: f64) {
        *self.tallies[fleet].entry(what.to_owned()).or_default() += count;
    }
}

impl Week {
    fn begin(seed: u64) -> Self {
        let state = State {
            free: vec![(0..GPUS).collect(); FLEETS.len() * NODES],
            random: Random::of(seed),
            tallies: vec![Tally::new(); FLEETS.len()],
        };
        Self {
            trace: Trace::of(seed, NODES * GPUS),
            begun: Instant::now(),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hours since its beginning.
    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() / HOUR.as_secs_f64()
    }

    fn moment(&self, hours: f64) -> Instant {
        self.begun + HOUR.mul_f64(hours)
    }
}

impl Devices for Week {
    /// Any that is free, as a kubelet gives them where the device plugin prefers none.
    fn take(self: Arc<Self>, pod: &Pod) -> Box<dyn Device> {
        let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        let node = name.and_then(|name| number_of(name)).unwrap_or_default();
        let mut state = self.state();
        let State { free, random, .. } = &mut *state;
        let free = &mut free[node];
        let number = if free.is_empty() {
            // The one before it on this node has ended, and not let go yet.
            random.below(GPUS)
        } else {
            free.swap_remove(random.below(free.len()))
        };
        drop(state);
        Box::new(Gpu {
            week: self,
            node,
            number,
        })
    }
}

/// A runner's GPU.
struct Gpu {
    week: Arc<Week>,
    node: usize,
    /// Which of the node's.
    number: usize,
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let free = &mut self.week.state().free[self.node];
        if !free.contains(&self.number) {
            free.push(self.number);
        }
    }
}

impl Gpu {
    fn fleet(&self) -> usize {
        self.node / NODES
    }

    /// The first fault before the end that is not over by now. Both fleets have the same.
    fn fault(&self, now: f64, end: f64) -> Option<Fault> {
        let device = self.node % NODES * GPUS + self.number;
        self.week.trace.fault(device, now, end)
    }

    /// Whether the job went well.
    async fn job(&self, key: &str) -> bool {
        let now = self.week.now();
        let number = key.strip_prefix("job-").and_then(|n| n.parse().ok());
        let job = number.and_then(|number: usize| self.week.trace.jobs.get(number));
        let Some(job) = job.filter(|_| now < WEEK) else {
            return true;
        };
        let end = (now + job.hours).min(WEEK);
        let fault = self.fault(now, end);
        let at_once = fault.is_some_and(|fault| fault.from <= now);
        let end = match fault {
            Some(_) if at_once => end.min(now + AT_ONCE),
            Some(fault) => fault.from,
            None => end,
        };
        sleep_until(self.week.moment(end)).await;
        let mut state = self.week.state();
        let what = match fault {
            None => ENDED_WELL,
            Some(_) if at_once => BEGUN_BROKEN,
            Some(_) => BROKEN_MIDWAY,
        };
        state.add(self.fleet(), what, 1.0);
        if fault.is_some() {
            state.add(self.fleet(), LOST_JOBS, end - now);
        }
        fault.is_none()
    }
}

impl Device for Gpu {
    fn report(&self, pod: &Pod) -> Report {
        let mut report = player::report(pod);
        let uuid = format!("GPU-{}-{}", kwok::name(self.node), self.number);
        for device in &mut report.devices {
            device.uuid.clone_from(&uuid);
        }
        let now = self.week.now();
        if self.fleet() == LOOKS && self.fault(now, now).is_some() {
            let step = Step::Synchronize;
            let found = fault(CODE, Context::at(step));
            report.outcome = Outcome::Failed;
            report.failure = Some(Failure {
                class: found.class,
                step,
                code: Some(CODE),
                code_name: found.name.to_owned(),
                call: None,
                device: Some(0),
                uuid: Some(uuid),
                message: found.meaning.to_owned(),
                advice: found.advice.to_owned(),
                confidence: found.confidence,
                shared: false,
            });
        }
        report
    }

    fn run<'a>(&'a self, job: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(self.job(job))
    }
}
