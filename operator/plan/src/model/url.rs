//! The web address of a repository, an organization or an enterprise, and what follows from it.

use std::fmt;

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What may stand in one segment of a path without encoding: RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Encodes one segment of a path, or one value of a query. A slash is encoded, too.
#[must_use]
pub fn encode(segment: &str) -> String {
    utf8_percent_encode(segment, SEGMENT).to_string()
}

/// Whose runners they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Runners of one repository.
    Repository {
        /// User or organization that owns it.
        owner: String,
        /// Name of the repository.
        name: String,
    },
    /// Runners of an organization.
    Organization {
        /// Login of the organization.
        name: String,
    },
    /// Runners of an enterprise.
    Enterprise {
        /// The enterprise's slug.
        slug: String,
    },
}

impl Scope {
    /// Advice to grant that.
    #[must_use]
    pub fn grant(&self) -> String {
        format!("grant {}", self.permission())
    }

    /// What managing its runners takes, in GitHub's words:
    /// <https://docs.github.com/en/rest/actions/self-hosted-runners?apiVersion=2022-11-28>.
    #[must_use]
    pub const fn permission(&self) -> &'static str {
        match self {
            Self::Repository { .. } => {
                "the repository permission \"Administration: write\" (classic tokens: scope repo)"
            }
            Self::Organization { .. } => {
                "the organization permission \"Self-hosted runners: write\" (classic tokens: scope admin:org)"
            }
            Self::Enterprise { .. } => {
                "the scope manage_runners:enterprise, on a classic token of an enterprise owner"
            }
        }
    }
}

/// The address of what runners belong to, checked.
///
/// Two addresses are equal where they mean the same: GitHub's names ignore case.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct GitHubUrl {
    scheme: Scheme,
    /// Host in lower case, with its port where the address has one.
    authority: String,
    scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scheme {
    Https,
    Http,
}

impl Scheme {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}

/// Why an address cannot be used, with what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It does not parse.
    #[error(
        "{url:?} is no URL; write one like https://github.com/OWNER/REPOSITORY or https://github.com/ORGANIZATION"
    )]
    Syntax {
        /// As given.
        url: String,
    },
    /// It is an address for `git`, not a web address.
    #[error(
        "{url:?} is an address for git over SSH; write the address that the browser shows, such as {instead}"
    )]
    Ssh {
        /// As given.
        url: String,
        /// The web address that is probably meant.
        instead: String,
    },
    /// Plain http.
    #[error(
        "{url} would send credentials unencrypted; write https://, or start the operator with --insecure-github"
    )]
    Insecure {
        /// As given.
        url: String,
    },
    /// Another scheme than https and http.
    #[error("{url} has the scheme {scheme:?}; write https://")]
    Scheme {
        /// As given.
        url: String,
        /// Its scheme.
        scheme: String,
    },
    /// It carries a user, a password, a query or a fragment. The address is not repeated: it may hold a secret.
    #[error(
        "the URL contains a {part}; give only the address, and credentials through credentialsRef"
    )]
    Extra {
        /// What is too much.
        part: &'static str,
    },
    /// It is a server without a path.
    #[error(
        "{url} names a server only; add a repository (/OWNER/REPOSITORY), an organization (/ORGANIZATION) or an enterprise (/enterprises/ENTERPRISE)"
    )]
    NoPath {
        /// As given.
        url: String,
    },
    /// It is a page below the repository, or of the API.
    #[error("{url} is no repository, organization or enterprise; write {instead}")]
    Page {
        /// As given.
        url: String,
        /// What is probably meant.
        instead: String,
    },
    /// A name contains what GitHub allows in none.
    #[error(
        "{url} contains {name:?}, which no name on GitHub can be: letters, digits, '-', '_' and '.' are allowed"
    )]
    Name {
        /// As given.
        url: String,
        /// The name at fault.
        name: String,
    },
}

