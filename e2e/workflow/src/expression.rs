//! `${{ … }}`: the part of GitHub's expressions that workflows of tests use.

mod parse;

use serde_json::{Map, Value};

use parse::{Node, Operator, parse};

/// Why an expression has no value. The words are GitHub's where it has some.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("Unexpected symbol: '{symbol}' in the expression '{expression}'")]
    Symbol {
        /// What is not expected.
        symbol: String,
        /// The expression.
        expression: String,
    },
    /// A context that is not known here.
    #[error("Unrecognized named-value: '{0}'")]
    Context(String),
    /// A function that is not known here.
    #[error("Unrecognized function: '{0}'")]
    Function(String),
    /// A function with too few or too many arguments.
    #[error("The function '{0}' has another number of arguments")]
    Arguments(String),
    /// `${{` without its end.
    #[error(
        "The expression is not closed. An unescaped ${{{{ sequence was found, but the closing }}}} sequence was not found."
    )]
    Open,
}

/// Where the job stands, for `success()` and the like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Status {
    /// No step failed.
    #[default]
    Success,
    /// One did.
    Failure,
    /// The run is to stop.
    Cancelled,
}

/// The contexts that exist on GitHub and are known here; one that was not filled is empty.
const CONTEXTS: [&str; 8] = [
    "env", "github", "job", "matrix", "runner", "secrets", "steps", "strategy",
];

/// The functions, with their least and most arguments.
const FUNCTIONS: [(&str, usize, usize); 10] = [
    ("success", 0, 0),
    ("failure", 0, 0),
    ("always", 0, 0),
    ("cancelled", 0, 0),
    ("contains", 2, 2),
    ("startswith", 2, 2),
    ("endswith", 2, 2),
    ("format", 1, 9),
    ("join", 1, 2),
    ("tojson", 1, 1),
];

/// What an expression sees.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    contexts: &'a Value,
    status: Status,
}

impl<'a> Scope<'a> {
    /// Contexts by name, in a job that goes well.
    #[must_use]
    pub fn new(contexts: &'a Value) -> Self {
        Self {
            contexts,
            status: Status::default(),
        }
    }

    /// The same in a job that stands so.
    #[must_use]
    pub fn status(self, status: Status) -> Self {
        Self { status, ..self }
    }
}

/// A text with its expressions replaced by their values.
pub fn render(text_: &str, scope: &Scope<'_>) -> Result<String, Error> {
    let mut made = String::new();
    for part in parts(text_)? {
        match part {
            Part::Plain(plain) => made.push_str(plain),
            Part::Expression(expression) => made.push_str(&text(&value(expression, scope)?)),
        }
    }
    Ok(made)
}

/// Whether an `if` is met. Without a status function it is so only in a job that goes well.
pub fn condition(written: Option<&str>, scope: &Scope<'_>) -> Result<bool, Error> {
    let node = match written.map(str::trim).filter(|written| !written.is_empty()) {
        Some(written) => parse(bare(written))?,
        None => return Ok(scope.status == Status::Success),
    };
    let implied = !node.asks_for_status();
    if implied && scope.status != Status::Success {
        return Ok(false);
    }
    Ok(truth(&evaluate(&node, scope)?))
}

/// Whether a text can be rendered, whatever the contexts hold.
pub(crate) fn check(text: &str) -> Result<(), Error> {
    for part in parts(text)? {
        if let Part::Expression(expression) = part {
            known(&parse(expression)?)?;
        }
    }
    Ok(())
}

/// The same for an `if`.
pub(crate) fn check_condition(written: &str) -> Result<(), Error> {
    if written.trim().is_empty() {
        return Ok(());
    }
    known(&parse(bare(written.trim()))?)
}

/// An `if` may stand with or without its braces.
fn bare(written: &str) -> &str {
    written
        .strip_prefix("${{")
        .and_then(|rest| rest.strip_suffix("}}"))
        .filter(|inner| !inner.contains("${{"))
        .unwrap_or(written)
}

enum Part<'a> {
    Plain(&'a str),
    Expression(&'a str),
}

fn parts(text: &str) -> Result<Vec<Part<'_>>, Error> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((plain, behind)) = rest.split_once("${{") {
        let (expression, behind) = behind.split_once("}}").ok_or(Error::Open)?;
        parts.extend([Part::Plain(plain), Part::Expression(expression)]);
        rest = behind;
    }
    parts.push(Part::Plain(rest));
    Ok(parts)
}

fn known(node: &Node) -> Result<(), Error> {
    match node {
        Node::Literal(_) => Ok(()),
        Node::Context(name) if CONTEXTS.contains(&name.as_str()) => Ok(()),
        Node::Context(name) => Err(Error::Context(name.clone())),
        Node::Call(name, arguments) => {
            let lower = name.to_lowercase();
            let function = FUNCTIONS.iter().find(|(known, ..)| *known == lower);
            let (_, least, most) = function.ok_or_else(|| Error::Function(name.clone()))?;
            if !(*least..=*most).contains(&arguments.len()) {
                return Err(Error::Arguments(name.clone()));
            }
            arguments.iter().try_for_each(known)
        }
        Node::Index(of, index) => known(of).and_then(|()| known(index)),
        Node::Not(inner) => known(inner),
        Node::Binary(_, left, right) => known(left).and_then(|()| known(right)),
    }
}

