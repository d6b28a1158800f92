//! What a client says about who it is: the `Authorization` field, and the tokens that we give out ourselves. Pure.

use std::fmt;

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD};
use http::header::{AUTHORIZATION, HeaderMap};

/// The longest field that is read, in bytes.
const CREDENTIALS_BYTES_MAX: usize = 16 << 10;
/// What a token of ours begins with that stands for a user. No JWT does: theirs are `eyJ…`.
const LOGIN_TOKEN: &str = "login-";
/// The token of ours that stands for nobody.
pub(super) const ANONYMOUS_TOKEN: &str = "anonymous";

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Vec<u8>,
}

/// What came with a request.
#[cfg_attr(test, derive(Debug, PartialEq, Eq))] // outside of tests nobody shows a token
pub(super) enum Presented {
    /// Nothing, or what stands for it.
    Nobody,
    Login(Login),
    /// A token of somebody else.
    Token(String),
    /// What cannot be understood.
    Unreadable,
}

impl Presented {
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let mut fields = headers.get_all(AUTHORIZATION).iter();
        match (fields.next(), fields.next()) {
            (None, _) => Self::Nobody,
            (Some(field), None) if field.len() <= CREDENTIALS_BYTES_MAX => {
                field.to_str().ok().and_then(Self::parse).unwrap_or(Self::Unreadable)
            }
            _ => Self::Unreadable,
        }
    }

    fn parse(field: &str) -> Option<Self> {
        let (scheme, rest) = field.trim().split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            let pair =
                BASE64.decode(rest.as_bytes()).or_else(|_| BASE64_NOPAD.decode(rest.as_bytes())).ok()?;
            // skopeo and podman say this when they have no login and were asked for Basic.
            return if pair == b":" { Some(Self::Nobody) } else { Login::parse(&pair).map(Self::Login) };
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        if rest == ANONYMOUS_TOKEN {
            return Some(Self::Nobody);
        }
        match rest.strip_prefix(LOGIN_TOKEN) {
            Some(login) => Login::parse(&BASE64URL_NOPAD.decode(login.as_bytes()).ok()?).map(Self::Login),
            None => Some(Self::Token(rest.to_owned())),
        }
    }
}

impl Login {
    /// RFC 7617 section 2: what follows the first colon is the password.
    fn parse(pair: &[u8]) -> Option<Self> {
        let colon = pair.iter().position(|&byte| byte == b':')?;
        let user = std::str::from_utf8(&pair[..colon]).ok()?.to_owned();
        Some(Self { user, password: pair[colon + 1..].to_vec() })
    }

    /// The user's name, no more of it than a person reads.
    pub(super) fn shown(&self) -> String {
        self.user.chars().take(100).collect()
    }

    /// The token that says the same as this login. It is as secret as the password, and as good.
    pub(super) fn token(&self) -> String {
        let pair = [self.user.as_bytes(), b":", &self.password].concat();
        format!("{LOGIN_TOKEN}{}", BASE64URL_NOPAD.encode(&pair))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({:?})", self.user)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(fields: &[&str]) -> Presented {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(AUTHORIZATION, HeaderValue::from_str(field).expect("a value"));
        }
        Presented::read(&headers)
    }

    fn login(user: &str, password: &str) -> Login {
        Login { user: user.into(), password: password.into() }
    }

    #[test]
    fn every_form_of_credentials_is_read() {
        let alice = || Presented::Login(login("alice", "open:sesame"));
        assert_eq!(read(&[]), Presented::Nobody);
        assert_eq!(read(&["Basic YWxpY2U6b3BlbjpzZXNhbWU="]), alice());
        assert_eq!(read(&["bAsIc  YWxpY2U6b3BlbjpzZXNhbWU"]), alice());
        assert_eq!(read(&["Basic Og=="]), Presented::Nobody);
        assert_eq!(read(&["Bearer anonymous"]), Presented::Nobody);
        assert_eq!(read(&[&format!("Bearer {}", login("alice", "open:sesame").token())]), alice());
        assert_eq!(read(&["Bearer a.b.c"]), Presented::Token("a.b.c".into()));
        assert_eq!(read(&["Basic YTo="]), Presented::Login(login("a", "")));
    }

    #[test]
    fn what_cannot_be_understood_is_not_taken_for_nobody() {
        for field in
            ["Basic", "Basic !", "Basic YQ==", "Digest x=y", "", "Bearer", "Bearer login-!", "Basic /zpw"]
        {
            assert_eq!(read(&[field]), Presented::Unreadable, "{field:?}");
        }
        assert_eq!(read(&["Bearer anonymous", "Bearer anonymous"]), Presented::Unreadable);
        assert_eq!(read(&[&format!("Bearer {}", "a".repeat(CREDENTIALS_BYTES_MAX))]), Presented::Unreadable);
    }

    #[test]
    fn a_password_is_not_shown() {
        assert!(!format!("{:?}", Presented::Login(login("alice", "hunter2"))).contains("hunter2"));
    }
}
