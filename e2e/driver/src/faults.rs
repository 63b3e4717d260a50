//! Faults on demand: what goes wrong at which call.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config::{Config, Crash, Fault};
use crate::errors::Outcome;

/// How often each fault's call was made, by the fault's index.
static CALLS_SEEN: LazyLock<Mutex<HashMap<usize, u32>>> = LazyLock::new(Mutex::default);

/// Lets whatever is to go wrong at this call go wrong. A code is the error.
pub(crate) fn strike(config: &Config, call: &str, device: Option<u32>) -> Outcome {
    for (index, fault) in config.faults.iter().enumerate() {
        if fault.call != call || fault.device.is_some_and(|wanted| Some(wanted) != device) {
            continue;
        }
        let seen = {
            let mut seen = CALLS_SEEN.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = seen.entry(index).or_default();
            *seen += 1;
            *seen
        };
        if fault.nth.is_none_or(|nth| nth == seen) && is_first(fault) {
            happen(config, fault, device)?;
        }
    }
    Ok(())
}

/// Whether no process was struck before, where the fault is to strike one only.
fn is_first(fault: &Fault) -> bool {
    fault.once.as_ref().is_none_or(|path| {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .is_ok()
    })
}

fn happen(config: &Config, fault: &Fault, device: Option<u32>) -> Outcome {
    if let Some(text) = &fault.says {
        print!("{text}");
        let _ = std::io::stdout().flush();
    }
    config.leave_behind(fault, device);
    thread::sleep(Duration::from_millis(fault.delay_ms));
    if fault.hang {
        loop {
            thread::park();
        }
    }
    match fault.crash {
        Some(Crash::Abort) => std::process::abort(),
        // SAFETY: that it is not safe is the point: the process dies here.
        Some(Crash::Segv) => unsafe { std::ptr::null_mut::<u32>().write_volatile(0) },
        Some(Crash::Oom) => config.run_out_of_memory(true),
        Some(Crash::NodeOom) => config.run_out_of_memory(false),
        None => {}
    }
    if let Some(code) = fault.exit {
        std::process::exit(code);
    }
    fault.code.map_or(Ok(()), Err)
}
