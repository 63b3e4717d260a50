//! What the documentation tells people to type: command lines that the programs take, pools that the API server takes.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::CudaRunner;
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, GroupVersionKind, Patch, PatchParams},
    discovery::{Scope, pinned_kind},
};
use serde_json::{Value, json};

use super::{Ctx, SOON, context::merge};
use crate::{
    book,
    images::{Profile, artifact},
    paths,
    process::{find, remove_dir},
    report::Story,
    tools,
};

/// Programs that are not ours to ask, or that take no `--help`: their lines are taken as they are.
const OTHERS: [&str; 8] = [
    "buildah", "cat", "cosign", "curl", "date", "install", "python3", "stat",
];
/// Of cargo only our own subcommand is asked.
const CARGO: &str = "build|deny|run|rustc|test";
/// A piece of text in backticks is a command when it begins with one of these, and goes on.
const PROGRAMS: [&str; 6] = [
    "cargo",
    "cuda-runner-operator",
    "cuda-smoke",
    "helm",
    "kubectl",
    "kubectl-cudarunner",
];
/// Lines that nobody may take: what shows that the others were looked at.
const WRONG: [&str; 10] = [
    "kubectl gett nodes",
    "kubectl get nodes --outputt=json",
    "kubectl cudarunner sttatus my-pool",
    "kubectl-cudarunner status my-pool --namespaec ci",
    "helm upgrade --instal x charts/x",
    "helm install x charts/cuda-runner-operator-crd",
    "helm upgrade x charts/cuda-runner-operator --reuse-values --set leaderElectoin.enabled=true",
    "cargo e2e test --suit x",
    "cuda-smoke chek",
    "a-program-that-is-not-there",
];

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let pages = book::pages()?;
    let shell = Shell::that_asks(ctx)?;
    tokio::task::spawn_blocking(move || commands(&shell, &pages)).await??;
    with_routes(ctx).await
}

/// Has the API server serve the `HTTPRoute` of the Gateway API meanwhile, which no cluster brings.
async fn with_routes(ctx: &Ctx) -> Result<()> {
    let folder = tokio::task::spawn_blocking(|| tools::gateway_api(&Story::silent())).await??;
    let file = folder.join("gateway.networking.k8s.io_httproutes.yaml");
    let file = file.to_string_lossy();
    ctx.kubectl(&["apply", "--server-side", "--filename", &file])
        .await?;
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
    let served = ctx.wait_for("HTTPRoute to be served", SOON, async || {
        Ok(pinned_kind(&ctx.client, &kind).await.ok())
    });
    let outcome = match served.await {
        Ok(_) => manifests(ctx).await,
        Err(error) => Err(error),
    };
    ctx.kubectl(&["delete", "--filename", &file]).await?;
    outcome
}

fn commands(shell: &Shell, pages: &[PathBuf]) -> Result<()> {
    for line in WRONG {
        ensure!(shell.run(line).is_err(), "`{line}` was taken");
    }
    let mut seen = 0;
    for page in pages {
        let text = fs::read_to_string(page)?;
        for command in blocks(&text, "sh").into_iter().chain(mentioned(&text)) {
            seen += 1;
            let command = command.replace("OWNER/REPOSITORY", "owner/repository");
            shell
                .run(&command.replace("REGISTRY/", "registry.example.com/"))
                .with_context(|| format!("{} has a line that is not taken", page.display()))?;
        }
    }
    ensure!(seen > 50, "only {seen} commands were found");
    remove_dir(&shell.dir)
}

/// Every manifest, and every piece of a spec in place of a whole one; and whatever else is shown.
async fn manifests(ctx: &Ctx) -> Result<()> {
    let (mut seen, mut others) = (0, 0);
    for page in book::pages()? {
        for block in blocks(&fs::read_to_string(&page)?, "yaml") {
            let objects: Vec<Value> = serde_saphyr::from_multiple(&block)
                .with_context(|| format!("{} has a block that is no YAML", page.display()))?;
            for shown in objects.iter().filter(|object| is_pool(object)) {
                seen += 1;
                take(ctx, shown)
                    .await
                    .with_context(|| format!("{} shows a pool that is refused", page.display()))?;
            }
            for shown in objects.into_iter().filter(|object| !is_pool(object)) {
                let taken = take_other(ctx, shown).await;
                others += usize::from(taken.with_context(|| {
                    format!("{} shows an object that is refused", page.display())
                })?);
            }
        }
    }
    ensure!(seen > 5, "only {seen} pools were found");
    ensure!(others > 3, "only {others} other objects were found");
    let wrong = take(ctx, &json!({"spec": {"preflight": {"comands": ["cc"]}}})).await;
    ensure!(wrong.is_err(), "a field that does not exist was taken");
    for wrong in [
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "x"}, "spec": {"hostname": "x"}}),
        json!({"apiVersion": "example.com/v1", "kind": "Absent", "metadata": {"name": "x"}}),
    ] {
        let said = format!("{wrong} was taken");
        ensure!(take_other(ctx, wrong).await.is_err(), said);
    }
    Ok(())
}

