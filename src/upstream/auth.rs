//! The token dance, and which `Authorization` a request to an endpoint carries.
//!
//! A token is kept per endpoint and repository, with the challenge that it answered, until shortly before it expires; it is
//! never sent to another endpoint. The number kept is bounded. Whoever needs a token that is being fetched waits for it,
//! bounded by its own deadline: one request to the token server per endpoint and repository is under way at a time, and
//! those who waited share its failure too. A dropped call hands the fetching on to the next who waits.
//!
//! Which token server may be given the credentials is decided by [`super::realm`]; any other is asked anonymously.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use lru::LruCache;
use serde::Deserialize;
use tokio::sync;
use tokio::time::{Instant, timeout_at};
use url::Url;
use url::form_urlencoded::Serializer;

use super::Upstream;
use super::challenge::{BearerChallenge, Challenge};
use super::credentials::{CredentialStore, Login};
use super::endpoint::{Endpoint, Origin};
use super::error::{Attempt, UpstreamError};
use super::exchange::{Answer, Followed, Success, document, field, quoted};
use super::options::{Operation, RequestObservation};
use super::payload::Payload;
use super::realm::may_have_credentials;
use super::scope;
use crate::oci::RepositoryName;

/// How many tokens are kept per endpoint.
const TOKENS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// The longest token that is kept and sent, in bytes: servers refuse longer headers.
const TOKEN_LEN_MAX: usize = 16 << 10;
/// The longest answer of a token server, in bytes.
const TOKEN_ANSWER_MAX: usize = 1 << 20;
/// A token's lifetime if the answer does not tell (distribution's token specification, "Token Response Fields").
const LIFETIME_DEFAULT: Duration = Duration::from_mins(1);
/// No token is kept longer.
const LIFETIME_MAX: Duration = Duration::from_hours(24);
/// A token is renewed this long before it expires, or a tenth of its lifetime before, whichever is less; the request that
/// carries it has to arrive in time.
const RENEWAL_MARGIN_MAX: Duration = Duration::from_secs(30);

/// An `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Authorization(HeaderValue);

impl Authorization {
    pub(super) fn header(&self) -> &HeaderValue {
        &self.0
    }

    fn bearer(token: &str) -> Option<Self> {
        if token.is_empty() || token.len() > TOKEN_LEN_MAX {
            return None;
        }
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }
}

/// Knows the credentials and keeps the tokens of an upstream.
pub(super) struct Authenticator {
    credentials: CredentialStore,
    auth_hosts: Vec<String>,
    /// By the endpoints' indexes.
    endpoints: Vec<EndpointAuth>,
}

struct EndpointAuth {
    /// The endpoint asked for Basic: it is sent unasked from then on.
    wants_basic: AtomicBool,
    /// By repository; `None` is the catalog's.
    tokens: Mutex<LruCache<Option<RepositoryName>, Arc<sync::Mutex<Slot>>>>,
}

/// A repository's token at one endpoint; locked while it is fetched.
#[derive(Default)]
struct Slot {
    challenge: Option<BearerChallenge>,
    token: Option<Token>,
    failure: Option<(Instant, UpstreamError)>,
}

struct Token {
    authorization: Authorization,
    renew_at: Instant,
}

impl Slot {
    fn valid(&self) -> Option<&Authorization> {
        self.token.as_ref().filter(|token| Instant::now() < token.renew_at).map(|token| &token.authorization)
    }

    /// Whether the token was asked for all that a challenge asks.
    fn covers(&self, challenge: &BearerChallenge) -> bool {
        let scope = |challenge: &BearerChallenge| challenge.scope.clone().unwrap_or_default();
        self.challenge.as_ref().is_some_and(|known| scope::covers(&scope(known), &scope(challenge)))
    }
}

/// Who needs an authorisation, and until when.
#[derive(Clone, Copy)]
pub(super) struct Need<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) endpoint: &'a Endpoint,
    /// `None`: the catalog.
    pub(super) repository: Option<&'a RepositoryName>,
    pub(super) deadline: Instant,
}

impl Authenticator {
    /// No tokens yet, for `endpoints` endpoints.
    pub(super) fn new(credentials: CredentialStore, auth_hosts: Vec<String>, endpoints: usize) -> Self {
        let endpoints = (0..endpoints)
            .map(|_| EndpointAuth {
                wants_basic: AtomicBool::new(false),
                tokens: Mutex::new(LruCache::new(TOKENS_MAX)),
            })
            .collect();
        Self { credentials, auth_hosts, endpoints }
    }

