//! Settings of TLS.

use std::{path::PathBuf, sync::Arc};

use clap::Args;

use crate::http::Tls;

/// The certificate of the service.
#[derive(Args, Debug)]
pub struct TlsArgs {
    /// Speak TLS, with HTTP/2 or HTTP/1.1: file with the service's certificate, and those between it and its CA, in PEM;
    /// read again when it changes
    #[arg(long, env = "STREAMKEEP_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// File with the key of the certificate, in PEM; read again when it changes
    #[arg(long, env = "STREAMKEEP_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Reads the certificate, where there is one.
    ///
    /// # Errors
    /// Which file is broken, and what is wrong with it.
    pub fn open(&self) -> Result<Option<Arc<Tls>>, String> {
        self.tls_cert.clone().zip(self.tls_key.clone()).map(|(cert, key)| Tls::open(cert, key)).transpose()
    }
}
