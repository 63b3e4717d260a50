//! The operator's chart.

use std::collections::BTreeMap;

use cudarunner_crds::POOL_LABEL;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        batch::v1::Job,
        core::v1::{Container, PodSpec, Service},
        networking::v1::{NetworkPolicy, NetworkPolicyPort},
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use serde_json::{Value, json};

use super::{
    objects::{of_kind, understood},
    parsed, refusal, render,
};

pub(super) const CHART: &str = "cuda-runner-operator";

/// The taint that the operator puts on nodes.
const TAINT: &str = "cudarunner.dev/cuda-smoke-failed";

pub(super) fn images() -> Value {
    json!({"image": {"repository": "r/operator"}, "gateImage": {"repository": "r/gate"}})
}

/// Every value, each with another than its default.
pub(super) fn everything() -> Value {
    json!({
        "nameOverride": "name",
        "fullnameOverride": "full-name",
        "image": {"repository": "r/operator", "tag": format!("1@sha256:{}", "0".repeat(64)), "pullPolicy": "Always"},
        "gateImage": {"repository": "r/gate", "tag": "2", "pullPolicy": "Never"},
        "imagePullSecrets": [{"name": "registry"}],
        "replicas": 3,
        "leaderElection": {"enabled": true},
        "watchNamespaces": ["ci", "other"],
        "poolSelector": "shard notin (a,b)",
        "namespaceWeights": {"ci": 3, "other": 2},
        "rbac": {
            "create": true,
            "secretNames": ["github-app"],
            "configMapNames": ["authority"],
            "jobContainers": false,
            "aggregateToUserRoles": false,
        },
        "serviceAccount": {"create": true, "name": "account", "annotations": {"a": "b"}},
        "networkPolicy": {
            "enabled": true,
            "registrarFrom": [{"ipBlock": {"cidr": "10.0.0.0/16"}}],
            "egressPorts": [443, 3128],
        },
        "hungAfterSeconds": 900,
        "metrics": {
            "byRepository": true,
            "serviceMonitor": {"enabled": true, "labels": {"release": "p"}, "interval": "15s"},
            "prometheusRule": {"enabled": true, "labels": {"release": "p"}},
            "dashboard": {"enabled": true, "labels": {"grafana": "yes"}},
        },
        "fleetPage": {
            "enabled": true,
            "hosts": ["gpus.example.com"],
            "from": [{"namespaceSelector": {}}],
        },
        "webhook": {
            "enabled": true,
            "url": "https://hooks.example.com",
            "service": {"type": "NodePort", "nodePort": 30083},
            "from": [{"namespaceSelector": {}}],
        },
        "uninstallHook": {"enabled": false},
        "nodeCondition": {"enabled": true},
        "nodeTaint": {"enabled": true},
        "deviceTaints": {"enabled": true, "effect": "None"},
        "insecureGithub": true,
        "githubAddresses": {"allow": ["10.96.7.0/24", "fd00::7"], "deny": ["10.96.0.0/12"]},
        "logFormat": "text",
        "logLevel": "debug",
        "tracing": {"endpoint": "http://collector:4318"},
        "extraEnv": [{"name": "A", "value": "b"}],
        "resources": {"limits": {"memory": "1Gi"}},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [spread()],
        "priorityClassName": "high",
    })
}

fn spread() -> Value {
    json!({"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"})
}

fn everything_and_its_end() -> Value {
    let mut values = everything();
    values["uninstallHook"]["enabled"] = json!(true);
    values
}

fn with(changes: &Value) -> Value {
    let mut values = images();
    for (key, value) in changes.as_object().unwrap() {
        values[key] = value.clone();
    }
    values
}

