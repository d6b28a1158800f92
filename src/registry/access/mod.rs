//! Who may do what: anonymous clients, users of an htpasswd file, bearers of tokens.
//!
//! ```text
//! Access::permit   no credentials → what anybody may do; else who it is, then what he may do
//!  ├ credentials   what came with the request
//!  ├ logins        name and password: cached, hashed on store threads (htpasswd), slow for guessers (throttle)
//!  ├ token         JSON Web Tokens of a token service (keys, der)
//!  ├ gate          an upstream that decides on its content itself, by the client's own login
//!  ├ rules         patterns of repositories, rights
//!  └ challenge     how a client is asked to log in
//! ```
//!
//! What anybody may do, everybody may, whoever he says he is; but credentials that are wrong are refused even where none
//! are needed, as a client would otherwise report a login that is none. Without htpasswd file and token service nobody
//! can log in, and credentials are ignored.
//!
//! # What `GET /v2/` answers
//!
//! dockerd, skopeo and podman learn from this request alone how to log in: they send credentials from the start, as the
//! answer said, or never. containerd learns from each 401. Therefore, once there is something to log in to, a ping
//! without credentials is answered 401 unless anybody may do everything: otherwise a push would be refused for want of
//! credentials that the client has. (A 200 with a challenge, which zot sends, is heeded by skopeo and not by dockerd.)
//!
//! Then it must still be possible to pull without credentials. A client without any, challenged by `Basic`, gives up
//! (dockerd) or sends an empty login (skopeo; taken for none). Challenged by `Bearer`, every client asks the token
//! service for a token as nobody, and goes on with that. So where anybody may do something and users come from an
//! htpasswd file, the challenge is `Bearer` and names `TOKEN_PATH` here, which gives nobody a token that stands for
//! nobody, and a user one that stands for his login (`Access::token`). Such tokens are not signed and not kept: they
//! *are* the login, so they hold in every process that has the file, for as long as the password does, and not longer.
//! `Basic` is accepted everywhere all the same. Where nothing is open to anybody, the challenge is `Basic`, as in
//! distribution. With a token service of the operator, it is always that one's; whether a client without credentials
//! gets that far is the service's choice.
//!
//! # What survives, what runs at once
//!
//! Nothing is kept on disk. One [`Access`] per registry is shared by all workers; a reload of the configuration makes a
//! new one.

mod challenge;
mod credentials;
mod der;
mod gate;
mod htpasswd;
mod keys;
mod logins;
mod rules;
mod throttle;
mod token;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Response, request};
use serde_json::json;

use self::challenge::Complaint;
pub(super) use self::challenge::TOKEN_PATH;
use self::credentials::{ANONYMOUS_TOKEN, Login, Presented};
pub use self::gate::Gate;
pub(super) use self::gate::Wanted;
use self::keys::Keyring;
use self::logins::{Logins, Verdict};
pub(super) use self::logins::{Trace, Tracer};
pub use self::rules::{Grant, Pattern, Rights, Rule};
use self::throttle::{PAUSE, Throttle};
use self::token::Tokens;
use super::respond::ApiError;
use crate::body::Body;
use crate::oci::RepositoryName;

/// How long a client is told that a token of ours holds, in seconds: as long as the password, but clients like a number.
const TOKEN_SECONDS: u32 = 3600;

/// What a request is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read content or tags of a repository.
    Pull,
    /// Upload to it, or put a manifest.
    Push,
    /// Delete from it.
    Delete,
    /// List all repositories.
    Catalog,
    /// `GET /v2/`: find out how to log in, and whether a login is right.
    Ping,
}

/// What a request needs permission for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    /// Where, by the name that [`Registry::known_as`](super::Registry::known_as) gives it.
    pub(super) repository: Option<&'a RepositoryName>,
    pub(super) action: Action,
}

/// Who may do what in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessOptions {
    /// What the registry is called when a client is asked for a password.
    pub realm: String,
    /// What anybody may do.
    pub anonymous: Grant,
    /// The users with their passwords, as `htpasswd -B` writes them.
    pub htpasswd: Option<PathBuf>,
    /// What users may do besides; without any, every user may do everything.
    pub rules: Vec<Rule>,
    /// The token service.
    pub token: Option<TokenOptions>,
    /// Logins are those of an upstream that decides on its content itself: any is taken, and means nothing here.
    pub passes_logins: bool,
}

/// The tokens that are accepted, as distribution's `auth: token` has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOptions {
    /// The URL where clients get one.
    pub realm: String,
    /// Who it must be for (`aud`).
    pub service: String,
    /// Who it must be from (`iss`).
    pub issuer: String,
    /// PEM files of certificates and public keys.
    pub keys: Vec<PathBuf>,
    /// A JSON Web Key Set.
    pub jwks: Option<PathBuf>,
}

/// A file that access depends on cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct AccessError {
    path: PathBuf,
    problem: String,
}

