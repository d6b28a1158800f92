//! Whom we trust when an upstream speaks TLS: the system's roots plus the options' CA file.
//!
//! The system's roots are read once per process, at the first https connection, on a blocking thread; a cache that talks
//! only plain HTTP never reads them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::OnceCell;

static SYSTEM_ROOTS: OnceCell<Arc<RootCertStore>> = OnceCell::const_new();

/// Builds the TLS configuration at its first use and keeps it: the session tickets in it are shared by all workers.
pub(crate) struct Tls {
    extra_roots: Vec<CertificateDer<'static>>,
    config: OnceCell<Arc<ClientConfig>>,
}

impl Tls {
    /// Trusts `extra_roots` beside the system's roots.
    pub(crate) fn new(extra_roots: Vec<CertificateDer<'static>>) -> Self {
        Self { extra_roots, config: OnceCell::new() }
    }

    /// The configuration: TLS 1.2 and 1.3 by ring, ALPN `http/1.1`.
    ///
    /// Cancel-safe: a dropped call leaves the next one to build it.
    pub(crate) async fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let config = self
            .config
            .get_or_try_init(|| async {
                let mut roots = system_roots().await?;
                if !self.extra_roots.is_empty() {
                    let (added, _) =
                        Arc::make_mut(&mut roots).add_parsable_certificates(self.extra_roots.clone());
                    tracing::debug!(added, "trusting the certificates of the CA file");
                }
                if roots.is_empty() {
                    tracing::warn!(
                        "no trusted certificate was found on this system: no https upstream can be verified"
                    );
                }
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let mut config = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                    .map_err(io::Error::other)?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Ok::<_, io::Error>(Arc::new(config))
            })
            .await?;
        Ok(Arc::clone(config))
    }
}

/// The certificates of a PEM file. An empty file is an error: it trusts nobody, which nobody means.
pub(crate) fn read_ca_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| super::error::causes(&error).to_string())?;
    if certificates.is_empty() {
        return Err("holds no PEM certificate (-----BEGIN CERTIFICATE-----)".into());
    }
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| error.to_string())?;
    }
    Ok(certificates)
}

async fn system_roots() -> io::Result<Arc<RootCertStore>> {
    let roots = SYSTEM_ROOTS
        .get_or_try_init(|| async {
            tokio::task::spawn_blocking(|| {
                let found = rustls_native_certs::load_native_certs();
                for error in &found.errors {
                    tracing::debug!(%error, "a trusted certificate of the system cannot be read");
                }
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(found.certs);
                Arc::new(roots)
            })
            .await
            .map_err(io::Error::other)
        })
        .await?;
    Ok(Arc::clone(roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_certificates_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(read_ca_file(&path).is_err(), "missing");
        std::fs::write(&path, "no certificate here\n").unwrap();
        assert!(read_ca_file(&path).unwrap_err().contains("no PEM certificate"));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(read_ca_file(&path).is_err(), "not a certificate");
    }
}
