//! Flags and environment: the only reader of either.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use clap::{Args, Parser, Subcommand, ValueEnum};
use cudarunner_crds::OperatorStatus;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::device_taints::Tainting;
use crate::github::Reach;
use crate::lease::LEASE;
use crate::selector::PoolSelector;
use cuda_runner_plan::device_taints::Effect;
use cuda_runner_plan::node_marks::Marking;
use cuda_runner_plan::shares::HEAVIEST;

/// Turns GPU nodes into trustworthy GitHub Actions runners.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator, in a cluster or, with a kubeconfig, outside of one.
    Run(Box<Config>),
    /// Print the CustomResourceDefinition as YAML.
    Crd,
    /// Take the operator's finalizer off every pool, so that pools can be deleted without it. Nothing on GitHub changes.
    Uninstall(Uninstall),
}

/// Which operator is gone, and which pools it served.
#[derive(Args, Clone, Debug)]
pub struct Uninstall {
    /// Namespace that the operator ran in.
    #[arg(long, env, default_value = "cuda-runner-system")]
    pub operator_namespace: String,

    /// Labels of the operator's pods. None of them may run any more.
    #[arg(
        long,
        env,
        default_value = "app.kubernetes.io/name=cuda-runner-operator"
    )]
    pub operator_selector: String,

    /// Namespaces that it served, separated by commas; all where none is named.
    #[arg(long, env, value_delimiter = ',')]
    pub watch_namespace: Vec<String>,

    /// Which pools it served, by their labels; all where it is not given.
    #[arg(long, env, value_name = "SELECTOR")]
    pub pool_selector: Option<PoolSelector>,

    /// Name of its Lease. Pools that name another operator are not touched.
    #[arg(long, env, default_value = LEASE)]
    pub lease_name: String,
}

impl Uninstall {
    /// The operator, as pools name it.
    #[must_use]
    pub fn operator(&self) -> OperatorStatus {
        OperatorStatus {
            namespace: self.operator_namespace.clone(),
            name: self.lease_name.clone(),
        }
    }
}

/// How the operator runs. Each flag has an environment variable of the same name.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Image of the gate, which holds `cuda-smoke`.
    #[arg(long, env)]
    pub gate_image: String,

    /// Pull policy of the gate's image: `Always`, `IfNotPresent` or `Never`.
    #[arg(long, env, default_value = "IfNotPresent")]
    pub image_pull_policy: String,

    /// Namespace of the operator itself, where it keeps its certificate authority.
    #[arg(long, env, default_value = "cuda-runner-system")]
    pub operator_namespace: String,

    /// Namespaces to watch, separated by commas; all where none is named.
    #[arg(long, env, value_delimiter = ',')]
    pub watch_namespace: Vec<String>,

    /// Which pools to serve, by their labels, as `--selector` of kubectl takes it: `shard=a`, `shard notin (a,b)`. All where
    /// it is not given. Other operators may serve the others.
    #[arg(long, env, requires = "leader_elect", value_name = "SELECTOR")]
    pub pool_selector: Option<PoolSelector>,

    /// Name of the operator's Lease, in its own namespace. Operators beside one another need different ones.
    #[arg(long, env, default_value = LEASE)]
    pub lease_name: String,

    /// What namespaces get of GPUs that are short, `NAMESPACE=WEIGHT` with weights from 1 to 10, separated by commas; 1 where
    /// none is given.
    #[arg(long, env, value_delimiter = ',', value_name = "NAMESPACE=WEIGHT", value_parser = namespace_weight)]
    pub namespace_weight: Vec<(String, u32)>,

    /// Address on which the registrar listens.
    #[arg(long, env, default_value = "0.0.0.0:8443")]
    pub registrar_listen: SocketAddr,

    /// Service, in the operator's namespace, through which pods reach the registrar.
    #[arg(
        long,
        env,
        default_value = "cuda-runner-operator-registrar",
        conflicts_with = "registrar_url"
    )]
    pub registrar_service: String,

    /// Address by which pods reach the registrar, instead of the Service: for an operator outside of the cluster.
    #[arg(long, env)]
    pub registrar_url: Option<String>,

    /// Address on which /livez, /readyz and /metrics answer.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    pub health_listen: SocketAddr,

    /// Take part in a leader election: for more than one replica.
    #[arg(long, env)]
    pub leader_elect: bool,

    /// Name of this replica in the leader election and in Events.
    #[arg(long, env = "POD_NAME", default_value = "cuda-runner-operator")]
    pub identity: String,

    /// What the rest of the cluster sees of nodes.
    #[command(flatten)]
    pub marks: NodeMarks,

    /// What the rest of the cluster sees of devices.
    #[command(flatten)]
    pub device_taints: DeviceTaints,

    /// Count GPU seconds by repository, too. Whoever reads the metrics sees the repositories' names then.
    #[arg(long, env)]
    pub metrics_by_repository: bool,
    /// End a runner whose agent hangs: one of which GitHub and its pod have not said the same for so many seconds.
    #[arg(long, env, default_value_t = 600, value_parser = clap::value_parser!(u32).range(10..=86_400))]
    pub hung_after_seconds: u32,

    /// Allow GitHub servers by plain http, which sends credentials unencrypted.
    #[arg(long, env)]
    pub insecure_github: bool,

    /// What pools may have the operator ask.
    #[command(flatten)]
    pub reach: GitHubAddresses,

    /// Form of the log.
    #[arg(long, env, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged, as in `info,cuda_runner_operator=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_filter: String,

    /// Address on which /log shows and changes the form and the filter of the log. Whoever reaches it may use it.
    #[arg(long, env)]
    pub admin_listen: Option<SocketAddr>,

    /// The page of the fleet.
    #[command(flatten)]
    pub fleet: FleetPage,

    /// The webhooks of GitHub.
    #[command(flatten)]
    pub webhooks: WebhookEndpoint,

    /// OTLP collector that is sent traces, by protobuf over HTTP, as in `http://collector:4318`.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

