//! Go programs, built from their modules as the module proxy has them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    process::{find, logged, output},
    report::Story,
};

/// What each program takes to build on two cores with nothing in Go's cache, in seconds, as measured: those that come first pay
/// for what the others share.
const SECONDS: [(&str, u64); 12] = [
    ("kube-apiserver", 270),
    ("kube-controller-manager", 92),
    ("kube-scheduler", 10),
    ("kubelet", 24),
    ("kube-proxy", 10),
    ("kubectl", 21),
    ("etcd", 25),
    ("containerd", 50),
    ("containerd-shim-runc-v2", 2),
    ("ctr", 4),
    ("helm", 148),
    ("kwok", 90),
];

/// The versions of everything from Kubernetes: the one that is tested in full, and the oldest that is promised.
pub const KUBERNETES: [&str; 2] = ["1.37.2", "1.33.13"];

/// One module, and the programs of it that we want.
#[derive(Debug)]
pub(super) struct GoTool {
    /// Its name in the cache.
    pub(super) name: &'static str,
    /// Its version, without the `v`.
    pub(super) version: &'static str,
    /// The module's path.
    module: &'static str,
    /// Package path in the module, and the name of the program.
    pub(super) programs: &'static [(&'static str, &'static str)],
    /// Kubernetes calls itself v0.0.0 unless told, and needs its staging modules pinned.
    kubernetes: bool,
    /// Parts to leave out, by the module's own build tags.
    tags: &'static str,
    /// A folder of the module to keep beside the programs.
    keep: Option<(&'static str, &'static str)>,
}

