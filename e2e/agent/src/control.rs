//! What a running job and the rest of the agent hold of one another: the order to stop, and the lines of its log.

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
    time::Instant,
};

use jiff::Timestamp;

/// Tells a running job to stop, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<Mutex<Option<Order>>>);

/// An order to stop.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// Why.
    pub(crate) reason: String,
    /// The agent itself ends: no further step runs, whatever its condition says.
    pub(crate) shutdown: bool,
}

impl Cancel {
    /// Stop this job.
    pub(crate) fn set(&self, reason: &str) {
        self.order(reason, false);
    }

    /// Stop, and do nothing more.
    pub(crate) fn shut_down(&self, reason: &str) {
        self.order(reason, true);
    }

    fn order(&self, reason: &str, shutdown: bool) {
        let mut order = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = order.get_or_insert_with(|| Order {
            reason: reason.to_owned(),
            shutdown,
        });
        known.shutdown |= shutdown;
    }

    /// The order, if there is one.
    pub(crate) fn get(&self) -> Option<Order> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What ends one step before its time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    /// The job's order.
    pub(crate) cancel: Cancel,
    /// Its condition holds in a cancelled job, too: only the agent's own end stops it.
    pub(crate) unless_shutdown: bool,
    /// Its `timeout-minutes`.
    pub(crate) deadline: Option<Instant>,
}

/// Why a step was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    Cancelled,
    TimedOut,
}

impl Stop {
    /// Whether it has to stop now.
    pub(crate) fn due(&self) -> Option<Stopped> {
        if let Some(order) = self.cancel.get()
            && (order.shutdown || !self.unless_shutdown)
        {
            return Some(Stopped::Cancelled);
        }
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
            .then_some(Stopped::TimedOut)
    }
}

/// Where the lines of a job go.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    lines: Sender<String>,
    masks: Arc<Mutex<Vec<String>>>,
    annotations: Arc<Mutex<Vec<String>>>,
    summary: Arc<Mutex<String>>,
}

/// Annotations of a job that are kept. GitHub shows ten of a kind for each step.
const ANNOTATIONS: usize = 50;

impl Log {
    /// A log that hides these texts.
    pub(crate) fn new<'a>(
        lines: Sender<String>,
        secrets: impl Iterator<Item = &'a String>,
    ) -> Self {
        let log = Self {
            lines,
            masks: Arc::default(),
            annotations: Arc::default(),
            summary: Arc::default(),
        };
        secrets.for_each(|secret| log.mask(secret));
        log
    }

    /// Hides a text from now on, and each of its lines.
    pub(crate) fn mask(&self, secret: &str) {
        let mut masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = secret.split(['\r', '\n']).map(str::trim);
        masks.extend(
            std::iter::once(secret)
                .chain(lines)
                .filter(|text| !text.is_empty())
                .map(str::to_owned),
        );
        // A text that holds another one goes first, or its rest would be seen.
        masks.sort_by_key(|text| std::cmp::Reverse(text.len()));
        masks.dedup();
    }

    /// A text with the hidden ones replaced.
    pub(crate) fn masked(&self, text: &str) -> String {
        let masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        masks
            .iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    /// One line, with the time before it as in the logs of GitHub.
    pub(crate) fn line(&self, text: &str) {
        let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%7fZ");
        // Nobody reads any more only when the job is over.
        let _ = self.lines.send(format!("{at} {}\n", self.masked(text)));
    }

    /// What a workflow command puts beside the job: `notice TITLE: TEXT`.
    pub(crate) fn annotate(&self, kind: &str, title: &str, text: &str) {
        let space = if title.is_empty() { "" } else { " " };
        let annotation = self.masked(&format!("{kind}{space}{title}: {text}"));
        let mut all = self
            .annotations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if all.len() < ANNOTATIONS {
            all.push(annotation);
        }
    }

    /// What a hook of the job wrote into its summary.
    pub(crate) fn summarize(&self, text: &str) {
        let text = self.masked(text);
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        summary.push_str(&text);
    }

    /// All that hooks have written so far.
    pub(crate) fn summary(&self) -> String {
        let summary = self.summary.lock();
        summary.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All annotations so far.
    pub(crate) fn annotations(&self) -> Vec<String> {
        let all = self.annotations.lock();
        all.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A fault.
    pub(crate) fn error(&self, text: &str) {
        self.line(&format!("##[error]{text}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_masked_text_is_in_no_line() {
        let (sender, lines) = mpsc::channel();
        let log = Log::new(sender, [&"pass".to_owned(), &String::new()].into_iter());
        log.mask("password\nsecond line");
        log.line("the password is pass; a second line is masked, too");
        let line = lines.recv().unwrap();
        assert!(
            line.ends_with("the *** is ***; a *** is masked, too\n"),
            "{line}"
        );
    }

    #[test]
    fn a_step_that_runs_always_is_stopped_by_the_end_of_the_agent_alone() {
        let stop = Stop {
            unless_shutdown: true,
            ..Stop::default()
        };
        stop.cancel.set("canceled");
        assert_eq!(stop.due(), None);
        stop.cancel.shut_down("ends");
        assert_eq!(stop.due(), Some(Stopped::Cancelled));
        assert_eq!(stop.cancel.get().unwrap().reason, "canceled");
    }
}
