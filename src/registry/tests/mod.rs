//! Tests of the registry, with tickets of a base of one layer.

mod compositions;
mod files;
mod leases;
mod line;
mod owners;
mod properties;
mod publication;
mod tiers;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::{fs, thread};

use candle_core::Device;
use tempfile::TempDir;

use super::*;
use crate::ticket::{DeltaDtype, Deltas, Digest, Metadata, ParameterInfo, TensorDelta, Ticket};

const PARAMETER: &str = "model.layers.0.mlp.up_proj.weight";

/// A base of one layer, whose projections are all 8×8.
pub fn base() -> Arc<BaseManifest> {
    let attention = ["q", "k", "v", "o"].map(|name| format!("self_attn.{name}"));
    let mlp = ["gate", "up", "down"].map(|name| format!("mlp.{name}"));
    let parameters = attention.into_iter().chain(mlp).map(|module| {
        let name = format!("model.layers.0.{module}_proj.weight");
        let info = ParameterInfo {
            shape: vec![8, 8],
            adaptable: true,
        };
        (name, info)
    });
    Arc::new(BaseManifest {
        name: "tiny".to_owned(),
        fingerprint: Digest::of(b"tiny"),
        parameters: parameters.collect(),
    })
}

/// Bytes of a ticket file, different for each `seed`.
pub fn ticket_file(seed: usize) -> Vec<u8> {
    let deltas = Deltas::from_f32(vec![seed as f32 + 1.0; 4], DeltaDtype::F32);
    let delta = TensorDelta::from_flat([8, 8], &[0, 9, 18, 27], deltas).unwrap();
    let metadata = Metadata::new("any", &base(), 4);
    Ticket::encode(&metadata, &BTreeMap::from([(PARAMETER.to_owned(), delta)])).unwrap()
}

fn bound(file: &[u8]) -> BoundTicket {
    let ticket = Ticket::from_bytes(file).unwrap();
    ticket.bind(&base(), false).unwrap()
}

fn one_ticket_bytes() -> usize {
    let ticket = Ticket::from_bytes(&ticket_file(0)).unwrap();
    ticket.resident_bytes()
}

fn open_with(dir: &TempDir, memory_budget: usize) -> Opened {
    let options = RegistryOptions {
        memory_budget,
        ..options()
    };
    Registry::open(dir.path(), None, base(), options).unwrap()
}

pub fn options() -> RegistryOptions {
    RegistryOptions {
        max_ticket_bytes: 1 << 20,
        memory_budget: 1 << 20,
        ..RegistryOptions::default()
    }
}

pub fn open(dir: &TempDir) -> Registry {
    open_with(dir, 1 << 20).registry
}

/// Number of the leased generation.
fn id(lease: &Lease) -> GenerationId {
    lease.parts()[0].generation.id()
}

/// Whether a content is in memory.
fn in_memory(registry: &Registry, content: Digest) -> bool {
    registry.memory.residency(content).tier != Tier::Disk
}

pub fn staged(registry: &Registry, bytes: &[u8]) -> NamedTempFile {
    let mut file = registry.stage().unwrap();
    file.write_all(bytes).unwrap();
    file
}

pub fn publish(registry: &Registry, alias: &str, seed: usize) -> Arc<Generation> {
    let file = staged(registry, &ticket_file(seed));
    registry
        .publish(Name::public(alias), file, &Condition::upsert())
        .unwrap()
}

/// Names of the files in a folder, without the server's own.
pub fn files(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(".tombola"))
        .collect();
    names.sort();
    names
}
