//! Time as the run's own processes have it: a machine that has other things to do makes nothing late.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::process::{self, Identity};

/// How often it is looked how the processes fare.
const LOOK: Duration = Duration::from_secs(2);
/// Less than this share of a second is no measure of anything: nobody had much to do.
const IDLE: f64 = 0.01;

/// A thread, by process and number.
type Thread = (u32, u32);

/// Nanoseconds for which a thread had a processor, and for which it waited for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    ran: u64,
    waited: u64,
}

/// A clock that goes slower as the processes of a cluster wait for a processor: at half its speed where they had one for
/// half of the time for which they wanted it.
#[derive(Clone)]
pub(super) struct Pace(Arc<Mutex<State>>);

struct State {
    begun: Instant,
    /// When it was last looked, what the clock showed then, and how fast it goes since.
    at: Instant,
    shown: Duration,
    speed: f64,
}

impl Pace {
    /// Follows the processes of the cluster in this folder, and this one, for as long as somebody reads the clock.
    pub(super) fn of(dir: &Path) -> Self {
        let now = Instant::now();
        let this = Self(Arc::new(Mutex::new(State {
            begun: now,
            at: now,
            shown: Duration::ZERO,
            speed: 1.0,
        })));
        let (state, dir) = (Arc::downgrade(&this.0), dir.to_owned());
        // A thread of its own: the runtime's have enough to do.
        std::thread::spawn(move || {
            let mut last = threads(&dir);
            loop {
                std::thread::sleep(LOOK);
                let now = threads(&dir);
                let Some(state) = state.upgrade() else { return };
                Self(state).goes(speed(&last, &now));
                last = now;
            }
        });
        this
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes(&self, speed: f64) {
        let mut state = self.state();
        state.shown = state.now();
        state.at = Instant::now();
        state.speed = speed;
    }

    /// What the clock shows.
    pub(super) fn now(&self) -> Duration {
        self.state().now()
    }

    /// How long ago the clock showed this.
    pub(super) fn since(&self, then: Duration) -> Duration {
        self.now().saturating_sub(then)
    }

    /// How fast it went so far, in hundredths of the usual.
    pub(super) fn percent(&self) -> f64 {
        let state = self.state();
        100.0 * state.now().as_secs_f64() / state.begun.elapsed().as_secs_f64().max(0.001)
    }
}

impl State {
    fn now(&self) -> Duration {
        self.shown + self.at.elapsed().mul_f64(self.speed)
    }
}

/// The share of the wanted time that threads have had between two looks.
fn speed(before: &BTreeMap<Thread, Spent>, after: &BTreeMap<Thread, Spent>) -> f64 {
    let mut sum = Spent::default();
    for (thread, now) in after {
        let then = before.get(thread).copied().unwrap_or_default();
        sum.ran += now.ran.saturating_sub(then.ran);
        sum.waited += now.waited.saturating_sub(then.waited);
    }
    let seconds = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64();
    let (ran, wanted) = (seconds(sum.ran), seconds(sum.ran + sum.waited));
    if wanted < IDLE * LOOK.as_secs_f64() {
        return 1.0;
    }
    ran / wanted
}

fn threads(dir: &Path) -> BTreeMap<Thread, Spent> {
    let own = Identity::own().ok();
    let all = process::marked(dir).into_iter().chain(own);
    all.flat_map(|process| {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid));
        tasks
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(move |task| {
                let thread = task.file_name().to_str()?.parse().ok()?;
                let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
                Some(((process.pid, thread), spent(&text)?))
            })
    })
    .collect()
}

/// The first two fields of `/proc/PID/task/TID/schedstat` (`Documentation/scheduler/sched-stats.rst`).
fn spent(text: &str) -> Option<Spent> {
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    let (Some(Ok(ran)), Some(Ok(waited))) = (fields.next(), fields.next()) else {
        return None;
    };
    Some(Spent { ran, waited })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(all: &[(Thread, &str)]) -> BTreeMap<Thread, Spent> {
        let spent = |text| spent(text).unwrap();
        all.iter().map(|(t, text)| (*t, spent(text))).collect()
    }

    #[test]
    fn the_clock_goes_as_fast_as_processes_get_a_processor() {
        let before = look(&[((1, 1), "1000000000 500000000 7")]);
        for (after, speed_then) in [
            // Nobody had to wait.
            ([((1, 1), "2000000000 500000000 9")].as_slice(), 1.0),
            // As long as it ran, and three times as long.
            (&[((1, 1), "2000000000 1500000000 9")], 0.5),
            (&[((1, 1), "1100000000 800000000 9")], 0.25),
            // A new thread counts from its beginning; one that ended does not count.
            (&[((2, 2), "300000000 100000000 1")], 0.75),
            // Nobody had anything to do.
            (&[((1, 1), "1000001000 500900000 9")], 1.0),
            (&[], 1.0),
        ] {
            let speed = speed(&before, &look(after));
            assert!((speed - speed_then).abs() < 1e-9, "{after:?}: {speed}");
        }
        assert_eq!(spent(""), None);
        assert_eq!(spent("1 x 3"), None);
    }

    #[test]
    fn the_clock_never_goes_back() {
        let pace = Pace::of(Path::new("/nowhere"));
        let mut last = Duration::ZERO;
        for speed in [1.0, 0.1, 0.9, 0.0] {
            pace.goes(speed);
            std::thread::sleep(Duration::from_millis(2));
            assert!(pace.now() >= last);
            last = pace.now();
        }
        assert!(pace.percent() <= 100.0);
    }
}
