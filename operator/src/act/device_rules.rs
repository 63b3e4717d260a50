//! Writes `DeviceTaintRules`: each is ours alone.

use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::resource::v1::DeviceTaintRule;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::is_status;
use crate::context::CONTROLLER;
use cuda_runner_plan::device_taints::{KEY, MANAGED_BY, Owner, Rule, UUID_ANNOTATION};

/// What the rules are to belong to; `None` where there is no such `ClusterRole`.
pub async fn owner(client: &Client, name: &str) -> Result<Option<Owner>, kube::Error> {
    let role = Api::<ClusterRole>::all(client.clone())
        .get_opt(name)
        .await?;
    let uid = role.and_then(|role| role.metadata.uid);
    Ok(uid.map(|uid| Owner {
        name: name.to_owned(),
        uid,
    }))
}

/// Makes a rule, or makes it so.
pub async fn apply(
    client: &Client,
    owner: &Owner,
    rule: &Rule,
) -> Result<DeviceTaintRule, kube::Error> {
    let api = Api::<DeviceTaintRule>::all(client.clone());
    let params = PatchParams::apply(CONTROLLER).force();
    api.patch(&rule.name, &params, &Patch::Apply(manifest(owner, rule)))
        .await
}

/// Removes a rule, unless another one has its name by now.
pub async fn remove(client: &Client, name: &str, uid: &str) -> Result<(), kube::Error> {
    let api = Api::<DeviceTaintRule>::all(client.clone());
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Err(error) if is_status(&error, 404) || is_status(&error, 409) => Ok(()),
        other => other.map(drop),
    }
}

fn manifest(owner: &Owner, rule: &Rule) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceTaintRule",
        "metadata": {
            "name": rule.name,
            "labels": {MANAGED_BY: CONTROLLER},
            "annotations": {UUID_ANNOTATION: rule.uuid},
            // With the right to make rules the rules go.
            "ownerReferences": [{
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "name": owner.name,
                "uid": owner.uid,
            }],
        },
        "spec": {
            "deviceSelector": {"driver": rule.driver, "pool": rule.pool, "device": rule.device},
            "taint": {"key": KEY, "value": rule.value, "effect": rule.effect},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_its_device_and_belongs_to_the_right_to_make_it() {
        let owner = Owner {
            name: "role".to_owned(),
            uid: "u-1".to_owned(),
        };
        let rule = Rule {
            name: "cudarunner-u-1-gpu-1-node-1".to_owned(),
            driver: "gpu.nvidia.com".to_owned(),
            pool: "node-1".to_owned(),
            device: "gpu-3".to_owned(),
            uuid: "GPU-1".to_owned(),
            value: "WrongResult".to_owned(),
            effect: "NoSchedule".to_owned(),
        };
        let made: DeviceTaintRule = serde_json::from_value(manifest(&owner, &rule)).unwrap();
        let selector = made.spec.device_selector.unwrap();
        assert_eq!(selector.device.as_deref(), Some("gpu-3"));
        assert_eq!(made.spec.taint.effect, "NoSchedule");
        let owners = made.metadata.owner_references.unwrap();
        assert_eq!(
            (owners[0].kind.as_str(), owners[0].uid.as_str()),
            ("ClusterRole", "u-1")
        );
    }
}
