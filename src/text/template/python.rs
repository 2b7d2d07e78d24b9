//! What Jinja2 and Python offer to chat templates beyond the template engine: methods of texts and
//! lists, filters, tests and globals. Left out are `lipsum`, `random`, `urlize`, `wordwrap` and
//! `xmlattr`, which make no prompt.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::{filters, globals, pycompat};

use super::source::{PERCENT, VARARGS};

/// Adds everything to an environment.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);

    environment.add_test("callable", is_callable);
    environment.add_test("iterable", |value: &Value| {
        // Python iterates over undefined values, but not over none.
        !value.is_none() && value.try_iter().is_ok()
    });
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    environment.add_test("sequence", |value: &Value| {
        let kind = value.kind();
        matches!(kind, ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });

    environment.add_filter("center", |text: &str, width: Option<usize>| {
        justified(text, width.unwrap_or(80), ' ', Side::Both)
    });
    environment.add_filter("filesizeformat", filters::filesizeformat);
    environment.add_filter("striptags", filters::striptags);
    environment.add_filter("truncate", truncate);
    environment.add_filter("urlencode", |value: &Value| urlencode(&value.to_string()));
    environment.add_filter("wordcount", |text: &str| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let words = text.split(|c| !is_word(c));
        words.filter(|word| !word.is_empty()).count()
    });
    environment.add_filter(PERCENT, percent);

    environment.add_function("cycler", |items: Rest<Value>| globals::cycler(items.0));
    environment.add_function("joiner", globals::joiner);
    environment.add_function(VARARGS, |values: Rest<Value>| -> Vec<Value> {
        let given = values.0.into_iter().filter(|value| !value.is_undefined());
        given.collect()
    });
}

fn failed(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Functions, methods and macros.
fn is_callable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Plain => value.as_object().is_some() && !value.to_string().starts_with("Cycler"),
        // A macro, by its attributes.
        ValueKind::Map => value.try_iter().is_ok_and(|keys| {
            let keys: Vec<_> = keys.take(4).collect();
            keys == ["name", "arguments", "caller"].map(Value::from)
        }),
        _ => false,
    }
}

/// `format % operand`: a list of as many items as the format has fields stands for a tuple.
fn percent(state: &State, format: &str, operand: Value) -> Result<Value, Error> {
    let fields = format.replace("%%", "").matches('%').count();
    let spread = operand.kind() == ValueKind::Seq && operand.len() == Some(fields);
    let mut arguments = vec![Value::from(format)];
    if spread {
        arguments.extend(operand.try_iter()?);
    } else {
        arguments.push(operand);
    }
    state.apply_filter("format", &arguments)
}

/// Jinja2's `truncate(length=255, killwords=false, end='...', leeway=5)`.
fn truncate(
    text: &str,
    length: Option<usize>,
    kill_words: Option<bool>,
    end: Option<String>,
    named: Kwargs,
) -> Result<String, Error> {
    let length = length.or(named.get("length")?).unwrap_or(255);
    let kill_words = kill_words.or(named.get("killwords")?).unwrap_or(false);
    let end = end
        .or(named.get("end")?)
        .unwrap_or_else(|| "...".to_owned());
    let leeway = named.get::<Option<usize>>("leeway")?.unwrap_or(5);
    named.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept = length.saturating_sub(end.chars().count());
    let cut = &text[..char_offset(text, kept)];
    let cut = if kill_words {
        cut
    } else {
        cut.rsplit_once(' ').map_or(cut, |(words, _)| words)
    };
    Ok(format!("{cut}{end}"))
}

fn urlencode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Methods of values that the engine does not know itself.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => text_method(text, name, args)?,
        (ValueKind::Seq, _) => list_method(value, name, args)?,
        (ValueKind::Map, _) if name == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    own.map_or_else(
        || pycompat::unknown_method_callback(state, value, name, args),
        Ok,
    )
}

fn list_method(list: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match name {
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(list.clone()))
        }
        "index" => {
            let (item, start): (Value, Option<usize>) = from_args(args)?;
            let mut items = list.try_iter()?.enumerate().skip(start.unwrap_or(0));
            let found = items.find(|(_, other)| *other == item);
            let (index, _) = found.ok_or_else(|| failed("the item is not in the list"))?;
            Ok(Some(Value::from(index)))
        }
        _ => Ok(None),
    }
}

