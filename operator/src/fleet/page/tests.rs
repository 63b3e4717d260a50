use cuda_runner_plan::fleet::{
    API_VERSION, DeviceJobs, Event, EventKind, Hours, HoursRow, Operator, Pool, Waiting, WaitingJob,
};

use super::*;

/// What a job may be called by whoever may push a workflow.
const HOSTILE: &str = "<script>alert(1)</script>\" onload=\"x";

fn job_named(name: &str, url: &str) -> Job {
    Job {
        name: name.to_owned(),
        repository: Some("acme/widgets".to_owned()),
        url: Some(url.to_owned()),
        ..Job::default()
    }
}

fn waiting() -> WaitingJob {
    WaitingJob {
        job: Job {
            workflow: Some(HOSTILE.to_owned()),
            ..job_named(HOSTILE, "javascript:alert(1)")
        },
        labels: vec![HOSTILE.to_owned()],
        since: Some(Timestamp::UNIX_EPOCH),
    }
}

fn pool_in_trouble() -> Pool {
    Pool {
        namespace: "ci".to_owned(),
        name: "pool".to_owned(),
        url: "https://github.com/acme/widgets".to_owned(),
        labels: vec![HOSTILE.to_owned()],
        ready: false,
        held: vec![],
        gpu: "1 x nvidia.com/gpu".to_owned(),
        runners: 4,
        pending: 1,
        gated: 1,
        online: 2,
        busy: 1,
        other_devices: None,
        devices: vec![DeviceJobs {
            uuid: "GPU-00000000".to_owned(),
            node: Some("node-000".to_owned()),
            jobs: 5,
            failed: 3,
            suspect: true,
        }],
        quarantined: 1,
        queue: Waiting {
            jobs: 3,
            oldest: Some(job_named(HOSTILE, "javascript:alert(1)")),
            why: Some(HOSTILE.to_owned()),
            as_of: Some(Timestamp::UNIX_EPOCH),
            waiting: vec![waiting()],
            waiting_not_listed: 2,
        },
    }
}

fn job_that_failed() -> Event {
    Event {
        at: Timestamp::UNIX_EPOCH,
        kind: EventKind::Job,
        result: HOSTILE.to_owned(),
        failed: true,
        pool: "ci/pool".to_owned(),
        runner: "pool-aaaaa".to_owned(),
        node: Some("node-000".to_owned()),
        devices: vec!["GPU-00000000".to_owned()],
        job: Some(job_named(
            HOSTILE,
            "https://github.com/acme/widgets/actions/runs/1",
        )),
        message: Some(HOSTILE.to_owned()),
    }
}

/// A fleet with one of everything, so many nodes with eight devices, and the same foreign text in every place for one.
pub(in crate::fleet) fn sample(nodes: u32) -> Fleet {
    let device = |number: u32| Device {
        uuid: Some(format!("GPU-{number:08}")),
        pool: Some("ci/pool".to_owned()),
        runner: Some("pool-aaaaa".to_owned()),
        job: Some(job_named(
            HOSTILE,
            "https://github.com/acme/widgets/actions/runs/1",
        )),
        message: Some(HOSTILE.to_owned()),
        ..Device::new(DeviceState::ALL[usize::try_from(number % 8).unwrap()])
    };
    Fleet {
        api_version: API_VERSION.to_owned(),
        generated_at: Timestamp::UNIX_EPOCH,
        operator: None,
        further_operators: vec![],
        not_read: vec![],
        not_served: None,
        devices: DeviceState::ALL.into_iter().map(|s| (s, nodes)).collect(),
        nodes_visible: true,
        others_visible: true,
        nodes: (0..nodes)
            .map(|n| Node {
                name: format!("node-{n:03}"),
                ready: Some(n != 1),
                cordoned: n == 2,
                gpus: Some(8),
                product: Some("NVIDIA H100".to_owned()),
                devices: (n * 8..n * 8 + 8).map(device).collect(),
            })
            .collect(),
        nodes_not_listed: 0,
        pools: vec![pool_in_trouble()],
        pools_not_listed: 0,
        unserved: vec![waiting()],
        unserved_not_listed: 0,
        history: vec![job_that_failed()],
        hours: Some(Hours {
            from: Some(Timestamp::UNIX_EPOCH),
            runners: 1,
            rows: vec![HoursRow {
                pool: "ci/pool".to_owned(),
                repository: Some(HOSTILE.to_owned()),
                runners: 1,
                gate_seconds: 36,
                idle_seconds: 3_600,
                job_seconds: 7_200,
                lost_seconds: 0,
            }],
        }),
    }
}

