//! Somebody with nothing but the role `edit` in one namespace: whatever they write there, other teams' pools, their nodes,
//! their required checks and the operator itself do not suffer.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use cudarunner_crds::CudaRunner;
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream, try_join};
use gate_report::exit;
use github_simulator::control::{NewBranch, NewWorkflow, UpdateRepository};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Secret, ServiceAccount},
    rbac::v1::RoleBinding,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use super::{
    Ctx, SOON,
    context::{job, merge},
    neighbour::{self, Neighbour},
};
use crate::example;

/// Pods with a long annotation of the operator's.
const PODS: usize = 180;
/// A report of a gate that found a broken GPU, as somebody forges it.
const FORGED: &str =
    include_str!("../../../operator/src/bin/kubectl-cudarunner/fixtures/failed-report.json");

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let tenant = editor(ctx, "mallory").await?;
    let ill = async |other: &Neighbour| {
        has_no_other_rights(&tenant, other).await?;
        refused(&tenant).await?;
        try_join!(
            templates(&tenant),
            addresses(&tenant),
            thresholds(&tenant),
            pretenders(&tenant, other),
            required_checks(&tenant, other),
            other.is_unharmed(),
        )?;
        crowd(&tenant).await?;
        // Which an operator that starts has to read as well
        other.restart().await
    };
    Box::pin(neighbour::beside(ctx, ill)).await
}

/// The suite as seen by a service account that has nothing but the role `edit` in the suite's namespace.
async fn editor(ctx: &Ctx, name: &str) -> Result<Ctx> {
    let accounts: Api<ServiceAccount> = ctx.api();
    let account = json!({"metadata": {"name": name}});
    accounts
        .create(&PostParams::default(), &serde_json::from_value(account)?)
        .await?;
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": ctx.namespace}],
    });
    ctx.api::<RoleBinding>()
        .create(&PostParams::default(), &serde_json::from_value(binding)?)
        .await?;
    let file = Kubeconfig::read_from(ctx.cluster.kubeconfig())?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.auth_info.impersonate = Some(format!("system:serviceaccount:{}:{name}", ctx.namespace));
    let groups = ["system:serviceaccounts", "system:authenticated"];
    config.auth_info.impersonate_groups = Some(groups.map(str::to_owned).into());
    Ok(Ctx {
        client: Client::try_from(config)?,
        ..ctx.clone()
    })
}

/// Or the rest would show nothing.
async fn has_no_other_rights(tenant: &Ctx, other: &Neighbour) -> Result<()> {
    let theirs: Api<CudaRunner> = Api::namespaced(tenant.client.clone(), &other.ctx.namespace);
    ensure!(
        theirs.list(&ListParams::default()).await.is_err(),
        "another team's pools"
    );
    let nodes: Api<Node> = Api::all(tenant.client.clone());
    ensure!(
        nodes.list(&ListParams::default()).await.is_err(),
        "the nodes"
    );
    // A status that says that checks are required, and whose, is the operator's word
    tenant
        .apply(&tenant.pool("status", json!({"replicas": 0})))
        .await?;
    let patch = json!({"status": {"requiredChecks": {"ruleset": "other"}}});
    let mine: Api<CudaRunner> = tenant.api();
    let params = PatchParams::default();
    let forged = mine
        .patch_status("status", &params, &Patch::Merge(&patch))
        .await;
    ensure!(forged.is_err(), "a status was forged");
    Ok(())
}

/// What ends, stalls or misleads an operator that believes it is refused at apply.
async fn refused(tenant: &Ctx) -> Result<()> {
    let verify =
        json!({"workflow": "a.yml", "ref": "main", "jobs": [{"name": "a"}], "every": "0m"});
    let named = |name: &str| json!({"github": {"credentialsRef": {"name": name}}});
    let bundle = json!({"name": "a", "key": "../../b"});
    for (spec, words) in [
        (
            json!({"teardownTimeout": "99999999999999999999h"}),
            "teardownTimeout",
        ),
        (json!({"teardownTimeout": "99999999h"}), "teardownTimeout"),
        (json!({"verify": verify}), "at least 10m"),
        (named("a,metadata.name=b"), "credentialsRef.name"),
        (named("a=b"), "credentialsRef.name"),
        (named("../a"), "credentialsRef.name"),
        (
            json!({"github": {"caBundleRef": bundle}}),
            "caBundleRef.key",
        ),
        (
            json!({"github": {"runnerGroup": "a\u{1b}[2Jb"}}),
            "runnerGroup",
        ),
        (json!({"labels": ["self-hosted\u{202e}"]}), "invisible"),
        (
            json!({"preflight": {"commands": ["$(reboot)"]}}),
            "commands",
        ),
        (json!({"replicas": 2_000_000_000}), "replicas"),
    ] {
        match tenant.apply(&tenant.pool("refused", spec.clone())).await {
            Ok(()) => bail!("{spec} was taken"),
            Err(error) => ensure!(
                format!("{error:#}").contains(words),
                "{words:?} is not in: {error:#}"
            ),
        }
    }
    Ok(())
}