impl Config {
    /// This operator, as pools name it.
    #[must_use]
    pub fn operator(&self) -> OperatorStatus {
        OperatorStatus {
            namespace: self.operator_namespace.clone(),
            name: self.lease_name.clone(),
        }
    }

    /// The weights of namespaces that have one.
    #[must_use]
    pub fn namespace_weights(&self) -> BTreeMap<String, u32> {
        self.namespace_weight.iter().cloned().collect()
    }
}

/// The page of the fleet.
#[derive(Args, Clone, Debug, Default)]
pub struct FleetPage {
    /// Address on which the page of the fleet and /api/fleet answer. Whoever reaches it may read it: names of nodes,
    /// repositories and jobs.
    #[arg(long, env)]
    pub fleet_listen: Option<SocketAddr>,

    /// Names by which browsers may ask for the page, separated by commas, besides addresses, localhost and names within the
    /// cluster: those of a proxy before it.
    #[arg(long, env, value_delimiter = ',', value_name = "NAME")]
    pub fleet_host: Vec<String>,
}

/// The webhooks of GitHub, which wake pools with `scaling.source: Webhook`.
#[derive(Args, Clone, Debug, Default)]
pub struct WebhookEndpoint {
    /// Address on which webhooks are taken. Whoever reaches it may send anything: what GitHub has not signed is refused.
    #[arg(long, env, requires = "webhook_url")]
    pub webhook_listen: Option<SocketAddr>,

    /// Address at which GitHub reaches it, as in `https://hooks.example.com/cuda-runner`: that of an Ingress or a Gateway.
    #[arg(long, env, value_name = "URL", value_parser = base_url)]
    pub webhook_url: Option<String>,
}

/// An address below which there is something.
fn base_url(text: &str) -> Result<String, String> {
    let url = text.parse::<http::Uri>().ok();
    let is_whole = url.is_some_and(|url| {
        let is_web = matches!(url.scheme_str(), Some("http" | "https"));
        is_web && url.host().is_some() && url.query().is_none() && !text.contains(['@', '#'])
    });
    is_whole
        .then(|| text.trim_end_matches('/').to_owned())
        .ok_or_else(|| "give an address such as https://hooks.example.com".to_owned())
}

/// What the rest of the cluster sees of nodes.
#[derive(Args, Clone, Copy, Debug)]
pub struct NodeMarks {
    /// Give nodes that fail the gate the condition `CudaSmoke`. Needs the right to patch `nodes/status`.
    #[arg(long, env)]
    pub node_condition: bool,

    /// Give quarantined nodes the taint `cudarunner.dev/cuda-smoke-failed`. Needs the right to patch `nodes`.
    #[arg(long, env)]
    pub node_taint: bool,
}

impl NodeMarks {
    /// Which marks nodes get.
    #[must_use]
    pub fn marking(&self) -> Marking {
        Marking {
            condition: self.node_condition,
            taint: self.node_taint,
        }
    }
}

/// What the rest of the cluster sees of devices that DRA drivers publish.
#[derive(Args, Clone, Debug, Default)]
pub struct DeviceTaints {
    /// Taint devices that fail the gate, by `DeviceTaintRules` with this effect, instead of quarantining their nodes. With
    /// `None` the rules only tell, and nodes are quarantined. Needs Kubernetes 1.37 and the rights for it.
    #[arg(long, env, value_enum, requires = "device_taint_owner")]
    pub device_taint_effect: Option<DeviceTaintEffect>,

    /// `ClusterRole` that the rules belong to: Kubernetes removes them with it.
    #[arg(long, env, value_name = "CLUSTERROLE")]
    pub device_taint_owner: Option<String>,
}

/// The effect of a taint on a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum DeviceTaintEffect {
    /// New pods keep off the device.
    #[value(name = "NoSchedule")]
    NoSchedule,
    /// It only tells.
    #[value(name = "None")]
    None,
}

impl DeviceTaints {
    /// How devices are tainted, where they are.
    #[must_use]
    pub fn tainting(&self) -> Option<Tainting> {
        let effect = match self.device_taint_effect? {
            DeviceTaintEffect::NoSchedule => Effect::NoSchedule,
            DeviceTaintEffect::None => Effect::None,
        };
        let owner = self.device_taint_owner.clone()?;
        Some(Tainting { effect, owner })
    }
}

