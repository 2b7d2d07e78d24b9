//! Progress of loading a base, for display.

/// A long-running stage of loading a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Fetching the files, in bytes.
    Fetch,
    /// Computing the fingerprint, in parameters.
    Fingerprint,
    /// Loading the weights, in parameters.
    Load,
}

/// Progress of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The running stage.
    pub stage: Stage,
    /// Units done; see [`Stage`].
    pub done: u64,
    /// Units in total.
    pub total: u64,
}