fn text_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let value = match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "rsplit" => {
            let (separator, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let most = most.or(named.get("maxsplit")?);
            named.assert_all_used()?;
            rsplit(text, separator, most)?
        }
        "partition" | "rpartition" => partition(text, name, args)?,
        "find" | "rfind" | "index" | "rindex" => find(text, name, args)?,
        "count" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(text.matches(part).count())
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let side = match name {
                "ljust" => Side::Right,
                "rjust" => Side::Left,
                _ => Side::Both,
            };
            Value::from(justified(text, width, fill.unwrap_or(' '), side)?)
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let digits = text.trim_start_matches(['+', '-']);
            let sign = &text[..text.len() - digits.len()];
            let width = width.saturating_sub(sign.len());
            Value::from(format!(
                "{sign}{}",
                justified(digits, width, '0', Side::Left)?
            ))
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase())
        }
        "swapcase" => {
            let () = from_args(args)?;
            Value::from(text.chars().flat_map(swap_case).collect::<String>())
        }
        _ => return text_test(text, name, args),
    };
    Ok(Some(value))
}

/// `isalpha` and its like: false for an empty text.
fn text_test(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let every = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let holds = match name {
        "isalnum" => every(char::is_alphanumeric),
        "isalpha" => every(char::is_alphabetic),
        "isdecimal" | "isdigit" | "isnumeric" => every(char::is_numeric),
        "isspace" => every(char::is_whitespace),
        "islower" => text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        "isidentifier" => {
            let word = every(|c| c.is_alphanumeric() || c == '_');
            word && !text.starts_with(char::is_numeric)
        }
        _ => return Ok(None),
    };
    let () = from_args(args)?;
    Ok(Some(Value::from(holds)))
}

fn swap_case(c: char) -> Vec<char> {
    if c.is_uppercase() {
        c.to_lowercase().collect()
    } else {
        c.to_uppercase().collect()
    }
}

fn rsplit(text: &str, separator: Option<&str>, most: Option<i64>) -> Result<Value, Error> {
    // Negative: no bound.
    let most = most.and_then(|most| usize::try_from(most).ok());
    let mut parts = Vec::new();
    match separator {
        Some("") => return Err(failed("rsplit: empty separator")),
        Some(separator) => {
            let pieces = most.map_or(usize::MAX, |most| most.saturating_add(1));
            parts.extend(text.rsplitn(pieces, separator));
        }
        None => {
            let mut rest = text.trim_end();
            while !rest.is_empty() {
                let word = rest
                    .rfind(char::is_whitespace)
                    .filter(|_| most != Some(parts.len()));
                let Some(space) = word else {
                    parts.push(rest);
                    break;
                };
                let start = space + rest[space..].chars().next().map_or(0, char::len_utf8);
                parts.push(&rest[start..]);
                rest = rest[..space].trim_end();
            }
        }
    }
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

fn partition<'a>(text: &'a str, name: &str, args: &'a [Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(failed(format!("{name}: empty separator")));
    }
    let parts: [&str; 3] = match name {
        "partition" => text
            .split_once(separator)
            .map_or([text, "", ""], |(left, right)| [left, separator, right]),
        _ => text
            .rsplit_once(separator)
            .map_or(["", "", text], |(left, right)| [left, separator, right]),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Positions count characters, as slices do.
fn find(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (part, start): (&str, Option<usize>) = from_args(args)?;
    let start = char_offset(text, start.unwrap_or(0));
    let rest = &text[start..];
    let found = match name {
        "find" | "index" => rest.find(part),
        _ => rest.rfind(part),
    };
    match found {
        Some(offset) => Ok(Value::from(text[..start + offset].chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(failed("the text does not contain the part")),
    }
}

/// Byte offset of a character; the length of a shorter text.
fn char_offset(text: &str, index: usize) -> usize {
    text.char_indices()
        .nth(index)
        .map_or(text.len(), |(at, _)| at)
}

/// Most characters that a template may pad to.
const MAX_WIDTH: usize = 1_000;

/// Where padding goes.
#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
    Both,
}

fn justified(text: &str, width: usize, fill: char, side: Side) -> Result<String, Error> {
    if width > MAX_WIDTH {
        return Err(failed(format!(
            "a text is padded to at most {MAX_WIDTH} characters"
        )));
    }
    let missing = width.saturating_sub(text.chars().count());
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        // CPython's rounding.
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let pad = |count| std::iter::repeat_n(fill, count);
    Ok(pad(left)
        .chain(text.chars())
        .chain(pad(missing - left))
        .collect())
}
