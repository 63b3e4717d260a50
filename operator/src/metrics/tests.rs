//! The page, as Prometheus reads it.

use std::collections::BTreeMap;

use cudarunner_crds::{
    JobStatus, QuarantineStatus, RerunStatus, VerificationRecord, VerifiedJobStatus,
};
use gate_report::{Confidence, Device, Outcome, Timings};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::github::budget::{Cost, Ending};
use crate::github::{Credentials, TOKEN};
use cuda_runner_plan::hours::{JobOfRunner, Seconds};
use cuda_runner_plan::queue::Waiting;
use cuda_runner_plan::{self, fixture};

fn key(name: &str) -> PoolKey {
    PoolKey {
        namespace: "ci".to_owned(),
        name: name.to_owned(),
    }
}

fn failed(class: Class, code: Option<i32>, code_name: &str) -> Report {
    Report {
        outcome: Outcome::Failed,
        failure: Some(Failure {
            class,
            step: Step::Launch,
            code,
            code_name: code_name.to_owned(),
            call: None,
            device: None,
            uuid: Some("GPU-1".to_owned()),
            message: "a message".to_owned(),
            advice: String::new(),
            confidence: Confidence::High,
            shared: false,
        }),
        timings: Timings {
            total_ms: 1500.0,
            ..Timings::default()
        },
        ..Report::default()
    }
}

/// A job whose GPU took so much.
fn watched(unused: bool) -> JobStatus {
    let gpu = serde_json::json!([{"uuid": "GPU-1", "energyJoules": 900, "unused": unused}]);
    let job = serde_json::json!({"job": "a", "runner": "r", "finishedAt": "2026-01-01T00:00:00Z", "gpu": gpu});
    serde_json::from_value(job).unwrap()
}

fn verification(state: VerificationState) -> VerificationStatus {
    VerificationStatus {
        state: state.into(),
        fingerprint: String::new(),
        hardware: vec![],
        asked: None,
        since: Time(fixture::NOW),
        repository: None,
        origin: None,
        run_id: None,
        url: None,
        ended: None,
        reason: None,
        message: None,
        jobs: vec![VerifiedJobStatus {
            queued_seconds: Some(7),
            ..VerifiedJobStatus::default()
        }],
        history: vec![VerificationRecord {
            run_id: None,
            url: None,
            state: VerificationState::Succeeded.into(),
            reason: None,
            since: Time(fixture::ago(600)),
            ended: Time(fixture::ago(500)),
        }],
    }
}

fn quarantined(node: &str, until: Timestamp) -> QuarantineStatus {
    QuarantineStatus {
        scope: None,
        node: node.to_owned(),
        device: None,
        class: Class::Node.into(),
        code: None,
        code_name: None,
        message: String::new(),
        failures: 1,
        boot_id: None,
        retest: false,
        since: Time(fixture::ago(60)),
        until: Some(Time(until)),
    }
}

fn rerun(state: RerunState) -> RerunStatus {
    let rerun = serde_json::json!({
        "job": "train", "repository": "acme/widgets", "runId": 17, "runner": "pool-aaaaa",
        "cause": "GpuFault", "evidence": "", "at": fixture::NOW, "state": state,
    });
    serde_json::from_value(rerun).unwrap()
}

/// A runner of two GPUs that has ended after a job of this repository.
fn hours(repository: &str, conclusion: Option<&str>) -> RunnerHours {
    RunnerHours {
        namespace: "ci".to_owned(),
        pool: "pool".to_owned(),
        runner: "pool-aaaaa".to_owned(),
        uid: "u".to_owned(),
        node: None,
        gpus: 2,
        devices: vec![],
        product: None,
        held_from: Some(fixture::ago(100)),
        held_until: fixture::NOW,
        seconds: Seconds {
            gate: 10,
            idle: 50,
            job: 40,
            lost: 0,
        },
        reason: None,
        job: Some(JobOfRunner {
            repository: Some(repository.to_owned()),
            workflow: String::new(),
            run_id: None,
            attempt: None,
            job: "train".to_owned(),
            conclusion: conclusion.map(str::to_owned),
            refused: false,
            queued_seconds: Some(30),
            run_seconds: Some(38),
            energy_joules: None,
        }),
    }
}