impl AccessError {
    fn new(path: &Path, problem: String) -> Self {
        Self { path: path.to_owned(), problem }
    }

    /// What is wrong with it: a verb and what follows.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AccessOptions {
    /// Anybody may do everything.
    pub fn open() -> Self {
        Self {
            realm: "spliceway".to_owned(),
            anonymous: Grant::everywhere(Rights::ALL),
            htpasswd: None,
            rules: Vec::new(),
            token: None,
            passes_logins: false,
        }
    }

    /// Whether there is something to log in to.
    pub fn authenticates(&self) -> bool {
        self.htpasswd.is_some() || self.token.is_some()
    }
}

/// Whether a file of users can be used. Blocks.
pub fn check_htpasswd(path: &Path) -> Result<(), AccessError> {
    htpasswd::Htpasswd::read(path).map(drop)
}

/// Whether files of keys can be used. Blocks.
pub fn check_keys(pem: &[PathBuf], jwks: Option<&Path>) -> Result<(), AccessError> {
    Keyring::read(pem, jwks).map(drop)
}

/// Decides on requests.
pub struct Access {
    realm: String,
    anonymous: Grant,
    logins: Option<Logins>,
    tokens: Option<Tokens>,
    rules: Vec<Rule>,
    passes_logins: bool,
    throttle: Throttle,
}

