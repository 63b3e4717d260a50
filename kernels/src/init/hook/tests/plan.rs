use serde_json::{Value, json};

use super::*;

/// The agent's own words, as its classes write them.
fn args(container: &Value, services: &Value) -> PrepareArgs {
    serde_json::from_value(json!({"container": container, "services": services})).unwrap()
}

/// A container with every field that the agent has, and this besides.
fn container(more: Value) -> Value {
    let mut whole = json!({
        "image": "nvcr.io/nvidia/cuda:12.4",
        "dockerfile": null,
        "entryPointArgs": [],
        "entryPoint": null,
        "workingDirectory": null,
        "createOptions": null,
        "registry": null,
        "environmentVariables": {},
        "portMappings": [],
        "systemMountVolumes": [
            {"userProvidedValue": null, "sourceVolumePath": "/var/run/docker.sock", "targetVolumePath": "/var/run/docker.sock", "readOnly": false},
            {"userProvidedValue": null, "sourceVolumePath": "/home/runner/_work", "targetVolumePath": "/__w", "readOnly": false},
            {"userProvidedValue": null, "sourceVolumePath": "/home/runner/externals", "targetVolumePath": "/__e", "readOnly": true},
        ],
        "userMountVolumes": [],
    });
    let Value::Object(more) = more else { panic!() };
    whole.as_object_mut().unwrap().extend(more);
    whole
}

fn planned(container: &Value, services: &Value) -> Result<(Plan, Vec<String>), Refusals> {
    let pool = Pool {
        volumes: vec!["/data".into()],
        ..Pool::default()
    };
    plan(args(container, services), &pool)
}

fn refused(container: &Value, services: &Value) -> String {
    let Err(refusals) = planned(container, services) else {
        panic!("nothing was refused")
    };
    refusals.join("\n")
}

#[test]
fn the_registrar_is_asked_for_what_the_workflow_has() {
    let job = container(json!({
        "registry": {"username": "u", "password": "p", "serverUrl": "nvcr.io"},
        "environmentVariables": {"A": "job", "EMPTY": null},
        "createOptions": "-e A=option -e B=option --gpus all",
        "userMountVolumes": [
            {"userProvidedValue": "/data/x:/x", "sourceVolumePath": "/data/x", "targetVolumePath": "/x", "readOnly": false},
            {"userProvidedValue": "cache:/c", "sourceVolumePath": "cache", "targetVolumePath": "/c", "readOnly": false},
            {"userProvidedValue": "/c2", "sourceVolumePath": null, "targetVolumePath": "/c2", "readOnly": false},
        ],
    }));
    let redis = container(json!({
        "image": "ghcr.io/acme/redis:7@sha256:0",
        "entryPoint": "run",
        "entryPointArgs": ["--port", "\"6379", "0\""],
        "environmentVariables": {"PASSWORD": "s3cret"},
        "createOptions": "--network-alias cache",
        "portMappings": ["16379:6379"],
    }));
    let (plan, said) = planned(
        &job,
        &json!([redis, container(json!({"image": "postgres:16"}))]),
    )
    .unwrap();
    assert_eq!(
        serde_json::to_value(&plan.wanted).unwrap(),
        json!({
            "image": "nvcr.io/nvidia/cuda:12.4",
            "credentials": {"username": "u", "password": "p", "serverUrl": "nvcr.io"},
            "services": [
                {"image": "ghcr.io/acme/redis:7@sha256:0", "env": {"PASSWORD": "s3cret"}, "command": ["run"], "args": ["--port", "6379 0"]},
                {"image": "postgres:16"},
            ],
        })
    );
    let hosts: Vec<_> = plan
        .begin
        .hosts
        .iter()
        .map(|host| (&*host.name, &*host.address))
        .collect();
    assert_eq!(hosts, [("cache", "127.0.0.1"), ("postgres", "127.0.0.1")]);
    let env: Vec<_> = plan.begin.env.iter().map(|(n, v)| (&**n, &**v)).collect();
    assert_eq!(env, [("A", "job"), ("B", "option"), ("EMPTY", "")]);
    assert_eq!(plan.begin.folders, ["/c", "/c2"]);
    assert_eq!(plan.begin.links.len(), 1);
    let said = said.join("\n");
    for words in [
        "--gpus",
        "volumes: cache",
        "the port is 6379",
        "reachable at localhost, and as cache",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert!(!said.contains("s3cret"));
}

#[test]
fn what_cannot_be_is_said_all_at_once_before_anything_is_done() {
    let job = container(json!({
        "createOptions": "--privileged --cap-add SYS_ADMIN",
        "userMountVolumes": [{"sourceVolumePath": "/host", "targetVolumePath": "/x"}],
        "portMappings": ["x"],
    }));
    let service = |image: &str, port: &str, options: &str| {
        container(json!({"image": image, "portMappings": [port], "createOptions": options}))
    };
    let said = refused(
        &job,
        &json!([
            service("redis:6", "6379", ""),
            service("redis:7", "6380:6379", "--gpus all"),
            service("dns", "6379/udp", "--network-alias 'no name'"),
        ]),
    );
    for words in [
        "--privileged",
        "--cap-add",
        "/host",
        "ports: x",
        "Service redis:7: options: --gpus",
        "Services redis:6 and redis:7 have the same port 6379",
        "no name is no name of a host",
    ] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    assert_eq!(said.lines().count(), 7, "{said}");
}

#[test]
fn a_request_has_bounds() {
    let many: Vec<Value> = (0..11)
        .map(|n| container(json!({"image": format!("i{n}")})))
        .collect();
    assert!(refused(&container(json!({})), &many.into()).contains("at most 10 services"));
    let long = container(json!({"environmentVariables": {"A": "x".repeat(MAX_BODY)}}));
    assert!(
        planned(&long, &json!([])).is_ok(),
        "the job's own goes another way"
    );
    assert!(refused(&container(json!({})), &json!([long])).contains("too large"));
    assert!(refused(&container(json!({"image": ""})), &json!(null)).contains("name"));
}

#[test]
fn a_service_is_called_as_its_image_where_nothing_else_is_said() {
    for (image, name) in [
        ("redis", "redis"),
        ("redis:7", "redis"),
        ("localhost:5000/a/postgres", "postgres"),
        ("ghcr.io/acme/db:1@sha256:abc", "db"),
        ("db@sha256:abc", "db"),
    ] {
        assert_eq!(names(image, &[]), [name], "{image}");
    }
}
