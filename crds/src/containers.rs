//! `spec.jobContainers`: the containers that jobs bring.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ContainerResources, schema};

/// The containers that jobs bring.
#[derive(JsonSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobContainers {
    /// What a job's container has at `/dev/shm`, for example `8Gi`: `--shm-size` in a workflow is honored up to this. It
    /// counts as the container's memory. Where `spec.sharedMemory` is set, that counts instead.
    #[serde(default = "default_shm_size")]
    #[schemars(schema_with = "schema::shm_size")]
    pub shm_size: Quantity,

    /// Whether the node asks the registry each time for the images of jobs and services, or takes what it has.
    #[serde(default)]
    pub image_pull_policy: JobImagePullPolicy,

    /// Whether jobs may have `services:`. Each is a container without a GPU in the runner's pod.
    #[serde(default = "default_services")]
    pub services: bool,

    /// As which user jobs' containers start, whatever their images say: with 0, `--user` in a workflow can be any. Without
    /// it, the image's own user counts, and `--user` works where that is root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub run_as_user: Option<i64>,

    /// What a job's container may use beside the GPUs. What `spec.template` gives the container `runner` is the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ContainerResources>,
}

/// Whether the node asks the registry for an image that it has.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum JobImagePullPolicy {
    /// It takes what it has, also of a tag that has moved since.
    #[default]
    IfNotPresent,
    /// It asks each time.
    Always,
}

impl Default for JobContainers {
    fn default() -> Self {
        Self {
            shm_size: default_shm_size(),
            image_pull_policy: JobImagePullPolicy::default(),
            services: default_services(),
            run_as_user: None,
            resources: None,
        }
    }
}

/// As Docker has it.
fn default_shm_size() -> Quantity {
    Quantity("64Mi".to_owned())
}

fn default_services() -> bool {
    true
}
