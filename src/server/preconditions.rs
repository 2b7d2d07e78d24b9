//! `If-Match` and `If-None-Match` of the ticket routes: the entity tag of a ticket is its digest.

use axum::http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue};

use super::error::ApiError;
use crate::registry::{Condition, Match};
use crate::ticket::Digest;

/// The entity tag of a ticket.
pub fn etag(digest: Digest) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{digest}\"")).expect("hexadecimal digits are header text")
}

/// The condition that a request's headers state. `replace` is the form's field; without it, a
/// ticket is replaced if the request says by `If-Match` which one.
///
/// # Errors
/// A header is malformed, or `If-None-Match` names tags instead of `*`.
pub fn condition(headers: &HeaderMap, replace: Option<bool>) -> Result<Condition, ApiError> {
    let matches = match text(headers, &IF_MATCH)? {
        Some(tags) => Some(parse_tags(&tags)?),
        None => None,
    };
    let absent = match text(headers, &IF_NONE_MATCH)?.as_deref().map(str::trim) {
        None => false,
        Some("*") => true,
        Some(_) => {
            let problem = "must be `*`, which creates a ticket and never replaces one";
            return Err(ApiError::invalid("If-None-Match", problem));
        }
    };
    Ok(Condition {
        replace: replace.unwrap_or(matches.is_some()),
        matches,
        absent,
    })
}

/// The values of a header, joined as HTTP joins them.
fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, ApiError> {
    let values = headers.get_all(name).iter();
    let values: Result<Vec<_>, _> = values.map(HeaderValue::to_str).collect();
    let values = values.map_err(|_| ApiError::invalid(name.as_str(), "is not text"))?;
    Ok((!values.is_empty()).then(|| values.join(",")))
}

fn parse_tags(tags: &str) -> Result<Match, ApiError> {
    if tags.trim() == "*" {
        return Ok(Match::Any);
    }
    let parse = |tag: &str| {
        let digest = tag.trim().strip_prefix('"')?.strip_suffix('"')?;
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        digest.parse::<Digest>().ok()
    };
    let digests = tags.split(',').map(|tag| {
        parse(tag).ok_or_else(|| {
            let problem = "must be `*` or quoted digests of 64 hexadecimal digits";
            ApiError::invalid("If-Match", problem)
        })
    });
    Ok(Match::OneOf(digests.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(name, value)| (name.clone(), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn tags_are_digests_and_the_conditions_are_those_of_http() {
        let digest = Digest::of(b"ticket");
        let quoted = format!("\"{digest}\"");
        assert_eq!(etag(digest), quoted);
        let of = |pairs: &[(HeaderName, &str)]| condition(&headers(pairs), None).unwrap();
        assert_eq!(of(&[]), Condition::create());
        let swap = of(&[(IF_MATCH, &quoted)]);
        assert_eq!(swap.matches, Some(Match::OneOf(vec![digest])));
        assert!(swap.replace && !swap.absent);
        assert_eq!(of(&[(IF_MATCH, "*")]).matches, Some(Match::Any));
        let both = format!("\"sha256:{digest}\" , {quoted}");
        let two = Match::OneOf(vec![digest, digest]);
        assert_eq!(of(&[(IF_MATCH, &both)]).matches, Some(two));
        assert!(of(&[(IF_NONE_MATCH, "*")]).absent);
        let explicit = condition(&headers(&[(IF_MATCH, &quoted)]), Some(false)).unwrap();
        assert!(!explicit.replace);
    }

    #[test]
    fn malformed_tags_are_refused_by_name() {
        for (name, value) in [
            (IF_MATCH, "abc"),
            (IF_MATCH, "\"abc\""),
            (IF_MATCH, "W/\"abc\""),
            (IF_NONE_MATCH, "\"abc\""),
        ] {
            let error = condition(&headers(&[(name.clone(), value)]), None).unwrap_err();
            let message = error.to_string().to_ascii_lowercase();
            assert!(message.contains(name.as_str()), "{message}");
        }
    }
}
