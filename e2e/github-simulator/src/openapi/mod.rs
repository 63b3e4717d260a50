//! GitHub's own description of its REST API, and the operations of it that are simulated.
//!
//! The description comes from the npm package `@octokit/openapi`. [`ensure`] fetches it once per
//! version; [`Description::load`] keeps the operations in use.

mod check;
mod convert;
mod fetch;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result, anyhow, bail};
use jsonschema::Validator;
use serde_json::{Map, Value, json};

pub use check::{Body, Complaint};
pub use fetch::{VERSION, ensure};

/// The file of the package that describes github.com.
pub const GITHUB_COM: &str = "api.github.com.json";
/// The file that adds enterprises and the end of life of agents.
pub const ENTERPRISE_CLOUD: &str = "ghec.json";

/// The operations in use, each able to judge a request and an answer.
#[derive(Debug)]
pub struct Description {
    operations: Vec<Operation>,
    events: BTreeMap<String, Schema>,
    general_error: Schema,
}

/// One operation of the API.
#[derive(Debug)]
pub struct Operation {
    /// GitHub's name for it, such as `actions/get-workflow-run`.
    pub id: String,
    method: String,
    template: Vec<Segment>,
    parameters: Vec<Parameter>,
    body: Option<RequestBody>,
    answers: BTreeMap<u16, Option<Schema>>,
}

/// An operation found for a request, with the values of its path.
#[derive(Debug)]
pub struct Match<'a> {
    /// The operation.
    pub operation: &'a Operation,
    /// Decoded path parameters by name.
    pub parameters: BTreeMap<String, String>,
}

#[derive(Debug)]
enum Segment {
    Literal(String),
    Parameter(String),
}

#[derive(Debug)]
struct Parameter {
    name: String,
    in_query: bool,
    required: bool,
    schema: Schema,
}

#[derive(Debug)]
struct RequestBody {
    required: bool,
    /// Names of the described properties: others are refused, so that a typing error is found.
    properties: Option<BTreeSet<String>>,
    schema: Schema,
}

/// A schema that is compiled when it is first needed.
#[derive(Debug)]
struct Schema {
    source: Value,
    components: Arc<Map<String, Value>>,
    compiled: OnceLock<Result<Validator, String>>,
}

impl Schema {
    fn new(schema: &Value, components: &Arc<Map<String, Value>>) -> Self {
        Self {
            source: convert::schema(schema),
            components: Arc::clone(components),
            compiled: OnceLock::new(),
        }
    }

    fn validator(&self) -> Result<&Validator, String> {
        self.compiled
            .get_or_init(|| self.compile())
            .as_ref()
            .map_err(Clone::clone)
    }

    fn compile(&self) -> Result<Validator, String> {
        let mut names = BTreeSet::new();
        references(&self.source, &self.components, &mut names);
        let schemas: Map<String, Value> = names
            .into_iter()
            .filter_map(|name| {
                let schema = convert::schema(self.components.get(&name)?);
                Some((name, schema))
            })
            .collect();
        let document = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "allOf": [self.source],
            "components": {"schemas": schemas},
        });
        jsonschema::options()
            .should_validate_formats(true)
            .should_ignore_unknown_formats(true)
            .build(&document)
            .map_err(|error| format!("the description's schema does not compile: {error}"))
    }
}

/// Collects the names of all component schemas that `schema` needs.
fn references(schema: &Value, components: &Map<String, Value>, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            if let Some(name) = object
                .get("$ref")
                .and_then(Value::as_str)
                .and_then(|path| path.strip_prefix("#/components/schemas/"))
                .and_then(|rest| rest.split('/').next())
                && names.insert(name.to_owned())
                && let Some(target) = components.get(name)
            {
                references(target, components, names);
            }
            for value in object.values() {
                references(value, components, names);
            }
        }
        Value::Array(items) => {
            for item in items {
                references(item, components, names);
            }
        }
        _ => {}
    }
}

