//! `scheduledOverrides` of an autoscaler, as windows of time.
//!
//! While an override is active, its number is ARC's minimum, be it larger or smaller than the usual one; of several that are
//! active the first counts. A CudaRunner takes the largest of its minimum and of the windows that are open. So the week is
//! laid out as ARC has it: the smallest number of it is the minimum, and where there is a larger one there is a window.

use cudarunner_crds::{ScheduleWindow, Weekday};
use jiff::fmt::temporal::Pieces;
use jiff::tz::Offset;

use super::fields::{Fields, Notes};

/// In minutes, as everything here.
const DAY: i64 = 24 * 60;
const WEEK: i64 = 7 * DAY;
/// From Monday to 1970-01-01, which was a Thursday.
const BEFORE_THE_EPOCH: i64 = 3 * DAY;
/// The most windows that a CudaRunner may have.
const MOST: usize = 20;
const DAYS: [Weekday; 7] = [
    Weekday::Monday,
    Weekday::Tuesday,
    Weekday::Wednesday,
    Weekday::Thursday,
    Weekday::Friday,
    Weekday::Saturday,
    Weekday::Sunday,
];

/// An override that comes back each day or each week.
#[derive(Debug)]
pub(super) struct Override {
    /// Seconds since 1970, of the first time.
    start: i64,
    end: i64,
    /// Minutes until it comes back.
    every: i64,
    offset: Offset,
    /// None: the usual number, whatever a later override says.
    min: Option<i64>,
}

/// Those overrides that come back each day or week. Of others it is said that they do not.
pub(super) fn read(given: &mut Fields, notes: &mut Notes) -> Vec<Override> {
    let path = given.path("scheduledOverrides");
    let all = given.objects("scheduledOverrides").into_iter().enumerate();
    let read = all.filter_map(|(number, one)| {
        let path = format!("{path}[{number}]");
        let read = read_one(Fields::new(path.clone(), one), notes);
        read.map_err(|why| notes.say(&path, why)).ok()
    });
    let read: Vec<_> = read.collect();
    if !read.is_empty() {
        notes.say(&path, "they are spec.scaling.schedule now, from today on, at the offset from UTC that they are written with: where the clock is moved twice a year, write the name of your time zone into timeZone");
    }
    read
}

fn read_one(mut given: Fields, notes: &mut Notes) -> Result<Override, &'static str> {
    let mut rule = given.object("recurrenceRule");
    let times = ["startTime", "endTime"].map(|field| given.text(field, notes));
    let min = given.number("minReplicas", notes);
    let path = given.path("minReplicas");
    let min = min.map(|min| super::at_most(min, &path, notes));
    let frequency = rule.text("frequency", notes);
    let until = rule.take("untilTime");
    rule.end(notes);
    given.end(notes);
    let every = match frequency.as_deref() {
        Some("Daily") => DAY,
        Some("Weekly") => WEEK,
        _ => {
            return Err(
                "a window of spec.scaling.schedule comes back each day or each week: left out, and `kubectl patch` changes minRunners at other times",
            );
        }
    };
    if until.is_some() {
        return Err(
            "a window of spec.scaling.schedule has no last day: left out; add it by hand if its untilTime is yet to come, and remove it then",
        );
    }
    let [start, end] = times.map(|time| moment(&time?));
    let (Some((start, offset)), Some((end, _))) = (start, end) else {
        return Err("startTime and endTime are no two times with an offset: left out");
    };
    if !(1..=every * 60).contains(&end.saturating_sub(start)) {
        return Err("it ends before it starts, or after it has come back: left out, as ARC does");
    }
    Ok(Override {
        start,
        end,
        every,
        offset,
        min,
    })
}

/// Seconds since 1970, and the offset from UTC with which the time is written.
fn moment(text: &str) -> Option<(i64, Offset)> {
    let pieces = Pieces::parse(text).ok()?;
    let offset = pieces.to_numeric_offset()?;
    let local = pieces.date().to_datetime(pieces.time()?);
    Some((offset.to_timestamp(local).ok()?.as_second(), offset))
}

/// The minimum and the windows that have the same effect, where the usual minimum is this.
pub(super) fn windows(
    overrides: &[Override],
    usual: i64,
    notes: &mut Notes,
) -> (i64, Vec<ScheduleWindow>) {
    let (min, windows) = layout(overrides, usual);
    if windows.len() > MOST {
        notes.say(
            "spec.scheduledOverrides",
            "these are more than the 20 windows that spec.scaling.schedule may have: left out",
        );
        return (usual, vec![]);
    }
    (min, windows)
}

