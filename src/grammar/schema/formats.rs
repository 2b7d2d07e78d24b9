//! Formats of strings.
//!
//! llguidance has a regular expression for each of [`HONOURED`]. Some are replaced, since they
//! allow the 29th of February in any year, leap seconds at any time, and names of any length.

/// Formats that are honoured; others are annotations.
pub const HONOURED: [&str; 10] = [
    "date-time",
    "date",
    "time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uuid",
];

/// Year, month and day of the Gregorian calendar, by RFC 3339.
const DATE: &str = "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])\
                    |(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))\
                    |(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])\
                    |(?:[02468][048]|[13579][26])00)-02-29)";

/// Time with its offset from UTC, by RFC 3339.
const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?\
                    (?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";

/// Label of a domain name: at most 62 characters, without two hyphens in a row, which would mark
/// punycode.
macro_rules! label {
    () => {
        "[a-zA-Z0-9]{1,20}(?:-[a-zA-Z0-9]{1,20}){0,2}"
    };
}

/// Domain name of at most 251 characters.
const HOSTNAME: &str = concat!(label!(), "(?:\\.", label!(), "){0,3}");

/// Mailbox whose local part has at most 62 characters, by RFC 5321 without quotes and addresses.
const EMAIL: &str = concat!(
    "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,20}(?:\\.[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,20}){0,2}@",
    label!(),
    "(?:\\.",
    label!(),
    "){1,3}"
);

/// Pattern that stands for a format, if llguidance's own is replaced.
pub fn pattern(format: &str) -> Option<String> {
    Some(match format {
        "date" => format!("^{DATE}$"),
        "time" => format!("^{TIME}$"),
        "date-time" => format!("^{DATE}T{TIME}$"),
        "hostname" => format!("^{HOSTNAME}$"),
        "email" => format!("^{EMAIL}$"),
        _ => return None,
    })
}
