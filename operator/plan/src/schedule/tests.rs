//! Given the time of day somewhere, then so many runners wait, and the pool is looked at again when that may change.

use jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::fixture::{observed, resource};
use crate::model::pool::{Pool, SpecError};
use crate::reason::Reason;

fn windows(all: Value) -> Vec<ScheduleWindow> {
    serde_json::from_value(all).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn window(days: &[&str], from: &str, to: &str, zone: &str, min: i32) -> Value {
    json!({"days": days, "from": from, "to": to, "timeZone": zone, "minRunners": min})
}

#[test]
fn the_clock_on_the_wall_counts() {
    let weekdays = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"];
    let office = window(&weekdays, "08:00", "18:00", "Europe/Berlin", 4);
    let night = window(&["Friday"], "22:00", "06:00", "Europe/Berlin", 6);
    let short = window(&[], "02:30", "03:30", "Europe/Berlin", 2);
    let late = window(&["Sunday"], "20:00", "24:00", "America/New_York", 3);
    let whole = window(&["Monday"], "00:00", "24:00", "Asia/Kathmandu", 1);
    for (name, window, moment, expected) in [
        // 2026-11-27 is a Friday, in winter; 2026-07-03 one in summer
        ("before", &office, "2026-11-27T06:59:59Z", 0),
        ("opens in winter", &office, "2026-11-27T07:00:00Z", 4),
        ("opens in summer", &office, "2026-07-03T06:00:00Z", 4),
        ("closes", &office, "2026-11-27T17:00:00Z", 0),
        ("at the weekend", &office, "2026-11-28T09:00:00Z", 0),
        ("begins on Friday", &night, "2026-11-27T21:00:00Z", 6),
        ("past midnight", &night, "2026-11-28T04:59:59Z", 6),
        ("ends on Saturday", &night, "2026-11-28T05:00:00Z", 0),
        ("not the night before", &night, "2026-11-27T03:00:00Z", 0),
        ("not the night after", &night, "2026-11-28T22:00:00Z", 0),
        // Until midnight, which is 05:00Z on Monday there
        ("to the end", &late, "2026-11-30T04:59:59Z", 3),
        ("and no longer", &late, "2026-11-30T05:00:00Z", 0),
        // A quarter past the hour: Kathmandu is 5:45 ahead
        ("a whole day", &whole, "2026-11-29T18:15:00Z", 1),
        ("the day before", &whole, "2026-11-29T18:14:59Z", 0),
        ("its last second", &whole, "2026-11-30T18:14:59Z", 1),
        // On 2026-03-29 Berlin's clock goes from 02:00 to 03:00, at 01:00Z
        ("there is no 02:30", &short, "2026-03-29T00:59:59Z", 0),
        ("after the gap", &short, "2026-03-29T01:00:00Z", 2),
        ("half an hour", &short, "2026-03-29T01:30:00Z", 0),
        // On 2026-10-25 it goes from 03:00 to 02:00, at 01:00Z: 02:30 comes twice
        ("the first 02:30", &short, "2026-10-25T00:30:00Z", 2),
        ("02:00 again", &short, "2026-10-25T01:00:00Z", 0),
        ("the second 02:30", &short, "2026-10-25T01:30:00Z", 2),
        ("03:30", &short, "2026-10-25T02:30:00Z", 0),
    ] {
        let read = read(&windows(json!([window]))).unwrap();
        assert_eq!(minimum(&read, at(moment)), expected, "{name}");
    }
}

#[test]
fn of_windows_that_overlap_the_largest_counts() {
    let all = json!([
        window(&[], "08:00", "18:00", "UTC", 2),
        window(&[], "09:00", "10:00", "UTC", 5),
        window(&[], "09:30", "20:00", "UTC", 3),
    ]);
    let read = read(&windows(all)).unwrap();
    for (hour, expected) in [
        ("07", 0),
        ("08", 2),
        ("09", 5),
        ("10", 3),
        ("19", 3),
        ("20", 0),
    ] {
        let moment = at(&format!("2026-11-27T{hour}:00:00Z"));
        assert_eq!(minimum(&read, moment), expected, "{hour}");
    }
}

#[test]
fn what_is_no_time_zone_is_named() {
    let all = json!([
        window(&[], "08:00", "18:00", "UTC", 2),
        window(&[], "08:00", "18:00", "Europe/Berln", 2),
    ]);
    let mut resource = resource();
    resource.spec.scaling = Some(
        serde_json::from_value(json!({"maxRunners": 8, "source": "Poll", "schedule": all}))
            .unwrap(),
    );
    let error: SpecError = Pool::read(&resource, false).spec.unwrap_err();
    assert_eq!(error.reason(), Reason::InvalidSchedule);
    let error = error.to_string();
    assert!(
        error.starts_with("spec.scaling.schedule[1].timeZone: Europe/Berln is no"),
        "{error}"
    );
}

#[test]
fn a_pool_has_what_the_time_of_day_asks_for_and_wakes_when_that_changes() {
    let mut resource = resource();
    let open = window(&[], "08:00", "18:00", "UTC", 12);
    let scaling = json!({"maxRunners": 4, "source": "Poll", "schedule": [open]});
    resource.spec.scaling = Some(serde_json::from_value(scaling).unwrap());
    let mut pool = Pool::read(&resource, false);
    pool.status.observed_generation = Some(1);
    let planned = |moment: &str| {
        let mut observed = observed(vec![]);
        let now = at(moment);
        observed.listing.as_mut().unwrap().at = now;
        observed.queue = Some(std::sync::Arc::new(crate::Queue {
            at: now,
            asked: None,
            jobs: Ok(Some(vec![].into())),
            registered: Some([].into()),
            shut_out: None,
        }));
        crate::plan(&pool, &observed, now)
    };
    // Never beyond maxRunners, whatever an older CRD let in
    assert_eq!(planned("2026-11-27T12:00:00Z").desired, 4);
    assert_eq!(planned("2026-11-27T20:00:00Z").desired, 0);
    let soon = planned("2026-11-27T07:59:50Z");
    assert_eq!(
        (soon.desired, soon.wake),
        (0, Some(SignedDuration::from_secs(10)))
    );
}

proptest! {
    /// Whoever looks again at each moment that is told misses nothing.
    #[test]
    fn no_change_comes_before_the_moment_that_is_told(
        minute in 0_i64..60 * 24 * 366,
        step in 1_i64..60 * 30,
        from in 0_u8..48, to in 0_u8..48,
        zone in prop::sample::select(vec!["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]),
        day in prop::sample::select(vec!["Monday", "Saturday", "Sunday"]),
    ) {
        prop_assume!(from != to);
        let time = |half: u8| format!("{:02}:{:02}", half / 2, half % 2 * 30);
        let all = json!([window(&[day], &time(from), &time(to), zone, 1)]);
        let read = read(&windows(all)).unwrap();
        let now = at("2026-01-01T00:00:00Z") + SignedDuration::from_mins(minute);
        let next = next_change(&read, now).unwrap();
        prop_assert!(next > now);
        let later = now + SignedDuration::from_mins(step);
        if later < next {
            prop_assert_eq!(minimum(&read, now), minimum(&read, later));
        }
    }
}
