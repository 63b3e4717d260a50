//! SIGINT and SIGTERM.

use std::{sync::mpsc::Sender, thread};

use anyhow::{Context as _, Result};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

/// Sends `event` for each of the two signals, from a thread of its own.
pub(crate) fn watch<T: Clone + Send + 'static>(sender: Sender<T>, event: T) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("listening for signals")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if sender.send(event.clone()).is_err() {
                return;
            }
        }
    });
    Ok(())
}