pub(super) fn installations() -> Vec<Value> {
    let mut own_account = everything();
    own_account["rbac"] = json!({"create": false});
    own_account["serviceAccount"] = json!({"create": false});
    vec![
        images(),
        with(&json!({"networkPolicy": {"enabled": true}})),
        with(&json!({"replicas": 2, "leaderElection": {"enabled": true}})),
        with(&json!({"watchNamespaces": ["ci"], "rbac": {"secretNames": ["github-app"]}})),
        with(&json!({"nodeTaint": {"enabled": true}})),
        with(&json!({"fleetPage": {"enabled": true}})),
        with(&json!({"webhook": {"enabled": true, "url": "https://hooks.example.com"}})),
        everything(),
        everything_and_its_end(),
        own_account,
    ]
}

pub(super) fn deployment(objects: &[Value]) -> Deployment {
    of_kind("Deployment", objects).remove(0)
}

fn pod(deployment: &Deployment) -> &PodSpec {
    deployment.spec.template.spec.as_ref().unwrap()
}

fn pod_labels(deployment: &Deployment) -> &BTreeMap<String, String> {
    let meta = deployment.spec.template.metadata.as_ref();
    meta.unwrap().labels.as_ref().unwrap()
}

/// The Service with a port of this name.
pub(super) fn service(port: &str, objects: &[Value]) -> Service {
    let has_port = |service: &Service| {
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
        ports.is_some_and(|ports| ports[0].name.as_deref() == Some(port))
    };
    let services = of_kind::<Service>("Service", objects);
    services.into_iter().find(has_port).unwrap()
}

/// Whether a selector without expressions takes the operator's pods.
fn selects(selector: &LabelSelector, deployment: &Deployment) -> bool {
    let wanted = selector.match_labels.as_ref().unwrap();
    assert!(selector.match_expressions.is_none() && !wanted.is_empty());
    wanted
        .iter()
        .all(|(key, value)| pod_labels(deployment).get(key) == Some(value))
}

#[test]
fn every_object_is_understood() {
    for values in installations() {
        understood(&render(CHART, &values));
    }
}

#[test]
fn every_container_is_restricted() {
    for values in installations() {
        let deployment = deployment(&render(CHART, &values));
        let pod = pod(&deployment);
        for host in [pod.host_network, pod.host_pid, pod.host_ipc] {
            assert_ne!(host, Some(true));
        }
        assert!(
            pod.volumes
                .iter()
                .flatten()
                .all(|volume| volume.host_path.is_none())
        );
        let containers = pod
            .containers
            .iter()
            .chain(pod.init_containers.iter().flatten());
        for container in containers {
            restricted(pod, container);
        }
    }
}

/// The Pod Security level, and a root file system that nobody writes to.
pub(super) fn restricted(pod: &PodSpec, container: &Container) {
    let own = container.security_context.as_ref().unwrap();
    let shared = pod.security_context.as_ref().unwrap();
    assert_eq!(own.run_as_non_root.or(shared.run_as_non_root), Some(true));
    assert_ne!(own.run_as_user.or(shared.run_as_user), Some(0));
    let seccomp = own
        .seccomp_profile
        .as_ref()
        .or(shared.seccomp_profile.as_ref());
    assert_eq!(seccomp.unwrap().type_, "RuntimeDefault");
    assert_eq!(own.allow_privilege_escalation, Some(false));
    assert_eq!(own.read_only_root_filesystem, Some(true));
    assert_ne!(own.privileged, Some(true));
    assert_eq!(own.proc_mount, None);
    let capabilities = own.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    assert_eq!(capabilities.add, None);
    assert!(
        container
            .ports
            .iter()
            .flatten()
            .all(|port| port.host_port.is_none())
    );
}

fn rules(objects: &[Value]) -> Vec<PolicyRule> {
    let roles = of_kind::<Role>("Role", objects);
    let cluster_roles = of_kind::<ClusterRole>("ClusterRole", objects);
    let (roles, cluster_roles) = (roles.into_iter(), cluster_roles.into_iter());
    roles
        .filter_map(|role| role.rules)
        .chain(cluster_roles.filter_map(|role| role.rules))
        .flatten()
        .collect()
}

