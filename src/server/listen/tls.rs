//! TLS of a listener: certificate and key from PEM files, read again after each change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error as RustlsError, ServerConfig};

use crate::access::with_causes;
use crate::ticket::Digest;

/// Interval at which the files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Certificate and key of a TLS listener.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
    /// Digests of the files as they were last read, with or without success.
    read: RwLock<[Digest; 2]>,
}

/// Reason why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A file is not PEM.
    #[error("{} is not PEM: {problem}", .path.display())]
    Pem { path: PathBuf, problem: String },
    /// The certificate file has no certificate.
    #[error("{} contains no certificate (`BEGIN CERTIFICATE`)", .0.display())]
    NoCertificate(PathBuf),
    /// The key file has no key.
    #[error("{} contains no private key (`BEGIN PRIVATE KEY`)", .0.display())]
    NoKey(PathBuf),
    /// The key is encrypted.
    #[error("the key in {} is encrypted; decrypt it with `openssl pkey`", .0.display())]
    EncryptedKey(PathBuf),
    /// The key is not the certificate's.
    #[error(
        "the key in {} does not belong to the first certificate in {}",
        .key.display(),
        .certificate.display()
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    /// rustls refuses the certificate or the key.
    #[error(
        "{} and {} cannot be used",
        .certificate.display(),
        .key.display()
    )]
    Unusable {
        certificate: PathBuf,
        key: PathBuf,
        source: RustlsError,
    },
}

impl Tls {
    /// Reads a certificate chain and its key, both PEM.
    ///
    /// # Errors
    /// A file is missing, malformed or lacks its content, or the two do not belong together.
    pub fn load(certificate: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let (certificate_pem, key_pem) = (read(certificate)?, read(key)?);
        let config = config(certificate, &certificate_pem, key, &key_pem)?;
        Ok(Arc::new(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            current: RwLock::new(Arc::new(config)),
            read: RwLock::new([Digest::of(&certificate_pem), Digest::of(&key_pem)]),
        }))
    }

    /// The configuration for the next handshake.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// Reads the files again if they have changed since they were last read. Returns whether new
    /// handshakes use another certificate. After an error, they use the previous one.
    ///
    /// # Errors
    /// As for [`Tls::load`]; each state of the files is reported once.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let (certificate_pem, key_pem) = (read(&self.certificate)?, read(&self.key)?);
        let digests = [Digest::of(&certificate_pem), Digest::of(&key_pem)];
        let mut last_read = self.read.write().unwrap_or_else(PoisonError::into_inner);
        if *last_read == digests {
            return Ok(false);
        }
        *last_read = digests;
        let config = config(&self.certificate, &certificate_pem, &self.key, &key_pem)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(config);
        Ok(true)
    }

    /// Follows changes of the files, forever.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut missing = false;
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let tls = Arc::clone(&self);
            let reloaded = tokio::task::spawn_blocking(move || tls.reload()).await;
            match reloaded {
                Ok(Ok(changed)) => {
                    missing = false;
                    if changed {
                        let path = self.certificate.display();
                        tracing::info!("read the changed TLS certificate {path}");
                    }
                }
                // A missing file would be reported at each check.
                Ok(Err(TlsError::Io { .. })) if missing => {}
                Ok(Err(error)) => {
                    missing = matches!(error, TlsError::Io { .. });
                    tracing::error!("{}", unchanged(&error));
                }
                Err(error) => tracing::error!(%error, "cannot check the TLS certificate"),
            }
        }
    }
}

/// What the log says of files that cannot be used.
fn unchanged(error: &TlsError) -> String {
    let error = with_causes(error);
    format!("the previous TLS certificate stays in use: {error}")
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Io {
        path: path.to_owned(),
        source,
    })
}

fn config(
    certificate: &Path,
    certificate_pem: &[u8],
    key: &Path,
    key_pem: &[u8],
) -> Result<ServerConfig, TlsError> {
    let malformed = |path: &Path, error: PemError| TlsError::Pem {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let chain = CertificateDer::pem_slice_iter(certificate_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed(certificate, error))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(certificate.to_owned()));
    }
    let private = match PrivateKeyDer::from_pem_slice(key_pem) {
        Ok(private) => private,
        Err(PemError::NoItemsFound) => {
            let text = String::from_utf8_lossy(key_pem);
            let encrypted = text.contains("BEGIN ENCRYPTED PRIVATE KEY");
            let path = key.to_owned();
            return Err(if encrypted {
                TlsError::EncryptedKey(path)
            } else {
                TlsError::NoKey(path)
            });
        }
        Err(error) => return Err(malformed(key, error)),
    };
    let unusable = |source| match source {
        RustlsError::InconsistentKeys(_) => TlsError::Mismatch {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        },
        source => TlsError::Unusable {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        },
    };
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        // TLS 1.2 and 1.3.
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/tls")
            .join(name)
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said() {
        let (certificate, key) = (shipped("first.crt"), shipped("first.key"));
        let problem = |certificate: &Path, key: &Path| {
            let error = Tls::load(certificate, key).unwrap_err();
            error.to_string()
        };
        let missing = shipped("missing.crt");
        assert!(problem(&missing, &key).contains("missing.crt"));
        let logged = unchanged(&Tls::load(&missing, &key).unwrap_err());
        assert!(logged.contains("missing.crt: No such file"), "{logged}");
        assert!(problem(&key, &key).contains("no certificate"));
        assert!(problem(&certificate, &certificate).contains("no private key"));
        assert!(problem(&certificate, &shipped("second.key")).contains("does not belong"));
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        for (text, expected) in [
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n\
                 -----END ENCRYPTED PRIVATE KEY-----\n",
                "encrypted",
            ),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n", "not PEM"),
        ] {
            fs::write(&other, text).unwrap();
            let message = problem(&certificate, &other);
            assert!(message.contains(expected), "{message}");
        }
        assert!(Tls::load(&certificate, &key).is_ok());
    }

    #[test]
    fn changed_files_are_read_again_and_broken_ones_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("crt"), folder.path().join("key"));
        let install = |name: &str| {
            fs::copy(shipped(&format!("{name}.crt")), &certificate).unwrap();
            fs::copy(shipped(&format!("{name}.key")), &key).unwrap();
        };
        install("first");
        let tls = Tls::load(&certificate, &key).unwrap();
        let first = tls.config();
        assert!(!tls.reload().unwrap());
        fs::copy(shipped("second.crt"), &certificate).unwrap();
        assert!(matches!(tls.reload(), Err(TlsError::Mismatch { .. })));
        assert!(Arc::ptr_eq(&first, &tls.config()));
        // The same state is not reported again.
        assert!(!tls.reload().unwrap());
        install("second");
        assert!(tls.reload().unwrap());
        assert!(!Arc::ptr_eq(&first, &tls.config()));
    }
}
