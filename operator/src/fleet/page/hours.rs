//! GPU-hours: by pool and use, by repository, and as a table for a spreadsheet.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use maud::{Markup, html};

use super::{pool_link, time, whole};
use cuda_runner_plan::fleet::{Fleet, HoursRow};

/// GPU-seconds by use: gate, idle, job, lost.
type Uses = [u64; 4];

fn uses(row: &HoursRow) -> Uses {
    [
        row.gate_seconds,
        row.idle_seconds,
        row.job_seconds,
        row.lost_seconds,
    ]
}

/// The hours.
#[must_use]
pub fn hours(fleet: &Fleet) -> String {
    let rows = fleet.hours.iter().flat_map(|hours| &hours.rows);
    let by_pool = sums(rows.clone().map(|row| (row.pool.as_str(), uses(row))));
    let none = "no job";
    let by_repository =
        sums(rows.map(|row| (row.repository.as_deref().unwrap_or(none), uses(row))));
    let body = html! {
        h1 { "GPU-hours" }
        @match fleet.hours.as_ref() {
            Some(hours) if hours.runners > 0 => {
                p {
                    "Of the last " (hours.runners) " runners that ended"
                    @if let Some(from) = hours.from { ", the first at " (time(from)) }
                    ". " a href="hours.csv" { "As CSV" } ". A month's sum is in Prometheus, or in the log."
                }
                h2 { "By pool" }
                (table("Pool", &by_pool, pool_link))
                h2 { "By repository" }
                (table("Repository", &by_repository, |name| html! { (name) }))
            }
            _ => { p { "No runner has ended since this replica began to count." } }
        }
    };
    whole("GPU-hours", "hours", fleet, &body)
}

fn sums<'a>(rows: impl Iterator<Item = (&'a str, Uses)>) -> BTreeMap<&'a str, Uses> {
    let mut sums = BTreeMap::<&str, Uses>::new();
    for (name, uses) in rows {
        let sum = sums.entry(name).or_default();
        for (sum, more) in sum.iter_mut().zip(uses) {
            *sum = sum.saturating_add(more);
        }
    }
    sums
}

fn table(what: &str, sums: &BTreeMap<&str, Uses>, name: impl Fn(&str) -> Markup) -> Markup {
    html! {
        div.wide { table {
            thead { tr { th { (what) } th.n { "Gate" } th.n { "Idle" } th.n { "Job" } th.n { "Lost" } th.n { "All" } } }
            tbody { @for (of, uses) in sums { tr {
                td { (name(of)) }
                @for seconds in uses { td.n { (in_hours(*seconds)) } }
                td.n { (in_hours(uses.iter().fold(0, |all: u64, more| all.saturating_add(*more)))) }
            } } }
        } }
    }
}

/// With two digits behind the point.
fn in_hours(seconds: u64) -> String {
    let hundredths = seconds.saturating_add(18) / 36;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// One line for each pool and repository.
#[must_use]
pub fn hours_csv(fleet: &Fleet) -> String {
    let mut csv = String::from(
        "pool,repository,runners,gate_seconds,idle_seconds,job_seconds,lost_seconds\r\n",
    );
    for row in fleet.hours.iter().flat_map(|hours| &hours.rows) {
        let [gate, idle, job, lost] = uses(row);
        let (pool, repository) = (
            cell(&row.pool),
            cell(row.repository.as_deref().unwrap_or("")),
        );
        // A string takes everything.
        let _ = write!(
            csv,
            "{pool},{repository},{},{gate},{idle},{job},{lost}\r\n",
            row.runners
        );
    }
    csv
}

/// A text that a spreadsheet takes for a text, whatever it begins with.
fn cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        "'"
    } else {
        ""
    };
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_have_two_digits() {
        assert_eq!(
            [in_hours(0), in_hours(36), in_hours(3_600), in_hours(5_400)],
            ["0.00", "0.01", "1.00", "1.50"]
        );
    }

    #[test]
    fn a_cell_is_a_text_to_a_spreadsheet() {
        assert_eq!(cell("=HYPERLINK(\"x\")"), "\"'=HYPERLINK(\"\"x\"\")\"");
        assert_eq!(cell("acme/widgets"), "\"acme/widgets\"");
    }
}
