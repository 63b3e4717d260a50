//! Telling what happens as it happens, with times.

mod ahead;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use ahead::Ahead;

/// How often it is said that a part is still being built.
const STILL: Duration = Duration::from_secs(30);

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
    acts: usize,
    ahead: Ahead,
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
        self.told().events.push(Event {
            at,
            what: what.to_owned(),
        });
    }

    /// What there is to install and to build before anything can happen, each part with the time that it takes on two cores.
    pub fn expect(&self, parts: Vec<(String, Duration)>) {
        self.told().ahead.expect(parts);
    }

    /// Builds a part, and says meanwhile how far that is.
    pub fn building<T>(&self, part: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.part("building", part, work)
    }

    /// Does what there is to do for a part, and says meanwhile how far that is.
    pub fn part<T>(&self, doing: &str, part: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let at = self.told().ahead.at(part);
        let at = at.map_or_else(String::new, |at| format!(" ({at})"));
        self.step(&format!("{doing} {part}{at}"));
        let start = Instant::now();
        let (over, until) = mpsc::channel::<()>();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(move || {
                while until.recv_timeout(STILL) == Err(RecvTimeoutError::Timeout) {
                    self.step(&format!("  still {part}: {} s", start.elapsed().as_secs()));
                }
            });
            let done = work();
            drop(over);
            done
        });
        self.told().ahead.done(part, start.elapsed());
        outcome
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        // Plain values, none of them half-written.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new part of the story begins.
    pub fn act(&self, title: &str) {
        let number = {
            let mut told = self.told();
            told.acts += 1;
            told.acts
        };
        if !self.silent {
            eprintln!("\n== Act {number}: {title}\n");
        }
    }

    /// A command, and what it printed.
    pub fn quote(&self, command: &str, said: &str) {
        let lines = said
            .trim_end()
            .lines()
            .map(|line| format!("\n          | {line}"));
        self.step(&format!("$ {command}{}", lines.collect::<String>()));
    }

    /// A time worth keeping.
    pub fn measure(&self, name: &str, time: Duration) {
        let seconds = time.as_secs_f64();
        self.step(&format!("{name}: {seconds:.2} s"));
        let measure = Measure {
            name: name.to_owned(),
            seconds,
        };
        self.told().measures.push(measure);
    }

    /// What was told so far.
    pub fn events(&self) -> Vec<Event> {
        self.told().events.clone()
    }

    /// The times kept so far.
    pub fn measures(&self) -> Vec<Measure> {
        self.told().measures.clone()
    }

    /// Since when it is told.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Writes everything told as JSON: `{"seconds", "measures": […], "events": […]}`.
    pub fn write(&self, file: &Path) -> Result<()> {
        let told = self.told();
        let json = serde_json::json!({
            "seconds": self.start.elapsed().as_secs_f64(),
            "measures": told.measures,
            "events": told.events,
        });
        std::fs::write(file, format!("{json:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}
