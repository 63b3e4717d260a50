//! Two operators, each for the pools of a label or both for all: never two for one pool, one takes over the other's while a job
//! runs there, a node that one has quarantined the other leaves alone, too, and GPUs that both may use they share by weight.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::RELEASE as END_QUARANTINE;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{Ctx, SOON, node_marks, plugin::plugin};
use crate::{
    deploy,
    device_plugin::state::Device,
    helm::{NAMESPACE, RELEASE},
    node,
};

/// The values of the operators.
const FIRST: [&str; 4] = [
    "leaderElection.enabled=true",
    "poolSelector=for-first",
    "nodeTaint.enabled=true",
    "fleetPage.enabled=true",
];
const SECOND: [&str; 5] = [
    "leaderElection.enabled=true",
    "poolSelector=for-second",
    "nodeTaint.enabled=true",
    "fleetPage.enabled=true",
    "uninstallHook.enabled=false",
];
/// Release and namespace of the second.
const SECOND_RELEASE: &str = "second";
/// Release and namespace of one that is installed as the first is by default: for all pools, without leader election.
const LIKE_THE_FIRST: &str = "like-the-first";
/// The operators, as pools name them.
const FIRST_NAME: (&str, &str) = (NAMESPACE, RELEASE);
const SECOND_NAME: (&str, &str) = (SECOND_RELEASE, "second-cuda-runner-operator");
/// The labels that their selectors ask for.
const FIRST_LABEL: &str = "for-first";
const SECOND_LABEL: &str = "for-second";
/// A node without machine: a pool of one node quarantines none.
pub(super) const OTHER_NODE: &str = "elsewhere";
/// GPUs of the node.
const GPUS: usize = 4;
/// Pools that share them, with their weights, and what each has by these.
const LIGHT: (&str, usize) = ("light", 1);
const HEAVY: (&str, usize) = ("heavy", 3);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    both_for_all(ctx).await?;
    let outcome = deploy::with_values(&ctx.cluster, &FIRST, async || {
        let outcome = async {
            deploy::second(&ctx.cluster, SECOND_RELEASE, &SECOND).await?;
            beside_one_another(ctx).await
        }
        .await;
        outcome.and(deploy::remove_second(&ctx.cluster, SECOND_RELEASE).await)
    })
    .await;
    outcome.and(node_marks::clear(ctx).await)
}

/// Of two operators without leader election that serve all pools, one does.
async fn both_for_all(ctx: &Ctx) -> Result<()> {
    // Given a pool of the first operator
    ctx.apply(&pool(ctx, "all", &[])).await?;
    served(ctx, "all", FIRST_NAME).await?;
    let before = ctx.idle("all", 1).await?;

    // When another one is installed beside it, then that leaves the pool alone
    let changes = ["uninstallHook.enabled=false"];
    deploy::second(&ctx.cluster, LIKE_THE_FIRST, &changes).await?;
    let outcome = left_alone(ctx, "all", &before).await;
    outcome.and(deploy::remove_second(&ctx.cluster, LIKE_THE_FIRST).await)?;
    ctx.delete("all").await
}

async fn beside_one_another(ctx: &Ctx) -> Result<()> {
    // Given a pool for each, and one that nobody selects
    ctx.apply(&pool(ctx, "one", &[FIRST_LABEL])).await?;
    ctx.apply(&pool(ctx, "two", &[SECOND_LABEL])).await?;
    ctx.apply(&pool(ctx, "none", &[])).await?;

    // Then each is served by its own
    served(ctx, "one", FIRST_NAME).await?;
    served(ctx, "two", SECOND_NAME).await?;
    let one = ctx.idle("one", 1).await?;
    ctx.idle("two", 1).await?;
    shown_together(ctx).await?;
    overlap(ctx, &one).await?;
    moved(ctx).await?;
    quarantined(ctx).await?;

    // And the one that nobody selects waits for an operator
    let none = ctx.status("none").await?;
    ensure!(
        none.operator.is_none() && none.conditions.iter().all(|c| c.reason == "NotSeen"),
        "{none:?}"
    );
    ctx.delete("none").await?;
    ctx.delete("one").await?;
    ctx.delete("two").await?;
    shared(ctx).await?;
    ensure!(ctx.entries().await?.is_empty(), "entries are left");
    ensure!(ctx.scale_sets().await?.is_empty(), "scale sets are left");
    Ok(())
}