#[test]
fn no_role_has_a_star() {
    for values in installations() {
        for rule in rules(&render(CHART, &values)) {
            let lists = [rule.api_groups, rule.resources, rule.non_resource_urls];
            let words = lists.into_iter().flatten().flatten().chain(rule.verbs);
            for word in words {
                assert!(!word.contains('*'), "{word} with {values:#}");
            }
        }
    }
}

#[test]
fn limited_to_namespaces_it_reads_named_secrets_alone() {
    let mut values = everything();
    for mark in ["nodeCondition", "nodeTaint"] {
        values[mark] = json!({"enabled": false});
    }
    let objects = render(CHART, &values);
    for role in of_kind::<ClusterRole>("ClusterRole", &objects) {
        for rule in role.rules.unwrap() {
            let resources = rule.resources.unwrap();
            for unseen in ["secrets", "configmaps", "nodes"] {
                assert!(!resources.contains(&unseen.to_owned()), "{unseen}");
            }
        }
    }
    for rule in rules(&objects) {
        let reads = rule.verbs.iter().any(|verb| verb != "create");
        if reads && rule.resources.unwrap().contains(&"secrets".to_owned()) {
            assert!(rule.resource_names.is_some_and(|names| !names.is_empty()));
        }
    }
}

#[test]
fn pods_are_patched_where_pools_are_and_nowhere_else() {
    let patches = |role: &Option<Vec<PolicyRule>>| {
        role.iter().flatten().any(|rule| {
            let of_pods = rule.resources.iter().flatten().any(|r| r == "pods");
            of_pods && rule.verbs.iter().any(|verb| verb == "patch")
        })
    };
    // Given a whole cluster, then it is a right of the cluster's
    let objects = render(CHART, &with(&json!({})));
    let everywhere = of_kind::<ClusterRole>("ClusterRole", &objects);
    assert!(everywhere.iter().any(|role| patches(&role.rules)));
    // Given namespaces, then it is one of theirs alone
    let namespaces =
        json!({"watchNamespaces": ["ci", "ml"], "rbac": {"secretNames": ["github-app"]}});
    let objects = render(CHART, &with(&namespaces));
    let everywhere = of_kind::<ClusterRole>("ClusterRole", &objects);
    assert!(!everywhere.iter().any(|role| patches(&role.rules)));
    let roles = of_kind::<Role>("Role", &objects);
    let roles = roles.iter().filter(|role| patches(&role.rules));
    let of: Vec<_> = roles
        .filter_map(|r| r.metadata.namespace.as_deref())
        .collect();
    assert_eq!(of, ["ci", "ml"]);
}

#[test]
fn what_jobs_bring_beside_their_image_is_a_right_that_can_be_left_out() {
    let namespaces = json!({"watchNamespaces": ["ci"], "rbac": {"secretNames": ["github-app"]}});
    for base in [json!({}), namespaces] {
        for allowed in [true, false] {
            let mut values = with(&base);
            values["rbac"]["jobContainers"] = json!(allowed);
            let rules = rules(&render(CHART, &values));
            let may = |verb: &str, resource: &str| {
                let rules = rules
                    .iter()
                    .filter(|rule| rule.verbs.iter().any(|v| v == verb));
                rules
                    .filter(|rule| rule.resources.iter().flatten().any(|r| r == resource))
                    .count()
            };
            assert_eq!(
                may("patch", "pods/ephemeralcontainers"),
                usize::from(allowed)
            );
            // One is for the registrar's own, in the operator's namespace
            assert_eq!(may("create", "secrets"), 1 + usize::from(allowed));
        }
    }
}

#[test]
fn the_operator_tolerates_its_own_taint_beside_what_its_values_say() {
    for (taint, own) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut values = with(&json!({"nodeTaint": {"enabled": taint}}));
        if own {
            values["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
        }
        let deployment = deployment(&render(CHART, &values));
        let tolerations = pod(&deployment).tolerations.iter().flatten();
        let found: Vec<_> = tolerations.filter_map(|t| t.key.as_deref()).collect();
        let expected = [own.then_some("a"), taint.then_some(TAINT)];
        assert_eq!(found, expected.into_iter().flatten().collect::<Vec<_>>());
    }
}

