//! Tests of masks, guides and their workers, with a constraint that spells given tokens.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use super::*;

/// Allows one token after the other, then completes.
#[derive(Debug)]
pub struct Spells {
    pub tokens: Vec<u32>,
    pub position: usize,
    /// Masks that were computed, over all sequences that share the counter.
    pub masks: Arc<AtomicUsize>,
}

impl Spells {
    pub fn new(tokens: &[u32]) -> Self {
        Self {
            tokens: tokens.to_vec(),
            position: 0,
            masks: Arc::default(),
        }
    }
}

pub fn mask_of(tokens: &[u32], may_end: bool) -> TokenMask {
    let mut mask = TokenMask::new(Vec::new(), may_end);
    mask.allow(tokens);
    mask
}

impl Constraint for Spells {
    fn mask(&mut self) -> Result<TokenMask, ConstraintError> {
        self.masks.fetch_add(1, Ordering::Relaxed);
        Ok(mask_of(&self.tokens[self.position..][..1], false))
    }

    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        assert_eq!(token, self.tokens[self.position]);
        self.position += 1;
        Ok(self.position == self.tokens.len())
    }
}

/// Panics, in its mask or when a token is accepted.
#[derive(Debug)]
struct Panics {
    in_mask: bool,
}

impl Constraint for Panics {
    fn mask(&mut self) -> Result<TokenMask, ConstraintError> {
        assert!(!self.in_mask, "a broken constraint");
        Ok(mask_of(&[0], false))
    }

    fn accept(&mut self, _: u32) -> Result<bool, ConstraintError> {
        panic!("a broken constraint")
    }
}

/// Waits in its mask until others do.
#[derive(Debug)]
struct Meets(Arc<Barrier>);

impl Constraint for Meets {
    fn mask(&mut self) -> Result<TokenMask, ConstraintError> {
        self.0.wait();
        Ok(mask_of(&[0], false))
    }

    fn accept(&mut self, _: u32) -> Result<bool, ConstraintError> {
        Ok(false)
    }
}

#[test]
fn a_mask_forbids_all_but_its_tokens() {
    let mask = mask_of(&[1, 40, 63], true);
    assert!(mask.may_end() && !mask.is_empty());
    let allowed = |mask: &TokenMask| (0..100).filter(|&t| mask.allows(t)).collect::<Vec<u32>>();
    assert_eq!(allowed(&mask), [1, 40, 63]);
    let mut logits = [0.5; 100];
    mask.apply(&mut logits);
    let left = (0..100u32).zip(logits).filter(|&(_, x)| x == 0.5);
    assert_eq!(left.map(|(t, _)| t).collect::<Vec<_>>(), [1, 40, 63]);
    let mut full = [0.5; 70];
    TokenMask::new(vec![u32::MAX; 2], false).apply(&mut full);
    assert!(full[..64].iter().all(|&x| x == 0.5) && full[64..].iter().all(|&x| x < 0.0));
}

#[test]
fn tokens_are_forbidden_as_long_as_others_are_allowed() {
    let mut mask = mask_of(&[1, 2, 3], false);
    mask.forbid_unless_last([1, 3, 999].iter());
    assert_eq!(mask, mask_of(&[2], false));
    mask.forbid_unless_last([2].iter());
    assert_eq!(mask, mask_of(&[2], false));
}

#[test]
fn a_guide_gives_each_mask_once_and_ends_when_complete() {
    for threads in [0, 1, 3] {
        let workers = MaskWorkers::new(threads).unwrap();
        let spells = Spells::new(&[5, 3, 8]);
        let masks = Arc::clone(&spells.masks);
        let mut guide = Guide::new(Box::new(spells), &workers);
        for (token, last) in [(5, false), (3, false), (8, true)] {
            assert_eq!(guide.mask(), Ok(mask_of(&[token], false)));
            assert_eq!(guide.accept(token), Ok(last));
        }
        assert_eq!(masks.load(Ordering::Relaxed), 3);
        assert_eq!(guide.mask(), Err(ConstraintError::Failed));
    }
}

#[test]
fn a_mask_is_computed_before_it_is_asked_for() {
    let workers = MaskWorkers::new(1).unwrap();
    let spells = Spells::new(&[5]);
    let masks = Arc::clone(&spells.masks);
    let _guide = Guide::new(Box::new(spells), &workers);
    while masks.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two masks that wait for each other need two threads: the worker, and the one that waits.
#[test]
fn who_waits_for_a_mask_that_was_not_begun_computes_it() {
    let workers = MaskWorkers::new(1).unwrap();
    let barrier = Arc::new(Barrier::new(2));
    let guide = || Guide::new(Box::new(Meets(Arc::clone(&barrier))), &workers);
    let (_first, mut second) = (guide(), guide());
    assert_eq!(second.mask(), Ok(mask_of(&[0], false)));
}

#[test]
fn masks_of_dropped_sequences_are_not_computed() {
    let workers = MaskWorkers::new(1).unwrap();
    let barrier = Arc::new(Barrier::new(2));
    let first = Guide::new(Box::new(Meets(Arc::clone(&barrier))), &workers);
    let spells = Spells::new(&[5]);
    let masks = Arc::clone(&spells.masks);
    drop(Guide::new(Box::new(spells), &workers));
    barrier.wait();
    drop((first, workers));
    assert_eq!(masks.load(Ordering::Relaxed), 0);
    assert_eq!(Arc::strong_count(&masks), 1);
}

#[test]
fn a_constraint_that_panics_fails() {
    let workers = MaskWorkers::new(1).unwrap();
    let mut guide = Guide::new(Box::new(Panics { in_mask: true }), &workers);
    assert_eq!(guide.mask(), Err(ConstraintError::Failed));
    let mut guide = Guide::new(Box::new(Panics { in_mask: false }), &workers);
    assert_eq!(guide.mask(), Ok(mask_of(&[0], false)));
    assert_eq!(guide.accept(0), Err(ConstraintError::Failed));
    assert_eq!(guide.mask(), Err(ConstraintError::Failed));
}
