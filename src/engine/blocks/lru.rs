//! Queue of blocks by last use: plain data.

/// Doubly linked list over the numbers `0..capacity`, each in it at most once. All operations take
/// constant time.
#[derive(Debug)]
pub struct LruQueue {
    /// Successor and predecessor of each number; the last entry closes the ring.
    next: Vec<u32>,
    previous: Vec<u32>,
    len: usize,
}

impl LruQueue {
    /// An empty queue of numbers below `capacity`.
    pub fn new(capacity: u32) -> Self {
        let ring: Vec<u32> = (0..=capacity).collect();
        Self {
            next: ring.clone(),
            previous: ring,
            len: 0,
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The least recently used number, which leaves the queue.
    pub fn pop(&mut self) -> Option<u32> {
        let oldest = self.next[self.end()];
        let found = oldest as usize != self.end();
        found.then(|| {
            self.remove(oldest);
            oldest
        })
    }

    /// Adds a number, which is not in the queue, as the most recently used.
    pub fn push(&mut self, number: u32) {
        debug_assert!(!self.contains(number));
        let end = self.end();
        let newest = std::mem::replace(&mut self.previous[end], number);
        self.next[newest as usize] = number;
        self.previous[number as usize] = newest;
        self.next[number as usize] = end as u32;
        self.len += 1;
    }

    /// Removes a number, which is in the queue.
    pub fn remove(&mut self, number: u32) {
        debug_assert!(self.contains(number));
        let at = number as usize;
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
        (self.previous[at], self.next[at]) = (number, number);
        self.len -= 1;
    }

    /// Whether a number is in the queue: those that are not link to themselves.
    fn contains(&self, number: u32) -> bool {
        self.next[number as usize] != number
    }

    fn end(&self) -> usize {
        self.next.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_leave_in_the_order_of_their_last_use(
            steps in prop::collection::vec((0u32..8, any::<bool>()), 0..60),
        ) {
            let (mut queue, mut model) = (LruQueue::new(8), VecDeque::new());
            for (number, pops) in steps {
                if pops {
                    prop_assert_eq!(queue.pop(), model.pop_front());
                } else if let Some(at) = model.iter().position(|&other| other == number) {
                    queue.remove(number);
                    model.remove(at);
                } else {
                    queue.push(number);
                    model.push_back(number);
                }
                prop_assert_eq!(queue.len(), model.len());
            }
            prop_assert!(std::iter::from_fn(|| queue.pop()).eq(model));
        }
    }
}