/// The series of a metric on the page.
fn series(metrics: &Metrics, name: &str) -> Vec<String> {
    let page = metrics.page(|_| true, vec![]);
    let of_name = page.lines().filter(|line| line.starts_with(name));
    of_name.map(str::to_owned).collect()
}

#[test]
fn how_long_the_oldest_job_has_waited_is_counted_when_somebody_asks() {
    let (pool, metrics) = (fixture::pool(1), Metrics::default());
    let plan = Plan {
        queue: Some(Waiting {
            jobs: 1,
            oldest: Some(Timestamp::now() - SignedDuration::from_secs(90)),
        }),
        ..Plan::default()
    };
    let observed = fixture::observed(vec![]);
    let gauges = PoolGauges::of(&pool, &observed, &plan, None, fixture::NOW);
    metrics.saw(&pool.key, gauges);
    let page = metrics.page(|_| true, vec![]);
    let series = r#"cudarunner_oldest_queued_job_seconds{namespace="ci",pool="pool"} "#;
    let age = page.lines().find_map(|line| line.strip_prefix(series));
    let age: u64 = age.unwrap().parse().unwrap();
    assert!((90..100).contains(&age), "{age}");
}

#[test]
fn repositories_are_told_apart_only_where_that_is_asked_for_and_not_without_bound() {
    let metrics = Metrics::default();
    metrics.ended(&hours("acme/widgets", None));
    let gpu = "cudarunner_gpu_seconds_total";
    assert_eq!(
        series(&metrics, gpu),
        [("gate", 20), ("idle", 100), ("job", 80), ("lost", 0)].map(|(used, seconds)| format!(
            r#"{gpu}{{namespace="ci",pool="pool",use="{used}"}} {seconds}"#
        ))
    );
    let metrics = Metrics::default().by_repository(true);
    for number in 0..150 {
        metrics.ended(&hours(&format!("acme/r{number}"), None));
    }
    // A hundred of them, and the others together
    assert_eq!(series(&metrics, gpu).len(), 101 * 4);
    let others =
        format!(r#"{gpu}{{namespace="ci",pool="pool",use="job",repository="other"}} 4000"#);
    assert!(series(&metrics, gpu).contains(&others));
}

#[test]
fn conclusions_are_githubs_words_or_ours() {
    let metrics = Metrics::default();
    for said in [Some("failure"), Some("failure"), Some("a new word"), None] {
        metrics.ended(&hours("acme/widgets", said));
    }
    let jobs = "cudarunner_jobs_total";
    let expected = [("failure", 2), ("other", 1), ("unknown", 1)].map(|(word, count)| {
        format!(r#"{jobs}{{namespace="ci",pool="pool",conclusion="{word}"}} {count}"#)
    });
    assert_eq!(series(&metrics, jobs), expected);
}

/// A pool that is used, with one fact of each kind.
fn recorded() -> Metrics {
    let metrics = Metrics::default().by_repository(true);
    let pool = fixture::pool(2);
    let observed = fixture::observed(vec![
        fixture::runner(&pool, "pool-aaaaa", RunnerPhase::Idle),
        fixture::runner(&pool, "pool-bbbbb", RunnerPhase::Busy),
    ]);
    let mut plan = cuda_runner_plan::plan(&pool, &observed, fixture::NOW);
    let later = fixture::NOW + SignedDuration::from_secs(60);
    plan.status.quarantine = vec![
        quarantined("node-1", later),
        quarantined("node-2", fixture::NOW),
    ];
    plan.status.verification = Some(verification(VerificationState::Failed));
    plan.failed = vec![(Class::Device, Reason::GateFailed)];
    plan.refused_jobs = 2;
    plan.queue = Some(Waiting {
        jobs: 3,
        oldest: None,
    });
    plan.watched_jobs = vec![watched(true), watched(false)];
    plan.timed_out_jobs = 1;
    plan.status.reruns = vec![rerun(RerunState::Started), rerun(RerunState::Waiting)];
    let used = &pool.key;
    let mut gauges = PoolGauges::of(&pool, &observed, &plan, None, fixture::NOW);
    gauges.credential = Some(usage()[0].0);
    metrics.saw(used, gauges);
    metrics.learned(used, &News::of(&pool, &plan));
    metrics.delivered("accepted");
    metrics.reconciled(used, Duration::from_millis(4), None);
    metrics.reconciled(used, Duration::from_millis(32), Some("Kubernetes"));
    let passed = Report {
        outcome: Outcome::Passed,
        ..failed(Class::Device, None, "")
    };
    metrics.gate(used, &passed, &Decision::Admit);
    metrics.gate(used, &passed, &Decision::Admit);
    let refused = Decision::Refuse {
        reason: "DeviceCount",
        message: String::new(),
    };
    metrics.gate(used, &passed, &refused);
    for (code, name) in [
        (Some(719), "whatever it says"),
        (Some(31_337), "CUDA_ERROR_NEW"),
        (None, "WrongResult"),
        (None, "PreflightFailed"),
        (None, "ghp_0123456789"),
    ] {
        let report = failed(Class::Device, code, name);
        metrics.gate(used, &report, &Decision::Failed);
    }
    metrics.ended(&hours("acme/widgets", Some("success")));
    metrics.registered(used, "ok");
    metrics.registered(used, "RateLimited");
    metrics
}

fn usage() -> Vec<(Fingerprint, Usage)> {
    let data = BTreeMap::from([(TOKEN.to_owned(), b"ghp_0123456789".to_vec())]);
    let credentials = Credentials::from_secret_data(&data).unwrap();
    let usage = Usage {
        sent: 4,
        held_back: 2,
        limit: Some(5000),
        remaining: Some(4990),
        endings: BTreeMap::from([
            ((Cost::Read, Ending::Done), 2),
            ((Cost::Registration, Ending::Limited), 1),
            ((Cost::Write, Ending::Unanswered), 1),
        ]),
        ..Usage::default()
    };
    vec![(credentials.fingerprint(), usage)]
}

#[test]
fn the_page_says_what_was_counted() {
    insta::assert_snapshot!(recorded().page(|_| true, usage()));
}

/// The products under which gates with these devices are counted.
fn products(reports: &[Report]) -> Vec<String> {
    let metrics = Metrics::default();
    for report in reports {
        metrics.gate(&key("pool"), report, &Decision::Failed);
    }
    let page = metrics.page(|_| true, vec![]);
    let outcomes = page
        .lines()
        .filter(|line| line.starts_with("cudarunner_gate_outcomes_total"));
    let product = |line: &str| {
        line.split("product=\"")
            .nth(1)?
            .split('"')
            .next()
            .map(str::to_owned)
    };
    outcomes.filter_map(product).collect()
}

fn with_devices(names: &[&str], at_fault: Option<u32>) -> Report {
    let mut report = failed(Class::Device, Some(719), "");
    report.failure.as_mut().unwrap().device = at_fault;
    report.devices = (0..)
        .zip(names)
        .map(|(ordinal, name)| Device {
            ordinal,
            name: (*name).to_owned(),
            ..Device::default()
        })
        .collect();
    report
}

#[test]
fn a_gate_is_counted_under_the_product_of_the_device_at_fault() {
    let two = ["NVIDIA L4", "NVIDIA H100 PCIe"];
    assert_eq!(
        products(&[with_devices(&two, Some(1))]),
        ["NVIDIA H100 PCIe"]
    );
    assert_eq!(products(&[with_devices(&two, None)]), ["NVIDIA L4"]);
    assert_eq!(products(&[with_devices(&[], None)]), [""]);
}

#[test]
fn products_are_few_and_short_whatever_reports_say() {
    let names: Vec<String> = (0..20).map(|n| format!("product-{n:02}")).collect();
    let mut reports: Vec<Report> = names
        .iter()
        .map(|n| with_devices(&[n.as_str()], None))
        .collect();
    reports.push(reports[3].clone());
    let mut expected = names[..PRODUCTS].to_vec();
    expected.insert(0, OTHER.to_owned());
    assert_eq!(products(&reports), expected);

    let long = "x".repeat(PRODUCT + 1);
    for name in [long.as_str(), "a\nb", "GPU\u{1f980}"] {
        assert_eq!(products(&[with_devices(&[name], None)]), [OTHER], "{name}");
    }
}

#[test]
fn nothing_is_left_of_a_pool_that_is_gone() {
    let metrics = recorded();
    metrics.registered(&key("other"), "ok");
    let page = metrics.page(|pool| pool.name == "other", vec![]);
    assert!(!page.contains("pool=\"pool\""), "{page}");
    assert!(page.contains("pool=\"other\""), "{page}");
    metrics.forget(&key("other"));
    let page = metrics.page(|_| true, vec![]);
    assert!(!page.contains("pool=\"other\""), "{page}");
}

#[test]
fn a_verification_is_counted_when_it_ends_and_not_again() {
    let mut pool = fixture::pool(1);
    let mut plan = Plan::default();
    plan.status.verification = Some(verification(VerificationState::Running));
    assert_eq!(News::of(&pool, &plan).queued, Vec::<i64>::new());
    pool.status.verification = plan.status.verification.take();
    plan.status.verification = Some(verification(VerificationState::Succeeded));
    assert_eq!(News::of(&pool, &plan).queued, [7]);
    pool.status.verification = plan.status.verification.clone();
    assert_eq!(News::of(&pool, &plan).queued, Vec::<i64>::new());
}

#[test]
fn while_a_verification_is_on_its_way_the_last_one_counts() {
    let results = [
        (VerificationState::Running, Some(true)),
        (VerificationState::Failed, Some(false)),
        (VerificationState::Succeeded, Some(true)),
    ];
    for (state, expected) in results {
        assert_eq!(last_result(&verification(state)), expected, "{state:?}");
    }
    // A word of another version proves nothing
    let mut first = verification(VerificationState::Requested);
    let mut foreign = first.history[0].clone();
    foreign.state = cudarunner_crds::Word::Other("Cosmic".to_owned());
    first.history.insert(0, foreign);
    assert_eq!(last_result(&first), Some(true));
    first.history.clear();
    assert_eq!(last_result(&first), None);
}

#[test]
fn the_page_and_the_catalogue_hold_the_same() {
    let page = recorded().page(|_| true, usage());
    let types: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(str::to_owned)
        .collect();
    let expected = catalogue::ALL.iter().map(|entry| {
        let name = entry.name();
        let base = name.trim_end_matches("_total").trim_end_matches("_info");
        format!("{base} {}", entry.kind.name())
    });
    assert_eq!(types, expected.collect::<Vec<_>>());
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let entry = catalogue::ALL
            .iter()
            .find(|entry| entry.samples().iter().any(|sample| sample == name))
            .unwrap_or_else(|| panic!("{line}"));
        let labels = line.split_once('{').map_or("", |(_, rest)| rest);
        let found: Vec<&str> = labels
            .split(',')
            .filter_map(|pair| pair.split_once('=').map(|(label, _)| label))
            .filter(|label| *label != "le")
            .collect();
        assert_eq!(found, entry.labels, "{line}");
    }
}
