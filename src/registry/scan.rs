//! From the files of the folder to served tickets: at the start, and whenever the folder has
//! changed.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::files::RefusedFile;
use super::generation::{Generation, Name};
use super::ticket_folder::{FileFault, Index, Listing, Stamp, TicketFile};
use super::{Condition, Facts, Registry, RegistryError, lock};
use crate::access::Tenant;
use crate::ticket::TicketError;

/// Files read at once at the start; each may be as large as the largest ticket.
const READERS: usize = 4;

/// What a scan of the folder found.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// Some files are still being written: scan again soon.
    pub unsettled: bool,
    /// Generations whose file is gone or no ticket any more.
    pub withdrawn: Vec<Arc<Generation>>,
    /// Every folder that was read.
    pub folders: Vec<PathBuf>,
}

/// Stamps of changed files, from one scan to the next: a file whose stamp stays is not being
/// written.
pub(super) type Unsettled = HashMap<PathBuf, Stamp>;

impl Registry {
    /// Serves the files of a listing, those first that the index lists as served, each in the order
    /// of their paths; returns those it refuses. Reads only what the index does not know.
    pub(super) fn adopt_all(&self, listing: Listing) -> Vec<(PathBuf, RegistryError)> {
        let index = Index::read(&self.index, &self.binding());
        let fault = |(path, fault): (PathBuf, FileFault)| {
            let error = RegistryError::Refused {
                path: path.clone(),
                fault,
            };
            (path, error)
        };
        let mut refused: Vec<_> = listing.refused.into_iter().map(fault).collect();
        let root = self.folder.path();
        let facts = in_parallel(&listing.tickets, |file| {
            match index.facts(root, &file.path, &file.stamp) {
                Some(facts) => self.check_known(file, facts),
                None => self.read_facts(file),
            }
        });
        let mut tickets: Vec<_> = listing.tickets.into_iter().zip(facts).collect();
        // Of names that differ in case alone, the one that was served keeps being so.
        tickets.sort_by_key(|(file, _)| !index.lists(root, &file.path));
        for (file, facts) in tickets {
            if let Err(error) = facts.and_then(|facts| self.adopt(&file, facts)) {
                lock(&self.files).refused(&file.path, Some(file.stamp), error.to_string());
                refused.push((file.path, error));
            }
        }
        for (path, error) in &refused {
            if matches!(error, RegistryError::Refused { .. }) {
                lock(&self.files).refused(path, None, error.to_string());
            }
        }
        refused
    }

    /// Looks at the folder again: serves new files, replaces changed ones, withdraws those that
    /// are gone. A file counts once its stamp has not changed since the scan before.
    pub(super) fn rescan(&self, unsettled: &mut Unsettled) -> Result<Scanned, RegistryError> {
        let listing = self.folder.list()?;
        let mut scanned = Scanned::default();
        self.withdraw_missing(&listing, &mut scanned);
        let present: BTreeSet<&Path> = listing.tickets.iter().map(|f| &*f.path).collect();
        unsettled.retain(|path, _| present.contains(&**path));
        for file in &listing.tickets {
            self.look_into(file, unsettled, &mut scanned);
        }
        for (path, fault) in listing.refused {
            let error = RegistryError::Refused {
                path: path.clone(),
                fault,
            };
            let _writing = lock(&self.writing);
            let stamp = self.folder.stamp(&path);
            if stamp.is_some_and(|stamp| lock(&self.files).is_known(&path, &stamp)) {
                // An upload has taken its place since the listing.
                continue;
            }
            self.refuse(&path, None, &error, &mut scanned);
        }
        scanned.unsettled |= !unsettled.is_empty();
        scanned.folders = listing.folders;
        Ok(scanned)
    }

    /// The files that are not served, of the public folder and of every tenant's, or of one
    /// tenant's folder alone; by path, relative to the ticket folder.
    pub fn refused(&self, tenant: Option<&Tenant>) -> Vec<RefusedFile> {
        let root = self.folder.path();
        let own = tenant.map(|tenant| self.folder.folder_of(Some(tenant)));
        let files = lock(&self.files);
        let all = files.all_refused();
        let visible = all.filter(|file| own.as_ref().is_none_or(|own| file.path.starts_with(own)));
        // Answers name no path outside the folder.
        let prefix = format!("{}/", root.display());
        let relative = visible.map(|file| RefusedFile {
            path: file
                .path
                .strip_prefix(root)
                .unwrap_or(&file.path)
                .to_owned(),
            reason: file.reason.replace(&prefix, ""),
        });
        relative.collect()
    }

