//! `status`: a pool at a glance.

use std::fmt::Write as _;

use cuda_runner_plan::why::causes;
use cudarunner_crds::{
    CudaRunner, CudaRunnerStatus, QuarantineStatus, RequiredChecksStatus, VerificationStatus,
};
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::connect::key;
use crate::text::{count, device, or_dash, span, table, wrap};

/// How many failures are reported with their message.
const FAILURES: usize = 3;
/// How many jobs are shown.
const JOBS: usize = 5;

/// The pool at a glance.
pub(crate) fn text(pool: &CudaRunner, now: Timestamp) -> String {
    let mut out = String::new();
    let Some(status) = &pool.status else {
        let _ = writeln!(
            out,
            "{}",
            title(pool, "has no status yet: does the operator run?")
        );
        return out;
    };
    heading(&mut out, pool, status);
    not_as_wished(&mut out, pool);
    runners(&mut out, status, now);
    quarantine(&mut out, status, now);
    tainted(&mut out, status);
    suspects(&mut out, status);
    stale_labels(&mut out, status);
    if let Some(verification) = &status.verification {
        self::verification(&mut out, verification, now);
    }
    if let Some(checks) = &status.required_checks {
        required(&mut out, checks);
    }
    jobs(&mut out, status, now);
    failures(&mut out, status, now);
    out
}

/// The same for programs: the status, and what of it is not as wished.
pub(crate) fn json(pool: &CudaRunner) -> Value {
    let status = pool.status.clone().unwrap_or_default();
    json!({
        "namespace": pool.namespace(),
        "name": pool.name_any(),
        "ready": is_ready(&status),
        "causes": causes(pool),
        "status": status,
    })
}

/// All pools, a line each.
pub(crate) fn text_of_all(pools: &[CudaRunner], now: Timestamp) -> String {
    if pools.is_empty() {
        return "There is no CudaRunner.\n".to_owned();
    }
    let heading = ["POOL", "READY", "ONLINE", "BUSY", "QUEUED", "AGE", "WHY"];
    let mut rows = vec![heading.map(str::to_owned)];
    for pool in pools {
        let status = pool.status.clone().unwrap_or_default();
        let created = pool.metadata.creation_timestamp.as_ref();
        let why = causes(pool).into_iter().next();
        rows.push([
            key(pool),
            if is_ready(&status) { "yes" } else { "no" }.to_owned(),
            status.online.to_string(),
            status.busy.to_string(),
            status.queued.to_string(),
            or_dash(created.map(|at| span(at.0, now))),
            or_dash(why.map(|cause| cause.about)),
        ]);
    }
    let mut out = String::new();
    table(&mut out, &rows, 6);
    out
}

/// The same for programs.
pub(crate) fn json_of_all(pools: &[CudaRunner]) -> Value {
    json!({"pools": pools.iter().map(json).collect::<Vec<_>>()})
}

fn is_ready(status: &CudaRunnerStatus) -> bool {
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
    ready.is_some_and(|c| c.status == "True")
}

fn title(pool: &CudaRunner, says: &str) -> String {
    format!("{} {says}", key(pool))
}

fn heading(out: &mut String, pool: &CudaRunner, status: &CudaRunnerStatus) {
    let says = if is_ready(status) {
        "is ready"
    } else {
        "is not ready"
    };
    let _ = writeln!(out, "{}", title(pool, says));
    let mut counts = vec![
        count(status.replicas, "runner"),
        format!("{} pending", status.pending),
        format!("{} at the gate", status.gated),
        format!("{} online", status.online),
        format!("{} busy", status.busy),
    ];
    if status.failed > 0 {
        counts.push(format!(
            "{} kept for inspection",
            count(status.failed, "failed pod")
        ));
    }
    if status.consecutive_failures > 0 {
        counts.push(format!(
            "{} in a row",
            count(status.consecutive_failures, "failure")
        ));
    }
    counts.push(format!("{} queued", count(status.queued, "job")));
    wrap(out, "", 0, &counts.join(", "));
    let mut facts = vec![pool.spec.github.url.clone(), status.gpu.clone()];
    if let Some(version) = &status.runner_version {
        let ends = status.runner_version_ends.as_ref();
        let ends = ends.map(|at| format!(" (gets jobs until {})", at.0.strftime("%Y-%m-%d")));
        facts.push(format!("agent {version}{}", ends.unwrap_or_default()));
    }
    wrap(out, "", 0, &facts.join(", "));
}

fn not_as_wished(out: &mut String, pool: &CudaRunner) {
    let causes = causes(pool);
    if causes.is_empty() {
        return;
    }
    out.push_str("\nNOT AS WISHED\n");
    for cause in causes {
        wrap(out, &format!("  {}: ", cause.about), 4, &cause.message);
    }
}

