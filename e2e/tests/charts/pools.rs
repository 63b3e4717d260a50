//! The chart of pools.

use std::collections::BTreeMap;

use cudarunner_crds::{CudaRunner, CudaRunnerSpec};
use e2e::paths;
use serde_json::{Value, json};

use super::{
    objects::{of_kind, understood},
    refusal, render,
};

const CHART: &str = "cuda-runner";

fn defaults() -> Value {
    json!({
        "github": {"url": "https://github.com/o", "credentialsRef": {"name": "github-app"}},
        "labels": ["self-hosted", "cuda"],
        "preflight": {"commands": ["cc"]},
        "replicas": 2,
        "gpu": {"count": 4, "minCudaVersion": "12.10"},
    })
}

fn pools(values: &Value) -> BTreeMap<String, CudaRunnerSpec> {
    let objects = render(CHART, values);
    understood(&objects);
    of_kind::<CudaRunner>("CudaRunner", &objects)
        .into_iter()
        .map(|pool| {
            assert_eq!(
                pool.metadata.namespace.as_deref(),
                Some("release-namespace")
            );
            (pool.metadata.name.unwrap(), pool.spec)
        })
        .collect()
}

#[test]
fn a_pool_is_the_defaults_and_what_it_says_itself() {
    let pools = pools(&json!({
        "defaults": defaults(),
        "pools": {
            "same": {},
            "own": {
                "github": {"url": "https://github.com/o/r"},
                "labels": ["big"],
                "replicas": 0,
                "preflight": null,
                "gpu": {"count": 1},
            },
        },
    }));
    assert_eq!(pools.len(), 2);

    let expected: CudaRunnerSpec = serde_json::from_value(defaults()).unwrap();
    assert_eq!(pools["same"], expected);

    let own = &pools["own"];
    assert_eq!(own.github.url, "https://github.com/o/r");
    assert_eq!(own.github.credentials_ref.name, "github-app");
    assert_eq!(own.labels, ["big"]);
    assert_eq!(own.replicas, Some(0));
    assert_eq!(own.gpu.count, Some(1));
    assert_eq!(own.gpu.min_cuda_version, "12.10");
    assert_eq!(own.preflight, None);
}

#[test]
fn what_is_taken_away_leaves_no_null_behind() {
    let objects = render(
        CHART,
        &json!({"defaults": defaults(), "pools": {"a": {
            "preflight": null,
            "gpu": {"claimTemplate": null},
            "template": {"spec": {"nodeSelector": null}},
        }}}),
    );
    let spec = objects[0]["spec"].as_object().unwrap();
    assert!(!spec.contains_key("preflight"));
    assert_eq!(spec["gpu"], defaults()["gpu"]);
    // In a pod template it may have a meaning.
    assert!(
        spec["template"]["spec"]
            .as_object()
            .unwrap()
            .contains_key("nodeSelector")
    );
}

#[test]
fn every_field_of_the_example_passes_unchanged() {
    let path = paths::repository().join("docs/examples/tensor-wasm.yaml");
    let example: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let objects = render(CHART, &json!({"pools": {"tensor-wasm": example["spec"]}}));
    understood(&objects);
    assert_eq!(objects[0]["spec"], example["spec"]);
}

#[test]
fn without_pools_there_is_nothing() {
    for values in [
        json!({}),
        json!({"defaults": defaults()}),
        json!({"pools": {}}),
    ] {
        assert!(render(CHART, &values).is_empty());
    }
}

#[test]
fn defaults_may_be_left_empty() {
    let pools = pools(&json!({"defaults": null, "pools": {"a": defaults()}}));
    assert_eq!(pools["a"].replicas, Some(2));
}

#[test]
fn what_the_definition_does_not_know_is_refused() {
    let cases = [
        (json!({"replicas": 1}), "'replicas' not allowed"),
        (
            json!({"defaults": {"replicsa": 1}}),
            "'replicsa' not allowed",
        ),
        (
            json!({"pools": {"a": {"replicsa": 1}}}),
            "'replicsa' not allowed",
        ),
        (
            json!({"pools": {"a": {"gpu": {"cuont": 1}}}}),
            "'cuont' not allowed",
        ),
        (
            json!({"pools": {"a": {"verify": {"jobs": [{"name": "j", "tset": 1}]}}}}),
            "'tset' not allowed",
        ),
        (
            json!({"pools": {"a": {"verify": {"jobs": [{}]}}}}),
            "missing property 'name'",
        ),
        (
            json!({"pools": {"a": {"lifetime": "Forever"}}}),
            "must be one of",
        ),
        (json!({"pools": {"a": {"replicas": "2"}}}), "got string"),
        (json!({"pools": {"a": {"gpu": {"count": 65}}}}), "maximum"),
        (json!({"pools": {"a": null}}), "got null, want object"),
        (
            json!({"pools": {"a": {"sharedMemory": "8"}}}),
            "/pools/a/sharedMemory",
        ),
        (json!({"pools": {"A_b": {}}}), "invalid propertyName 'A_b'"),
        (
            json!({"pools": {"a..b": {}}}),
            "invalid propertyName 'a..b'",
        ),
        (
            json!({"pools": {"a.-b": {}}}),
            "invalid propertyName 'a.-b'",
        ),
    ];
    for (values, words) in cases {
        let why = refusal(CHART, &values);
        assert!(why.contains(words), "{values}: {why}");
    }
}
