//! What the REST API answers, in GitHub's forms.

use std::borrow::Cow;

use serde_json::{Value, json};

/// Where errors send their readers.
const DOCUMENTATION: &str = "https://docs.github.com/rest";

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
