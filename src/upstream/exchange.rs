//! One attempt at one endpoint: authorisation, redirects, and the status turned into a typed result.
//!
//! The deadline of an attempt covers everything up to the response's headers. The `Authorization` header, and
//! what else says who asks, goes to the endpoint's origin only; a redirect that leaves it loses it for good, even if a later
//! one leads back.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use serde::Deserialize;
use tokio::time::{Duration, Instant, timeout_at};
use url::Url;

use super::Upstream;
use super::auth::{Authorization, Need};
use super::challenge::challenges;
use super::client::{TransportError, drain};
use super::endpoint::{Endpoint, Origin};
use super::error::{Attempt, UpstreamError};
use super::headers;
use super::options::{Operation, RequestObservation};
use super::payload::Payload;
use crate::oci::RepositoryName;

/// How many redirects one attempt follows.
const REDIRECTS_MAX: u32 = 5;
/// How much of an error's body is read for its message.
const ERROR_BODY_MAX: usize = 64 << 10;
/// How long the message of an error's body is waited for.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of an upstream's words is repeated in our messages, in characters.
const DETAIL_CHARS_MAX: usize = 200;

/// What to ask, of whatever endpoint.
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    /// Whose token is sent; `None`: the registry's own, for its catalog.
    pub(super) repository: Option<&'a RepositoryName>,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// What is sent with it.
    pub(super) body: Bytes,
    /// Which statuses are no errors.
    pub(super) success: Success,
    /// For messages: `repository@digest` or `repository:tag`.
    pub(super) subject: String,
}

/// What a request that went well is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Success {
    /// 200 or 206, with content.
    Content,
    /// Any 2xx: something was done. Then any other 4xx is [`UpstreamError::Refused`].
    Done,
}

/// A response whose status is one of its call's [`Success`].
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) attempt: Attempt,
}

/// Where a chain of redirects ended.
pub(super) struct Followed {
    response: Response<Incoming>,
    /// Whether no redirect led to another origin.
    is_own: bool,
}

impl Followed {
    /// A response without any redirect followed.
    pub(super) fn directly(response: Response<Incoming>) -> Self {
        Self { response, is_own: true }
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }
}

/// Where a chain of redirects broke.
pub(super) struct Lost {
    pub(super) error: UpstreamError,
    /// Whether it is the first origin that cannot be reached.
    is_home_unreachable: bool,
}

impl Upstream {
    /// Makes one attempt at `endpoint`, within the header timeout, and tells the observer.
    pub(super) async fn exchange(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
    ) -> Result<Answer, UpstreamError> {
        self.exchange_within(endpoint, call, self.header_timeout).await
    }

    /// As [`Upstream::exchange`], within another time.
    pub(super) async fn exchange_within(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        limit: Duration,
    ) -> Result<Answer, UpstreamError> {
        let began = Instant::now();
        let attempt = Attempt::new(&endpoint.label, call.operation, &call.subject);
        let deadline = began + limit;
        let mut rate_limit_remaining = None;
        let (result, elapsed) = match self.authorized(endpoint, call, &attempt, deadline).await {
            Ok(followed) => {
                rate_limit_remaining = headers::rate_limit_remaining(followed.response.headers());
                let elapsed = began.elapsed();
                (self.judged(followed, call.success, &attempt).await, elapsed)
            }
            Err(error) => (Err(error), began.elapsed()),
        };
        self.observe(&RequestObservation {
            upstream: &self.name,
            endpoint: &endpoint.label,
            operation: call.operation,
            outcome: result.as_ref().map_or_else(UpstreamError::reason, |_| "ok"),
            elapsed,
            rate_limit_remaining,
        });
        result
    }

    /// Tells the observer, if there is one.
    pub(super) fn observe(&self, observation: &RequestObservation<'_>) {
        if let Some(observer) = &self.observer {
            observer(observation);
        }
    }

