//! What a request is called, so that the same request of another life has the same name.

use std::{fmt, str::FromStr};

use http::Method;

/// The server that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Server {
    /// The API server.
    Kubernetes,
    /// The simulated GitHub, its scale-set service included.
    GitHub,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kubernetes => "kubernetes",
            Self::GitHub => "github",
        })
    }
}

/// What can happen in a life: a request, or an event of a watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind {
    /// Whom it is for.
    pub(super) server: Server,
    /// Verb and resource, or method and endpoint.
    pub(super) what: String,
}

impl Kind {
    /// Whether it only reads.
    pub(super) fn reads(&self) -> bool {
        let verb = self.what.split(':').next().unwrap_or_default();
        ["get", "list", "watch", "event", "GET"].contains(&verb)
    }

    /// Whether it opens a watch.
    pub(super) fn is_watch(&self) -> bool {
        self.server == Server::Kubernetes && self.what.starts_with("watch:")
    }

    /// Whether it is an event of a watch.
    pub(super) fn is_event(&self) -> bool {
        self.server == Server::Kubernetes && self.what.starts_with("event:")
    }

    /// The events of this watch.
    pub(super) fn events(&self) -> Self {
        Self {
            server: self.server,
            what: self.what.replacen("watch:", "event:", 1),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.server, self.what)
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (server, what) = text.split_once(':').unwrap_or_default();
        let server = match server {
            "kubernetes" => Server::Kubernetes,
            "github" => Server::GitHub,
            _ => anyhow::bail!("{text:?} names no request: try kubernetes:create:pods"),
        };
        Ok(Self {
            server,
            what: what.to_owned(),
        })
    }
}

/// The kind of a request.
pub(super) fn kind(server: Server, method: &Method, path: &str, query: &str) -> Kind {
    let what = match server {
        Server::Kubernetes => kubernetes(method, path, query),
        Server::GitHub => format!("{method}:{}", endpoint(path)),
    };
    Kind { server, what }
}

/// `verb:resource`, as an audit log has them.
fn kubernetes(method: &Method, path: &str, query: &str) -> String {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    // The group and its version: `api/v1`, `apis/GROUP/VERSION`.
    let skipped = match parts.next() {
        Some("apis") => 2,
        Some("api") => 1,
        // No resource, as the version and the keys of tokens.
        _ => return format!("{}:{path}", method.as_str().to_lowercase()),
    };
    let mut parts: Vec<_> = parts.skip(skipped).collect();
    if parts.len() > 2 && parts[0] == "namespaces" {
        parts.drain(..2);
    }
    let is_named = parts.len() > 1;
    let watches = query
        .split('&')
        .any(|pair| pair == "watch=true" || pair == "watch=1");
    let verb = match *method {
        Method::GET if watches => "watch",
        Method::GET if is_named => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => method.as_str(),
    };
    let resource = parts.first().copied().unwrap_or_default();
    match parts.get(2) {
        Some(sub) => format!("{verb}:{resource}/{sub}"),
        None => format!("{verb}:{resource}"),
    }
}

/// A path without what differs from life to life: the repository, and numbers.
fn endpoint(path: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.starts_with(&["api", "v3"]) {
        parts.drain(..2);
    }
    if parts.first() == Some(&"repos") && parts.len() > 3 {
        parts.drain(..3);
    }
    let varies = |part: &str| {
        part.len() > 2 && part.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
            || part.chars().all(|c| c.is_ascii_digit())
    };
    let shown: Vec<&str> = parts
        .into_iter()
        .map(|part| if varies(part) { "N" } else { part })
        .collect();
    shown.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(server: Server, method: &Method, path: &str, query: &str) -> String {
        kind(server, method, path, query).to_string()
    }

    #[test]
    fn kubernetes_requests_have_the_names_of_the_audit_log() {
        let pods = "/api/v1/namespaces/a/pods";
        let pools = "/apis/cudarunner.dev/v1alpha1/namespaces/a/cudarunners";
        for (method, path, query, name) in [
            (Method::POST, pods.to_owned(), "", "create:pods"),
            (Method::GET, pods.to_owned(), "limit=50", "list:pods"),
            (
                Method::GET,
                pods.to_owned(),
                "limit=50&watch=true",
                "watch:pods",
            ),
            (Method::DELETE, format!("{pods}/x"), "", "delete:pods"),
            (
                Method::PATCH,
                format!("{pools}/p/status"),
                "",
                "patch:cudarunners/status",
            ),
            (Method::GET, "/api/v1/nodes".to_owned(), "", "list:nodes"),
            (
                Method::POST,
                "/apis/authentication.k8s.io/v1/tokenreviews".to_owned(),
                "",
                "create:tokenreviews",
            ),
            (
                Method::GET,
                "/openid/v1/jwks".to_owned(),
                "",
                "get:/openid/v1/jwks",
            ),
        ] {
            assert_eq!(
                named(Server::Kubernetes, &method, &path, query),
                format!("kubernetes:{name}")
            );
        }
    }

    #[test]
    fn endpoints_of_github_are_the_same_for_every_repository() {
        for (path, name) in [
            (
                "/api/v3/repos/a/b/actions/runners/17",
                "DELETE:actions/runners/N",
            ),
            (
                "/api/v3/app/installations/3/access_tokens",
                "DELETE:app/installations/N/access_tokens",
            ),
            ("/api/v3/repos/a/b", "DELETE:repos/a/b"),
        ] {
            assert_eq!(
                named(Server::GitHub, &Method::DELETE, path, ""),
                format!("github:{name}")
            );
        }
    }
}
