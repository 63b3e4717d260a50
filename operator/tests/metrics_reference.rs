//! `docs/reference/metrics.md` holds what the catalogue holds. `UPDATE_DOCS=1` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use cuda_runner_operator::metrics::catalogue;

const BEGIN: &str = "<!-- generated from the catalogue of metrics: begin -->\n";
const END: &str = "<!-- generated: end -->\n";

#[test]
fn the_reference_is_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let now = format!("{head}{BEGIN}{}{END}{tail}", table());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    assert!(
        text == now,
        "docs/reference/metrics.md is stale: UPDATE_DOCS=1 cargo test -p cuda-runner-operator"
    );
}

fn table() -> String {
    let mut text = String::from("\n| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for metric in &catalogue::ALL {
        let labels: Vec<String> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        let labels = match labels.as_slice() {
            [] => "–".to_owned(),
            some => some.join(", "),
        };
        // A string takes everything.
        let _ = writeln!(
            text,
            "| `{}` | {} | {labels} | {} |",
            metric.name(),
            metric.kind.name(),
            metric.help
        );
    }
    text.push('\n');
    text
}