    pub(super) fn auth_hosts(&self) -> &[String] {
        &self.auth_hosts
    }

    /// What to send unasked: what the endpoint accepted last for this repository, renewed if it is about to expire.
    pub(super) async fn known(&self, need: Need<'_>) -> Result<Option<Authorization>, UpstreamError> {
        let state = &self.endpoints[need.endpoint.index];
        if state.wants_basic.load(Ordering::Relaxed) {
            return self.basic(need).await;
        }
        let Some(slot) = state.slot(need.repository) else { return Ok(None) };
        let arrived = Instant::now();
        let mut slot = need.lock(&slot).await?;
        if let Some(authorization) = slot.valid() {
            return Ok(Some(authorization.clone()));
        }
        let Some(challenge) = slot.challenge.clone() else { return Ok(None) };
        match self.renew(need, challenge, &mut slot, arrived).await {
            Ok(authorization) => Ok(Some(authorization)),
            Err(error) if error.is_retryable() => Err(error),
            Err(_) => {
                // The registry may have another token server by now: its next 401 tells.
                slot.challenge = None;
                Ok(None)
            }
        }
    }

    /// What answers a 401, given what was sent with the request that it refused. `None`: we have nothing (else) to offer.
    pub(super) async fn answer(
        &self,
        need: Need<'_>,
        asked: Vec<Challenge>,
        refused: Option<&Authorization>,
    ) -> Result<Option<Authorization>, UpstreamError> {
        let state = &self.endpoints[need.endpoint.index];
        let wants_basic = asked.contains(&Challenge::Basic);
        let bearer = asked.into_iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        if let Some(challenge) = bearer {
            state.wants_basic.store(false, Ordering::Relaxed);
            let slot = state.slot_or_new(need.repository);
            let arrived = Instant::now();
            let mut slot = need.lock(&slot).await?;
            // Somebody else may have renewed it meanwhile, though not for what is asked of us.
            let suffices = !need.upstream.pushes || slot.covers(&challenge);
            if let Some(authorization) = slot.valid().filter(|known| suffices && Some(*known) != refused) {
                return Ok(Some(authorization.clone()));
            }
            return self.renew(need, challenge, &mut slot, arrived).await.map(Some);
        }
        if !wants_basic {
            return Ok(None);
        }
        let basic = self.basic(need).await?.filter(|basic| Some(basic) != refused);
        state.wants_basic.store(basic.is_some(), Ordering::Relaxed);
        Ok(basic)
    }

