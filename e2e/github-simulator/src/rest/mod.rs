//! The REST API: one handler for each operation, under one lock.

pub mod apps;
pub mod checks;
pub mod contents;
pub mod protection;
pub mod rate_limit;
pub mod render;
pub mod repos;
pub mod rules;
pub mod rulesets;
pub mod runners;
pub mod runs;
pub mod workflows;

use std::{borrow::Cow, collections::BTreeMap};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{auth::Principal, state::Scope};

/// Where errors send their readers.
const DOCUMENTATION: &str = "https://docs.github.com/rest";

/// A request that is well-formed and whose sender is known.
#[derive(Debug, Clone)]
pub struct Call {
    /// Path parameters.
    pub path: BTreeMap<String, String>,
    /// Query parameters.
    pub query: BTreeMap<String, String>,
    /// The body, null if there is none.
    pub body: Value,
    /// Who asks.
    pub principal: Principal,
    /// Where the API was asked: with or without `/api/v3`.
    pub api: String,
    /// Where the pages of the site are.
    pub site: String,
    /// When.
    pub now: Timestamp,
    /// The newer version of the API was asked for.
    pub newest: bool,
    /// The path and query as sent, for links to other pages.
    pub target: String,
}

impl Call {
    /// A path parameter, empty if the operation has none of that name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> &str {
        self.path.get(name).map(String::as_str).unwrap_or_default()
    }

    /// A path parameter that is a number.
    pub fn number(&self, name: &str) -> Result<u64, Answer> {
        self.parameter(name)
            .parse()
            .map_err(|_| Answer::not_found())
    }

    /// `owner/name`, lower case.
    #[must_use]
    pub fn repository_name(&self) -> String {
        format!("{}/{}", self.parameter("owner"), self.parameter("repo")).to_lowercase()
    }

    /// Where the operation takes place.
    #[must_use]
    pub fn scope(&self) -> Scope {
        if self.path.contains_key("repo") {
            Scope::Repository(self.repository_name())
        } else if self.path.contains_key("org") {
            Scope::Organization(self.parameter("org").to_lowercase())
        } else {
            Scope::Enterprise(self.parameter("enterprise").to_lowercase())
        }
    }

    /// A query parameter.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// A text in the body.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name).and_then(Value::as_str)
    }

    /// One page of a list, and the header that leads to the others.
    #[must_use]
    pub fn page<T>(&self, all: Vec<T>) -> Page<T> {
        let number = |name, default: usize| {
            self.query(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or(default)
                .max(1)
        };
        let size = number("per_page", 30).min(100);
        let page = number("page", 1);
        let total = all.len();
        let items = all.into_iter().skip((page - 1) * size).take(size).collect();
        let last = total.div_ceil(size).max(1);
        let mut links = Vec::new();
        if page < last {
            links.push(self.link(page + 1, "next"));
            links.push(self.link(last, "last"));
        }
        if page > 1 {
            links.push(self.link(page - 1, "prev"));
            links.push(self.link(1, "first"));
        }
        Page {
            total,
            items,
            link: (!links.is_empty()).then(|| links.join(", ")),
        }
    }

    fn link(&self, page: usize, relation: &str) -> String {
        let (path, query) = self
            .target
            .split_once('?')
            .unwrap_or((self.target.as_str(), ""));
        let mut parts: Vec<String> = query
            .split('&')
            .filter(|part| !part.is_empty() && !part.starts_with("page="))
            .map(str::to_owned)
            .collect();
        parts.push(format!("page={page}"));
        format!(
            "<{}{path}?{}>; rel=\"{relation}\"",
            self.site,
            parts.join("&")
        )
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct Page<T> {
    /// How many there are on all pages.
    pub total: usize,
    /// Those of this page.
    pub items: Vec<T>,
    /// The `Link` header.
    pub link: Option<String>,
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Option<Value>,
    /// More headers.
    pub headers: Vec<(Cow<'static, str>, String)>,
}

impl Answer {
    /// A document.
    #[must_use]
    pub fn json(status: u16, body: Value) -> Self {
        Self {
            status,
            body: Some(body),
            headers: Vec::new(),
        }
    }

    /// No content.
    #[must_use]
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            body: None,
            headers: Vec::new(),
        }
    }

    /// GitHub's form of an error.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        Self::json(
            status,
            json!({
                "message": message,
                "documentation_url": DOCUMENTATION,
                "status": status.to_string(),
            }),
        )
    }

    /// There is no such thing, or the caller may not know of it.
    #[must_use]
    pub fn not_found() -> Self {
        Self::error(404, "Not Found")
    }

    /// 422 with a list of what is wrong, in words.
    #[must_use]
    pub fn invalid(message: &str, errors: &[&str]) -> Self {
        let mut answer = Self::error(422, message);
        if let (Some(Value::Object(body)), false) = (&mut answer.body, errors.is_empty()) {
            body.insert("errors".to_owned(), json!(errors));
        }
        answer
    }

    /// 422 with one structured error.
    #[must_use]
    pub fn invalid_field(resource: &str, field: &str, code: &str, message: &str) -> Self {
        let mut answer = Self::error(422, "Validation Failed");
        if let Some(Value::Object(body)) = &mut answer.body {
            body.insert(
                "errors".to_owned(),
                json!([{"resource": resource, "field": field, "code": code, "message": message}]),
            );
        }
        answer
    }

    /// A page of a list; `name` is where its entries go, none for a plain array.
    #[must_use]
    pub fn page(name: Option<&str>, page: Page<Value>) -> Self {
        let body = match name {
            Some(name) => json!({"total_count": page.total, name: page.items}),
            None => Value::Array(page.items),
        };
        let mut answer = Self::json(200, body);
        answer
            .headers
            .extend(page.link.map(|link| ("link".into(), link)));
        answer
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}
