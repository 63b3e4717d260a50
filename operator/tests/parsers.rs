//! Whatever others write, it is read without a panic, and into something of a bounded size.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, with its helpers"
)]

use cuda_runner_operator::github::{GitHubUrl, Proxy, Repository};
use cuda_runner_operator::observe::pod::read;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::runner::{End, GPU, MAIN};
use cudarunner_crds::CudaRunner;
use gate_report::{Report, is_hidden};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Bytes, and texts near to what the parsers look for.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300)
            .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        ".{0,120}",
        "(https?://|[a-z0-9.:@/\\[\\]-]){0,20}",
        "[{}\\[\\]\":,a-z0-9.\\\\u-]{0,80}",
        r#"(\{"mark":"(started|completed|lost)","when":".{0,9}","job":\{"at":"[0-9-]{0,20}","job":".{0,30}"\}\}|\n){0,4}"#,
    ]
}

/// A good report with some field replaced.
fn report() -> impl Strategy<Value = String> {
    let fields = prop_oneof![
        Just("failure"),
        Just("devices"),
        Just("schema"),
        Just("driver"),
        Just("passed"),
        Just("preflight"),
    ];
    let values = prop_oneof![
        text().prop_map(Value::String),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(|said| json!({"message": said, "advice": said, "class": "device", "step": "kernel", "codeName": said, "code": 999, "uuid": said})),
        text().prop_map(|said| json!([{"uuid": said, "name": said, "computeCapability": said}])),
    ];
    (fields, values).prop_map(|(field, value)| {
        let mut report = serde_json::to_value(Report::new("0.1.0")).unwrap();
        report[field] = value;
        report.to_string()
    })
}

fn pod(gate: &str, runner: &str, annotation: &str, code: i32) -> k8s_openapi::api::core::v1::Pod {
    // Of a pod that was let in, and of one that was not
    let let_in = code % 2 == 0;
    let ended = |message: &str| json!({"terminated": {"exitCode": code, "message": message}});
    let gpu = json!({
        "name": GPU, "image": "", "imageID": "", "ready": false, "restartCount": i32::from(let_in),
        "state": ended(if let_in { runner } else { gate }), "lastState": ended(gate),
    });
    let annotations: serde_json::Map<_, _> = ["avoids", "template", "devices", "lifetime"]
        .iter()
        .map(|name| (format!("cudarunner.dev/{name}"), json!(annotation)))
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": "pool-aaaaa", "namespace": "ci", "annotations": annotations},
        "spec": {
            "initContainers": [{"name": GPU, "image": if let_in { "runner:1" } else { "gate:1" }}],
            "containers": [{"name": MAIN, "image": "gate:1"}],
        },
        "status": {
            "phase": "Failed",
            "initContainerStatuses": [gpu],
        },
    }))
    .unwrap()
}

proptest! {
    #[test]
    fn addresses_and_names(text in text()) {
        let _ = GitHubUrl::parse(&text, true).map(|url| (url.origin(), url.api_base(), url.to_string()));
        let _ = Proxy::parse(&text, std::slice::from_ref(&text));
        if let Some(repository) = Repository::new(&text) {
            prop_assert!(repository.full_name().len() <= text.len());
        }
    }

    #[test]
    fn reports_and_last_words(
        gate in prop_oneof![text(), report()],
        words in text(),
        annotation in text(),
        code in prop_oneof![Just(0), any::<i32>(), 1..130_i32],
    ) {
        if let Ok(report) = Report::read(gate.as_bytes()) {
            let said = report.failure.map(|failure| failure.message).unwrap_or_default();
            prop_assert!(!said.chars().any(is_hidden), "{said:?}");
        }
        let runner = read(&pod(&gate, &words, &annotation, code));
        if let Some(End::Failed(failure)) = runner.end {
            prop_assert!(failure.message.chars().count() < 10_000);
        }
    }

    #[test]
    fn resources_of_other_versions(field in "(spec|status)", name in "[a-zA-Z]{1,20}", said in text(), number in any::<i64>()) {
        for value in [json!(said), json!(number), json!([said]), json!({name.clone(): said})] {
            let mut resource = json!({
                "apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner",
                "metadata": {"name": "pool", "namespace": "ci"},
                "spec": {"github": {"url": "https://github.com/acme/widgets", "credentialsRef": {"name": "app"}}},
                "status": {"conditions": []},
            });
            for known in [name.as_str(), "teardownTimeout", "replicas", "labels", "template", "registeredAt", "lastJobs"] {
                resource[&field][known] = value.clone();
                if let Ok(resource) = serde_json::from_value::<CudaRunner>(resource.clone()) {
                    let _ = Pool::read(&resource, true);
                }
            }
        }
    }
}
