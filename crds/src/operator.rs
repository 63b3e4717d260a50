//! Which operator serves a pool.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An operator, by the Lease that shows that it lives. No other one acts on the pool meanwhile.
#[derive(
    JsonSchema, Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct OperatorStatus {
    /// Namespace of the operator and of its Lease.
    pub namespace: String,
    /// Name of its Lease.
    pub name: String,
}

impl fmt::Display for OperatorStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