    /// The request with what we know of its authorisation, and once more with what a 401 asks for.
    async fn authorized(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        attempt: &Attempt,
        deadline: Instant,
    ) -> Result<Followed, UpstreamError> {
        if Origin::of(&call.url).as_ref() != Some(&endpoint.origin) {
            // Where an upload goes on is the registry's to say, but whoever that is does not get our login.
            return self.sent(endpoint, call, attempt, None, deadline).await;
        }
        let need = Need { upstream: self, endpoint, repository: call.repository, deadline };
        let known = self.auth.known(need).await?;
        let followed = self.sent(endpoint, call, attempt, known.as_ref(), deadline).await?;
        if followed.response.status() != StatusCode::UNAUTHORIZED || !followed.is_own {
            return Ok(followed);
        }
        let asked = challenges(followed.response.headers());
        // Read before the token is asked for: a token server on the same host gets the same connection.
        let detail = said(followed.response).await;
        match self.auth.answer(need, asked, known.as_ref()).await? {
            Some(authorization) => self.sent(endpoint, call, attempt, Some(&authorization), deadline).await,
            None => Err(unauthorized(attempt.clone(), "the server", detail.as_deref())),
        }
    }

    /// The request with an authorisation; an endpoint that cannot be reached is marked down.
    async fn sent(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        attempt: &Attempt,
        authorization: Option<&Authorization>,
        deadline: Instant,
    ) -> Result<Followed, UpstreamError> {
        let mut fields = call.headers.clone();
        if let Some(authorization) = authorization {
            fields.insert(header::AUTHORIZATION, authorization.header().clone());
        }
        self.follow(&call.method, &call.url, fields, &call.body, attempt, deadline).await.map_err(|lost| {
            if lost.is_home_unreachable {
                self.endpoints.mark_down(endpoint);
            }
            lost.error
        })
    }

    /// Sends a request and follows redirects (RFC 9110 §15.4) by hand, with the same method and body: to another origin only
    /// what reads.
    pub(super) async fn follow(
        &self,
        method: &Method,
        url: &Url,
        mut fields: HeaderMap,
        body: &Bytes,
        attempt: &Attempt,
        deadline: Instant,
    ) -> Result<Followed, Lost> {
        let home = Origin::of(url);
        let mut url = url.clone();
        let mut is_own = true;
        let mut redirects = 0;
        loop {
            let sent = self.client.send(method, &url, &fields, Payload::whole(body), deadline).await;
            let response = match sent {
                Ok(response) => response,
                Err(error) => {
                    let is_home_unreachable = is_own && error.is_unreachable();
                    return Err(Lost { error: self.failed(error, attempt), is_home_unreachable });
                }
            };
            if !is_redirect(response.status()) {
                return Ok(Followed { response, is_own });
            }
            redirects += 1;
            let next = if redirects > REDIRECTS_MAX {
                Err(format!("more than {REDIRECTS_MAX} redirects"))
            } else {
                redirect_target(&url, response.headers())
            };
            url = next.map_err(|what| Lost {
                error: UpstreamError::Unexpected { attempt: attempt.clone(), what },
                is_home_unreachable: false,
            })?;
            if Origin::of(&url) != home {
                if !method.is_safe() {
                    let what = format!("a redirect of a {method} to another server");
                    let error = UpstreamError::Unexpected { attempt: attempt.clone(), what };
                    return Err(Lost { error, is_home_unreachable: false });
                }
                is_own = false;
                fields = of_any_origin(&fields);
            }
            drain(response).await;
        }
    }

    /// A transport's error in an upstream's terms.
    pub(super) fn failed(&self, error: TransportError, attempt: &Attempt) -> UpstreamError {
        let attempt = attempt.clone();
        match error {
            TransportError::Connect(cause) => UpstreamError::Connect { attempt, cause },
            TransportError::ConnectTimeout(after) => {
                UpstreamError::Timeout { attempt, what: "connection", after }
            }
            TransportError::Deadline => {
                UpstreamError::Timeout { attempt, what: "response headers", after: self.header_timeout }
            }
            TransportError::Broken(cause) => UpstreamError::Broken { attempt, cause },
            TransportError::Malformed(cause) => UpstreamError::Malformed { attempt, what: cause.to_string() },
        }
    }

