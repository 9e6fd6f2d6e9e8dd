//! TLS, by rustls: the certificate and its key, read again when they change.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::info;

use crate::http::reload::{Reloaded, text};

/// The certificate that holds now.
pub struct Tls(Arc<Reloaded<TlsAcceptor>>);

impl Tls {
    /// Reads a chain of certificates, the service's own first, and the key of that, both in PEM.
    ///
    /// # Errors
    /// Which file is broken, and what is wrong with it.
    pub fn open(cert: PathBuf, key: PathBuf) -> Result<Arc<Self>, String> {
        let still = "the certificate that was read before still holds";
        let files = vec![cert.clone(), key.clone()];
        Ok(Arc::new(Self(Reloaded::open(files, still, move || acceptor(&cert, &key))?)))
    }

    /// Reads the files again whenever they change, and on SIGHUP. While one is broken, or the two do not belong together,
    /// what was read last holds.
    pub async fn watch(self: Arc<Self>) {
        Arc::clone(&self.0).watch().await;
    }

    /// Makes a connection secure, with the certificate that holds now.
    ///
    /// # Errors
    /// Those of the connection, and what the client cannot do.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::clone(&self.0.current());
        acceptor.accept(stream).await
    }
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let wrong = |path: &Path, why: String| format!("{}: {why}", path.display());
    let pem = |path: &Path| text(path).map_err(|why| wrong(path, why));
    let (cert_text, key_text) = (pem(cert)?, pem(key)?);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert_text.as_bytes()).collect();
    let chain = chain.map_err(|error| wrong(cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(cert, "there is no certificate in it (PEM)".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_slice(key_text.as_bytes());
    // The error could repeat a part of the key.
    let private = private.map_err(|_| wrong(key, "there is no private key in it that can be read (PEM)".to_owned()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|error| format!("{} with {}: {error}", cert.display(), key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    info!(file = %cert.display(), "certificate read");
    Ok(Arc::new(config).into())
}
