//! What pools have in quarantine.

use cudarunner_crds::QuarantineStatus;

use super::key::PoolKey;

/// A pool that leaves a node alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The pool.
    pub pool: PoolKey,
    /// Why.
    pub entry: QuarantineStatus,
}
