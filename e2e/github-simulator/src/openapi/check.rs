//! Judging one request and one answer.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Description, Operation, Schema};

/// What is wrong, in words.
pub type Complaint = String;

/// A body, as far as its bytes could be read.
#[derive(Debug)]
pub enum Body {
    /// No bytes.
    Empty,
    /// A JSON document.
    Json(Value),
    /// Bytes that are not JSON.
    Other,
}

/// At most this many faults of one document are reported: one is usually the cause of the rest.
const TOLD: usize = 5;

impl Operation {
    /// Judges the path and query parameters and the body of a request.
    #[must_use]
    pub fn check_request(
        &self,
        path: &BTreeMap<String, String>,
        query: &BTreeMap<String, String>,
        body: &Body,
    ) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        for parameter in &self.parameters {
            let (values, place) = if parameter.in_query {
                (query, "query")
            } else {
                (path, "path")
            };
            match values.get(&parameter.name) {
                Some(value) => complaints.extend(
                    check_text(&parameter.schema, value)
                        .into_iter()
                        .map(|fault| format!("{place} parameter {}: {fault}", parameter.name)),
                ),
                None if parameter.required => {
                    complaints.push(format!("{place} parameter {} is missing", parameter.name));
                }
                None => {}
            }
        }
        for name in query.keys() {
            let known = self
                .parameters
                .iter()
                .any(|parameter| parameter.in_query && parameter.name == *name);
            if !known {
                complaints.push(format!("query parameter {name} is not described"));
            }
        }
        complaints.extend(self.check_request_body(body));
        complaints
    }

    fn check_request_body(&self, body: &Body) -> Vec<Complaint> {
        match (&self.body, body) {
            // octocrab sends `null` or `{}` where there is nothing to say.
            (None, Body::Empty | Body::Json(Value::Null)) => Vec::new(),
            (None, Body::Json(Value::Object(object))) if object.is_empty() => Vec::new(),
            (None, _) => vec!["the operation takes no body".to_owned()],
            (Some(described), Body::Empty) if described.required => {
                vec!["the body is missing".to_owned()]
            }
            (Some(_), Body::Empty) => Vec::new(),
            (Some(_), Body::Other) => vec!["the body is not JSON".to_owned()],
            (Some(described), Body::Json(Value::Null)) if !described.required => Vec::new(),
            (Some(described), Body::Json(value)) => {
                let mut complaints = check_value(&described.schema, value, "body");
                if let (Some(known), Value::Object(object)) = (&described.properties, value) {
                    complaints.extend(
                        object
                            .keys()
                            .filter(|name| !known.contains(*name))
                            .map(|name| format!("body: property {name} is not described")),
                    );
                }
                complaints
            }
        }
    }
}

impl Description {
    /// Judges an event that a webhook is told.
    #[must_use]
    pub fn check_event(&self, name: &str, action: Option<&str>, payload: &Value) -> Vec<Complaint> {
        let mut key = name.replace('_', "-");
        if let Some(action) = action {
            key = format!("{key}-{}", action.replace('_', "-"));
        }
        match self.events.get(&key) {
            Some(schema) => check_value(schema, payload, "event"),
            None => vec![format!("the event {key} is not described")],
        }
    }

    /// Judges the answer to `operation`.
    #[must_use]
    pub fn check_answer(&self, operation: &Operation, status: u16, body: &Body) -> Vec<Complaint> {
        match operation.answers.get(&status) {
            Some(Some(schema)) => match body {
                Body::Json(value) => check_value(schema, value, "answer"),
                Body::Empty => vec![format!("the {status} answer has no body")],
                Body::Other => vec![format!("the {status} answer is not JSON")],
            },
            Some(None) => match body {
                Body::Empty => Vec::new(),
                _ => vec![format!("the {status} answer must not have a body")],
            },
            // Described once for the whole API and not at each operation.
            None if status == 304 => match body {
                Body::Empty => Vec::new(),
                _ => vec!["the 304 answer must not have a body".to_owned()],
            },
            None if matches!(
                status,
                400 | 401 | 403 | 404 | 410 | 415 | 422 | 429 | 500..
            ) =>
            {
                match body {
                    Body::Json(value) if value.get("message").is_some() => {
                        check_value(&self.general_error, value, "answer")
                    }
                    _ => vec![format!("the {status} answer has no message")],
                }
            }
            None => vec![format!("status {status} is not described")],
        }
    }
}

fn check_value(schema: &Schema, value: &Value, place: &str) -> Vec<Complaint> {
    match schema.validator() {
        Ok(validator) => validator
            .iter_errors(value)
            .take(TOLD)
            .map(|error| {
                let message: String = error.to_string().chars().take(300).collect();
                format!("{place}{}: {message}", error.instance_path())
            })
            .collect(),
        Err(error) => vec![error],
    }
}

/// A parameter is text on the wire: it fits when any JSON reading of it does.
fn check_text(schema: &Schema, text: &str) -> Vec<Complaint> {
    let validator = match schema.validator() {
        Ok(validator) => validator,
        Err(error) => return vec![error],
    };
    let as_text = Value::String(text.to_owned());
    let as_json = serde_json::from_str::<Value>(text)
        .ok()
        .filter(|value| value.is_number() || value.is_boolean());
    if validator.is_valid(&as_text) || as_json.is_some_and(|value| validator.is_valid(&value)) {
        return Vec::new();
    }
    validator
        .iter_errors(&as_text)
        .take(1)
        .map(|error| error.to_string())
        .collect()
}
