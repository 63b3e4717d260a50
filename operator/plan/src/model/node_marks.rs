//! What pools have in quarantine.

use cudarunner_crds::QuarantineStatus;

use super::key::PoolKey;

/// A pool that quarantines a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Quarantined {
    /// The pool.
    pub pool: PoolKey,
    /// Why.
    pub entry: QuarantineStatus,
}
