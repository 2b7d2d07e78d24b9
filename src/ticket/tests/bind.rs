//! Tickets that are refused for the base at hand, by message.

use super::*;

/// The message of binding the sample after `spoil` changed the base.
fn bind_refusal(spoil: impl FnOnce(&mut BaseManifest)) -> String {
    let mut base = base();
    spoil(&mut base);
    sample().bind(&base, false).unwrap_err().to_string()
}

#[test]
fn a_foreign_base_is_told_with_both_fingerprints() {
    let other = Digest::of(b"other");
    let message = bind_refusal(|base| base.fingerprint = other);
    let own = Digest::of(b"tiny");
    let expected = format!(
        "the ticket is for another base: it was made for `tiny` (fingerprint {own}), \
         this is `tiny` (fingerprint {other})"
    );
    assert_eq!(message, expected);
}

#[test]
fn parameters_that_the_base_lacks_or_keeps() {
    let message = bind_refusal(|base| drop(base.parameters.remove(Q)));
    assert_eq!(
        message,
        format!("parameter `{Q}` does not exist in the base `tiny`")
    );
    let rule = "cannot be adapted: tickets adapt attention and MLP projection weights";
    let message = bind_refusal(|base| base.parameters.get_mut(Q).unwrap().adaptable = false);
    assert_eq!(message, format!("parameter `{Q}` {rule}"));
    let tensors = BTreeMap::from([(EMBED.to_owned(), q_delta())]);
    let ticket = Ticket::new(metadata(), tensors).unwrap();
    let message = ticket.bind(&base(), false).unwrap_err().to_string();
    assert_eq!(message, format!("parameter `{EMBED}` {rule}"));
}

#[test]
fn parameters_of_another_shape() {
    let reshape = |name, shape: [usize; 2]| {
        move |base: &mut BaseManifest| {
            base.parameters.get_mut(name).unwrap().shape = shape.to_vec();
        }
    };
    let message = bind_refusal(reshape(Q, [4, 4]));
    assert_eq!(
        message,
        format!("parameter `{Q}` has 3 rows, the base's has 4")
    );
    let message = bind_refusal(reshape(Q, [3, 3]));
    let expected = format!("parameter `{Q}`: column 3 in row 0 is outside the base's 3 columns");
    assert_eq!(message, expected);
    let message = bind_refusal(reshape(DOWN, [2, WIDE - 1]));
    let (last, columns) = (WIDE - 1, WIDE - 1);
    let expected = format!(
        "parameter `{DOWN}`: column {last} in row 1 is outside the base's {columns} columns"
    );
    assert_eq!(message, expected);
}

#[test]
fn columns_of_the_wrong_width() {
    let message = bind_refusal(|base| base.parameters.get_mut(Q).unwrap().shape = vec![3, 65537]);
    let expected = format!("parameter `{Q}`: columns are U16, expected U32 for 65537 columns");
    assert_eq!(message, expected);
    let message = bind_refusal(|b| b.parameters.get_mut(DOWN).unwrap().shape = vec![2, 65536]);
    let expected = format!("parameter `{DOWN}`: columns are U32, expected U16 for 65536 columns");
    assert_eq!(message, expected);
}

#[test]
fn a_density_that_is_not_the_files() {
    let bind = |density: f64, base: &BaseManifest| {
        let metadata = Metadata {
            density,
            ..metadata()
        };
        let ticket = Ticket::new(metadata, sample().tensors).unwrap();
        ticket.bind(base, true).map(drop).map_err(|e| e.to_string())
    };
    let base = base();
    let weights = base.adaptable_weights();
    let density = 4.0 / weights as f64;
    assert_eq!(
        bind(density / 4.0, &base).unwrap_err(),
        format!(
            "metadata `density` is {}, but 4 of the base's {weights} adaptable weights change, \
             which is {density}",
            density / 4.0
        )
    );
    assert!(bind(density * 1.02, &base).is_err());
    // As rounded to three digits.
    let rounded: f64 = format!("{density:.2e}").parse().unwrap();
    assert_ne!(rounded, density);
    assert_eq!(bind(rounded, &base), Ok(()));
    // Of a foreign base it cannot be known.
    let mut foreign = self::base();
    foreign.fingerprint = Digest::of(b"other");
    assert_eq!(bind(density / 4.0, &foreign), Ok(()));
}