#[test]
fn devices_are_tainted_only_where_that_is_asked_for() {
    let namespaces = json!({"watchNamespaces": ["ci"], "rbac": {"secretNames": ["github-app"]}});
    for base in [json!({}), namespaces] {
        for enabled in [false, true] {
            let mut values = with(&base);
            values["deviceTaints"] = json!({"enabled": enabled});
            let objects = render(CHART, &values);
            let writes = |resource: &str| {
                let mut resources = rules(&objects).into_iter().filter_map(|r| r.resources);
                resources.any(|all| all.iter().any(|r| r == resource))
            };
            let deployment = deployment(&objects);
            let arguments = pod(&deployment).containers[0].args.clone().unwrap();
            let owner = arguments
                .iter()
                .find_map(|a| a.strip_prefix("--device-taint-owner="));
            assert_eq!(owner.is_some(), enabled);
            for resource in [
                "devicetaintrules",
                "resourceclaims",
                "resourceclaimtemplates",
            ] {
                assert_eq!(writes(resource), enabled, "{resource}");
            }
            // The rules belong to the very role that lets the operator make them
            let roles = of_kind::<ClusterRole>("ClusterRole", &objects);
            let named = roles.iter().filter(|r| r.metadata.name.as_deref() == owner);
            assert_eq!(named.count(), usize::from(enabled));
        }
    }
}

#[test]
fn nodes_are_written_to_only_where_that_is_asked_for() {
    let namespaces = json!({"watchNamespaces": ["ci"], "rbac": {"secretNames": ["github-app"]}});
    for base in [json!({}), namespaces] {
        for (condition, taint) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut values = with(&base);
            values["nodeCondition"] = json!({"enabled": condition});
            values["nodeTaint"] = json!({"enabled": taint});
            let objects = render(CHART, &values);
            let may_patch = |resource: &str| {
                rules(&objects).iter().any(|rule| {
                    let writes = rule
                        .verbs
                        .iter()
                        .any(|v| !["get", "list", "watch"].contains(&v.as_str()));
                    writes && rule.resources.iter().flatten().any(|r| r == resource)
                })
            };
            let deployment = deployment(&objects);
            let arguments = pod(&deployment).containers[0].args.clone().unwrap();
            let has = |flag: &str| arguments.iter().any(|a| a == flag);
            assert_eq!(
                (may_patch("nodes/status"), has("--node-condition")),
                (condition, condition)
            );
            assert_eq!((may_patch("nodes"), has("--node-taint")), (taint, taint));
            // In a role of its own, bound to the operator's account
            let of_nodes = |name: &&String| name.ends_with("-nodes");
            let roles = of_kind::<ClusterRole>("ClusterRole", &objects);
            let roles = roles
                .iter()
                .filter_map(|r| r.metadata.name.as_ref())
                .filter(of_nodes);
            let bindings = of_kind::<ClusterRoleBinding>("ClusterRoleBinding", &objects);
            let bindings = bindings.iter().map(|b| &b.role_ref.name).filter(of_nodes);
            let roles: Vec<_> = roles.collect();
            assert_eq!(roles.len(), usize::from(condition || taint));
            assert_eq!(roles, bindings.collect::<Vec<_>>());
        }
    }
}

fn numbers(ports: Option<&Vec<NetworkPolicyPort>>) -> Vec<i32> {
    let ports = ports.into_iter().flatten();
    ports
        .map(|port| match port.port {
            Some(IntOrString::Int(number)) => number,
            ref other => panic!("{other:?} is no number"),
        })
        .collect()
}

#[test]
fn a_network_policy_comes_only_when_asked_for() {
    assert!(of_kind::<NetworkPolicy>("NetworkPolicy", &render(CHART, &images())).is_empty());
}

