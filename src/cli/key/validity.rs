//! Spans of validity, such as `90d`.

use std::time::Duration;

const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];

/// Parses a whole number of seconds, minutes, hours or days.
pub fn parse(text: &str) -> Result<Duration, String> {
    let expected = || "must be a number and a unit (s, m, h or d), such as 12h or 90d".to_owned();
    let unit = text.chars().last().ok_or_else(expected)?;
    let (_, seconds) = UNITS
        .iter()
        .find(|(u, _)| *u == unit)
        .ok_or_else(expected)?;
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| expected())?;
    match count.checked_mul(*seconds) {
        Some(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err(expected()),
    }
}

/// Writes a span in its largest unit, rounded down.
pub fn show(span: Duration) -> String {
    let seconds = span.as_secs();
    let fits = UNITS.iter().rev().find(|(_, unit)| seconds >= 2 * unit);
    let (unit, length) = fits.unwrap_or(&UNITS[0]);
    format!("{}{unit}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_numbers_with_a_unit() {
        assert_eq!(parse("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(parse("12h"), Ok(Duration::from_secs(12 * 3600)));
        for text in [
            "",
            "d",
            "12",
            "0d",
            "-1d",
            "1.5h",
            "99999999999999999999d",
            "1w",
            "9é",
        ] {
            assert!(parse(text).unwrap_err().contains("90d"), "{text}");
        }
    }

    #[test]
    fn spans_are_shown_in_their_largest_unit() {
        for (seconds, shown) in [(1, "1s"), (119, "119s"), (120, "2m"), (90 * 86_400, "90d")] {
            assert_eq!(show(Duration::from_secs(seconds)), shown);
        }
    }
}
