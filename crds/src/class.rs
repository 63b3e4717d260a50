//! The class of a failure, as a status holds it.

use std::borrow::Cow;
use std::fmt;

use gate_report::Class;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The class of a failure. Another version of the operator may have written it: a class that this one does not know is kept
/// as it is, and asks nothing of anybody.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum FailureClass {
    /// One that this version knows.
    Known(Class),
    /// Another version's word.
    Other(String),
}

impl FailureClass {
    /// Whether it is one of these.
    #[must_use]
    pub fn is_one_of(&self, classes: &[Class]) -> bool {
        classes.iter().any(|class| self == class)
    }

    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(class) => class.as_str(),
            Self::Other(word) => word,
        }
    }
}

impl From<Class> for FailureClass {
    fn from(class: Class) -> Self {
        Self::Known(class)
    }
}

impl PartialEq<Class> for FailureClass {
    fn eq(&self, class: &Class) -> bool {
        matches!(self, Self::Known(known) if known == class)
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A plain string: with an `enum`, an API server would refuse every write of a status with the class of another version.
impl JsonSchema for FailureClass {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "FailureClass".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CudaRunnerStatus;

    #[test]
    fn every_class_is_read_and_written_as_it_was() {
        for class in Class::ALL {
            let stored: FailureClass = serde_json::from_value(class.as_str().into()).unwrap();
            assert_eq!(stored, class);
            assert_eq!(serde_json::to_value(&stored).unwrap(), class.as_str());
        }
    }

    #[test]
    fn a_status_with_a_class_of_another_version_is_read_whole_and_loses_nothing() {
        // Given a status that a newer operator wrote
        let written = serde_json::json!({
            "class": "cosmic", "runner": "a", "reason": "Flipped", "message": "m", "at": "2026-01-01T00:00:00Z",
        });

        // When it is read
        let read: CudaRunnerStatus =
            serde_json::from_value(serde_json::json!({"lastFailures": [written]})).unwrap();

        // Then the failure is there, of none of our classes, and is written as it was
        let failure = &read.last_failures[0];
        assert!(!failure.class.is_one_of(&Class::ALL));
        assert_eq!(serde_json::to_value(failure).unwrap(), written);
    }
}
