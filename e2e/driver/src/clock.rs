//! How long the process was in the driver, for a benchmark of what is not.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::config::CONFIG;

/// Where the time goes, if anybody asked for it.
static FILE: LazyLock<Option<File>> = LazyLock::new(|| {
    let path = CONFIG.clock.as_ref()?;
    File::create(path).ok()
});

/// Nanoseconds in all calls so far.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// A call from its begin to its end.
pub(crate) struct Call(Instant);

impl Call {
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(file) = FILE.as_ref() {
            let spent = u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let all = SPENT.fetch_add(spent, Ordering::Relaxed) + spent;
            // Always the same length, so that it overwrites what was there.
            let _ = file.write_all_at(format!("{all:020}").as_bytes(), 0);
        }
    }
}
