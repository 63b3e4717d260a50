//! How many runners wait at which time of day.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Runners that wait while a window of time is open. The clock on the wall of the time zone counts: a window from 02:30 to
/// 03:30 is open for half an hour on the day on which the clock goes from 02:00 to 03:00.
#[derive(KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.from != self.to").message("from and to are the same moment: a whole day is from 00:00 to 24:00"))]
pub struct ScheduleWindow {
    /// The days on which the window opens; every day where absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    pub days: Vec<Weekday>,
    /// When it opens, `HH:MM`.
    #[schemars(length(max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: String,
    /// When it closes, `HH:MM` up to `24:00`. Where that is not after `from`, on the next day.
    #[schemars(
        length(max = 5),
        regex(pattern = r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")
    )]
    pub to: String,
    /// The time zone by its name in the IANA database, such as `Europe/Berlin` or `UTC`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_+/-]+$"))]
    pub time_zone: String,
    /// Runners that wait while it is open, even when nothing is queued; at most `maxRunners`.
    #[schemars(range(min = 0, max = 10_000))]
    pub min_runners: i32,
}

/// A day of the week.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}
