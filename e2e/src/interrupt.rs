//! Ctrl-C and SIGTERM: what this process made goes with it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::{process::Identity, removal};

/// Clusters and programs that end with this process.
#[derive(Debug, Default)]
struct Owned {
    clusters: BTreeSet<PathBuf>,
    program: Option<Identity>,
}

static OWNED: Mutex<Option<Owned>> = Mutex::new(None);

fn owned() -> MutexGuard<'static, Option<Owned>> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this cluster ends with us.
pub fn own(dir: &Path) {
    owned()
        .get_or_insert_default()
        .clusters
        .insert(dir.to_path_buf());
}

/// It no longer does: it is gone, or it is to stay.
pub fn disown(dir: &Path) {
    owned().get_or_insert_default().clusters.remove(dir);
}

/// The program that runs in the foreground.
pub fn foreground(program: Option<Identity>) {
    owned().get_or_insert_default().program = program;
}

/// Watches for signals, for as long as the runtime lives.
pub fn watch() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let number = tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
        };
        eprintln!("interrupted: taking down what was started");
        // Kept until the end, so that nothing is started any more.
        let mut guard = owned();
        let all = guard.get_or_insert_default();
        if let Some(program) = all.program {
            program.signal(Signal::TERM);
        }
        for dir in &all.clusters {
            if let Err(error) = removal::remove(dir) {
                eprintln!("error: {error:#}; `cargo e2e down --all` tries again");
            }
        }
        std::process::exit(128 + number);
    });
    Ok(())
}
