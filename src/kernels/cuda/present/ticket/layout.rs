//! Device layout of a ticket on a GPU: one copy of its deltas in CSR, shared by apply, revert and
//! overlay.

use candle_core::Result;
use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::{CudaSlice, DeviceRepr};

use crate::kernels::cuda::present::device::beside_steps;
use crate::kernels::cuda::present::view::{pointer, upload};
use crate::kernels::ticket::overlay::WeightDeltas;
use crate::ticket::{Columns, DeltaDtype, Deltas};

/// Deltas of one weight. `csr.cuh` has the same struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceDeltas {
    pub row_offsets: u64,
    pub columns: u64,
    pub values: u64,
    pub kinds: u32,
    pub lanes: u32,
}

// SAFETY: plain numbers, laid out as in `csr.cuh`.
unsafe impl DeviceRepr for DeviceDeltas {}

/// Flags of `kinds`; equal to those of `csr.cuh`.
const WIDE_COLUMNS: u32 = 1;
const WIDE_VALUES: u32 = 2;

/// Nonzeros per thread block; equal to `CHUNK` of `csr.cuh`.
pub const CHUNK: usize = 1024;

/// Deltas of a ticket by weight number, in GPU memory.
pub struct DeviceTicket {
    pub device: CudaDevice,
    /// Address of the table of [`DeviceDeltas`], one per weight.
    pub table: u64,
    /// Copy of the table on the host; `None` for weights that the ticket does not touch.
    pub weights: Vec<Option<DeviceWeight>>,
    nonzeros: usize,
    bytes: usize,
    memory: Option<DeviceArrays>,
}

/// GPU memory of a ticket: its table, and the arrays that the table points to.
struct DeviceArrays {
    table: CudaSlice<DeviceDeltas>,
    _row_offsets: CudaSlice<u32>,
    _columns: CudaSlice<u16>,
    _values: CudaSlice<u16>,
}

impl Drop for DeviceTicket {
    /// Frees the memory. Waits while a step is captured, because any thread may drop a ticket.
    fn drop(&mut self) {
        let _guard = beside_steps();
        self.memory = None;
    }
}

/// Deltas of one weight, with their shape.
#[derive(Clone, Copy)]
pub struct DeviceWeight {
    pub deltas: DeviceDeltas,
    pub shape: [usize; 2],
    pub nonzeros: usize,
}

/// Concatenated arrays of all weights, built on the host. A number of 4 bytes takes two entries,
/// starting at an even index.
#[derive(Default)]
struct Arrays {
    row_offsets: Vec<u32>,
    columns: Vec<u16>,
    values: Vec<u16>,
}

impl DeviceTicket {
    /// Copies deltas, indexed by weight number, to a GPU.
    ///
    /// # Errors
    /// The GPU is out of memory.
    ///
    /// # Panics
    /// If a weight has 2³² nonzeros or more.
    pub fn new(device: &CudaDevice, weights: &[Option<WeightDeltas>]) -> Result<Self> {
        let _guard = beside_steps();
        let mut arrays = Arrays::default();
        // The pointers are byte offsets until the arrays have addresses.
        let weights = weights
            .iter()
            .map(|weight| weight.as_ref().map(|w| arrays.push(w)));
        let mut weights: Vec<Option<DeviceWeight>> = weights.collect();
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

    /// Number of deltas in all weights.
    pub fn nonzeros(&self) -> usize {
        self.nonzeros
    }

    /// Number of weights of the base, whether touched or not.
    pub fn weights(&self) -> usize {
        self.weights.len()
    }

    /// `[out, in]` of a weight; `None` if the ticket does not touch it.
    pub fn shape(&self, weight: usize) -> Option<[usize; 2]> {
        Some(self.weights[weight]?.shape)
    }

    /// Size in bytes of GPU memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Upper bound on the GPU memory for a weight's deltas, in bytes.
    pub fn bytes_for(weight: &WeightDeltas) -> usize {
        let entry = if weight.has_wide_columns() { 4 } else { 2 } + weight.widest().size();
        let padding = 2 * 2;
        size_of::<DeviceDeltas>() + (weight.shape[0] + 1) * 4 + weight.nonzeros() * entry + padding
    }
}

impl Arrays {
    /// Appends a weight's deltas. The pointers of the result are byte offsets.
    fn push(&mut self, weight: &WeightDeltas) -> DeviceWeight {
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
            // Rows between the parts are empty.
            self.row_offsets.extend((next_row..*first).map(|_| before));
            let offsets = delta.row_offsets();
            self.row_offsets
                .extend(offsets[..delta.rows()].iter().map(|offset| before + offset));
            next_row = first + delta.rows();
            // Lossless: a ticket counts a parameter's nonzeros in u32. The sum is checked below.
            before += delta.nonzeros() as u32;
            push_columns(&mut self.columns, delta.columns(), wide_columns);
            push_values(&mut self.values, delta.deltas(), wide_values);
        }
        self.row_offsets.extend((next_row..=out).map(|_| before));
        assert_eq!(
            before as usize, nonzeros,
            "a weight has 2³² nonzeros or more"
        );
        DeviceWeight {
            deltas,
            shape: weight.shape,
            nonzeros,
        }
    }
}

/// Lanes per row in the overlay: about the mean number of nonzeros per row.
fn lanes(nonzeros: usize, out: usize) -> u32 {
    let per_row = nonzeros.div_ceil(out.max(1)).next_power_of_two();
    // Lossless: at most 32.
    per_row.clamp(4, 32) as u32
}

fn halves(value: u32) -> [u16; 2] {
    // Little-endian: the lower half comes first.
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
