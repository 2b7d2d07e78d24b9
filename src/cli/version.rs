//! Version of the binary, with the commit and the features that it was built from.

#[cfg(feature = "cuda")]
macro_rules! features {
    () => {
        "cuda"
    };
}

#[cfg(not(feature = "cuda"))]
macro_rules! features {
    () => {
        "none"
    };
}

/// For example `0.1.0 (1a2b3c4, features: cuda)`; the commit is `unknown` if the build found none.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("TOMBOLA_COMMIT"),
    ", features: ",
    features!(),
    ")"
);
