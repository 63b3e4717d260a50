//! Pages of which a part is written from a table.
#![allow(clippy::unwrap_used, reason = "a part of tests")]

use std::path::Path;

/// With which such a part ends.
const END: &str = "<!-- generated: end -->\n";

/// The part of a page of `docs` that begins with this line is what the table says. `UPDATE_DOCS=1` writes it anew.
pub(crate) fn holds(page: &str, begin: &str, table: &str) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let path = docs.join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(begin).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let now = format!("{head}{begin}{table}{END}{tail}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    assert!(
        text == now,
        "docs/{page} is stale: UPDATE_DOCS=1 cargo test -p gate-report"
    );
}
