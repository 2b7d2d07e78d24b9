//! Whose tickets a caller sees, how requests name them, and which writes happen.

use super::*;

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

fn publish_for(registry: &Registry, name: Name<'_>, seed: usize) -> Arc<Generation> {
    let file = staged(registry, &ticket_file(seed));
    registry.publish(name, file, &Condition::upsert()).unwrap()
}

#[test]
fn a_tenants_ticket_goes_before_the_public_one_and_is_absent_to_others() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let (acme, other) = (&tenant("acme"), &tenant("other"));
    let public = publish(&registry, "sql", 1);
    let own = publish_for(&registry, Name::new(Some(acme), "sql"), 2);
    let private = publish_for(&registry, Name::new(Some(acme), "secret"), 3);
    let seen = |caller, reference: &str| registry.get(caller, reference).map(|found| found.id());
    assert_eq!(seen(Some(acme), "sql"), Some(own.id()));
    assert_eq!(seen(Some(other), "sql"), Some(public.id()));
    assert_eq!(seen(None, "sql"), Some(public.id()));
    let digest = private.digest().to_string();
    for reference in ["secret", &format!("secret@{}", &digest[..8]), &digest] {
        assert_eq!(seen(Some(acme), reference), Some(private.id()));
        assert_eq!(seen(Some(other), reference), None);
        assert_eq!(seen(None, reference), None);
        let refused = registry.lease(Some(other), reference).unwrap_err();
        assert!(matches!(refused, RegistryError::Unknown(_)), "{refused}");
    }
    let aliases = |tickets: Vec<Arc<Generation>>| -> Vec<(Option<Tenant>, String)> {
        let names = tickets.iter();
        let names = names.map(|t| (t.owner().cloned(), t.alias().to_owned()));
        names.collect()
    };
    let of_acme = |alias: &str| (Some(acme.clone()), alias.to_owned());
    assert_eq!(
        aliases(registry.visible(Some(acme), Page::ALL)),
        [of_acme("secret"), of_acme("sql")]
    );
    assert_eq!(
        aliases(registry.visible(Some(other), Page::ALL)),
        [(None, "sql".to_owned())]
    );
    // A restart finds them below the tenant's folder.
    let file = dir.path().join("tenants/acme/secret.safetensors");
    assert_eq!(Digest::of(&fs::read(file).unwrap()), private.digest());
    drop(registry);
    let again = open(&dir);
    assert!(again.get(Some(acme), "secret").is_some() && again.get(None, "secret").is_none());
}

#[test]
fn pages_list_each_visible_ticket_once() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let acme = &tenant("acme");
    for (seed, alias) in ["a", "SQL", "x", "z"].into_iter().enumerate() {
        publish(&registry, alias, seed);
    }
    for (seed, alias) in ["b", "sql", "Y", "z"].into_iter().enumerate() {
        publish_for(&registry, Name::new(Some(acme), alias), 4 + seed);
    }
    publish_for(&registry, Name::new(Some(&tenant("other")), "c"), 8);
    let aliases = |tenant, limit| {
        let mut all: Vec<String> = Vec::new();
        loop {
            let after = all.last().cloned().unwrap_or_default();
            let after = after.as_str();
            let page = registry.visible(tenant, Page { after, limit });
            if page.is_empty() {
                return all.join(" ");
            }
            assert!(page.len() <= limit, "{page:?}");
            all.extend(page.iter().map(|ticket| ticket.alias().to_owned()));
        }
    };
    for limit in 1..9 {
        // Names that differ in case alone are two tickets, also at the border of two pages.
        assert_eq!(aliases(Some(acme), limit), "a b SQL sql x Y z", "{limit}");
        assert_eq!(aliases(None, limit), "a SQL x z", "{limit}");
    }
}

#[test]
fn a_tenant_can_neither_replace_nor_delete_what_is_not_its_own() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let (acme, other) = (&tenant("acme"), &tenant("other"));
    let public = publish(&registry, "sql", 1);
    publish_for(&registry, Name::new(Some(acme), "secret"), 2);
    let remove = |owner, alias| registry.remove(Name::new(owner, alias), &Condition::default());
    let refused = remove(Some(acme), "sql").unwrap_err();
    assert!(matches!(refused, RegistryError::Public(_)), "{refused}");
    let refused = remove(Some(other), "secret").unwrap_err();
    assert!(matches!(refused, RegistryError::Unknown(_)), "{refused}");
    publish_for(&registry, Name::new(Some(acme), "sql"), 3);
    assert_eq!(registry.get(None, "sql").unwrap().id(), public.id());
    remove(Some(acme), "sql").unwrap();
    assert_eq!(registry.get(Some(acme), "sql").unwrap().id(), public.id());
}

#[test]
fn an_alias_may_be_held_to_a_digest() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let first = publish(&registry, "sql", 1).digest().to_string();
    let get = |reference: &str| registry.get(None, reference);
    let names = |digest: &str| {
        [
            format!("sql@{}", &digest[..6]),
            format!("sql@{digest}"),
            format!("sql@sha256:{}", &digest[..12]),
            digest.to_owned(),
            format!("sha256:{digest}"),
        ]
    };
    for reference in names(&first) {
        assert!(get(&reference).is_some(), "{reference}");
    }
    let second = publish(&registry, "sql", 2).digest().to_string();
    for reference in names(&first) {
        assert!(get(&reference).is_none(), "{reference}");
    }
    for reference in [&format!("sql@{}", &second[..5]), "sql@", "@", "SQL"] {
        assert!(get(reference).is_none(), "{reference}");
    }
}

#[test]
fn names_of_one_owner_differ_in_more_than_case_and_are_no_digests() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "Sql", 1);
    let refused = |alias: &str| {
        let file = staged(&registry, &ticket_file(2));
        let name = Name::public(alias);
        registry
            .publish(name, file, &Condition::upsert())
            .unwrap_err()
    };
    assert!(matches!(
        refused("sQL"),
        RegistryError::DiffersInCase { .. }
    ));
    assert!(matches!(refused("TINY"), RegistryError::Reserved(_)));
    assert!(matches!(
        refused(&"ab".repeat(32)),
        RegistryError::ReadsAsDigest(_)
    ));
    publish_for(&registry, Name::new(Some(&tenant("acme")), "SQL"), 3);
}

#[test]
fn a_write_happens_only_to_the_content_that_it_expects() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let matching = |digests: &[Digest]| Condition {
        matches: Some(Match::OneOf(digests.to_vec())),
        ..Condition::upsert()
    };
    let absent = Condition {
        absent: true,
        ..Condition::upsert()
    };
    let write = |seed, condition: &Condition| {
        let file = staged(&registry, &ticket_file(seed));
        registry.publish(Name::public("sql"), file, condition)
    };
    let fails = |result: Result<Arc<Generation>, RegistryError>| {
        matches!(result, Err(RegistryError::Precondition { .. }))
    };
    let any = Condition {
        matches: Some(Match::Any),
        ..Condition::upsert()
    };
    assert!(fails(write(1, &any)) && fails(write(1, &matching(&[Digest::of(b"x")]))));
    let first = write(1, &absent).unwrap().digest();
    assert!(fails(write(2, &absent)));
    let second = write(2, &matching(&[first])).unwrap().digest();
    // Of two writers that saw the first content, the later one loses.
    assert!(fails(write(3, &matching(&[first]))));
    let delete = |condition: &Condition| registry.remove(Name::public("sql"), condition);
    assert!(fails(delete(&matching(&[first]))));
    assert_eq!(registry.get(None, "sql").unwrap().digest(), second);
    assert!(delete(&matching(&[first, second])).is_ok());
}
