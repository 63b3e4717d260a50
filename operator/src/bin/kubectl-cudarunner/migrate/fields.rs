//! The fields of an object, taken one by one; and what is said of the others.

use gate_report::clean;
use serde_json::{Map, Value};

/// The longest note.
const LONGEST: usize = 400;
/// The most notes; a file of a megabyte could have one for each of its lines.
const MOST: usize = 200;

/// What is said of fields that were not taken over.
#[derive(Debug, Default)]
pub(super) struct Notes(Vec<String>);

impl Notes {
    /// Says something of a field, by its path. Values of the file are not repeated: they may be secrets.
    pub(super) fn say(&mut self, path: &str, why: &str) {
        let line = format!("{}: {}", clean(path, LONGEST), clean(why, LONGEST));
        if !self.0.contains(&line) {
            self.0.push(line);
        }
    }

    /// The notes, as many as anybody reads.
    pub(super) fn into_lines(mut self) -> Vec<String> {
        let more = self.0.len().saturating_sub(MOST);
        self.0.truncate(MOST);
        if more > 0 {
            self.0.push(format!("and {more} more"));
        }
        self.0
    }
}

/// The fields of an object that nobody has taken yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    path: String,
    rest: Map<String, Value>,
}

impl Fields {
    /// Those of an object at this path.
    pub(super) fn new(path: String, rest: Map<String, Value>) -> Self {
        Self { path, rest }
    }

    /// The document's kind.
    pub(super) fn kind(&self) -> String {
        let kind = self.rest.get("kind").and_then(Value::as_str);
        kind.unwrap_or_default().to_owned()
    }

    /// Whether a field is there.
    pub(super) fn has(&self, field: &str) -> bool {
        self.rest.contains_key(field)
    }

    /// The path of a field.
    pub(super) fn path(&self, field: &str) -> String {
        if self.path.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.path)
        }
    }

    /// A field, which stays.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.rest.get(field)
    }

    /// Puts a field back, as it is to be.
    pub(super) fn put(&mut self, field: &str, value: Value) {
        self.rest.insert(field.to_owned(), value);
    }

    /// Takes a field; `None` where it is empty, as Helm's values often are.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.rest.remove(field).filter(|value| !is_empty(value))
    }

    /// Takes an object. One that is not there has no fields.
    pub(super) fn object(&mut self, field: &str) -> Self {
        let path = self.path(field);
        match self.rest.remove(field) {
            Some(Value::Object(map)) => Self::new(path, map),
            Some(other) => {
                // It is told as what is left over.
                if !is_empty(&other) {
                    self.rest.insert(field.to_owned(), other);
                }
                Self::new(path, Map::new())
            }
            None => Self::new(path, Map::new()),
        }
    }

    /// Takes a list of objects.
    pub(super) fn objects(&mut self, field: &str) -> Vec<Map<String, Value>> {
        let list = match self.take(field) {
            Some(Value::Array(list)) => list,
            Some(other) => {
                // It is told as what is left over.
                self.put(field, other);
                return vec![];
            }
            None => return vec![],
        };
        let objects = list.into_iter().filter_map(|item| match item {
            Value::Object(map) => Some(map),
            _ => None,
        });
        objects.collect()
    }

    /// Takes a text. A number is one, too, as YAML reads what has no quotes.
    pub(super) fn text(&mut self, field: &str, notes: &mut Notes) -> Option<String> {
        match self.take(field)? {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            _ => {
                notes.say(&self.path(field), "it is no text: left out");
                None
            }
        }
    }

    /// Takes a number that is not negative.
    pub(super) fn number(&mut self, field: &str, notes: &mut Notes) -> Option<i64> {
        let value = self.rest.remove(field).filter(|value| !value.is_null())?;
        let number = match &value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| *number >= 0);
        if number.is_none() {
            notes.say(&self.path(field), "it is no number of runners: left out");
        }
        number
    }

    /// Takes a list of texts. A number is one, too.
    pub(super) fn texts(&mut self, field: &str) -> Vec<String> {
        let texts = match self.take(field) {
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
            None => vec![],
        };
        let texts = texts.into_iter().map(|text| match text {
            Value::String(text) => text,
            other => other.to_string(),
        });
        texts.collect()
    }

    /// Takes fields that have no counterpart here, and says why.
    pub(super) fn leave(&mut self, table: &[(&str, &str)], notes: &mut Notes) {
        for (field, why) in table {
            if self.take(field).is_some() {
                notes.say(&self.path(field), why);
            }
        }
    }

    /// Takes fields that need no word.
    pub(super) fn skip(&mut self, fields: &[&str]) {
        for field in fields {
            self.rest.remove(*field);
        }
    }

    /// Says of everything that is left that it was left out.
    pub(super) fn end(self, notes: &mut Notes) {
        for (field, value) in &self.rest {
            if !is_empty(value) {
                notes.say(
                    &self.path(field),
                    "a CudaRunner has nothing for it: left out",
                );
            }
        }
    }

    /// What is left, as it is.
    pub(super) fn into_rest(self) -> Map<String, Value> {
        self.rest
    }
}

/// Whether a value says nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
