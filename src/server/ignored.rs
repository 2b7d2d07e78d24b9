//! Fields of a request that nobody knows: ignored as in vLLM, but never in silence.

use axum::http::HeaderValue;
use axum::response::Response;

use super::error::ApiError;
use super::fields::Fields;
use super::state::AppState;

/// Response header that names them.
pub const IGNORED_FIELDS: &str = "x-ignored-fields";

/// The fields of a request that had no effect because their names are unknown.
#[derive(Debug, Default)]
pub struct Ignored(Option<HeaderValue>);

impl Ignored {
    /// What is left of the fields after all that are known were taken. Counts and logs them.
    ///
    /// # Errors
    /// There are some, and the server is strict.
    pub fn of(fields: &Fields<'_>, state: &AppState) -> Result<Self, ApiError> {
        let names: Vec<&str> = fields.names().collect();
        if names.is_empty() {
            return Ok(Self::default());
        }
        if state.options.strict_fields {
            return Err(ApiError::UnknownField(plain(names[0])));
        }
        let list = listed(&names);
        state
            .metrics
            .server
            .ignored_fields
            .inc_by(names.len() as u64);
        tracing::info!(fields = list, "ignored unknown fields of a request");
        Ok(Self(HeaderValue::from_str(&list).ok()))
    }

    /// The response, with a header that names the fields, if there are any.
    pub fn told(self, mut response: Response) -> Response {
        if let Some(names) = self.0 {
            response.headers_mut().insert(IGNORED_FIELDS, names);
        }
        response
    }
}

/// The first names, separated by commas, and the number of the others.
fn listed(names: &[&str]) -> String {
    const MOST: usize = 16;
    let mut list: Vec<String> = names.iter().take(MOST).map(|name| plain(name)).collect();
    if names.len() > MOST {
        list.push(format!("and {} more", names.len() - MOST));
    }
    list.join(", ")
}

/// A name in visible ASCII, of bounded length, since a client made it up.
fn plain(name: &str) -> String {
    const MOST: usize = 64;
    let visible = |c: char| {
        if c.is_ascii_graphic() && c != ',' {
            c
        } else {
            '?'
        }
    };
    name.chars().take(MOST).map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_in_visible_ascii_and_in_bounds() {
        assert_eq!(
            listed(&["max_tokenz", "a,b\r\n", "é"]),
            "max_tokenz, a?b??, ?"
        );
        let long = "x".repeat(1000);
        let names = vec![long.as_str(); 20];
        let list = listed(&names);
        assert!(
            list.ends_with(", and 4 more") && list.len() < 1100,
            "{list}"
        );
    }
}
