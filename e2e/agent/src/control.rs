//! What a running job and the rest of the agent hold of one another: the order to stop, and the lines of its log.

use std::sync::{Arc, Mutex, PoisonError, mpsc::Sender};

use jiff::Timestamp;

/// Tells a running job to stop, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<Mutex<Option<String>>>);

impl Cancel {
    /// Stop.
    pub(crate) fn set(&self, reason: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| reason.to_owned());
    }

    /// Why it has to stop, if it has to.
    pub(crate) fn reason(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Where the lines of a job go.
#[derive(Debug, Clone)]
pub(crate) struct Log(pub(crate) Sender<String>);

impl Log {
    /// One line, with the time before it as in the logs of GitHub.
    pub(crate) fn line(&self, text: &str) {
        let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%7fZ");
        // Nobody reads any more only when the job is over.
        let _ = self.0.send(format!("{at} {text}\n"));
    }
}