/// A pool with these labels, whose jobs ask for its name.
fn pool(ctx: &Ctx, name: &str, labels: &[&str]) -> Value {
    let mut pool = ctx.pool(name, json!({"scaling": {"minRunners": 1, "maxRunners": 1}}));
    let labels: BTreeMap<&str, &str> = labels.iter().map(|label| (*label, "true")).collect();
    pool["metadata"]["labels"] = json!(labels);
    pool
}

/// Waits until a pool names this operator.
async fn served(ctx: &Ctx, pool: &str, by: (&str, &str)) -> Result<()> {
    let what = format!("{pool} to be served by {}/{}", by.0, by.1);
    ctx.wait_for(&what, SOON, async || {
        let operator = ctx.status(pool).await?.operator;
        Ok(operator.filter(|o| (o.namespace.as_str(), o.name.as_str()) == by))
    })
    .await?;
    Ok(())
}

/// `kubectl cudarunner top` puts together what both say: no operator's runner is a stranger's, and the pool of neither is there.
async fn shown_together(ctx: &Ctx) -> Result<()> {
    // The Services lead to the pages a moment after the pods are ready, and what these show is a moment behind
    let mut document = Value::Null;
    let together = ctx
        .wait_for("both operators' documents", SOON, async || {
            let screen = plugin(ctx, 0, &["top", "-o", "json"]).await?;
            document = serde_json::from_str(&screen)?;
            let further = document["furtherOperators"].as_array().map_or(0, Vec::len);
            let pools = document["pools"].as_array().into_iter().flatten();
            let ours = pools.filter(|pool| pool["namespace"] == ctx.namespace);
            let names: Vec<_> = ours.filter_map(|pool| pool["name"].as_str()).collect();
            let devices = &document["devices"];
            let are_both = document["operator"].is_object() && further == 1;
            let has_all = names == ["none", "one", "two"]
                && devices["Idle"] == 2
                && devices["NotOurs"].is_null();
            Ok((are_both && has_all).then_some(()))
        })
        .await;
    together.with_context(|| format!("{document:#}"))?;
    let screen = plugin(ctx, 0, &["top"]).await?;
    ensure!(screen.matches("From the operator").count() == 2, "{screen}");
    // And `why` of a job knows the pools of both
    let known = plugin(ctx, 1, &["why", "nobody", "--job"]).await?;
    ensure!(
        known.contains(&format!("{}/two (", ctx.namespace)),
        "{known}"
    );
    Ok(())
}

/// A pool that both select stays with the one that has it.
async fn overlap(ctx: &Ctx, before: &[String]) -> Result<()> {
    // When the second operator selects a pool of the first one's, too
    ctx.apply(&pool(ctx, "one", &[FIRST_LABEL, SECOND_LABEL]))
        .await?;

    left_alone(ctx, "one", before).await
}

/// The second operator says that it leaves a pool of the first one's alone, whose runners stay these.
async fn left_alone(ctx: &Ctx, pool: &str, before: &[String]) -> Result<()> {
    ctx.wait_for("the second operator to leave it alone", SOON, async || {
        let events = ctx.events("ServedByAnotherOperator").await?;
        let of_pool = |e: &&_| is_about(e, pool);
        Ok(events.iter().find(of_pool).map(drop))
    })
    .await?;
    // And the runner is the same, and the only one
    served(ctx, pool, FIRST_NAME).await?;
    let names: Vec<_> = pods_of(ctx, pool)
        .await?
        .iter()
        .map(Pod::name_any)
        .collect();
    ensure!(names == before, "{names:?} instead of {before:?}");
    Ok(())
}

