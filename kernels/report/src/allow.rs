//! Which jobs a pool takes: the policy, what is known of a job before its first step, and the verdict.
//!
//! The operator hands the policy to the pod as JSON; `runner-init` asks it. What is known of a job comes from the agent: the
//! variables that it sets for its hooks, and the event that started the run.

use serde::{Deserialize, Serialize};

use crate::clean;

/// Longest payload of an event that is read. GitHub sends none that is longer than 25 MB.
pub const LONGEST_EVENT: u64 = 32 * 1024 * 1024;

/// Longest word of a job in a sentence, in characters.
const LONGEST_WORD: usize = 140;

/// `spec.jobs.allow`, as the operator hands it to the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Names of events. None means all.
    pub events: Vec<String>,
    /// Patterns for the ref, see [`fn@matches`]. None means all.
    pub refs: Vec<String>,
    /// Whether code from forks may run.
    pub forks: bool,
}

/// What is known of a job before its first step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asking {
    /// `GITHUB_EVENT_NAME`.
    pub event: String,
    /// `GITHUB_REF`.
    pub git_ref: String,
    /// The payload of the event.
    pub payload: Payload,
}

/// The parts of an event's payload that say where code comes from. See
/// <https://docs.github.com/en/webhooks/webhook-events-and-payloads>.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Payload {
    /// The repository that the event is of.
    pub repository: Option<Repository>,
    /// The pull request, where the event is of one.
    pub pull_request: Option<PullRequest>,
    /// The run, where the event is of one.
    pub workflow_run: Option<WorkflowRun>,
}

/// A pull request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PullRequest {
    /// Where its code comes from.
    pub head: Side,
    /// Where it wants to go.
    pub base: Side,
}

/// A side of a pull request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Side {
    /// Null where it was deleted.
    pub repo: Option<Repository>,
}

/// A run of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WorkflowRun {
    /// Where its code came from; null where it was deleted.
    pub head_repository: Option<Repository>,
}

/// A repository. Its number stays when it is renamed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Repository {
    /// Its number.
    pub id: u64,
    /// `OWNER/NAME`.
    #[serde(default)]
    pub full_name: String,
}

impl Policy {
    /// Why a job may not run, as a sentence without an end; `None` where it may.
    #[must_use]
    pub fn refusal(&self, job: &Asking) -> Option<String> {
        let word = |text| clean(text, LONGEST_WORD);
        let (event, git_ref) = (word(&job.event), word(&job.git_ref));
        let refused = |by: String| Some(format!("it was started by {event} on {git_ref}{by}"));
        if !self.events.is_empty() && !self.events.contains(&job.event) {
            let events = self.events.join(", ");
            return refused(format!(", and spec.jobs.allow.events has {events}"));
        }
        let is_taken = |pattern: &String| matches(pattern, &job.git_ref);
        if !self.refs.is_empty() && !self.refs.iter().any(is_taken) {
            let refs = self.refs.join(", ");
            return refused(format!(", and spec.jobs.allow.refs has {refs}"));
        }
        if self.forks {
            return None;
        }
        let from = job.foreign()?;
        refused(format!(
            " with code from {from}, and spec.jobs.allow.forks is false"
        ))
    }
}

impl Asking {
    /// Where code comes from that is not the repository's own, or may not be.
    fn foreign(&self) -> Option<String> {
        let Payload {
            repository,
            pull_request,
            workflow_run,
        } = &self.payload;
        let is_of_a_pull_request = self.event.starts_with("pull_request");
        let (head, base) = match (pull_request, workflow_run) {
            (Some(pull), _) => (pull.head.repo.as_ref(), pull.base.repo.as_ref()),
            (None, Some(run)) => (run.head_repository.as_ref(), repository.as_ref()),
            (None, None) if is_of_a_pull_request || self.event == "workflow_run" => (None, None),
            (None, None) => return None,
        };
        match (head, base) {
            (Some(head), Some(base)) if head.id == base.id => None,
            (Some(head), Some(_)) => {
                Some(format!("the fork {}", clean(&head.full_name, LONGEST_WORD)))
            }
            (None, _) => Some("a repository that is not there any more".to_owned()),
            (Some(_), None) => Some("a repository that cannot be compared".to_owned()),
        }
    }
}

