//! What came of the start of a workflow.

use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::model::verification::{Dispatch, VerificationFacts};
use cuda_runner_plan::reason::Reason;
use cuda_runner_plan::verify::SLOW_POLL;
use jiff::Timestamp;

use crate::github::Error;

/// Takes in what came of a dispatch.
pub(super) fn answered(
    facts: &mut VerificationFacts,
    answer: Result<Option<u64>, Error>,
    now: Timestamp,
) {
    facts.sent = Some(now);
    let is_sent = answer.as_ref().map_or_else(Error::leaves_doubt, |_| true);
    if is_sent {
        facts.dispatch = Dispatch::Sent;
        facts.times_sent = facts.times_sent.saturating_add(1);
    }
    match answer {
        Ok(run) => facts.run_id = run,
        Err(_) if is_sent => {}
        Err(error) if error.is_transient() => {
            facts.trouble = Some(error.to_string());
            facts.next_look = Some(now.after(error.pause(now).unwrap_or(SLOW_POLL)));
        }
        Err(error) => {
            facts.dispatch = Dispatch::Refused {
                reason: refusal(&error),
                message: error.to_string(),
            };
        }
    }
}

/// Why a workflow cannot be started, in one word. GitHub tells the cases apart by its words only.
fn refusal(error: &Error) -> Reason {
    match error {
        Error::Validation { message, .. } if message.contains("No ref found") => {
            Reason::RefNotFound
        }
        Error::Validation { message, .. } if message.contains("disabled") => {
            Reason::WorkflowDisabled
        }
        Error::Validation { message, .. } if message.contains("workflow_dispatch") => {
            Reason::NoDispatchTrigger
        }
        Error::NotFound { .. } => Reason::WorkflowNotFound,
        Error::Forbidden { .. } => Reason::MayNotStartWorkflow,
        other => other.reason(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let refused = |error: Error| {
            let mut facts = VerificationFacts::default();
            answered(&mut facts, Err(error), Timestamp::UNIX_EPOCH);
            facts.dispatch
        };
        let validation = |message: &str| Error::Validation {
            action: "start".into(),
            message: message.into(),
        };
        let reason = |error| match refused(error) {
            Dispatch::Refused { reason, .. } => reason.to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(reason(validation("No ref found for: dev")), "RefNotFound");
        assert_eq!(
            reason(validation(
                "Workflow does not have 'workflow_dispatch' trigger"
            )),
            "NoDispatchTrigger"
        );
        // An answer that was lost is no refusal: the run is looked for.
        let lost = Error::Server {
            action: String::new(),
            status: 502,
            message: String::new(),
        };
        assert_eq!(refused(lost.clone()), Dispatch::Sent);
        // And each counts, so that it is not started for ever.
        let mut facts = VerificationFacts::default();
        for answer in [Ok(None), Err(lost)] {
            answered(&mut facts, answer, Timestamp::UNIX_EPOCH);
        }
        assert_eq!(facts.times_sent, 2);
    }
}
