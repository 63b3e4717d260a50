//! The README's two commands as they stand there, from a registry; then the same installation for one namespace, by rights in
//! that namespace alone; and when it is gone without a word, another operator takes its pool over.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Ctx, SOON,
    docs::{Shell, blocks},
};
use crate::{
    audit::{Audit, Request},
    deploy, example,
    helm::{self, Helm, NAMESPACE, RELEASE},
    paths,
    registry::{Answered, Registry},
    simulator,
};

/// In place of `OWNER/REPOSITORY`.
const OWNER: &str = "owner/repository";
/// The images of a release, as the charts call them, and their tag.
const IMAGES: [&str; 2] = ["cuda-runner-operator", "cuda-smoke"];
const VERSION: &str = "0.1.0";
const DEFINITION: &str = "cudarunners.cudarunner.dev";
/// The namespace of a Helm that is told none.
const DEFAULT: &str = "default";
/// The namespace of the README's pool.
const FIRST: &str = "ci";
const POOL: &str = "pool";
/// The label that both operators select.
const LABEL: &str = "for-install";
/// Release and namespace of the operator that comes after.
const NEXT: &str = "next";
const NEXT_VALUES: [&str; 3] = [
    "leaderElection.enabled=true",
    "poolSelector=for-install",
    "uninstallHook.enabled=false",
];

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let registry = Registry::public(&ctx.cluster).await?;
    let release = published(ctx, registry).await?;
    let outcome = async {
        nothing_is_installed(ctx).await?;
        by_the_readme(ctx, &release).await?;
        for_one_namespace(ctx, &release).await?;
        taken_over(ctx).await
    }
    .await;
    // Whatever came of it: the suites after this one need an operator
    outcome.and(as_before(ctx).await)
}

/// A release in a registry, and a shell whose Helm trusts that.
struct Release {
    registry: Registry,
    /// What stands for `ghcr.io/OWNER/REPOSITORY`.
    place: String,
    shell: Shell,
}

impl Release {
    async fn run(&self, block: String) -> Result<String> {
        let shell = self.shell.clone();
        tokio::task::spawn_blocking(move || shell.run(&block)).await?
    }

    /// Fails where no node has pulled this image.
    fn was_pulled(&self, image: &str) -> Result<()> {
        let path = format!("/v2/{OWNER}/{image}/manifests/{VERSION}");
        let asked = self.registry.answered()?;
        let of_node =
            |a: &&Answered| a.path == path && a.status == 200 && a.agent.contains("containerd");
        let mut pulls = asked.iter().filter(of_node);
        ensure!(pulls.next().is_some(), "no node has asked for {path}");
        Ok(())
    }
}

/// Puts images and charts into the registry, as the workflow of a release does.
async fn published(ctx: &Ctx, registry: Registry) -> Result<Release> {
    let names = IMAGES.map(|image| format!("{OWNER}/{image}"));
    let images = [0, 1].map(|number| (IMAGES[number], names[number].as_str()));
    registry.push_release(&images, VERSION).await?;
    let cluster = &ctx.cluster;
    let shell = Shell::empty(ctx, "install")?;
    let own = cluster.dir.join("helm");
    let helm = format!(
        "export HOME={own} HELM_CACHE_HOME={own} HELM_CONFIG_HOME={own} HELM_DATA_HOME={own} SSL_CERT_FILE={authority}\nexec {helm} --kubeconfig {kubeconfig} \"$@\"",
        own = own.display(),
        authority = registry.authority().display(),
        helm = cluster.tools.helm().display(),
        kubeconfig = cluster.kubeconfig().display(),
    );
    shell.program("helm", &helm)?;
    let release = Release {
        place: format!("{}/{OWNER}", registry.host),
        registry,
        shell,
    };
    let charts = helm::charts();
    for chart in [deploy::CRDS, RELEASE] {
        let charts = charts.display();
        let place = &release.place;
        let push = format!(
            "helm package {charts}/{chart} --destination .\nhelm push {chart}-{VERSION}.tgz oci://{place}/charts"
        );
        release.run(push).await?;
    }
    Ok(release)
}

