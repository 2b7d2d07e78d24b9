//! Tests of the allocator.

use proptest::prelude::*;

use super::*;

/// The first `blocks` hashes of chain `n`.
fn chain(n: u8, blocks: u8) -> Vec<BlockHash> {
    let hash = |at| {
        let mut hash = [n; 32];
        hash[0] = at;
        BlockHash(hash)
    };
    (0..blocks).map(hash).collect()
}

/// A table with as many blocks as the chain, all of them cached.
fn cached(blocks: &mut BlockAllocator, chain: &[BlockHash]) -> BlockTable {
    let mut table = blocks.share(chain);
    assert!(blocks.grow(&mut table, chain.len()));
    for (at, hash) in chain.iter().enumerate() {
        blocks.cache(&mut table, at, *hash);
    }
    table
}

#[test]
fn cached_blocks_are_shared_and_outlive_their_tables() {
    let mut blocks = BlockAllocator::new(4);
    let first = cached(&mut blocks, &chain(1, 2));
    let second = blocks.share(&chain(1, 3));
    assert_eq!((&second, blocks.available()), (&first, 2));
    blocks.release(first);
    assert_eq!(blocks.available(), 2);
    blocks.release(second);
    assert_eq!(blocks.available(), 4);
    let CachedPrefix { blocks: hits, held } = blocks.cached_prefix(&chain(1, 3));
    assert_eq!((hits, held), (2, 0));
}

#[test]
fn a_cached_block_is_evicted_only_if_none_is_free_the_oldest_chain_from_its_end() {
    let mut blocks = BlockAllocator::new(5);
    for n in [1, 2] {
        let table = cached(&mut blocks, &chain(n, 2));
        blocks.release(table);
    }
    let hits = |blocks: &BlockAllocator| [1, 2].map(|n| blocks.cached_prefix(&chain(n, 2)).blocks);
    let mut table = BlockTable::default();
    assert!(blocks.grow(&mut table, 1));
    assert_eq!((hits(&blocks), blocks.evictions()), ([2, 2], 0));
    assert!(blocks.grow(&mut table, 2));
    assert_eq!((hits(&blocks), blocks.evictions()), ([1, 2], 1));
    // A hit makes its chain the most recently used.
    let again = blocks.share(&chain(1, 2));
    assert_eq!(again.len(), 1);
    blocks.release(again);
    assert!(blocks.grow(&mut table, 4));
    assert_eq!((hits(&blocks), blocks.evictions()), ([1, 0], 3));
    // Blocks in tables are never evicted.
    assert!(!blocks.grow(&mut table, 6));
    assert_eq!((hits(&blocks), table.len()), ([1, 0], 4));
}

#[test]
fn a_block_that_was_computed_twice_is_kept_once() {
    let mut blocks = BlockAllocator::new(4);
    let first = cached(&mut blocks, &chain(1, 2));
    let mut twice = BlockTable::default();
    assert!(blocks.grow(&mut twice, 2));
    for (at, hash) in chain(1, 2).into_iter().enumerate() {
        blocks.cache(&mut twice, at, hash);
    }
    assert_eq!((&twice, blocks.available()), (&first, 2));
    blocks.release(first);
    blocks.release(twice);
    assert_eq!(blocks.available(), 4);
}

proptest! {
    /// Tables over a few chains come and go in any order.
    #[test]
    fn every_block_is_free_private_or_cached(
        steps in prop::collection::vec(
            (0u8..3, 1u8..6, any::<bool>(), any::<prop::sample::Index>()),
            0..80,
        ),
    ) {
        let mut blocks = BlockAllocator::new(12);
        let mut tables: Vec<(BlockTable, usize)> = Vec::new();
        for (n, length, comes, which) in steps {
            let chain = chain(n, length);
            if comes {
                let mut table = blocks.share(&chain);
                let shared = table.len();
                if blocks.grow(&mut table, chain.len() + 1) {
                    for (at, hash) in chain.iter().enumerate().skip(shared) {
                        blocks.cache(&mut table, at, *hash);
                    }
                    tables.push((table, chain.len()));
                } else {
                    blocks.release(table);
                }
            } else if !tables.is_empty() {
                let (table, _) = tables.swap_remove(which.index(tables.len()));
                blocks.release(table);
            }
            check(&blocks, &tables)?;
        }
        tables.into_iter().for_each(|(table, _)| blocks.release(table));
        prop_assert_eq!(blocks.available(), blocks.total());
    }
}

/// The counts of holders are right, chains are cached from their start, and nobody else holds the
/// private blocks of a table, which follow its `cached` ones.
fn check(blocks: &BlockAllocator, tables: &[(BlockTable, usize)]) -> Result<(), TestCaseError> {
    let mut holders = vec![0; blocks.total()];
    for (table, _) in tables {
        table.iter().for_each(|&block| holders[block as usize] += 1);
    }
    prop_assert_eq!(&holders, &blocks.holders);
    for (table, cached) in tables {
        for (at, &block) in table.iter().enumerate() {
            let hash = blocks.hashes[block as usize];
            prop_assert_eq!(hash.is_some(), at < *cached);
            prop_assert!(hash.is_some() || holders[block as usize] == 1);
        }
    }
    for n in 0..3 {
        let chain = chain(n, 6);
        let linear = chain
            .iter()
            .take_while(|hash| blocks.is_cached(hash))
            .count();
        prop_assert_eq!(
            linear,
            chain.iter().filter(|hash| blocks.is_cached(hash)).count()
        );
        prop_assert_eq!(linear, blocks.cached_prefix(&chain).blocks);
    }
    let unused = holders.iter().filter(|&&count| count == 0).count();
    prop_assert_eq!(unused, blocks.available());
    Ok(())
}
