//! `cargo e2e faults`: every request of a pool's life meets every fault.
//!
//! A life without a fault says which requests there are. Then each request and each fault is a case: a pool, an
//! operator and a proxy of its own, which does harm to this one request, and a life that must go on all the same.

mod case;
mod events;
mod fault;
mod life;
pub(crate) mod node;
mod operator;
mod pace;
mod progress;
mod proxy;
mod request;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    certs::Certificates,
    cluster::{Cluster, Options},
    deploy,
    images::{self, Profile},
    random::Random,
    report::Story,
    simulator,
};
use case::{Ground, Outcome, command, plans};
pub use fault::Fault;
pub use life::Scenario;
use pace::Pace;
use progress::Plan;
use proxy::Keys;

/// The operator is built as this program is.
const PROFILE: Profile = if cfg!(debug_assertions) {
    Profile::Dev
} else {
    Profile::Measure
};
/// Cases at a time, where nothing else is said: most of them wait most of the time.
const AT_ONCE: usize = if cfg!(debug_assertions) { 32 } else { 64 };
/// No case is begun that would hardly end in time.
const LAST: Duration = Duration::from_secs(45);

/// What to try.
#[derive(Args, Clone, Debug, Default)]
pub struct Run {
    /// Only this life; may be given more than once.
    #[arg(long = "scenario", value_name = "NAME")]
    pub scenarios: Vec<Scenario>,
    /// Only this fault; may be given more than once.
    #[arg(long = "fault", value_name = "NAME")]
    pub faults: Vec<Fault>,
    /// Only this request: its number in the list, or its name, as in `kubernetes:create:pods#1`.
    #[arg(long, value_name = "N")]
    pub only: Option<String>,
    /// Only this case: life, fault and request, as a red one prints them; may be given more than once.
    #[arg(long = "case", value_name = "CASE", conflicts_with_all = ["scenarios", "faults", "only"])]
    pub cases: Vec<String>,
    /// Only this part of so many, as in `2/4`. A case is always in the same part.
    #[arg(long, value_name = "K/N")]
    pub part: Option<Part>,
    /// Cases at a time.
    #[arg(long, default_value_t = AT_ONCE)]
    pub at_once: usize,
    /// The order of the cases, and so the sample; another one each time where it is left out.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Every case, however long it takes.
    #[arg(long, conflicts_with = "minutes")]
    pub all: bool,
    /// How long to take.
    #[arg(long, default_value_t = 10)]
    pub minutes: u64,
    /// Only say which requests there are.
    #[arg(long)]
    pub list: bool,
    /// Also write what came of each case as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Run {
    /// What `cargo e2e test` tries: fewer at a time, so that a build that is not optimised leaves two cores some time.
    pub fn sample() -> Self {
        Self {
            minutes: 3,
            at_once: AT_ONCE / 2,
            ..Self::default()
        }
    }
}

/// A part of all cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    number: u64,
    of: u64,
}

impl Part {
    /// Whether the case of this name is in it: by the name alone, since lives differ a little from run to run.
    fn has(self, name: &str) -> bool {
        let digest = Sha256::digest(name);
        let start = digest.first_chunk().copied().unwrap_or_default();
        u64::from_be_bytes(start) % self.of == self.number - 1
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, of) = text.split_once('/').unwrap_or_default();
        match (number.parse(), of.parse()) {
            (Ok(number), Ok(of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err("a part is written K/N, as in 2/4".to_owned()),
        }
    }
}

/// A case that was tried.
struct Tried {
    scenario: Scenario,
    plan: Plan,
    outcome: Outcome,
}

/// Tries the cases on a cluster of their own; fails where one is red.
pub async fn run(run: &Run, story: &Story) -> Result<()> {
    let begun = Instant::now();
    let seed = run.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
        now.map_or(1, |now| u64::from(now.subsec_nanos()))
    });
    tokio::task::spawn_blocking(|| images::build_packages(PROFILE, &["cuda-runner-operator"]))
        .await??;
    let options = Options {
        node: false,
        // Eight GPUs each.
        kwok_nodes: run.at_once.div_ceil(2),
        ..Options::default()
    };
    let name = format!("faults-{}", std::process::id());
    let cluster = Cluster::up(&name, options, &Story::silent()).await?;
    let tried = async {
        let ground = furnish(&cluster).await?;
        story.step("cluster ready");
        let tried = Box::pin(on(&ground, run, seed, begun, story)).await?;
        anyhow::Ok((tried, ground.pace.percent()))
    }
    .await;
    cluster.down()?;
    let (tried, pace) = tried?;
    if let Some(file) = &run.json {
        write(file, seed, &tried)?;
    }
    if run.list {
        return Ok(());
    }
    let red: Vec<&Tried> = tried
        .iter()
        .filter(|one| !one.outcome.wrongs.is_empty())
        .collect();
    let met = tried.iter().filter(|one| one.outcome.met).count();
    println!(
        "{} cases with seed {seed}: in {met} of them the fault came to pass, {} are red; the clock went at {pace:.0} % of its speed",
        tried.len(),
        red.len()
    );
    for one in &red {
        println!("\n{}", tell(one));
    }
    ensure!(
        red.is_empty(),
        "{} of {} cases are red",
        red.len(),
        tried.len()
    );
    Ok(())
}

