//! Words, lines and tables for a terminal of 80 columns.

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};

/// What a line is kept to.
pub(crate) const WIDTH: usize = 80;

/// Appends `head` and `text`, broken at spaces; lines after the first are indented by `hang`.
pub(crate) fn wrap(out: &mut String, head: &str, hang: usize, text: &str) {
    let mut line = head.to_owned();
    let mut is_start = true;
    for word in text.split(' ') {
        let length = line.chars().count() + usize::from(!is_start) + word.chars().count();
        if length > WIDTH && !is_start {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(hang);
            is_start = true;
        }
        if !is_start {
            line.push(' ');
        }
        line.push_str(word);
        is_start = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// Appends rows, the first of which is the heading. Where a line would be too long, the column `gives` is cut.
pub(crate) fn table<const N: usize>(out: &mut String, rows: &[[String; N]], gives: usize) {
    const GAP: usize = 2;
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let total = widths.iter().sum::<usize>() + GAP * N;
    let least = rows.first().map_or(0, |heading| heading[gives].len());
    widths[gives] = widths[gives]
        .saturating_sub(total.saturating_sub(WIDTH))
        .max(least);
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // A string takes everything.
            let _ = write!(line, "  {:width$}", cut(cell, width));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// The text, or its start with an ellipsis.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut start: String = text.chars().take(width.saturating_sub(1)).collect();
    start.push('…');
    start
}

/// A time span in its largest unit that says enough: `90s`, `4m`, `3h`, `2d`.
pub(crate) fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.duration_since(from).max(SignedDuration::ZERO).as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number with its word.
pub(crate) fn count(number: impl Into<i64>, word: &str) -> String {
    let number = number.into();
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// The text, or a dash for none.
pub(crate) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// A device in few letters: `GPU-6d3c8a4e` for its UUID.
pub(crate) fn device(uuid: &str) -> String {
    let mut parts = uuid.splitn(3, '-');
    match (parts.next(), parts.next()) {
        (Some(kind), Some(start)) => format!("{kind}-{start}"),
        _ => uuid.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_a_long_word_stays_whole() {
        let mut out = String::new();
        let link = "x".repeat(100);
        wrap(
            &mut out,
            "  head: ",
            4,
            &format!("{} {link} end", "word ".repeat(20).trim()),
        );
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[0].len(), 77);
        assert!(lines[1].starts_with("    word"));
        assert_eq!(lines[2], format!("    {link}"));
        assert_eq!(lines[3], "    end");
    }

    #[test]
    fn a_wide_table_cuts_one_column() {
        let mut out = String::new();
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        table(
            &mut out,
            &[row("NAME", "NODE"), row(&"n".repeat(40), &"o".repeat(60))],
            1,
        );
        for line in out.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(out.contains(&"n".repeat(40)) && out.ends_with("o…\n"));
    }

    #[test]
    fn spans_are_short() {
        let from = Timestamp::UNIX_EPOCH;
        let after = |seconds| span(from, from + SignedDuration::from_secs(seconds));
        assert_eq!(
            [
                after(-5),
                after(119),
                after(120),
                after(7_199),
                after(7_200),
                after(172_800)
            ],
            ["0s", "119s", "2m", "119m", "2h", "2d"]
        );
    }
}
