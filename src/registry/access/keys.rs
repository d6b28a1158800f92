//! The keys that tokens may be signed with: from PEM files and JSON Web Key Sets, and the names by which tokens mean
//! them. Pure but for reading the files.
//!
//! A key has one type, and a type its algorithms: what a token says about its algorithm cannot turn a public key into a
//! shared secret. P-521 (ES512) is not offered, as ring has no such curve.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{SectionKind, SliceIter};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::AccessError;
use super::der;

/// The longest file of keys, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The shortest RSA modulus, in bytes: 2048 bits.
const RSA_BYTES_MIN: usize = 256;

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PublicKey {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// The uncompressed point, as the next one.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// The algorithms of signatures that are accepted (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

/// A key that is trusted, and the names that a token's `kid` may have for it.
#[derive(Clone, Debug)]
pub(super) struct TrustedKey {
    pub(super) key: PublicKey,
    names: Vec<String>,
    /// The only algorithm that it is for, if it says so.
    only: Option<Algorithm>,
}

/// All keys that are trusted.
#[derive(Debug, Default)]
pub(super) struct Keyring {
    pub(super) keys: Vec<TrustedKey>,
    /// Certificates that a chain (`x5c`) may lead to.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Keyring {
    /// Reads the files. Blocks.
    pub(super) fn read(pem: &[PathBuf], jwks: Option<&Path>) -> Result<Self, AccessError> {
        let mut ring = Self::default();
        for path in pem {
            read(path)
                .and_then(|bytes| ring.add_pem(&bytes))
                .map_err(|problem| AccessError::new(path, problem))?;
        }
        if let Some(path) = jwks {
            read(path)
                .and_then(|bytes| ring.add_jwks(&bytes))
                .map_err(|problem| AccessError::new(path, problem))?;
        }
        Ok(ring)
    }

    fn add_pem(&mut self, pem: &[u8]) -> Result<(), String> {
        let known = self.keys.len();
        for section in SliceIter::new(pem) {
            let (kind, der) = section.map_err(|error| format!("is not PEM: {error:?}"))?;
            let info = match kind {
                SectionKind::Certificate => {
                    let certificate = CertificateDer::from(der);
                    let info = spki_of(&certificate)?;
                    self.roots.push(certificate);
                    info
                }
                SectionKind::PublicKey => der,
                SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                    return Err("holds a private key, which only the token service should have".to_owned());
                }
                _ => continue,
            };
            let key = PublicKey::from_spki(&info)?;
            let names = vec![key.thumbprint(), libtrust_fingerprint(&info)];
            self.keys.push(TrustedKey { key, names, only: None });
        }
        if self.keys.len() == known {
            return Err("holds no PEM certificate or public key".to_owned());
        }
        Ok(())
    }

    fn add_jwks(&mut self, json: &[u8]) -> Result<(), String> {
        let set: JsonWebKeySet =
            // The message itself might repeat what is in the file.
            serde_json::from_slice(json).map_err(|error| {
                format!("is not a JSON Web Key Set (line {}, column {})", error.line(), error.column())
            })?;
        let known = self.keys.len();
        for jwk in set.keys {
            // Sets also hold keys for other uses, and of types that are not offered.
            let Some(key) = jwk.public_key()? else { continue };
            let only = match jwk.alg.as_deref().map(Algorithm::parse) {
                Some(None) => continue,
                named => named.flatten(),
            };
            let names = jwk.kid.into_iter().chain([key.thumbprint()]).collect();
            self.keys.push(TrustedKey { key, names, only });
        }
        if self.keys.len() == known {
            return Err("holds no key that signatures could be verified with".to_owned());
        }
        Ok(())
    }

    /// The keys that go by this name.
    pub(super) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a TrustedKey> {
        self.keys.iter().filter(move |key| key.names.iter().any(|known| known == name))
    }
}

impl TrustedKey {
    /// Whether this key made the signature.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        self.only.is_none_or(|only| only == algorithm) && self.key.verifies(algorithm, message, signature)
    }
}

impl PublicKey {
    /// Of a `SubjectPublicKeyInfo` (RFC 5280 section 4.1.2.7).
    pub(super) fn from_spki(info: &[u8]) -> Result<Self, String> {
        let malformed = || "holds a malformed public key".to_owned();
        let der::PublicKeyInfo { algorithm, parameters, key: bits } =
            der::public_key_info(info).ok_or_else(malformed)?;
        match (algorithm, parameters) {
            (der::RSA, _) => {
                let (modulus, exponent) = der::rsa_public_key(bits).ok_or_else(malformed)?;
                Self::rsa(modulus, exponent)
            }
            (der::EC, Some(der::P256)) if bits.len() == 65 => Ok(Self::P256(bits.to_vec())),
            (der::EC, Some(der::P384)) if bits.len() == 97 => Ok(Self::P384(bits.to_vec())),
            (der::ED25519, _) if bits.len() == 32 => Ok(Self::Ed25519(bits.to_vec())),
            _ => Err("holds a key that is none of RSA, P-256, P-384 and Ed25519".to_owned()),
        }
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, String> {
        if modulus.len() < RSA_BYTES_MIN {
            return Err(format!(
                "holds an RSA key of {} bits; fewer than 2048 are too few",
                modulus.len() * 8
            ));
        }
        Ok(Self::Rsa { modulus: modulus.to_vec(), exponent: exponent.to_vec() })
    }

    /// Whether this key made the signature.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let verified = match (self, algorithm) {
            (Self::Rsa { modulus, exponent }, _) => {
                let parameters = match algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n: modulus, e: exponent }.verify(parameters, message, signature)
            }
            (Self::P256(point), Algorithm::Es256) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Self::P384(point), Algorithm::Es384) => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point).verify(message, signature)
            }
            (Self::Ed25519(key), Algorithm::EdDsa) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature)
            }
            _ => return false,
        };
        verified.is_ok()
    }

    /// RFC 7638: the SHA-256 of the required members in lexical order, without spaces.
    fn thumbprint(&self) -> String {
        let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let curve = |name: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at(point.len() / 2);
            format!(r#"{{"crv":"{name}","kty":"EC","x":"{}","y":"{}"}}"#, text(x), text(y))
        };
        let members = match self {
            Self::Rsa { modulus, exponent } => {
                format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, text(exponent), text(modulus))
            }
            Self::P256(point) => curve("P-256", point),
            Self::P384(point) => curve("P-384", point),
            Self::Ed25519(key) => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, text(key)),
        };
        text(&Sha256::digest(members))
    }
}

