//! The ticket folder of the real binary: kills, a watched folder, many tickets, a full disk.

mod kill;
mod many;
mod place;
mod trouble;
mod watch;
