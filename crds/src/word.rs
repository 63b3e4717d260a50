//! A word of a status, as it is stored.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// One word of several. Another version of the operator may have written it: a word that this one does not know is kept as it
/// is, because a resource that cannot be read is not reconciled, and not deleted either.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Word<T> {
    /// One that this version knows.
    Known(T),
    /// Another version's word.
    Other(String),
}

impl<T: Copy> Word<T> {
    /// What it means, if this version knows it.
    #[must_use]
    pub const fn known(&self) -> Option<T> {
        match self {
            Self::Known(known) => Some(*known),
            Self::Other(_) => None,
        }
    }
}

impl<T> From<T> for Word<T> {
    fn from(known: T) -> Self {
        Self::Known(known)
    }
}

impl<T: PartialEq> PartialEq<T> for Word<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(known) if known == other)
    }
}

/// The words that are known are the names of their variants.
impl<T: fmt::Debug> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(known) => f.pad(&format!("{known:?}")),
            Self::Other(word) => f.pad(word),
        }
    }
}

/// A plain string: with an `enum`, an API server whose CRD is of another version would refuse every write of a status with a
/// word that it does not know.
impl<T> JsonSchema for Word<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Word".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{CudaRunner, CudaRunnerStatus, RunnerPhase};

    const NOW: &str = "2026-01-01T00:00:00Z";

    /// A status with this word everywhere where there is one word of several.
    fn with_word(word: &str) -> Value {
        let record = json!({"state": word, "since": NOW, "ended": NOW});
        json!({
            "runners": [{"name": "a", "phase": word, "since": NOW}],
            "lastFailures": [
                {"class": word, "runner": "a", "reason": "Flipped", "message": "m", "at": NOW}
            ],
            "quarantine": [{
                "node": "n", "scope": word, "class": word, "message": "m", "failures": 1, "since": NOW
            }],
            "verification": {"state": word, "fingerprint": "f", "since": NOW, "history": [record]},
            "reruns": [{
                "job": "j", "repository": "o/r", "runId": 1, "runner": "a", "cause": word, "evidence": "e",
                "at": NOW, "state": word
            }],
            "conditions": [{
                "type": "Ready", "status": word, "reason": "R", "message": "m", "lastTransitionTime": NOW
            }],
        })
    }

    #[test]
    fn a_word_of_another_version_is_read_and_written_back_as_it_was() {
        for word in ["Cosmic", "", "idle", "Known"] {
            // Given a status that a newer operator wrote
            let written = with_word(word);
            // When it is read, then nothing of it is lost
            let read: CudaRunnerStatus = serde_json::from_value(written.clone()).unwrap();
            let stored = serde_json::to_value(&read).unwrap();
            for (field, value) in written.as_object().unwrap() {
                assert_eq!(stored[field], *value, "{word}: {field}");
            }
        }
    }

    #[test]
    fn every_word_of_the_status_is_one_that_another_version_may_change() {
        // Given the status as the API server knows it
        let crd = serde_json::to_value(crate::crd()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let mut strict = vec![];
        closed("", &schema["status"], &mut strict);
        // Then it takes any word; those of conditions are Kubernetes' own
        assert_eq!(strict, ["/conditions/status"]);
        // And the spec takes those that are known
        closed("", &schema["spec"], &mut strict);
        assert!(
            strict.iter().any(|path| path == "/deletionPolicy"),
            "{strict:?}"
        );
    }

    /// The fields with a list of the words that may be there.
    fn closed(path: &str, schema: &Value, found: &mut Vec<String>) {
        if schema.get("enum").is_some() {
            found.push(path.to_owned());
        }
        for items in [&schema["items"], &schema["additionalProperties"]] {
            if items.is_object() {
                closed(path, items, found);
            }
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            closed(&format!("{path}/{name}"), field, found);
        }
    }

    #[test]
    fn a_pool_with_words_of_another_version_is_read() {
        let mut resource =
            serde_json::to_value(CudaRunner::new("pool", crate::CudaRunnerSpec::default()))
                .unwrap();
        resource["status"] = with_word("Cosmic");
        let read: CudaRunner = serde_json::from_value(resource).unwrap();
        let status = read.status.unwrap();
        let phase = &status.runners[0].phase;
        assert_eq!(phase.known(), None);
        assert_eq!(phase.to_string(), "Cosmic");
        assert_eq!(Word::from(RunnerPhase::Idle).to_string(), "Idle");
        // And a node of which something else is set aside gets no runner
        assert!(!status.quarantine[0].is_of_device());
    }
}
