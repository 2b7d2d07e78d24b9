//! Reception of an upload: a place in line before its first byte is read, then its form, with the
//! file spooled into the ticket folder.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest as _, Multipart, Request};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt as _;

use super::blocking::blocking;
use super::body::client_fault;
use super::caller::Caller;
use super::error::ApiError;
use super::form_body::{FormBody, Unparsed};
use super::quota;
use super::state::AppState;
use super::upload_gate::UploadPlace;

/// Largest value of `name` and `replace`, in bytes.
const MAX_FIELD_BYTES: usize = 256;

/// A received form. The file is deleted on drop unless it is published.
pub struct Upload {
    pub name: String,
    /// `None` if the form does not say.
    pub replace: Option<bool>,
    pub file: NamedTempFile,
    /// Kept until the ticket is published, since validation reads the file into memory.
    pub place: UploadPlace,
}

/// Receives a form once it is its turn.
///
/// # Errors
/// Too many uploads are in progress; the form is malformed, breaks off, comes too slowly or is too
/// large; the folder cannot be written.
pub async fn receive(
    request: Request,
    state: &Arc<AppState>,
    caller: &Caller,
) -> Result<Upload, ApiError> {
    let unparsed = Unparsed::default();
    let (parts, body) = request.into_parts();
    let body = FormBody::new(body.into_data_stream(), unparsed.clone());
    let request = Request::from_parts(parts, Body::from_stream(body));
    let form = Multipart::from_request(request, &()).await;
    let form = form.map_err(|error| ApiError::BadForm(error.body_text()))?;
    let form = Form { form, unparsed };
    let place = state.uploads.enter(&caller.tenant).await?;
    read_form(form, state, caller, place).await
}

/// A form that is being received.
struct Form {
    form: Multipart,
    unparsed: Unparsed,
}

/// A field of a form that is being received.
struct FormField<'a> {
    field: Field<'a>,
    unparsed: &'a Unparsed,
}

impl Form {
    async fn next_field(&mut self) -> Result<Option<FormField<'_>>, ApiError> {
        let field = self.form.next_field().await.map_err(bad_form)?;
        self.unparsed.reset();
        Ok(field.map(|field| FormField {
            field,
            unparsed: &self.unparsed,
        }))
    }
}

impl FormField<'_> {
    async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        let chunk = self.field.chunk().await.map_err(bad_form)?;
        self.unparsed.reset();
        Ok(chunk)
    }
}

async fn read_form(
    mut form: Form,
    state: &Arc<AppState>,
    caller: &Caller,
    mut place: UploadPlace,
) -> Result<Upload, ApiError> {
    let (mut name, mut replace, mut file) = (None, None, None);
    while let Some(mut field) = form.next_field().await? {
        let field_name = field.field.name().unwrap_or_default().to_owned();
        let duplicate = match field_name.as_str() {
            "name" => {
                let text = short_text(&mut field, "name").await?;
                caller.trail.ticket(&text);
                name.replace(text).is_some()
            }
            "replace" => replace
                .replace(flag(&mut field, "replace").await?)
                .is_some(),
            "file" => {
                let spooled = spool(&mut field, state, caller, &mut place).await?;
                file.replace(spooled).is_some()
            }
            other => {
                let problem = "is not a field of an upload; expected `name`, `file` or `replace`";
                let other: String = other.chars().take(MAX_FIELD_BYTES).collect();
                return Err(ApiError::invalid(other, problem));
            }
        };
        if duplicate {
            return Err(ApiError::invalid(field_name, "is given twice"));
        }
    }
    let missing = |param: &str| ApiError::invalid(param, "is missing from the form");
    Ok(Upload {
        name: name.ok_or_else(|| missing("name"))?,
        replace,
        file: file.ok_or_else(|| missing("file"))?,
        place,
    })
}

async fn short_text(field: &mut FormField<'_>, name: &'static str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD_BYTES {
            let problem = format!("is longer than {MAX_FIELD_BYTES} bytes");
            return Err(ApiError::invalid(name, problem));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid(name, "is not UTF-8"))
}

async fn flag(field: &mut FormField<'_>, name: &'static str) -> Result<bool, ApiError> {
    match short_text(field, name).await?.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(ApiError::invalid(name, "must be true or false")),
    }
}

/// Streams the field to a temporary file in the ticket folder, which is removed on an error or a
/// disconnect.
async fn spool(
    field: &mut FormField<'_>,
    state: &Arc<AppState>,
    caller: &Caller,
    place: &mut UploadPlace,
) -> Result<NamedTempFile, ApiError> {
    let registry = state.registry.clone();
    let staged = blocking(move || Ok(registry.stage()?)).await?;
    let path = staged.path().to_owned();
    let io_error = |error| ApiError::from(state.registry.staging_failed(&path, error));
    let file = staged.as_file().try_clone().map_err(io_error)?;
    let mut file = tokio::fs::File::from_std(file);
    let most = state.options.max_ticket_bytes;
    let limit = quota::largest_file(caller, most.min(state.uploads.spool_budget()));
    let mut bytes = 0;
    while let Some(chunk) = field.chunk().await? {
        bytes += chunk.len() as u64;
        if bytes > limit {
            let what = "ticket";
            return Err(ApiError::TooLarge { what, limit });
        }
        place.spool(chunk.len() as u64)?;
        file.write_all(&chunk).await.map_err(io_error)?;
    }
    file.flush().await.map_err(io_error)?;
    Ok(staged)
}

fn bad_form(error: MultipartError) -> ApiError {
    client_fault(&error).unwrap_or_else(|| ApiError::BadForm(error.body_text()))
}