/// Whether it is a pool, or a piece of one's spec.
fn is_pool(object: &Value) -> bool {
    match object.get("kind") {
        Some(kind) => kind == "CudaRunner",
        None => object.get("spec").is_some(),
    }
}

/// The guide's command by which the gate is tried before anything is installed.
pub(super) async fn try_the_gate(ctx: &Ctx) -> Result<()> {
    // Given the command as it stands there, for this cluster's image, and without a class that it does not have
    let guide = paths::repository().join("docs/guides/getting-started.md");
    let commands = blocks(&fs::read_to_string(guide)?, "sh");
    let command = commands
        .iter()
        .find(|block| block.starts_with("kubectl run"))
        .context("the guide no longer tries the gate")?
        .replace("REGISTRY/cuda-smoke:0.1.0", "localhost/cuda-smoke:dev")
        .replace("\"runtimeClassName\": \"nvidia\", ", "");

    // When somebody runs it
    let shell = Shell::empty(ctx, "try-the-gate")?;
    let kubectl = ctx.cluster.tools.kubernetes("kubectl");
    let (kubectl, kubeconfig) = (kubectl.display(), ctx.cluster.kubeconfig());
    let kubeconfig = kubeconfig.display();
    let namespace = &ctx.namespace;
    shell.program(
        "kubectl",
        &format!("exec {kubectl} --kubeconfig {kubeconfig} --namespace {namespace} \"$@\""),
    )?;
    let said = tokio::task::spawn_blocking(move || shell.run(&command)).await??;

    // Then it says what is in the node
    ensure!(said.contains("device 0"), "it says {said}");
    Ok(())
}

/// Asks the API server for all but the deed.
async fn take(ctx: &Ctx, shown: &Value) -> Result<()> {
    let mut pool = json!({
        "apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner",
        "spec": {"github": {"url": "https://github.com/o/r", "credentialsRef": {"name": "github-app"}}},
    });
    merge(&mut pool, shown.clone());
    merge(
        &mut pool,
        json!({"metadata": {"name": "shown", "namespace": ctx.namespace}}),
    );
    let how = PatchParams::apply("docs").dry_run().validation_strict();
    let pools: Api<CudaRunner> = ctx.api();
    pools.patch("shown", &how, &Patch::Apply(pool)).await?;
    Ok(())
}

/// The same of an object of another kind; `false` where it is none. A kind that is not served is an error: nobody else would
/// look at it.
async fn take_other(ctx: &Ctx, shown: Value) -> Result<bool> {
    if shown.get("kind").is_none() {
        return Ok(false);
    }
    let mut object: DynamicObject = serde_json::from_value(shown)?;
    let client = ctx.cluster.client().await?;
    let types = object.types.as_ref().context("it has no apiVersion")?;
    let kind = GroupVersionKind::try_from(types)?;
    let (resource, capabilities) = pinned_kind(&client, &kind)
        .await
        .with_context(|| format!("the API server has no {} {}", types.api_version, types.kind))?;
    let name = object.name_any();
    let objects: Api<DynamicObject> = if capabilities.scope == Scope::Namespaced {
        object.metadata.namespace = Some(ctx.namespace.clone());
        Api::namespaced_with(client, &ctx.namespace, &resource)
    } else {
        Api::all_with(client, &resource)
    };
    let how = PatchParams::apply("docs").dry_run().validation_strict();
    objects.patch(&name, &how, &Patch::Apply(object)).await?;
    Ok(true)
}

/// A shell that knows the programs which it is given, and no others.
#[derive(Clone, Debug)]
pub(super) struct Shell {
    dir: PathBuf,
    bash: PathBuf,
}

impl Shell {
    /// One that has no program yet.
    pub(super) fn empty(ctx: &Ctx, name: &str) -> Result<Self> {
        let dir = ctx.cluster.dir.join(name);
        remove_dir(&dir)?;
        fs::create_dir_all(dir.join("bin"))?;
        Ok(Self {
            dir,
            bash: find("bash").context("there is no bash on the PATH")?,
        })
    }

