//! Hashes of KV blocks: what their keys and values depend on.

use sha2::{Digest as _, Sha256};

use crate::access::Tenant;
use crate::model::BLOCK;
use crate::ticket::Digest;

/// SHA-256 over all that a block's keys and values depend on, so that two blocks with equal hashes
/// are taken to hold the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 32]);

/// What the keys and values of a sequence depend on besides its tokens, and who may share them. The
/// base is not part of it: a cache is of one loaded base.
#[derive(Debug, Default)]
pub struct PrefixScope<'a> {
    /// Digest of the ticket's content; `None` for the base.
    pub ticket: Option<Digest>,
    /// Tenant whose requests share blocks; `None` for the operator.
    pub tenant: Option<&'a Tenant>,
    /// Salt of the requests that share blocks.
    pub salt: Option<&'a str>,
}

/// Factor on the deltas of every ticket that the engine runs.
const SCALE: f32 = 1.0;

impl PrefixScope<'_> {
    /// Hash that the chain of a sequence's blocks starts from.
    fn root(&self) -> BlockHash {
        let mut hasher = Sha256::new();
        hasher.update(b"tombola KV blocks 1");
        // Each field begins with its presence and its length, so that no two scopes are one text.
        let mut field = |bytes: Option<&[u8]>| {
            hasher.update([u8::from(bytes.is_some())]);
            if let Some(bytes) = bytes {
                hasher.update((bytes.len() as u64).to_le_bytes());
                hasher.update(bytes);
            }
        };
        field(self.ticket.as_ref().map(|digest| digest.0.as_slice()));
        field(self.ticket.is_some().then_some(&SCALE.to_le_bytes()));
        field(self.tenant.map(|tenant| tenant.as_str().as_bytes()));
        field(self.salt.map(str::as_bytes));
        BlockHash(hasher.finalize().into())
    }
}

/// Hashes the full blocks of a growing sequence, each together with all before it.
#[derive(Clone, Debug)]
pub struct HashChain {
    last: BlockHash,
    /// Blocks hashed so far.
    blocks: usize,
}

impl HashChain {
    /// A chain without blocks.
    pub fn new(scope: &PrefixScope) -> Self {
        Self {
            last: scope.root(),
            blocks: 0,
        }
    }

    /// Hashes of the blocks that `tokens`, all tokens of the sequence so far, have filled since the
    /// last call.
    pub fn extend(&mut self, tokens: &[u32]) -> Vec<BlockHash> {
        let (blocks, _) = tokens.as_chunks::<BLOCK>();
        let fresh = &blocks[self.blocks..];
        self.blocks = blocks.len();
        let hashes = fresh.iter().map(|tokens| {
            let mut hasher = Sha256::new_with_prefix(self.last.0);
            let bytes: [[u8; 4]; BLOCK] = tokens.map(u32::to_le_bytes);
            hasher.update(bytes.as_flattened());
            self.last = BlockHash(hasher.finalize().into());
            self.last
        });
        hashes.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::Digest;

    fn tokens(count: usize) -> Vec<u32> {
        (0..count as u32).collect()
    }

    #[test]
    fn a_block_is_hashed_once_it_is_full_with_all_before_it() {
        let scope = PrefixScope::default();
        let whole = HashChain::new(&scope).extend(&tokens(3 * BLOCK));
        let mut chain = HashChain::new(&scope);
        let grown: Vec<BlockHash> = (1..=3 * BLOCK)
            .flat_map(|count| chain.extend(&tokens(count)))
            .collect();
        assert_eq!((grown.len(), &grown), (3, &whole));
        assert!(HashChain::new(&scope).extend(&tokens(BLOCK - 1)).is_empty());
        let mut other = tokens(3 * BLOCK);
        other[BLOCK] += 1;
        let other = HashChain::new(&scope).extend(&other);
        assert_eq!(other[0], whole[0]);
        assert!(other[1] != whole[1] && other[2] != whole[2]);
    }

    #[test]
    fn every_part_of_the_scope_separates() {
        let [acme, ac]: [Tenant; 2] = ["acme", "ac"].map(|name| name.parse().unwrap());
        let ticket = |n| Some(Digest([n; 32]));
        let scope = |ticket, tenant, salt| PrefixScope {
            ticket,
            tenant,
            salt,
        };
        let scopes = [
            PrefixScope::default(),
            scope(ticket(1), None, None),
            scope(ticket(2), None, None),
            scope(None, Some(&acme), None),
            scope(None, Some(&ac), None),
            scope(None, Some(&ac), Some("me")),
            scope(None, None, Some("acme")),
            scope(None, None, Some("")),
            scope(ticket(1), Some(&acme), None),
        ];
        let mut hashes: Vec<BlockHash> = scopes
            .iter()
            .flat_map(|scope| HashChain::new(scope).extend(&tokens(BLOCK)))
            .collect();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), scopes.len());
    }
}
