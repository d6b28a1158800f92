//! Tokens of a token service, as distribution's `auth: token` takes them: JSON Web Tokens (RFC 7519) signed by a key that
//! is configured, whose claim `access` says what may be done. Pure.
//!
//! The key is found by a chain of certificates in the token (`x5c`) that leads to a configured one; else by `kid`, which
//! is a name of a key set, an RFC 7638 thumbprint (distribution 3) or a libtrust fingerprint (distribution 2); else every
//! key is tried. A configured certificate is trusted as a key, whatever its dates say; those of a chain must hold.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use serde::Deserialize;
use serde::de::IgnoredAny;
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, anchor_from_trusted_cert, ring as algorithms,
};

use super::keys::{Algorithm, Keyring, PublicKey, TrustedKey};
use super::{AccessError, Action, TokenOptions, Wish};

/// How far the token service's clock may be off.
const LEEWAY: Duration = Duration::from_mins(1);
/// Certificates in a token.
const CHAIN_MAX: usize = 8;
/// How certificates of a chain may be signed.
const CHAIN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Verifies tokens.
pub(super) struct Tokens {
    pub(super) realm: String,
    pub(super) service: String,
    issuer: String,
    keys: Keyring,
}

/// What a valid token allows.
#[derive(Debug)]
pub(super) struct Granted {
    access: Vec<Access>,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenFault {
    Malformed,
    Algorithm,
    UnknownKey,
    Chain,
    Signature,
    Issuer,
    Audience,
    Expired,
    NotYetValid,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    #[serde(default)]
    x5c: Vec<String>,
    /// Extensions that must be understood; there are none that are.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: f64,
    nbf: Option<f64>,
    access: Option<Vec<Access>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Access {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    /// Go writes an empty list as null.
    actions: Option<Vec<String>>,
}

impl Tokens {
    /// Reads the keys. Blocks.
    pub(super) fn new(options: &TokenOptions) -> Result<Self, AccessError> {
        Ok(Self {
            realm: options.realm.clone(),
            service: options.service.clone(),
            issuer: options.issuer.clone(),
            keys: Keyring::read(&options.keys, options.jwks.as_deref())?,
        })
    }

    /// What the token allows at `now`.
    pub(super) fn verify(&self, token: &str, now: SystemTime) -> Result<Granted, TokenFault> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenFault::Malformed)?;
        let header: Header = json(header)?;
        if header.crit.is_some() {
            return Err(TokenFault::Malformed);
        }
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| TokenFault::Malformed)?;
        self.check_signature(&header, message.as_bytes(), &signature, now)?;
        let claims: Claims = json(claims)?;
        self.check_claims(&claims, now)?;
        Ok(Granted { access: claims.access.unwrap_or_default() })
    }

    fn check_signature(
        &self,
        header: &Header,
        message: &[u8],
        signature: &[u8],
        now: SystemTime,
    ) -> Result<(), TokenFault> {
        let algorithm = Algorithm::parse(&header.alg).ok_or(TokenFault::Algorithm)?;
        let verifies = |key: &TrustedKey| key.verifies(algorithm, message, signature);
        let verified = if !header.x5c.is_empty() && !self.keys.roots.is_empty() {
            self.key_of_chain(&header.x5c, now)?.verifies(algorithm, message, signature)
        } else if let Some(name) = &header.kid {
            let mut named = self.keys.named(name).peekable();
            named.peek().ok_or(TokenFault::UnknownKey)?;
            named.any(verifies)
        } else {
            self.keys.keys.iter().any(verifies)
        };
        if verified { Ok(()) } else { Err(TokenFault::Signature) }
    }

    /// The key of a chain's first certificate, if the chain leads to one that is configured.
    fn key_of_chain(&self, chain: &[String], now: SystemTime) -> Result<PublicKey, TokenFault> {
        if chain.len() > CHAIN_MAX {
            return Err(TokenFault::Chain);
        }
        let chain = chain.iter().map(|text| BASE64.decode(text.as_bytes()).map(CertificateDer::from));
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|_| TokenFault::Malformed)?;
        let (first, between) = chain.split_first().ok_or(TokenFault::Malformed)?;
        let key = |info: &[u8]| PublicKey::from_spki(info).map_err(|_| TokenFault::Chain);
        let certificate = EndEntityCert::try_from(first).map_err(|_| TokenFault::Chain)?;
        let info = certificate.subject_public_key_info();
        if self.keys.roots.contains(first) {
            return key(&info);
        }
        let anchors = self.keys.roots.iter().map(anchor_from_trusted_cert);
        let anchors = anchors.collect::<Result<Vec<_>, _>>().map_err(|_| TokenFault::Chain)?;
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = UnixTime::since_unix_epoch(since);
        certificate
            .verify_for_usage(CHAIN_ALGORITHMS, &anchors, between, time, AnyUsage, None, None)
            .map_err(|_| TokenFault::Chain)?;
        key(&info)
    }

    fn check_claims(&self, claims: &Claims, now: SystemTime) -> Result<(), TokenFault> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let leeway = LEEWAY.as_secs_f64();
        let for_us = match &claims.aud {
            Audience::One(audience) => *audience == self.service,
            Audience::Several(audiences) => audiences.contains(&self.service),
        };
        // In such a way that what is no number fails.
        let in_time = claims.exp + leeway > now;
        let begun = claims.nbf.is_none_or(|from| from - leeway <= now);
        match () {
            () if claims.iss != self.issuer => Err(TokenFault::Issuer),
            () if !for_us => Err(TokenFault::Audience),
            () if !in_time => Err(TokenFault::Expired),
            () if !begun => Err(TokenFault::NotYetValid),
            () => Ok(()),
        }
    }
}

impl Granted {
    /// Whether this may be done.
    pub(super) fn allows(&self, wish: &Wish<'_>) -> bool {
        let (kind, name, action) = match (wish.action, wish.repository) {
            (Action::Ping, _) => return true,
            (Action::Catalog, _) => ("registry", "catalog", "*"),
            (Action::Pull, Some(name)) => ("repository", name.as_str(), "pull"),
            (Action::Push, Some(name)) => ("repository", name.as_str(), "push"),
            (Action::Delete, Some(name)) => ("repository", name.as_str(), "delete"),
            (_, None) => return false,
        };
        let mut about = self.access.iter().filter(|access| access.kind == kind && access.name == name);
        about.any(|access| {
            let mut granted = access.actions.iter().flatten();
            granted.any(|granted| granted == action || granted == "*")
        })
    }
}

impl TokenFault {
    /// A stable word for the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown key",
            Self::Chain => "certificate chain",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not yet valid",
        }
    }

    /// Whether it befalls tokens that were good once: then nobody is guessing.
    pub(super) fn is_of_time(self) -> bool {
        matches!(self, Self::Expired | Self::NotYetValid)
    }
}

fn json<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, TokenFault> {
    let bytes = BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| TokenFault::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenFault::Malformed)
}

/// A certificate that signs tokens may be for anything, as in distribution: there is no usage of that name.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
