use std::fs;

use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use serde_json::{Value, json};

use super::*;
use crate::oci::RepositoryName;

const SERVICE: &str = "registry.example";
const ISSUER: &str = "auth.example";
/// The time that the tests take for now.
const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// A key of each type that can be made here.
struct Signers {
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

impl Signers {
    fn new() -> Self {
        let random = SystemRandom::new();
        let ecdsa = |algorithm| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
            EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("our own key")
        };
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
        Self {
            p256: ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING),
            p384: ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING),
            ed25519: Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("our own key"),
        }
    }

    fn sign(&self, key: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match key {
            "p256" => self.p256.sign(&random, message).expect("signed").as_ref().to_vec(),
            "p384" => self.p384.sign(&random, message).expect("signed").as_ref().to_vec(),
            _ => self.ed25519.sign(message).as_ref().to_vec(),
        }
    }

    fn point(&self, key: &str) -> &[u8] {
        if key == "p256" { self.p256.public_key().as_ref() } else { self.p384.public_key().as_ref() }
    }

    /// Verifies tokens by a set of the three keys, named after their types.
    fn tokens(&self) -> Tokens {
        let ec = |name: &str, curve: &str| {
            let (x, y) = self.point(name)[1..].split_at(self.point(name).len() / 2);
            json!({"kty": "EC", "crv": curve, "kid": name, "x": text(x), "y": text(y)})
        };
        let ed25519 = text(self.ed25519.public_key().as_ref());
        let ed25519 = json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed25519", "x": ed25519, "use": "sig"});
        let set = json!({"keys": [ec("p256", "P-256"), ec("p384", "P-384"), ed25519]});
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), set.to_string()).expect("our own file");
        Tokens::new(&TokenOptions {
            realm: "https://auth.example/token".into(),
            service: SERVICE.into(),
            issuer: ISSUER.into(),
            keys: Vec::new(),
            jwks: Some(file.path().into()),
        })
        .expect("a set of keys")
    }

    fn token(&self, header: &Value, claims: &Value, key: &str) -> String {
        let message =
            format!("{}.{}", text(header.to_string().as_bytes()), text(claims.to_string().as_bytes()));
        let signature = self.sign(key, message.as_bytes());
        format!("{message}.{}", text(&signature))
    }
}

fn text(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

/// Valid claims, with these instead or besides.
fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": SERVICE, "sub": "alice", "exp": NOW + 300, "nbf": NOW - 10, "iat": NOW,
        "access": [{"type": "repository", "name": "team/app", "actions": ["pull", "push"]}],
    });
    let changes = changes.as_object().expect("an object").clone();
    claims.as_object_mut().expect("an object").extend(changes);
    claims
}

#[test]
fn a_key_is_found_by_its_name_or_by_trying() {
    let signers = Signers::new();
    let tokens = signers.tokens();
    for (key, algorithm) in [("p256", "ES256"), ("p384", "ES384"), ("ed25519", "EdDSA")] {
        for header in [json!({"alg": algorithm, "kid": key, "typ": "JWT"}), json!({"alg": algorithm})] {
            let token = signers.token(&header, &claims(&json!({})), key);
            assert!(tokens.verify(&token, now()).is_ok(), "{header}");
        }
        let other = if key == "p256" { "p384" } else { "p256" };
        let token = signers.token(&json!({"alg": algorithm, "kid": other}), &claims(&json!({})), key);
        assert_eq!(tokens.verify(&token, now()).unwrap_err(), TokenFault::Signature, "{key} called {other}");
        let token = signers.token(&json!({"alg": algorithm, "kid": "x"}), &claims(&json!({})), key);
        assert_eq!(tokens.verify(&token, now()).unwrap_err(), TokenFault::UnknownKey);
    }
}

