//! Pools as the operator reports them.

use cudarunner_crds::{CudaRunner, OperatorStatus};
use jiff::Timestamp;

use crate::text::WIDTH;

/// The present of all tests: 2 March 2026, 09:30 UTC.
pub(crate) const NOW: Timestamp = Timestamp::constant(1_772_443_800, 0);

/// A pool of the namespace `ci`: `my-pool`, which has its troubles, or `spare`, which has none.
pub(crate) fn pool(name: &str) -> CudaRunner {
    let text = match name {
        "spare" => include_str!("fixtures/spare.json"),
        "my-pool" => include_str!("fixtures/my-pool.json"),
        other => panic!("no fixture {other}"),
    };
    serde_json::from_str(text).unwrap()
}

/// The same, with an operator in this namespace.
pub(crate) fn served(name: &str, namespace: &str) -> CudaRunner {
    let mut pool = pool(name);
    pool.status.get_or_insert_default().operator = Some(OperatorStatus {
        namespace: namespace.to_owned(),
        name: "operator".to_owned(),
    });
    pool
}

/// No line is longer than a terminal, but for addresses, which nobody can break.
pub(crate) fn fits(text: &str) {
    for line in text.lines().filter(|line| !line.contains("https://")) {
        assert!(line.chars().count() <= WIDTH, "{line}");
    }
}

/// The reference shows this very screen.
pub(crate) fn in_the_reference(screen: &str) {
    let page = include_str!("../../../../docs/reference/kubectl-cudarunner.md");
    assert!(
        page.contains(&format!("```text\n{screen}```\n")),
        "docs/reference/kubectl-cudarunner.md does not show:\n{screen}"
    );
}
