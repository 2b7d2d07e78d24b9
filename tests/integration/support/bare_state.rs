//! State of a server without a model: the manifest of a tiny base, and a folder with one ticket.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tombola::engine::{EngineInbox, Limits, channel};
use tombola::metrics::Metrics;
use tombola::model::TicketMemory;
use tombola::registry::{Registry, RegistryOptions};
use tombola::server::{AppState, ServedBase, ServerOptions};
use tombola::text::Text;
use tombola::ticket::{
    BaseManifest, DeltaDtype, Deltas, Digest, Metadata, ParameterInfo, TensorDelta, Ticket,
};

use super::tokenizer::END;

pub const CONTEXT: usize = 64;
/// Numbers of a hidden state.
pub const HIDDEN: usize = 4;
pub const MAX_TICKET_BYTES: u64 = 4096;
const PARAMETER: &str = "model.layers.0.mlp.up_proj.weight";

/// State over an empty folder, in which it puts the ticket `sql`, and the inbox of its engine,
/// which does not run yet.
pub fn bare_state(
    tickets: &Path,
    text: Arc<Text>,
    capacity: usize,
    max_body_bytes: usize,
) -> (AppState, EngineInbox) {
    fs::write(tickets.join("sql.safetensors"), ticket_file(1)).unwrap();
    let manifest = manifest();
    let options = RegistryOptions {
        max_ticket_bytes: MAX_TICKET_BYTES,
        memory_budget: 1 << 20,
        ticket_memory: TicketMemory::without_layouts(),
        ..RegistryOptions::default()
    };
    let opened = Registry::open(tickets, None, manifest.clone(), options).unwrap();
    assert!(opened.refused.is_empty());
    let limits = Limits {
        max_model_len: CONTEXT,
        vocab_size: END as usize + 1,
        max_logprobs: 5,
        hidden_size: HIDDEN,
    };
    let (engine, inbox) = channel(limits, capacity);
    let base = ServedBase {
        manifest,
        dtype: "f32".to_owned(),
        quantized: false,
        end_tokens: vec![END],
        weight_bytes: 256,
        loaded_digest: Digest::of(b"loaded"),
    };
    let options = ServerOptions {
        max_body_bytes,
        max_ticket_bytes: MAX_TICKET_BYTES,
        upload_spool_bytes: 64 * MAX_TICKET_BYTES,
        step_timeout: Some(Duration::from_millis(200)),
        ..ServerOptions::default()
    };
    let registry = Arc::new(opened.registry);
    let metrics = Arc::new(Metrics::new(CONTEXT).unwrap());
    let state = AppState::new(engine, registry, text, base, metrics, options);
    (state, inbox)
}

fn manifest() -> Arc<BaseManifest> {
    let parameter = ParameterInfo {
        shape: vec![8, 8],
        adaptable: true,
    };
    Arc::new(BaseManifest {
        name: "tiny".to_owned(),
        fingerprint: Digest::of(b"tiny"),
        parameters: BTreeMap::from([(PARAMETER.to_owned(), parameter)]),
    })
}

/// A valid ticket for the tiny base; its content depends on the seed.
pub fn ticket_file(seed: u8) -> Vec<u8> {
    let deltas = Deltas::from_f32(vec![f32::from(seed) + 1.0; 4], DeltaDtype::F32);
    let delta = TensorDelta::from_flat([8, 8], &[0, 9, 18, 27], deltas).unwrap();
    let mut metadata = Metadata::new("any", &manifest(), 4);
    metadata.license = Some("CC-BY-4.0".to_owned());
    Ticket::encode(&metadata, &BTreeMap::from([(PARAMETER.to_owned(), delta)])).unwrap()
}
