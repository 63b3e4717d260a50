//! Figures, and the table that they make.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};

/// What a figure should not exceed, by its median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Budget {
    /// So many times the floor.
    TimesFloor(f64),
    /// So much.
    AtMost(f64),
}

/// One row of the table.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    /// What was measured.
    pub(super) name: String,
    /// In what it is measured.
    pub(super) unit: &'static str,
    /// The product.
    pub(super) ours: Vec<f64>,
    /// The least that it could be, measured in the same run; empty where that is nothing.
    pub(super) floor: Vec<f64>,
    /// Its budget, where it has one.
    pub(super) budget: Option<Budget>,
}

/// The smallest, the middle and the largest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { min, median, max })
    }
}

impl Figure {
    /// Our median by the floor's.
    fn ratio(&self) -> Option<f64> {
        let (ours, floor) = (Spread::of(&self.ours)?, Spread::of(&self.floor)?);
        (floor.median > 0.0).then(|| ours.median / floor.median)
    }

    /// `None` without a budget, and where the floor alone is over it: a machine that slow cannot show it.
    fn is_met(&self) -> Option<bool> {
        match self.budget? {
            Budget::TimesFloor(times) => Some(self.ratio()? <= times),
            Budget::AtMost(most) => {
                let is_met = Spread::of(&self.ours)?.median <= most;
                let can_be_met = Spread::of(&self.floor).is_none_or(|floor| floor.median <= most);
                (is_met || can_be_met).then_some(is_met)
            }
        }
    }

    fn cells(&self) -> [String; 7] {
        [
            self.name.clone(),
            self.unit.to_owned(),
            spread(&self.ours),
            spread(&self.floor),
            self.ratio()
                .map_or_else(nothing, |ratio| format!("{ratio:.2}")),
            self.budget.map_or_else(nothing, |budget| match budget {
                Budget::TimesFloor(times) => format!("≤ {times} × floor"),
                Budget::AtMost(most) => format!("≤ {most}"),
            }),
            self.is_met()
                .map_or_else(nothing, |met| if met { "yes" } else { "NO" }.to_owned()),
        ]
    }

    /// With every sample.
    pub(super) fn json(&self) -> Value {
        let summary = |samples: &[f64]| {
            Spread::of(samples).map(
                |s| json!({"min": s.min, "median": s.median, "max": s.max, "samples": samples}),
            )
        };
        let budget = self.budget.map(|budget| match budget {
            Budget::TimesFloor(times) => json!({"timesFloor": times}),
            Budget::AtMost(most) => json!({"atMost": most}),
        });
        json!({
            "name": self.name, "unit": self.unit, "ours": summary(&self.ours), "floor": summary(&self.floor),
            "ratio": self.ratio(), "budget": budget, "met": self.is_met(),
        })
    }
}

fn nothing() -> String {
    "–".to_owned()
}

/// Min, median and max; one number where they are the same.
fn spread(samples: &[f64]) -> String {
    match Spread::of(samples) {
        None => nothing(),
        Some(Spread { min, median, max }) => {
            let [min, median, max] = [min, median, max].map(shown);
            if min == max {
                median
            } else {
                format!("{min} / {median} / {max}")
            }
        }
    }
}

/// As many digits as are worth reading.
fn shown(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// The sample below which so many of a hundred are, in milliseconds.
pub(super) fn percentile(samples: &[Duration], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted
        .get(at)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// A count, as a figure has it.
pub(super) fn number(count: usize) -> Result<f64> {
    Ok(f64::from(u32::try_from(count)?))
}

/// The figures as a table in Markdown, its columns aligned.
pub(super) fn table(figures: &[Figure]) -> String {
    let head = [
        "what",
        "unit",
        "ours: min / median / max",
        "floor",
        "ratio",
        "budget",
        "met",
    ]
    .map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head)
        .chain(figures.iter().map(Figure::cells))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        // Writing to a string cannot fail.
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for width in widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: &[f64], floor: &[f64], budget: Option<Budget>) -> Figure {
        Figure {
            name: "row".to_owned(),
            unit: "s",
            ours: ours.to_vec(),
            floor: floor.to_vec(),
            budget,
        }
    }

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        let spread = |samples: &[f64]| Spread::of(samples).map(|s| (s.min, s.median, s.max));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[2.0]), Some((2.0, 2.0, 2.0)));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some((1.0, 2.0, 9.0)));
        assert_eq!(spread(&[4.0, 1.0, 9.0, 2.0]), Some((1.0, 3.0, 9.0)));
    }

    #[test]
    fn a_budget_is_held_against_medians() {
        let ratio = Some(Budget::TimesFloor(1.25));
        // The largest is far off, and no matter.
        assert_eq!(
            figure(&[5.0, 1.25, 1.0], &[1.0], ratio).is_met(),
            Some(true)
        );
        assert_eq!(
            figure(&[1.26], &[1.0, 1.0, 0.1], ratio).is_met(),
            Some(false)
        );
        assert_eq!(figure(&[1.0], &[], ratio).is_met(), None);
        let most = Some(Budget::AtMost(0.0));
        assert_eq!(figure(&[0.0], &[], most).is_met(), Some(true));
        assert_eq!(figure(&[1.0], &[0.0], most).is_met(), Some(false));
        assert_eq!(figure(&[1.0], &[0.5], most).is_met(), None, "slow machine");
        assert_eq!(figure(&[1.0], &[], None).is_met(), None);
    }

    #[test]
    fn the_table_is_markdown_and_lines_up() {
        let figures = [
            figure(&[1.234, 2.0, 30.0], &[1.0], Some(Budget::TimesFloor(1.25))),
            figure(&[0.0], &[], Some(Budget::AtMost(0.0))),
        ];
        assert_eq!(
            table(&figures),
            "\
| what | unit | ours: min / median / max | floor | ratio | budget         | met |
|------|------|--------------------------|-------|-------|----------------|-----|
| row  | s    | 1.23 / 2.00 / 30.0       | 1.00  | 2.00  | ≤ 1.25 × floor | NO  |
| row  | s    | 0                        | –     | –     | ≤ 0            | yes |
"
        );
    }

    #[test]
    fn json_has_every_sample() {
        let json = figure(&[3.0, 1.0], &[], Some(Budget::AtMost(2.0))).json();
        assert_eq!(
            json["ours"],
            json!({"min": 1.0, "median": 2.0, "max": 3.0, "samples": [3.0, 1.0]})
        );
        assert_eq!(json["floor"], Value::Null);
        assert_eq!(
            (&json["met"], &json["budget"]),
            (&json!(true), &json!({"atMost": 2.0}))
        );
    }
}