/// Takes away what every cluster here has from its start, with the CRD: no suite has a pool by now.
async fn nothing_is_installed(ctx: &Ctx) -> Result<()> {
    for chart in [RELEASE, deploy::CRDS] {
        uninstall(ctx, chart, NAMESPACE).await?;
    }
    let definitions = definitions(ctx);
    definitions
        .delete(DEFINITION, &DeleteParams::default())
        .await?;
    ctx.wait_for("the CRD to be gone", SOON, async || {
        let left = definitions.get_opt(DEFINITION).await?;
        Ok(left.is_none().then_some(()))
    })
    .await
}

async fn by_the_readme(ctx: &Ctx, release: &Release) -> Result<()> {
    // When somebody gives the two commands, with the place of this release
    let readme = fs::read_to_string(paths::repository().join("README.md"))?;
    let all = blocks(&readme, "sh").into_iter();
    let block = all
        .filter(|block| block.contains("oci://"))
        .collect::<Vec<_>>();
    let [block] = &block[..] else {
        anyhow::bail!("the README installs in {} places", block.len());
    };
    ensure!(block.lines().count() == 2, "not two commands: {block}");
    let block = block.replace("ghcr.io/OWNER/REPOSITORY", &release.place);
    release.run(block).await?;

    // Then an operator is ready, which was pulled from there
    deploy::ready(&ctx.client, SOON).await?;
    release.was_pulled("cuda-runner-operator")?;
    the_first_pool(ctx, release, &readme).await
}

/// The README's manifest with its Secret, as they stand there but for what is this cluster's.
async fn the_first_pool(ctx: &Ctx, release: &Release, readme: &str) -> Result<()> {
    // Given an operator that may ask the simulated GitHub, and somebody's App
    let place = &release.place;
    let address = deploy::github_address(&ctx.cluster)?;
    release
        .run(format!(
            "helm upgrade {RELEASE} oci://{place}/charts/{RELEASE} --namespace {NAMESPACE} --reuse-values --set 'githubAddresses.allow={{{address}}}'"
        ))
        .await?;
    deploy::ready(&ctx.client, SOON).await?;
    let app = example::app(&ctx.github, "readme", &ctx.repository).await?;
    let word = |key: &str| app[key].as_str().context("the App lacks a key");
    release.shell.file("KEY.pem", word("private-key")?)?;
    let manifest = blocks(readme, "yaml").into_iter().next();
    let manifest = manifest.context("the README shows no pool")?;
    let mut pool: Value = serde_saphyr::from_str(&manifest)?;
    let own = ctx.pool("", json!({}));
    for field in ["url", "caBundleRef"] {
        pool["spec"]["github"][field] = own["spec"]["github"][field].clone();
    }
    pool["spec"]["template"] = own["spec"]["template"].clone();
    let manifest = serde_saphyr::to_string(&pool)?;
    release.shell.file("my-pool.yaml", &manifest)?;
    let kubectl = ctx.cluster.tools.kubernetes("kubectl");
    let (kubectl, kubeconfig) = (kubectl.display(), ctx.cluster.kubeconfig());
    let kubeconfig = kubeconfig.display();
    release.shell.program(
        "kubectl",
        &format!("exec {kubectl} --kubeconfig {kubeconfig} \"$@\""),
    )?;

    // When the commands are given, the last of which only shows
    let block = blocks(readme, "sh").into_iter();
    let block = block
        .filter(|block| block.contains("create secret"))
        .collect::<String>();
    let block = block.replace("app-id=ID", &format!("app-id={}", word("app-id")?));
    let (commands, shows) = block.trim_end().rsplit_once('\n').context("one command")?;
    ensure!(shows.contains("--watch"), "{shows}");
    release.run(commands.to_owned()).await?;
    let pem = simulator::authority(&ctx.cluster.dir)?;
    example::authority(&ctx.client, FIRST, example::AUTHORITY, &pem).await?;

    // Then a job that asks for the pool by its name runs
    let name = pool["metadata"]["name"].as_str().unwrap_or_default();
    let job = ctx.queue_for("first", &[name], "true", false).await?;
    ctx.succeeded(job).await?;
    let gone = format!(
        "kubectl --namespace {FIRST} delete cudarunner {name}\nkubectl delete namespace {FIRST}"
    );
    release.run(gone).await.map(drop)
}

