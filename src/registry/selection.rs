//! What a request runs under, as the request names it: the base, a ticket, or a composition.
//!
//! ```text
//! selection = part *3("+" part)
//! part      = ticket ["@" digest] ["@" scale] / digest of 64 digits ["@" scale]
//! digest    = ["sha256:"] 6*64(0-9 / a-f)
//! scale     = decimal number with a point or a minus sign: 0.5, 2.0, -1
//! ```
//!
//! Ticket names contain neither `+` nor `@`. What follows an `@` is a digest if it can be one:
//! `sql@123456` holds `sql` to a digest, `sql@0.5` halves its deltas.

use std::fmt;

/// Most tickets of a composition.
pub const MAX_PARTS: usize = 4;
/// Largest magnitude of a scale.
pub const MAX_SCALE: f32 = 16.0;
/// Fewest hexadecimal digits of a digest that a ticket's name is held to.
const MIN_DIGEST: usize = 6;

/// The tickets that a request runs under, each with the factor of its deltas; none for the base.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    parts: Vec<Part>,
}

/// A ticket of a selection.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The ticket: `name`, `name@digest` or a digest, as [`super::Registry::get`] takes it.
    pub reference: String,
    /// Factor of its deltas.
    pub scale: f32,
}

/// Why a selection is malformed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SelectionError {
    #[error("`{0}` lacks the name of a ticket: expected names joined by `+`, such as `sql+terse`")]
    NoName(String),
    #[error("{0} tickets are named; at most {MAX_PARTS} can be composed")]
    TooMany(usize),
    #[error(
        "`{suffix}` in `{part}` is neither a digest of {MIN_DIGEST} to 64 lower-case hexadecimal \
         digits nor a scale, a decimal number with a point such as 0.5"
    )]
    Suffix { part: String, suffix: String },
    #[error(
        "the scale of `{reference}` is {scale}, expected a number from -{MAX_SCALE} to {MAX_SCALE} \
         other than 0"
    )]
    Scale { reference: String, scale: f32 },
    #[error("`{0}` is not the name of one ticket: `+` and scales belong into `model`")]
    NotOneTicket(String),
    #[error("`{0}` is the base, to which every ticket is added: leave it out")]
    BaseAsPart(String),
    #[error("a scale is a factor of a ticket's deltas; the base has none")]
    ScaledBase,
    #[error(
        "`{first}` and `{second}` are the same ticket: name it once, with the sum of the scales"
    )]
    Twice { first: String, second: String },
}

impl Selection {
    /// The base without tickets.
    pub fn base() -> Self {
        Self::default()
    }

    /// One ticket, given as [`super::Registry::get`] takes it.
    pub(super) fn ticket(reference: &str) -> Self {
        let part = Part {
            reference: reference.to_owned(),
            scale: 1.0,
        };
        Self { parts: vec![part] }
    }

    /// Parses `ticket`, `ticket@scale` or several joined by `+`. The base's own name is not known
    /// here: see [`super::Registry::select`].
    ///
    /// # Errors
    /// The text is malformed, names more than [`MAX_PARTS`] tickets, or a scale is out of range.
    pub fn parse(text: &str) -> Result<Self, SelectionError> {
        let parts = text.split('+').map(parse_part);
        Self::checked(parts.collect::<Result<_, _>>()?)
    }

    /// A selection of these tickets. A reference names one ticket, without a scale.
    ///
    /// # Errors
    /// As [`Self::parse`]; there are no parts.
    pub fn of(parts: Vec<Part>) -> Result<Self, SelectionError> {
        for part in &parts {
            let parsed = parse_part(&part.reference)?;
            if part.reference.contains('+') || parsed.reference != part.reference {
                return Err(SelectionError::NotOneTicket(part.reference.clone()));
            }
        }
        Self::checked(parts)
    }

    /// The same tickets, each scale times `factor`.
    ///
    /// # Errors
    /// This is the base; a scale is out of range.
    pub fn scaled(mut self, factor: f32) -> Result<Self, SelectionError> {
        if self.is_base() {
            return Err(SelectionError::ScaledBase);
        }
        for part in &mut self.parts {
            part.scale *= factor;
        }
        Self::checked(self.parts)
    }

