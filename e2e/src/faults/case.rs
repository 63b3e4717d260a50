//! One case: a namespace, a repository, an operator and a proxy of its own, a life, and what is judged of it.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum as _;
use github_simulator::{control::JobView, state::Conclusion};
use k8s_openapi::api::{
    authorization::v1::SubjectAccessReview,
    core::v1::ConfigMap,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    fault::{Fault, OUTAGE},
    life::{Life, Scenario},
    node::{Node, Sound},
    operator::{Operator, Start, Victim},
    pace::Pace,
    progress::{Phase, Plan},
    proxy::{Keys, Proxy},
    request::Kind,
};
use crate::{
    cluster::Cluster,
    deploy::Beside,
    example,
    helm::{NAMESPACE, RELEASE},
    suites::Ctx,
    wait::wait_for,
};

/// Where the operator keeps the registrar's authority.
const AUTHORITY_SECRET: &str = "cuda-runner-registrar-ca";

/// Requests beyond those of a life without a fault: several times as many, and some for each life.
const TRIES: (usize, usize) = (3, 60);

/// By then the API server honours a binding, with dozens of cases beside.
const RIGHTS: Duration = Duration::from_mins(1);

/// What all cases of a run share.
pub(super) struct Ground {
    pub(super) cluster: Cluster,
    pub(super) keys: Keys,
    /// The clock by which something is late.
    pub(super) pace: Pace,
    /// The authority of the proxies.
    pub(super) authority: String,
}

/// What came of a case.
pub(super) struct Outcome {
    /// How often each kind of request came.
    pub(super) counts: BTreeMap<Kind, usize>,
    /// All of them in their order.
    pub(super) seen: Vec<String>,
    /// Whether the fault came to pass.
    pub(super) met: bool,
    /// From the fault's end to the end of the step that it fell into.
    pub(super) recovery: Option<Duration>,
    pub(super) seconds: f64,
    /// What is wrong.
    pub(super) wrongs: Vec<String>,
}

impl Ground {
    /// Lives one life. `usual` is how many requests it has without a fault.
    pub(super) async fn run(
        &self,
        name: &str,
        scenario: Scenario,
        plan: Option<Plan>,
        usual: Option<usize>,
    ) -> Result<Outcome> {
        let begun = Instant::now();
        let ctx = Ctx::new(&self.cluster, name).await?;
        self.furnish(&ctx).await?;
        let replicas = scenario.replicas();
        let victims: Vec<_> = (0..replicas).map(|_| Arc::new(Victim::default())).collect();
        let all = victims.clone();
        let kill = move |replica: usize, signal| all[replica].signal(signal);
        let proxy = Proxy::start(&self.keys, plan, replicas, Arc::new(kill), &self.pace).await?;
        let node = Node::start(&ctx, Arc::new(Sound));
        let life = Life {
            ctx: &ctx,
            proxy: &proxy,
            node: &node,
            pace: &self.pace,
            soon: scenario.soon(),
            recovery: Cell::new(None),
        };
        life.prepare().await?;
        let before = life.repository().await?;
        let operators = self.operators(name, victims, &proxy)?;
        let mut wrongs = vec![];
        if let Err(error) = life.live(scenario).await {
            wrongs.push(format!("{error:#}"));
        } else if let Err(error) = settled(&life, &before).await {
            wrongs.push(format!("{error:#}"));
        }
        wrongs.extend(operators.iter().flat_map(Operator::wrongs));
        let most = node.most();
        if most.len() > scenario.most() {
            wrongs.push(format!("more pods than {}: {most:?}", scenario.most()));
        }
        let counts = proxy.shared.progress.counts();
        let total: usize = counts
            .iter()
            .filter(|(kind, _)| !kind.is_event())
            .map(|(_, n)| n)
            .sum();
        if let Some(usual) = usual
            && total > TRIES.0 * usual + TRIES.1
        {
            wrongs.push(format!("{total} requests, where {usual} are usual"));
        }
        let tells = !wrongs.is_empty() && std::env::var_os("FAULTS_LOG").is_some();
        for operator in operators {
            wrongs.extend(tells.then(|| operator.last_words()));
            let _ = fs::remove_file(&operator.log);
        }
        let outcome = Outcome {
            counts,
            seen: proxy.shared.progress.seen(),
            met: proxy.shared.progress.phase() != Phase::Before,
            recovery: life.recovery.get(),
            seconds: begun.elapsed().as_secs_f64(),
            wrongs,
        };
        self.forget(&ctx).await;
        Ok(outcome)
    }

    /// One for each victim, each with a way of its own to the API server.
    fn operators(
        &self,
        namespace: &str,
        victims: Vec<Arc<Victim>>,
        proxy: &Proxy,
    ) -> Result<Vec<Operator>> {
        let kubeconfig = Beside::kubeconfig(&self.cluster);
        let has_others = victims.len() > 1;
        let all = victims.into_iter().enumerate().map(|(number, victim)| {
            let start = Start {
                dir: &self.cluster.dir,
                namespace,
                kubeconfig: &kubeconfig,
                authority: &self.authority,
                server: &proxy.kubernetes[number],
                replica: has_others.then_some(number),
            };
            Operator::start(&start, victim, Arc::clone(&proxy.shared.progress))
        });
        all.collect()
    }

