//! Who may be at the other end: only the other member of this pair, proven by a certificate of the pair's own CA that
//! carries exactly its name. TLS 1.3 only, both ways, no resumption and no early data (both could be replayed).
//!
//! The files are read for every handshake: a rotated certificate is used by the next connection without a restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Where the certificates lie and whose name the peer must prove.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Folder with `ca.crt`, `tls.crt` and `tls.key`.
    pub folder: PathBuf,
    /// The DNS name in the peer's certificate.
    pub peer_name: String,
}

/// Why no proven connection came about.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or not what it should be.
    #[error("read {file}: {why}")]
    File {
        /// Which one.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The files do not fit together.
    #[error("certificates: {0}")]
    Setup(String),
    /// The peer's name is not a DNS name.
    #[error("peer name {0} is not a DNS name")]
    Name(String),
    /// The certificate is of our CA, but somebody else's.
    #[error("peer proved to be {found}, expected {expected}")]
    OtherIdentity {
        /// Names in its certificate.
        found: String,
        /// The only name that is let in.
        expected: String,
    },
    /// The handshake failed.
    #[error("TLS handshake: {0}")]
    Handshake(#[from] io::Error),
}

struct Files {
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn read(folder: &Path) -> Result<Files, TlsError> {
    let broken = |name: &str, why: String| TlsError::File { file: folder.join(name).display().to_string(), why };
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let list: Result<Vec<_>, _> = CertificateDer::pem_file_iter(folder.join(name))
            .map_err(|error| broken(name, error.to_string()))?
            .collect();
        let list = list.map_err(|error| broken(name, error.to_string()))?;
        if list.is_empty() { Err(broken(name, "no certificate in it".into())) } else { Ok(list) }
    };
    let mut roots = RootCertStore::empty();
    // More than one during a rotation of the CA.
    for root in certificates("ca.crt")? {
        roots.add(root).map_err(|error| broken("ca.crt", error.to_string()))?;
    }
    let key =
        PrivateKeyDer::from_pem_file(folder.join("tls.key")).map_err(|error| broken("tls.key", error.to_string()))?;
    Ok(Files { roots, chain: certificates("tls.crt")?, key })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The side that dials.
pub(super) fn connector(settings: &TlsSettings) -> Result<(TlsConnector, ServerName<'static>), TlsError> {
    let files = read(&settings.folder)?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .with_root_certificates(files.roots)
        .with_client_auth_cert(files.chain, files.key)
        .map_err(|error| TlsError::Setup(error.to_string()))?;
    config.resumption = rustls::client::Resumption::disabled();
    let name =
        ServerName::try_from(settings.peer_name.clone()).map_err(|_| TlsError::Name(settings.peer_name.clone()))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

/// The side that listens.
pub(super) fn acceptor(settings: &TlsSettings) -> Result<TlsAcceptor, TlsError> {
    let files = read(&settings.folder)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(files.roots), provider())
        .build()
        .map_err(|error| TlsError::Setup(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(files.chain, files.key)
        .map_err(|error| TlsError::Setup(error.to_string()))?;
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Whether a certificate that the CA vouches for is the other member's: one DNS name, exactly that one.
pub(super) fn check_identity(presented: Option<&[CertificateDer<'_>]>, expected: &str) -> Result<(), TlsError> {
    let names = presented.and_then(|chain| chain.first()).map(names).unwrap_or_default();
    if names == [expected] {
        return Ok(());
    }
    Err(TlsError::OtherIdentity { found: names.join(", "), expected: expected.into() })
}

fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    names
        .value
        .general_names
        .iter()
        .map(|name| {
            if let x509_parser::extensions::GeneralName::DNSName(dns) = name {
                (*dns).to_string()
            } else {
                format!("{name:?}")
            }
        })
        .collect()
}