async fn for_one_namespace(ctx: &Ctx, release: &Release) -> Result<()> {
    // When the same installation is limited to one namespace
    let mut audit = Audit::from_now(&ctx.cluster)?;
    let namespace = &ctx.namespace;
    let values = [
        format!("watchNamespaces={{{namespace}}}"),
        format!("rbac.secretNames={{{}}}", example::SECRET),
        format!("rbac.configMapNames={{{}}}", example::AUTHORITY),
        "leaderElection.enabled=true".to_owned(),
        format!("poolSelector={LABEL}"),
        format!(
            "githubAddresses.allow={{{}}}",
            deploy::github_address(&ctx.cluster)?
        ),
    ];
    let values = values.map(|value| format!(" --set '{value}'")).concat();
    let place = &release.place;
    release
        .run(format!(
            "helm upgrade {RELEASE} oci://{place}/charts/{RELEASE} --namespace {NAMESPACE} --reuse-values{values}"
        ))
        .await?;
    deploy::ready(&ctx.client, SOON).await?;
    may_only_here(ctx).await?;

    // Then a pool there has its runner, whose gate was pulled from the registry, too, and its job runs
    let mut pool = ctx.pool(POOL, json!({}));
    pool["metadata"]["labels"] = json!({LABEL: "true"});
    ctx.apply(&pool).await?;
    let runner = ctx.idle(POOL, 1).await?.remove(0);
    release.was_pulled("cuda-smoke")?;
    let job = ctx.queue("by-a-role", "true").await?;
    let view = ctx.succeeded(job).await?;
    ensure!(view.runner.as_deref() == Some(&runner), "{view:?}");
    ctx.other_idle(POOL, &runner).await?;

    // And nothing was refused, because nothing of other namespaces was asked for
    let [operator] = &operators(ctx).await?[..] else {
        anyhow::bail!("not one operator");
    };
    let mut requests = audit.new_requests()?;
    requests.retain(|request| request.pod.as_ref() == Some(&operator.name_any()));
    let forbidden: Vec<_> = requests.iter().filter(|r| r.forbidden).collect();
    ensure!(forbidden.is_empty(), "not allowed: {forbidden:#?}");
    let is_elsewhere = |request: &&Request| {
        let place = request.namespace.as_deref();
        let has_none = request.resource.is_empty() || request.is_review();
        !has_none && !place.is_some_and(|place| place == namespace || place == NAMESPACE)
    };
    let elsewhere: Vec<_> = requests.iter().filter(is_elsewhere).collect();
    ensure!(elsewhere.is_empty(), "beyond its namespace: {elsewhere:#?}");
    let made = |r: &Request| r.verb == "create" && r.resource == "pods";
    ensure!(requests.iter().any(made), "no pod was made: {requests:#?}");
    Ok(())
}

/// The operator may read pods in its namespace and in no other.
async fn may_only_here(ctx: &Ctx) -> Result<()> {
    let account = format!("system:serviceaccount:{NAMESPACE}:{RELEASE}");
    for (namespace, may) in [(ctx.namespace.as_str(), true), (DEFAULT, false)] {
        let asked = [
            "auth",
            "can-i",
            "list",
            "pods",
            "--as",
            &account,
            "--namespace",
            namespace,
        ];
        // It fails where the answer is no.
        let answer = ctx.kubectl(&asked).await;
        ensure!(answer.is_ok() == may, "pods of {namespace}: {answer:?}");
    }
    Ok(())
}

async fn taken_over(ctx: &Ctx) -> Result<()> {
    let outcome = async {
        deploy::second(&ctx.cluster, NEXT, &NEXT_VALUES).await?;
        by_the_next(ctx).await
    }
    .await;
    outcome.and(deploy::remove_second(&ctx.cluster, NEXT).await)
}