    /// Withdraws the tickets whose files are gone.
    fn withdraw_missing(&self, listing: &Listing, scanned: &mut Scanned) {
        let tickets = listing.tickets.iter().map(|file| &file.path);
        let refused = listing.refused.iter().map(|(path, _)| path);
        let present: BTreeSet<_> = tickets.chain(refused).collect();
        let missing: Vec<_> = {
            let files = lock(&self.files);
            let missing = files.paths().filter(|path| !present.contains(path));
            missing.cloned().collect()
        };
        for path in missing {
            let _writing = lock(&self.writing);
            // An upload may have put it there since the listing. A folder that was refused, and
            // is no longer, is there.
            let mended = lock(&self.files).is_unread(&path);
            if mended || self.folder.stamp(&path).is_none() {
                self.withdraw(&path, scanned);
                lock(&self.files).gone(&path);
            }
        }
    }

    /// Serves or refuses a file whose stamp is new, once it has settled.
    fn look_into(&self, file: &TicketFile, unsettled: &mut Unsettled, scanned: &mut Scanned) {
        if lock(&self.files).is_known(&file.path, &file.stamp) {
            unsettled.remove(&file.path);
            return;
        }
        if unsettled.insert(file.path.clone(), file.stamp) != Some(file.stamp) {
            return;
        }
        let facts = self.read_facts(file);
        let _writing = lock(&self.writing);
        if self.folder.stamp(&file.path) != Some(file.stamp) {
            // Written again, uploaded or deleted while it was read.
            return;
        }
        unsettled.remove(&file.path);
        match facts.and_then(|facts| self.adopt(file, facts)) {
            Ok(()) => {
                let file = file.path.display();
                tracing::info!(%file, "serving a ticket from the folder");
            }
            Err(error) => self.refuse(&file.path, Some(file.stamp), &error, scanned),
        }
    }

    /// Looks at the file of a generation whose load failed. Once this returns, no writer is at
    /// work; and a ticket that was moved over the file of a watched folder is served, without
    /// waiting for the next scan.
    pub(super) fn look_again(&self, failed: &Generation) {
        let name = failed.name();
        let known = {
            let _writing = lock(&self.writing);
            let current = self.names().owned(name.owner, name.alias).cloned();
            if current.is_none_or(|current| current.id() != failed.id()) {
                return;
            }
            lock(&self.files).stamp(&failed.path)
        };
        let watched = self.watched.load(Ordering::Relaxed);
        let (true, Some(known), Some(stamp)) =
            (watched, known, self.folder.stamp_inside(&failed.path))
        else {
            return;
        };
        // A file that is written in place has to settle first.
        if !stamp.is_another_file(&known) {
            return;
        }
        let file = TicketFile {
            owner: name.owner.cloned(),
            alias: name.alias.to_owned(),
            path: failed.path.clone(),
            stamp,
        };
        let facts = self.read_facts(&file);
        let _writing = lock(&self.writing);
        if self.folder.stamp(&file.path) != Some(stamp) {
            return;
        }
        // What is wrong with the file, the next scan says.
        if facts.and_then(|facts| self.adopt(&file, facts)).is_ok() {
            let file = file.path.display();
            tracing::info!(%file, "serving a ticket that was moved into the folder");
        }
    }

    /// Sets a file aside, and says so once.
    fn refuse(
        &self,
        path: &Path,
        stamp: Option<Stamp>,
        error: &RegistryError,
        scanned: &mut Scanned,
    ) {
        if lock(&self.files).refused(path, stamp, error.to_string()) {
            tracing::warn!("{} is not served: {error}", path.display());
            self.withdraw(path, scanned);
        }
    }

