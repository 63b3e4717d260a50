//! The real agent runs a job in a process of its own, `Runner.Worker`. Here a thread runs it, and a process by that name
//! is there for as long: who looks into `/proc` sees what the real agent shows.

use std::{
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Result;

use crate::code;

/// The process; ends when this is dropped, or with the agent.
#[derive(Debug)]
pub(crate) struct Worker(Option<Child>);

impl Worker {
    /// Starts it, where the image has it.
    pub(crate) fn start(root: &Path) -> Self {
        let child = Command::new(root.join("bin/Runner.Worker"))
            .arg("worker")
            .env_clear()
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn();
        Self(child.ok())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Its standard input is closed first.
            let _ = child.wait();
        }
    }
}

/// The process itself.
pub(crate) fn wait() -> Result<u8> {
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(code::SUCCESS)
}