/// Whether a pattern fits all of a ref: `*` stands for any characters but `/`, and `**` for any at all.
#[must_use]
pub fn matches(pattern: &str, git_ref: &str) -> bool {
    let text = git_ref.as_bytes();
    // Whether the part of the pattern that was read fits the first so many bytes.
    let mut fits = vec![false; text.len() + 1];
    fits[0] = true;
    let mut rest = pattern.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'*' {
            for end in (0..text.len()).rev() {
                fits[end + 1] = fits[end] && text[end] == *first;
            }
            fits[0] = false;
            continue;
        }
        let crosses = rest.first() == Some(&b'*');
        rest = rest.strip_prefix(b"*").unwrap_or(rest);
        for end in 0..text.len() {
            fits[end + 1] |= fits[end] && (crosses || text[end] != b'/');
        }
    }
    fits[text.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const HOME: u64 = 1;
    const FORK: u64 = 2;

    fn repository(id: u64) -> Value {
        json!({"id": id, "full_name": if id == HOME { "acme/cuda" } else { "stranger/cuda" }, "private": false})
    }

    /// The payload of an event of a pull request.
    fn pull(head: &Value) -> Value {
        json!({
            "action": "opened",
            "repository": repository(HOME),
            "pull_request": {"number": 5, "head": {"ref": "x", "repo": head}, "base": {"repo": repository(HOME)}},
        })
    }

    fn run(head: &Value) -> Value {
        json!({"repository": repository(HOME), "workflow_run": {"id": 7, "head_repository": head}})
    }

    fn asking(event: &str, git_ref: &str, payload: Value) -> Asking {
        Asking {
            event: event.to_owned(),
            git_ref: git_ref.to_owned(),
            payload: serde_json::from_value(payload).unwrap(),
        }
    }

    fn policy(events: &[&str], refs: &[&str], forks: bool) -> Policy {
        let owned = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        Policy {
            events: owned(events),
            refs: owned(refs),
            forks,
        }
    }

    #[test]
    fn an_event_is_taken_by_its_own_name_alone() {
        for (events, event, taken) in [
            (&[][..], "push", true),
            (&["push", "merge_group"], "merge_group", true),
            (&["push"], "schedule", false),
            (&["push"], "Push", false),
            (&["push"], "", false),
            (&["pull_request"], "pull_request", true),
            (&["pull_request"], "pull_request_target", false),
            (&["pull_request_target"], "pull_request", false),
            (&["workflow_dispatch"], "workflow_run", false),
        ] {
            let asked = asking(event, "refs/heads/main", pull(&repository(HOME)));
            let refused = policy(events, &[], true).refusal(&asked);
            assert_eq!(refused.is_none(), taken, "{events:?} {event}: {refused:?}");
        }
    }

    #[test]
    fn code_of_a_fork_is_known_by_its_repository_whatever_the_event() {
        let of_pulls = [
            "pull_request",
            "pull_request_target",
            "pull_request_review",
            "pull_request_review_comment",
        ];
        let cases = of_pulls
            .map(|event| (event, pull as fn(&Value) -> Value))
            .into_iter()
            .chain([("workflow_run", run as fn(&Value) -> Value)]);
        for (event, payload) in cases {
            for (head, taken) in [
                (repository(HOME), true),
                (repository(FORK), false),
                (Value::Null, false),
            ] {
                let asked = asking(event, "refs/heads/main", payload(&head));
                for forks in [false, true] {
                    let refused = policy(&[], &[], forks).refusal(&asked);
                    assert_eq!(refused.is_none(), forks || taken, "{event} {head}");
                }
            }
        }
    }

    #[test]
    fn an_event_that_must_say_where_its_code_is_from_is_refused_where_it_does_not() {
        let own = json!({"repository": repository(HOME)});
        for (event, payload, taken) in [
            ("pull_request", own.clone(), false),
            ("pull_request", json!({}), false),
            ("workflow_run", own.clone(), false),
            (
                "workflow_run",
                json!({"workflow_run": {"head_repository": repository(HOME)}}),
                false,
            ),
            // These have no other code than the repository's.
            ("push", own.clone(), true),
            ("schedule", json!({"schedule": "0 4 * * *"}), true),
            ("workflow_dispatch", own.clone(), true),
            ("merge_group", own, true),
        ] {
            let refused =
                policy(&[], &[], false).refusal(&asking(event, "refs/heads/main", payload));
            assert_eq!(refused.is_none(), taken, "{event}: {refused:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_the_job_is_and_what_the_pool_has() {
        let push = asking("push", "refs/heads/x\u{1b}[2J", json!({}));
        let fork = asking(
            "pull_request_target",
            "refs/heads/main",
            pull(&repository(FORK)),
        );
        for (policy, job, sentence) in [
            (
                policy(&["schedule", "merge_group"], &[], false),
                &push,
                "it was started by push on refs/heads/x[2J, and spec.jobs.allow.events has schedule, merge_group",
            ),
            (
                policy(&[], &["refs/heads/main"], false),
                &push,
                "it was started by push on refs/heads/x[2J, and spec.jobs.allow.refs has refs/heads/main",
            ),
            (
                policy(&[], &[], false),
                &fork,
                "it was started by pull_request_target on refs/heads/main with code from the fork stranger/cuda, and spec.jobs.allow.forks is false",
            ),
        ] {
            assert_eq!(policy.refusal(job).as_deref(), Some(sentence));
        }
    }

    #[test]
    fn one_star_stays_within_a_part_and_two_go_beyond() {
        for (pattern, git_ref, fits) in [
            ("refs/heads/main", "refs/heads/main", true),
            ("refs/heads/main", "refs/heads/main2", false),
            ("refs/heads/main", "refs/heads/mai", false),
            ("refs/heads/main", "", false),
            ("refs/heads/*", "refs/heads/main", true),
            ("refs/heads/*", "refs/heads/a/b", false),
            ("refs/heads/*", "refs/heads/", true),
            ("refs/heads/**", "refs/heads/a/b", true),
            ("refs/heads/release/*", "refs/heads/release/1", true),
            ("refs/heads/release/*", "refs/heads/release", false),
            ("refs/heads/release-*", "refs/heads/release-1.2", true),
            ("refs/heads/*/gpu", "refs/heads/team/gpu", true),
            ("refs/heads/*/gpu", "refs/heads/team/x/gpu", false),
            ("refs/heads/**/gpu", "refs/heads/team/x/gpu", true),
            ("refs/heads/**gpu", "refs/heads/gpu", true),
            ("refs/pull/*/merge", "refs/pull/5/merge", true),
            ("refs/pull/*/merge", "refs/heads/main", false),
            ("refs/tags/v*", "refs/tags/v1.0", true),
            ("refs/tags/v*", "refs/heads/v1.0", false),
            (
                "refs/heads/gh-readonly-queue/main/**",
                "refs/heads/gh-readonly-queue/main/pr-5-00",
                true,
            ),
            // No other character means anything but itself.
            ("refs/heads/a+", "refs/heads/aa", false),
            ("refs/heads/a.b", "refs/heads/axb", false),
            ("refs/heads/MAIN", "refs/heads/main", false),
            ("refs/heads/ü*", "refs/heads/über", true),
            ("**", "", true),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, git_ref), fits, "{pattern} {git_ref}");
        }
    }

    proptest! {
        #[test]
        fn two_stars_take_what_one_takes_and_a_text_takes_itself(
            pattern in "[a/*]{0,12}",
            git_ref in "[a/]{0,12}",
        ) {
            prop_assert!(matches(&git_ref, &git_ref));
            let wider = pattern.replace('*', "**");
            prop_assert!(!matches(&pattern, &git_ref) || matches(&wider, &git_ref));
        }

        #[test]
        fn a_policy_of_all_events_and_refs_takes_what_is_the_repositorys_own(
            event in "[a-z_]{1,20}",
            git_ref in "refs/[a-z/]{1,20}",
        ) {
            let asked = asking(&event, &git_ref, pull(&repository(HOME)));
            prop_assert_eq!(policy(&[], &[], false).refusal(&asked), None);
        }
    }
}
