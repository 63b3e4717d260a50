//! The README's two commands as they stand there, from a registry.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::{
    Ctx, SOON,
    docs::{Shell, blocks},
};
use crate::{
    deploy,
    helm::{self, Helm, NAMESPACE, RELEASE},
    paths,
    registry::{Answered, Registry},
};

/// In place of `OWNER/REPOSITORY`.
const OWNER: &str = "owner/repository";
/// The images of a release, as the charts call them, and their tag.
const IMAGES: [&str; 2] = ["cuda-runner-operator", "cuda-smoke"];
const VERSION: &str = "0.1.0";
const DEFINITION: &str = "cudarunners.cudarunner.dev";
/// The namespace of a Helm that is told none.
const DEFAULT: &str = "default";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let registry = Registry::public(&ctx.cluster).await?;
    let release = published(ctx, registry).await?;
    let outcome = async {
        nothing_is_installed(ctx).await?;
        by_the_readme(ctx, &release).await
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
    registry.push_as(&images, VERSION).await?;
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
    release.was_pulled("cuda-runner-operator")
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