    /// Fetches a token into the slot, unless a fetch failed since we came: then its failure is ours too.
    async fn renew(
        &self,
        need: Need<'_>,
        mut challenge: BearerChallenge,
        slot: &mut Slot,
        arrived: Instant,
    ) -> Result<Authorization, UpstreamError> {
        if let Some((at, error)) = &slot.failure
            && *at >= arrived
        {
            return Err(error.clone());
        }
        if let (true, Some(repository)) = (need.upstream.pushes, need.repository) {
            let asked = challenge.scope.unwrap_or_else(|| need.scope());
            let before = slot.challenge.as_ref().and_then(|challenge| challenge.scope.as_deref());
            let name = format!("{}{repository}", need.endpoint.project);
            challenge.scope = Some(scope::for_pushing(&asked, before, &name));
        }
        slot.token = None;
        match self.fetch(need, &challenge).await {
            Ok(token) => {
                let authorization = token.authorization.clone();
                *slot = Slot { challenge: Some(challenge), token: Some(token), failure: None };
                Ok(authorization)
            }
            Err(error) => {
                slot.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Asks the token server that the challenge names.
    async fn fetch(&self, need: Need<'_>, challenge: &BearerChallenge) -> Result<Token, UpstreamError> {
        let scope = match &challenge.scope {
            Some(scope) => scope.clone(),
            None => need.scope(),
        };
        let parsed =
            Url::parse(&challenge.realm).ok().and_then(|url| Origin::of(&url).map(|origin| (url, origin)));
        let Some((realm, origin)) = parsed else {
            return Err(UpstreamError::Malformed {
                attempt: Attempt::new(&need.endpoint.label, Operation::Token, scope),
                what: format!("the challenge's realm {} is no http(s) URL", quoted(&challenge.realm)),
            });
        };
        let login = if may_have_credentials(&need.endpoint.origin, &origin, &self.auth_hosts) {
            self.login(need).await?
        } else {
            tracing::debug!(registry = %need.endpoint.label, realm = %origin, "foreign token server: asking anonymously");
            None
        };
        let began = Instant::now();
        let attempt = Attempt::new(origin.authority(), Operation::Token, scope);
        let result = ask(need, realm, challenge.service.as_deref(), login, &attempt).await;
        need.upstream.observe(&RequestObservation {
            upstream: need.upstream.name(),
            endpoint: attempt.endpoint(),
            operation: Operation::Token,
            outcome: result.as_ref().map_or_else(UpstreamError::reason, |_| "ok"),
            elapsed: began.elapsed(),
            rate_limit_remaining: None,
        });
        result
    }

    async fn basic(&self, need: Need<'_>) -> Result<Option<Authorization>, UpstreamError> {
        Ok(match self.login(need).await? {
            Some(Login::Basic { header, .. }) => Some(Authorization(header)),
            _ => None,
        })
    }

    async fn login(&self, need: Need<'_>) -> Result<Option<Login>, UpstreamError> {
        let login = timeout_at(need.deadline, self.credentials.login(need.endpoint)).await;
        login.map_err(|_| need.timeout("credentials"))
    }
}

impl Need<'_> {
    /// What to ask for if the challenge does not tell (distribution's token specification, "Resource Scopes").
    fn scope(&self) -> String {
        match self.repository {
            Some(repository) => format!("repository:{}{repository}:pull", self.endpoint.project),
            None => "registry:catalog:*".to_owned(),
        }
    }

    async fn lock<'a>(
        &self,
        slot: &'a sync::Mutex<Slot>,
    ) -> Result<sync::MutexGuard<'a, Slot>, UpstreamError> {
        timeout_at(self.deadline, slot.lock()).await.map_err(|_| self.timeout("token"))
    }

    fn timeout(&self, what: &'static str) -> UpstreamError {
        let attempt = Attempt::new(&self.endpoint.label, Operation::Token, self.scope());
        UpstreamError::Timeout { attempt, what, after: self.upstream.header_timeout }
    }
}

impl EndpointAuth {
    fn slot(&self, repository: Option<&RepositoryName>) -> Option<Arc<sync::Mutex<Slot>>> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(&repository.cloned()).cloned()
    }

    fn slot_or_new(&self, repository: Option<&RepositoryName>) -> Arc<sync::Mutex<Slot>> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tokens.get_or_insert(repository.cloned(), Arc::default))
    }
}

/// One request to a token server. Its 404 is no statement about a repository, its 403 one about the credentials.
async fn ask(
    need: Need<'_>,
    realm: Url,
    service: Option<&str>,
    login: Option<Login>,
    attempt: &Attempt,
) -> Result<Token, UpstreamError> {
    let refused =
        |text: String| UpstreamError::Unauthorized { attempt: attempt.clone(), detail: text.into() };
    let answered = match login {
        Some(Login::Refresh(refresh)) => refresh_token(need, &realm, service, &refresh, attempt).await,
        Some(Login::Basic { username, header }) => {
            plain_token(need, realm, service, Some((username, header)), attempt).await
        }
        None => plain_token(need, realm, service, None, attempt).await,
    };
    let Answer { response, .. } = answered.map_err(|error| match error {
        UpstreamError::Denied { detail, .. } | UpstreamError::NotFound { detail, .. } => {
            let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
            refused(format!("the token server gives no token{detail}"))
        }
        other => other,
    })?;
    let issued = Instant::now();
    let left = need.deadline.saturating_duration_since(issued);
    let text = document(response, TOKEN_ANSWER_MAX, left, left, attempt).await?;
    parse_token(&text, issued).map_err(|what| UpstreamError::Malformed { attempt: attempt.clone(), what })
}

