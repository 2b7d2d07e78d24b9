//! `tombola key`: makes, lists and revokes API keys, and limits tenants.

mod list;
mod validity;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::base::print;
use super::note::note;
use crate::access::{ApiKey, KeyDigest, KeyEntry, KeyFile, Scope, Tenant, TenantLimits};

/// Arguments of `tombola key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key, and print it: it is shown this once.
    #[command(after_help = ADD_EXAMPLES)]
    Add(AddArgs),
    /// List the keys, without their secrets.
    #[command(after_help = list::EXAMPLES)]
    List(list::ListArgs),
    /// Revoke a key; running servers refuse it within a second or two.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(RevokeArgs),
    /// Set the limits of a tenant, in place of those that the server's flags give every tenant.
    #[command(after_help = LIMIT_EXAMPLES)]
    Limit(LimitArgs),
}

/// The key file.
#[derive(Debug, Args)]
struct FileArgs {
    /// File of the keys, as `tombola serve` takes it.
    #[arg(long, value_name = "FILE", env = "TOMBOLA_API_KEYS")]
    api_keys: PathBuf,
}

#[derive(Debug, Args)]
struct AddArgs {
    /// Name of the key, by which logs and `tombola key` refer to it.
    name: String,
    #[command(flatten)]
    file: FileArgs,
    /// Tenant that the key acts for [default: none, the operator].
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// What the key may do: infer, tickets:read, tickets:write, metrics, or admin (everything),
    /// separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "infer")]
    scopes: Vec<Scope>,
    /// Time until the key expires, such as 12h or 90d [default: never].
    #[arg(long, value_name = "TIME", value_parser = validity::parse)]
    expires_in: Option<Duration>,
}

const ADD_EXAMPLES: &str = "\
Examples:
  tombola key add ops --scopes admin --api-keys keys.json
  tombola key add acme-web --tenant acme --scopes infer,tickets:read --expires-in 90d \\
      --api-keys keys.json";

#[derive(Debug, Args)]
struct RevokeArgs {
    /// Name of the key.
    name: String,
    #[command(flatten)]
    file: FileArgs,
}

const REVOKE_EXAMPLES: &str = "\
Examples:
  tombola key revoke acme-web --api-keys keys.json";

#[derive(Debug, Args)]
struct LimitArgs {
    /// Name of the tenant.
    tenant: Tenant,
    #[command(flatten)]
    file: FileArgs,
    /// Concurrent completion requests.
    #[arg(long, value_name = "N")]
    max_requests: Option<usize>,
    /// Tokens of unfinished requests: each choice counts its prompt and its max_tokens.
    #[arg(long, value_name = "TOKENS")]
    max_queued_tokens: Option<usize>,
    /// Tickets that the tenant may own.
    #[arg(long, value_name = "N")]
    max_tickets: Option<usize>,
    /// Size of the tenant's ticket files together, in MiB.
    #[arg(long, value_name = "MIB")]
    max_ticket_mib: Option<u64>,
    /// Remove the tenant's limits, so that those of the server's flags hold.
    #[arg(long, conflicts_with_all = [
        "max_requests", "max_queued_tokens", "max_tickets", "max_ticket_mib",
    ])]
    reset: bool,
}

const LIMIT_EXAMPLES: &str = "\
Examples:
  tombola key limit acme --max-requests 8 --max-tickets 20 --api-keys keys.json
  tombola key limit acme --reset --api-keys keys.json";

/// Runs `tombola key`.
///
/// # Errors
/// The key file cannot be read or written, or contradicts the change.
pub fn run(args: &KeyArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Add(args) => add(args),
        Command::List(args) => list::run(args),
        Command::Revoke(args) => revoke(args),
        Command::Limit(args) => limit(args),
    }
}

fn add(args: &AddArgs) -> anyhow::Result<()> {
    let key = ApiKey::generate().context("making a random key")?;
    let now = SystemTime::now();
    let expires = args.expires_in.map(|time| {
        let end = now.checked_add(time);
        end.context("--expires-in is too long")
    });
    let entry = KeyEntry {
        name: args.name.clone(),
        sha256: KeyDigest::of(key.secret()),
        tenant: args.tenant.clone(),
        scopes: args.scopes.iter().copied().collect(),
        created: unix_seconds(now),
        expires: expires.transpose()?.map(unix_seconds),
    };
    let path = &args.file.api_keys;
    KeyFile::edit(path, |file| file.add(entry))?;
    note(format_args!(
        "added the key `{}` to {}; only its digest is kept there, so store it now:",
        args.name,
        path.display()
    ));
    print(&format!("{}\n", key.secret()))
}

fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    let path = existing(&args.file)?;
    KeyFile::edit(path, |file| file.revoke(&args.name))?;
    note(format_args!("revoked the key `{}`", args.name));
    Ok(())
}

fn limit(args: &LimitArgs) -> anyhow::Result<()> {
    let given = TenantLimits {
        max_requests: args.max_requests,
        max_queued_tokens: args.max_queued_tokens,
        max_tickets: args.max_tickets,
        max_ticket_mib: args.max_ticket_mib,
    };
    if given.is_empty() && !args.reset {
        bail!("name a limit to set, or --reset");
    }
    let tenant = &args.tenant;
    let limits = KeyFile::edit(existing(&args.file)?, |file| {
        let set = file.tenants.remove(tenant).unwrap_or_default();
        if args.reset {
            return Ok(None);
        }
        let limits = given.or(set);
        file.set_limits(tenant.clone(), limits)?;
        Ok(Some(limits))
    })?;
    match limits {
        Some(limits) => {
            let limits = list::show_limits(&limits);
            note(format_args!("the tenant `{tenant}` has at most {limits}"));
        }
        None => note(format_args!("removed the limits of the tenant `{tenant}`")),
    }
    Ok(())
}

/// The key file, which a change of what is in it does not create.
fn existing(file: &FileArgs) -> anyhow::Result<&Path> {
    let path = &file.api_keys;
    if !path.exists() {
        bail!("there is no key file {}", path.display());
    }
    Ok(path)
}

/// Whole seconds since 1970.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
