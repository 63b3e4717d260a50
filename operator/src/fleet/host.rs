//! By which names the page may be asked for.
//!
//! The page has no login: whoever reaches it may read it. A web site must not get its visitors' browsers to reach it for the
//! site, by a name of its own that suddenly leads to the page's address. So the page answers to names that nobody outside can
//! give away: addresses, `localhost`, and names within the cluster; and to those that the administrator lists.

use std::net::IpAddr;

/// Whether this value of the header `Host` is a name of ours.
#[must_use]
pub fn is_ours(host: &str, allowed: &[String]) -> bool {
    let name = without_port(host);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let is_local = name == "localhost" || (!name.is_empty() && !name.contains('.'));
    let is_service = ["svc", "svc.cluster.local"].iter().any(|domain| {
        let rest = name.strip_suffix(domain);
        rest.is_some_and(|rest| rest.ends_with('.'))
    });
    let is_named = allowed
        .iter()
        .any(|allowed| allowed.eq_ignore_ascii_case(&name));
    is_local || is_service || is_named
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // An address of version 6 has its colons in brackets, or no port.
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.contains(':') => {
            name
        }
        Some((name, _)) if name.ends_with(']') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_that_somebody_else_gives_away_is_ours() {
        let allowed = ["gpus.example.com".to_owned()];
        for (host, ours) in [
            ("localhost:8082", true),
            ("127.0.0.1:8082", true),
            ("[::1]:8082", true),
            ("::1", true),
            ("10.96.0.7", true),
            ("operator-fleet", true),
            ("operator-fleet.cuda-runner-system.svc", true),
            (
                "operator-fleet.cuda-runner-system.svc.cluster.local:8082",
                true,
            ),
            ("GPUs.example.com", true),
            ("gpus.example.com.", true),
            ("evil.example.com", false),
            ("operator.svc.evil.com", false),
            ("127.0.0.1.evil.com", false),
            ("localhost.evil.com:8082", false),
            ("", false),
        ] {
            assert_eq!(is_ours(host, &allowed), ours, "{host}");
        }
    }
}