    fn checked(parts: Vec<Part>) -> Result<Self, SelectionError> {
        if parts.is_empty() {
            return Err(SelectionError::NoName(String::new()));
        }
        if parts.len() > MAX_PARTS {
            return Err(SelectionError::TooMany(parts.len()));
        }
        for Part { reference, scale } in &parts {
            // Not a number is outside too.
            if *scale == 0.0 || !(-MAX_SCALE..=MAX_SCALE).contains(scale) {
                return Err(SelectionError::Scale {
                    reference: reference.clone(),
                    scale: *scale,
                });
            }
        }
        Ok(Self { parts })
    }

    /// Whether this is the base without tickets.
    pub fn is_base(&self) -> bool {
        self.parts.is_empty()
    }

    /// The tickets, in the order in which they are named.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

/// The text that parses to this selection; empty for the base.
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Part { reference, scale }) in self.parts.iter().enumerate() {
            let plus = if index > 0 { "+" } else { "" };
            write!(f, "{plus}{reference}{}", Scale(*scale))?;
        }
        Ok(())
    }
}

/// A scale as a suffix: `@0.5`, and nothing for 1.
pub(super) struct Scale(pub f32);

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = self.0;
        if scale == 1.0 {
            return Ok(());
        }
        let point = if scale.fract() == 0.0 { ".0" } else { "" };
        write!(f, "@{scale}{point}")
    }
}

fn parse_part(text: &str) -> Result<Part, SelectionError> {
    let (name, suffixes) = match text.split_once('@') {
        Some((name, suffixes)) => (name, Some(suffixes)),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(SelectionError::NoName(text.to_owned()));
    }
    let part = |reference: &str, scale| Part {
        reference: reference.to_owned(),
        scale,
    };
    let Some(suffixes) = suffixes else {
        return Ok(part(name, 1.0));
    };
    let (digest, scale) = match suffixes.split_once('@') {
        Some((digest, scale)) => (Some(digest), Some(scale)),
        None if is_digest(suffixes) => (Some(suffixes), None),
        None => (None, Some(suffixes)),
    };
    let refuse = |suffix: &str| SelectionError::Suffix {
        part: text.to_owned(),
        suffix: suffix.to_owned(),
    };
    let scale = match scale {
        Some(scale) => parse_scale(scale).ok_or_else(|| refuse(scale))?,
        None => 1.0,
    };
    match digest {
        None => Ok(part(name, scale)),
        Some(digest) if is_digest(digest) => Ok(part(&format!("{name}@{digest}"), scale)),
        Some(other) => Err(refuse(other)),
    }
}

/// Whether what follows an `@` is a digest, whole or cut short.
pub(super) fn is_digest(suffix: &str) -> bool {
    let digits = suffix.strip_prefix("sha256:").unwrap_or(suffix);
    let hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (MIN_DIGEST..=64).contains(&digits.len()) && digits.bytes().all(hex)
}

