//! The sockets that `tombola serve` listens on.

use std::net::{IpAddr, SocketAddr};

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
    let socket = TcpListener::bind((args.host.as_str(), args.port))
        .await
        .with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
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
