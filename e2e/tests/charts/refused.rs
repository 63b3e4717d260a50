//! Values of the operator's chart that Kubernetes would take, and that show only in a pod which does not start, or in a log
//! that is empty: Helm refuses them, and names the value.

use serde_json::Value;

use super::{
    operator::{CHART, everything},
    refusal, render,
};

/// Path, value, and what is said; DIGEST is one.
const REFUSED: &str = r#"
/image/repository                 "r/operator:1"                   image.repository has a tag
/image/repository                 "r:1"                            image.repository has a tag
/image/repository                 "r@DIGEST"                       image.repository has a tag or a digest
/gateImage/repository             "registry:5000/gate:1"           gateImage.repository has a tag
/image/repository                 "https://ghcr.io/r"              /image/repository
/image/repository                 "ghcr.io/Acme/operator"          /image/repository
/image/tag                        "DIGEST"                         /image/tag
/image/tag                        "@DIGEST"                        /image/tag
/image/tag                        ":1"                             /image/tag
/image/tag                        1                                /image/tag
/gateImage/tag                    "1@sha256:00"                    /gateImage/tag
/image/pullPolicy                 "always"                         /image/pullPolicy
/imagePullSecrets                 [{"name": "My_Registry"}]        /imagePullSecrets/0/name
/nameOverride                     "Runners"                        /nameOverride
/fullnameOverride                 "1-runners"                      /fullnameOverride
/watchNamespaces                  ["Team_A"]                       /watchNamespaces/0
/poolSelector                     "shard in a"                     /poolSelector
/poolSelector                     "shard=a b"                      /poolSelector
/poolSelector                     "shard=a,"                       /poolSelector
/serviceAccount/name              "my account"                     /serviceAccount/name
/logLevel                         ""                               /logLevel
/logLevel                         "verbose"                        /logLevel
/logLevel                         "warning"                        /logLevel
/logLevel                         "info, debug"                    /logLevel
/logLevel                         "cuda_runner_operator=loud"      /logLevel
/logFormat                        "yaml"                           /logFormat
/tracing/endpoint                 "collector:4318"                 /tracing/endpoint
/tracing/endpoint                 "http://a b"                     /tracing/endpoint
/githubAddresses/allow            ["10.96.7.0/33"]                 /githubAddresses/allow/0
/githubAddresses/deny             ["999.1.1.1"]                    /githubAddresses/deny/0
/githubAddresses/deny             ["abc"]                          /githubAddresses/deny/0
/fleetPage/hosts                  ["https://gpus.example.com"]     /fleetPage/hosts/0
/metrics/serviceMonitor/interval  "15"                             /metrics/serviceMonitor/interval
/extraEnv                         [{"name": "RUST_LOG"}]           /extraEnv/0/name
/extraEnv                         [{"name": "A=B"}]                /extraEnv/0/name
/priorityClassName                "High"                           /priorityClassName
/hungAfterSeconds                 5                                /hungAfterSeconds
/networkPolicy/egressPorts        []                               /networkPolicy/egressPorts
"#;

/// What people write.
const TAKEN: &str = r#"
/image/repository       "ghcr.io/acme/my_project/cuda-runner-operator"
/image/repository       "registry.example.com:5000/operator"
/image/repository       "localhost/operator"
/image/tag              "v0.1.0-rc.1"
/image/tag              "0.1.0@DIGEST"
/poolSelector           "acme.example/team in (ml, hpc),!canary,tier!=low"
/poolSelector           ""
/logLevel               "DEBUG"
/logLevel               "info,cuda_runner_operator=debug,hyper=off"
/tracing/endpoint       "https://collector.example.com/v1/traces"
/githubAddresses/deny   ["10.96.0.0/12", "fd00::/8", "::1", "192.168.1.7"]
/priorityClassName      "system-cluster-critical"
"#;

/// The columns of a table.
fn rows(table: &str) -> Vec<Vec<String>> {
    let digest = format!("sha256:{}", "a".repeat(64));
    let lines = table.replace("DIGEST", &digest);
    let columns = |line: &str| {
        let parts = line.split("  ").map(str::trim);
        let parts = parts.filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    };
    lines.trim().lines().map(columns).collect()
}

/// All other values are good.
fn with(path: &str, value: &str) -> Value {
    let mut values = everything();
    *values.pointer_mut(path).unwrap() = serde_json::from_str(value).unwrap();
    values
}

#[test]
fn values_that_would_be_wrong_at_run_time_are_refused_by_name() {
    for row in rows(REFUSED) {
        let [path, value, words] = &row[..] else {
            panic!("{row:?}");
        };
        let why = refusal(CHART, &with(path, value));
        assert!(why.contains(words), "{path} = {value}: {why}");
    }
}

#[test]
fn values_as_people_write_them_are_taken() {
    for row in rows(TAKEN) {
        render(CHART, &with(&row[0], &row[1]));
    }
}