    /// Takes the name from the ticket of that file; running leases keep it.
    fn withdraw(&self, path: &Path, scanned: &mut Scanned) {
        let found = {
            let names = self.names();
            names.all().find(|found| found.path == path).cloned()
        };
        if let Some(found) = found {
            let ticket = found.name();
            tracing::info!(%ticket, "withdrew a ticket: its file is gone or invalid");
            self.names_mut().remove(found.owner(), found.alias());
            self.refresh_pins();
            self.forget(&found);
            lock(&self.files).name_is_free(path);
            scanned.withdrawn.push(found);
        }
    }

    /// Points the file's name at a generation of these facts, unless it has them already.
    pub(super) fn adopt(&self, file: &TicketFile, facts: Facts) -> Result<(), RegistryError> {
        let name = Name::new(file.owner.as_ref(), &file.alias);
        let found = self.names().any_case(name.owner, name.alias).cloned();
        if let Some(found) = &found {
            Condition::upsert().check_publish(name.alias, Some(found))?;
        }
        self.check_room_beside_pins(name, &facts)?;
        lock(&self.files).served(&file.path, file.stamp);
        if found.as_ref().is_some_and(|found| *found.facts() == facts) {
            return Ok(());
        }
        let created = file.stamp.modified();
        let generation = Generation::new(name, file.path.clone(), facts, created);
        self.point_at(Arc::new(generation));
        Ok(())
    }

    /// Reads and checks a file.
    pub(super) fn read_facts(&self, file: &TicketFile) -> Result<Facts, RegistryError> {
        self.check_name(&file.alias)?;
        Ok(self.facts(&self.read(&file.path)?))
    }

    /// Checks what depends on the flags of this start.
    fn check_known(&self, file: &TicketFile, facts: &Facts) -> Result<Facts, RegistryError> {
        self.check_name(&file.alias)?;
        let limit = self.options.max_ticket_bytes;
        if facts.file_bytes > limit {
            return Err(RegistryError::Invalid(TicketError::FileTooLarge { limit }));
        }
        self.check_memory(facts.memory)?;
        Ok(facts.clone())
    }

    /// Notes a file that the registry has written.
    pub(super) fn note_placed(&self, path: &Path) {
        if let Some(stamp) = self.folder.stamp(path) {
            lock(&self.files).served(path, stamp);
        }
    }

    /// Notes a file that the registry has removed.
    pub(super) fn note_removed(&self, path: &Path) {
        let mut files = lock(&self.files);
        files.gone(path);
        files.name_is_free(path);
    }

    /// What the facts of a file depend on besides the file.
    fn binding(&self) -> String {
        let options = &self.options;
        format!(
            "tombola {}, base {}, foreign tickets {}, {}",
            env!("CARGO_PKG_VERSION"),
            self.base.fingerprint,
            options.allow_foreign_base,
            options.ticket_memory.tag()
        )
    }

    /// Writes the index, if a file has changed since it was written.
    pub(super) fn write_index(&self) {
        if !lock(&self.files).take_changed() {
            return;
        }
        let index = self.index_now();
        if let Err(error) = index.write(&self.index) {
            let path = self.index.display();
            tracing::debug!(%path, %error, "cannot write the ticket index");
        }
    }

    /// The index of what is served.
    fn index_now(&self) -> Index {
        // Between the notes of a stamp and of its facts, another writer is at work.
        let _writing = lock(&self.writing);
        let root = self.folder.path();
        let mut index = Index::new(&self.binding());
        let facts: HashMap<PathBuf, Facts> = {
            let names = self.names();
            let all = names.all();
            all.map(|found| (found.path.clone(), found.facts().clone()))
                .collect()
        };
        for (path, stamp) in lock(&self.files).all_served() {
            if let Some(facts) = facts.get(path) {
                index.insert(root, path, stamp, facts.clone());
            }
        }
        index
    }

    /// Looks whether a full or read-only folder can be written again.
    pub(super) fn probe(&self) {
        self.folder.probe();
    }
}

/// The results of `work` for each item, in order, computed by [`READERS`] threads.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        while let Some(item) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            items.get(i).map(|item| (i, item))
        } {
            done.push((item.0, work(item.1)));
        }
        done
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS.min(items.len()))
            .map(|_| scope.spawn(take))
            .collect();
        let join = |reader: thread::ScopedJoinHandle<'_, Vec<(usize, R)>>| match reader.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        readers.into_iter().flat_map(join).collect()
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}
