//! `verify`: has the workflow of `spec.verify` run again, and follows it.

use std::pin::pin;
use std::time::Duration;

use cuda_runner_plan::reason::{Reason, Stored};
use cuda_runner_plan::why::troubles;
use cudarunner_crds::{
    CudaRunner, VERIFY, VerificationState, VerificationStatus, VerifiedJobStatus,
};
use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Error, watch_object};

use crate::connect::{Pools, is_forbidden, said, shown};
use crate::text::{count, wrap};

/// How a verification ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Every job did what it should.
    Green,
    /// The run did not come to a good end.
    Red,
    /// There was no run.
    NotRun,
}

impl Verdict {
    /// What the plugin exits with.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Green => 0,
            Self::Red => 1,
            Self::NotRun => 2,
        }
    }
}

/// Asks the operator for a verification. `asked` must be new: the status repeats it.
pub(crate) async fn ask(pools: &Pools, name: &str, asked: &str) -> Result<(), String> {
    let pool = pools.get(name).await?;
    if pool.spec.verify.is_none() {
        return Err(not_set(pools, name));
    }
    pools.annotate(&pools.namespace, name, VERIFY, asked).await
}

fn not_set(pools: &Pools, name: &str) -> String {
    format!(
        "{}/{name} has no spec.verify: there is no workflow to run",
        pools.namespace
    )
}

/// Tells each change once, until the verification has ended.
pub(crate) async fn follow(
    pools: &Pools,
    name: &str,
    asked: &str,
    limit: Duration,
    tell: &mut dyn FnMut(&str),
) -> Result<Verdict, String> {
    let look = async {
        tell("asked for\n");
        let mut reported = vec![];
        let mut stream = pin!(watch_object(pools.api(), name).default_backoff());
        while let Some(seen) = stream.next().await {
            let pool = match seen {
                Ok(Some(pool)) => shown(pool),
                Ok(None) => return Err(format!("{}/{name} was deleted", pools.namespace)),
                Err(Error::InitialListFailed(e) | Error::WatchStartFailed(e))
                    if is_forbidden(&e) =>
                {
                    return Err(format!(
                        "{}/{name} cannot be watched: {}",
                        pools.namespace,
                        said(&e)
                    ));
                }
                // The watch goes on by itself.
                Err(_) => continue,
            };
            if pool.spec.verify.is_none() {
                return Err(not_set(pools, name));
            }
            let Progress { lines, verdict } = Progress::of(&pool, asked);
            for line in lines.iter().filter(|line| !reported.contains(*line)) {
                let mut text = String::new();
                wrap(&mut text, "", 2, line);
                tell(&text);
            }
            reported = lines;
            if let Some(verdict) = verdict {
                return Ok(verdict);
            }
        }
        Err("the watch has ended".to_owned())
    };
    tokio::time::timeout(limit, look).await.unwrap_or_else(|_| {
        Err(format!(
            "the verification has not ended within {} seconds",
            limit.as_secs()
        ))
    })
}

/// What can be said of the verification that was asked for.
struct Progress {
    lines: Vec<String>,
    verdict: Option<Verdict>,
}

impl Progress {
    fn of(pool: &CudaRunner, asked: &str) -> Self {
        let status = pool.status.as_ref();
        let verification = status.and_then(|s| s.verification.as_ref());
        match verification {
            Some(ours) if ours.asked.as_deref() == Some(asked) => Self::of_ours(ours),
            other => Self::waiting(pool, other),
        }
    }

    /// It is not decided on yet: by another one, or for want of a runner.
    fn waiting(pool: &CudaRunner, other: Option<&VerificationStatus>) -> Self {
        if let Some(other) = other.filter(|v| !v.stage().has_ended()) {
            let url = other.url.as_deref().unwrap_or("about to be started");
            return Self {
                lines: vec![format!("waits for the verification before it: {url}")],
                verdict: None,
            };
        }
        let status = pool.status.clone().unwrap_or_default();
        let troubles = troubles(&status);
        let find = |type_: &str| troubles.iter().find(|c| c.type_ == type_);
        let has_no_repository =
            |c: &&Condition| Stored::parse(&c.reason) == Reason::RepositoryMissing;
        let is_vain = find("CredentialsValid").is_some()
            || find("WorkflowVerified").is_some_and(has_no_repository)
            || find("Stalled").is_some() && status.online == 0;
        let mut lines = vec![];
        if status.online == 0 {
            lines.push("waits for a runner to be online".to_owned());
        }
        if status.online == 0 || is_vain {
            // What is said of the workflow is of an earlier run.
            let others = troubles
                .iter()
                .filter(|c| c.type_ != "WorkflowVerified" || has_no_repository(c));
            lines.extend(others.map(|c| format!("{} ({}): {}", c.type_, c.reason, c.message)));
        }
        Self {
            lines,
            verdict: is_vain.then_some(Verdict::NotRun),
        }
    }

    fn of_ours(ours: &VerificationStatus) -> Self {
        let mut lines = vec!["requested".to_owned()];
        lines.extend(ours.url.as_ref().map(|url| format!("runs: {url}")));
        for job in &ours.jobs {
            lines.extend(picked_up(job));
            lines.extend(concluded(job));
        }
        let reason = ours
            .reason
            .as_ref()
            .map(|r| format!(" ({r})"))
            .unwrap_or_default();
        let message = ours.message.as_deref().unwrap_or_default();
        let (word, verdict) = match (ours.stage(), ours.run_id) {
            (VerificationState::Succeeded, _) => ("green", Some(Verdict::Green)),
            (VerificationState::Failed, Some(_)) => ("red", Some(Verdict::Red)),
            (VerificationState::Failed, None) => ("not run", Some(Verdict::NotRun)),
            _ if message.is_empty() => {
                return Self {
                    lines,
                    verdict: None,
                };
            }
            _ => ("not well", None),
        };
        lines.push(
            format!("{word}{reason}: {message}")
                .trim_end_matches(": ")
                .to_owned(),
        );
        Self { lines, verdict }
    }
}

fn picked_up(job: &VerifiedJobStatus) -> Option<String> {
    let runner = job.runner.as_ref()?;
    let after = job
        .queued_seconds
        .map(|s| format!(" after {}", count(s, "second")));
    Some(format!(
        "{}: picked up by {runner}{}",
        job.name,
        after.unwrap_or_default()
    ))
}

fn concluded(job: &VerifiedJobStatus) -> Option<String> {
    let conclusion = job.conclusion.as_ref()?;
    let tests = job.passed.map(|n| format!(", {} passed", count(n, "test")));
    Some(format!(
        "{}: {conclusion}{}",
        job.name,
        tests.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests;