#[test]
fn the_network_policy_is_for_the_operators_pods_and_lets_in_what_they_listen_for() {
    for values in [
        with(&json!({"networkPolicy": {"enabled": true}})),
        everything(),
    ] {
        let objects = render(CHART, &values);
        let deployment = deployment(&objects);
        let policy = of_kind::<NetworkPolicy>("NetworkPolicy", &objects)
            .remove(0)
            .spec
            .unwrap();
        assert!(selects(policy.pod_selector.as_ref().unwrap(), &deployment));
        assert_eq!(policy.policy_types.unwrap(), ["Ingress", "Egress"]);

        let ingress = policy.ingress.unwrap();
        let mut open: Vec<_> = ingress
            .iter()
            .flat_map(|rule| numbers(rule.ports.as_ref()))
            .collect();
        let listens = pod(&deployment).containers[0].ports.iter().flatten();
        let mut listens: Vec<_> = listens.map(|port| port.container_port).collect();
        open.sort_unstable();
        listens.sort_unstable();
        assert_eq!(open, listens);
    }
}

#[test]
fn the_fleet_page_is_served_when_asked_for_and_reached_by_whom_the_policy_names() {
    let has_page = |values: &Value| {
        let objects = render(CHART, values);
        let services = of_kind::<Service>("Service", &objects);
        let component = |service: &Service| {
            let labels = service.metadata.labels.as_ref();
            labels.and_then(|l| l.get("app.kubernetes.io/component").cloned())
        };
        services
            .iter()
            .any(|s| component(s).as_deref() == Some("fleet-page"))
    };
    assert!(!has_page(&images()));
    let mut values = with(&json!({
        "fleetPage": {"enabled": true}, "networkPolicy": {"enabled": true},
    }));
    assert!(has_page(&values));
    let opened = |values: &Value| {
        let policy = of_kind::<NetworkPolicy>("NetworkPolicy", &render(CHART, values)).remove(0);
        let rules = policy.spec.unwrap().ingress.unwrap();
        let mut rules = rules.into_iter();
        rules.find(|rule| numbers(rule.ports.as_ref()) == [8082])
    };
    // Without a word on who may, nobody may
    assert!(opened(&values).is_none());
    values["fleetPage"]["from"] = json!([{"podSelector": {"matchLabels": {"app": "proxy"}}}]);
    assert_eq!(opened(&values).unwrap().from.unwrap().len(), 1);
}

#[test]
fn webhooks_are_taken_when_asked_for_and_from_whom_the_policy_names() {
    let mut values = with(&json!({
        "webhook": {"enabled": true, "url": "https://hooks.example.com"},
        "networkPolicy": {"enabled": true},
    }));
    let services = of_kind::<Service>("Service", &render(CHART, &images()));
    assert!(
        services
            .iter()
            .all(|s| !s.metadata.name.as_ref().unwrap().ends_with("-webhook"))
    );
    let objects = render(CHART, &values);
    let port = service("webhook", &objects).spec.unwrap().ports.unwrap()[0].port;
    assert_eq!(port, 8083);
    let opened = |values: &Value| {
        let policy = of_kind::<NetworkPolicy>("NetworkPolicy", &render(CHART, values)).remove(0);
        let rules = policy.spec.unwrap().ingress.unwrap();
        let mut rules = rules.into_iter();
        rules.find(|rule| numbers(rule.ports.as_ref()) == [8083])
    };
    // Without a word on who may, nobody may
    assert!(opened(&values).is_none());
    values["webhook"]["from"] = json!([{"podSelector": {"matchLabels": {"app": "ingress"}}}]);
    assert_eq!(opened(&values).unwrap().from.unwrap().len(), 1);
    values["webhook"]["url"] = json!("");
    assert!(refusal(CHART, &values).contains("webhook.url"));
    values["webhook"]["url"] = json!("hooks.example.com");
    assert!(refusal(CHART, &values).contains("/webhook/url"));
}

