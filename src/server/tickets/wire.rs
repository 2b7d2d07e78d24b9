//! Tickets in wire format.

use axum::Json;
use axum::http::header::ETAG;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use crate::access::Tenant;
use crate::registry::{Generation, Registry, WithTraining};
use crate::server::preconditions::etag;
use crate::server::state::AppState;
use crate::server::timestamp::unix_seconds;

/// A ticket in wire format. Its path is never sent.
#[derive(Serialize)]
pub(super) struct TicketFacts<'a> {
    object: &'static str,
    name: &'a str,
    /// The tenant that it belongs to; `null` if it is public.
    tenant: Option<&'a str>,
    digest: String,
    created: u64,
    bytes: u64,
    resident_bytes: usize,
    nonzeros: usize,
    density: f64,
    base: BaseRef<'a>,
    license: Option<&'a str>,
    /// `None` if the caller may not know it.
    #[serde(flatten)]
    usage: Option<Usage>,
}

/// Where a ticket is, and who uses it.
#[derive(Serialize)]
struct Usage {
    /// The fastest tier that holds it: `disk`, `host` or `device`.
    state: &'static str,
    /// Requests that use it now.
    leases: usize,
    pinned: bool,
}

/// The base that a ticket's file names.
#[derive(Serialize)]
struct BaseRef<'a> {
    name: &'a str,
    fingerprint: String,
}

impl<'a> TicketFacts<'a> {
    /// The facts as a caller of this tenant may see them: of the use of tickets, only what its own
    /// requests cause.
    pub(super) fn new(
        generation: &'a Generation,
        registry: &Registry,
        tenant: Option<&Tenant>,
    ) -> Self {
        let facts = generation.facts();
        let residency = match tenant {
            None => Some(registry.residency(generation)),
            Some(_) if generation.owner() == tenant => Some(registry.own_residency(generation)),
            Some(_) => None,
        };
        Self {
            object: "ticket",
            name: generation.alias(),
            tenant: generation.owner().map(Tenant::as_str),
            digest: generation.digest().to_string(),
            created: unix_seconds(generation.created()),
            bytes: facts.file_bytes,
            resident_bytes: generation.resident_bytes(),
            nonzeros: facts.nonzeros,
            density: facts.density,
            base: BaseRef {
                name: &facts.base_name,
                fingerprint: facts.base_fingerprint.to_string(),
            },
            license: facts.license.as_deref(),
            usage: residency.map(|residency| Usage {
                state: residency.tier.name(),
                leases: residency.leases,
                pinned: residency.pinned,
            }),
        }
    }
}

/// A ticket with the provenance that its file states.
#[derive(Serialize)]
struct WholeTicket<'a> {
    #[serde(flatten)]
    facts: TicketFacts<'a>,
    training: Option<Value>,
}

/// The whole ticket, with its digest as the entity tag.
pub(super) fn whole(state: &AppState, ticket: WithTraining, tenant: Option<&Tenant>) -> Response {
    let WithTraining {
        generation,
        training,
    } = ticket;
    let facts = TicketFacts::new(&generation, &state.registry, tenant);
    let whole = Json(WholeTicket { facts, training });
    ([(ETAG, etag(generation.digest()))], whole).into_response()
}
