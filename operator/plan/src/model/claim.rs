//! What the claims of a pool are made of.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::ResourceClaimSpec;

/// The `ResourceClaimTemplate` of a pool, as far as it was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ClaimTemplate {
    /// Nobody has looked, or the API server did not answer.
    #[default]
    Unread,
    /// There is none, or the operator may not read it.
    Unreadable,
    /// What each claim asks for.
    Read(Arc<ResourceClaimSpec>),
}

/// A device that is tried again by a runner of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Retest {
    /// UUID of the device.
    pub uuid: String,
    /// Its node.
    pub node: String,
    /// The end of the claim's name: a persistent runner's name comes again, before Kubernetes has removed what had it.
    pub suffix: String,
    /// The claim, which that device alone fits, in spite of our taint.
    pub claim: ResourceClaimSpec,
}