/// Templates that replace what proves a GPU or hands out a registration make no pod, whoever refuses them.
async fn templates(tenant: &Ctx) -> Result<()> {
    let agent = |fields: Value| {
        let mut container = json!({"name": "runner", "image": example::AGENT});
        merge(&mut container, fields);
        json!({"spec": {"containers": [container]}})
    };
    let before = |name: &str| json!({"spec": {"initContainers": [{"name": name, "image": example::AGENT, "command": ["true"]}]}});
    let mount = |volume: &str, path: &str| {
        agent(json!({"volumeMounts": [{"name": volume, "mountPath": path}]}))
    };
    let token =
        json!({"serviceAccountToken": {"audience": "cudarunner.dev/registrar", "path": "t"}});
    let volume = json!({"name": "t", "projected": {"sources": [token]}});
    let huge = agent(json!({"env": [{"name": "A", "value": "x".repeat(1_200_000)}]}));
    let env = |name: &str, value: &str| agent(json!({"env": [{"name": name, "value": value}]}));
    let mut ill = vec![
        before("prepare"),
        before("gpu"),
        before("main"),
        json!({"spec": {"containers": [{"name": "runner"}, {"name": "gpu", "image": example::AGENT}]}}),
        agent(json!({"command": ["sleep", "1000"]})),
        agent(json!({"terminationMessagePath": "/tmp/other"})),
        env("CUDA_RUNNER_DIR", "/tmp"),
        env("ACTIONS_RUNNER_INPUT_JITCONFIG", "eyJ9"),
        env("NVIDIA_VISIBLE_DEVICES", "all"),
        mount("registrar-token", "/t"),
        mount("registration", "/r"),
        mount("own", "/run/cuda-runner/hooks"),
        mount("own", "/cuda-smoke"),
        mount("own", "/dev/termination-log"),
        json!({"spec": {"volumes": [{"name": "registration", "emptyDir": {}}]}}),
        json!({"spec": {"volumes": [volume]}}),
        json!({"metadata": {"annotations": {"cudarunner.dev/avoids": "x"}}}),
        json!({"metadata": {"labels": {"cudarunner.dev/pool": neighbour::POOL}}}),
        json!({"metadata": {"finalizers": ["example.com/keep"]}}),
        json!({"spec": {"activeDeadlineSeconds": 1}}),
        json!({"spec": {"nodeName": "node"}}),
    ];
    ill.extend(vec![huge; 5]);
    make_no_pod(tenant, &ill).await
}

async fn make_no_pod(tenant: &Ctx, templates: &[Value]) -> Result<()> {
    let pools: Api<CudaRunner> = tenant.api();
    let made = templates
        .iter()
        .enumerate()
        .map(async |(number, template)| {
            let name = format!("template-{number}");
            let mut pool = tenant.pool(&name, json!({"labels": ["nobody"], "replicas": 20}));
            pool["spec"]["template"] = template.clone();
            // Created, not applied: who owns which field would take as much room again.
            let pool = serde_json::from_value(pool)?;
            match pools.create(&PostParams::default(), &pool).await {
                Ok(_) => Ok(Some(name)),
                Err(kube::Error::Api(refusal)) if refusal.code == 422 => Ok(None),
                Err(error) => Err(anyhow::Error::from(error).context(name)),
            }
        });
    for name in try_join_all(made).await?.into_iter().flatten() {
        tenant
            .condition(&name, "Stalled", "True", "InvalidTemplate")
            .await?;
        let of = ListParams::default().labels(&format!("cudarunner.dev/pool={name}"));
        let pods = tenant.api::<Pod>().list(&of).await?.items;
        ensure!(pods.is_empty(), "{name} has pods");
    }
    Ok(())
}