/// A pool's label is moved while its job runs.
async fn moved(ctx: &Ctx) -> Result<()> {
    let job = ctx.queue_for("held", &["one"], "true", true).await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    let pods = pods_of(ctx, "one").await?;
    let [pod] = &pods[..] else {
        anyhow::bail!("not one runner: {pods:?}");
    };
    let before = registrar(pod)?;

    // When the first operator selects the pool no more
    ctx.apply(&pool(ctx, "one", &[SECOND_LABEL])).await?;

    // Then the second one takes it over, and the runner that runs its job goes on
    served(ctx, "one", SECOND_NAME).await?;
    ctx.wait_for("the second operator to say so", SOON, async || {
        let events = ctx.events("TakenOver").await?;
        let of_pool = |e: &&_| is_about(e, "one");
        Ok(events.iter().find(of_pool).map(drop))
    })
    .await?;
    ctx.github.release(job).await?;
    let view = ctx.succeeded(job).await?;
    ensure!(
        view.assignments == 1 && view.runner.as_deref() == Some(&runner),
        "{view:?}"
    );

    // And the next runner is its own: one, which takes the next job
    let next = ctx.other_ready("one", &runner).await?;
    ctx.gone(&runner).await?;
    let pods = pods_of(ctx, "one").await?;
    let names: Vec<_> = pods.iter().map(Pod::name_any).collect();
    ensure!(names == [next.as_str()], "{names:?}");
    ensure!(
        pods.first().map(registrar).transpose()? != Some(before),
        "the runner asks the first operator's registrar"
    );
    let job = ctx.queue_for("next", &["one"], "true", false).await?;
    let view = ctx.succeeded(job).await?;
    ensure!(view.runner.as_deref() == Some(&next), "{view:?}");
    // And the job that ran across is noted once
    ctx.wait_for("both jobs in the status", SOON, async || {
        let jobs = ctx.status("one").await?.last_jobs;
        Ok((jobs.len() == 2).then_some(()))
    })
    .await
}

/// What one operator quarantines the other leaves alone.
async fn quarantined(ctx: &Ctx) -> Result<()> {
    // Given that the first operator has a pool again, and a second node is known
    ctx.apply(&pool(ctx, "one", &[FIRST_LABEL])).await?;
    served(ctx, "one", FIRST_NAME).await?;
    ctx.other_ready("one", "").await?;
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    nodes.create(&PostParams::default(), &elsewhere()?).await?;
    let offers = json!({"status": {"allocatable": {"nvidia.com/gpu": "4"}, "capacity": {"nvidia.com/gpu": "4"}}});
    nodes
        .patch_status(OTHER_NODE, &PatchParams::default(), &Patch::Merge(offers))
        .await?;
    let outcome = found_by_the_other(ctx).await;
    nodes.delete(OTHER_NODE, &DeleteParams::default()).await?;
    outcome?;
    ctx.idle("one", 1).await?;
    ctx.idle("two", 1).await?;
    Ok(())
}

async fn found_by_the_other(ctx: &Ctx) -> Result<()> {
    // When the first operator's next runner finds devices that compute wrongly
    ctx.devices(Device::compute_wrongly)?;
    let job = ctx.queue_for("last", &["one"], "true", false).await?;
    ctx.succeeded(job).await?;
    ctx.condition("one", "GpuHealthy", "False", "NodesQuarantined")
        .await?;

    // Then the second operator's pool leaves the node alone, too, and says who has found it
    let message = ctx
        .condition("two", "GpuHealthy", "False", "NodesQuarantined")
        .await?;
    ensure!(
        message.contains(node::NAME) && message.contains("found by the pool side-by-side/one"),
        "{message}"
    );

    // And the node is marked, and stays so: neither takes off what the other's pool asks for
    marked(ctx, true).await?;

    // When they are well again, and the quarantine is ended at the one that has found it, then it is over for both
    ctx.devices(|_| {})?;
    ctx.annotate("one", END_QUARANTINE, "all now").await?;
    ctx.wait_for("the second pool to be free again", SOON, async || {
        let conditions = ctx.status("two").await?.conditions;
        let mut healthy = conditions.into_iter().filter(|c| c.type_ == "GpuHealthy");
        Ok(healthy.find(|c| c.status != "False").map(drop))
    })
    .await?;
    marked(ctx, false).await
}