fn runners(out: &mut String, status: &CudaRunnerStatus, now: Timestamp) {
    if status.runners.is_empty() {
        return;
    }
    let mut rows = vec![["NAME", "NODE", "DEVICE", "PHASE", "SINCE"].map(str::to_owned)];
    for runner in &status.runners {
        let more = match runner.devices.len() {
            0 | 1 => String::new(),
            n => format!(" +{}", n - 1),
        };
        let first = runner.devices.first().map(|uuid| device(uuid) + &more);
        rows.push([
            runner.name.clone(),
            or_dash(runner.node.as_ref()),
            or_dash(first),
            runner.phase.to_string(),
            span(runner.since.0, now),
        ]);
    }
    out.push_str("\nRUNNERS\n");
    table(out, &rows, 1);
    if status.runners_not_listed > 0 {
        let _ = writeln!(out, "  and {} more", status.runners_not_listed);
    }
}

fn quarantine(out: &mut String, status: &CudaRunnerStatus, now: Timestamp) {
    if status.quarantine.is_empty() {
        return;
    }
    let mut rows = vec![["NODE", "DEVICE", "SCOPE", "CLASS", "CODE", "UNTIL"].map(str::to_owned)];
    for entry in &status.quarantine {
        let until = entry.until.as_ref().map(|until| {
            let clock = until.0.strftime("%H:%MZ");
            if until.0 > now {
                format!("{clock}, in {}", span(now, until.0))
            } else if entry.retest {
                format!("{clock}, over: one runner tries it, and it is tainted until then")
            } else if entry.is_of_device() {
                format!("{clock}, over: the next runner tries it")
            } else {
                format!("{clock}, over: one runner tries it")
            }
        });
        rows.push([
            entry.node.clone(),
            or_dash(entry.device.as_deref().map(device)),
            scope(entry).to_owned(),
            entry.class.to_string(),
            or_dash(entry.code),
            or_dash(until),
        ]);
    }
    out.push_str("\nQUARANTINE\n");
    table(out, &rows, 0);
}

/// What an entry sets aside.
fn scope(entry: &QuarantineStatus) -> &'static str {
    if entry.is_of_device() {
        "device"
    } else {
        "node"
    }
}

fn tainted(out: &mut String, status: &CudaRunnerStatus) {
    let mut rows = vec![["NODE", "NAME", "DEVICE", "TAINTS"].map(str::to_owned)];
    rows.extend(status.tainted_devices.iter().map(|found| {
        [
            found.node.clone(),
            found.name.clone(),
            or_dash(found.uuid.as_deref().map(device)),
            found.taints.join(", "),
        ]
    }));
    if rows.len() > 1 {
        out.push_str("\nTAINTED BY THEIR DRIVER\n");
        table(out, &rows, 0);
    }
}

/// Only those that are told: the others are in the status.
fn suspects(out: &mut String, status: &CudaRunnerStatus) {
    let mut rows = vec![["NODE", "DEVICE", "JOBS", "FAILED"].map(str::to_owned)];
    let suspect = status.devices.iter().filter(|device| device.suspect);
    rows.extend(suspect.map(|found| {
        [
            or_dash(found.node.as_ref()),
            device(&found.uuid),
            found.jobs.to_string(),
            found.failed.to_string(),
        ]
    }));
    if rows.len() > 1 {
        out.push_str("\nSUSPECT DEVICES\n");
        table(out, &rows, 1);
    }
}

fn stale_labels(out: &mut String, status: &CudaRunnerStatus) {
    if status.stale_labels.is_empty() {
        return;
    }
    out.push_str("\nSTALE LABELS\n");
    for stale in &status.stale_labels {
        let label = format!(
            "{}: {} is {}, found was {}",
            stale.node, stale.label, stale.value, stale.found
        );
        wrap(out, "  ", 4, &label);
    }
}

fn verification(out: &mut String, status: &VerificationStatus, now: Timestamp) {
    out.push_str("\nVERIFICATION\n");
    let reason = status.reason.as_ref().map(|r| format!(" ({r})"));
    let since = status.ended.as_ref().unwrap_or(&status.since);
    let _ = writeln!(
        out,
        "  {}{}, {} ago",
        status.state,
        reason.unwrap_or_default(),
        span(since.0, now)
    );
    if let Some(url) = &status.url {
        let _ = writeln!(out, "  {url}");
    }
    // What has ended badly is among the conditions.
    if let Some(message) = status
        .message
        .as_ref()
        .filter(|_| !status.stage().has_ended())
    {
        wrap(out, "  ", 2, message);
    }
    if status.jobs.is_empty() {
        return;
    }
    let mut rows = vec![["JOB", "RESULT", "RUNNER", "WAITED", "TESTS"].map(str::to_owned)];
    for job in &status.jobs {
        rows.push([
            job.name.clone(),
            or_dash(job.conclusion.as_ref()),
            or_dash(job.runner.as_ref()),
            or_dash(job.queued_seconds.map(|s| format!("{s}s"))),
            or_dash(job.passed),
        ]);
    }
    table(out, &rows, 0);
}

fn required(out: &mut String, checks: &RequiredChecksStatus) {
    out.push_str("\nREQUIRED CHECKS\n");
    let branches = checks.branches.iter();
    let places: Vec<String> = branches
        .map(|branch| format!("branch {}: {}", branch.name, branch.contexts.join(", ")))
        .chain(checks.ruleset.iter().map(|name| format!("ruleset {name}")))
        .collect();
    if places.is_empty() {
        out.push_str("  none yet\n");
    }
    for place in places {
        wrap(out, &format!("  {}, ", checks.repository), 4, &place);
    }
}

