//! Faults that tests inject into REST requests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A fault and the requests that it hits. Requests that meet several faults get the oldest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Given by the simulator.
    pub id: u64,
    /// Only this method.
    pub method: Option<String>,
    /// Only paths (without `/api/v3`, without the query) in which this regular expression is found.
    pub path: Option<String>,
    /// Only this operation.
    pub operation_id: Option<String>,
    /// Only this credential, as the request log names it.
    pub credential: Option<String>,
    /// So many requests are let through first.
    pub skip: u32,
    /// After a hit, so many requests are let through before the next one: a server that fails now and then.
    pub pause: u32,
    /// So many requests are hit; absent means until it is removed.
    pub times: Option<u32>,
    /// So many were hit.
    pub hits: u32,
    /// Wait before anything else.
    pub delay_millis: u64,
    /// What happens to the request.
    pub action: Action,
}

/// What happens to a request that is hit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Action {
    /// Nothing but the delay.
    #[default]
    None,
    /// This answer instead of the real one; nothing is done.
    Answer {
        /// The status.
        status: u16,
        /// The body: JSON, or text as it is. GitHub's usual message for the status if absent.
        #[serde(default)]
        body: Option<Value>,
        /// Headers such as `retry-after`.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// The request is carried out all the same.
        #[serde(default)]
        after_handling: bool,
    },
    /// The connection is closed and nothing is done.
    DropBefore,
    /// The request is carried out, and its answer is lost.
    DropAfter,
}

impl Action {
    /// In words, for the log of requests.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::None => "delayed".to_owned(),
            Self::Answer { status, .. } => format!("answered {status}"),
            Self::DropBefore => "dropped before handling".to_owned(),
            Self::DropAfter => "handled, answer dropped".to_owned(),
        }
    }
}

/// What a fault looks at.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The method.
    pub method: &'a str,
    /// The path without `/api/v3` and query.
    pub path: &'a str,
    /// The operation, where there is one.
    pub operation_id: Option<&'a str>,
    /// Who asks.
    pub credential: &'a str,
}

impl Fault {
    fn wants(&self, target: Target<'_>) -> bool {
        let method = self
            .method
            .as_ref()
            .is_none_or(|method| method.eq_ignore_ascii_case(target.method));
        let path = self
            .path
            .as_ref()
            .is_none_or(|pattern| found(pattern, target.path));
        let operation = self
            .operation_id
            .as_ref()
            .is_none_or(|id| Some(id.as_str()) == target.operation_id);
        let credential = self
            .credential
            .as_ref()
            .is_none_or(|name| name == target.credential);
        method && path && operation && credential
    }
}

/// The fault for a request; its count goes down.
pub fn take(faults: &mut Vec<Fault>, target: Target<'_>) -> Option<Fault> {
    let mut chosen = None;
    for fault in faults.iter_mut() {
        if !fault.wants(target) {
            continue;
        }
        if fault.skip > 0 {
            fault.skip -= 1;
            continue;
        }
        fault.hits += 1;
        fault.skip = fault.pause;
        if let Some(times) = &mut fault.times {
            *times = times.saturating_sub(1);
        }
        chosen = Some(fault.clone());
        break;
    }
    faults.retain(|fault| fault.times != Some(0));
    chosen
}

/// Whether the regular expression is found; one that does not compile is refused on arrival.
fn found(pattern: &str, text: &str) -> bool {
    regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target<'static> = Target {
        method: "POST",
        path: "/repos/a/b/actions/runners/generate-jitconfig",
        operation_id: Some("actions/generate-runner-jitconfig-for-repo"),
        credential: "token:x",
    };

    #[test]
    fn patterns_find_parts_of_paths() {
        assert!(found("runners", TARGET.path));
        assert!(found("^/repos/.*/runners", TARGET.path));
        assert!(found("jitconfig$", TARGET.path));
        assert!(!found("^/orgs", TARGET.path));
        assert!(!found("runners$", TARGET.path));
        assert!(!found("^/repos$", TARGET.path));
    }

    #[test]
    fn a_fault_can_come_now_and_then() {
        let mut faults = vec![Fault {
            pause: 2,
            ..Fault::default()
        }];
        let hits: Vec<bool> = (0..7)
            .map(|_| take(&mut faults, TARGET).is_some())
            .collect();
        assert_eq!(hits, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn a_fault_is_used_up() {
        let mut faults = vec![Fault {
            method: Some("post".into()),
            skip: 1,
            times: Some(1),
            ..Fault::default()
        }];
        assert!(take(&mut faults, TARGET).is_none(), "the first is skipped");
        assert!(take(&mut faults, TARGET).is_some(), "the second is hit");
        assert!(take(&mut faults, TARGET).is_none(), "the third is not");
        assert!(faults.is_empty());
    }
}
