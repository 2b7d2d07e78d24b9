//! `tombola key list`.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::Args;

use super::{FileArgs, unix_seconds, validity};
use crate::access::{KeyFile, TenantLimits};
use crate::cli::base::print;

/// Arguments of `tombola key list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola key list --api-keys keys.json
  tombola key list --api-keys keys.json --json";

/// Prints the keys and the limits of tenants.
///
/// # Errors
/// The key file cannot be read.
pub fn run(args: &ListArgs) -> anyhow::Result<()> {
    let file = KeyFile::read(&args.file.api_keys)?;
    if args.json {
        let json = serde_json::to_string_pretty(&file)?;
        return print(&format!("{json}\n"));
    }
    print(&table(&file, SystemTime::now()))
}

fn table(file: &KeyFile, now: SystemTime) -> String {
    let mut rows = vec![["name", "tenant", "scopes", "age", "expires"].map(str::to_owned)];
    for key in &file.keys {
        let now_seconds = unix_seconds(now);
        let age = Duration::from_secs(now_seconds.saturating_sub(key.created));
        let expires = match key.expires {
            None => "never".to_owned(),
            Some(_) if key.is_expired(now) => "expired".to_owned(),
            Some(end) => {
                let rest = Duration::from_secs(end.saturating_sub(now_seconds));
                format!("in {}", validity::show(rest))
            }
        };
        rows.push([
            key.name.clone(),
            key.tenant
                .as_ref()
                .map_or("-".to_owned(), ToString::to_string),
            key.scopes.to_string(),
            if key.created == 0 {
                "-".to_owned()
            } else {
                validity::show(age)
            },
            expires,
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        text += line.trim_end();
        text.push('\n');
    }
    for (tenant, limits) in &file.tenants {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "tenant {tenant}: at most {}", show_limits(limits));
    }
    text
}

/// The limits that are set, such as `8 requests, 20 tickets`.
pub fn show_limits(limits: &TenantLimits) -> String {
    let limits = [
        ("requests", limits.max_requests.map(|n| n as u64)),
        ("queued tokens", limits.max_queued_tokens.map(|n| n as u64)),
        ("tickets", limits.max_tickets.map(|n| n as u64)),
        ("MiB of tickets", limits.max_ticket_mib),
    ];
    let set = limits
        .iter()
        .filter_map(|(what, n)| n.map(|n| format!("{n} {what}")));
    set.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{KeyDigest, KeyEntry, Scope, Scopes};
    use std::time::UNIX_EPOCH;

    #[test]
    fn keys_and_limits_are_listed_without_secrets() {
        let key = |name: &str, expires| KeyEntry {
            name: name.to_owned(),
            sha256: KeyDigest::of(name),
            tenant: (name == "web").then(|| "acme".parse().unwrap()),
            scopes: Scopes::from_iter([Scope::Infer, Scope::Metrics]),
            created: 1000,
            expires,
        };
        let mut file = KeyFile::default();
        file.add(key("web", Some(1000 + 4 * 3600))).unwrap();
        file.add(key("operator", None)).unwrap();
        let limits = TenantLimits {
            max_requests: Some(8),
            max_ticket_mib: Some(64),
            ..TenantLimits::default()
        };
        file.set_limits("acme".parse().unwrap(), limits).unwrap();
        let text = table(&file, UNIX_EPOCH + Duration::from_secs(1000 + 3600));
        let expected = "\
name      tenant  scopes         age  expires
web       acme    infer,metrics  60m  in 3h
operator  -       infer,metrics  60m  never
tenant acme: at most 8 requests, 64 MiB of tickets
";
        assert_eq!(text, expected);
    }
}