/// What only the operator reaches is not asked for anybody, by whatever name.
async fn addresses(tenant: &Ctx) -> Result<()> {
    let token = json!({"metadata": {"name": "token"}, "stringData": {"token": "nobody"}});
    tenant
        .api::<Secret>()
        .create(&PostParams::default(), &serde_json::from_value(token)?)
        .await?;
    let hosts = [
        "127.0.0.1:8080",
        "localhost:8443",
        "[::1]:8080",
        "[::ffff:127.0.0.1]:8080",
        "0.0.0.0:8080",
        "169.254.169.254",
        "10.96.0.1",
    ];
    let reported = hosts.iter().enumerate().map(async |(number, host)| {
        let name = format!("address-{number}");
        let github =
            json!({"url": format!("https://{host}/o/r"), "credentialsRef": {"name": "token"}});
        let spec = json!({"github": github, "replicas": 0, "teardownTimeout": "1s"});
        tenant.apply(&tenant.pool(&name, spec)).await?;
        let message = says(tenant, &name, "does not ask this address").await;
        message.map(drop).with_context(|| (*host).to_owned())
    });
    try_join_all(reported).await.map(drop)
}

/// A threshold that no GPU reaches is this pool's alone; what the neighbour has of it is looked at in the end.
async fn thresholds(tenant: &Ctx) -> Result<()> {
    let gpu = json!({"minComputeCapability": "99.9", "minCudaVersion": "99.99"});
    tenant
        .apply(&tenant.pool("picky", json!({"labels": ["nobody"], "gpu": gpu})))
        .await?;
    tenant
        .wait_for("the threshold to be missed", SOON, async || {
            let failures = tenant.status("picky").await?.last_failures;
            Ok((!failures.is_empty()).then_some(()))
        })
        .await
}

/// Pods that say that they are a pool's, with a report of a broken GPU: nobody believes them.
async fn pretenders(tenant: &Ctx, other: &Neighbour) -> Result<()> {
    let theirs: Api<CudaRunner> = other.ctx.api();
    let uid = theirs.get(neighbour::POOL).await?.uid().unwrap_or_default();
    let of_theirs = json!({"apiVersion": "cudarunner.dev/v1alpha1", "uid": uid});
    let of_nobody =
        json!({"apiVersion": "example.com/v1", "uid": "00000000-0000-0000-0000-000000000000"});
    let pods: Api<Pod> = tenant.api();
    let forge = format!(
        "printf %s \"$REPORT\" >/dev/termination-log; exit {}",
        exit::DEVICE
    );
    for (number, owner) in [of_theirs, of_nobody].into_iter().enumerate() {
        let mut pod = pretender(&format!("{}-fake{number}", neighbour::POOL), owner);
        pod["spec"] = json!({
            "restartPolicy": "Never",
            "initContainers": [{
                "name": "gpu",
                "image": example::AGENT,
                "command": ["sh", "-c", forge],
                "env": [{"name": "REPORT", "value": FORGED}],
            }],
            "containers": [{"name": "main", "image": example::AGENT}],
        });
        let pod: Pod = serde_json::from_value(pod)?;
        pods.create(&PostParams::default(), &pod).await?;
        tenant
            .wait_for("the forged report to be there", SOON, async || {
                let now = pods.get_opt(&pod.name_any()).await?;
                // The garbage collector takes one whose owner is in another namespace.
                let is_over = now.is_none_or(|pod| {
                    let phase = pod.status.and_then(|status| status.phase);
                    phase.as_deref() == Some("Failed")
                });
                Ok(is_over.then_some(()))
            })
            .await?;
    }
    Ok(())
}

/// A pod of the neighbour's pool, by its labels, and by an owner who is none.
fn pretender(name: &str, owner: Value) -> Value {
    let mut reference = json!({"kind": "CudaRunner", "name": neighbour::POOL, "controller": true});
    merge(&mut reference, owner);
    json!({"metadata": {
        "name": name,
        "labels": {"cudarunner.dev/pool": neighbour::POOL, "app.kubernetes.io/managed-by": "cuda-runner-operator"},
        "ownerReferences": [reference],
    }})
}