    /// The authority of the proxy beside GitHub's own, and the operator's rights in its own namespace.
    async fn furnish(&self, ctx: &Ctx) -> Result<()> {
        let authority = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": example::AUTHORITY},
            "data": {"ca.crt": self.authority},
        });
        let maps: Api<ConfigMap> = ctx.api();
        let params = PatchParams::apply("cargo-e2e").force();
        maps.patch(example::AUTHORITY, &params, &Patch::Apply(authority))
            .await?;
        let own = format!("{RELEASE}-own");
        let roles: Api<Role> = Api::namespaced(ctx.client.clone(), NAMESPACE);
        let of_the_chart = roles.get(&own).await?;
        let role: Role = serde_json::from_value(
            json!({"metadata": {"name": own}, "rules": of_the_chart.rules}),
        )?;
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": own},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": own},
            "subjects": [{"kind": "ServiceAccount", "name": RELEASE, "namespace": NAMESPACE}],
        }))?;
        ctx.api().create(&PostParams::default(), &role).await?;
        ctx.api().create(&PostParams::default(), &binding).await?;
        // The API server honours a binding once its own watch has shown it.
        let asked = json!({"spec": {
            "user": format!("system:serviceaccount:{NAMESPACE}:{RELEASE}"),
            "resourceAttributes": {
                "namespace": ctx.namespace, "verb": "get", "resource": "secrets", "name": AUTHORITY_SECRET,
            },
        }});
        let asked: SubjectAccessReview = serde_json::from_value(asked)?;
        let reviews: Api<SubjectAccessReview> = Api::all(ctx.client.clone());
        wait_for("the operator's rights", RIGHTS, async || {
            let answer = reviews.create(&PostParams::default(), &asked).await?;
            Ok(answer
                .status
                .is_some_and(|status| status.allowed)
                .then_some(()))
        })
        .await
    }

    /// Takes the case away. What a red one has left is not waited for.
    async fn forget(&self, ctx: &Ctx) {
        use cudarunner_crds::CudaRunner;
        let pools: Api<CudaRunner> = ctx.api();
        let released = json!({"metadata": {"finalizers": null}});
        // It is gone as a rule.
        let _ = pools
            .patch("pool", &PatchParams::default(), &Patch::Merge(&released))
            .await;
        let _ = ctx.github.delete_repository(&ctx.repository).await;
        let _ = example::delete_namespace(&ctx.client, &ctx.namespace).await;
    }
}

/// GitHub is as before, and no job was cancelled that was not run again. A fault that lasts is waited for.
async fn settled(life: &Life<'_>, before: &serde_json::Value) -> Result<()> {
    let end = life.pace.now();
    while life.proxy.shared.progress.phase() == Phase::During {
        if life.pace.since(end) > 3 * OUTAGE {
            bail!("the fault has no end");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let after = life.repository().await?;
    ensure!(
        after == *before,
        "GitHub is not as before: {before}, now {after}"
    );
    let jobs = life.ctx.github.jobs().await?;
    let own = life.ctx.repository.to_lowercase();
    let is_last = |job: &JobView| {
        let mut later = jobs.iter().filter(|other| other.run == job.run);
        !later.any(|other| other.key == job.key && other.attempt > job.attempt)
    };
    let mut own = jobs
        .iter()
        .filter(|job| job.repository == own && is_last(job));
    let cut = own.find(|job| job.name != "nobody" && job.conclusion != Some(Conclusion::Success));
    ensure!(cut.is_none(), "a job did not succeed: {cut:?}");
    Ok(())
}

/// What a case is called: life, fault and request.
pub(super) fn name(scenario: Scenario, plan: &Plan) -> String {
    let value = scenario.to_possible_value();
    let scenario = value.as_ref().map_or("?", |value| value.get_name());
    format!("{scenario} {} {}#{}", plan.fault, plan.kind, plan.number)
}

/// Reads what [`name`] has written.
pub(super) fn named(text: &str) -> Result<(Scenario, Plan)> {
    let mut words = text.split_whitespace();
    let (Some(scenario), Some(fault), Some(request), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        bail!("a case is named by its life, its fault and its request");
    };
    let unknown = |why: String| anyhow::anyhow!("{text:?}: {why}");
    let (kind, number) = parse(request)?;
    let plan = Plan {
        kind: kind.parse()?,
        number,
        fault: Fault::from_str(fault, false).map_err(unknown)?,
    };
    Ok((Scenario::from_str(scenario, false).map_err(unknown)?, plan))
}

/// The command that repeats a case.
pub(super) fn command(scenario: Scenario, plan: &Plan) -> String {
    format!("cargo e2e faults --case '{}'", name(scenario, plan))
}

/// Every fault that fits, for every request of a life.
pub(super) fn plans(
    counts: &BTreeMap<Kind, usize>,
    faults: &[Fault],
    replicas: usize,
) -> Vec<Plan> {
    let mut plans = vec![];
    for (kind, count) in counts {
        for number in 1..=*count {
            plans.extend(
                faults
                    .iter()
                    .filter(|fault| fault.fits(kind, replicas))
                    .map(|fault| Plan {
                        kind: kind.clone(),
                        number,
                        fault: *fault,
                    }),
            );
        }
    }
    plans
}

/// Reads `NAME#NUMBER`.
pub(super) fn parse(text: &str) -> Result<(String, usize)> {
    let (name, number) = text
        .rsplit_once('#')
        .context("a request is named NAME#NUMBER, as the list shows them")?;
    Ok((name.to_owned(), number.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_repeated_by_its_name() {
        for text in [
            "scale-set kill-after kubernetes:create:events#2",
            "ephemeral 500 github:POST:actions/runners/generate-jitconfig#1",
        ] {
            let (scenario, plan) = named(text).unwrap();
            assert_eq!(name(scenario, &plan), text);
        }
        for wrong in [
            "ephemeral",
            "ephemeral lost nobody:get#1",
            "ephemeral lost kubernetes:get:pods",
            "ephemeral none kubernetes:get:pods#1",
        ] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
    }
}
