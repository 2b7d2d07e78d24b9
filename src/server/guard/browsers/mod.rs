//! Which web pages may send requests. A server on the loopback address is out of reach of other
//! machines, but not of the pages that a browser on this one shows: a page may send a foreign
//! server simple requests, and a page whose name is rebound to 127.0.0.1 may read the answers too.
//! `Origin`, `Sec-Fetch-Site` and `Host` tell such requests from those of programs.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::header;
use axum::http::uri::Authority;

use crate::server::error::ApiError;

/// A name that allows everything.
const ANY: &str = "*";

/// Largest part of a header that a message repeats, in characters.
const MAX_SHOWN: usize = 100;

/// The hosts under which a server may be addressed, and the origins whose pages may use it.
/// Loopback names and addresses are always among them.
#[derive(Clone, Debug, Default)]
pub struct BrowserRules {
    hosts: Vec<String>,
    origins: Vec<String>,
    /// Whether any IP address is a host: an address cannot be rebound.
    any_address: bool,
}

/// A host or origin that no browser sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrowserRulesError {
    #[error("{0:?} is not a host name or an IP address, without scheme, port or path")]
    Host(String),
    #[error("{0:?} is not an origin such as `https://app.example`, without a path")]
    Origin(String),
}

impl BrowserRules {
    /// Rules of a server that listens on `bound` and was told to allow these hosts and origins; `*`
    /// allows all.
    ///
    /// # Errors
    /// A host or origin is malformed.
    pub fn new(
        bound: IpAddr,
        hosts: &[String],
        origins: &[String],
    ) -> Result<Self, BrowserRulesError> {
        let mut rules = Self {
            any_address: !bound.to_canonical().is_loopback(),
            ..Self::default()
        };
        for host in hosts {
            let name = host.trim_matches(['[', ']']).to_ascii_lowercase();
            let is_address = name.parse::<IpAddr>().is_ok();
            let well_formed = !name.is_empty() && !name.contains(['/', ':', ' ', '@']);
            if !is_address && !well_formed {
                return Err(BrowserRulesError::Host(host.clone()));
            }
            rules.hosts.push(name);
        }
        for origin in origins {
            let name = origin.trim_end_matches('/').to_ascii_lowercase();
            let authority = name.split_once("://").map(|(_, authority)| authority);
            let well_formed = authority.is_some_and(|a| !a.is_empty() && !a.contains(['/', ' ']));
            if name != ANY && name != "null" && !well_formed {
                return Err(BrowserRulesError::Origin(origin.clone()));
            }
            rules.origins.push(name);
        }
        Ok(rules)
    }

    /// Refuses the request of a foreign web page. With `any_host`, each `Host` is acceptable.
    ///
    /// # Errors
    /// [`ApiError::ForeignHost`] or [`ApiError::ForeignOrigin`].
    pub fn check(&self, request: &Request, any_host: bool) -> Result<(), ApiError> {
        let headers = request.headers();
        // In HTTP/2, and in the absolute form of HTTP/1.1, the URL holds the host.
        let in_url = request.uri().authority().map(Authority::as_str);
        let in_headers = headers.get_all(header::HOST).iter();
        let in_headers = in_headers.map(|value| value.to_str().unwrap_or("?"));
        let hosts: Vec<&str> = in_url.into_iter().chain(in_headers).collect();
        if let Some(host) = hosts
            .iter()
            .find(|host| !any_host && !self.allows_host(host))
        {
            return Err(ApiError::ForeignHost(shown(without_port(host))));
        }
        let mut origins = headers.get_all(header::ORIGIN).iter().peekable();
        let cross_site = headers
            .get("sec-fetch-site")
            .is_some_and(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"));
        if origins.peek().is_none() && cross_site {
            return Err(ApiError::ForeignOrigin("another site".to_owned()));
        }
        for origin in origins {
            let origin = origin.to_str().unwrap_or("?");
            let own = |host: &&str| authority(origin).is_some_and(|a| a.eq_ignore_ascii_case(host));
            if !self.allows_origin(origin) && !hosts.iter().any(own) {
                return Err(ApiError::ForeignOrigin(shown(origin)));
            }
        }
        Ok(())
    }

    /// Whether `host`, a name or address with or without a port, may address this server.
    fn allows_host(&self, host: &str) -> bool {
        let name = without_port(host).to_ascii_lowercase();
        let listed = |host: &String| *host == name || host == ANY;
        let is_address = || name.parse::<IpAddr>().is_ok();
        is_loopback(&name) || (self.any_address && is_address()) || self.hosts.iter().any(listed)
    }

    /// Whether the pages of `origin` may use this server.
    pub fn allows_origin(&self, origin: &str) -> bool {
        let lower = origin.to_ascii_lowercase();
        let listed = |origin: &String| *origin == lower || origin == ANY;
        let host = authority(&lower).map(without_port);
        host.is_some_and(is_loopback) || self.origins.iter().any(listed)
    }
}

/// Name or address of an authority, without brackets, port and final dot.
fn without_port(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// Host and port of an origin; `None` for `null`.
fn authority(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

/// Whether a name or address is this machine's own.
fn is_loopback(name: &str) -> bool {
    match name.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    }
}

/// A header's value, cut to a readable length.
pub fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests;