/// Another team's required checks stay when a pool without access to their repository names the same ones and goes.
async fn required_checks(tenant: &Ctx, other: &Neighbour) -> Result<()> {
    // Given their pool, whose jobs are required
    let theirs = &other.ctx;
    let branch = NewBranch {
        name: "main".to_owned(),
        protected: true,
        required_checks: Some(vec!["fmt".to_owned()]),
    };
    let update = UpdateRepository {
        branches: vec![branch],
        workflows: vec![NewWorkflow {
            name: "cuda".to_owned(),
            file: "cuda.yml".to_owned(),
            jobs: vec![job("gpu", &["self-hosted", "checks"], "true")],
            ..NewWorkflow::default()
        }],
        ..UpdateRepository::default()
    };
    theirs
        .github
        .update_repository(&theirs.repository, &update)
        .await?;
    let spec = json!({
        "labels": ["self-hosted", "checks"],
        "verify": {"workflow": "cuda.yml", "ref": "main", "jobs": [{"name": "gpu"}]},
        "requiredChecks": {"branches": [{"name": "main"}], "allowUnseen": true},
    });
    theirs.apply(&theirs.pool("checks", spec.clone())).await?;
    theirs
        .condition("checks", "ChecksRequired", "True", "Required")
        .await?;
    // When a pool of somebody else's names the same, without access, and goes again
    let mut same = spec;
    let url = format!("{}/{}", tenant.cluster.github, theirs.repository);
    let secret = json!({"metadata": {"name": "refused"}, "stringData": {"token": "nobody"}});
    tenant
        .api::<Secret>()
        .create(&PostParams::default(), &serde_json::from_value(secret)?)
        .await?;
    let github = json!({"url": url, "credentialsRef": {"name": "refused"}});
    merge(
        &mut same,
        json!({"github": github, "teardownTimeout": "5s"}),
    );
    tenant.apply(&tenant.pool("checks", same.clone())).await?;
    tenant
        .condition("checks", "CredentialsValid", "False", "Unauthorized")
        .await?;
    tenant.delete("checks").await?;
    // Then they are required still
    ensure!(
        required(theirs).await? == ["fmt", "gpu"],
        "they were taken away"
    );
    // And go with their own pool, while the other one is there again
    tenant.apply(&tenant.pool("checks", same)).await?;
    tenant
        .condition("checks", "CredentialsValid", "False", "Unauthorized")
        .await?;
    theirs.delete("checks").await?;
    let left = required(theirs).await?;
    ensure!(left == ["fmt"], "what is left behind: {left:?}");
    Ok(())
}

/// The contexts that the neighbour's branch requires.
async fn required(theirs: &Ctx) -> Result<Vec<String>> {
    let state = theirs.github.state().await?;
    let branch = &state.lasting["repositories"][&theirs.repository]["branches"]["main"];
    let checks = branch["protection"]["requiredStatusChecks"]["checks"].as_array();
    let names = checks
        .into_iter()
        .flatten()
        .filter_map(|check| check["context"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Pods with annotations as long as they may be.
async fn crowd(tenant: &Ctx) -> Result<()> {
    let mut nodes = String::new();
    for number in 0..24_000 {
        // Writing to a string cannot fail.
        let _ = write!(nodes, "{number},");
    }
    let address = format!("https://{}/o/r", "x".repeat(110_000));
    let pods: Api<Pod> = tenant.api();
    let nobody =
        json!({"apiVersion": "example.com/v1", "uid": "00000000-0000-0000-0000-000000000000"});
    stream::iter(0..PODS)
        .map(|number| {
            let mut pod = pretender(&format!("{}-long{number}", neighbour::POOL), nobody.clone());
            pod["metadata"]["annotations"] =
                json!({"cudarunner.dev/avoids": nodes, "cudarunner.dev/github-url": address});
            // The scheduler has nothing to do with it either.
            pod["spec"] = json!({
                "schedulingGates": [{"name": "example.com/never"}],
                "containers": [{"name": "main", "image": example::AGENT}],
            });
            let pods = &pods;
            async move {
                let pod = serde_json::from_value(pod)?;
                pods.create(&PostParams::default(), &pod).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(8)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}

/// Waits until a condition of the pool says this; gives the whole sentence.
async fn says(ctx: &Ctx, pool: &str, words: &str) -> Result<String> {
    let what = format!("{pool} to say {words:?}");
    ctx.wait_for(&what, SOON, async || {
        let mut all = ctx.status(pool).await?.conditions.into_iter();
        Ok(all.find(|c| c.message.contains(words)).map(|c| c.message))
    })
    .await
}