/// Waits until the node has the taint, or has it no more.
async fn marked(ctx: &Ctx, is_marked: bool) -> Result<()> {
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    ctx.wait_for("the taint to be as it should", SOON, async || {
        let node = nodes.get(node::NAME).await?;
        let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let has = taints.any(|taint| taint.key == node_marks::TAINT);
        Ok((has == is_marked).then_some(()))
    })
    .await
}

/// Pools of both operators share the node's GPUs by weight, and neither offers what the other has.
async fn shared(ctx: &Ctx) -> Result<()> {
    // Given a scale set of each, one of which counts three times, and either of which could have all
    for ((name, weight), label) in [(LIGHT, FIRST_LABEL), (HEAVY, SECOND_LABEL)] {
        let mut pool = pool(ctx, name, &[label]);
        pool["spec"]["scaling"] = json!({"maxRunners": 2 * GPUS, "weight": weight});
        ctx.apply(&pool).await?;
    }
    // Then both together offer what is there
    ctx.wait_for("offers by weight", SOON, async || {
        let mut offers = vec![];
        for (name, _) in [LIGHT, HEAVY] {
            let set = ctx.status(name).await?.scale_set;
            offers.push(set.map(|set| set.capacity).unwrap_or_default());
        }
        Ok((offers == [1, 3]).then_some(()))
    })
    .await?;

    // When each has a job for each GPU that it offers
    let mut jobs = BTreeMap::new();
    for (name, offered) in [LIGHT, HEAVY] {
        for number in 0..offered {
            let title = format!("{name}-{number}");
            let labels = ["self-hosted", name];
            let job = ctx.queue_for(&title, &labels, "true", true).await?;
            jobs.insert(job, name);
        }
    }
    // Then all run, and beside their runners there is one pod at most: of the pool whose turn is next
    ctx.wait_for("jobs on all GPUs", SOON, async || {
        let pods = ctx.pods().await?.len();
        ensure!(pods <= GPUS + 1, "{pods} runners for {GPUS} GPUs");
        let mut running: BTreeMap<&str, usize> = BTreeMap::new();
        for (job, name) in &jobs {
            let has_begun = ctx.github.job(*job).await?.started_at.is_some();
            *running.entry(name).or_default() += usize::from(has_begun);
        }
        Ok((running == BTreeMap::from([LIGHT, HEAVY])).then_some(()))
    })
    .await?;
    ctx.wait_for("the pool to say what it would have", SOON, async || {
        let demand = ctx.status(HEAVY.0).await?.demand;
        Ok(demand.filter(|demand| demand.wanted > 1).map(drop))
    })
    .await?;

    // And all end well
    for job in jobs.keys() {
        ctx.github.release(*job).await?;
    }
    for job in jobs.keys() {
        ctx.succeeded(*job).await?;
    }
    ctx.delete(LIGHT.0).await?;
    ctx.delete(HEAVY.0).await
}

/// A node that takes no pods, and that is no machine.
pub(super) fn elsewhere() -> Result<Node> {
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": OTHER_NODE,
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": OTHER_NODE,
                "nvidia.com/gpu.present": "true",
            },
        },
        "spec": {"unschedulable": true},
    }))?)
}

/// The pods of a pool, by name.
async fn pods_of(ctx: &Ctx, pool: &str) -> Result<Vec<Pod>> {
    let of = ListParams::default().labels(&format!("{}={pool}", cudarunner_crds::POOL_LABEL));
    let mut pods = ctx.api::<Pod>().list(&of).await?.items;
    pods.sort_by_key(Pod::name_any);
    Ok(pods)
}

/// The registrar that a runner's pod asks.
fn registrar(pod: &Pod) -> Result<String> {
    let spec = pod.spec.iter();
    let all = spec.flat_map(|spec| spec.init_containers.iter().flatten());
    let mut env = all.flat_map(|container| container.env.iter().flatten());
    let url = env.find(|variable| variable.name == gate_report::contract::gate::REGISTRAR_URL);
    let url = url.and_then(|variable| variable.value.clone());
    url.context("the pod names no registrar")
}

fn is_about(event: &k8s_openapi::api::events::v1::Event, pool: &str) -> bool {
    let about = event.regarding.as_ref();
    about.is_some_and(|about| about.name.as_deref() == Some(pool))
}