impl GoTool {
    /// Its folder in the cache.
    pub(super) fn folder(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// Its programs, each with the time that it takes on two cores.
    pub(super) fn parts(&self) -> impl Iterator<Item = (String, Duration)> {
        self.programs.iter().map(|(_, program)| {
            let known = SECONDS.iter().find(|(name, _)| name == program);
            let seconds = known.map_or(0, |(_, seconds)| *seconds);
            ((*program).to_owned(), Duration::from_secs(seconds))
        })
    }
}

const fn tool(
    name: &'static str,
    version: &'static str,
    module: &'static str,
    programs: &'static [(&'static str, &'static str)],
) -> GoTool {
    GoTool {
        name,
        version,
        module,
        programs,
        kubernetes: false,
        tags: "",
        keep: None,
    }
}

/// The Lua that Argo CD runs its health checks with.
pub(super) const LUA: GoTool = tool(
    "gopher-lua",
    "1.1.2",
    "github.com/yuin/gopher-lua",
    &[("cmd/glua", "glua")],
);

/// The client of charts.
pub(super) const HELM: GoTool = tool("helm", "4.3.1", "helm.sh/helm/v4", &[("cmd/helm", "helm")]);

/// The linter of GitHub's workflows.
pub(super) const ACTIONLINT: GoTool = tool(
    "actionlint",
    "1.7.12",
    "github.com/rhysd/actionlint",
    &[("cmd/actionlint", "actionlint")],
);

/// The package manager of kubectl's plugins.
pub(super) const KREW: GoTool = tool(
    "krew",
    "0.4.3",
    "sigs.k8s.io/krew",
    &[
        ("cmd/krew", "krew"),
        ("cmd/validate-krew-manifest", "validate-krew-manifest"),
    ],
);

/// The checker of Prometheus' rules, without the clients of every cloud.
pub(super) const PROMTOOL: GoTool = GoTool {
    tags: "remove_all_sd",
    ..tool(
        "promtool",
        "0.316.0",
        "github.com/prometheus/prometheus",
        &[("cmd/promtool", "promtool")],
    )
};

/// The CRDs of the Gateway API; nothing is built.
pub(super) const GATEWAY_API: GoTool = GoTool {
    keep: Some(("config/crd/standard", "crds")),
    ..tool("gateway-api", "1.6.3", "sigs.k8s.io/gateway-api", &[])
};

/// What a cluster of this version is made of, each in a module of its own: together their dependencies clash.
pub(super) fn tools(kubernetes: &'static str) -> [GoTool; 5] {
    [
        GoTool {
            kubernetes: true,
            ..tool(
                "kubernetes",
                kubernetes,
                "k8s.io/kubernetes",
                &[
                    ("cmd/kube-apiserver", "kube-apiserver"),
                    ("cmd/kube-controller-manager", "kube-controller-manager"),
                    ("cmd/kube-scheduler", "kube-scheduler"),
                    ("cmd/kubelet", "kubelet"),
                    ("cmd/kube-proxy", "kube-proxy"),
                    ("cmd/kubectl", "kubectl"),
                ],
            )
        },
        tool(
            "etcd",
            "3.7.3",
            "go.etcd.io/etcd/server/v3",
            &[("", "etcd")],
        ),
        GoTool {
            // Snapshots that need C libraries.
            tags: "no_btrfs,no_devmapper,no_zfs",
            ..tool(
                "containerd",
                "2.3.7",
                "github.com/containerd/containerd/v2",
                &[
                    ("cmd/containerd", "containerd"),
                    ("cmd/containerd-shim-runc-v2", "containerd-shim-runc-v2"),
                    ("cmd/ctr", "ctr"),
                ],
            )
        },
        HELM,
        GoTool {
            keep: Some(("kustomize/stage", "stage")),
            ..tool("kwok", "0.7.0", "sigs.k8s.io/kwok", &[("cmd/kwok", "kwok")])
        },
    ]
}

fn compiler() -> Result<PathBuf> {
    let usual = || Some(PathBuf::from("/usr/local/go/bin/go")).filter(|path| path.is_file());
    find("go").or_else(usual).context(
        "Go is missing: install Go 1.26 or newer (https://go.dev/dl), so that `go` is on the PATH",
    )
}

/// Builds the programs into the folder.
pub(super) fn build(tool: &GoTool, into: &Path, story: &Story) -> Result<()> {
    let go = compiler()?;
    let work = into.join("module");
    fs::create_dir_all(&work)?;
    let log = into.join("build.log");
    let go = |args: &[&str]| {
        let mut command = Command::new(&go);
        command
            .args(args)
            .current_dir(&work)
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off");
        command
    };
    logged(&mut go(&["mod", "init", "e2e-tools"]), &log)?;
    let version = format!("v{}", tool.version);
    let mut flags = "-s -w".to_owned();
    if tool.kubernetes {
        flags.push_str(&kubernetes(tool, &go, &log)?);
    }
    let packages: Vec<String> = tool
        .programs
        .iter()
        .map(|(package, _)| {
            format!("{}/{package}", tool.module)
                .trim_end_matches('/')
                .to_owned()
        })
        .collect();
    let wanted = packages.iter().map(|p| format!("{p}@{version}"));
    if !packages.is_empty() {
        logged(go(&["get", "-tool"]).args(wanted), &log)?;
    }
    for (package, (_, program)) in packages.iter().zip(tool.programs) {
        let mut build = go(&["build", "-trimpath", "-ldflags", &flags]);
        let target = into.join(program);
        build.args(["-tags", tool.tags, "-o"]).arg(target);
        story.building(program, || logged(build.arg(package), &log))?;
    }
    if let Some((folder, name)) = tool.keep {
        let module = download(tool, &go)?;
        // The module cache is read-only; a copy of it would resist removal.
        output(
            Command::new("cp")
                .args(["-r", "--no-preserve=mode"])
                .arg(module.dir.join(folder))
                .arg(into.join(name)),
        )?;
    }
    Ok(())
}

/// Pins Kubernetes' staging modules to its version; gives the flags by which its programs know that.
fn kubernetes(tool: &GoTool, go: &impl Fn(&[&str]) -> Command, log: &Path) -> Result<String> {
    let version = format!("v{}", tool.version);
    let module = download(tool, go)?;
    let manifest = fs::read_to_string(&module.manifest)?;
    let mut parts = tool.version.split('.');
    let (major, minor) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let staging = format!(
        "v0.{}",
        tool.version.split_once('.').map_or("", |(_, rest)| rest)
    );
    for name in staging_modules(&manifest) {
        logged(
            &mut go(&["mod", "edit", &format!("-replace={name}={name}@{staging}")]),
            log,
        )?;
    }
    Ok([
        format!("k8s.io/component-base/version.gitVersion={version}"),
        format!("k8s.io/component-base/version.gitMajor={major}"),
        format!("k8s.io/component-base/version.gitMinor={minor}"),
        format!("k8s.io/client-go/pkg/version.gitVersion={version}"),
    ]
    .map(|setting| format!(" -X {setting}"))
    .concat())
}

/// A module in Go's cache.
struct Module {
    manifest: PathBuf,
    dir: PathBuf,
}

fn download(tool: &GoTool, go: &impl Fn(&[&str]) -> Command) -> Result<Module> {
    let module = format!("{}@v{}", tool.module, tool.version);
    let answer = output(&mut go(&["mod", "download", "-json", &module]))?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let path = |key: &str| {
        answer[key]
            .as_str()
            .map(PathBuf::from)
            .with_context(|| format!("go mod download names no {key}"))
    };
    Ok(Module {
        manifest: path("GoMod")?,
        dir: path("Dir")?,
    })
}

/// The modules that Kubernetes keeps in its own repository, from its go.mod: required as v0.0.0, or replaced by a
/// folder.
fn staging_modules(manifest: &str) -> Vec<&str> {
    let mut names: Vec<_> = manifest
        .lines()
        .map(str::trim)
        .filter_map(|line| {
            let line = line
                .strip_prefix("require ")
                .or_else(|| line.strip_prefix("replace "))
                .unwrap_or(line);
            let (name, rest) = line.split_once(' ')?;
            let staging = rest.starts_with("v0.0.0") && !rest.starts_with("v0.0.0-")
                || rest.contains("./staging/");
            (name.starts_with("k8s.io/") && staging).then_some(name)
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_program_it_is_known_how_long_it_takes() {
        for (program, time) in tools(KUBERNETES[0]).iter().flat_map(GoTool::parts) {
            assert!(time > Duration::ZERO, "{program}");
        }
    }

    #[test]
    fn staging_modules_are_read_from_both_forms() {
        let manifest = "module k8s.io/kubernetes\nrequire (\n\tk8s.io/api v0.0.0\n\tk8s.io/klog/v2 v2.130.1\n\tk8s.io/kube-openapi v0.0.0-2025\n)\nreplace (\n\tk8s.io/client-go => ./staging/src/k8s.io/client-go\n)\nreplace k8s.io/api => ./staging/src/k8s.io/api\n";
        assert_eq!(
            staging_modules(manifest),
            ["k8s.io/api", "k8s.io/client-go"]
        );
    }
}
