//! Which operator serves a pool.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::CudaRunner;

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

impl CudaRunner {
    /// The operator that serves the pool, as its status says.
    #[must_use]
    pub fn operator(&self) -> Option<&OperatorStatus> {
        self.status.as_ref()?.operator.as_ref()
    }

    /// Whether the pool may be this operator's, by its status: it names no other.
    #[must_use]
    pub fn may_be_of(&self, operator: &OperatorStatus) -> bool {
        self.operator().is_none_or(|named| named == operator)
    }
}
