//! How far a start is: told to whoever draws it.

/// What takes long at a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In bytes.
    Fetch,
    /// In parameters.
    Fingerprint,
    /// In parameters.
    Load,
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub done: u64,
    pub total: u64,
}
