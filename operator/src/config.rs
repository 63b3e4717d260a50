//! Flags and environment: the only reader of either.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

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

    /// Allow GitHub servers by plain http, which sends credentials unencrypted.
    #[arg(long, env)]
    pub insecure_github: bool,

    /// Form of the log.
    #[arg(long, env, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged, as in `info,cuda_runner_operator=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_filter: String,

    /// Address on which /log shows and changes the form and the filter of the log. Whoever reaches it may use it.
    #[arg(long, env)]
    pub admin_listen: Option<SocketAddr>,

    /// OTLP collector that is sent traces, by protobuf over HTTP, as in `http://collector:4318`.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

/// What the rest of the cluster sees of nodes.
#[derive(Args, Clone, Copy, Debug)]
pub struct NodeMarks {
    /// Give nodes that fail the gate the condition `CudaSmoke`. Needs the right to patch `nodes/status`.
    #[arg(long, env)]
    pub node_condition: bool,

    /// Give nodes that are left alone the taint `cudarunner.dev/cuda-smoke-failed`. Needs the right to patch `nodes`.
    #[arg(long, env)]
    pub node_taint: bool,
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
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