/// GET, with Basic or anonymous; the realm's own query is kept (distribution's token specification, "Requesting a Token").
async fn plain_token(
    need: Need<'_>,
    mut realm: Url,
    service: Option<&str>,
    login: Option<(String, HeaderValue)>,
    attempt: &Attempt,
) -> Result<Answer, UpstreamError> {
    let mut fields = HeaderMap::new();
    fields.insert(header::ACCEPT, field("application/json"));
    {
        let mut query = realm.query_pairs_mut();
        if let Some((username, basic)) = login {
            query.append_pair("account", &username);
            fields.insert(header::AUTHORIZATION, basic);
        }
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        // Several scopes come separated by spaces, and go as a parameter each.
        for scope in attempt.subject().split_ascii_whitespace() {
            query.append_pair("scope", scope);
        }
    }
    let upstream = need.upstream;
    match upstream.follow(&Method::GET, &realm, fields, &Bytes::new(), attempt, need.deadline).await {
        Ok(followed) => upstream.judged(followed, Success::Content, attempt).await,
        Err(lost) => Err(lost.error),
    }
}

/// POST of a refresh token (distribution's OAuth 2 token specification). Not redirected: the secret is in the body.
async fn refresh_token(
    need: Need<'_>,
    realm: &Url,
    service: Option<&str>,
    refresh: &str,
    attempt: &Attempt,
) -> Result<Answer, UpstreamError> {
    let form = refresh_form(attempt.subject(), service, refresh);
    let mut fields = HeaderMap::new();
    fields.insert(header::ACCEPT, field("application/json"));
    fields.insert(header::CONTENT_TYPE, field("application/x-www-form-urlencoded"));
    let upstream = need.upstream;
    let sent = upstream
        .client
        .send(&Method::POST, realm, &fields, Payload::whole(&Bytes::from(form)), need.deadline)
        .await;
    let response = sent.map_err(|error| upstream.failed(error, attempt))?;
    upstream.judged(Followed::directly(response), Success::Content, attempt).await
}

fn refresh_form(scope: &str, service: Option<&str>, refresh: &str) -> String {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token").append_pair("client_id", "spliceway");
    form.append_pair("scope", scope).append_pair("refresh_token", refresh);
    if let Some(service) = service {
        form.append_pair("service", service);
    }
    form.finish()
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

/// No message repeats the answer: it holds a secret.
fn parse_token(text: &[u8], issued: Instant) -> Result<Token, String> {
    let answer: TokenAnswer =
        serde_json::from_slice(text).map_err(|_| "the token server's answer is not a token")?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
    let token = token.filter(|token| !token.is_empty()).ok_or("the token server's answer holds no token")?;
    let authorization = Authorization::bearer(&token)
        .ok_or_else(|| format!("a token of {} bytes that does not fit into a header", token.len()))?;
    let lifetime = match answer.expires_in.as_ref().and_then(serde_json::Value::as_f64) {
        Some(seconds) => {
            Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LIFETIME_MAX).min(LIFETIME_MAX)
        }
        None => LIFETIME_DEFAULT,
    };
    let margin = (lifetime / 10).min(RENEWAL_MARGIN_MAX);
    Ok(Token { authorization, renew_at: issued + lifetime.saturating_sub(margin) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(String, Duration), String> {
        let issued = Instant::now();
        let token = parse_token(text.as_bytes(), issued)?;
        let header = token.authorization.header();
        assert!(header.is_sensitive());
        Ok((header.to_str().unwrap().to_owned(), token.renew_at - issued))
    }

    #[test]
    fn answers_of_token_servers() {
        let bearer = |token: &str, seconds| Ok((format!("Bearer {token}"), Duration::from_secs(seconds)));
        assert_eq!(parse(r#"{"token":"t","expires_in":300}"#), bearer("t", 270));
        assert_eq!(parse(r#"{"access_token":"a"}"#), bearer("a", 54));
        assert_eq!(parse(r#"{"token":"","access_token":"a","expires_in":0}"#), bearer("a", 0));
        assert_eq!(parse(r#"{"token":"t","access_token":"a","expires_in":-5}"#), bearer("t", 0));
        assert_eq!(parse(r#"{"token":"t","expires_in":1e300}"#), bearer("t", 24 * 3600 - 30));
        assert_eq!(parse(r#"{"token":"t","expires_in":"soon"}"#), bearer("t", 54));
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"token":""}"#,
            r#"{"token":"a
b"}"#,
            r#"{"token":7}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let long = format!(r#"{{"token":"{}"}}"#, "x".repeat(TOKEN_LEN_MAX + 1));
        assert!(parse(&long).is_err_and(|what| what.contains("16385 bytes")));
    }
}
