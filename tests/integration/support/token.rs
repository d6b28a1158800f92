//! A token server as docker-registry trusts one: RS256 tokens whose key comes with them as `x5c`.

use std::fs;
use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::listener::{Listener, RequestHead};
use super::registry::{PASSWORD, USERNAME};
use super::{PATIENCE, tools};

pub(crate) struct TokenServer {
    listener: Listener,
    signer: Arc<Signer>,
    seen: Arc<Mutex<Vec<RequestHead>>>,
}

struct Signer {
    home: TempDir,
    /// The certificate as `x5c` wants it: base64 of its DER.
    x5c: String,
    lifetime: Duration,
}

impl TokenServer {
    pub(crate) const SERVICE: &str = "central registry";
    pub(crate) const ISSUER: &str = "the test's token server";

    /// Its tokens say `lifetime` in `expires_in` and in their claims.
    pub(crate) fn start(lifetime: Duration) -> Self {
        let home = TempDir::with_prefix("token-test-").expect("a temporary directory");
        tools::self_signed(&home.path().join("key.pem"), &home.path().join("cert.pem"));
        let pem = fs::read_to_string(home.path().join("cert.pem")).expect("openssl wrote it");
        let x5c = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let signer = Arc::new(Signer { home, x5c, lifetime });
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (serving, recording) = (signer.clone(), seen.clone());
        let listener = Listener::start(Arc::new(move |stream| {
            // A peer that leaves early is not this server's failure.
            let _ = serve(&serving, &recording, stream);
        }));
        Self { listener, signer, seen }
    }

    pub(crate) fn realm(&self) -> String {
        format!("http://{}/token", self.listener.addr())
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.signer.home.path().join("cert.pem")
    }

    /// The requests for tokens so far.
    pub(crate) fn seen(&self) -> Vec<RequestHead> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

fn serve(signer: &Signer, seen: &Mutex<Vec<RequestHead>>, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(head) = RequestHead::read(&mut reader)? {
        let credentials = format!("Basic {}", BASE64.encode(format!("{USERNAME}:{PASSWORD}").as_bytes()));
        let (status, body) = if head.header("authorization") == Some(&credentials) {
            // Several scopes come as a parameter each, or as one with spaces.
            let scopes: Vec<String> = head.query_values("scope").collect();
            let token = signer.token(&scopes.join(" "));
            (200, json!({"token": token, "expires_in": signer.lifetime.as_secs()}))
        } else {
            (401, json!({"errors": [{"code": "UNAUTHORIZED", "message": "unknown account"}]}))
        };
        seen.lock().expect("not poisoned").push(head);
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} Token\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
    }
    Ok(())
}

impl Signer {
    fn token(&self, scope: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let access: Vec<Value> = scope
            .split(' ')
            .filter_map(|one| {
                let (kind, rest) = one.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
            })
            .collect();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [self.x5c]});
        let claims = json!({
            "iss": TokenServer::ISSUER,
            "sub": USERNAME,
            "aud": TokenServer::SERVICE,
            "iat": now,
            "nbf": now.saturating_sub(10),
            "exp": now + self.lifetime.as_secs(),
            "jti": format!("{:016x}", fastrand::u64(..)),
            "access": access,
        });
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&self.sign(signed.as_bytes())))
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let scratch = TempDir::new_in(self.home.path()).expect("our own directory");
        let (input, output) = (scratch.path().join("message"), scratch.path().join("signature"));
        fs::write(&input, message).expect("our own directory");
        sign_file(&self.home.path().join("key.pem"), &input, &output);
        fs::read(output).expect("openssl wrote it")
    }
}

fn sign_file(key: &Path, input: &Path, output: &Path) {
    tools::succeed(
        Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(key)
            .arg("-out")
            .arg(output)
            .arg(input),
    );
}
