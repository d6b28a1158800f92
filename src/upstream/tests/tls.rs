//! https, with certificates made by the `openssl` command.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::upstream::{Credentials, UpstreamError};

/// Makes a CA (`ca.pem`) and a server's configuration with a certificate of it for 127.0.0.1.
fn certificates(dir: &Path) -> Arc<ServerConfig> {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(dir.join("leaf.ext"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"));
    openssl(&format!("req {key} -keyout leaf.key -out leaf.csr -subj /CN=leaf"));
    openssl(
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem",
    );
    let certificate = CertificateDer::from_pem_file(dir.join("leaf.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("leaf.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config)
}

#[tokio::test]
async fn the_ca_file_is_trusted_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_tls(certificates(dir.path()), |_| Reply::ok("{}"));
    let mut trusting = options(&server.url());
    trusting.ca_file = Some(dir.path().join("ca.pem"));
    let trusting = Upstream::new(trusting).unwrap();
    for _ in 0..2 {
        trusting.manifest(&repository(), &tag()).await.unwrap();
    }
    assert_eq!(server.seen().iter().map(|seen| seen.connection).collect::<Vec<_>>(), [0, 0]);

    let error = upstream(&server.url()).manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn no_downgrade() {
    let dir = tempfile::tempdir().unwrap();
    let plain = Server::start(|_| Reply::ok(r#"{"token":"t"}"#));
    let (location, realm) = (plain.url(), plain.url());
    let server =
        Server::start_tls(certificates(dir.path()), move |seen| match (seen.path(), seen.authorization()) {
            ("/v2/team/app/tags/list", Some("Bearer t")) => Reply::ok(r#"{"tags":[]}"#),
            ("/v2/team/app/tags/list", _) => Reply::challenge(format!("Bearer realm=\"{realm}\"")),
            _ => Reply::redirect(&location),
        });
    let mut options = options(&server.url());
    options.ca_file = Some(dir.path().join("ca.pem"));
    options.credentials = Credentials::Basic { username: "user".into(), password: "hunter2".into() };
    let upstream = Upstream::new(options).unwrap();

    let error = upstream.manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(&error, UpstreamError::Unexpected { what, .. } if what.contains("https")), "{error}");
    assert_eq!(plain.seen().len(), 0);

    upstream.tags(&repository()).await.unwrap();
    assert_eq!(plain.seen().len(), 1);
    assert_eq!(plain.seen()[0].authorization(), None, "the password is not sent in the clear");
}

#[tokio::test]
async fn a_handshake_that_stalls_is_a_connect_timeout() {
    // Never accepted: the kernel completes the TCP handshake, and nobody answers the ClientHello.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = options(&format!("https://{}", listener.local_addr().unwrap()));
    options.connect_timeout = Duration::from_millis(200);
    let error = Upstream::new(options).unwrap().manifest(&repository(), &tag()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Timeout { what: "connection", .. }), "{error}");
}