/// The charts for the CRD and the rights, a token of the operator's account, and the keys of the proxies.
async fn furnish(cluster: &Cluster) -> Result<Ground> {
    deploy::charts(cluster, &["leaderElection.enabled=true"]).await?;
    let client = cluster.client().await?;
    // For its kubeconfig.
    deploy::beside(cluster, &client, PROFILE, "info").await?;
    let certs = Certificates::create(&cluster.dir.join("faults"), "Proxy of faults")?;
    certs.server("proxy", &["localhost"], &[[127, 0, 0, 1].into()])?;
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let kubernetes: serde_json::Value = serde_json::from_slice(&fs::read(cluster.kubeconfig())?)?;
    let kubernetes = kubernetes["clusters"][0]["cluster"]["server"].as_str();
    let authority = read(&certs.path("ca.crt"))?;
    let keys = Keys::new(
        &(read(&certs.path("proxy.crt"))? + &authority),
        &read(&certs.path("proxy.key"))?,
        &[
            read(&cluster.dir.join("pki/ca.crt").to_string_lossy())?,
            simulator::authority(&cluster.dir)?,
        ],
        kubernetes
            .context("the kubeconfig names no server")?
            .to_owned(),
        cluster.github.clone(),
    )?;
    Ok(Ground {
        cluster: cluster.clone(),
        keys,
        pace: Pace::of(&cluster.dir),
        authority,
    })
}

async fn on(
    ground: &Ground,
    run: &Run,
    seed: u64,
    begun: Instant,
    story: &Story,
) -> Result<Vec<Tried>> {
    let named = run.cases.iter().map(|text| case::named(text));
    let named = named.collect::<Result<Vec<_>>>()?;
    let lives = lives(ground, run, &named, story).await?;
    if run.list {
        return Ok(vec![]);
    }
    let mut cases = cases(run, named, &lives)?;
    shuffle(&mut cases, seed);
    spread(&mut cases);
    story.step(&format!("{} cases, seed {seed}", cases.len()));
    let limit = (!run.all).then(|| Duration::from_mins(run.minutes).saturating_sub(LAST));
    let in_time = |_: &_| std::future::ready(limit.is_none_or(|limit| begun.elapsed() < limit));
    stream::iter(cases.into_iter().enumerate())
        .take_while(in_time)
        .map(async |(number, (scenario, plan))| {
            if number > 0 && number.is_multiple_of(50) {
                story.step(&format!("{number} cases"));
            }
            let usual = lives.get(&scenario).map(|life| life.seen.len());
            let name = format!("case-{number}");
            let outcome = ground.run(&name, scenario, Some(plan.clone()), usual).await;
            let outcome = outcome.with_context(|| command(scenario, &plan))?;
            let tried = Tried {
                scenario,
                plan,
                outcome,
            };
            if !tried.outcome.wrongs.is_empty() {
                let seconds = tried.outcome.seconds;
                story.step(&format!("red after {seconds:.0} s: {}", tell(&tried)));
            }
            anyhow::Ok(tried)
        })
        .buffer_unordered(run.at_once)
        .try_collect()
        .await
}

/// Lives without a fault: they say which requests there are.
async fn lives(
    ground: &Ground,
    run: &Run,
    named: &[(Scenario, Plan)],
    story: &Story,
) -> Result<BTreeMap<Scenario, Outcome>> {
    let scenarios = match named {
        [] => chosen(&run.scenarios),
        named => {
            let all: BTreeSet<Scenario> = named.iter().map(|(scenario, _)| *scenario).collect();
            all.into_iter().collect()
        }
    };
    let lives: BTreeMap<Scenario, Outcome> = stream::iter(scenarios.into_iter().enumerate())
        .map(async |(number, scenario)| {
            let outcome = ground
                .run(&format!("life-{number}"), scenario, None, None)
                .await?;
            anyhow::Ok((scenario, outcome))
        })
        .buffer_unordered(run.at_once)
        .try_collect()
        .await?;
    for (scenario, outcome) in &lives {
        let requests = outcome.seen.len();
        story.step(&format!(
            "{scenario:?}: {requests} requests in {:.0} s",
            outcome.seconds
        ));
        if !outcome.wrongs.is_empty() {
            bail!(
                "{scenario:?} without a fault: {}; its requests were {}",
                outcome.wrongs.join("; "),
                outcome.seen.join(", ")
            );
        }
        if run.list {
            outcome
                .seen
                .iter()
                .enumerate()
                .for_each(|(at, name)| println!("{:4} {name}", at + 1));
        }
    }
    Ok(lives)
}

