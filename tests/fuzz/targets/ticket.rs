//! Tickets, which clients upload.

use std::collections::BTreeMap;

use tombola::ticket::import::import_flat;
use tombola::ticket::{BaseManifest, DeltaDtype, Digest, ParameterInfo, Ticket};

use super::outcome;
use crate::harness::{Target, fuzz};

fn base() -> BaseManifest {
    let parameter = |name: &str, shape: [usize; 2]| {
        let shape = shape.to_vec();
        let adaptable = true;
        (name.to_owned(), ParameterInfo { shape, adaptable })
    };
    BaseManifest {
        name: "fuzz".to_owned(),
        fingerprint: Digest::of(b"fuzz"),
        parameters: BTreeMap::from([
            parameter("model.layers.0.self_attn.q_proj.weight", [3, 4]),
            parameter("model.layers.0.mlp.down_proj.weight", [2, 70_000]),
        ]),
    }
}

#[test]
fn tickets() {
    let base = base();
    let mut run = |input: &[u8]| {
        let bound = Ticket::from_bytes(input).and_then(|ticket| ticket.bind(&base, false));
        // Numbers in `training` may be longer when written, beyond what fits.
        if let Ok(ticket) = &bound
            && let Ok(again) = Ticket::encode(ticket.metadata(), ticket.tensors())
        {
            let read = Ticket::from_bytes(&again).unwrap();
            assert_eq!(read.tensors(), ticket.tensors());
        }
        let imported = import_flat(input, &base, "flat", DeltaDtype::Bf16, None, None);
        format!("{} {}", outcome(bound), outcome(imported))
    };
    fuzz(Target {
        name: "ticket",
        dictionary: &[
            b"{\"data_offsets\":[0,2],\"dtype\":\"U16\",\"shape\":[1]}",
            b"__metadata__",
            b"row_offsets",
            b"\"U32\"",
            b"\"BF16\"",
            b"\"F32\"",
            b"[0,0]",
            b"[",
            b"\\\"",
            b"\"\":\"\",",
            b"[[[[[[[[[[[[[[[[",
            b"density",
            b"training",
            b"0.0000213",
            b"1e-999",
            b"\0\0\x80\x7f",
        ],
        memory: 1 << 20,
        memory_per_byte: 100,
        run: &mut run,
    });
}