fn value(expression: &str, scope: &Scope<'_>) -> Result<Value, Error> {
    evaluate(&parse(expression)?, scope)
}

fn evaluate(node: &Node, scope: &Scope<'_>) -> Result<Value, Error> {
    known(node)?;
    Ok(compute(node, scope))
}

/// The value of a node that is known to be understood.
fn compute(node: &Node, scope: &Scope<'_>) -> Value {
    match node {
        Node::Literal(value) => value.clone(),
        Node::Context(name) => scope.contexts.get(name).cloned().unwrap_or_default(),
        Node::Index(of, index) => member(&compute(of, scope), &compute(index, scope)),
        Node::Not(inner) => Value::Bool(!truth(&compute(inner, scope))),
        Node::Binary(operator, left, right) => {
            let left = compute(left, scope);
            let chosen = match operator {
                Operator::Or => Some(truth(&left)),
                Operator::And => Some(!truth(&left)),
                _ => None,
            };
            match chosen {
                Some(true) => left,
                Some(false) => compute(right, scope),
                None => Value::Bool(compare(*operator, &left, &compute(right, scope))),
            }
        }
        Node::Call(name, arguments) => {
            let values: Vec<Value> = arguments.iter().map(|node| compute(node, scope)).collect();
            call(&name.to_lowercase(), &values, scope.status)
        }
    }
}

/// A member of an object, whatever the case of its name; null where there is none.
fn member(of: &Value, index: &Value) -> Value {
    let found = match (of, index) {
        (Value::Object(entries), index) => named(entries, &text(index)),
        (Value::Array(items), index) => index
            .as_u64()
            .and_then(|index| items.get(usize::try_from(index).ok()?)),
        _ => None,
    };
    found.cloned().unwrap_or_default()
}

fn named<'a>(entries: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    entries.get(name).or_else(|| {
        let found = entries
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    })
}

fn call(name: &str, arguments: &[Value], status: Status) -> Value {
    let argument = |index: usize| arguments.get(index).map(text).unwrap_or_default();
    let lower = |index: usize| argument(index).to_lowercase();
    match name {
        "success" => (status == Status::Success).into(),
        "failure" => (status == Status::Failure).into(),
        "cancelled" => (status == Status::Cancelled).into(),
        "always" => true.into(),
        "contains" => match arguments.first() {
            Some(Value::Array(items)) => items
                .iter()
                .any(|item| equal(item, arguments.get(1).unwrap_or(&Value::Null)))
                .into(),
            _ => lower(0).contains(&lower(1)).into(),
        },
        "startswith" => lower(0).starts_with(&lower(1)).into(),
        "endswith" => lower(0).ends_with(&lower(1)).into(),
        "join" => {
            let with = arguments.get(1).map_or_else(|| ",".to_owned(), text);
            let items = arguments.first().and_then(Value::as_array);
            let items = items.map(|items| items.iter().map(text).collect::<Vec<_>>());
            items.unwrap_or_default().join(&with).into()
        }
        "tojson" => {
            let pretty = serde_json::to_string_pretty(arguments.first().unwrap_or(&Value::Null));
            pretty.unwrap_or_default().into()
        }
        // `format`, the last one that `known` lets pass.
        _ => (1..arguments.len())
            .fold(argument(0), |made, index| {
                made.replace(&format!("{{{}}}", index - 1), &argument(index))
            })
            .into(),
    }
}

/// A value as the text that it becomes in a script.
#[must_use]
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(_) => "Object".to_owned(),
        Value::Array(_) => "Array".to_owned(),
        scalar => scalar.to_string(),
    }
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64().is_some_and(|number| number != 0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

/// The number that GitHub compares with: what is none is not equal to anything.
fn number(value: &Value) -> f64 {
    match value {
        Value::Null => 0.0,
        Value::Bool(value) => f64::from(u8::from(*value)),
        Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
        Value::String(text) if text.trim().is_empty() => 0.0,
        Value::String(text) => text.trim().parse().unwrap_or(f64::NAN),
        Value::Array(_) | Value::Object(_) => f64::NAN,
    }
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::String(left), Value::String(right)) => left.to_lowercase() == right.to_lowercase(),
        #[expect(clippy::float_cmp, reason = "as GitHub compares them")]
        (left, right) => number(left) == number(right),
    }
}

fn compare(operator: Operator, left: &Value, right: &Value) -> bool {
    let ordering = match (left, right) {
        (Value::String(left), Value::String(right)) => {
            Some(left.to_lowercase().cmp(&right.to_lowercase()))
        }
        (left, right) => number(left).partial_cmp(&number(right)),
    };
    match operator {
        Operator::Equal => equal(left, right),
        Operator::NotEqual => !equal(left, right),
        Operator::Less => ordering.is_some_and(std::cmp::Ordering::is_lt),
        Operator::LessOrEqual => ordering.is_some_and(std::cmp::Ordering::is_le),
        Operator::Greater => ordering.is_some_and(std::cmp::Ordering::is_gt),
        Operator::GreaterOrEqual => ordering.is_some_and(std::cmp::Ordering::is_ge),
        Operator::Or | Operator::And => false,
    }
}

#[cfg(test)]
mod tests;
