//! The trusted certificate authorities: the system's, or those of `AWS_CA_BUNDLE`.
//!
//! The SDK's HTTP client panics if there is none, and on a certificate that it cannot use. Therefore only
//! certificates that were checked here are passed to it.

use std::path::Path;

use aws_smithy_http_client::tls::{TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};

const NONE: &str = "this machine has no certificate authorities, so no HTTPS server can be trusted: \
    install the package `ca-certificates`, or set AWS_CA_BUNDLE to a file of certificates";

/// Loads the certificate authorities; `bundle` is a file or a directory of PEM certificates.
pub(super) fn trusted(bundle: Option<&str>) -> Result<TlsContext, String> {
    let Some(bundle) = bundle else { return context(system()?) };
    let path = Path::new(bundle);
    let found = if path.is_dir() {
        load_certs_from_paths(None, Some(path))
    } else {
        load_certs_from_paths(Some(path), None)
    };
    context(only(&found).ok_or_else(|| {
        let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        format!(
            "AWS_CA_BUNDLE `{bundle}` contains no usable certificate{why}: set it to a file of PEM \
             certificates, or unset it"
        )
    })?)
}

/// Returns a context without certificate authorities, for plain HTTP only.
pub(super) fn nobody() -> Result<TlsContext, String> {
    context(TrustStore::empty())
}

fn context(store: TrustStore) -> Result<TlsContext, String> {
    let context = TlsContext::builder().with_trust_store(store).build();
    context.map_err(|error| format!("the certificate authorities cannot be used: {error}"))
}

fn system() -> Result<TrustStore, String> {
    if load_native_certs().certs.iter().any(is_usable) {
        // The SDK loads and filters the system's certificates itself.
        return Ok(TrustStore::default());
    }
    Err(NONE.to_owned())
}

/// Returns a trust store of the usable certificates in `found`; `None` if there are none.
fn only(found: &CertificateResult) -> Option<TrustStore> {
    let usable: Vec<_> = found.certs.iter().filter(|certificate| is_usable(certificate)).collect();
    let add = |store: TrustStore, certificate| store.with_pem_certificate(pem(certificate));
    (!usable.is_empty()).then(|| usable.into_iter().fold(TrustStore::empty(), add))
}

fn is_usable(certificate: &CertificateDer<'_>) -> bool {
    RootCertStore::empty().add(certificate.clone()).is_ok()
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let data = base64_simd::STANDARD.encode_to_string(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{data}\n-----END CERTIFICATE-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_a_certificate_is_named_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bundle.pem");
        for content in [
            &b""[..],
            b"not a certificate",
            b"\xff\xfe",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&file, content).unwrap();
            for bundle in [file.as_path(), directory.path(), Path::new("/nowhere")] {
                let refused = trusted(bundle.to_str()).unwrap_err();
                assert!(refused.contains("AWS_CA_BUNDLE `/"), "{refused}");
                assert!(refused.contains("PEM"), "{refused}");
            }
        }
    }
}
