use super::*;
use crate::fixture;
use cudarunner_crds::{CudaRunner, RegistrationMode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

#[test]
fn an_unknown_field_of_the_template_is_named() {
    let mut resource = fixture::resource();
    resource.spec.template = Some(json!({
        "spec": {"containers": [{"name": "runner", "resource": {"limits": {"cpu": "1"}}}]}
    }));
    let error = Pool::read(&resource, false).spec.unwrap_err();
    assert_eq!(error.reason(), "InvalidTemplate");
    assert!(
        error.to_string().contains(".spec.containers[0].resource"),
        "{error}"
    );
}

#[test]
fn a_pool_that_goes_is_read_as_far_as_it_takes_to_undo_it() {
    type Change = fn(&mut CudaRunner);
    let wrong: [(&str, Change); 3] = [
        ("InvalidTemplate", |resource| {
            let container = json!({"name": "runner", "resource": {"limits": {"cpu": "1"}}});
            resource.spec.template = Some(json!({"spec": {"containers": [container]}}));
        }),
        ("InvalidSchedule", |resource| {
            let window = json!({"minRunners": 1, "maxRunners": 2, "schedule": [{
                "days": ["Monday"], "from": "08:00", "to": "18:00", "timeZone": "Europe/Berln", "minRunners": 2}]});
            resource.spec.scaling = Some(serde_json::from_value(window).unwrap());
        }),
        ("NoQueue", |resource| {
            resource.spec.github.url = "https://github.com/acme".to_owned();
            let poll = json!({"minRunners": 0, "maxRunners": 2, "source": "Poll"});
            resource.spec.scaling = Some(serde_json::from_value(poll).unwrap());
        }),
    ];
    for (reason, change) in wrong {
        // Given a spec that nothing can be made of
        let mut resource = fixture::resource();
        change(&mut resource);
        let error = Pool::read(&resource, false).spec.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        // When the resource is deleted, then the way to GitHub is known
        resource.metadata.deletion_timestamp = Some(Time(fixture::NOW));
        let spec = Pool::read(&resource, false).spec.unwrap();
        assert_eq!(spec.secret, resource.spec.github.credentials_ref.name);
        assert_eq!(spec.schedule, vec![]);
    }
    // One without an address cannot be asked anything
    let mut nowhere = fixture::resource();
    nowhere.spec.github.url = "https://".to_owned();
    nowhere.metadata.deletion_timestamp = Some(Time(fixture::NOW));
    assert!(Pool::read(&nowhere, false).spec.is_err());
}

#[test]
fn the_template_of_the_example_survives() {
    let mut resource = fixture::resource();
    resource.spec.template = Some(json!({
        "metadata": {"annotations": {}},
        "spec": {"containers": [{
            "name": "runner",
            "image": "example/runner:1",
            "resources": {"requests": {"cpu": "4", "memory": "16Gi"}}
        }]}
    }));
    assert!(Pool::read(&resource, false).spec.is_ok());
}

#[test]
fn durations_that_an_older_definition_let_in_are_brought_within_the_bounds() {
    let (day, hour, minute) = (86_400, 3_600, 60);
    for (text, timeout, every) in [
        ("99999999999999999999h", 5 * day, 365 * day),
        ("99999999h", 5 * day, 365 * day),
        ("0m", 0, 10 * minute),
        ("2h", 2 * hour, 2 * hour),
    ] {
        let mut resource = fixture::resource();
        resource.spec.teardown_timeout = text.to_owned();
        let verify =
            json!({"workflow": "w.yml", "ref": "main", "every": text, "jobs": [{"name": "cuda"}]});
        resource.spec.verify = Some(serde_json::from_value(verify).unwrap());
        let pool = Pool::read(&resource, false);
        assert_eq!(pool.teardown_timeout.as_secs(), timeout, "{text}");
        let found = pool.spec.unwrap().verify_every.unwrap();
        assert_eq!(found.as_secs(), every, "{text}");
    }
}

fn scaled(source: ScalingSource, url: &str) -> Result<Arc<Spec>, SpecError> {
    let mut resource = fixture::scaled(source, 1, 8);
    resource.spec.github.url = url.to_owned();
    Pool::read(&resource, false).spec
}

#[test]
fn a_range_follows_a_queue_that_can_be_read() {
    let (repository, organization) = ("https://github.com/acme/widgets", "https://github.com/acme");
    for url in [repository, organization] {
        let spec = scaled(ScalingSource::ScaleSet, url).unwrap();
        assert_eq!(spec.registration, RegistrationKind::ScaleSet);
        assert_eq!(spec.size, Size { min: 1, max: 8 });
        assert!(!spec.reads_queue());
    }
    for source in [ScalingSource::Poll, ScalingSource::Webhook] {
        let spec = scaled(source, repository).unwrap();
        assert_eq!(spec.registration, RegistrationKind::JitConfig);
        assert!(spec.reads_queue());
        assert_eq!(spec.webhook.is_some(), source == ScalingSource::Webhook);
        let error = scaled(source, organization).unwrap_err();
        assert_eq!(error.reason(), "NoQueue");
        let named = format!("source: {source:?} reads");
        let error = error.to_string();
        assert!(
            error.contains(&named) && error.contains("ScaleSet"),
            "{error}"
        );
    }
}

#[test]
fn a_scale_set_is_named_after_pool_and_uid() {
    let pool = Pool::read(&fixture::resource(), false);
    assert_eq!(pool.scale_set_name(), "pool-1b4e28ba");
}

#[test]
fn a_persistent_runner_registers_by_token_whatever_is_asked() {
    use Lifetime::{Ephemeral, Persistent};
    use RegistrationMode::{JitConfig, RegistrationToken};
    let kind = |lifetime, registration| {
        let mut resource = fixture::resource();
        resource.spec.lifetime = lifetime;
        resource.spec.registration = registration;
        Pool::read(&resource, false).spec.unwrap().registration
    };
    assert_eq!(kind(Ephemeral, JitConfig), RegistrationKind::JitConfig);
    assert_eq!(kind(Ephemeral, RegistrationToken), RegistrationKind::Token);
    assert_eq!(kind(Persistent, JitConfig), RegistrationKind::Token);
}

#[test]
fn plain_http_needs_the_flag() {
    let mut resource = fixture::resource();
    resource.spec.github.url = "http://ghe.example.com/acme/widgets".into();
    assert_eq!(
        Pool::read(&resource, false).spec.unwrap_err().reason(),
        "InvalidUrl"
    );
    assert!(Pool::read(&resource, true).spec.is_ok());
}

#[test]
fn the_hash_follows_the_shape_and_not_the_number() {
    let hash = |resource: &CudaRunner| {
        Pool::read(resource, false)
            .spec
            .unwrap()
            .template_hash
            .clone()
    };
    let base = fixture::resource();
    let mut more = base.clone();
    more.spec.replicas = Some(7);
    let mut other = base.clone();
    other.spec.labels.push("a100".into());
    let mut scale_set = base.clone();
    scale_set.spec.registration = RegistrationMode::ScaleSet;
    let mut on_arm = base.clone();
    on_arm.spec.arch = Arch::Arm64;
    assert_ne!(hash(&base), hash(&on_arm));
    assert_eq!(hash(&base), hash(&more));
    assert_ne!(hash(&base), hash(&other));
    assert_ne!(hash(&base), hash(&scale_set));
    assert_eq!(
        hash(&base),
        "01874b19dc7845ef",
        "an upgrade of the operator replaces no runner"
    );
}

#[test]
fn a_templates_selector_agrees_with_the_architecture() {
    for (arch, selected, well) in [
        (Arch::Amd64, "amd64", true),
        (Arch::Arm64, "arm64", true),
        (Arch::Amd64, "arm64", false),
        (Arch::Arm64, "amd64", false),
    ] {
        let mut resource = fixture::resource();
        resource.spec.arch = arch;
        resource.spec.template = Some(json!({
            "spec": {"nodeSelector": {"kubernetes.io/arch": selected}, "containers": []}
        }));
        let said = Pool::read(&resource, false).spec.map(|_| ());
        let said = said.map_err(|error| error.to_string());
        assert_eq!(said.is_ok(), well, "{arch}, {selected}: {said:?}");
        if let Err(said) = said {
            assert!(said.contains("spec.template.spec.nodeSelector"), "{said}");
        }
    }
}

#[test]
fn durations_are_read_as_kubernetes_writes_them() {
    assert_eq!(teardown_timeout("1h30m"), SignedDuration::from_mins(90));
    assert_eq!(teardown_timeout("5s"), SignedDuration::from_secs(5));
}

#[test]
fn the_containers_of_jobs_change_the_fingerprint_and_their_absence_does_not() {
    let hash = |containers: serde_json::Value| {
        let mut resource = fixture::resource();
        resource.spec.job_containers = serde_json::from_value(containers).unwrap();
        Pool::read(&resource, false)
            .spec
            .unwrap()
            .template_hash
            .clone()
    };
    let all = [
        json!(null),
        json!({}),
        json!({"shmSize": "1Gi"}),
        json!({"services": false}),
    ];
    let hashes: std::collections::BTreeSet<String> = all.into_iter().map(hash).collect();
    assert_eq!(hashes.len(), 4);
}