impl Access {
    /// Reads the files that the options name. Blocks.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn new(options: AccessOptions) -> Result<Self, AccessError> {
        Ok(Self {
            logins: options.htpasswd.as_deref().map(Logins::new).transpose()?,
            tokens: options.token.as_ref().map(Tokens::new).transpose()?,
            realm: options.realm,
            anonymous: options.anonymous,
            rules: options.rules,
            passes_logins: options.passes_logins,
            throttle: Throttle::default(),
        })
    }

    /// Whether all of `wishes` may be done. Allocates nothing and does not yield if anybody may and nobody says who he
    /// is.
    ///
    /// Must be called inside a `LocalSet`. Cancel safe.
    ///
    /// # Errors
    /// 401 with a challenge: there are no credentials, or they are wrong. 403: the user may not, or nobody can log in.
    /// 429: too many logins of the peer were wrong or are being verified.
    pub(super) async fn permit(
        &self,
        headers: &HeaderMap,
        peer: SocketAddr,
        wishes: &[Wish<'_>],
    ) -> Result<(), ApiError> {
        if self.authenticates() && headers.contains_key(AUTHORIZATION) {
            // In a box, because it is large and most requests do without.
            Box::pin(self.permit_bearer_of(Presented::read(headers), headers, peer, wishes)).await
        } else {
            self.permit_anybody(headers, wishes)
        }
    }

    async fn permit_bearer_of(
        &self,
        presented: Presented,
        headers: &HeaderMap,
        peer: SocketAddr,
        wishes: &[Wish<'_>],
    ) -> Result<(), ApiError> {
        match (presented, &self.logins, &self.tokens) {
            (Presented::Nobody, ..) => self.permit_anybody(headers, wishes),
            (Presented::Login(_), None, _) if self.passes_logins => self.permit_anybody(headers, wishes),
            (Presented::Login(login), Some(logins), _) => {
                if !self.is_right(logins, &login, peer).await? {
                    return Err(self.unauthorized(headers, wishes, Complaint::InvalidToken));
                }
                match wishes.iter().find(|wish| !self.user_may(&login.user, wish)) {
                    None => Ok(()),
                    Some(refused) => Err(denied(&login.user, refused)),
                }
            }
            (Presented::Token(token), _, Some(tokens)) => match tokens.verify(&token, SystemTime::now()) {
                Ok(granted) => {
                    if wishes.iter().all(|wish| self.anonymous.allows(wish) || granted.allows(wish)) {
                        return Ok(());
                    }
                    Err(self.unauthorized(headers, wishes, Complaint::InsufficientScope))
                }
                Err(fault) => {
                    if !fault.is_of_time() {
                        tracing::warn!(client = %peer, fault = fault.as_str(), "a token is not accepted");
                        self.pause(peer).await?;
                    }
                    Err(self.unauthorized(headers, wishes, Complaint::InvalidToken))
                }
            },
            _ => Err(self.unauthorized(headers, wishes, Complaint::InvalidToken)),
        }
    }

    /// The answer to a request for one of our own tokens, which stands for the login that comes with it, or for nobody;
    /// `None` if none are given out here.
    ///
    /// # Errors
    /// The login is wrong (401, 429), or the method is not GET.
    pub(super) async fn token(
        &self,
        head: &request::Parts,
        peer: SocketAddr,
    ) -> Option<Result<Response<Body>, ApiError>> {
        if self.tokens.is_some() || self.logins.is_none() && !self.passes_logins {
            return None;
        }
        // containerd tries a POST first, and goes on with GET after this answer.
        if head.method != Method::GET {
            return Some(Err(ApiError::method_not_allowed(&head.method, "GET")));
        }
        let token = match Presented::read(&head.headers) {
            Presented::Nobody => ANONYMOUS_TOKEN.to_owned(),
            Presented::Login(login) => {
                let right = match &self.logins {
                    Some(logins) => self.is_right(logins, &login, peer).await,
                    None => Ok(true),
                };
                match right {
                    Ok(true) => login.token(),
                    Ok(false) => return Some(Err(self.unauthorized_to_token())),
                    Err(error) => return Some(Err(error)),
                }
            }
            Presented::Token(_) | Presented::Unreadable => return Some(Err(self.unauthorized_to_token())),
        };
        let body = json!({ "token": token, "access_token": token, "expires_in": TOKEN_SECONDS }).to_string();
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        *response.body_mut() = Body::bytes(body.into_bytes());
        Some(Ok(response))
    }

    /// Whether there is something to log in to.
    pub(super) fn authenticates(&self) -> bool {
        self.logins.is_some() || self.tokens.is_some() || self.passes_logins
    }

    fn permit_anybody(&self, headers: &HeaderMap, wishes: &[Wish<'_>]) -> Result<(), ApiError> {
        let may = |wish: &Wish<'_>| match wish.action {
            // See the module's doc.
            Action::Ping => {
                let has_token = headers.contains_key(AUTHORIZATION);
                let is_open = self.anonymous.is_everything() && !self.passes_logins;
                !self.authenticates() || is_open || has_token && self.is_open()
            }
            // It names what an upstream may not name to everybody.
            Action::Catalog if self.passes_logins => false,
            _ => self.anonymous.allows(wish),
        };
        let Some(refused) = wishes.iter().find(|wish| !may(wish)) else { return Ok(()) };
        let has_users = self.logins.is_some() || self.tokens.is_some();
        if has_users || refused.action == Action::Ping {
            return Err(self.unauthorized(headers, wishes, Complaint::of_nobody(headers)));
        }
        Err(no_users(refused))
    }

    /// Whether anybody may do something.
    fn is_open(&self) -> bool {
        self.anonymous.rights != Rights::NONE
    }

    fn user_may(&self, user: &str, wish: &Wish<'_>) -> bool {
        wish.action == Action::Ping
            || self.rules.is_empty()
            || self.anonymous.allows(wish)
            || self.rules.iter().any(|rule| rule.allows(user, wish))
    }

    /// Whether the login is right; says it in the log, after a pause, if not.
    async fn is_right(&self, logins: &Logins, login: &Login, peer: SocketAddr) -> Result<bool, ApiError> {
        match logins.verify(login, &self.throttle, peer).await {
            Verdict::Right => Ok(true),
            Verdict::Busy => Err(too_many()),
            Verdict::Wrong => {
                tracing::warn!(client = %peer, user = login.shown(), "wrong user name or password");
                self.pause(peer).await?;
                Ok(false)
            }
        }
    }

    /// Makes a peer wait whose credentials were wrong.
    async fn pause(&self, peer: SocketAddr) -> Result<(), ApiError> {
        let _place = self.throttle.enter(peer).ok_or_else(too_many)?;
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// 401, and how to log in.
    fn unauthorized(&self, headers: &HeaderMap, wishes: &[Wish<'_>], complaint: Complaint) -> ApiError {
        let challenge = match &self.tokens {
            Some(tokens) => challenge::bearer(&tokens.realm, &tokens.service, wishes, complaint),
            None if self.is_open() => challenge::own_bearer(headers, wishes, complaint),
            None => None,
        };
        ApiError::unauthorized(challenge.or_else(|| challenge::basic(&self.realm)).into_iter().collect())
    }

    /// 401 of the place where tokens are given out, which takes a name and a password.
    fn unauthorized_to_token(&self) -> ApiError {
        ApiError::unauthorized(challenge::basic(&self.realm).into_iter().collect())
    }
}

fn too_many() -> ApiError {
    ApiError::too_many_logins(PAUSE)
}

fn no_users(wish: &Wish<'_>) -> ApiError {
    ApiError::denied(&format!("{} needs a login, and this registry has no users", words(wish)))
}

fn denied(user: &str, wish: &Wish<'_>) -> ApiError {
    ApiError::denied(&format!("{} is not allowed to user {user:?}", words(wish)))
}

/// What is wished, for the client.
fn words(wish: &Wish<'_>) -> String {
    let action = match wish.action {
        Action::Pull => "pulling",
        Action::Push => "pushing",
        Action::Delete => "deleting",
        Action::Catalog => "listing the repositories",
        Action::Ping => "access",
    };
    match wish.repository {
        Some(name) => format!("{action} in repository {name}"),
        None => action.to_owned(),
    }
}

#[cfg(test)]
mod tests;