#[test]
fn only_runner_pods_reach_the_registrar() {
    for values in [
        with(&json!({"networkPolicy": {"enabled": true}})),
        everything(),
    ] {
        let objects = render(CHART, &values);
        let policy = of_kind::<NetworkPolicy>("NetworkPolicy", &objects)
            .remove(0)
            .spec
            .unwrap();
        let registrar = service("registrar", &objects).spec.unwrap();
        let registrar = registrar.ports.unwrap()[0].port;
        let mut rules = policy.ingress.unwrap().into_iter();
        let rule = rules
            .find(|rule| numbers(rule.ports.as_ref()) == [registrar])
            .unwrap();
        let mut peers = rule.from.unwrap();
        let runners = peers.remove(0);
        let expressions = runners.pod_selector.unwrap().match_expressions.unwrap();
        assert_eq!(expressions[0].key, POOL_LABEL);
        assert_eq!(expressions[0].operator, "Exists");

        // In the namespaces that are served, and without a list in all of them.
        let namespaces = runners.namespace_selector.unwrap().match_expressions;
        let namespaces = namespaces.map(|mut list| list.remove(0).values.unwrap());
        let served: Option<Vec<String>> =
            serde_json::from_value(values["watchNamespaces"].clone()).unwrap();
        assert_eq!(namespaces, served);

        let further = json!(peers);
        let asked = values["networkPolicy"].get("registrarFrom").cloned();
        assert_eq!(further, asked.unwrap_or(json!([])));
    }
}

#[test]
fn a_network_policy_lets_out_to_dns_and_to_the_ports_of_the_values() {
    let objects = render(CHART, &everything());
    let policy = of_kind::<NetworkPolicy>("NetworkPolicy", &objects)
        .remove(0)
        .spec
        .unwrap();
    let egress = policy.egress.unwrap();
    let ports: Vec<_> = egress
        .iter()
        .map(|rule| numbers(rule.ports.as_ref()))
        .collect();
    assert_eq!(ports, [vec![53, 53], vec![443, 3128]]);
    assert!(egress.iter().all(|rule| rule.to.is_none()));
}

#[test]
fn several_replicas_are_kept_apart_and_evicted_one_at_a_time() {
    for (replicas, several) in [(0, false), (1, false), (2, true)] {
        let values = with(&json!({"replicas": replicas, "leaderElection": {"enabled": true}}));
        let objects = render(CHART, &values);
        let deployment = deployment(&objects);
        let budgets = of_kind::<PodDisruptionBudget>("PodDisruptionBudget", &objects);
        assert_eq!(budgets.len(), usize::from(several), "{replicas} replicas");
        for budget in budgets {
            let spec = budget.spec.unwrap();
            assert_eq!(spec.max_unavailable, Some(IntOrString::Int(1)));
            assert!(selects(&spec.selector.unwrap(), &deployment));
        }
        let spread = pod(&deployment)
            .topology_spread_constraints
            .clone()
            .unwrap_or_default();
        assert_eq!(!spread.is_empty(), several, "{replicas} replicas");
        for constraint in spread {
            // Anything harder would keep an operator from running.
            assert_eq!(constraint.when_unsatisfiable, "ScheduleAnyway");
            assert!(selects(&constraint.label_selector.unwrap(), &deployment));
        }
    }
}

#[test]
fn selectors_find_the_pods() {
    for values in installations() {
        let objects = render(CHART, &values);
        let deployment = deployment(&objects);
        assert!(selects(&deployment.spec.selector, &deployment));
        for service in of_kind::<Service>("Service", &objects) {
            let selector = LabelSelector {
                match_labels: service.spec.unwrap().selector,
                ..LabelSelector::default()
            };
            assert!(selects(&selector, &deployment));
        }
    }
}

#[test]
fn what_cannot_work_is_refused_with_the_way_out() {
    let cases = [
        (json!({}), "image.repository is not set"),
        (
            json!({"image": {"repository": "r"}}),
            "gateImage.repository is not set",
        ),
        (
            with(&json!({"replicas": 2})),
            "set leaderElection.enabled=true",
        ),
        (
            with(&json!({"watchNamespaces": ["ci"]})),
            "rbac.secretNames",
        ),
    ];
    for (values, words) in cases {
        let why = refusal(CHART, &values);
        assert!(why.contains(words), "{why}");
    }
}