impl GitHubUrl {
    /// Parses an address as the browser shows it. Plain http is refused unless `allow_insecure`.
    pub fn parse(url: &str, allow_insecure: bool) -> Result<Self, UrlError> {
        let url = url.trim();
        refuse_extras(url)?;
        if let Some(instead) = web_address_of_ssh(url) {
            return Err(UrlError::Ssh {
                url: url.into(),
                instead,
            });
        }
        let syntax = || UrlError::Syntax { url: url.into() };
        let uri: Uri = url.parse().map_err(|_| syntax())?;
        let scheme = match uri.scheme_str().ok_or_else(syntax)? {
            "https" => Scheme::Https,
            "http" if allow_insecure => Scheme::Http,
            "http" => return Err(UrlError::Insecure { url: url.into() }),
            other => {
                return Err(UrlError::Scheme {
                    url: url.into(),
                    scheme: other.into(),
                });
            }
        };
        let authority = authority(&uri).ok_or_else(syntax)?;
        let scope = scope(url, scheme, &authority, uri.path())?;
        Ok(Self {
            scheme,
            authority,
            scope,
        })
    }

    /// Whose runners they are.
    #[must_use]
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Host, with its port where the address has one.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.authority
    }

    /// Whether the server is github.com, and not ghe.com or an Enterprise Server.
    #[must_use]
    pub fn is_github_com(&self) -> bool {
        self.authority == "github.com"
    }

    /// Scheme and authority of the API, such as `https://api.github.com`.
    ///
    /// The addresses are documented at <https://docs.github.com/en/enterprise-cloud@latest/rest/using-the-rest-api/getting-started-with-the-rest-api>
    /// and <https://docs.github.com/en/enterprise-server@latest/rest/quickstart>.
    #[must_use]
    pub fn api_origin(&self) -> String {
        let scheme = self.scheme.as_str();
        if self.has_api_host() {
            format!("{scheme}://api.{}", self.authority)
        } else {
            format!("{scheme}://{}", self.authority)
        }
    }

    /// What every path of the API begins with: nothing, or `/api/v3` on an Enterprise Server.
    #[must_use]
    pub fn api_prefix(&self) -> &'static str {
        if self.has_api_host() { "" } else { "/api/v3" }
    }

    /// Where the API is, such as `https://api.github.com` or `https://ghe.example.com/api/v3`.
    #[must_use]
    pub fn api_base(&self) -> String {
        format!("{}{}", self.api_origin(), self.api_prefix())
    }

    /// The server's web pages, such as `https://github.com`.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme.as_str(), self.authority)
    }

    /// Whether it is one repository.
    #[must_use]
    pub const fn is_repository(&self) -> bool {
        matches!(self.scope, Scope::Repository { .. })
    }

    /// Whether it is the repository of this `OWNER/NAME`; case does not matter to GitHub.
    #[must_use]
    pub fn is_of(&self, repository: &str) -> bool {
        let Scope::Repository { owner, name } = &self.scope else {
            return false;
        };
        let parts = repository.split_once('/');
        parts.is_some_and(|(o, n)| o.eq_ignore_ascii_case(owner) && n.eq_ignore_ascii_case(name))
    }

    /// Whether runners there get the jobs of this `OWNER/NAME`, which is of the same server. Of an enterprise nobody knows whose
    /// organizations it has.
    #[must_use]
    pub fn covers(&self, repository: &str) -> bool {
        let owner = repository.split('/').next().unwrap_or_default();
        match &self.scope {
            Scope::Repository { .. } => self.is_of(repository),
            Scope::Organization { name } => owner.eq_ignore_ascii_case(name),
            Scope::Enterprise { .. } => true,
        }
    }

    /// Path of the owner's part of the API, such as `/repos/craton-co/craton-tensor-wasm`, without the API's prefix.
    #[must_use]
    pub fn owner_path(&self) -> String {
        match &self.scope {
            Scope::Repository { owner, name } => {
                format!("/repos/{}/{}", encode(owner), encode(name))
            }
            Scope::Organization { name } => format!("/orgs/{}", encode(name)),
            Scope::Enterprise { slug } => format!("/enterprises/{}", encode(slug)),
        }
    }

    /// Path of the runner endpoints, such as `/orgs/craton-co/actions/runners`, without the API's prefix.
    #[must_use]
    pub fn runners_path(&self) -> String {
        format!("{}/actions/runners", self.owner_path())
    }

    /// github.com and ghe.com have a host of its own for the API; an Enterprise Server has a path.
    fn has_api_host(&self) -> bool {
        let host = self.authority.split(':').next().unwrap_or_default();
        host == "github.com" || host.ends_with(".ghe.com")
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository { owner, name } => write!(f, "repository {owner}/{name}"),
            Self::Organization { name } => write!(f, "organization {name}"),
            Self::Enterprise { slug } => write!(f, "enterprise {slug}"),
        }
    }
}

