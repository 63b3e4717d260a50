//! How GitHub's webhooks reach a pool.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretReference;

/// The webhook by which GitHub says that jobs wait.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// The Secret, in this namespace, with the webhook's secret in the key `secret`, at least 16 characters, and the one
    /// before it in `previous-secret` while it is rotated. Where it is absent, the operator makes a secret, which nobody
    /// needs to know, and the webhook with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}

/// Where GitHub delivers events.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookStatus {
    /// The address to which GitHub delivers, the webhook's payload URL. Pools of one namespace and repository share it.
    pub url: String,
    /// The address of the repository that it is of.
    #[serde(default)]
    pub address: String,
    /// GitHub's number for it, where the operator may see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<i64>,
    /// Changes with the secret that was last given to GitHub, and says nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_version: Option<String>,
    /// Whether a delivery with the right signature has come.
    #[serde(default)]
    pub delivered: bool,
}