#[test]
fn every_container_says_what_it_asks_for() {
    for values in installations() {
        let objects = render(CHART, &values);
        let mut pods = vec![pod(&deployment(&objects)).clone()];
        let jobs = of_kind::<Job>("Job", &objects).into_iter();
        pods.extend(jobs.filter_map(|job| job.spec?.template.spec));
        for container in pods.iter().flat_map(|pod| &pod.containers) {
            let resources = container.resources.clone().unwrap_or_default();
            let requests = resources.requests.unwrap_or_default();
            for name in ["cpu", "memory"] {
                assert!(requests.contains_key(name), "{}: {values}", container.name);
            }
        }
    }
}

#[test]
fn values_that_nobody_reads_are_refused() {
    for path in [
        "/",
        "/image/",
        "/rbac/",
        "/serviceAccount/",
        "/networkPolicy/",
        "/metrics/",
        "/metrics/serviceMonitor/",
        "/metrics/prometheusRule/",
        "/metrics/dashboard/",
        "/leaderElection/",
        "/tracing/",
        "/uninstallHook/",
        "/fleetPage/",
        "/webhook/",
        "/webhook/service/",
        "/nodeCondition/",
        "/nodeTaint/",
        "/deviceTaints/",
        "/resources/",
    ] {
        let mut values = everything();
        values.pointer_mut(path.trim_end_matches('/')).unwrap()["replicsa"] = json!(1);
        let why = refusal(CHART, &values);
        assert!(
            why.contains("additional properties 'replicsa' not allowed"),
            "{path}: {why}"
        );
    }
}

/// Paths of the values themselves. What is empty by default, or open to the user's own keys, is one value.
fn leaves(path: &str, defaults: &Value, into: &mut Vec<String>) {
    match defaults.as_object() {
        Some(parts) if !parts.is_empty() && path != "/resources" => {
            for (name, part) in parts {
                leaves(&format!("{path}/{name}"), part, into);
            }
        }
        _ => into.push(path.to_owned()),
    }
}

#[test]
fn every_value_has_an_effect() {
    let mut paths = Vec::new();
    leaves("", &parsed(CHART, "values.yaml"), &mut paths);
    for path in paths {
        // Some need others out of their way, or have the default already.
        let mut base = everything();
        match path.as_str() {
            "/nameOverride" => base["fullnameOverride"] = json!(""),
            "/rbac/create" | "/serviceAccount/create" => {
                *base.pointer_mut(&path).unwrap() = json!(false);
            }
            _ => {}
        }
        let (parent, name) = path.rsplit_once('/').unwrap();
        let mut without = base.clone();
        let removed = without
            .pointer_mut(parent)
            .and_then(|v| v.as_object_mut()?.remove(name));
        assert!(removed.is_some(), "`everything` lacks {path}");
        let without = super::helm(&["template", "release"], CHART, &without);
        let with = super::helm(&["template", "release"], CHART, &base);
        assert!(
            with.status.success(),
            "{}",
            String::from_utf8_lossy(&with.stderr)
        );
        assert!(with.stdout != without.stdout, "{path} changes nothing");
    }
}

#[test]
fn the_schema_knows_no_value_that_is_not_in_values_yaml() {
    fn same(path: &str, schema: &Value, values: &Value) {
        let Some(known) = schema["properties"].as_object() else {
            return;
        };
        for (name, part) in known {
            let path = format!("{path}.{name}");
            if path == ".global" || path.starts_with(".resources.") {
                continue;
            }
            let value = values.get(name);
            assert!(value.is_some(), "values.yaml does not show {path}");
            same(&path, part, value.unwrap());
        }
    }
    let mut schema = parsed(CHART, "values.schema.json");
    for image in ["image", "gateImage"] {
        schema["properties"][image] = schema["definitions"]["image"].clone();
    }
    same("", &schema, &parsed(CHART, "values.yaml"));
}