/// Those that were named, or each fault at each request of these lives.
fn cases(
    run: &Run,
    named: Vec<(Scenario, Plan)>,
    lives: &BTreeMap<Scenario, Outcome>,
) -> Result<Vec<(Scenario, Plan)>> {
    let mut cases = named;
    for (scenario, outcome) in lives.iter().filter(|_| run.cases.is_empty()) {
        let mut of_life = plans(&outcome.counts, &chosen(&run.faults), scenario.replicas());
        if let Some(only) = &run.only {
            let (name, number) = request(only, outcome)?;
            of_life.retain(|plan| plan.kind.to_string() == name && plan.number == number);
        }
        cases.extend(of_life.into_iter().map(|plan| (*scenario, plan)));
    }
    if let Some(part) = run.part {
        cases.retain(|(scenario, plan)| part.has(&case::name(*scenario, plan)));
    }
    Ok(cases)
}

/// Those that were named, or all.
fn chosen<T: ValueEnum + Clone>(named: &[T]) -> Vec<T> {
    if named.is_empty() {
        T::value_variants().to_vec()
    } else {
        named.to_vec()
    }
}

/// The request that a number of the list, or a name, stands for.
fn request(only: &str, life: &Outcome) -> Result<(String, usize)> {
    match only.parse::<usize>() {
        Ok(number) => {
            let name = number.checked_sub(1).and_then(|at| life.seen.get(at));
            case::parse(name.with_context(|| format!("the list has no number {number}"))?)
        }
        Err(_) => case::parse(only),
    }
}

/// The order of a seed.
fn shuffle<T>(all: &mut [T], seed: u64) {
    let mut random = Random::of(seed);
    for last in (1..all.len()).rev() {
        all.swap(last, random.below(last + 1));
    }
}

/// One of each life and fault, then the next of each: so that a short sample has something of everything.
fn spread(cases: &mut [(Scenario, Plan)]) {
    let mut ranks = BTreeMap::<_, usize>::new();
    let mut next = |scenario: Scenario, fault: Fault| {
        let rank = ranks.entry((scenario, fault)).or_default();
        *rank += 1;
        *rank
    };
    cases.sort_by_cached_key(|(scenario, plan)| next(*scenario, plan.fault));
}

/// A case in words.
fn tell(tried: &Tried) -> String {
    let Tried {
        scenario,
        plan,
        outcome,
    } = tried;
    format!(
        "{scenario:?}, {}#{}, {}: {}\n    {}",
        plan.kind,
        plan.number,
        plan.fault,
        outcome.wrongs.join("; "),
        command(*scenario, plan)
    )
}

fn write(file: &Path, seed: u64, tried: &[Tried]) -> Result<()> {
    let cases: Vec<_> = tried
        .iter()
        .map(|one| {
            json!({
                "scenario": format!("{:?}", one.scenario), "request": format!("{}#{}", one.plan.kind, one.plan.number),
                "fault": one.plan.fault.to_string(), "met": one.outcome.met, "wrongs": one.outcome.wrongs,
                "seconds": one.outcome.seconds, "recovery": one.outcome.recovery.map(|r| r.as_secs_f64()),
                "command": command(one.scenario, &one.plan),
            })
        })
        .collect();
    fs::write(
        file,
        format!("{:#}\n", json!({"seed": seed, "cases": cases})),
    )
    .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_a_whole_and_share_nothing() {
        let parts = ["1/3", "2/3", "3/3"].map(|text| text.parse::<Part>().unwrap());
        for case in 0..100 {
            let name = format!("ephemeral lost kubernetes:create:pods#{case}");
            assert_eq!(parts.iter().filter(|part| part.has(&name)).count(), 1);
        }
        for wrong in ["", "0/3", "4/3", "1", "a/b", "1/0"] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_short_sample_has_something_of_everything() {
        let case = |scenario, fault, number| {
            let plan = Plan {
                kind: "kubernetes:create:pods".parse().unwrap(),
                number,
                fault,
            };
            (scenario, plan)
        };
        let mut cases: Vec<_> = (1..100)
            .map(|number| case(Scenario::Ephemeral, Fault::Lost, number))
            .collect();
        cases.push(case(Scenario::Checks, Fault::Lost, 1));
        cases.push(case(Scenario::Ephemeral, Fault::Delay, 1));
        spread(&mut cases);
        let first: BTreeSet<_> = cases[..3]
            .iter()
            .map(|(life, plan)| (*life, plan.fault))
            .collect();
        assert_eq!(first.len(), 3);
        assert_eq!(cases.len(), 101);
    }

    #[test]
    fn a_seed_gives_one_order_and_loses_nothing() {
        let order = |seed| {
            let mut all: Vec<u32> = (0..100).collect();
            shuffle(&mut all, seed);
            all
        };
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
        let mut sorted = order(7);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
