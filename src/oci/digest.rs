//! Content digests: `algorithm:hex` (OCI image specification, "Descriptors", section "Digests").

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::hasher::Hasher;
use super::quoted;

/// A hash algorithm that names content. The OCI image specification registers more; a registry must know these two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256 (FIPS 180-4), what practically every image uses.
    Sha256,
    /// SHA-512 (FIPS 180-4).
    Sha512,
}

impl Algorithm {
    /// Every algorithm that is known here.
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// The name as it stands before the colon, and as the name of a directory on disk.
    pub const fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Length of the encoded hash, in hexadecimal digits.
    pub const fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }

    /// The algorithm of that exact name, in lower case.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The digest of some content, parsed: `sha256:` and 64, or `sha512:` and 128 lower-case hexadecimal digits.
///
/// There is one spelling for each value, so equal digests are equal as text and the reverse; upper-case digits are
/// refused because the specification's grammar for both algorithms is `[a-f0-9]`. The order is by algorithm, then by
/// hash, which is also the order of the texts. `Debug` shows the text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Hash);

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Hash {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Digest {
    /// The digest of `content`, which is hashed here and now: for manifests and other small content.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The digest whose part after the colon is `hex`; `None` if no digest of this algorithm has it.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Option<Digest> {
        match algorithm {
            Algorithm::Sha256 => decode(hex).map(Digest::from_sha256),
            Algorithm::Sha512 => decode(hex).map(Digest::from_sha512),
        }
    }

    /// Which algorithm made it.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Hash::Sha256(_) => Algorithm::Sha256,
            Hash::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The part after the colon.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(self.bytes())
    }

    /// The hash itself: 32 or 64 bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Hash::Sha256(bytes) => bytes,
            Hash::Sha512(bytes) => bytes,
        }
    }

    /// The first byte of the hash: which of 256 lock files covers this digest.
    pub fn shard(&self) -> u8 {
        match &self.0 {
            Hash::Sha256([first, ..]) | Hash::Sha512([first, ..]) => *first,
        }
    }

    pub(super) const fn from_sha256(bytes: [u8; 32]) -> Digest {
        Digest(Hash::Sha256(bytes))
    }

    pub(super) const fn from_sha512(bytes: [u8; 64]) -> Digest {
        Digest(Hash::Sha512(bytes))
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(input: &str) -> Result<Digest, InvalidDigest> {
        let fail = |rule| Err(InvalidDigest { input: quoted(input), rule });
        let Some((name, hex)) = input.split_once(':') else {
            return fail("it must be algorithm:hex");
        };
        let Some(algorithm) = Algorithm::from_name(name) else {
            return fail("the algorithm must be sha256 or sha512");
        };
        Digest::from_hex(algorithm, hex).map_or_else(
            || {
                fail(match algorithm {
                    Algorithm::Sha256 => "sha256: must be followed by 64 lower-case hexadecimal digits",
                    Algorithm::Sha512 => "sha512: must be followed by 128 lower-case hexadecimal digits",
                })
            },
            Ok,
        )
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm().as_str())?;
        f.write_str(":")?;
        HEXLOWER.encode_display(self.bytes()).fmt(f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no digest, or one of an algorithm that is not known here. The sender's fault: `DIGEST_INVALID` when a
/// client sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("digest {input} is invalid: {rule}")]
pub struct InvalidDigest {
    input: String,
    rule: &'static str,
}

/// Exactly `N` bytes from exactly `2 N` lower-case digits.
fn decode<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // decode_mut wants the lengths to fit before it is called.
    (hex.len() == 2 * N).then_some(())?;
    HEXLOWER.decode_mut(hex.as_bytes(), &mut bytes).ok()?;
    Some(bytes)
}

/// What a fuzzer calls.
///
/// # Panics
/// If a digest does not survive printing and parsing, or if anything but its one spelling was accepted.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest.hex().len(), digest.algorithm().hex_len());
        assert_eq!(digest.bytes()[0], digest.shard());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY_256: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn of_empty_content() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(digest.to_string(), EMPTY_256);
        assert_eq!(format!("{digest:?}"), EMPTY_256);
        assert_eq!(digest.hex(), EMPTY_256[7..]);
        assert_eq!(digest.shard(), 0xe3);
        let long = Digest::of(Algorithm::Sha512, b"");
        assert!(long.to_string().starts_with("sha512:cf83e1357eefb8bd"));
        assert_eq!(long.bytes().len(), 64);
        assert!(digest < long);
    }

    #[test]
    fn refuses_what_is_no_digest() {
        let hex = &EMPTY_256[7..];
        for (input, rule) in [
            (String::new(), "algorithm:hex"),
            (hex.to_owned(), "algorithm:hex"),
            (format!(":{hex}"), "sha256 or sha512"),
            (format!("SHA256:{hex}"), "sha256 or sha512"),
            (format!("md5:{hex}"), "sha256 or sha512"),
            (format!("sha256 :{hex}"), "sha256 or sha512"),
            (format!("sha256:{}", hex.to_uppercase()), "64 lower-case"),
            (format!("sha256:{}", &hex[1..]), "64 lower-case"),
            (format!("sha256:{hex}0"), "64 lower-case"),
            (format!("sha256:{}/", &hex[1..]), "64 lower-case"),
            (format!("sha256:{}é", &hex[2..]), "64 lower-case"),
            (format!("sha256::{}", &hex[1..]), "64 lower-case"),
            (format!("sha512:{hex}"), "128 lower-case"),
            (format!("{EMPTY_256}\n"), "64 lower-case"),
        ] {
            let error = input.parse::<Digest>().expect_err(&input).to_string();
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn the_error_quotes_a_long_input_shortened() {
        let error = format!("sha256:{}", "x\n".repeat(5000)).parse::<Digest>().unwrap_err().to_string();
        assert!(error.len() < 400 && error.contains("(10007 bytes)") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn as_json() {
        let digest: Digest = serde_json::from_str(&format!("\"{EMPTY_256}\"")).unwrap();
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{EMPTY_256}\""));
        assert!(serde_json::from_str::<Digest>("\"sha256:\"").is_err());
        assert!(serde_json::from_str::<Digest>("7").is_err());
    }

    proptest! {
        #[test]
        fn parse_agrees_with_the_grammar(text in "(sha(256|512)|sha1|)[:;]?[0-9a-gA-F]{0,3}([0-9a-f]{62,64}|[0-9a-f]{126,128})[0-9a-g]?") {
            let oracle = [("sha256:", 64), ("sha512:", 128)].iter().any(|(prefix, len)| {
                text.strip_prefix(prefix)
                    .is_some_and(|hex| hex.len() == *len && hex.chars().all(|c| "0123456789abcdef".contains(c)))
            });
            prop_assert_eq!(text.parse::<Digest>().is_ok(), oracle);
            fuzz_entry(text.as_bytes());
        }

        #[test]
        fn round_trip_and_order(a in proptest::array::uniform32(any::<u8>()), b in proptest::array::uniform32(any::<u8>())) {
            let (a, b) = (Digest::from_sha256(a), Digest::from_sha256(b));
            prop_assert_eq!(a.to_string().parse::<Digest>(), Ok(a));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn survives_anything(data: Vec<u8>) {
            fuzz_entry(&data);
        }
    }
}