fn parse_scale(text: &str) -> Option<f32> {
    let decimal = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-'));
    let marked = text.contains(['.', '-']);
    if decimal && marked {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(text: &str) -> Vec<(String, f32)> {
        let selection = Selection::parse(text).unwrap();
        let parts = selection.parts().iter();
        parts
            .map(|part| (part.reference.clone(), part.scale))
            .collect()
    }

    fn owned(parts: &[(&str, f32)]) -> Vec<(String, f32)> {
        let parts = parts.iter();
        parts
            .map(|&(reference, scale)| (reference.to_owned(), scale))
            .collect()
    }

    #[test]
    fn a_selection_names_tickets_digests_and_scales() {
        let digest = "9f2a".repeat(16);
        let whole = format!("sha256:{digest}");
        for (text, expected) in [
            ("sql", vec![("sql", 1.0)]),
            ("sql+terse", vec![("sql", 1.0), ("terse", 1.0)]),
            ("sql@0.5", vec![("sql", 0.5)]),
            ("sql@-1+terse@2.0", vec![("sql", -1.0), ("terse", 2.0)]),
            ("sql@9f2ac1", vec![("sql@9f2ac1", 1.0)]),
            ("sql@123456", vec![("sql@123456", 1.0)]),
            ("sql@9f2ac1@.25", vec![("sql@9f2ac1", 0.25)]),
            ("sql@sha256:9f2ac1@0.5", vec![("sql@sha256:9f2ac1", 0.5)]),
            (&format!("{whole}@0.5+b"), vec![(&whole, 0.5), ("b", 1.0)]),
            (
                "a+b+c+d",
                vec![("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)],
            ),
        ] {
            assert_eq!(parts(text), owned(&expected), "{text}");
        }
    }

    #[test]
    fn a_malformed_selection_is_refused_with_what_is_wrong_and_where() {
        for (text, names) in [
            ("", "lacks the name"),
            ("sql+", "lacks the name"),
            ("@0.5", "`@0.5` lacks the name"),
            ("a+b+c+d+e", "5 tickets are named; at most 4"),
            ("sql@2", "`2` in `sql@2`"),
            ("sql@9F2AC1", "`9F2AC1` in"),
            ("sql@1e-3", "`1e-3` in"),
            ("sql@nan", "`nan` in"),
            ("sql@0.5@9f2ac1", "`9f2ac1` in"),
            ("sql@9f2ac1@0.5@0.5", "`0.5@0.5` in"),
            ("terse+sql@0.0", "scale of `sql` is 0"),
            ("sql@-0.0", "scale of `sql` is -0"),
            ("sql@16.5", "scale of `sql` is 16.5"),
            (
                &format!("sql@{}.0", "9".repeat(60)),
                "scale of `sql` is inf",
            ),
        ] {
            let error = Selection::parse(text).unwrap_err().to_string();
            assert!(error.contains(names), "{text}: {error}");
        }
    }

    #[test]
    fn parts_are_single_tickets_and_a_factor_scales_each() {
        let part = |reference: &str, scale| Part {
            reference: reference.to_owned(),
            scale,
        };
        let both = Selection::of(vec![part("sql", 1.0), part("terse@9f2ac1", 0.5)]).unwrap();
        assert_eq!(both, Selection::parse("sql+terse@9f2ac1@0.5").unwrap());
        let half = both.scaled(0.5).unwrap();
        assert_eq!(half.to_string(), "sql@0.5+terse@9f2ac1@0.25");
        for reference in ["a+b", "a@0.5"] {
            let refused = Selection::of(vec![part(reference, 1.0)]).unwrap_err();
            assert_eq!(refused, SelectionError::NotOneTicket(reference.to_owned()));
        }
        assert!(matches!(
            Selection::of(vec![part("a", f32::NAN)]),
            Err(SelectionError::Scale { .. })
        ));
        assert!(Selection::of(Vec::new()).is_err());
        assert_eq!(
            Selection::base().scaled(1.0),
            Err(SelectionError::ScaledBase)
        );
        assert!(half.scaled(f32::INFINITY).is_err());
    }

    proptest! {
        #[test]
        fn a_selection_is_parsed_from_its_text(
            parts in prop::collection::vec(
                (
                    "[A-Za-z0-9][A-Za-z0-9._-]{0,9}",
                    prop::option::of("[0-9a-f]{6,64}"),
                    -16f32..16.0,
                ),
                1..5,
            ),
        ) {
            let part = |(name, digest, scale): (String, Option<String>, f32)| Part {
                reference: digest.map_or(name.clone(), |digest| format!("{name}@{digest}")),
                scale,
            };
            let parts: Vec<_> = parts.into_iter().map(part).collect();
            let Ok(selection) = Selection::of(parts) else {
                return Ok(());
            };
            prop_assert_eq!(Selection::parse(&selection.to_string()).unwrap(), selection);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-f0-9@+.:-]{0,30}|\\PC{0,20}") {
            if let Ok(selection) = Selection::parse(&text) {
                prop_assert_eq!(Selection::parse(&selection.to_string()).unwrap(), selection);
            }
        }
    }
}
