//! A ticket's deltas in a GPU's memory: one copy, which is applied, reverted and overlaid alike.

use candle_core::Result;
use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::{CudaSlice, DeviceRepr};

use super::device::beside_steps;
use super::view::{pointer, upload};
use crate::kernels::ticket::overlay::WeightDeltas;
use crate::ticket::{Columns, DeltaDtype, Deltas};

/// `sparse.cuh` has the same struct: one weight's deltas.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DeviceDeltas {
    pub row_offsets: u64,
    pub columns: u64,
    pub values: u64,
    pub kinds: u32,
    pub lanes: u32,
}

// SAFETY: plain numbers, laid out as in `sparse.cuh`.
unsafe impl DeviceRepr for DeviceDeltas {}

const WIDE_COLUMNS: u32 = 1;
const WIDE_VALUES: u32 = 2;
/// As in `sparse.cuh`.
pub(super) const CHUNK: usize = 1024;

/// The deltas of a ticket by the base's weights, in a GPU's memory.
pub struct DeviceTicket {
    pub(super) device: CudaDevice,
    /// Where its deltas by weight are.
    pub(super) table: u64,
    /// The same here.
    pub(super) weights: Vec<Option<OfWeight>>,
    nonzeros: usize,
    bytes: usize,
    memory: Option<DeviceArrays>,
}

/// What a ticket's table points to, and the table.
struct DeviceArrays {
    table: CudaSlice<DeviceDeltas>,
    _row_offsets: CudaSlice<u32>,
    _columns: CudaSlice<u16>,
    _values: CudaSlice<u16>,
}

impl Drop for DeviceTicket {
    /// By whoever held it last.
    fn drop(&mut self) {
        let _guard = beside_steps();
        self.memory = None;
    }
}

/// One weight's deltas.
#[derive(Clone, Copy)]
pub(super) struct OfWeight {
    pub deltas: DeviceDeltas,
    pub shape: [usize; 2],
    pub nonzeros: usize,
}

/// The arrays of all weights, one after the other, as they are put together here. Numbers of 4 bytes lie in
/// two halves, from an even place on.
#[derive(Default)]
struct Arrays {
    row_offsets: Vec<u32>,
    columns: Vec<u16>,
    values: Vec<u16>,
}

impl DeviceTicket {
    /// Copies the deltas of the weights, by their numbers, to a GPU.
    pub fn new(device: &CudaDevice, weights: &[Option<WeightDeltas>]) -> Result<Self> {
        let _guard = beside_steps();
        let mut arrays = Arrays::default();
        // Places now, pointers once the arrays have addresses.
        let weights = weights
            .iter()
            .map(|weight| weight.as_ref().map(|w| arrays.push(w)));
        let mut weights: Vec<Option<OfWeight>> = weights.collect();
        let row_offsets = upload(device, &arrays.row_offsets)?;
        let columns = upload(device, &arrays.columns)?;
        let values = upload(device, &arrays.values)?;
        for weight in weights.iter_mut().flatten() {
            weight.deltas.row_offsets += pointer(&row_offsets);
            weight.deltas.columns += pointer(&columns);
            weight.deltas.values += pointer(&values);
        }
        let entries = weights
            .iter()
            .map(|weight| weight.map_or_else(Default::default, |w| w.deltas));
        let entries: Vec<DeviceDeltas> = entries.collect();
        let bytes = size_of_val(&entries[..])
            + size_of_val(&arrays.row_offsets[..])
            + size_of_val(&arrays.columns[..])
            + size_of_val(&arrays.values[..]);
        let memory = DeviceArrays {
            table: upload(device, &entries)?,
            _row_offsets: row_offsets,
            _columns: columns,
            _values: values,
        };
        Ok(Self {
            device: device.clone(),
            table: pointer(&memory.table),
            nonzeros: weights.iter().flatten().map(|weight| weight.nonzeros).sum(),
            weights,
            bytes,
            memory: Some(memory),
        })
    }

    pub fn nonzeros(&self) -> usize {
        self.nonzeros
    }