impl Algorithm {
    /// The algorithm of this name. `none` and those of shared secrets are none.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// The `SubjectPublicKeyInfo` of a certificate that is trusted, of whatever version.
fn spki_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, String> {
    let anchor = webpki::anchor_from_trusted_cert(certificate)
        .map_err(|error| format!("holds a certificate that cannot be read: {error}"))?;
    Ok(der::sequence(&anchor.subject_public_key_info))
}

/// How distribution 2 calls a key: 30 bytes of its SHA-256 in base32, in groups of four.
fn libtrust_fingerprint(info: &[u8]) -> String {
    let text = BASE32_NOPAD.encode(&Sha256::digest(info)[..30]);
    text.as_bytes().chunks(4).map(String::from_utf8_lossy).collect::<Vec<_>>().join(":")
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is longer than {FILE_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

/// RFC 7517 section 5.
#[derive(Deserialize)]
struct JsonWebKeySet {
    keys: Vec<JsonWebKey>,
}

/// The public members of a key (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
#[derive(Deserialize)]
struct JsonWebKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl JsonWebKey {
    /// `None` for a key that is not for verifying signatures, or of a type that is not offered.
    fn public_key(&self) -> Result<Option<PublicKey>, String> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return Ok(None);
        }
        let bytes = |member: &Option<String>, name: &str| {
            let decoded = member.as_ref().and_then(|text| BASE64URL_NOPAD.decode(text.as_bytes()).ok());
            decoded.ok_or_else(|| format!("holds a key of type {:?} without a valid `{name}`", self.kty))
        };
        let point = |len: usize| {
            let (x, y) = (bytes(&self.x, "x")?, bytes(&self.y, "y")?);
            if x.len() != len || y.len() != len {
                return Err("holds a point that is not on its curve".to_owned());
            }
            Ok([&[4], &x[..], &y[..]].concat())
        };
        Ok(Some(match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                PublicKey::rsa(der::unsigned(&bytes(&self.n, "n")?), der::unsigned(&bytes(&self.e, "e")?))?
            }
            ("EC", Some("P-256")) => PublicKey::P256(point(32)?),
            ("EC", Some("P-384")) => PublicKey::P384(point(48)?),
            ("OKP", Some("Ed25519")) => PublicKey::Ed25519(bytes(&self.x, "x")?),
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7638 section 3.1.
    const RFC_KEY: &str = r#"{"keys":[{"kty":"oct","k":"AA"},{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}]}"#;

    #[test]
    fn a_key_of_a_set_goes_by_its_name_and_its_thumbprint() {
        let mut ring = Keyring::default();
        ring.add_jwks(RFC_KEY.as_bytes()).expect("valid");
        assert_eq!(ring.keys.len(), 1, "the shared secret is left out");
        assert_eq!(ring.keys[0].only, Some(Algorithm::Rs256));
        for name in ["2011-04-29", "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"] {
            assert_eq!(ring.named(name).count(), 1, "{name}");
        }
        assert_eq!(ring.named("other").count(), 0);
    }

    #[test]
    fn files_without_a_usable_key_are_refused_and_why() {
        for (pem, problem) in [
            ("", "no PEM certificate or public key"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "a private key"),
            ("-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n", "malformed"),
            (
                "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
                "certificate that cannot be read",
            ),
        ] {
            let refused = Keyring::default().add_pem(pem.as_bytes()).expect_err(pem);
            assert!(refused.contains(problem), "{refused}");
        }
        for (json, problem) in [
            ("", "not a JSON Web Key Set"),
            (r#"{"keys":[]}"#, "no key"),
            (r#"{"keys":[{"kty":"oct","k":"AA"}]}"#, "no key"),
            (r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#, "2048"),
            (r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#, "not on its curve"),
            (r#"{"keys":[{"kty":"OKP","crv":"Ed25519"}]}"#, "without a valid `x`"),
        ] {
            let refused = Keyring::default().add_jwks(json.as_bytes()).expect_err(json);
            assert!(refused.contains(problem), "{refused}");
        }
    }

    #[test]
    fn no_name_of_an_algorithm_without_a_public_key_is_known() {
        for name in ["none", "None", "", "HS256", "HS384", "HS512", "rs256", "ES512"] {
            assert_eq!(Algorithm::parse(name), None, "{name}");
        }
    }
}
