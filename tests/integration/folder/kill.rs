//! SIGKILL at random moments of uploads, replacements and deletions.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tombola::ticket::Digest;

use super::place::{Place, digest_of, served};
use crate::support::server::{delete, upload};

const KILLS: usize = 100;
const CLIENTS: usize = 4;
/// Aliases of each client, which no other client touches.
const ALIASES: usize = 3;
const LONGEST_LIFE_MS: u64 = 60;

/// The digests that an alias may have after a kill; `None` is no ticket.
type Allowed = Vec<Option<String>>;

/// One client: what it knows of its aliases.
struct Client {
    rng: StdRng,
    allowed: BTreeMap<String, Allowed>,
    acknowledged: usize,
}

impl Client {
    fn new(number: usize, seed: u64) -> Self {
        let alias = |i| (format!("client{number}-{i}"), vec![None]);
        Self {
            rng: StdRng::seed_from_u64(seed + number as u64),
            allowed: (0..ALIASES).map(alias).collect(),
            acknowledged: 0,
        }
    }

    /// Changes its tickets until the server is killed.
    fn run(&mut self, url: &str, files: &[(Vec<u8>, String)], killed: &AtomicBool) {
        while !killed.load(Ordering::SeqCst) {
            let chosen = self.rng.random_range(0..ALIASES);
            let (alias, allowed) = self.allowed.iter_mut().nth(chosen).unwrap();
            let (outcome, answer) = if self.rng.random_bool(0.3) {
                (None, delete(url, &format!("/v1/tickets/{alias}")))
            } else {
                let (file, digest) = &files[self.rng.random_range(0..files.len())];
                (Some(digest.clone()), upload(url, alias, file, true))
            };
            match answer {
                Ok((200 | 201, _)) => *allowed = vec![outcome],
                // Nothing was there to delete.
                Ok((404, _)) => assert!(allowed.contains(&None), "{alias} was lost"),
                Ok((status, body)) => panic!("{alias}: {status} {body}"),
                // The kill: done or not, but nothing else.
                Err(_) => {
                    allowed.push(outcome);
                    return;
                }
            }
            self.acknowledged += 1;
        }
    }

    /// Compares its tickets to those of the restarted server.
    fn check(&mut self, served: &BTreeMap<String, String>, place: &Place) {
        for (alias, allowed) in &mut self.allowed {
            let found = served.get(alias).cloned();
            assert!(
                allowed.contains(&found),
                "{alias} is {found:?}, expected one of {allowed:?}"
            );
            assert_eq!(digest_of(&place.ticket(alias)), found, "{alias} on disk");
            *allowed = vec![found];
        }
    }
}

fn temporary_files(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.tickets()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".upload-")).collect()
}

#[test]
fn a_hundred_kills_lose_no_acknowledged_change_and_leave_no_half_done_one() {
    let given = std::env::var("TOMBOLA_TEST_SEED").ok();
    let seed = given.map_or_else(rand::random, |text| text.parse().expect("a number"));
    println!("TOMBOLA_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let place = Place::new();
    let files: Vec<_> = (0..12)
        .map(|i| {
            let file = place.encode([0.001, 0.05, 0.5][i % 3], i as u64);
            let digest = Digest::of(&file).to_string();
            (file, digest)
        })
        .collect();
    let mut clients: Vec<_> = (0..CLIENTS).map(|i| Client::new(i, seed)).collect();
    let mut left_over = 0;
    for _ in 0..KILLS {
        let server = place.start(&[]);
        assert_eq!(temporary_files(&place), [""; 0], "after a start");
        let list = served(&server);
        for client in &mut clients {
            client.check(&list, &place);
        }
        let known = clients.iter().flat_map(|client| client.allowed.values());
        let expected = known.filter(|allowed| allowed[0].is_some()).count();
        assert_eq!(list.len(), expected, "{list:?}");
        let killed = AtomicBool::new(false);
        let url = server.url().to_owned();
        thread::scope(|scope| {
            for client in &mut clients {
                let (url, files, killed) = (&url, &files, &killed);
                scope.spawn(move || client.run(url, files, killed));
            }
            thread::sleep(Duration::from_millis(rng.random_range(1..LONGEST_LIFE_MS)));
            server.kill();
            killed.store(true, Ordering::SeqCst);
        });
        left_over += temporary_files(&place).len();
    }
    let acknowledged: usize = clients.iter().map(|client| client.acknowledged).sum();
    println!("{KILLS} kills, {acknowledged} acknowledged changes, {left_over} left-over files");
    // Otherwise nothing was interrupted.
    assert!(acknowledged > KILLS && left_over > 0);
}