    /// How many weights the base has.
    pub fn weights(&self) -> usize {
        self.weights.len()
    }

    /// `[out, in]` of a weight that the ticket touches.
    pub fn shape(&self, weight: usize) -> Option<[usize; 2]> {
        Some(self.weights[weight]?.shape)
    }

    /// Bytes of the GPU's memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the GPU's memory that a weight's deltas take, at most.
    pub fn bytes_for(weight: &WeightDeltas) -> usize {
        let entry = if weight.has_wide_columns() { 4 } else { 2 } + weight.widest().size();
        let padding = 2 * 2;
        size_of::<DeviceDeltas>() + (weight.shape[0] + 1) * 4 + weight.nonzeros() * entry + padding
    }
}

impl Arrays {
    /// Appends a weight's deltas; the pointers of the result are places in bytes.
    fn push(&mut self, weight: &WeightDeltas) -> OfWeight {
        let (wide_columns, wide_values) = (
            weight.has_wide_columns(),
            weight.widest() == DeltaDtype::F32,
        );
        for halves in [&mut self.columns, &mut self.values] {
            if halves.len() % 2 != 0 {
                halves.push(0);
            }
        }
        let [out, _] = weight.shape;
        let nonzeros = weight.nonzeros();
        let deltas = DeviceDeltas {
            row_offsets: (self.row_offsets.len() * 4) as u64,
            columns: (self.columns.len() * 2) as u64,
            values: (self.values.len() * 2) as u64,
            kinds: u32::from(wide_columns) * WIDE_COLUMNS + u32::from(wide_values) * WIDE_VALUES,
            lanes: lanes(nonzeros, out),
        };
        let (mut next_row, mut before) = (0, 0);
        for (first, delta) in &weight.parts {
            // Rows of parts without deltas are empty.
            self.row_offsets.extend((next_row..*first).map(|_| before));
            let offsets = delta.row_offsets();
            self.row_offsets
                .extend(offsets[..delta.rows()].iter().map(|offset| before + offset));
            next_row = first + delta.rows();
            // Lossless: a ticket counts a parameter's nonzeros in u32, and a weight's are checked below.
            before += delta.nonzeros() as u32;
            push_columns(&mut self.columns, delta.columns(), wide_columns);
            push_values(&mut self.values, delta.deltas(), wide_values);
        }
        self.row_offsets.extend((next_row..=out).map(|_| before));
        assert_eq!(
            before as usize, nonzeros,
            "a weight has more nonzeros than u32 counts"
        );
        OfWeight {
            deltas,
            shape: weight.shape,
            nonzeros,
        }
    }
}

/// Lanes that share a row of the overlay: about as many as a row has nonzeros.
fn lanes(nonzeros: usize, out: usize) -> u32 {
    let per_row = nonzeros.div_ceil(out.max(1)).next_power_of_two();
    // Lossless: at most a warp.
    per_row.clamp(4, 32) as u32
}

fn halves(value: u32) -> [u16; 2] {
    // Lossless: the lower half, the upper half.
    [value as u16, (value >> 16) as u16]
}

fn push_columns(to: &mut Vec<u16>, columns: &Columns, wide: bool) {
    match (columns, wide) {
        (Columns::U16(columns), false) => to.extend(columns),
        (Columns::U16(columns), true) => to.extend(columns.iter().flat_map(|&c| halves(c.into()))),
        (Columns::U32(columns), _) => to.extend(columns.iter().flat_map(|&c| halves(c))),
    }
}

fn push_values(to: &mut Vec<u16>, values: &Deltas, wide: bool) {
    match (values, wide) {
        (Deltas::Bf16(values), false) => to.extend(values.iter().map(|v| v.to_bits())),
        (Deltas::Bf16(values), true) => {
            to.extend(values.iter().flat_map(|v| halves(v.to_f32().to_bits())));
        }
        (Deltas::F32(values), _) => to.extend(values.iter().flat_map(|v| halves(v.to_bits()))),
    }
}