fn jobs(out: &mut String, status: &CudaRunnerStatus, now: Timestamp) {
    if status.last_jobs.is_empty() {
        return;
    }
    let mut rows = vec![["JOB", "RESULT", "TOOK", "RUNNER", "ENDED"].map(str::to_owned)];
    let shown = status.last_jobs.iter().take(JOBS);
    for job in shown.clone() {
        let took = job.started_at.as_ref();
        rows.push([
            job.job.clone(),
            or_dash(job.conclusion.as_ref()),
            or_dash(took.map(|started| span(started.0, job.finished_at.0))),
            job.runner.clone(),
            format!("{} ago", span(job.finished_at.0, now)),
        ]);
    }
    out.push_str("\nLAST JOBS\n");
    table(out, &rows, 0);
    let mut pages: Vec<&String> = shown.filter_map(|job| job.url.as_ref()).collect();
    pages.dedup();
    for page in pages {
        let _ = writeln!(out, "  {page}");
    }
    rest(out, status.last_jobs.len(), JOBS);
}

/// How many there are beyond those shown.
fn rest(out: &mut String, all: usize, shown: usize) {
    if all > shown {
        let _ = writeln!(out, "  {} more: -o json has them", all - shown);
    }
}

fn failures(out: &mut String, status: &CudaRunnerStatus, now: Timestamp) {
    if status.last_failures.is_empty() {
        return;
    }
    out.push_str("\nLAST FAILURES\n");
    for failure in status.last_failures.iter().take(FAILURES) {
        let node = failure.node.as_ref().map(|node| format!(" on {node}"));
        let code = failure.code.map(|code| format!(", code {code}"));
        let head = format!(
            "{} ago, {}{}: {} ({}{})",
            span(failure.at.0, now),
            failure.runner,
            node.unwrap_or_default(),
            failure.reason,
            failure.class,
            code.unwrap_or_default()
        );
        wrap(out, "  ", 4, &head);
        wrap(out, "    ", 4, &failure.message);
    }
    rest(out, status.last_failures.len(), FAILURES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, NOW};

    #[test]
    fn a_pool_in_trouble() {
        let text = text(&fixture::pool("my-pool"), NOW);
        fixture::fits(&text);
        insta::assert_snapshot!(text);
        fixture::in_the_reference(&text);
    }

    #[test]
    fn a_pool_whose_status_would_write_on_the_screen() {
        // Given texts with which a terminal clears its screen, forges lines, and turns words around
        const HOSTILE: &str = "\u{1b}[2J\u{1b}[Hjob\nFAKE  Ready\u{202e}txt\u{200b}\u{9b}31m";
        let mut pool = fixture::pool("my-pool");
        let status = pool.status.as_mut().unwrap();
        for condition in &mut status.conditions {
            condition.message = HOSTILE.to_owned();
        }
        for failure in &mut status.last_failures {
            failure.message = HOSTILE.to_owned();
            failure.device = Some(HOSTILE.to_owned());
        }
        for job in &mut status.last_jobs {
            job.job = HOSTILE.to_owned();
            job.conclusion = Some(HOSTILE.to_owned());
        }
        for entry in &mut status.quarantine {
            entry.message = HOSTILE.to_owned();
        }
        for job in status.verification.iter_mut().flat_map(|v| &mut v.jobs) {
            job.name = HOSTILE.to_owned();
        }

        // When it is shown, then all of it is plain text in the lines where it belongs
        let text = text(&crate::connect::shown(pool), NOW);
        let hidden = |c: char| c != '\n' && gate_report::is_hidden(c);
        assert!(!text.contains(hidden), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("FAKE")), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_pool_that_is_well() {
        let text = text(&fixture::pool("spare"), NOW);
        fixture::fits(&text);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_pool_that_the_operator_has_not_seen() {
        let mut pool = fixture::pool("spare");
        pool.metadata.generation = Some(8);
        assert!(text(&pool, NOW).contains("not read the last change"));
        pool.status = None;
        assert_eq!(
            text(&pool, NOW),
            "ci/spare has no status yet: does the operator run?\n"
        );
    }

    #[test]
    fn all_pools_are_a_line_each() {
        let all = [fixture::pool("my-pool"), fixture::pool("spare")];
        let text = text_of_all(&all, NOW);
        fixture::fits(&text);
        insta::assert_snapshot!(text);
        fixture::in_the_reference(&text);
        assert_eq!(json_of_all(&all)["pools"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn programs_get_the_whole_status() {
        let json = json(&fixture::pool("my-pool"));
        assert_eq!(
            (&json["ready"], &json["name"]),
            (&json!(true), &json!("my-pool"))
        );
        assert_eq!(json["causes"].as_array().unwrap().len(), 4);
        assert_eq!(json["status"]["runners"].as_array().unwrap().len(), 4);
    }
}
