//! `kubectl cudarunner`: answers what people ask about a pool.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use cudarunner_crds::{CudaRunner, CudaRunnerStatus, LOOK_AGAIN};
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client};
use serde_json::json;

/// How long the operator may take to look at GitHub.
const LOOK: Duration = Duration::from_secs(30);

/// Answers what people ask about a CudaRunner.
#[derive(Parser)]
#[command(name = "kubectl cudarunner", version, about)]
struct Cli {
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    /// Why is this job still queued? Has the operator look at GitHub, and says what holds the pool or its jobs.
    Why {
        /// Name of the CudaRunner.
        name: String,
        /// Its namespace; the kubeconfig's where absent.
        #[arg(short, long)]
        namespace: Option<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    // Only fails where a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Question::Why { name, namespace } = Cli::parse().question;
    match why(&name, namespace.as_deref()).await {
        Ok(answer) => {
            print!("{answer}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn why(name: &str, namespace: Option<&str>) -> Result<String, String> {
    let client = Client::try_default()
        .await
        .map_err(|e| format!("no Kubernetes API server: {e}; set KUBECONFIG"))?;
    let namespace = namespace.unwrap_or(client.default_namespace()).to_owned();
    let api = Api::<CudaRunner>::namespaced(client, &namespace);
    let asked = jiff::Timestamp::now().to_string();
    let patch = json!({"metadata": {"annotations": {LOOK_AGAIN: asked}}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(|e| format!("the CudaRunner {namespace}/{name} cannot be asked: {e}"))?;

    let looked =
        tokio::time::timeout(LOOK, await_condition(api.clone(), name, has_looked(asked))).await;
    let resource = api
        .get(name)
        .await
        .map_err(|e| format!("the CudaRunner {namespace}/{name} cannot be read: {e}"))?;
    let mut answer = explain(&resource.status.unwrap_or_default());
    if !matches!(looked, Ok(Ok(_))) {
        answer.push_str(
            "The operator has not looked at GitHub in time; this may be old. Does it run, and are the credentials valid?\n",
        );
    }
    Ok(answer)
}

fn has_looked(asked: String) -> impl Condition<CudaRunner> {
    move |resource: Option<&CudaRunner>| {
        let status = resource.and_then(|r| r.status.as_ref());
        status.is_some_and(|s| s.looked_again.as_deref() == Some(&asked))
    }
}

/// What holds the pool or its jobs, most urgent first; the figures; and the last failures.
fn explain(status: &CudaRunnerStatus) -> String {
    let mut text = String::new();
    let held: Vec<_> = status
        .conditions
        .iter()
        .filter(|c| c.type_ != "Ready")
        .filter(|c| {
            c.status
                == if c.type_ == "Stalled" {
                    "True"
                } else {
                    "False"
                }
        })
        .collect();
    for condition in &held {
        let _ = writeln!(
            text,
            "{} ({}): {}",
            condition.type_, condition.reason, condition.message
        );
    }
    if held.is_empty() {
        text.push_str("Nothing holds this pool.\n");
    }
    let _ = writeln!(
        text,
        "{} queued, {} online, {} busy, {} at the gate, {} pending",
        status.queued, status.online, status.busy, status.gated, status.pending
    );
    for failure in &status.last_failures {
        let _ = writeln!(
            text,
            "{} {} ({}): {}",
            failure.at.0, failure.runner, failure.reason, failure.message
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    fn condition(type_: &str, status: &str, message: &str) -> Condition {
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason: "Reason".into(),
            message: message.into(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn what_holds_is_said_and_what_does_not_is_left_out() {
        let status = CudaRunnerStatus {
            conditions: vec![
                condition("Ready", "False", "summary"),
                condition("Stalled", "True", "mend the Secret"),
                condition("GpuHealthy", "True", "fine"),
                condition("QueueServed", "False", "lacks a100"),
            ],
            queued: 2,
            ..CudaRunnerStatus::default()
        };
        let text = explain(&status);
        assert!(text.contains("mend the Secret") && text.contains("lacks a100"));
        assert!(!text.contains("fine") && !text.contains("summary"));
        assert!(text.contains("2 queued"));
    }

    #[test]
    fn a_pool_that_nothing_holds_says_so() {
        assert!(explain(&CudaRunnerStatus::default()).starts_with("Nothing holds"));
    }
}
