//! What the choices of a request run under: the base, a ticket, or a composition of tickets.

use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;

use super::error::ApiError;
use super::fields::{Fields, brief};
use super::state::AppState;
use crate::access::Tenant;
use crate::registry::{Lease, MAX_PARTS, Part, RegistryError, Selection};

const MODEL: &str = "model";
const TICKETS: &str = "tickets";
const SCALE: &str = "ticket_scale";
const PER_CHOICE: &str = "tickets_per_choice";

/// The selections of a request, checked against the tickets that its caller sees.
#[derive(Debug)]
pub struct Selected {
    /// The model's name as the response repeats it.
    pub model: String,
    /// One for all choices, or one per choice.
    selections: Vec<Selection>,
}

/// An entry of `tickets`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedPart {
    name: String,
    scale: Option<f32>,
}

impl Selected {
    /// Takes `tickets`, `ticket_scale` and `tickets_per_choice` beside the requested `model`, whose
    /// default is the base, as in vLLM.
    ///
    /// # Errors
    /// The tenant sees no model or ticket of a name, or the fields contradict each other.
    pub fn take(
        model: Option<String>,
        fields: &mut Fields<'_>,
        state: &AppState,
        tenant: Option<&Tenant>,
    ) -> Result<Self, ApiError> {
        let base = &state.base.manifest.name;
        let parts = fields.take_list::<NamedPart>(TICKETS, MAX_PARTS)?;
        let factor: Option<f32> = fields.take(SCALE)?;
        let per_choice = fields.take_list::<String>(PER_CHOICE, super::sampling::MAX_N)?;
        let model = model.unwrap_or_else(|| base.clone());
        let named = state.registry.select(tenant, &model);
        let mut selection = named.map_err(|error| refusal(MODEL, error))?;
        let mut shown = model;
        if let Some(parts) = parts.filter(|parts| !parts.is_empty()) {
            if !selection.is_base() {
                let problem = "cannot be sent beside a `model` that names a ticket";
                return Err(ApiError::invalid(TICKETS, problem));
            }
            let part = |NamedPart { name, scale }| Part {
                reference: name,
                scale: scale.unwrap_or(1.0),
            };
            let parts = parts.into_iter().map(part).collect();
            let composed = state.registry.select_parts(tenant, parts);
            selection = composed.map_err(|error| refusal(TICKETS, error))?;
            if !selection.is_base() {
                shown = selection.to_string();
            }
        }
        if let Some(factor) = factor {
            let scaled = selection.scaled(factor);
            selection = scaled.map_err(|error| refusal(SCALE, error.into()))?;
        }
        let Some(choices) = per_choice.filter(|choices| !choices.is_empty()) else {
            return Ok(Self {
                model: shown,
                selections: vec![selection],
            });
        };
        if !selection.is_base() {
            let problem = "cannot be sent beside other tickets";
            return Err(ApiError::invalid(PER_CHOICE, problem));
        }
        let select = |(i, text): (usize, &String)| {
            let selection = state.registry.select(tenant, text);
            selection.map_err(|error| refusal(&format!("{PER_CHOICE}[{i}]"), error))
        };
        let selections = choices.iter().enumerate().map(select);
        Ok(Self {
            model: shown,
            selections: selections.collect::<Result<_, _>>()?,
        })
    }

    /// Checks that each choice has a selection.
    ///
    /// # Errors
    /// There is another number of choices than of `tickets_per_choice`.
    pub fn check_choices(&self, n: usize) -> Result<(), ApiError> {
        match self.selections.len() {
            1 => Ok(()),
            count if count == n => Ok(()),
            count => {
                let problem = format!("has {count} entries for {n} choices; send `n` {count}");
                Err(ApiError::invalid(PER_CHOICE, problem))
            }
        }
    }

    /// Leases the tickets; `None` for the base. Loads them beside the engine's steps, and waits in
    /// line if there is no memory; a disconnect leaves the line.
    ///
    /// # Errors
    /// A ticket was deleted meanwhile, or there is no memory for one.
    pub async fn lease(
        &self,
        state: &AppState,
        tenant: Option<&Tenant>,
    ) -> Result<Vec<Option<Lease>>, ApiError> {
        let mut leases = Vec::with_capacity(self.selections.len());
        for selection in &self.selections {
            if selection.is_base() {
                leases.push(None);
                continue;
            }
            let began = Instant::now();
            let lease = Arc::clone(&state.registry);
            let lease = lease.lease_selected(tenant, selection).await;
            let waited = began.elapsed().as_secs_f64();
            state.metrics.tickets.wait.observe(waited);
            let refused = |error: &RegistryError| {
                state.refusals.record_ticket(&state.metrics, error);
            };
            let lease = lease.inspect_err(refused);
            leases.push(lease.map_err(|error| refusal(MODEL, error))?);
        }
        Ok(leases)
    }
}

/// The error of the field `param`.
fn refusal(param: &str, error: RegistryError) -> ApiError {
    match error {
        RegistryError::Unknown(name) => ApiError::ModelNotFound(brief(name)),
        error => match error.into() {
            ApiError::Invalid { message, .. } => ApiError::Invalid {
                message,
                param: param.to_owned(),
            },
            error => error,
        },
    }
}
