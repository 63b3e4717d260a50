//! Files as people have them, each with what comes of it.

use std::fmt::Write as _;

use cuda_runner_plan::model::pool::Pool;
use cudarunner_crds::CudaRunner;

use super::{Given, migrate};

/// The files, by name; the pool's name where the file has none.
const FILES: [(&str, &str, Option<&str>); 16] = [
    (
        "gpu-node-selector",
        include_str!("files/gpu-node-selector.yaml"),
        None,
    ),
    ("dind", include_str!("files/dind.yaml"), None),
    (
        "dind-written-out",
        include_str!("files/dind-written-out.yaml"),
        None,
    ),
    (
        "kubernetes-mode",
        include_str!("files/kubernetes-mode.yaml"),
        None,
    ),
    (
        "kubernetes-hooks",
        include_str!("files/kubernetes-hooks.yaml"),
        None,
    ),
    (
        "no-limit",
        include_str!("files/no-limit.yaml"),
        Some("Train_8xH100"),
    ),
    (
        "proxy-and-authority",
        include_str!("files/proxy-and-authority.yaml"),
        None,
    ),
    (
        "shared-memory",
        include_str!("files/shared-memory.yaml"),
        None,
    ),
    ("sidecars", include_str!("files/sidecars.yaml"), None),
    (
        "inline-secret",
        include_str!("files/inline-secret.yaml"),
        None,
    ),
    (
        "listener-and-labels",
        include_str!("files/listener-and-labels.yaml"),
        None,
    ),
    (
        "resource-with-claim",
        include_str!("files/resource-with-claim.yaml"),
        None,
    ),
    (
        "runner-deployment",
        include_str!("files/runner-deployment.yaml"),
        None,
    ),
    ("arm64", include_str!("files/arm64.yaml"), None),
    ("runner-set", include_str!("files/runner-set.yaml"), None),
    (
        "not-for-templates",
        include_str!("files/not-for-templates.yaml"),
        None,
    ),
];

fn given(name: Option<&str>) -> Given {
    Given {
        name: name.map(str::to_owned),
        namespace: None,
    }
}

#[test]
fn each_file_becomes_what_is_written_down_here() {
    for (file, text, name) in FILES {
        let migrated = migrate(text, &given(name)).unwrap();
        let notes = migrated.notes.iter().fold(String::new(), |mut text, note| {
            let _ = writeln!(text, "# {note}");
            text
        });
        insta::assert_snapshot!(file, format!("{notes}{}", migrated.yaml));
    }
}

// That the schema and its rules accept them, too, is held by the test of the CRD that reads the snapshots.
#[test]
fn whatever_comes_out_can_be_carried_out() {
    for (file, text, name) in FILES {
        let migrated = migrate(text, &given(name)).unwrap();
        let resources: Vec<CudaRunner> = serde_saphyr::from_multiple(&migrated.yaml).unwrap();
        assert!(!resources.is_empty(), "{file}");
        for resource in resources {
            let spec = Pool::read(&resource, false).spec;
            assert!(spec.is_ok(), "{file}: {:?}", spec.err());
        }
    }
}

#[test]
fn no_secret_of_a_file_is_written_anywhere() {
    let secrets = ["hunter2", "ghp_", "BEGIN RSA"];
    for (file, text, name) in FILES {
        let migrated = migrate(text, &given(name)).unwrap();
        let all = format!("{migrated:?}");
        assert!(
            !secrets.iter().any(|secret| all.contains(secret)),
            "{file}: {all}"
        );
    }
}

#[test]
fn what_cannot_be_read_is_named_with_its_line_and_shows_no_value() {
    let refused = |text: &str| migrate(text, &Given::default()).unwrap_err();
    let error = refused(
        "githubConfigUrl: https://github.com/acme\ngithubConfigSecret:\n  github_token: [hunter2\n",
    );
    assert!(error.contains("line"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    assert!(refused("name: {{ .Values.name }}\n").contains("helm template"));
    assert!(refused("- 1\n").contains("no mapping"));
    assert!(refused("").contains("nothing here describes runners"));
    assert!(refused("kind: ConfigMap\n").contains("nothing here describes runners"));
    assert!(refused("githubConfigUrl: https://github.com/acme\n").contains("--name"));
    let kind = "kind: AutoscalingRunnerSet\nmetadata: {name: gpu}\n";
    assert!(refused(kind).contains("spec.githubConfigUrl is missing"));
    let kind = "kind: RunnerDeployment\nmetadata: {name: gpu}\n";
    assert!(refused(kind).contains("repository is missing"));
}

#[test]
fn what_the_operator_would_refuse_is_told() {
    let text = "githubConfigUrl: https://github.com/acme\ngithubConfigSecret: s\nrunnerScaleSetName: gpu\ntemplate: {spec: {nodeSelectr: {a: b}}}\n";
    let notes = migrate(text, &Given::default()).unwrap().notes;
    assert!(notes.iter().any(|n| n.contains("nodeSelectr")), "{notes:?}");
}

#[test]
fn a_hostile_file_ends_in_an_error_or_in_text_that_does_nothing() {
    // An alias for each line, doubled each time
    let mut bomb = String::from("a0: &a0 [x, x]\n");
    for n in 1..40 {
        let before = n - 1;
        let _ = writeln!(bomb, "a{n}: &a{n} [*a{before}, *a{before}]");
    }
    assert!(migrate(&bomb, &Given::default()).is_err());
    assert!(migrate(&"[".repeat(100_000), &Given::default()).is_err());
    // What would write on a screen, in names of fields
    let text = "githubConfigUrl: https://github.com/acme\nrunnerScaleSetName: gpu\n\"\\e[2J\\nkind: Secret\": 1\n";
    let notes = migrate(text, &Given::default()).unwrap().notes;
    assert!(
        notes.iter().all(|n| !n.contains(['\u{1b}', '\n'])),
        "{notes:?}"
    );
}
