//! The names of tenants and keys.

/// Maximum length of a name, in bytes.
pub(super) const MAX_BYTES: usize = 64;

/// Whether `name` is 1 to 64 of `[A-Za-z0-9._-]`, beginning with a letter or digit. Such a name can
/// never be a path.
pub(super) fn is_name(name: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let bytes = name.as_bytes();
    let begins_well = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    begins_well && bytes.len() <= MAX_BYTES && bytes.iter().all(inner)
}

/// A refused name, cut to a readable length.
pub(super) fn shortened(name: &str) -> String {
    name.chars().take(MAX_BYTES + 1).collect()
}
