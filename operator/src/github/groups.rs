//! Runner groups.
use super::{Client, Error};

impl Client {
    /// Number of the runner group of this name; `None` is the default group, which is 1 and is not asked for.
    ///
    /// The answer is remembered for ten minutes.
    pub async fn runner_group_id(&self, name: Option<&str>) -> Result<u64, Error> {
        todo!("{name:?}")
    }
}
