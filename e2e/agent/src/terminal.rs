//! What the agent prints, and the copy of it in its own log.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;

static LOG: Mutex<Option<File>> = Mutex::new(None);

/// Opens `_diag/Runner_YYYYMMDD-HHMMSS-utc.log`, or that of another process.
pub(crate) fn open_log(root: &Path, process: &str) -> Result<()> {
    let folder = root.join("_diag");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let now = Timestamp::now().strftime("%Y%m%d-%H%M%S-utc.log");
    let path = folder.join(format!("{process}_{now}"));
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("writing {}", path.display()))?;
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    Ok(())
}

/// A time as the agent prints it.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// One line in the log only.
pub(crate) fn trace(level: &str, source: &str, text: &str) {
    if let Some(file) = LOG.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        // A full disk must not end a job.
        let _ = writeln!(file, "[{} {level} {source}] {text}", now());
    }
}

/// One line for the terminal and the log.
pub(crate) fn line(text: &str) {
    println!("{text}");
    trace("INFO", "Terminal", &format!("WRITE LINE: {text}"));
}

/// One line with the time before it.
pub(crate) fn event(text: &str) {
    line(&format!("{}: {text}", now()));
}

/// A fault.
pub(crate) fn error(text: &str) {
    eprintln!("{text}");
    trace("ERR ", "Terminal", &format!("WRITE ERROR: {text}"));
}