impl Description {
    /// Reads the operations named in `wanted` (file of the package, operation) from `folder`.
    pub fn load(folder: &Path, wanted: &[(&str, &str)]) -> Result<Self> {
        let mut operations = Vec::new();
        let mut events = BTreeMap::new();
        let mut general_error = None;
        for file in [GITHUB_COM, ENTERPRISE_CLOUD] {
            let ids: BTreeSet<&str> = wanted
                .iter()
                .filter(|(source, _)| *source == file)
                .map(|(_, id)| *id)
                .collect();
            let path = folder.join(file);
            let text =
                std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let mut document: Value = serde_json::from_slice(&text)
                .with_context(|| format!("{} is not JSON", path.display()))?;
            let components = take_schemas(&mut document)
                .with_context(|| format!("{} has no components.schemas", path.display()))?;
            let found = read_operations(&document, &ids, &components)
                .with_context(|| format!("reading the operations of {}", path.display()))?;
            if let Some(missing) = ids
                .iter()
                .find(|id| !found.iter().any(|operation| operation.id == **id))
            {
                bail!(
                    "{} does not describe the operation {missing}",
                    path.display()
                );
            }
            operations.extend(found);
            if file == GITHUB_COM {
                events = read_events(&document, &components);
            }
            general_error.get_or_insert_with(|| {
                Schema::new(
                    &json!({"$ref": "#/components/schemas/basic-error"}),
                    &components,
                )
            });
        }
        let general_error = general_error.ok_or_else(|| anyhow!("no description was read"))?;
        Ok(Self {
            operations,
            events,
            general_error,
        })
    }

    /// Finds the operation for a method and a raw (still percent-encoded) path.
    #[must_use]
    pub fn find(&self, method: &str, path: &str) -> Option<Match<'_>> {
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        self.operations
            .iter()
            .filter(|operation| operation.method == method)
            .filter_map(|operation| {
                let parameters = operation.capture(&segments)?;
                Some(Match {
                    operation,
                    parameters,
                })
            })
            // A literal segment wins over a parameter: fewer parameters, closer match.
            .min_by_key(|found| found.parameters.len())
    }

    /// Finds an operation by its name.
    #[must_use]
    pub fn operation(&self, id: &str) -> Option<&Operation> {
        self.operations.iter().find(|operation| operation.id == id)
    }

    /// Whether any operation lives at `path`, whatever its method.
    #[must_use]
    pub fn knows_path(&self, path: &str) -> bool {
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        self.operations
            .iter()
            .any(|operation| operation.capture(&segments).is_some())
    }
}

impl Operation {
    fn capture(&self, segments: &[&str]) -> Option<BTreeMap<String, String>> {
        let mut parameters = BTreeMap::new();
        let mut rest = segments;
        for (index, part) in self.template.iter().enumerate() {
            let (first, tail) = rest.split_first()?;
            match part {
                Segment::Literal(literal) => {
                    if literal != first {
                        return None;
                    }
                    rest = tail;
                }
                Segment::Parameter(name) => {
                    // Only the path of a file may hold slashes, and it is always the last part.
                    let last = index + 1 == self.template.len();
                    let raw = if last && name == "path" {
                        rest.join("/")
                    } else {
                        (*first).to_owned()
                    };
                    rest = if last && name == "path" { &[] } else { tail };
                    if raw.is_empty() {
                        return None;
                    }
                    parameters.insert(name.clone(), crate::text::percent_decode(&raw));
                }
            }
        }
        rest.is_empty().then_some(parameters)
    }
}

fn take_schemas(document: &mut Value) -> Option<Arc<Map<String, Value>>> {
    // The schemas stay in the document too: parameters and responses refer to each other there.
    let schemas = document
        .pointer_mut("/components/schemas")?
        .as_object_mut()?;
    Some(Arc::new(std::mem::take(schemas)))
}

/// The bodies of events, by name and action, such as `workflow-job-queued`.
fn read_events(document: &Value, components: &Arc<Map<String, Value>>) -> BTreeMap<String, Schema> {
    let events = document.get("x-webhooks").and_then(Value::as_object);
    let described = events.into_iter().flatten().filter_map(|(name, event)| {
        let path = "/post/requestBody/content/application~1json/schema";
        let is_sent = name == "ping" || name.starts_with("workflow-job-");
        let schema = event.pointer(path).filter(|_| is_sent)?;
        Some((name.clone(), Schema::new(schema, components)))
    });
    described.collect()
}

