//! JSON pointers (RFC 6901), also as fragments of references.

/// Pointer to a member or an element of what `pointer` points to.
pub fn child(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// The pointer of a reference `#` or `#/…`; `None` for any other reference.
pub fn of_reference(reference: &str) -> Option<String> {
    let fragment = reference.strip_prefix('#')?;
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => byte,
        });
    }
    let pointer = String::from_utf8(bytes).ok()?;
    (pointer.is_empty() || pointer.starts_with('/')).then_some(pointer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_escape_and_references_decode() {
        assert_eq!(child("/a", "b/c~d"), "/a/b~1c~0d");
        assert_eq!(of_reference("#").as_deref(), Some(""));
        assert_eq!(of_reference("#/$defs/a%20b").as_deref(), Some("/$defs/a b"));
        for other in ["#name", "http://x/#/a", "#/%zz", "a"] {
            assert_eq!(of_reference(other), None);
        }
    }
}