    /// The answer, or the error that its status means.
    pub(super) async fn judged(
        &self,
        followed: Followed,
        success: Success,
        attempt: &Attempt,
    ) -> Result<Answer, UpstreamError> {
        let Followed { response, is_own } = followed;
        let attempt = attempt.clone();
        let status = response.status();
        let is_success = match success {
            Success::Content => matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT),
            Success::Done => status.is_success(),
        };
        if is_success {
            return Ok(Answer { response, attempt });
        }
        let fields = response.headers().clone();
        let detail = said(response).await;
        Err(match status {
            StatusCode::NOT_FOUND => UpstreamError::NotFound { attempt, detail },
            StatusCode::UNAUTHORIZED => {
                let whose = if is_own { "the server" } else { "the target of a redirect" };
                unauthorized(attempt, whose, detail.as_deref())
            }
            StatusCode::FORBIDDEN => UpstreamError::Denied { attempt, detail },
            StatusCode::RANGE_NOT_SATISFIABLE => {
                UpstreamError::RangeNotSatisfiable { attempt, length: headers::unsatisfied_length(&fields) }
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let retry_after = headers::retry_after(&fields, SystemTime::now());
                UpstreamError::RateLimited { attempt, retry_after, detail }
            }
            _ if status.is_server_error() => {
                let retry_after = headers::retry_after(&fields, SystemTime::now());
                UpstreamError::ServerError { attempt, status: status.as_u16(), retry_after, detail }
            }
            _ if status.is_client_error() && success == Success::Done => {
                UpstreamError::Refused { attempt, status: status.as_u16(), detail }
            }
            _ => {
                let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
                UpstreamError::Unexpected { attempt, what: format!("status {}{detail}", status.as_u16()) }
            }
        })
    }
}

fn unauthorized(attempt: Attempt, whose: &str, detail: Option<&str>) -> UpstreamError {
    let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
    UpstreamError::Unauthorized { attempt, detail: format!("{whose} answers 401{detail}").into() }
}

/// Reads a document of at most `limit` bytes, each piece within `stall`, the whole within `total`.
///
/// Dropping the call closes the connection.
pub(super) async fn document(
    response: Response<Incoming>,
    limit: usize,
    stall: Duration,
    total: Duration,
    attempt: &Attempt,
) -> Result<Bytes, UpstreamError> {
    let too_large =
        |length| UpstreamError::TooLarge { attempt: attempt.clone(), limit: limit as u64, length };
    let mut body = response.into_body();
    if let Some(length) = body.size_hint().exact().filter(|length| *length > limit as u64) {
        return Err(too_large(Some(length)));
    }
    let deadline = Instant::now() + total;
    let mut bytes = BytesMut::new();
    loop {
        let stalled = Instant::now() + stall;
        let frame = timeout_at(stalled.min(deadline), body.frame()).await.map_err(|_| {
            let (what, after) =
                if stalled < deadline { ("body bytes", stall) } else { ("complete body", total) };
            UpstreamError::Timeout { attempt: attempt.clone(), what, after }
        })?;
        match frame {
            None => return Ok(bytes.freeze()),
            Some(Err(error)) => {
                return Err(UpstreamError::Broken {
                    attempt: attempt.clone(),
                    cause: super::error::causes(&error),
                });
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    if bytes.len() + data.len() > limit {
                        return Err(too_large(None));
                    }
                    bytes.extend_from_slice(data);
                }
            }
        }
    }
}

