//! Events that GitHub delivers by webhook.
//!
//! Their form is documented at <https://docs.github.com/en/webhooks/webhook-events-and-payloads#workflow_job>.

use serde::Deserialize;

use super::body::{AtMost, MOST_LABELS, Short};

/// A `workflow_job` event, as far as it may change a queue.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JobEvent {
    /// `OWNER/NAME` of the job's repository.
    pub repository: String,
    /// The labels that the job asks for.
    pub labels: Vec<String>,
}

impl JobEvent {
    /// Reads an event; `None` where it is of another form, or says nothing that changes a queue: a job that waits for an
    /// approval is not queued.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let event: Event = serde_json::from_slice(body).ok()?;
        let matters = ["queued", "in_progress", "completed"].contains(&event.action.0.as_str());
        matters.then(|| Self {
            repository: event.repository.full_name.0,
            labels: event
                .workflow_job
                .labels
                .0
                .into_iter()
                .map(|l| l.0)
                .collect(),
        })
    }
}

#[derive(Deserialize)]
struct Event {
    action: Short,
    workflow_job: Job,
    repository: Repository,
}

#[derive(Deserialize)]
struct Job {
    labels: AtMost<Short, MOST_LABELS>,
}

#[derive(Deserialize)]
struct Repository {
    full_name: Short,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_may_change_a_queue_is_read_and_nothing_else() {
        let event = |action: &str, labels: usize| {
            let labels = vec!["cuda"; labels];
            json!({
                "action": action,
                "workflow_job": {"id": 1, "labels": labels, "steps": []},
                "repository": {"full_name": "acme/widgets"},
            })
            .to_string()
        };
        for action in ["queued", "in_progress", "completed"] {
            let read = JobEvent::read(event(action, 1).as_bytes()).unwrap();
            assert_eq!(read.repository, "acme/widgets");
            assert_eq!(read.labels, ["cuda"]);
        }
        for body in [
            event("waiting", 1),
            event("queued", MOST_LABELS + 1),
            "{}".to_owned(),
            "[".repeat(10_000),
            String::new(),
        ] {
            assert_eq!(JobEvent::read(body.as_bytes()), None, "{body:.40}");
        }
    }
}
