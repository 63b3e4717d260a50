//! Small helpers for text on the wire.

use std::{collections::BTreeMap, fmt::Write as _};

use jiff::Timestamp;

/// Decodes `%41` and the like; what is not a valid escape stays.
#[must_use]
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escape = (bytes[index] == b'%')
            .then(|| text.get(index + 1..index + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(byte) = escape {
            decoded.push(byte);
            index += 3;
        } else {
            decoded.push(bytes[index]);
            index += 1;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Encodes everything but unreserved characters, `/` too.
#[must_use]
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// The parameters of a query string.
#[must_use]
pub fn query(raw: Option<&str>) -> BTreeMap<String, String> {
    raw.unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |part: &str| percent_decode(&part.replace('+', " "));
            (plain(name), plain(value))
        })
        .collect()
}

/// A time as GitHub writes it, to the second.
#[must_use]
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Random bytes as lower-case hexadecimal digits.
#[must_use]
pub fn random_hex(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    // The aws-lc random source does not fail after start; zeros would only make equal tokens.
    let _ = rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut buffer);
    let mut text = String::with_capacity(bytes * 2);
    for byte in buffer {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_with_a_slash_survives_the_path() {
        let branch = "feature/über cool";
        assert_eq!(percent_encode("a/b"), "a%2Fb");
        assert_eq!(percent_decode(&percent_encode(branch)), branch);
        assert_eq!(percent_decode("100%"), "100%");
    }

    #[test]
    fn a_query_is_split_and_decoded() {
        let query = query(Some("name=a%20b&page=2&flag"));
        assert_eq!(query["name"], "a b");
        assert_eq!(query["page"], "2");
        assert_eq!(query["flag"], "");
    }
}
