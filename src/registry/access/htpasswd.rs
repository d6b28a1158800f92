//! A file of users and passwords as `htpasswd -B` writes it: `name:$2y$05$…`, a line each. Pure but for reading the file.
//!
//! Only bcrypt: the other schemes of Apache (`$apr1$`, `{SHA}`, crypt, plain text) are guessed quickly from a stolen file.
//! A login of an unknown user costs what one of a known user costs: it is verified against somebody else's hash.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::AccessError;

/// The longest file, in bytes: some 50,000 users.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The highest cost (the logarithm of the rounds) that is accepted: verifying takes about 4 s. `htpasswd -B` writes 5.
const COST_MAX: u32 = 16;
/// bcrypt reads no more of a password, its closing NUL included.
const PASSWORD_BYTES_MAX: usize = 72;

/// The users and the hashes of their passwords.
pub(super) struct Htpasswd {
    users: HashMap<String, Hash>,
    /// The hashes again, for users who do not exist.
    decoys: Vec<Hash>,
    /// Chooses a decoy by name, so that one user who does not exist costs the same each time.
    choice: RandomState,
    /// Of the file's text.
    digest: [u8; 32],
}

#[derive(Clone, Copy)]
struct Hash {
    cost: u32,
    salt: [u8; 16],
    digest: [u8; 23],
}

impl Htpasswd {
    /// Reads a file. Blocks.
    pub(super) fn read(path: &Path) -> Result<Self, AccessError> {
        let bad = |problem: String| AccessError::new(path, problem);
        let mut text = String::new();
        let file = File::open(path).map_err(|error| bad(format!("cannot be read: {error}")))?;
        file.take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|error| bad(format!("cannot be read: {error}")))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(bad(format!("is longer than {FILE_BYTES_MAX} bytes")));
        }
        Self::parse(&text).map_err(bad)
    }

    /// The error says what is wrong, with the line, and repeats nothing of a hash.
    fn parse(text: &str) -> Result<Self, String> {
        let mut users = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((user, hash)) = line.split_once(':') else {
                return Err(format!("has no user and hash in line {number}"));
            };
            let hash = Hash::parse(hash).map_err(|problem| format!("{problem} in line {number}"))?;
            if user.is_empty() {
                return Err(format!("has no user name in line {number}"));
            }
            if users.insert(user.to_owned(), hash).is_some() {
                return Err(format!("names the user of line {number} a second time there"));
            }
        }
        if users.is_empty() {
            return Err("names no user".to_owned());
        }
        let decoys = users.values().copied().collect();
        Ok(Self { users, decoys, choice: RandomState::new(), digest: Sha256::digest(text).into() })
    }

    /// How many there are.
    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    /// Whether it was read from the same text.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Whether this is the user's password. Blocks for as long as hashing takes, for an unknown user too.
    pub(super) fn verify(&self, user: &str, password: &[u8]) -> bool {
        let known = self.users.get(user);
        let decoy = || {
            let chosen = self.choice.hash_one(user) % self.decoys.len() as u64;
            usize::try_from(chosen).ok().and_then(|chosen| self.decoys.get(chosen))
        };
        let Some(hash) = known.or_else(decoy) else { return false };
        hash.is_of(password) & known.is_some()
    }
}

impl Hash {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const OTHER: &str = "has something else than a bcrypt hash";
        let rest =
            ["$2y$", "$2b$", "$2a$"].iter().find_map(|version| text.strip_prefix(version)).ok_or(OTHER)?;
        let (cost, rest) = rest.split_once('$').ok_or(OTHER)?;
        let cost = cost.parse().ok().filter(|_| cost.len() == 2).ok_or(OTHER)?;
        if !(4..=COST_MAX).contains(&cost) {
            return Err("has a bcrypt hash with a cost that is not from 4 to 16");
        }
        let (salt, hash) = rest.split_at_checked(22).filter(|(_, hash)| hash.len() == 31).ok_or(OTHER)?;
        let salt = decode(salt.as_bytes()).ok_or(OTHER)?;
        Ok(Self { cost, salt, digest: decode(hash.as_bytes()).ok_or(OTHER)? })
    }

    fn is_of(&self, password: &[u8]) -> bool {
        let mut key = [0; PASSWORD_BYTES_MAX];
        let len = password.len().min(PASSWORD_BYTES_MAX);
        key[..len].copy_from_slice(&password[..len]);
        let hash = bcrypt::bcrypt(self.cost, self.salt, &key[..(len + 1).min(PASSWORD_BYTES_MAX)]);
        hash[..self.digest.len()].ct_eq(&self.digest).into()
    }
}

