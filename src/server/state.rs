//! State that all routes share.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::body::Bodies;
use super::error::ApiError;
use super::guard::AccessOptions;
use super::preparation::Preparation;
use super::quota::Quota;
use super::refusals::Refusals;
use super::upload_gate::UploadGate;
use crate::chat::ChatFormat;
use crate::engine::EngineHandle;
use crate::grammar::{GrammarError, Grammars};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::text::Text;
use crate::ticket::{BaseManifest, Digest};

/// Limits on request bodies.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Largest JSON body, in bytes.
    pub max_body_bytes: usize,
    /// Largest ticket file, in bytes.
    pub max_ticket_bytes: u64,
    /// Disk that the files of uploads in progress may take together, in bytes.
    pub upload_spool_bytes: u64,
    /// Memory that request bodies may take together while they arrive, in bytes.
    pub body_memory_bytes: usize,
    /// Disk that request bodies may take together while they arrive, in bytes.
    pub body_spool_bytes: usize,
    /// Longest step of the engine before it counts as hanging; `None` for no limit.
    pub step_timeout: Option<Duration>,
    /// Refuse requests with fields that nobody knows.
    pub strict_fields: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_body_bytes: 8 << 20,
            max_ticket_bytes: 1 << 30,
            upload_spool_bytes: 4 << 30,
            body_memory_bytes: 64 << 20,
            body_spool_bytes: 1 << 30,
            step_timeout: Some(Duration::from_secs(120)),
            strict_fields: false,
        }
    }
}

/// Facts about the served base.
#[derive(Clone, Debug)]
pub struct ServedBase {
    /// Name, fingerprint and parameter shapes.
    pub manifest: Arc<BaseManifest>,
    /// Resident dtype of the parameters that are not quantised: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// Whether quantised weights stay quantised, as in the base's file.
    pub quantized: bool,
    /// End-of-text tokens of the base.
    pub end_tokens: Vec<u32>,
    /// Bytes of the resident parameters.
    pub weight_bytes: usize,
    /// Digest of the resident parameters, taken right after loading.
    pub loaded_digest: Digest,
}

/// State that all routes share.
pub struct AppState {
    /// Handle to the thread that owns the model.
    pub engine: EngineHandle,
    /// Tickets that requests may name.
    pub registry: Arc<Registry>,
    /// Tokenizer and chat template of the base.
    pub text: Arc<Text>,
    /// Facts about the base.
    pub base: ServedBase,
    /// All Prometheus series.
    pub metrics: Arc<Metrics>,
    /// How the base writes calls of tools, and reasoning.
    pub format: ChatFormat,
    /// Compiler of grammars, made on first use.
    grammars: OnceLock<Result<Grammars, GrammarError>>,
    /// Limits on request bodies.
    pub options: ServerOptions,
    /// Who may use the server.
    pub access: AccessOptions,
    /// What each tenant has in progress.
    pub(super) quota: Quota,
    /// Start time: the `created` of the base.
    pub(super) started: SystemTime,
    /// Identity of base and build.
    pub(super) fingerprint: Arc<str>,
    /// Set when shutdown begins.
    pub(super) draining: AtomicBool,
    /// Record of refused requests.
    pub(super) refusals: Refusals,
    /// Bounds of the uploads in progress.
    pub(super) uploads: Arc<UploadGate>,
    /// Request bodies on their way.
    pub(super) bodies: Bodies,
    /// Budget of the requests that are parsed and tokenised.
    pub(super) preparation: Preparation,
}

impl AppState {
    /// Time of the engine's current step, if it is longer than the engine should ever need.
    pub(super) fn hangs_for(&self) -> Option<Duration> {
        let limit = self.options.step_timeout?;
        let time = self.engine.in_step_for();
        (time > limit).then_some(time)
    }

    /// State of a server that starts now.
    pub fn new(
        engine: EngineHandle,
        registry: Arc<Registry>,
        text: Arc<Text>,
        base: ServedBase,
        metrics: Arc<Metrics>,
        options: ServerOptions,
    ) -> Self {
        let uploads = Arc::new(UploadGate::new(options.upload_spool_bytes));
        let bodies = Bodies::new(options.body_memory_bytes, options.body_spool_bytes);
        Self {
            // No more than the engine admits after that.
            preparation: Preparation::new(engine.capacity()),
            fingerprint: fingerprint(&base),
            format: ChatFormat::detect(&text),
            grammars: OnceLock::new(),
            engine,
            registry,
            text,
            base,
            metrics,
            options,
            access: AccessOptions::default(),
            quota: Quota::default(),
            started: SystemTime::now(),
            draining: AtomicBool::new(false),
            refusals: Refusals::default(),
            uploads,
            bodies,
        }
    }

    /// Compiler of grammars for the base. The first call makes it, in some tens of milliseconds.
    ///
    /// # Errors
    /// The base's vocabulary cannot be used.
    pub(super) fn grammars(&self) -> Result<&Grammars, ApiError> {
        let grammars = self.grammars.get_or_init(|| {
            let vocabulary = self.engine.limits().vocab_size;
            Grammars::new(&self.text, vocabulary, &self.base.end_tokens)
        });
        let failed = |error: &GrammarError| ApiError::Internal(error.to_string());
        grammars.as_ref().map_err(failed)
    }

    /// The same state with other forms of calls and reasoning than the base's template teaches.
    #[must_use]
    pub fn with_format(self, format: ChatFormat) -> Self {
        Self { format, ..self }
    }

    /// The same state for a server that does not accept everyone.
    #[must_use]
    pub fn with_access(self, access: AccessOptions) -> Self {
        Self { access, ..self }
    }
}

/// `fp_`, the first digits of the base's fingerprint, and the build.
fn fingerprint(base: &ServedBase) -> Arc<str> {
    const DIGITS: usize = 12;
    let base = base.manifest.fingerprint.to_string();
    format!("fp_{}_{}", &base[..DIGITS], env!("TOMBOLA_COMMIT")).into()
}
