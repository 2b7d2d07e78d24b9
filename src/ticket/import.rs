//! Import of flat delta files: row-major positions instead of compressed rows.

use std::collections::BTreeMap;

use serde_json::Value;

use super::container::{self, Container, Dtype};
use super::error::brief;
use super::format;
use super::metadata::SHAPE_OF;
use super::{
    BaseManifest, DeltaDtype, DeltaError, Deltas, Metadata, TensorDelta, Ticket, TicketError,
};

/// Converts a flat delta file into a ticket for `base`.
///
/// A flat file is a safetensors file with two tensors per parameter `P`: `P.indices` (I32 `[nnz]`,
/// row-major positions `row * in + column`, in any order) and `P.deltas` (F32 `[nnz]`). If the file
/// has the metadata `shape_of`, a JSON object of parameter → `[out, in]`, those shapes must equal
/// the base's; it may also name parameters without nonzeros. Deltas are stored as `dtype`. A delta
/// that rounds to zero keeps its position, which is part of the ticket.
///
/// # Errors
/// The file is not a flat file, does not fit the base, repeats a position or has one outside its
/// parameter; a delta is not finite as `dtype`; the ticket would change no weight.
pub fn import_flat(
    file: &[u8],
    base: &BaseManifest,
    name: &str,
    dtype: DeltaDtype,
    license: Option<String>,
    training: Option<Value>,
) -> Result<Ticket, TicketError> {
    super::validate_name(name)?;
    if name == base.name {
        return Err(TicketError::ReservedName(brief(name)));
    }
    let container = Container::parse(file)?;
    let shapes = shapes(&container)?;
    let parameters = format::parameters(&container, &["indices", "deltas"])?;
    let mut tensors = BTreeMap::new();
    for parameter in parameters {
        let shape = shape(parameter, &shapes, base)?;
        let delta = import_delta(&container, parameter, shape, dtype)?;
        tensors.insert(parameter.to_owned(), delta);
    }
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    if nonzeros == 0 {
        return Err(TicketError::ChangesNothing("it has no nonzeros"));
    }
    let metadata = Metadata {
        license,
        training,
        ..Metadata::new(name, base, nonzeros)
    };
    Ticket::new(metadata, tensors)
}

type Shapes = BTreeMap<String, [usize; 2]>;

fn shapes(container: &Container<'_>) -> Result<Shapes, TicketError> {
    let Some(text) = container.metadata.get(SHAPE_OF) else {
        return Ok(Shapes::new());
    };
    container::parse_unique(SHAPE_OF, text).map_err(|error| match error {
        TicketError::HeaderJson(reason) => {
            TicketError::ShapeOf(format!("is not an object of [out, in]: {reason}"))
        }
        other => other,
    })
}

/// Shape of a parameter in the base. A shape that the file gives for it must be the same.
fn shape(parameter: &str, shapes: &Shapes, base: &BaseManifest) -> Result<[usize; 2], TicketError> {
    let expected = base.projection(parameter)?;
    match shapes.get(parameter) {
        Some(&found) if found != expected => Err(TicketError::Shape {
            parameter: brief(parameter),
            found,
            expected,
        }),
        _ => Ok(expected),
    }
}

fn import_delta(
    container: &Container<'_>,
    parameter: &str,
    shape: [usize; 2],
    dtype: DeltaDtype,
) -> Result<TensorDelta, TicketError> {
    let array = |part: &str, dtype| container.array(&format!("{parameter}.{part}"), &[dtype]);
    let indices = array("indices", Dtype::I32)?.i32();
    let deltas = array("deltas", Dtype::F32)?.f32();
    flat_delta(indices, deltas, shape, dtype).map_err(|fault| TicketError::Delta {
        parameter: brief(parameter),
        fault,
    })
}

fn flat_delta(
    indices: Vec<i32>,
    mut deltas: Vec<f32>,
    shape: [usize; 2],
    dtype: DeltaDtype,
) -> Result<TensorDelta, DeltaError> {
    if indices.len() != deltas.len() {
        let (indices, deltas) = (indices.len(), deltas.len());
        return Err(DeltaError::FlatLengths { indices, deltas });
    }
    let unsigned = indices.into_iter().map(|index| {
        usize::try_from(index).map_err(|_| DeltaError::OutOfRange {
            index: index.into(),
            weights: shape[0].saturating_mul(shape[1]),
        })
    });
    let mut indices = unsigned.collect::<Result<Vec<_>, _>>()?;
    if !indices.is_sorted() {
        let mut pairs: Vec<_> = indices.into_iter().zip(deltas).collect();
        pairs.sort_by_key(|&(index, _)| index);
        (indices, deltas) = pairs.into_iter().unzip();
    }
    TensorDelta::from_flat(shape, &indices, Deltas::from_f32(deltas, dtype))
}
