//! `tojson` of chat templates, which formats JSON as Python does.

use std::io;

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

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
    let style = PythonJson {
        indent,
        item,
        key,
        ensure_ascii,
        depth: 0,
        filled: false,
    };
    if !sort_keys {
        // Not by way of `serde_json::Value`, which has no integers beyond 64 bits.
        return write(value, style).map_err(failed);
    }
    let mut value = serde_json::to_value(value).map_err(failed)?;
    value.sort_all_objects();
    write(&value, style).map_err(failed)
}

/// One line of JSON as from Python's `json.dumps(value, ensure_ascii=False)`.
pub(crate) fn python_json(value: &serde_json::Value) -> String {
    let style = PythonJson {
        indent: None,
        item: ", ".to_owned(),
        key: ": ".to_owned(),
        ensure_ascii: false,
        depth: 0,
        filled: false,
    };
    write(value, style).unwrap_or_else(|_| value.to_string())
}

fn write(value: &impl Serialize, style: PythonJson) -> Result<String, serde_json::Error> {
    let mut json = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut json, style))?;
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

    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(python_float(value).as_bytes())
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

/// A finite number as Python's `repr` writes it: the shortest digits that read back, with an
/// exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let shortest = format!("{value:e}");
    let Some((digits, exponent)) = shortest.split_once('e') else {
        return shortest;
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
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

    #[test]
    fn numbers_are_formatted_as_in_python() {
        let numbers = "[100000000000000000000, 1e20, 0.00001, 0.0001, 1.0, -2.5e-10, 1e15]";
        assert_eq!(
            json(&format!("{numbers} | tojson")),
            "[100000000000000000000, 1e+20, 1e-05, 0.0001, 1.0, -2.5e-10, 1000000000000000.0]"
        );
    }
}