impl fmt::Display for GitHubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority)?;
        match &self.scope {
            Scope::Repository { owner, name } => write!(f, "/{owner}/{name}"),
            Scope::Organization { name } => write!(f, "/{name}"),
            Scope::Enterprise { slug } => write!(f, "/enterprises/{slug}"),
        }
    }
}

impl fmt::Debug for GitHubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GitHubUrl({self})")
    }
}

/// First of all, so that no later message repeats a secret from the address.
fn refuse_extras(url: &str) -> Result<(), UrlError> {
    let extra = |part| Err(UrlError::Extra { part });
    if url.contains('?') {
        return extra("query");
    }
    if url.contains('#') {
        return extra("fragment");
    }
    let rest = url.split_once("://").map(|(_, rest)| rest);
    let authority = rest
        .and_then(|rest| rest.split('/').next())
        .unwrap_or_default();
    // `ssh://git@host` holds no secret and has advice of its own.
    if authority.contains('@') && !url.starts_with("ssh://git@") {
        return extra("user or a password");
    }
    Ok(())
}

/// `git@github.com:owner/name.git` and `ssh://git@github.com/owner/name.git` as web addresses.
fn web_address_of_ssh(url: &str) -> Option<String> {
    let rest = url
        .strip_prefix("ssh://git@")
        .or_else(|| url.strip_prefix("git@"))?;
    let rest = rest.strip_suffix(".git").unwrap_or(rest);
    Some(format!("https://{}", rest.replacen(':', "/", 1)))
}

/// Host in lower case, with the port where it is not the scheme's own. `www.github.com` is github.com.
fn authority(uri: &Uri) -> Option<String> {
    let host = uri
        .host()
        .filter(|host| !host.is_empty())?
        .to_ascii_lowercase();
    let host = if host == "www.github.com" {
        "github.com".to_owned()
    } else {
        host
    };
    let usual = if uri.scheme_str() == Some("http") {
        80
    } else {
        443
    };
    let after = uri.authority()?.as_str().rsplit(']').next()?;
    let port = match after.rsplit_once(':') {
        None => usual,
        // What is no port would read as none.
        Some((_, port)) => port.parse::<u16>().ok().filter(|port| *port > 0)?,
    };
    Some(if port == usual {
        host
    } else {
        format!("{host}:{port}")
    })
}

fn scope(url: &str, scheme: Scheme, authority: &str, path: &str) -> Result<Scope, UrlError> {
    let segments: Vec<&str> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let base = format!("{}://{authority}", scheme.as_str());
    let page = |instead: String| {
        Err(UrlError::Page {
            url: url.into(),
            instead,
        })
    };
    if let Some(name) = segments.iter().find(|segment| !is_name(segment)) {
        return Err(UrlError::Name {
            url: url.into(),
            name: (*name).into(),
        });
    }
    if authority == "api.github.com" {
        return page(
            "the address that the browser shows, such as https://github.com/OWNER/REPOSITORY"
                .into(),
        );
    }
    // Names on GitHub ignore case; equal addresses share their caches.
    let lower = |name: &str| name.to_ascii_lowercase();
    match segments.as_slice() {
        [] => Err(UrlError::NoPath { url: url.into() }),
        ["enterprises"] => page(format!("{base}/enterprises/ENTERPRISE")),
        ["enterprises", slug] => Ok(Scope::Enterprise { slug: lower(slug) }),
        ["enterprises", slug, ..] => page(format!("{base}/enterprises/{slug}")),
        ["orgs" | "organizations"] => page(format!("{base}/ORGANIZATION")),
        ["orgs" | "organizations", name, ..] => page(format!("{base}/{name}")),
        ["api", "v3", ..] | ["api"] => page(format!(
            "{base}/OWNER/REPOSITORY, without the path of the API"
        )),
        [name] => Ok(Scope::Organization { name: lower(name) }),
        [owner, name] => match name.strip_suffix(".git").unwrap_or(name) {
            "" => page(format!("{base}/{owner}")),
            name => Ok(Scope::Repository {
                owner: lower(owner),
                name: lower(name),
            }),
        },
        [owner, name, ..] => page(format!("{base}/{owner}/{name}")),
    }
}