async fn by_the_next(ctx: &Ctx) -> Result<()> {
    // Given another operator that selects the pool, too, and leaves it to the first
    reported(ctx, "ServedByAnotherOperator").await?;
    let before = ctx.idle(POOL, 1).await?;

    // When the first one is gone, and does not say so
    gone_without_a_word(ctx).await?;

    // Then the other one takes the pool over, once the Lease was not held for its time, and the runner goes on
    reported(ctx, "TakenOver").await?;
    let operator = ctx.status(POOL).await?.operator;
    ensure!(
        operator.as_ref().is_some_and(|o| o.namespace == NEXT),
        "{operator:?}"
    );
    ensure!(ctx.idle(POOL, 1).await? == before, "the runner changed");
    let job = ctx.queue("by-the-next", "true").await?;
    let view = ctx.succeeded(job).await?;
    ensure!(view.runner == before.first().cloned(), "{view:?}");
    ctx.delete(POOL).await?;
    ensure!(ctx.entries().await?.is_empty(), "entries are left");
    Ok(())
}

/// Waits for an Event of the pool's with this reason.
async fn reported(ctx: &Ctx, reason: &str) -> Result<()> {
    let what = format!("an Event {reason}");
    ctx.wait_for(&what, SOON, async || {
        let events = ctx.events(reason).await?;
        let mut about = events.iter().filter_map(|event| event.regarding.as_ref());
        let ours = about.any(|about| about.name.as_deref() == Some(POOL));
        Ok(ours.then_some(()))
    })
    .await
}

/// The operator ends where it stands, without giving its Lease back, and its Deployment goes.
async fn gone_without_a_word(ctx: &Ctx) -> Result<()> {
    deploy::freeze(&ctx.cluster, &ctx.client).await?;
    let deployments: Api<Deployment> = Api::namespaced(ctx.client.clone(), NAMESPACE);
    deployments
        .delete(RELEASE, &DeleteParams::foreground())
        .await?;
    // From then on nobody makes another pod.
    let what = "the operator's pod to be deleted";
    let pods = ctx.wait_for(what, SOON, async || {
        let pods = operators(ctx).await?;
        let all = pods.iter().all(|p| p.metadata.deletion_timestamp.is_some());
        Ok(all.then_some(pods))
    });
    for pod in pods.await? {
        deploy::kill_pod(&ctx.cluster, &ctx.client, &pod.name_any()).await?;
    }
    ctx.wait_for("the Deployment to be gone", SOON, async || {
        let left = deployments.get_opt(RELEASE).await?;
        Ok(left.is_none().then_some(()))
    })
    .await
}

/// The installation that the other suites know. The CRD stays, as the charts promise, and is then of a release in another
/// namespace.
async fn as_before(ctx: &Ctx) -> Result<()> {
    uninstall(ctx, deploy::CRDS, DEFAULT).await?;
    let definitions = definitions(ctx);
    if definitions.get_opt(DEFINITION).await?.is_some() {
        let owner =
            json!({"metadata": {"annotations": {"meta.helm.sh/release-namespace": NAMESPACE}}});
        definitions
            .patch(DEFINITION, &PatchParams::default(), &Patch::Merge(owner))
            .await?;
    }
    deploy::upgrade_from(&ctx.cluster, &helm::charts(), &[]).await
}

async fn uninstall(ctx: &Ctx, release: &'static str, namespace: &'static str) -> Result<()> {
    let helm = Helm::new(&ctx.cluster.tools, &ctx.cluster.dir);
    tokio::task::spawn_blocking(move || helm.uninstall(release, namespace))
        .await?
        .with_context(|| format!("cannot uninstall {release}"))
}

fn definitions(ctx: &Ctx) -> Api<CustomResourceDefinition> {
    Api::all(ctx.client.clone())
}

async fn operators(ctx: &Ctx) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), NAMESPACE);
    Ok(pods.list(&ListParams::default()).await?.items)
}
