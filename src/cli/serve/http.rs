//! The arguments of `tombola serve` for connections: their limits, timeouts and TLS.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::cli::base::at_least_one;
use crate::server::{ListenOptions, Tls};

/// Heading of the flags of HTTP.
pub(super) const HTTP: &str = "HTTP";

/// Limits and timeouts of connections, and TLS.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = HTTP)]
pub struct HttpArgs {
    /// Connections at once; a further one takes the place of the one that has been idle longest, or
    /// is answered with status 503 [default: 4096, or fewer if the limit on open files demands it].
    #[arg(long, value_name = "N", env = "TOMBOLA_MAX_CONNECTIONS", value_parser = at_least_one)]
    pub max_connections: Option<usize>,
    /// Seconds that a client may keep the server waiting: for the headers of a request, for the
    /// next piece of its body, or by not reading the response.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TOMBOLA_CLIENT_TIMEOUT_SECONDS",
        default_value = "30",
        value_parser = at_least_one,
    )]
    client_timeout_seconds: usize,
    /// Seconds that an idle connection is kept open for the next request.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TOMBOLA_KEEP_ALIVE_SECONDS",
        default_value = "75",
        value_parser = at_least_one,
    )]
    keep_alive_seconds: usize,
    /// Certificate chain for TLS, PEM; the server follows its changes.
    #[arg(
        long,
        value_name = "FILE",
        env = "TOMBOLA_TLS_CERT",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM.
    #[arg(
        long,
        value_name = "FILE",
        env = "TOMBOLA_TLS_KEY",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
}

impl HttpArgs {
    /// Timeouts of clients, and the drain.
    pub fn options(&self, drain: Duration) -> ListenOptions {
        let client = Duration::from_secs(self.client_timeout_seconds as u64);
        ListenOptions {
            head_timeout: client,
            keep_alive: Duration::from_secs(self.keep_alive_seconds as u64),
            body_timeout: client,
            write_timeout: client,
            drain,
            ..ListenOptions::default()
        }
    }

    /// Certificate and key, if TLS is asked for.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn tls(&self) -> anyhow::Result<Option<Arc<Tls>>> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Ok(Some(Tls::load(certificate, key)?)),
            _ => Ok(None),
        }
    }
}