fn read_operations(
    document: &Value,
    ids: &BTreeSet<&str>,
    components: &Arc<Map<String, Value>>,
) -> Result<Vec<Operation>> {
    let paths = document
        .get("paths")
        .and_then(Value::as_object)
        .ok_or_else(|| anyhow!("no paths"))?;
    let mut operations = Vec::new();
    for (path, item) in paths {
        for method in ["get", "post", "put", "patch", "delete"] {
            let Some(operation) = item.get(method) else {
                continue;
            };
            let id = operation
                .get("operationId")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if ids.contains(id) {
                operations.push(
                    read_operation(document, path, method, operation, components)
                        .with_context(|| id.to_owned())?,
                );
            }
        }
    }
    Ok(operations)
}

fn read_operation(
    document: &Value,
    path: &str,
    method: &str,
    operation: &Value,
    components: &Arc<Map<String, Value>>,
) -> Result<Operation> {
    let id = operation
        .get("operationId")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let mut parameters = Vec::new();
    for parameter in array(operation.get("parameters")) {
        let parameter = resolve(document, parameter)?;
        let place = parameter.get("in").and_then(Value::as_str).unwrap_or("");
        if place != "path" && place != "query" {
            continue;
        }
        parameters.push(Parameter {
            name: parameter
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            in_query: place == "query",
            required: parameter.get("required") == Some(&Value::Bool(true)),
            schema: Schema::new(parameter.get("schema").unwrap_or(&Value::Null), components),
        });
    }
    let body = match operation.get("requestBody") {
        None => None,
        Some(body) => read_body(resolve(document, body)?, components),
    };
    Ok(Operation {
        id,
        method: method.to_uppercase(),
        template: read_template(path),
        parameters,
        body,
        answers: read_answers(document, operation, components)?,
    })
}

fn read_template(path: &str) -> Vec<Segment> {
    let segment = |part: &str| {
        let name = part.strip_prefix('{').and_then(|n| n.strip_suffix('}'));
        name.map_or_else(
            || Segment::Literal(part.to_owned()),
            |name| Segment::Parameter(name.to_owned()),
        )
    };
    path.trim_start_matches('/')
        .split('/')
        .map(segment)
        .collect()
}

fn read_answers(
    document: &Value,
    operation: &Value,
    components: &Arc<Map<String, Value>>,
) -> Result<BTreeMap<u16, Option<Schema>>> {
    let mut answers = BTreeMap::new();
    let responses = operation.get("responses").and_then(Value::as_object);
    for (status, answer) in responses.into_iter().flatten() {
        let answer = resolve(document, answer)?;
        let schema = answer
            .pointer("/content/application~1json/schema")
            .map(|schema| Schema::new(schema, components));
        if let Ok(status) = status.parse() {
            answers.insert(status, schema);
        }
    }
    Ok(answers)
}

fn read_body(body: &Value, components: &Arc<Map<String, Value>>) -> Option<RequestBody> {
    let schema = body.pointer("/content/application~1json/schema")?;
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .map(|properties| properties.keys().cloned().collect());
    Some(RequestBody {
        required: body.get("required") == Some(&Value::Bool(true)),
        properties,
        schema: Schema::new(schema, components),
    })
}

fn array(value: Option<&Value>) -> &[Value] {
    value
        .and_then(Value::as_array)
        .map_or(&[], |items| items.as_slice())
}

fn resolve<'a>(document: &'a Value, value: &'a Value) -> Result<&'a Value> {
    let mut current = value;
    while let Some(reference) = current.get("$ref").and_then(Value::as_str) {
        let pointer = reference
            .strip_prefix('#')
            .ok_or_else(|| anyhow!("{reference} points outside the description"))?;
        current = document
            .pointer(pointer)
            .ok_or_else(|| anyhow!("{reference} points nowhere"))?;
    }
    Ok(current)
}

#[cfg(test)]
mod tests;
