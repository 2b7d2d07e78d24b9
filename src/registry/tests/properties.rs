//! Invariants of the registry under random histories.

use proptest::prelude::*;

use super::*;
use crate::registry::selection::Part;
use crate::ticket::merge::merge;

const ALIASES: [&str; 4] = ["a", "b", "c", "d"];
/// Tickets that the memory holds.
const ROOM: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Publish { alias: usize, content: usize },
    Remove { alias: usize },
    Lease { alias: usize },
    Drop { lease: usize },
    Pin { alias: usize },
    Unpin { alias: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let alias = 0..ALIASES.len();
    prop_oneof![
        3 => (alias.clone(), 0..5usize)
            .prop_map(|(alias, content)| Step::Publish { alias, content }),
        1 => alias.clone().prop_map(|alias| Step::Remove { alias }),
        5 => alias.clone().prop_map(|alias| Step::Lease { alias }),
        4 => (0..8usize).prop_map(|lease| Step::Drop { lease }),
        1 => alias.clone().prop_map(|alias| Step::Pin { alias }),
        1 => alias.prop_map(|alias| Step::Unpin { alias }),
    ]
}

/// A registry beside a model of it.
struct Pair {
    registry: Registry,
    contents: BTreeMap<usize, Digest>,
    leases: Vec<(Lease, Digest)>,
}

impl Pair {
    fn take(&mut self, step: &Step) {
        let registry = &self.registry;
        match *step {
            Step::Publish { alias, content } => {
                let name = Name::public(ALIASES[alias]);
                let file = staged(registry, &ticket_file(content));
                match registry.publish(name, file, &Condition::upsert()) {
                    Ok(generation) => {
                        self.contents.insert(alias, generation.digest());
                    }
                    // Pins leave no memory for a ticket that they did not know of. The content of
                    // a pinned alias would be one more to keep.
                    Err(RegistryError::TooLargeForMemory { .. }) => {
                        let more = usize::from(registry.names().is_pinned(name));
                        assert!(registry.usage().pinned + more >= ROOM);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Remove { alias } => {
                let name = Name::public(ALIASES[alias]);
                let removed = registry.remove(name, &Condition::default());
                let expected = self.contents.remove(&alias);
                assert_eq!(removed.ok().map(|removed| removed.digest()), expected);
            }
            Step::Lease { alias } => match registry.lease(None, ALIASES[alias]) {
                Ok(lease) => self.leases.push((lease, self.contents[&alias])),
                Err(RegistryError::Unknown(_)) => assert!(!self.contents.contains_key(&alias)),
                Err(RegistryError::MemoryFull { .. }) => {
                    let usage = registry.usage();
                    let kept = usage.leased + usage.pinned;
                    assert!(kept >= ROOM, "memory is full without need: {usage:?}");
                }
                Err(error) => panic!("{error}"),
            },
            Step::Drop { lease } => {
                if !self.leases.is_empty() {
                    self.leases.swap_remove(lease % self.leases.len());
                }
            }
            Step::Pin { alias } => {
                let pinned = registry.pin(Name::public(ALIASES[alias]));
                assert_eq!(
                    matches!(pinned, Err(RegistryError::Unknown(_))),
                    !self.contents.contains_key(&alias)
                );
            }
            Step::Unpin { alias } => drop(registry.unpin(Name::public(ALIASES[alias]))),
        }
    }

    fn check(&self) {
        let usage = self.registry.usage();
        assert!(usage.used.host <= usage.budget.host, "{usage:?}");
        assert_eq!(usage.used.host, usage.resident * one_ticket_bytes());
        for (lease, content) in &self.leases {
            assert_eq!(lease.ticket().digest(), *content);
            assert_eq!(lease.ticket().nonzeros(), 4);
        }
        for (alias, content) in &self.contents {
            let found = self.registry.get(None, ALIASES[*alias]).unwrap();
            assert_eq!(found.digest(), *content);
        }
        assert_eq!(self.registry.len(), self.contents.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn memory_keeps_its_budget_and_leases_their_bytes_until_the_last_is_dropped(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let dir = TempDir::new().unwrap();
        let mut pair = Pair {
            registry: open_with(&dir, ROOM * one_ticket_bytes()).registry,
            contents: BTreeMap::new(),
            leases: Vec::new(),
        };
        for step in &steps {
            pair.take(step);
            pair.check();
        }
        for alias in 0..ALIASES.len() {
            pair.take(&Step::Remove { alias });
        }
        let leased: BTreeSet<_> = pair.leases.iter().map(|(lease, _)| id(lease)).collect();
        prop_assert!(pair.registry.usage().resident <= leased.len());
        pair.leases.clear();
        let usage = pair.registry.usage();
        prop_assert_eq!((usage.resident, usage.leased, usage.pinned), (0, 0, 0));
        prop_assert_eq!(usage.used, TicketBytes::default());
    }
}

/// A ticket file with these deltas of two parameters, by position, as bf16 or f32.
fn file_of(deltas: [&BTreeMap<usize, f32>; 2], narrow: bool) -> Option<Vec<u8>> {
    let dtype = if narrow {
        DeltaDtype::Bf16
    } else {
        DeltaDtype::F32
    };
    let mut tensors = BTreeMap::new();
    for (parameter, deltas) in [PARAMETER, "model.layers.0.self_attn.k_proj.weight"]
        .into_iter()
        .zip(deltas)
    {
        let (positions, values): (Vec<_>, Vec<_>) = deltas.iter().unzip();
        if !positions.is_empty() {
            let values = Deltas::from_f32(values, dtype);
            let delta = TensorDelta::from_flat([8, 8], &positions, values).unwrap();
            tensors.insert(parameter.to_owned(), delta);
        }
    }
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    if nonzeros == 0 {
        return None;
    }
    Ticket::encode(&Metadata::new("any", &base(), nonzeros), &tensors).ok()
}

fn random_file() -> impl Strategy<Value = Vec<u8>> {
    let deltas = || prop::collection::btree_map(0..64usize, -2.0f32..2.0, 0..20);
    (deltas(), deltas(), any::<bool>()).prop_filter_map("changes no weight", |(a, b, narrow)| {
        file_of([&a, &b], narrow)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_composition_is_to_the_bit_the_merged_file(
        parts in prop::collection::vec((random_file(), -4.0f32..4.0), 1..5),
    ) {
        let dir = TempDir::new().unwrap();
        let registry = open(&dir);
        let mut selection = Vec::new();
        for (index, (file, scale)) in parts.iter().enumerate() {
            let alias = format!("t{index}");
            let staged = staged(&registry, file);
            registry.publish(Name::public(&alias), staged, &Condition::create()).unwrap();
            selection.push(Part { reference: alias, scale: *scale });
        }
        let tickets: Vec<_> = parts.iter().map(|(file, scale)| (bound(file), *scale)).collect();
        // What `tombola ticket merge` writes unless it is told otherwise.
        let widest = tickets.iter().map(|(ticket, _)| ticket.widest()).max().unwrap();
        let file = merge(&tickets, &base(), "merged", widest, None);
        let Ok(selection) = registry.select_parts(None, selection) else {
            return Ok(()); // A scale of 0, or two equal tickets.
        };
        let lease = registry.lease(None, &selection.to_string());
        match (file, lease) {
            (Ok(file), Ok(lease)) => {
                prop_assert_eq!(lease.ticket().tensors(), file.tensors());
                prop_assert_eq!(lease.ticket().widest(), file.widest());
            }
            (file, lease) => prop_assert!(file.is_err() && lease.is_err(), "{file:?} {lease:?}"),
        }
    }
}
