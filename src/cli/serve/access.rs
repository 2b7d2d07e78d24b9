//! The arguments of `tombola serve` that say who may use the server.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::access::{ApiKey, KeyRing, TenantLimits};
use crate::server::{AccessOptions, BrowserRules};

/// Who may use the server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// File of API keys, which `tombola key` edits; the server follows its changes.
    #[arg(long, value_name = "FILE", env = "TOMBOLA_API_KEYS")]
    pub api_keys: Option<PathBuf>,
    /// One API key that may do everything; better given as the environment variable, since other
    /// users of the machine can see arguments.
    #[arg(
        long,
        value_name = "KEY",
        env = "TOMBOLA_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<ApiKey>,
    /// Serve everyone who reaches an address that is not loopback, without keys.
    #[arg(long, env = "TOMBOLA_INSECURE_NO_AUTH")]
    pub insecure_no_auth: bool,
    /// Further address for the operator's routes (upload, delete, metrics, checks), which --host
    /// and --port then serve no more.
    #[arg(long, value_name = "HOST:PORT", env = "TOMBOLA_ADMIN_LISTEN")]
    pub admin_listen: Option<String>,
    /// Host names besides loopback under which requests without a key may address the server,
    /// separated by commas; * allows all.
    #[arg(
        long,
        value_name = "NAMES",
        env = "TOMBOLA_ALLOWED_HOST",
        value_delimiter = ','
    )]
    pub allowed_host: Vec<String>,
    /// Origins besides loopback whose web pages may use the server, separated by commas; * allows
    /// all. May be repeated; --allowed-origin is its former name.
    #[arg(
        long,
        alias = "allowed-origin",
        value_name = "ORIGINS",
        env = "TOMBOLA_CORS_ORIGIN",
        value_delimiter = ','
    )]
    pub cors_origin: Vec<String>,
    #[command(flatten)]
    pub limits: TenantLimitArgs,
}

/// Limits of each tenant that the key file does not limit.
#[derive(Clone, Debug, Args)]
pub struct TenantLimitArgs {
    /// Concurrent completion requests of a tenant.
    #[arg(long, value_name = "N", env = "TOMBOLA_TENANT_MAX_REQUESTS")]
    tenant_max_requests: Option<usize>,
    /// Tokens of a tenant's unfinished requests: each choice counts its prompt and its max_tokens.
    #[arg(long, value_name = "TOKENS", env = "TOMBOLA_TENANT_MAX_QUEUED_TOKENS")]
    tenant_max_queued_tokens: Option<usize>,
    /// Tickets that a tenant may own.
    #[arg(long, value_name = "N", env = "TOMBOLA_TENANT_MAX_TICKETS")]
    tenant_max_tickets: Option<usize>,
    /// Size of a tenant's ticket files together, in MiB.
    #[arg(long, value_name = "MIB", env = "TOMBOLA_TENANT_MAX_TICKET_MIB")]
    tenant_max_ticket_mib: Option<u64>,
}

impl AccessArgs {
    /// Refuses to serve everyone on an address that other machines reach, unless that was asked
    /// for.
    ///
    /// # Errors
    /// The address is not loopback, there are no keys, and `--insecure-no-auth` is not set.
    pub fn check_exposure(&self, address: SocketAddr) -> anyhow::Result<()> {
        let has_keys = self.api_keys.is_some() || self.api_key.is_some();
        if has_keys && self.insecure_no_auth {
            bail!("--insecure-no-auth with API keys: leave one of them out");
        }
        if has_keys || self.insecure_no_auth || address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        bail!(
            "{address} is not a loopback address, and there are no API keys: anyone who reaches it \
             could use the model and replace tickets; make a key with `tombola key add` and pass \
             --api-keys FILE, or pass --insecure-no-auth to serve everyone"
        );
    }

    /// The options of a server that listens on `bound`. Starts to follow the key file.
    ///
    /// # Errors
    /// The key file is unusable, or a host or origin malformed.
    pub fn options(&self, bound: IpAddr) -> anyhow::Result<AccessOptions> {
        let mut keys = None;
        if self.api_keys.is_some() || self.api_key.is_some() {
            let ring = KeyRing::open(self.api_keys.clone(), self.api_key.as_ref())?;
            let ring = Arc::new(ring);
            ring.watch().context("following the key file")?;
            if ring.is_empty() {
                tracing::warn!("the key file holds no key yet, so no request is accepted");
            }
            keys = Some(ring);
        }
        let browsers = BrowserRules::new(bound, &self.allowed_host, &self.cors_origin)?;
        let limits = &self.limits;
        let tenant_limits = TenantLimits {
            max_requests: limits.tenant_max_requests,
            max_queued_tokens: limits.tenant_max_queued_tokens,
            max_tickets: limits.tenant_max_tickets,
            max_ticket_mib: limits.tenant_max_ticket_mib,
        };
        Ok(AccessOptions {
            keys,
            browsers,
            tenant_limits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        access: AccessArgs,
    }

    fn access(args: &[&str]) -> AccessArgs {
        let args = std::iter::once(&"tombola").chain(args);
        <Cli as clap::Parser>::parse_from(args).access
    }

    #[test]
    fn an_address_that_others_reach_needs_keys_or_the_flag() {
        let check =
            |args: &[&str], address: &str| access(args).check_exposure(address.parse().unwrap());
        for address in [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
        ] {
            check(&[], address).unwrap();
        }
        for address in ["0.0.0.0:80", "[::]:80", "192.168.1.5:80"] {
            let error = check(&[], address).unwrap_err().to_string();
            for way in [address, "--api-keys", "--insecure-no-auth"] {
                assert!(error.contains(way), "{error}");
            }
            check(&["--insecure-no-auth"], address).unwrap();
            check(&["--api-key", "operators-key"], address).unwrap();
            check(&["--api-keys", "keys.json"], address).unwrap();
        }
        let both = ["--insecure-no-auth", "--api-key", "operators-key"];
        assert!(check(&both, "127.0.0.1:80").is_err());
    }

    #[test]
    fn a_key_never_shows_in_debug_output() {
        let args = access(&["--api-key", "operators-key"]);
        assert!(!format!("{args:?}").contains("operators-key"));
    }
}
