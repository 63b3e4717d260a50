//! Conditional requests.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// The tag of a body as seen by one credential.
#[must_use]
pub fn of(body: &[u8], credential: &str) -> String {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    credential.hash(&mut hasher);
    format!("W/\"{:016x}\"", hasher.finish())
}

/// Whether `If-None-Match` names the tag; weak and strong compare alike.
#[must_use]
pub fn matches(header: &str, tag: &str) -> bool {
    let plain = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    header.trim() == "*" || header.split(',').any(|one| plain(one) == plain(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_body_has_the_same_tag() {
        let tag = of(b"one", "a");
        assert_eq!(tag, of(b"one", "a"));
        assert_ne!(tag, of(b"two", "a"));
        assert!(matches(&tag, &tag));
        assert!(matches(
            &format!("\"x\", {}", tag.trim_start_matches("W/")),
            &tag
        ));
        assert!(!matches("\"x\"", &tag));
    }
}