fn layout(overrides: &[Override], usual: i64) -> (i64, Vec<ScheduleWindow>) {
    let (hours, zone) = zone(overrides);
    let week = week(overrides, usual, hours);
    let lowest = week.iter().copied().min().unwrap_or(usual);
    let mut windows: Vec<ScheduleWindow> = vec![];
    for (from, to, min) in runs(&week).into_iter().filter(|run| run.2 > lowest) {
        for (day, from, to) in days(from, to) {
            let clock = |minute: i64| format!("{:02}:{:02}", minute / 60, minute % 60);
            let window = ScheduleWindow {
                days: vec![],
                from: clock(from),
                to: clock(to),
                time_zone: zone.clone(),
                min_runners: i32::try_from(min).unwrap_or(i32::MAX),
            };
            let alike = |other: &&mut ScheduleWindow| {
                let other = (&other.from, &other.to, other.min_runners);
                other == (&window.from, &window.to, window.min_runners)
            };
            match windows.iter_mut().find(alike) {
                Some(same) => same.days.push(day),
                None => windows.push(ScheduleWindow {
                    days: vec![day],
                    ..window
                }),
            }
        }
    }
    for window in &mut windows {
        window
            .days
            .sort_by_key(|day| DAYS.iter().position(|d| d == day));
        if window.days.len() == DAYS.len() {
            // Without any, it is every day.
            window.days.clear();
        }
    }
    (lowest, windows)
}

/// The offset from UTC that all overrides have, in whole hours, and the zone of the IANA database with it; or UTC.
fn zone(overrides: &[Override]) -> (i64, String) {
    let mut offsets = overrides.iter().map(|o| i64::from(o.offset.seconds()));
    let first = offsets.next().unwrap_or_default();
    let hours = first / 3600;
    if first % 3600 != 0 || offsets.any(|other| other != first) || !(-12..=14).contains(&hours) {
        return (0, "UTC".to_owned());
    }
    // Their signs are those of POSIX: east is minus.
    match hours {
        0 => (0, "UTC".to_owned()),
        east @ 1.. => (east, format!("Etc/GMT-{east}")),
        west => (west, format!("Etc/GMT+{}", -west)),
    }
}

/// The minimum in each minute of the week, from Monday on.
fn week(overrides: &[Override], usual: i64, hours: i64) -> Vec<i64> {
    let local = |seconds: i64| seconds + hours * 3600;
    let times: Vec<_> = overrides
        .iter()
        .map(|one| {
            let start = local(one.start).div_euclid(60);
            // The last second of a day stands for its end.
            let end = (local(one.end) + 59).div_euclid(60);
            (start + BEFORE_THE_EPOCH, end - start, one)
        })
        .collect();
    let at = |minute: i64| {
        let mut active = times
            .iter()
            .filter(|(start, length, one)| (minute - start).rem_euclid(one.every) < *length);
        active.next().and_then(|(.., one)| one.min).unwrap_or(usual)
    };
    (0..WEEK).map(at).collect()
}

/// The stretches of a week with one number: from, to, and the number. The last one may end in the next week.
fn runs(week: &[i64]) -> Vec<(i64, i64, i64)> {
    let at = |minute: i64| {
        usize::try_from(minute.rem_euclid(WEEK))
            .ok()
            .and_then(|m| week.get(m))
    };
    let changes: Vec<i64> = (0..WEEK).filter(|m| at(*m) != at(m - 1)).collect();
    let after = changes.iter().skip(1).copied();
    let after = after.chain(changes.first().map(|first| first + WEEK));
    let runs = changes.iter().copied().zip(after);
    runs.filter_map(|(from, to)| Some((from, to, *at(from)?)))
        .collect()
}

/// A stretch in windows, which close on the next day at the latest: the day, when it opens, and when it closes.
fn days(mut from: i64, to: i64) -> Vec<(Weekday, i64, i64)> {
    let mut all = vec![];
    while from < to {
        let midnight = (from / DAY + 1) * DAY;
        let end = if to - from < DAY { to } else { midnight };
        let today = usize::try_from(from.rem_euclid(WEEK) / DAY).unwrap_or_default();
        let closes = if end == midnight { DAY } else { end % DAY };
        all.extend(DAYS.get(today).map(|day| (*day, from % DAY, closes)));
        from = end;
    }
    all
}

#[cfg(test)]
mod tests {
    use cuda_runner_plan::schedule;
    use jiff::Timestamp;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn overrides(all: &serde_json::Value, notes: &mut Notes) -> Vec<Override> {
        let given = json!({"scheduledOverrides": all});
        let serde_json::Value::Object(given) = given else {
            unreachable!()
        };
        let mut given = Fields::new("spec".to_owned(), given);
        read(&mut given, notes)
    }

    fn taken(all: &serde_json::Value, usual: i64) -> (i64, serde_json::Value) {
        let (min, windows) = layout(&overrides(all, &mut Notes::default()), usual);
        (min, json!(windows))
    }

