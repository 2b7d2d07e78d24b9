//! File descriptors: the bound on connections that keeps the server from running out of them.

/// Most connections by default, if the descriptors suffice.
const DEFAULT_CONNECTIONS: usize = 4096;

/// Descriptors for all else: the reserve of probes, the base's files, tickets, uploads.
const OTHER_DESCRIPTORS: usize = 128;

/// Descriptors of a connection: its socket, and a file if its request's body is large.
const PER_CONNECTION: usize = 2;

/// Raises the process's limit on open files as far as it may, and returns the number of connections
/// to serve at once: the requested number (default: 4,096), or fewer if the limit demands it.
pub fn connection_limit(requested: Option<usize>) -> usize {
    let files = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) => usize::try_from(files).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!(%error, "cannot read the limit on open files; 1024 are assumed");
            1024
        }
    };
    let limit = bounded(requested, files);
    if let Some(requested) = requested.filter(|&requested| requested > limit) {
        tracing::warn!(
            "--max-connections {requested} is lowered to {limit}, because the process may open \
             {files} files; raise that limit (ulimit -n)"
        );
    }
    limit
}

fn bounded(requested: Option<usize>, files: usize) -> usize {
    let affordable = files.saturating_sub(OTHER_DESCRIPTORS) / PER_CONNECTION;
    requested
        .unwrap_or(DEFAULT_CONNECTIONS)
        .min(affordable)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_need_more_descriptors_than_there_are() {
        assert_eq!(bounded(None, 1 << 20), DEFAULT_CONNECTIONS);
        assert_eq!(bounded(None, 1024), 448);
        assert_eq!(bounded(Some(10_000), 1 << 20), 10_000);
        assert_eq!(bounded(Some(10_000), 1024), 448);
        assert_eq!(bounded(Some(10), 1024), 10);
        assert_eq!(bounded(None, 64), 1);
    }
}