/// A value from an upstream as our messages show it: quoted, escaped and cut.
pub(super) fn quoted(value: &str) -> String {
    let mut shown: String = value.chars().take(DETAIL_CHARS_MAX).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// A header with a fixed value.
pub(super) fn field(value: &'static str) -> HeaderValue {
    HeaderValue::from_static(value)
}

/// The fields that say what is wanted, and nothing about who wants it.
fn of_any_origin(fields: &HeaderMap) -> HeaderMap {
    const NAMES: [HeaderName; 5] =
        [header::ACCEPT, header::ACCEPT_ENCODING, header::RANGE, header::IF_RANGE, header::USER_AGENT];
    let named = fields.iter().filter(|(name, _)| NAMES.contains(name));
    named.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The next URL, or why it may not be followed. A query is not repeated in messages: it may be a signature.
fn redirect_target(from: &Url, fields: &HeaderMap) -> Result<Url, String> {
    let location = headers::text(fields, &header::LOCATION).ok_or("a redirect without Location")?;
    let mut target = from.join(location).map_err(|error| format!("a redirect to an invalid URL: {error}"))?;
    let shown = || format!("{}://{}", target.scheme(), target.host_str().unwrap_or_default());
    let origin =
        Origin::of(&target).ok_or_else(|| format!("a redirect to {}, neither http nor https", shown()))?;
    if from.scheme() == "https" && !origin.is_https {
        return Err(format!("a redirect from https to {}", shown()));
    }
    // User information in a Location is not ours to send; it fails only for URLs that cannot have any.
    let _ = target.set_username("");
    let _ = target.set_password(None);
    target.set_fragment(None);
    Ok(target)
}

/// The message in an error's body: the first of `{"errors":[{code,message}]}`, or its first line if it is plain text.
async fn said(response: Response<Incoming>) -> Option<Arc<str>> {
    let is_text = headers::text(response.headers(), &header::CONTENT_TYPE)
        .is_some_and(|kind| kind.starts_with("text/plain"));
    let attempt = Attempt::new("", Operation::Blob, ""); // the reason why a message cannot be read is of no interest
    let body =
        document(response, ERROR_BODY_MAX, ERROR_BODY_TIMEOUT, ERROR_BODY_TIMEOUT, &attempt).await.ok()?;
    let text = error_message(&body, is_text)?;
    let shown: String = text.chars().take(DETAIL_CHARS_MAX).flat_map(char::escape_debug).collect();
    Some(shown.into())
}

fn error_message(body: &[u8], is_text: bool) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    if let Ok(Errors { errors }) = serde_json::from_slice(body) {
        let Item { code, message } = errors.into_iter().next()?;
        return Some(if message.is_empty() { code } else { format!("{code}: {message}") })
            .filter(|text| !text.is_empty());
    }
    let line = std::str::from_utf8(body).ok()?.lines().next()?.trim();
    (is_text && !line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(from: &str, location: &str) -> Result<String, String> {
        let mut fields = HeaderMap::new();
        fields.insert(header::LOCATION, location.parse().unwrap());
        redirect_target(&from.parse().unwrap(), &fields).map(Into::into)
    }

    #[test]
    fn redirect_targets() {
        let from = "https://r.example/v2/a/blobs/x?y";
        assert_eq!(target(from, "../b?c#d").as_deref(), Ok("https://r.example/v2/a/b?c"));
        assert_eq!(target(from, "//cdn.example/z").as_deref(), Ok("https://cdn.example/z"));
        assert_eq!(target(from, "https://u:p@cdn.example/z").as_deref(), Ok("https://cdn.example/z"));
        assert_eq!(target("http://r.example/", "https://r.example/").as_deref(), Ok("https://r.example/"));
        assert!(
            target(from, "http://r.example/?secret").is_err_and(|what| !what.contains("secret")),
            "downgrade"
        );
        assert!(target(from, "file:///etc/passwd").is_err());
        assert!(target(from, "https://").is_err());
        assert!(redirect_target(&from.parse().unwrap(), &HeaderMap::new()).is_err());
    }

    #[test]
    fn messages_of_errors() {
        let json = br#"{"errors":[{"code":"DENIED","message":"no","detail":{}},{"code":"X"}]}"#;
        assert_eq!(error_message(json, false).as_deref(), Some("DENIED: no"));
        assert_eq!(error_message(br#"{"errors":[{"code":"DENIED"}]}"#, false).as_deref(), Some("DENIED"));
        assert_eq!(error_message(br#"{"errors":[]}"#, false), None);
        assert_eq!(error_message(b"404 page not found\n", true).as_deref(), Some("404 page not found"));
        assert_eq!(error_message(b"<html>", false), None);
        assert_eq!(error_message(b"\xff", true), None);
    }
}
