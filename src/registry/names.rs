//! Names of the registered tickets: by owner and alias, and by content.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::generation::{Generation, Name};
use super::selection::is_digest;
use crate::access::Tenant;
use crate::ticket::Digest;

/// Owner (`None` is the public) and alias in lower case: aliases of one owner differ in more than
/// case.
type Key = (Option<Tenant>, String);

/// The generations that have an alias.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_alias: BTreeMap<Key, Arc<Generation>>,
    by_content: HashMap<Digest, BTreeSet<Key>>,
    pinned: BTreeSet<Key>,
}

/// Part of a list of tickets. Lists are in the order of aliases: by letters, ignoring case, and if
/// only case differs, upper case first.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The alias before the first of the page; empty for the first page.
    pub after: &'a str,
    /// Most tickets on the page.
    pub limit: usize,
}

impl Page<'static> {
    /// The whole list.
    pub const ALL: Self = Self {
        after: "",
        limit: usize::MAX,
    };
}

/// How a request names a ticket.
enum Reference<'a> {
    Alias(&'a str),
    /// `alias@digest`, the digest cut short.
    AliasAt(&'a str, &'a str),
    Content(Digest),
}

impl Names {
    /// Points the generation's alias at it; returns the generation that the alias pointed at.
    pub fn insert(&mut self, generation: Arc<Generation>) -> Option<Arc<Generation>> {
        let key = key(generation.owner(), generation.alias());
        let replaced = self.take(&key);
        let of_content = self.by_content.entry(generation.digest()).or_default();
        of_content.insert(key.clone());
        self.by_alias.insert(key, generation);
        replaced
    }

    /// Removes an owner's alias and its pin; returns the generation that it pointed at.
    pub fn remove(&mut self, owner: Option<&Tenant>, alias: &str) -> Option<Arc<Generation>> {
        let key = key(owner, alias);
        self.pinned.remove(&key);
        self.take(&key)
    }

    fn take(&mut self, key: &Key) -> Option<Arc<Generation>> {
        let removed = self.by_alias.remove(key)?;
        if let Some(of_content) = self.by_content.get_mut(&removed.digest()) {
            of_content.remove(key);
            if of_content.is_empty() {
                self.by_content.remove(&removed.digest());
            }
        }
        Some(removed)
    }

    /// The owner's generation whose alias differs from this one in case at most.
    pub fn any_case(&self, owner: Option<&Tenant>, alias: &str) -> Option<&Arc<Generation>> {
        self.by_alias.get(&key(owner, alias))
    }

    /// The owner's generation of this alias.
    pub fn owned(&self, owner: Option<&Tenant>, alias: &str) -> Option<&Arc<Generation>> {
        let found = self.any_case(owner, alias);
        found.filter(|generation| generation.alias() == alias)
    }

    /// The generation that a caller of this tenant means by `alias`, `alias@digest` (at least
    /// 6 digits) or a whole digest, with or without `sha256:`. The caller's own
    /// tickets go before the public ones; nobody else's are seen.
    pub fn resolve(&self, tenant: Option<&Tenant>, reference: &str) -> Option<&Arc<Generation>> {
        let reference = Reference::parse(reference)?;
        let public = tenant.is_some().then_some(None);
        let mut owners = std::iter::once(tenant).chain(public);
        owners.find_map(|owner| match &reference {
            Reference::Alias(alias) => self.owned(owner, alias),
            Reference::AliasAt(alias, prefix) => {
                let found = self.owned(owner, alias);
                found.filter(|generation| generation.digest().to_string().starts_with(prefix))
            }
            Reference::Content(digest) => {
                let mut keys = self.by_content.get(digest)?.iter();
                let key = keys.find(|(of, _)| of.as_ref() == owner)?;
                self.by_alias.get(key)
            }
        })
    }

    /// Whether an alias points at this content.
    pub fn has_content(&self, content: Digest) -> bool {
        self.by_content.contains_key(&content)
    }

    /// The owner's generations whose aliases come after this one, by alias.
    fn of_owner(
        &self,
        owner: Option<&Tenant>,
        after: &str,
    ) -> impl Iterator<Item = &Arc<Generation>> {
        let owner = owner.cloned();
        let range = self.by_alias.range(key(owner.as_ref(), after)..);
        range
            .take_while(move |((of, _), _)| *of == owner)
            .map(|(_, generation)| generation)
            .skip_while(move |generation| compare_aliases(generation.alias(), after).is_le())
    }

    /// A page of the owner's generations.
    pub fn owned_page(&self, owner: Option<&Tenant>, page: Page<'_>) -> Vec<Arc<Generation>> {
        let owned = self.of_owner(owner, page.after);
        owned.take(page.limit).cloned().collect()
    }

    /// A page of the generations that a caller of this tenant can name by alias: its own and the
    /// public ones.
    pub fn visible_page(&self, tenant: Option<&Tenant>, page: Page<'_>) -> Vec<Arc<Generation>> {
        let mut tickets = self.owned_page(tenant, page);
        if tenant.is_some() {
            let hidden = |public: &Arc<Generation>| self.owned(tenant, public.alias()).is_some();
            let public = self.of_owner(None, page.after);
            let public = public.filter(|public| !hidden(public));
            tickets.extend(public.take(page.limit).cloned());
            tickets.sort_by(|a, b| compare_aliases(a.alias(), b.alias()));
            tickets.truncate(page.limit);
        }
        tickets
    }

    /// All generations.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Generation>> {
        self.by_alias.values()
    }

    /// Pins an alias, whatever it points at.
    pub fn pin(&mut self, name: Name<'_>) {
        self.pinned.insert(key(name.owner, name.alias));
    }

    /// Unpins an alias.
    pub fn unpin(&mut self, name: Name<'_>) {
        self.pinned.remove(&key(name.owner, name.alias));
    }

    /// Whether the alias is pinned.
    pub fn is_pinned(&self, name: Name<'_>) -> bool {
        self.pinned.contains(&key(name.owner, name.alias))
    }

    /// The pinned generations.
    pub fn pinned(&self) -> impl Iterator<Item = &Arc<Generation>> {
        self.pinned.iter().filter_map(|key| self.by_alias.get(key))
    }

    /// Whether two names are one: they differ in case at most.
    pub fn same(&self, a: Name<'_>, b: Name<'_>) -> bool {
        key(a.owner, a.alias) == key(b.owner, b.alias)
    }

    /// Number of aliases.
    pub fn len(&self) -> usize {
        self.by_alias.len()
    }
}

impl<'a> Reference<'a> {
    /// `None` if it can name no ticket.
    fn parse(reference: &'a str) -> Option<Self> {
        if let Some((alias, digest)) = reference.split_once('@') {
            let prefix = digest.strip_prefix("sha256:").unwrap_or(digest);
            return is_digest(digest).then_some(Self::AliasAt(alias, prefix));
        }
        let digest = reference.strip_prefix("sha256:").unwrap_or(reference);
        Some(match digest.parse() {
            Ok(digest) => Self::Content(digest),
            Err(_) => Self::Alias(reference),
        })
    }
}

/// Whether a request for this name would ask for a content, not for an alias.
pub(super) fn reads_as_digest(name: &str) -> bool {
    name.parse::<Digest>().is_ok()
}

/// The order of [`Page`].
fn compare_aliases(a: &str, b: &str) -> Ordering {
    let by_letters = a.to_ascii_lowercase().cmp(&b.to_ascii_lowercase());
    by_letters.then_with(|| a.cmp(b))
}

fn key(owner: Option<&Tenant>, alias: &str) -> Key {
    (owner.cloned(), alias.to_ascii_lowercase())
}
