//! Functions and filters that transformers adds to Jinja for chat templates: `raise_exception`,
//! `strftime_now`, and a `tojson` that formats JSON as Python does.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

/// Message of a `raise_exception` call.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub String);

/// Fails with [`Raised`] as the error's source.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception was called");
    Err(error.with_source(Raised(message)))
}

/// The current UTC time in a `strftime` format.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    strftime(format, now)
}

/// Names of the months.
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Names of the weekdays, from that of 1970-01-01 on.
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// Python's `strftime` with the directives that templates use; `seconds` is Unix time.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let days = seconds / 86_400;
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize]; // 1970-01-01 was a Thursday.
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => text += &year.to_string(),
            Some('y') => text += &format!("{:02}", year % 100),
            Some('m') => text += &format!("{month:02}"),
            Some('d') => text += &format!("{day:02}"),
            Some('B') => text += month_name,
            Some('b') => text += &month_name[..3],
            Some('A') => text += day_name,
            Some('a') => text += &day_name[..3],
            Some('H') => text += &format!("{hour:02}"),
            Some('I') => text += &format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => text += if hour < 12 { "AM" } else { "PM" },
            Some('M') => text += &format!("{minute:02}"),
            Some('S') => text += &format!("{second:02}"),
            Some('%') => text.push('%'),
            other => {
                let directive = other.map_or_else(String::new, String::from);
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!(
                        "strftime_now does not support `%{directive}`; expected one of %Y %y %m %d \
                         %B %b %A %a %H %I %p %M %S"
                    ),
                ));
            }
        }
    }
    Ok(text)
}

/// Year, month and day of the month, `days` after 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Most spaces per level that [`tojson`] indents by.
const MAX_INDENT: usize = 32;

/// JSON as from Python's `json.dumps(value, ensure_ascii=False, ...)`, without HTML escapes.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        let reason = format!("tojson indents by at most {MAX_INDENT} spaces");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    let (item, key) = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            let reason = "tojson expects two separators: between items, and after keys";
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
    };
    let ensure_ascii = options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;

    let failed =
        |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut value = serde_json::to_value(value).map_err(failed)?;
    if sort_keys {
        value.sort_all_objects();
    }
    let style = PythonJson {
        indent,
        item,
        key,
        ensure_ascii,
        depth: 0,
        filled: false,
    };
    let mut json = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut json, style))
        .map_err(failed)?;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// JSON formatter with the whitespace and escapes of Python's `json` module.
struct PythonJson {
    /// Spaces per level; `None` writes a single line.
    indent: Option<usize>,
    /// Separator between items.
    item: String,
    /// Separator after keys.
    key: String,
    ensure_ascii: bool,
    depth: usize,
    /// Whether the innermost array or object has a member.
    filled: bool,
}

impl PythonJson {
    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.new_line(out)?;
        }
        self.filled = true;
        out.write_all(bracket)
    }

    fn member<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.filled = true;
        self.new_line(out)
    }

    fn new_line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(out, "\n{:1$}", "", indent * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for PythonJson {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.member(out, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.member(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        if !self.ensure_ascii {
            return out.write_all(text.as_bytes());
        }
        for unit in text.encode_utf16() {
            match u8::try_from(unit).ok().filter(u8::is_ascii) {
                Some(byte) => out.write_all(&[byte])?,
                None => write!(out, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        match escape {
            CharEscape::AsciiControl(byte) => write!(out, "\\u{byte:04x}"),
            CharEscape::Quote => out.write_all(b"\\\""),
            CharEscape::ReverseSolidus => out.write_all(b"\\\\"),
            CharEscape::Solidus => out.write_all(b"/"),
            CharEscape::Backspace => out.write_all(b"\\b"),
            CharEscape::FormFeed => out.write_all(b"\\f"),
            CharEscape::LineFeed => out.write_all(b"\\n"),
            CharEscape::CarriageReturn => out.write_all(b"\\r"),
            CharEscape::Tab => out.write_all(b"\\t"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(expression: &str) -> String {
        let mut environment = minijinja::Environment::new();
        environment.add_filter("tojson", tojson);
        environment
            .render_str(&format!("{{{{ {expression} }}}}"), ())
            .unwrap()
    }

    // Expected values come from Python's `json.dumps`.
    #[test]
    fn json_is_formatted_as_in_python() {
        let value = r#"{"b": [1, "x<\n'é🤗"], "a": {}, "c": [], "d": none, "e": true}"#;
        assert_eq!(
            json(&format!("{value} | tojson")),
            r#"{"b": [1, "x<\n'é🤗"], "a": {}, "c": [], "d": null, "e": true}"#
        );
        assert_eq!(
            json(&format!("{value} | tojson(indent=2, sort_keys=true)")),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    \"x<\\n'é🤗\"\n  ],\n  \"c\": [],\n\
             \x20 \"d\": null,\n  \"e\": true\n}"
        );
        assert_eq!(
            json("[1, {'a': 2}] | tojson(separators=(',', ':'))"),
            r#"[1,{"a":2}]"#
        );
        assert_eq!(
            json("'é🤗' | tojson(ensure_ascii=true)"),
            r#""\u00e9\ud83e\udd17""#
        );
    }

    #[test]
    fn an_indent_beyond_the_bound_is_an_error_and_no_panic() {
        let mut environment = minijinja::Environment::new();
        environment.add_filter("tojson", tojson);
        let template = "{{ [1] | tojson(indent=99999999) }}";
        let error = environment.render_str(template, ()).unwrap_err();
        assert!(error.to_string().contains("at most 32"), "{error}");
    }

    // Expected values come from Python's `datetime.utcfromtimestamp(seconds).strftime(...)`.
    #[test]
    fn dates_are_formatted_as_in_python() {
        let format = "%A %a %d %B %b %Y %y-%m %H:%M:%S %I %p %%";
        for (seconds, expected) in [
            (0, "Thursday Thu 01 January Jan 1970 70-01 00:00:00 12 AM %"),
            (
                951_782_400,
                "Tuesday Tue 29 February Feb 2000 00-02 00:00:00 12 AM %",
            ),
            (
                1_735_689_599,
                "Tuesday Tue 31 December Dec 2024 24-12 23:59:59 11 PM %",
            ),
        ] {
            assert_eq!(strftime(format, seconds).unwrap(), expected);
        }
        assert!(strftime("%Q", 0).unwrap_err().to_string().contains("`%Q`"));
    }
}