#[test]
fn foreign_text_is_text_on_every_page() {
    let known = sample(2);
    for page in [
        fleet(&known),
        device(&known, "GPU-00000000").unwrap(),
        pool(&known, "ci", "pool").unwrap(),
        hours(&known),
    ] {
        assert!(page.contains("&lt;script&gt;alert(1)"), "{page}");
        assert!(!page.contains("<script>alert"));
        assert!(!page.contains("\" onload"));
        assert!(!page.contains("href=\"javascript:"));
        // Nothing that the policy of the page would refuse, and nothing of another origin but links to click.
        assert!(!page.contains("style=") && !page.contains("<style"));
        assert!(!page.contains("src=\"http"));
    }
}

#[test]
fn each_job_that_waits_is_there_with_what_it_asks_for() {
    let known = sample(1);
    let page = pool(&known, "ci", "pool").unwrap();
    let own = page.split("Jobs that wait").nth(1).unwrap();
    assert!(own.contains("Asks for") && own.contains("1970-01-01 00:00:00Z"));
    assert!(
        own.contains("and 2 more of which no more is known here"),
        "{own}"
    );
    let page = fleet(&known);
    assert!(page.contains("Jobs that no pool takes"), "{page}");
    let mut known = known;
    known.unserved.clear();
    assert!(!fleet(&known).contains("no pool takes"));
}

#[test]
fn since_when_anything_is_remembered_is_said_and_who_stands_by() {
    let mut known = sample(1);
    assert!(!fleet(&known).contains("knows of what happened since"));
    let mut told = |leads| {
        known.operator = Some(Operator {
            name: "operator-0".to_owned(),
            version: "0.1.0".to_owned(),
            since: Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_mins(602),
            leads,
        });
        fleet(&known)
    };
    let page = told(true);
    let since = page.split("knows of what happened since").nth(1).unwrap();
    assert!(
        since.starts_with(" <time") && since.contains("1970-01-01 10:02:00Z"),
        "{since:.200}"
    );
    assert!(!page.contains("stands by"));
    assert!(told(false).contains("This replica stands by"));
}

#[test]
fn every_device_is_a_square_and_leads_to_its_page() {
    let page = fleet(&sample(3));
    assert_eq!(page.matches("href=\"device?uuid=").count(), 24);
    assert!(page.contains("not ready") && page.contains("cordoned"));
}

#[test]
fn a_device_that_fails_more_than_the_others_is_named() {
    let page = device(&sample(1), "GPU-00000000").unwrap();
    assert!(
        page.contains("3 of 5 on this device, 0 of 0 on the other"),
        "{page}"
    );
    assert!(page.contains("More than chance explains."));
}

#[test]
fn what_is_not_known_has_no_page() {
    let known = sample(1);
    assert_eq!(device(&known, "GPU-99999999"), None);
    assert_eq!(pool(&known, "ci", "other"), None);
}

#[test]
fn hours_are_summed_and_given_as_csv() {
    let known = sample(1);
    assert!(hours(&known).contains("3.01"));
    let csv = hours_csv(&known);
    assert!(csv.ends_with("1,36,3600,7200,0\r\n"), "{csv}");
}