/// bcrypt's base64: an alphabet of its own, six bits a character, the highest first, without padding.
fn decode<const BYTES: usize>(text: &[u8]) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let (mut bits, mut held, mut filled) = (0_u32, 0, 0);
    for &character in text {
        let value = match character {
            b'.' => 0,
            b'/' => 1,
            b'A'..=b'Z' => character - b'A' + 2,
            b'a'..=b'z' => character - b'a' + 28,
            b'0'..=b'9' => character - b'0' + 54,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 && filled < BYTES {
            held -= 8;
            bytes[filled] = (bits >> held & 0xff) as u8;
            filled += 1;
        }
        bits &= (1 << held) - 1;
    }
    (filled == BYTES).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From jBCrypt's test vectors, with the version that Apache writes.
    const VECTORS: [(&str, &str); 4] = [
        ("", "$2y$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s."),
        ("a", "$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe"),
        ("abcdefghijklmnopqrstuvwxyz", "$2b$06$.rCVZVOThsIa97pEDOxvGuRRgzG64bvtJ0938xuqzv18d3ZpQhstC"),
        (
            "~!@#$%^&*()      ~!@#$%^&*()PNBFRD",
            "$2y$06$fPIsBO8qRqkjj273rfaOI.HtSV9jLDpTbZn782DC6/t7qT67P6FfO",
        ),
    ];

    fn file() -> Htpasswd {
        let lines = VECTORS.iter().enumerate().map(|(at, (_, hash))| format!("user{at}:{hash}\r\n"));
        Htpasswd::parse(&format!("# people\n\n{}", lines.collect::<String>())).expect("valid")
    }

    #[test]
    fn a_password_is_verified_against_its_users_hash_only() {
        let file = file();
        assert_eq!(file.users(), VECTORS.len());
        for (at, (password, _)) in VECTORS.iter().enumerate() {
            assert!(file.verify(&format!("user{at}"), password.as_bytes()), "{password:?}");
            assert!(!file.verify(&format!("user{}", (at + 1) % VECTORS.len()), password.as_bytes()));
            assert!(!file.verify("nobody", password.as_bytes()), "a decoy's password lets nobody in");
            assert!(!file.verify(&format!("user{at}"), format!("{password}x").as_bytes()));
        }
    }

    #[test]
    fn what_is_no_bcrypt_is_refused_with_its_line() {
        let good = format!("a:{}\n", VECTORS[1].1);
        let other = VECTORS[1].1;
        for (line, problem) in [
            ("b:$apr1$k1d9$0SDcJpO.SkwyWw3GyYs1x1", "line 2"),
            ("b:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "something else than a bcrypt hash"),
            ("b:plain", "line 2"),
            ("b", "no user and hash in line 2"),
            (&format!("a:{other}"), "second time"),
            (&format!(":{other}"), "no user name"),
            (&format!("b:{}", other.replace("$06$", "$31$")), "from 4 to 16"),
            (&format!("b:{}", other.replace("$06$", "$6$")), "line 2"),
            (&format!("b:{}", &other[..59]), "line 2"),
            (&format!("b:{}", other.replace("$2a$", "$2x$")), "line 2"),
            (&format!("b:{}!", &other[..59]), "line 2"),
        ] {
            let refused = Htpasswd::parse(&format!("{good}{line}\n")).err().expect(line);
            assert!(refused.contains(problem), "{line}: {refused}");
            assert!(!refused.contains("SDcJ") && !refused.contains("plain"), "{refused}");
        }
        assert!(Htpasswd::parse("").is_err() && Htpasswd::parse("# none\n").is_err());
    }
}
