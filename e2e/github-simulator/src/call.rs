//! What the REST API is asked, and by whom.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    answer::{Answer, Page},
    state::{Credential, InstallationToken, Scope},
};

/// Who asks.
#[derive(Debug, Clone)]
pub enum Principal {
    /// Nobody in particular.
    Anonymous,
    /// A GitHub App, by its JWT.
    App(u64),
    /// An installation, by its token.
    Installation(InstallationToken),
    /// A person, by a token.
    User(Credential),
}

impl Principal {
    /// The name in the request log, which is also the key of the budget; never a secret.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".to_owned(),
            Self::App(id) => format!("app:{id}"),
            Self::Installation(token) => format!("installation:{}", token.installation),
            Self::User(credential) => format!("token:{}", credential.name),
        }
    }
}

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
