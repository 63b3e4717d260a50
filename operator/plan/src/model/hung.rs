//! Runners of which GitHub and their own pods do not say the same.

use jiff::Timestamp;

/// What GitHub and a runner's pod contradict one another about.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Contradiction {
    /// GitHub gave it a job, and none has begun in its pod.
    JobNotBegun,
    /// Its job is over at GitHub, and its agent is still there.
    JobOver,
    /// Its agent listens for jobs, and GitHub does not hear it.
    Offline,
}

/// A contradiction that lasts. Its pod says the same for as long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Doubt {
    /// What it is about.
    pub about: Contradiction,
    /// When GitHub was first heard to say so.
    pub since: Timestamp,
    /// When it was last.
    pub seen: Timestamp,
}