/// What pools may have the operator ask. Whoever writes a pool names the server, and the operator may reach more than they do.
#[derive(Args, Clone, Debug, Default)]
pub struct GitHubAddresses {
    /// Addresses of GitHub servers and proxies that pools may name although they are not asked otherwise, as networks,
    /// separated by commas.
    #[arg(long, env, value_delimiter = ',', value_name = "CIDR", value_parser = network)]
    pub allow_github_address: Vec<IpNet>,

    /// Addresses that are not asked for a pool, as networks, separated by commas: those of the cluster's Services, pods
    /// and nodes. Loopback and link-local addresses, metadata services and the API server never are.
    #[arg(long, env, value_delimiter = ',', value_name = "CIDR", value_parser = network)]
    pub deny_github_address: Vec<IpNet>,
}

impl GitHubAddresses {
    /// Which addresses are asked, where `own` are the API server's.
    #[must_use]
    pub fn reach(&self, own: impl Iterator<Item = IpAddr>) -> Reach {
        let denied = self.deny_github_address.iter().copied();
        Reach {
            allowed: self.allow_github_address.clone(),
            denied: denied.chain(own.map(IpNet::from)).collect(),
        }
    }
}

/// A namespace and its weight.
fn namespace_weight(text: &str) -> Result<(String, u32), String> {
    let (namespace, weight) = text.split_once('=').unwrap_or((text, ""));
    let weight = weight.parse().ok().filter(|w| (1..=HEAVIEST).contains(w));
    let pair = weight.map(|weight| (namespace.to_owned(), weight));
    pair.filter(|(namespace, _)| !namespace.is_empty())
        .ok_or_else(|| format!("give NAMESPACE=WEIGHT with a weight from 1 to {HEAVIEST}"))
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>();
    net.or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "give a network such as 10.96.0.0/12, or an address".to_owned())
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_given_in_full_or_as_one_address() {
        let line = [
            "cuda-runner-operator",
            "run",
            "--gate-image=gate",
            "--allow-github-address=127.0.0.1,fd00::/8",
            "--deny-github-address=10.96.0.0/12",
        ];
        let Command::Run(config) = Cli::parse_from(line).command else {
            unreachable!("the subcommand is run");
        };
        let reach = config
            .reach
            .reach(["192.168.0.1".parse().unwrap()].into_iter());
        for (address, is_asked) in [
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("fd00::1", true),
            ("10.100.0.1", false),
            ("192.168.0.1", false),
            ("192.168.0.2", true),
        ] {
            assert_eq!(
                reach.permits(address.parse().unwrap()),
                is_asked,
                "{address}"
            );
        }
        assert!(network("10.0.0.0/99").is_err());
    }

    #[test]
    fn webhooks_need_an_address_that_github_reaches() {
        let parsed = |more: &[&str]| {
            let line = ["cuda-runner-operator", "run", "--gate-image=gate"];
            Cli::try_parse_from(line.iter().chain(more)).is_ok()
        };
        let listen = "--webhook-listen=0.0.0.0:8083";
        assert!(!parsed(&[listen]));
        for (url, is_one) in [
            ("https://hooks.example.com", true),
            ("http://10.0.0.1:30083/cuda-runner/", true),
            ("hooks.example.com", false),
            ("https://user@hooks.example.com", false),
            ("https://hooks.example.com/?a=b", false),
        ] {
            assert_eq!(
                parsed(&[listen, &format!("--webhook-url={url}")]),
                is_one,
                "{url}"
            );
        }
    }

    #[test]
    fn a_selector_needs_a_lease() {
        let parsed = |more: &[&str]| {
            let line = ["cuda-runner-operator", "run", "--gate-image=gate"];
            Cli::try_parse_from(line.iter().chain(more)).is_ok()
        };
        assert!(parsed(&[
            "--leader-elect",
            "--pool-selector=shard notin (a,b)"
        ]));
        assert!(!parsed(&["--pool-selector=shard=a"]));
        assert!(!parsed(&["--leader-elect", "--pool-selector=shard in a"]));
    }

    #[test]
    fn a_devices_taint_keeps_off_or_only_tells() {
        for (word, effect) in [
            (Some("NoSchedule"), Some(Effect::NoSchedule)),
            (Some("None"), Some(Effect::None)),
            (None, None),
        ] {
            let line = ["cuda-runner-operator", "run", "--gate-image=gate"].map(str::to_owned);
            let effect_flag = word.map(|word| format!("--device-taint-effect={word}"));
            let owner = word.map(|_| "--device-taint-owner=role".to_owned());
            let line = line.into_iter().chain(effect_flag).chain(owner);
            let Command::Run(config) = Cli::parse_from(line).command else {
                unreachable!("the subcommand is run");
            };
            let tainting = config.device_taints.tainting();
            assert_eq!(tainting.map(|t| t.effect), effect, "{word:?}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
