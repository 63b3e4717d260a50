//! Files as people have them, each with what comes of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use cuda_runner_plan::model::pool::{Pool, Spec};
use cuda_runner_plan::pod::build;
use cuda_runner_plan::{NewRunner, PodSettings};
use cudarunner_crds::CudaRunner;
use k8s_openapi::api::core::v1::PodSpec;

use super::{Given, migrate};

mod nothing_vanishes;

/// A file, by its name; and the pool's name, where it has none.
macro_rules! file {
    ($name:literal, $pool:expr) => {
        (
            $name,
            include_str!(concat!("files/", $name, ".yaml")),
            $pool,
        )
    };
}

const FILES: [(&str, &str, Option<&str>); 41] = [
    file!("argo-application", None),
    file!("argo-two-sources", None),
    file!("arm64", None),
    file!("arm64-by-affinity", None),
    file!("caches-on-the-node", None),
    file!("claims-of-two-kinds", None),
    file!("deployment-docker-config", None),
    file!("deployment-sub-paths", None),
    file!("dind", None),
    file!("dind-hardened", None),
    file!("dind-written-out", None),
    file!("dns-of-its-own", None),
    file!("gpu-defaults", Some("gpu-22.04")),
    file!("gpu-node-selector", None),
    file!("helm-release", None),
    file!("helm-release-values-from", None),
    file!("inline-secret", None),
    file!("kube-init", None),
    file!("kube-init-written-out", None),
    file!("kubernetes-hooks", None),
    file!("kubernetes-mode", None),
    file!("launcher", None),
    file!("listener-and-labels", None),
    file!("long-comments", Some("large")),
    file!("no-limit", Some("Train_8xH100")),
    file!("no-runners", None),
    file!("not-for-templates", None),
    file!("own-hooks", None),
    file!("podman-in-the-runner", None),
    file!("proxy-and-authority", None),
    file!("rendered", None),
    file!("resource-with-claim", None),
    file!("runner-deployment", None),
    file!("runner-set", None),
    file!("runner-set-caches", None),
    file!("runner-set-image", None),
    file!("scheduled-overrides", None),
    file!("shared-memory", None),
    file!("sidecars", None),
    file!("toolcache", Some("gpu-24.04")),
    file!("users-by-number", Some("wolfi")),
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

// That the schema and its rules accept them, too, is held by the test of the CRD that reads the snapshots; and that an API
// server takes their pods, by the suite from_arc.
#[test]
fn whatever_comes_out_makes_pods() {
    for (file, text, name) in FILES {
        let migrated = migrate(text, &given(name)).unwrap();
        let resources: Vec<CudaRunner> = serde_saphyr::from_multiple(&migrated.yaml).unwrap();
        assert!(!resources.is_empty(), "{file}");
        for resource in resources {
            // Given the pool, whose spec can be carried out
            let pool = Pool::read(&resource, false);
            let spec = pool.spec.clone();
            let spec = spec.unwrap_or_else(|refused| panic!("{file}: {refused}"));
            // Then its pod lacks nothing that its containers name, and has nothing twice
            let pod = pod(&pool, &spec);
            assert_eq!(faults(&pod), Vec::<String>::new(), "{file}");
        }
    }
}

fn pod(pool: &Pool, spec: &Spec) -> PodSpec {
    let settings = PodSettings {
        gate_image: "example/cuda-smoke:1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        registrar_url: "https://10.96.0.7:8443".to_owned(),
        registrar_ca: String::new(),
    };
    let runner = NewRunner {
        name: "pool-aaaaa".to_owned(),
        avoids: BTreeSet::new(),
        shuns: BTreeSet::new(),
        retest: None,
    };
    build(pool, spec, &settings, &runner).spec.unwrap()
}

/// What an API server refuses of a pod, as far as its parts have to fit one another.
fn faults(pod: &PodSpec) -> Vec<String> {
    let mut faults = vec![];
    let containers = pod.init_containers.iter().flatten().chain(&pod.containers);
    let volumes: Vec<&str> = pod
        .volumes
        .iter()
        .flatten()
        .map(|v| v.name.as_str())
        .collect();
    let claims = pod
        .resource_claims
        .iter()
        .flatten()
        .map(|c| c.name.as_str());
    let claims: Vec<&str> = claims.collect();
    let mut once = |what: String, all: &[&str]| {
        let twice = |(number, name): &(usize, &&str)| all[..*number].contains(*name);
        faults.extend(
            all.iter()
                .enumerate()
                .find(twice)
                .map(|(_, name)| format!("{what} {name} is there twice")),
        );
    };
    once("volume".to_owned(), &volumes);
    once("claim".to_owned(), &claims);
    once(
        "container".to_owned(),
        &containers
            .clone()
            .map(|c| c.name.as_str())
            .collect::<Vec<_>>(),
    );
    for c in containers.clone() {
        let mounts = c.volume_mounts.iter().flatten();
        let places: Vec<&str> = mounts.map(|m| m.mount_path.as_str()).collect();
        once(format!("{}, mount", c.name), &places);
    }
    for c in containers {
        let mounts = c.volume_mounts.iter().flatten().map(|m| &m.name);
        let devices = c.volume_devices.iter().flatten().map(|d| &d.name);
        let lost = mounts
            .chain(devices)
            .filter(|name| !volumes.contains(&name.as_str()));
        faults.extend(lost.map(|name| format!("{}: no volume {name}", c.name)));
        let claimed = c
            .resources
            .iter()
            .filter_map(|r| r.claims.as_ref())
            .flatten();
        let lost = claimed.filter(|claim| !claims.contains(&claim.name.as_str()));
        faults.extend(lost.map(|claim| format!("{}: no claim {}", c.name, claim.name)));
        if c.image.as_ref().is_none_or(String::is_empty) {
            faults.push(format!("{}: no image", c.name));
        }
    }
    faults
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
fn a_number_of_runners_that_becomes_another_one_is_told() {
    for (min, max, scaling, told) in [
        (0, 8, (0, 8), None),
        (3, 3, (3, 3), None),
        (
            0,
            0,
            (0, 1),
            Some("maxRunners: a CudaRunner may have at least one"),
        ),
        (
            5,
            2,
            (5, 5),
            Some("maxRunners: it is less than the runners that wait"),
        ),
        (
            5,
            0,
            (5, 5),
            Some("maxRunners: it is less than the runners that wait"),
        ),
        (
            0,
            20_000,
            (0, 10_000),
            Some("maxRunners: a CudaRunner has at most 10,000"),
        ),
        (
            20_000,
            20_000,
            (10_000, 10_000),
            Some("minRunners: a CudaRunner has at most 10,000"),
        ),
    ] {
        let text = format!(
            "githubConfigUrl: https://github.com/acme\ngithubConfigSecret: s\nrunnerScaleSetName: gpu\nminRunners: {min}\nmaxRunners: {max}\ntemplate: {{spec: {{containers: [{{name: runner, resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]}}}}\n"
        );
        let migrated = migrate(&text, &Given::default()).unwrap();
        let (least, most) = scaling;
        let written = format!("maxRunners: {most}\n    minRunners: {least}\n");
        assert!(migrated.yaml.contains(&written), "{}", migrated.yaml);
        let notes = migrated.notes;
        match told {
            None => assert_eq!(notes, Vec::<String>::new()),
            Some(told) => assert!(notes.iter().any(|n| n.starts_with(told)), "{notes:?}"),
        }
    }
}

#[test]
fn a_release_gives_name_and_namespace_where_its_values_have_none() {
    let values = "githubConfigUrl: https://github.com/acme";
    let flux = |spec: &str| {
        format!(
            "kind: HelmRelease\nmetadata: {{name: a, namespace: b}}\nspec: {{values: {{{values}}}{spec}}}\n"
        )
    };
    let argo = |source: &str| {
        format!(
            "kind: Application\nmetadata: {{name: a, namespace: argocd}}\nspec: {{{source}, destination: {{namespace: b}}}}\n"
        )
    };
    for (text, name, namespace) in [
        (flux(""), "a", "b"),
        (flux(", releaseName: c"), "c", "b"),
        (flux(", targetNamespace: d"), "d-a", "d"),
        (flux(", targetNamespace: d, releaseName: c"), "c", "d"),
        (
            argo(&format!("source: {{helm: {{valuesObject: {{{values}}}}}}}")),
            "a",
            "b",
        ),
        (
            argo(&format!(
                "source: {{helm: {{releaseName: c, values: \"{values}\"}}}}"
            )),
            "c",
            "b",
        ),
        (
            argo(&format!(
                "sources: [{{ref: x}}, {{helm: {{releaseName: c, values: \"{values}\"}}}}]"
            )),
            "c",
            "b",
        ),
    ] {
        let migrated = migrate(&text, &Given::default()).unwrap();
        let metadata = format!("metadata:\n  name: {name}\n  namespace: {namespace}\n");
        assert!(migrated.yaml.contains(&metadata), "{text}{}", migrated.yaml);
    }
    // One of something else is told, and is no error beside a scale set
    let other = "kind: HelmRelease\nmetadata: {name: arc}\nspec: {values: {replicaCount: 2}}\n";
    let refused = migrate(other, &Given::default()).unwrap_err();
    assert!(
        refused.contains("nothing here describes runners"),
        "{refused}"
    );
    let both = migrate(&format!("{other}---\n{}", flux("")), &Given::default()).unwrap();
    assert!(
        both.notes
            .iter()
            .any(|n| n.starts_with("HelmRelease arc: it has no values")),
        "{:?}",
        both.notes
    );
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
    // Numbers that nobody has
    let text = include_str!("files/scheduled-overrides.yaml")
        .replace("minReplicas: 4", "minReplicas: 9999999999");
    let migrated = migrate(&text, &Given::default()).unwrap();
    assert!(migrated.yaml.contains("maxRunners: 10000"), "{migrated:?}");
    // What would write on a screen, in names of fields
    let text = "githubConfigUrl: https://github.com/acme\nrunnerScaleSetName: gpu\n\"\\e[2J\\nkind: Secret\": 1\n";
    let notes = migrate(text, &Given::default()).unwrap().notes;
    assert!(
        notes.iter().all(|n| !n.contains(['\u{1b}', '\n'])),
        "{notes:?}"
    );
}

#[test]
fn the_way_to_github_is_written_without_its_user() {
    for (url, written) in [
        ("proxy:3128", "http://proxy:3128"),
        ("me:hunter2@proxy:3128", "http://proxy:3128"),
        ("https://me:hunter2@proxy:3128/", "https://proxy:3128"),
        ("http://me:hun/ter2@proxy:3128", "http://proxy:3128"),
        ("http://me:hunter2@x@proxy:3128", "http://proxy:3128"),
    ] {
        let text = format!(
            "githubConfigUrl: https://github.com/acme\nrunnerScaleSetName: gpu\nproxy: {{http: {{url: \"{url}\"}}}}\n"
        );
        let migrated = migrate(&text, &Given::default()).unwrap();
        assert!(
            migrated.yaml.contains(&format!("url: {written}\n")),
            "{}",
            migrated.yaml
        );
        assert!(!format!("{migrated:?}").contains("hun"), "{migrated:?}");
        let said = migrated
            .notes
            .iter()
            .any(|n| n.starts_with("proxy.http.url: it holds a user"));
        assert_eq!(said, url.contains('@'), "{url}: {:?}", migrated.notes);
    }
}

#[test]
fn nodes_of_one_architecture_make_a_pool_of_it() {
    let of = |selector: &str, expressions: &str| {
        let text = format!(
            "githubConfigUrl: https://github.com/acme\nrunnerScaleSetName: gpu\ntemplate: {{spec: {{nodeSelector: {{{selector}}}, affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{expressions}]}}}}}}}}}}\n"
        );
        let migrated = migrate(&text, &Given::default()).unwrap();
        let unsure = migrated
            .notes
            .iter()
            .any(|n| n.contains("no node of amd64 or arm64"));
        (migrated.yaml.contains("arch: arm64\n  github"), unsure)
    };
    let term = |operator: &str, values: &str| {
        format!(
            "{{matchExpressions: [{{key: kubernetes.io/arch, operator: {operator}, values: [{values}]}}]}}"
        )
    };
    let other = "{matchExpressions: [{key: zone, operator: In, values: [a]}]}";
    let (arm, amd) = (term("In", "arm64"), term("In", "amd64"));
    for (selector, terms, is_arm, is_unsure) in [
        ("", String::new(), false, false),
        ("kubernetes.io/arch: arm64", String::new(), true, false),
        ("beta.kubernetes.io/arch: arm64", String::new(), true, false),
        ("", arm.clone(), true, false),
        ("", term("NotIn", "amd64"), true, false),
        ("", term("In", "amd64, arm64"), false, false),
        ("", format!("{arm}, {arm}"), true, false),
        ("", format!("{arm}, {amd}"), false, false),
        ("", format!("{arm}, {other}"), false, false),
        ("kubernetes.io/arch: arm64", amd, false, true),
    ] {
        assert_eq!(
            of(selector, &terms),
            (is_arm, is_unsure),
            "{selector} {terms}"
        );
    }
}

#[test]
fn of_several_claims_that_of_the_gpus_is_taken_where_it_says_so() {
    let of = |claims: &[(&str, &str)]| {
        let of_pod = claims
            .iter()
            .map(|(name, template)| format!("{{name: {name}, {template}}}"));
        let of_pod = of_pod.collect::<Vec<_>>().join(", ");
        let names = claims.iter().map(|(name, _)| format!("{{name: {name}}}"));
        let names = names.collect::<Vec<_>>().join(", ");
        let text = format!(
            "githubConfigUrl: https://github.com/acme\nrunnerScaleSetName: gpu\ntemplate: {{spec: {{resourceClaims: [{of_pod}], containers: [{{name: runner, resources: {{claims: [{names}]}}}}]}}}}\n"
        );
        let migrated = migrate(&text, &Given::default()).unwrap();
        let taken = migrated
            .yaml
            .lines()
            .find_map(|l| l.trim().strip_prefix("claimTemplate: "));
        let unclear = migrated.notes.iter().any(|n| n.contains("is not clear"));
        let stay = claims
            .iter()
            .filter(|(name, _)| migrated.yaml.matches(&format!("name: {name}\n")).count() == 2);
        (taken.map(str::to_owned), unclear, stay.count())
    };
    let template = "resourceClaimTemplateName";
    let of_nic = format!("{template}: nic");
    let nic = ("net", of_nic.as_str());
    let (h100, a_gpu) = (format!("{template}: h100"), format!("{template}: one-gpu"));
    for (claims, taken, stay) in [
        (vec![("one", h100.as_str())], Some("h100"), 0),
        (vec![nic, ("gpu", &h100)], Some("h100"), 1),
        (vec![("one", &a_gpu), nic], Some("one-gpu"), 1),
        (vec![nic, ("one", &h100)], None, 2),
        (vec![("gpu-1", &h100), ("gpu-2", &h100)], None, 2),
        (vec![("shared", "resourceClaimName: h100")], None, 1),
    ] {
        let found = of(&claims);
        assert_eq!(
            found,
            (taken.map(str::to_owned), taken.is_none(), stay),
            "{claims:?}"
        );
    }
}
