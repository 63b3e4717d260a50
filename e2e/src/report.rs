//! Telling what happens as it happens, with times.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One thing that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Seconds since the story began.
    pub at: f64,
    /// What happened.
    pub what: String,
}

/// A named time that the story was to show.
#[derive(Clone, Debug, Serialize)]
pub struct Measure {
    /// What was measured.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

#[derive(Debug, Default)]
struct Told {
    events: Vec<Event>,
    measures: Vec<Measure>,
}

/// Prints each step with the time since the start, on standard error so that standard output stays for results.
#[derive(Clone, Debug)]
pub struct Story {
    start: Instant,
    silent: bool,
    told: Arc<Mutex<Told>>,
}

impl Default for Story {
    /// A story that is told.
    fn default() -> Self {
        Self {
            start: Instant::now(),
            silent: false,
            told: Arc::default(),
        }
    }
}

impl Story {
    /// A story that nobody hears.
    pub fn silent() -> Self {
        Self {
            silent: true,
            ..Self::default()
        }
    }

    /// Something happens now.
    pub fn step(&self, what: &str) {
        let at = self.start.elapsed().as_secs_f64();
        if !self.silent {
            eprintln!("{at:7.1}s  {what}");
        }
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .events
            .push(Event {
                at,
                what: what.to_owned(),
            });
    }

    /// A time worth keeping.
    pub fn measure(&self, name: &str, time: Duration) {
        let seconds = time.as_secs_f64();
        self.step(&format!("{name}: {seconds:.2} s"));
        let measure = Measure {
            name: name.to_owned(),
            seconds,
        };
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .measures
            .push(measure);
    }

    /// The times kept so far.
    pub fn measures(&self) -> Vec<Measure> {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .measures
            .clone()
    }

    /// Since when it is told.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Writes everything told as JSON: `{"seconds", "measures": […], "events": […]}`.
    pub fn write(&self, file: &Path) -> Result<()> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let json = serde_json::json!({
            "seconds": self.start.elapsed().as_secs_f64(),
            "measures": told.measures,
            "events": told.events,
        });
        std::fs::write(file, format!("{json:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}
