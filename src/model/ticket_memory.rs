//! Memory model of tickets: what a loaded ticket takes of the host's memory and of the device's.

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::device::has_own_memory;
use super::error::ModelError;
use super::layout::{TicketLayout, fused};
use super::loaded_ticket::LoadedTicket;
use crate::kernels::ticket::overlay::DeviceLayout;
use crate::ticket::{BaseManifest, BoundTicket, DeltaDtype, Ticket};

/// Bytes of memory of a loaded ticket, by tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketBytes {
    /// Bytes of the host's memory.
    pub host: usize,
    /// Bytes of the device's own memory; 0 on the CPU, where host and device are one tier.
    pub device: usize,
}

impl TicketBytes {
    /// Bytes of both tiers.
    pub fn total(self) -> usize {
        self.host + self.device
    }
}

/// Memory model of the loaded tickets of one base.
#[derive(Clone, Debug)]
pub struct TicketMemory {
    /// Device that layouts are built on; `None` if no ticket gets one.
    layouts_on: Option<Device>,
}

impl TicketMemory {
    /// Counts tickets that never get a layout.
    pub fn without_layouts() -> Self {
        Self { layouts_on: None }
    }

    /// Counts tickets together with their layouts on `device`.
    pub(crate) fn with_layouts_on(device: Device) -> Self {
        let layouts_on = Some(device);
        Self { layouts_on }
    }

    /// Upper bound of the bytes that a loaded ticket of the base takes.
    pub fn bytes_of(&self, ticket: &Ticket, base: &BaseManifest) -> TicketBytes {
        let host = ticket.resident_bytes();
        let Some(device) = &self.layouts_on else {
            return TicketBytes { host, device: 0 };
        };
        let layout = DeviceLayout::bytes_for(&fused(ticket, base), device);
        if has_own_memory(device) {
            return TicketBytes {
                host,
                device: layout,
            };
        }
        TicketBytes {
            host: host + layout,
            device: 0,
        }
    }

    /// Upper bound of the bytes that the sum of tickets takes once it is loaded, if its deltas are
    /// stored as `dtype`. Each part is given by the bytes that it takes itself and its nonzeros.
    pub fn bytes_of_sum(
        &self,
        parts: impl IntoIterator<Item = (TicketBytes, usize)>,
        dtype: DeltaDtype,
    ) -> TicketBytes {
        // Positions are at most united, so arrays and layout take at most what the parts' take,
        // unless narrow deltas are widened. A layout pads each row of 24 or more nonzeros with up
        // to 3 deltas, an eighth.
        let widened = dtype.size() - DeltaDtype::default().size();
        let mut sum = TicketBytes::default();
        for (bytes, nonzeros) in parts {
            let arrays = widened * nonzeros;
            let layout = arrays + arrays.div_ceil(8);
            sum.host += bytes.host + arrays;
            match &self.layouts_on {
                Some(device) if has_own_memory(device) => sum.device += bytes.device + layout,
                Some(_) => sum.host += layout,
                None => {}
            }
        }
        sum
    }

    /// Builds the layout of a ticket that was just loaded, if it gets one, on the calling thread: a
    /// step that overlays the ticket then finds it. On a GPU the layout is left to the engine's
    /// thread, whose stream it is copied on.
    ///
    /// # Errors
    /// The ticket is bound to another base, or there is no room for its layout.
    pub fn prepare(&self, ticket: &LoadedTicket, base: &BaseManifest) -> Result<(), ModelError> {
        match &self.layouts_on {
            Some(device) if !has_own_memory(device) => {
                let build =
                    |ticket: &BoundTicket| TicketLayout::on_this_thread(ticket, base, device);
                ticket.layout_or_build(build).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Says what [`Self::bytes_of`] depends on besides ticket and base: facts that were computed
    /// under another tag do not hold.
    pub fn tag(&self) -> String {
        match &self.layouts_on {
            Some(device) => format!("layouts on {:?}", device.location()),
            None => "no layouts".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ticket::merge::{compose, merged_dtype};
    use crate::ticket::{Deltas, Digest, Metadata, ParameterInfo, TensorDelta};

    /// A base of one layer, whose projections are all 8×64.
    fn base() -> BaseManifest {
        let attention = ["q", "k", "v", "o"].map(|name| format!("self_attn.{name}"));
        let mlp = ["gate", "up", "down"].map(|name| format!("mlp.{name}"));
        let parameters = attention.into_iter().chain(mlp).map(|module| {
            let info = ParameterInfo {
                shape: vec![8, 64],
                adaptable: true,
            };
            (format!("model.layers.0.{module}_proj.weight"), info)
        });
        BaseManifest {
            name: "tiny".to_owned(),
            fingerprint: Digest::of(b"tiny"),
            parameters: parameters.collect(),
        }
    }

    /// A ticket that touches each of its parameters at every `stride`-th position.
    fn ticket(parameters: &[(usize, usize, DeltaDtype)]) -> BoundTicket {
        let base = base();
        let names: Vec<&String> = base.parameters.keys().collect();
        let tensor = |&(parameter, stride, dtype): &(usize, usize, DeltaDtype)| {
            let positions: Vec<usize> = (stride / 2..8 * 64).step_by(stride).collect();
            let deltas = Deltas::from_f32(vec![0.5; positions.len()], dtype);
            let delta = TensorDelta::from_flat([8, 64], &positions, deltas).unwrap();
            (names[parameter].clone(), delta)
        };
        let tensors: BTreeMap<_, _> = parameters.iter().map(tensor).collect();
        let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
        let ticket = Ticket::new(Metadata::new("any", &base, nonzeros), tensors).unwrap();
        ticket.bind(&base, false).unwrap()
    }

    proptest! {
        #[test]
        fn a_sum_takes_no_more_than_is_counted_for_its_parts(
            parts in prop::collection::vec(
                prop::collection::vec(
                    (
                        0..7usize,
                        1..40usize,
                        prop_oneof![Just(DeltaDtype::Bf16), Just(DeltaDtype::F32)],
                    ),
                    1..6,
                ),
                1..5,
            ),
        ) {
            let base = base();
            let parts: Vec<_> = parts.iter().map(|parameters| ticket(parameters)).collect();
            let scaled: Vec<_> = parts.iter().map(|part| (part, 0.5)).collect();
            let sum = compose(&scaled, &base).unwrap();
            let dtype = merged_dtype(parts.iter().map(|part| part.widest()));
            prop_assert_eq!(sum.widest(), dtype);
            for memory in [
                TicketMemory::without_layouts(),
                TicketMemory::with_layouts_on(Device::Cpu),
            ] {
                let counted = parts
                    .iter()
                    .map(|part| (memory.bytes_of(part, &base), part.nonzeros()));
                let bound = memory.bytes_of_sum(counted, dtype);
                let takes = memory.bytes_of(&sum, &base);
                prop_assert!(takes.host <= bound.host, "{takes:?} {bound:?}");
                let loaded = LoadedTicket::new(compose(&scaled, &base).unwrap());
                memory.prepare(&loaded, &base).unwrap();
                let layout = loaded.layout().map_or(0, |layout| layout.bytes());
                prop_assert!(loaded.resident_bytes() + layout <= takes.host);
            }
        }
    }
}