    /// One whose programs are asked for their help instead: each reads its command line first, and refuses what it does
    /// not know.
    fn that_asks(ctx: &Ctx) -> Result<Self> {
        let shell = Self::empty(ctx, "docs")?;
        let tools = &ctx.cluster.tools;
        let plugin = artifact(Profile::Dev, "kubectl-cudarunner");
        for (name, program) in [
            ("kubectl", tools.kubernetes("kubectl")),
            ("kubectl-cudarunner", plugin),
            ("cuda-smoke", artifact(Profile::Dev, "cuda-smoke")),
            (
                "cuda-runner-operator",
                artifact(Profile::Dev, "cuda-runner-operator"),
            ),
        ] {
            shell.program(name, &asks(&program))?;
        }
        shell.program("helm", &renders(&tools.helm()))?;
        let ours = asks(&ctx.cluster.supervisor.program());
        let cargo = format!(
            "case $1 in\n{CARGO}) exit 0;;\ne2e) shift;;\n*) echo \"cargo $1?\" >&2; exit 1;;\nesac\n{ours}"
        );
        shell.program("cargo", &cargo)?;
        for name in OTHERS {
            shell.program(name, "exit 0")?;
        }
        Ok(shell)
    }

    /// Puts a file where its commands run.
    pub(super) fn file(&self, name: &str, content: &str) -> Result<()> {
        Ok(fs::write(self.dir.join(name), content)?)
    }

    /// Gives it a program, as a script of `sh`.
    pub(super) fn program(&self, name: &str, script: &str) -> Result<()> {
        let file = self.dir.join("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n"))?;
        Ok(fs::set_permissions(
            &file,
            fs::Permissions::from_mode(0o755),
        )?)
    }

    /// What the commands print.
    pub(super) fn run(&self, block: &str) -> Result<String> {
        let done = Command::new(&self.bash)
            .args(["-eo", "pipefail", "-c", block])
            .current_dir(&self.dir)
            .env_clear()
            .env("PATH", self.dir.join("bin"))
            .output()?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(
            done.status.success(),
            "{said}{}in\n{block}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(said)
    }
}

/// A script that asks the program for its help, after all arguments but those behind `--`.
fn asks(program: &Path) -> String {
    format!(
        "more=yes\nfor word do\n  shift\n  [ \"$word\" != -- ] || more=no\n  [ $more = no ] || set -- \"$@\" \"$word\"\ndone\nexec {} \"$@\" --help >/dev/null",
        program.display()
    )
}

/// The same of Helm. A chart that would be installed is rendered: it refuses values that it does not know. Of charts from a
/// registry ours of that name is taken, and for what an installation has already what it needs.
fn renders(helm: &Path) -> String {
    let repository = paths::repository();
    format!(
        r#"({asks}
) || exit 1
case $1 in install | upgrade) shift ;; *) exit 0 ;; esac
left=$#
while [ $left -gt 0 ]; do
  word=$1
  shift
  left=$((left - 1))
  case $word in
    --install | --create-namespace) continue ;;
    --reuse-values) set -- "$@" --set image.repository=r/a --set gateImage.repository=r/b; continue ;;
    --values) shift; left=$((left - 1)); continue ;;
    oci://*/charts/* | charts/*) word={repository}/charts/${{word##*charts/}} ;;
  esac
  set -- "$@" "$word"
done
exec {helm} template "$@" >/dev/null"#,
        asks = asks(helm),
        repository = repository.display(),
        helm = helm.display(),
    )
}

/// The fenced blocks of a language, without their indentation.
pub(super) fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(of) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let block: Vec<_> = lines
            .by_ref()
            .take_while(|line| line.trim() != "```")
            .map(|line| line.get(indent..).unwrap_or_default())
            .collect();
        if of.trim() == language {
            found.push(block.join("\n"));
        }
    }
    found
}

/// Commands in the middle of a sentence.
fn mentioned(page: &str) -> Vec<String> {
    let is_command = |code: &str| {
        let program = code.split_once(' ').map(|(program, _)| program);
        program.is_some_and(|program| PROGRAMS.contains(&program))
    };
    let mut fenced = false;
    let mut found = Vec::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let code = line.split('`').skip(1).step_by(2);
            found.extend(code.filter(|code| is_command(code)).map(str::to_owned));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_by_their_language() {
        let page = "a\n```sh\nx\n  y\n```\n```yaml\nz: 1\n```\n1. b:\n\n   ```sh\n   w\n   ```\n```\nsh\n```\n";
        assert_eq!(blocks(page, "sh"), ["x\n  y", "w"]);
        assert_eq!(blocks(page, "yaml"), ["z: 1"]);
    }

    #[test]
    fn commands_in_a_sentence_are_found() {
        let page = "Say `helm list`, or `kubectl get x`; `helm` is Helm.\n```sh\n`helm a`\n```\n";
        assert_eq!(mentioned(page), ["helm list", "kubectl get x"]);
    }
}
