//! The sockets that `tombola serve` listens on.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;
use tokio::net::TcpListener;

use super::args::ServeArgs;
use crate::server::{self, Listener};

/// Connections of the operator's port at once.
const ADMIN_CONNECTIONS: usize = 64;

/// Bound sockets, each with its routes.
pub struct Bound {
    pub listeners: Vec<Listener>,
    /// Address of the public port.
    pub address: SocketAddr,
    /// Address of the operator's port, if it has one.
    pub admin_address: Option<SocketAddr>,
    /// An address that other machines reach, or else a loopback one.
    pub reachable: IpAddr,
    /// `http` or `https`.
    scheme: &'static str,
}

impl Bound {
    /// URL of one of the addresses.
    pub fn url(&self, address: SocketAddr) -> String {
        format!("{}://{address}", self.scheme)
    }
}

/// Binds the public port, and the operator's if it has one.
///
/// # Errors
/// The certificate cannot be used, or an address cannot be bound or would serve other machines
/// without keys.
pub async fn bind(args: &ServeArgs) -> anyhow::Result<Bound> {
    let tls = args.http.tls().context("setting up TLS")?;
    let host = without_brackets(&args.host);
    let socket = TcpListener::bind((host, args.port))
        .await
        .with_context(|| cannot_listen(host, args.port))?;
    let address = socket.local_addr()?;
    args.access.check_exposure(address)?;
    let mut bound = Bound {
        listeners: vec![Listener {
            socket,
            routes: server::router,
            max_connections: server::connection_limit(args.http.max_connections),
            tls: tls.clone(),
        }],
        address,
        admin_address: None,
        reachable: address.ip(),
        scheme: if tls.is_some() { "https" } else { "http" },
    };
    let Some(name) = &args.access.admin_listen else {
        return Ok(bound);
    };
    let socket = TcpListener::bind(name.as_str())
        .await
        .with_context(|| format!("cannot listen on --admin-listen {name}"))?;
    let address = socket.local_addr()?;
    args.access.check_exposure(address)?;
    if !address.ip().to_canonical().is_loopback() {
        bound.reachable = address.ip();
    }
    bound.admin_address = Some(address);
    bound.listeners[0].routes = server::public_router;
    bound.listeners.push(Listener {
        socket,
        routes: server::admin_router,
        max_connections: ADMIN_CONNECTIONS,
        tls,
    });
    Ok(bound)
}

/// A host as the resolver takes it: an IPv6 address may stand in brackets, as in a URL.
fn without_brackets(host: &str) -> &str {
    let inner = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    inner
        .filter(|inner| inner.parse::<Ipv6Addr>().is_ok())
        .unwrap_or(host)
}

fn cannot_listen(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("cannot listen on [{host}]:{port} (--host, --port)")
    } else {
        format!("cannot listen on {host}:{port} (--host, --port)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_may_stand_in_brackets() {
        for (host, expected) in [
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("[::]", "::"),
            ("127.0.0.1", "127.0.0.1"),
            ("[localhost]", "[localhost]"),
            ("[::1", "[::1"),
        ] {
            assert_eq!(without_brackets(host), expected);
        }
        assert!(cannot_listen("::1", 80).contains(" [::1]:80 "));
        assert!(cannot_listen("localhost", 80).contains(" localhost:80 "));
    }
}
