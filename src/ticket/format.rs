//! The ticket file: three tensors per parameter in a safetensors container.
//!
//! | tensor | dtype, shape | meaning |
//! |---|---|---|
//! | `P.row_offsets` | U32 `[out + 1]` | nonzeros of row r are `row_offsets[r]..row_offsets[r + 1]` |
//! | `P.columns` | U16 `[nnz]`, U32 where `in` > 65,536 | strictly increasing within a row |
//! | `P.deltas` | BF16 or F32 `[nnz]` | finite; added to the base's value |

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use super::container::{self, Container, Dtype, MAX_HEADER_BYTES, Slice};
use super::error::brief;
use super::{Columns, Deltas, Metadata, TensorDelta, TicketError};

type Tensors = BTreeMap<String, TensorDelta>;

/// Decodes the parts of a ticket from the bytes of its file.
pub(super) fn decode(file: &[u8]) -> Result<(Metadata, Tensors), TicketError> {
    let container = Container::parse(file)?;
    let metadata = Metadata::from_header(&container.metadata)?;
    let mut tensors = Tensors::new();
    for parameter in parameters(&container, &["row_offsets", "columns", "deltas"])? {
        let delta = decode_delta(&container, parameter)?;
        tensors.insert(parameter.to_owned(), delta);
    }
    check_changes_something(&tensors)?;
    Ok((metadata, tensors))
}

/// Serialises the canonical file: the inverse of [`decode`].
pub(super) fn encode(metadata: &Metadata, tensors: &Tensors) -> Result<Vec<u8>, TicketError> {
    let metadata = metadata.to_header()?;
    check_changes_something(tensors)?;
    let mut slices = BTreeMap::new();
    for (parameter, delta) in tensors {
        let columns = match delta.columns() {
            Columns::U16(columns) => Slice::U16(columns),
            Columns::U32(columns) => Slice::U32(columns),
        };
        let deltas = match delta.deltas() {
            Deltas::Bf16(deltas) => Slice::Bf16(deltas),
            Deltas::F32(deltas) => Slice::F32(deltas),
        };
        let row_offsets = Slice::U32(delta.row_offsets());
        slices.insert(format!("{parameter}.row_offsets"), row_offsets);
        slices.insert(format!("{parameter}.columns"), columns);
        slices.insert(format!("{parameter}.deltas"), deltas);
    }
    container::encode(&metadata, &slices)
}

/// Reads a whole file of at most `max_bytes`. The limit is enforced before the buffer is allocated
/// and again while reading.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is larger than `max_bytes`.
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, TicketError> {
    let io_error = |error| io_error("read", path, error);
    let file = open_regular(path)?;
    let info = file.metadata().map_err(io_error)?;
    let too_large = || TicketError::FileTooLarge { limit: max_bytes };
    if info.len() > max_bytes {
        return Err(too_large());
    }
    let size = usize::try_from(info.len()).map_err(|_| too_large())?;
    let mut bytes = Vec::new();
    let out_of_memory = |_| io_error(io::ErrorKind::OutOfMemory.into());
    bytes.try_reserve_exact(size).map_err(out_of_memory)?;
    // One byte more than allowed, to detect a file that has grown since.
    let mut bounded = file.take(max_bytes.saturating_add(1));
    bounded.read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large());
    }
    Ok(bytes)
}

/// Opens a regular file to read it, without waiting for the other end of a pipe.
///
/// # Errors
/// The file cannot be opened or is not a regular file.
pub fn open_regular(path: &Path) -> Result<File, TicketError> {
    let io_error = |error| io_error("read", path, error);
    // Checked before opening, because opening a device may do something, and after, because
    // something else may have taken its place.
    let mut info = fs::metadata(path).map_err(io_error)?;
    if info.is_file() {
        let mut options = OpenOptions::new();
        options.read(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.custom_flags(libc::O_NONBLOCK);
        }
        let file = options.open(path).map_err(io_error)?;
        info = file.metadata().map_err(io_error)?;
        if info.is_file() {
            return Ok(file);
        }
    }
    Err(TicketError::NotAFile(path.to_owned()))
}

impl Metadata {
    /// Reads the metadata of a ticket file, without its arrays and without checking its digest.
    ///
    /// # Errors
    /// The file cannot be read or is not a regular file, or its header is not that of a ticket.
    pub fn read(path: &Path) -> Result<Self, TicketError> {
        let io_error = |error| io_error("read", path, error);
        let mut file = open_regular(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io_error)?;
        let bytes = u64::from_le_bytes(length);
        if bytes > MAX_HEADER_BYTES {
            return Err(TicketError::HeaderTooLarge { bytes });
        }
        let mut header = Vec::new();
        file.take(bytes)
            .read_to_end(&mut header)
            .map_err(io_error)?;
        Self::from_header(&container::metadata(&header)?)
    }
}

/// Writes a temporary file beside `path`, syncs it, and renames it to `path`.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), TicketError> {
    let write = || -> io::Result<()> {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = parent.unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            // The mode of any new file instead of a temporary file's 0600; the umask still applies.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut temporary = builder.prefix(".ticket-").tempfile_in(folder)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|e| e.error)?;
        // The rename is durable only once the folder is synced.
        #[cfg(unix)]
        File::open(folder)?.sync_all()?;
        Ok(())
    };
    write().map_err(|error| io_error("write", path, error))
}

/// Names of the parameters in a file whose tensors are all named `P.part`, with `part` in `parts`.
pub(super) fn parameters<'a>(
    container: &'a Container<'_>,
    parts: &'static [&'static str],
) -> Result<BTreeSet<&'a str>, TicketError> {
    let parameter = |name: &'a str| match name.rsplit_once('.') {
        Some((parameter, part)) if !parameter.is_empty() && parts.contains(&part) => Ok(parameter),
        _ => Err(TicketError::UnknownTensor {
            tensor: brief(name),
            expected: parts.join(", "),
        }),
    };
    container.names().map(parameter).collect()
}

fn decode_delta(container: &Container<'_>, parameter: &str) -> Result<TensorDelta, TicketError> {
    let array =
        |part: &str, expected: &[Dtype]| container.array(&format!("{parameter}.{part}"), expected);
    let row_offsets = array("row_offsets", &[Dtype::U32])?.u32();
    let columns = array("columns", &[Dtype::U16, Dtype::U32])?;
    let columns = match columns.dtype {
        Dtype::U16 => Columns::U16(columns.u16()),
        _ => Columns::U32(columns.u32()),
    };
    let deltas = array("deltas", &[Dtype::Bf16, Dtype::F32])?;
    let deltas = match deltas.dtype {
        Dtype::Bf16 => Deltas::Bf16(deltas.bf16()),
        _ => Deltas::F32(deltas.f32()),
    };
    TensorDelta::new(row_offsets, columns, deltas).map_err(|fault| TicketError::Delta {
        parameter: brief(parameter),
        fault,
    })
}

/// Checks that the deltas change a weight.
pub(super) fn check_changes_something(tensors: &Tensors) -> Result<(), TicketError> {
    if tensors.values().all(|delta| delta.nonzeros() == 0) {
        return Err(TicketError::ChangesNothing("it has no nonzeros"));
    }
    if tensors.values().all(|delta| delta.deltas().all_zero()) {
        return Err(TicketError::ChangesNothing("all deltas are zero"));
    }
    Ok(())
}

fn io_error(action: &'static str, path: &Path, error: io::Error) -> TicketError {
    let path = path.to_owned();
    TicketError::Io {
        action,
        path,
        error,
    }
}
