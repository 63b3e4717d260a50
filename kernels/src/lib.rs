//! What the two programs in a runner's pod share: `cuda-smoke`, which has the GPU's test, and `runner-init`, the first
//! process of the containers.

pub mod files;
pub mod registrar;
