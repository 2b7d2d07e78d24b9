//! The server's process: memory, descriptors, and the limit on them.

use std::fs;

/// Raises the number of descriptors that this process and its children may open, as far as the hard
/// limit allows. Returns the new limit.
pub fn raise_descriptor_limit(wanted: u64) -> u64 {
    rlimit::increase_nofile_limit(wanted).expect("the limit on descriptors")
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.expect("VmRSS").split_whitespace().next();
    words.and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Number of a process's open descriptors.
pub fn descriptors(process: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{process}/fd")).expect("a process");
    open.count()
}