/// Whether this can be the name of an owner or a repository.
pub(super) fn is_name(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> GitHubUrl {
        GitHubUrl::parse(url, false).unwrap()
    }

    fn refused(url: &str) -> String {
        GitHubUrl::parse(url, false).unwrap_err().to_string()
    }

    #[test]
    fn servers_and_scopes_give_their_addresses() {
        for (url, base, runners) in [
            (
                "https://github.com/craton-co/craton-tensor-wasm",
                "https://api.github.com",
                "/repos/craton-co/craton-tensor-wasm/actions/runners",
            ),
            (
                "https://github.com/craton-co",
                "https://api.github.com",
                "/orgs/craton-co/actions/runners",
            ),
            (
                "https://github.com/enterprises/craton",
                "https://api.github.com",
                "/enterprises/craton/actions/runners",
            ),
            (
                "https://octo.ghe.com/o/r",
                "https://api.octo.ghe.com",
                "/repos/o/r/actions/runners",
            ),
            (
                "https://ghe.example.com:8443/o/r",
                "https://ghe.example.com:8443/api/v3",
                "/repos/o/r/actions/runners",
            ),
            (
                "https://[fd00::1]:8443/o",
                "https://[fd00::1]:8443/api/v3",
                "/orgs/o/actions/runners",
            ),
            (
                "https://notghe.com/o",
                "https://notghe.com/api/v3",
                "/orgs/o/actions/runners",
            ),
        ] {
            let url = parse(url);
            assert_eq!(
                (url.api_base().as_str(), url.runners_path().as_str()),
                (base, runners),
                "{url}"
            );
        }
    }

    #[test]
    fn one_place_written_in_several_ways_is_equal() {
        let plain = parse("https://github.com/craton-co/tensor");
        for same in [
            "https://github.com/craton-co/tensor/",
            "https://github.com/craton-co/tensor.git",
            "https://GitHub.com/Craton-Co/Tensor",
            "https://www.github.com:443//craton-co//tensor",
            "  https://github.com/craton-co/tensor\n",
        ] {
            assert_eq!(parse(same), plain, "{same}");
        }
        assert_eq!(plain.to_string(), "https://github.com/craton-co/tensor");
    }

    #[test]
    fn what_cannot_work_says_what_to_write_instead() {
        for (url, advice) in [
            (
                "github.com/o/r",
                "write one like https://github.com/OWNER/REPOSITORY",
            ),
            ("", "write one like"),
            ("git@github.com:o/r.git", "such as https://github.com/o/r"),
            (
                "ssh://git@github.com/o/r.git",
                "such as https://github.com/o/r",
            ),
            ("http://github.com/o/r", "--insecure-github"),
            ("ftp://github.com/o/r", "write https://"),
            ("https://github.com", "add a repository (/OWNER/REPOSITORY)"),
            (
                "https://github.com/o/r/tree/main",
                "write https://github.com/o/r",
            ),
            (
                "https://github.com/orgs/craton-co/teams",
                "write https://github.com/craton-co",
            ),
            (
                "https://api.github.com/repos/o/r",
                "https://github.com/OWNER/REPOSITORY",
            ),
            (
                "https://ghe.example.com/api/v3/repos/o/r",
                "without the path of the API",
            ),
            ("https://github.com/enterprises", "/enterprises/ENTERPRISE"),
            ("https://github.com/o/r%2f", "letters, digits"),
            ("https://github.com/o/..", "letters, digits"),
            ("https://github.com:99999/o/r", "is no URL"),
            ("https://github.com:0/o/r", "is no URL"),
            ("https://github.com:/o/r", "is no URL"),
            ("https://[fd00::1]:70000/o/r", "is no URL"),
            ("https://github.com/o/r?tab=readme", "query"),
            ("https://github.com/o/r#readme", "fragment"),
        ] {
            let message = refused(url);
            assert!(message.contains(advice), "{url}: {message}");
        }
    }

    #[test]
    fn a_password_in_the_address_is_refused_and_not_repeated() {
        for url in [
            "https://me:hunter2@github.com/o/r",
            "http://hunter2@github.com",
            "https://hunter2@github.com/a b",
            "https://github.com/o/r?token=hunter2",
        ] {
            let message = refused(url);
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn plain_http_is_allowed_where_told() {
        let url = GitHubUrl::parse("http://10.0.0.1:8080/o/r", true).unwrap();
        assert_eq!(url.api_base(), "http://10.0.0.1:8080/api/v3");
    }

    #[test]
    fn every_reserved_byte_is_encoded() {
        assert_eq!(
            encode("feature/a b%?#ü~"),
            "feature%2Fa%20b%25%3F%23%C3%BC~"
        );
    }
}