#[test]
fn what_is_not_signed_by_the_key_is_refused() {
    let signers = Signers::new();
    let tokens = signers.tokens();
    let good = signers.token(&json!({"alg": "ES256"}), &claims(&json!({})), "p256");
    assert!(tokens.verify(&good, now()).is_ok());
    let fault = |token: &str| tokens.verify(token, now()).unwrap_err();

    let parts: Vec<_> = good.split('.').collect();
    let other = text(claims(&json!({"sub": "mallory"})).to_string().as_bytes());
    assert_eq!(fault(&format!("{}.{other}.{}", parts[0], parts[2])), TokenFault::Signature);
    assert_eq!(fault(&format!("{}.{}.", parts[0], parts[1])), TokenFault::Signature);

    for algorithm in ["none", "None", "HS256", "ES512", ""] {
        let header = text(json!({"alg": algorithm}).to_string().as_bytes());
        assert_eq!(fault(&format!("{header}.{}.", parts[1])), TokenFault::Algorithm, "{algorithm}");
    }
    // A public key taken for a shared secret.
    let message = format!("{}.{}", text(br#"{"alg":"HS256"}"#), parts[1]);
    let secret = hmac::Key::new(hmac::HMAC_SHA256, signers.point("p256"));
    let signature = hmac::sign(&secret, message.as_bytes());
    assert_eq!(fault(&format!("{message}.{}", text(signature.as_ref()))), TokenFault::Algorithm);

    let stranger = Signers::new().token(&json!({"alg": "ES256"}), &claims(&json!({})), "p256");
    assert_eq!(fault(&stranger), TokenFault::Signature);
    let critical = signers.token(&json!({"alg": "ES256", "crit": ["x"]}), &claims(&json!({})), "p256");
    assert_eq!(fault(&critical), TokenFault::Malformed);
    for malformed in
        ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", &good[1..], &format!("{good}="), &format!(".{good}")]
    {
        assert_eq!(fault(malformed), TokenFault::Malformed, "{malformed:?}");
    }
}

#[test]
fn a_token_is_for_us_from_the_issuer_and_in_its_time() {
    let signers = Signers::new();
    let tokens = signers.tokens();
    let verify = |changes: Value| {
        let token = signers.token(&json!({"alg": "EdDSA"}), &claims(&changes), "ed25519");
        tokens.verify(&token, now()).map(drop)
    };
    for changes in [
        json!({}),
        json!({"aud": ["other", SERVICE]}),
        json!({"exp": NOW - 59}),
        json!({"exp": f64::from(u32::MAX) + 0.5}),
        json!({"nbf": NOW + 60}),
        json!({"nbf": null}),
        json!({"access": null}),
        json!({"access": [{"type": "repository", "name": "x", "actions": null, "class": ""}]}),
    ] {
        assert_eq!(verify(changes.clone()), Ok(()), "{changes}");
    }
    for (changes, fault) in [
        (json!({"iss": "other"}), TokenFault::Issuer),
        (json!({"aud": "other"}), TokenFault::Audience),
        (json!({"aud": []}), TokenFault::Audience),
        (json!({"exp": NOW - 60}), TokenFault::Expired),
        (json!({"nbf": NOW + 61}), TokenFault::NotYetValid),
        (json!({"exp": null}), TokenFault::Malformed),
        (json!({"iss": null}), TokenFault::Malformed),
        (json!({"access": "all"}), TokenFault::Malformed),
    ] {
        assert_eq!(verify(changes.clone()), Err(fault), "{changes}");
    }
}

#[test]
fn a_token_allows_what_its_access_says_and_no_more() {
    let access = |access: Value| Granted { access: serde_json::from_value(access).expect("access") };
    let (app, other): (RepositoryName, RepositoryName) =
        ("team/app".parse().expect("valid"), "team/app2".parse().expect("valid"));
    let wish = |name, action| Wish { repository: Some(name), action };
    let granted = access(json!([
        {"type": "repository", "name": "team/app", "actions": ["pull", "push"]},
        {"type": "registry", "name": "catalog", "actions": ["*"]},
        {"type": "other", "name": "team/app2", "actions": ["*"]},
    ]));
    assert!(granted.allows(&wish(&app, Action::Pull)) && granted.allows(&wish(&app, Action::Push)));
    assert!(!granted.allows(&wish(&app, Action::Delete)));
    assert!(!granted.allows(&wish(&other, Action::Pull)));
    assert!(granted.allows(&Wish { repository: None, action: Action::Catalog }));
    assert!(granted.allows(&Wish { repository: None, action: Action::Ping }));

    let all = access(json!([{"type": "repository", "name": "team/app", "actions": ["*"]}]));
    assert!(all.allows(&wish(&app, Action::Delete)));
    assert!(!all.allows(&Wish { repository: None, action: Action::Catalog }));
    let none = access(json!([]));
    assert!(!none.allows(&wish(&app, Action::Pull)));
}
