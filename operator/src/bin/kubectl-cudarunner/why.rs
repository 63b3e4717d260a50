//! `why`: what holds the pool or its jobs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use cuda_runner_plan::condition::held;
use cudarunner_crds::{CudaRunner, CudaRunnerStatus, LOOK_AGAIN};
use kube::runtime::wait::{self, await_condition};
use serde_json::{Value, json};

use crate::connect::Pools;
use crate::text::wrap;

/// How long the operator may take to look at GitHub.
const LOOK: Duration = Duration::from_secs(30);

/// Has the operator look at GitHub, and reads the pool: also whether it has looked.
pub(crate) async fn ask(pools: &Pools, name: &str) -> Result<(CudaRunner, bool), String> {
    let asked = jiff::Timestamp::now().to_string();
    pools
        .annotate(&pools.namespace, name, LOOK_AGAIN, &asked)
        .await?;
    let looking = await_condition(pools.api(), name, has_looked(asked));
    let looked = matches!(tokio::time::timeout(LOOK, looking).await, Ok(Ok(_)));
    Ok((pools.get(name).await?, looked))
}

fn has_looked(asked: String) -> impl wait::Condition<CudaRunner> {
    move |resource: Option<&CudaRunner>| {
        let status = resource.and_then(|r| r.status.as_ref());
        status.is_some_and(|s| s.looked_again.as_deref() == Some(&asked))
    }
}

/// What holds the pool or its jobs, the figures, and the last failures.
pub(crate) fn text(status: &CudaRunnerStatus, looked: bool) -> String {
    let mut text = String::new();
    let troubles = held(status);
    for condition in &troubles {
        let head = format!("{} ({}): ", condition.type_, condition.reason);
        wrap(&mut text, &head, 2, &condition.message);
    }
    if troubles.is_empty() {
        text.push_str("Nothing holds this pool.\n");
    }
    let _ = writeln!(
        text,
        "{} queued, {} online, {} busy, {} at the gate, {} pending",
        status.queued, status.online, status.busy, status.gated, status.pending
    );
    for (runner, waiting) in waiting(status) {
        wrap(&mut text, &format!("{runner} waits: "), 2, waiting);
    }
    for failure in &status.last_failures {
        let head = format!("{} {} ({}): ", failure.at.0, failure.runner, failure.reason);
        wrap(&mut text, &head, 2, &failure.message);
    }
    if !looked {
        wrap(
            &mut text,
            "",
            0,
            "The operator has not looked at GitHub in time; this may be old. Does it run, and are the credentials valid?",
        );
    }
    text
}

/// The same for programs.
pub(crate) fn json(status: &CudaRunnerStatus, looked: bool) -> Value {
    json!({
        "held": held(status),
        "queued": status.queued,
        "online": status.online,
        "busy": status.busy,
        "gated": status.gated,
        "pending": status.pending,
        "waiting": waiting(status),
        "lastFailures": status.last_failures,
        "looked": looked,
    })
}

/// What runners wait for, by their names.
fn waiting(status: &CudaRunnerStatus) -> BTreeMap<&str, &str> {
    let waiting = status
        .runners
        .iter()
        .filter_map(|runner| Some((runner.name.as_str(), runner.waiting.as_deref()?)));
    waiting.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn what_holds_is_said_and_what_does_not_is_left_out() {
        let status = fixture::pool("my-pool").status.unwrap();
        let text = text(&status, true);
        fixture::fits(&text);
        insta::assert_snapshot!(text);
        fixture::in_the_reference(&text);
        assert!(!text.contains("Accepted") && !text.contains("Ready ("));
    }

    #[test]
    fn a_pool_that_nothing_holds_says_so() {
        let status = CudaRunnerStatus::default();
        assert!(super::text(&status, true).starts_with("Nothing holds"));
        assert!(super::text(&status, false).contains("not looked"));
    }

    #[test]
    fn a_pool_that_is_not_ready_for_a_reason_that_may_pass_says_it() {
        let mut status = fixture::pool("my-pool").status.unwrap();
        status.conditions.retain(|c| c.type_ == "Ready");
        status.conditions[0].status = "False".to_owned();
        assert!(super::text(&status, true).starts_with("Ready ("));
    }

    #[test]
    fn what_a_runner_waits_for_is_said_though_others_are_online() {
        let mut status = fixture::pool("spare").status.unwrap();
        let word = "container runner, image a/b:1: ImagePullBackOff: not found";
        status.runners.truncate(1);
        status.runners[0].waiting = Some(word.to_owned());
        let text = super::text(&status, true);
        assert!(
            text.replace('\n', " ").contains("waits: container runner"),
            "{text}"
        );
        assert_eq!(json(&status, true)["waiting"].as_object().unwrap().len(), 1);
    }

    #[test]
    fn programs_get_the_conditions_too() {
        let status = fixture::pool("my-pool").status.unwrap();
        let json = json(&status, false);
        assert_eq!(json["held"][0]["type"], "GpuHealthy");
        assert_eq!(
            (&json["queued"], &json["looked"]),
            (&json!(2), &json!(false))
        );
    }
}