    #[test]
    fn the_week_is_that_of_the_overrides() {
        let weekly = json!({"frequency": "Weekly"});
        let daily = json!({"frequency": "Daily"});
        // Nobody from Saturday to Monday, as in ARC's documentation
        let weekend = json!([{
            "startTime": "2021-05-01T00:00:00+09:00", "endTime": "2021-05-03T00:00:00+09:00",
            "recurrenceRule": weekly, "minReplicas": 0,
        }]);
        let days = json!(["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]);
        let work = json!([{"days": days, "from": "00:00", "to": "24:00", "timeZone": "Etc/GMT-9", "minRunners": 1}]);
        assert_eq!(taken(&weekend, 1), (0, work));
        // More in the night, over midnight
        let night = json!([{
            "startTime": "2024-03-04T22:00:00-05:00", "endTime": "2024-03-05T05:59:59-05:00",
            "recurrenceRule": daily, "minReplicas": 9,
        }]);
        let window =
            json!([{"from": "22:00", "to": "06:00", "timeZone": "Etc/GMT+5", "minRunners": 9}]);
        assert_eq!(taken(&night, 2), (2, window));
        // Both, with different offsets, and the first counts
        let both = json!([weekend[0], night[0]]);
        let (min, windows) = taken(&both, 1);
        assert_eq!(min, 0);
        assert!(
            windows
                .as_array()
                .unwrap()
                .iter()
                .all(|w| w["timeZone"] == "UTC")
        );
        // Without a number it is the usual one, whatever a later override says
        let usual = json!([{
            "startTime": "2024-03-04T00:00:00Z", "endTime": "2024-03-05T00:00:00Z", "recurrenceRule": daily,
        }, night[0]]);
        assert_eq!(taken(&usual, 2), (2, json!([])));
    }

    #[test]
    fn what_does_not_come_back_each_day_or_week_is_told() {
        let (start, end) = ("2024-03-04T08:00:00Z", "2024-03-04T18:00:00Z");
        for (rule, end, words) in [
            (json!({}), end, "each day or each week"),
            (
                json!({"frequency": "Monthly"}),
                end,
                "each day or each week",
            ),
            (json!({"frequency": "Yearly"}), end, "each day or each week"),
            (
                json!({"frequency": "Daily", "untilTime": end}),
                end,
                "no last day",
            ),
            (
                json!({"frequency": "Daily"}),
                "2024-03-06T08:00:00Z",
                "after it has come back",
            ),
            (
                json!({"frequency": "Daily"}),
                start,
                "ends before it starts",
            ),
            (json!({"frequency": "Daily"}), "18:00", "no two times"),
        ] {
            let mut notes = Notes::default();
            let one = json!([{"startTime": start, "endTime": end, "minReplicas": 3, "recurrenceRule": rule}]);
            assert!(overrides(&one, &mut notes).is_empty(), "{one}");
            let notes = notes.into_lines();
            let said = notes
                .iter()
                .any(|n| n.starts_with("spec.scheduledOverrides[0]: ") && n.contains(words));
            assert!(said, "{one}: {notes:?}");
        }
    }

    proptest! {
        /// At any time the windows ask for what ARC's overrides do.
        #[test]
        fn the_windows_ask_for_what_the_overrides_do(
            usual in 0..4_i64,
            all in prop::collection::vec((0..WEEK, 1..=WEEK, any::<bool>(), -12..=14_i8, prop::option::of(0..4_i64)), 1..4),
            moments in prop::collection::vec(0..4 * WEEK, 20),
        ) {
            let monday: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
            let all: Vec<Override> = all.into_iter().map(|(start, length, daily, offset, min)| {
                let start = monday.as_second() + start * 60;
                let every = if daily { DAY } else { WEEK };
                let offset = Offset::constant(offset);
                Override { start, end: start + length.min(every) * 60, every, offset, min }
            }).collect();
            let (lowest, windows) = layout(&all, usual);
            let windows = schedule::read(&windows).unwrap();
            // At any moment, and at and before each change
            let edges = all.iter().flat_map(|one| [one.start, one.end]);
            let edges = edges.flat_map(|edge| [edge - 60, edge]);
            let moments = moments.into_iter().map(|minute| monday.as_second() + minute * 60);
            for moment in edges.chain(moments) {
                let now = Timestamp::from_second(moment + 3 * WEEK * 60).unwrap();
                let active = all.iter().find(|one| {
                    let since = now.as_second() - one.start;
                    since.rem_euclid(one.every * 60) < one.end - one.start
                });
                let wanted = active.and_then(|one| one.min).unwrap_or(usual);
                let found = schedule::minimum(&windows, now).max(usize::try_from(lowest).unwrap());
                prop_assert_eq!(found, usize::try_from(wanted).unwrap(), "at {}", now);
            }
        }
    }
}
