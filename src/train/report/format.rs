//! Human-readable numbers.

use indicatif::HumanCount;

/// Placeholder for a missing number.
pub const NONE: &str = "–";

/// `1061683` → `1,061,683`.
pub fn count(number: usize) -> String {
    HumanCount(number as u64).to_string()
}

/// `1` → `1 step`, `30` → `30 steps`.
pub fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count(number))
}

/// In decimal units: `4900000` → `4.90 MB`.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if number < 1000 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1000.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().expect("there are units");
    // From 999.5 on, rounding would print 1000.
    while value >= 999.5 {
        let Some(larger) = units.next() else { break };
        (value, unit) = (value / 1000.0, larger);
    }
    format!("{} {unit}", three_figures(value))
}

/// A share in percent, without the percent sign: `0.01034` → `1.03`.
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    match value {
        _ if !value.is_finite() => NONE.to_owned(),
        0.0 => "0".to_owned(),
        _ if value.abs() >= 99.95 => format!("{value:.0}"),
        _ if value.abs() >= 9.995 => format!("{value:.1}"),
        _ if value.abs() >= 0.0995 => format!("{value:.2}"),
        _ if value.abs() >= 0.00995 => format!("{value:.3}"),
        _ => format!("{value:.0e}"),
    }
}

/// A loss in nats.
pub fn loss(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => not_finite(value),
        size if size >= 99.95 => format!("{value:.1}"),
        size if size >= 0.00995 || size == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

/// Perplexity.
pub fn perplexity(value: f64) -> String {
    match value {
        _ if !value.is_finite() => not_finite(value),
        _ if value >= 1e6 => format!("{value:.1e}"),
        _ if value >= 999.5 => count(value.round() as usize),
        _ => three_figures(value),
    }
}

/// Tokens per second.
pub fn rate(value: f64) -> String {
    match value {
        _ if !value.is_finite() => NONE.to_owned(),
        _ if value >= 99.5 => count(value.round() as usize),
        _ => three_figures(value),
    }
}

/// `84.2` → `1 min 24 s`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return NONE.to_owned();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// The first 12 hex digits of a digest.
pub fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// `exact match` → `Exact match`.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(letters).collect()
}

/// Rounds to two decimals, enough for a coordinate in percent.
pub fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn three_figures(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

fn not_finite(value: f64) -> String {
    let text = if value.is_nan() {
        "not a number"
    } else if value > 0.0 {
        "∞"
    } else {
        "−∞"
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_keep_their_magnitude() {
        assert_eq!(
            [0, 999, 1000, 1_061_683].map(count),
            ["0", "999", "1,000", "1,061,683"]
        );
        assert_eq!([1, 2].map(|n| counted(n, "row")), ["1 row", "2 rows"]);
        assert_eq!(
            [0, 999, 1000, 999_499, 999_500, 4_900_000, 2_150_000_000].map(bytes),
            [
                "0 B", "999 B", "1.00 kB", "999 kB", "1.00 MB", "4.90 MB", "2.15 GB"
            ]
        );
        assert_eq!(
            [0.0, 1e-6, 0.0005, 0.0103, 0.125, 1.0, f64::NAN].map(percent),
            ["0", "1e-4", "0.050", "1.03", "12.5", "100", "–"]
        );
        assert_eq!(
            [2.3147, 0.0, 0.0004, 123.4, f64::INFINITY].map(loss),
            ["2.315", "0.000", "4.0e-4", "123.4", "∞"]
        );
        assert_eq!(
            [4.2, 35.12, 1234.5, 2e7, f64::NAN].map(perplexity),
            ["4.20", "35.1", "1,235", "2.0e7", "not a number"]
        );
        assert_eq!(
            [611.3, 3.214, f64::INFINITY].map(rate),
            ["611", "3.21", "–"]
        );
        assert_eq!(
            [2.44, 42.0, 84.2, 8640.0].map(duration),
            ["2.4 s", "42 s", "1 min 24 s", "2 h 24 min"]
        );
        assert_eq!(capital("exact match"), "Exact match");
        assert_eq!(capital(""), "");
    }
}
