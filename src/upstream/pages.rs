//! Lists that come in pages: of tags, of repositories.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use tokio::time::{Duration, Instant};
use url::Url;

use super::Upstream;
use super::endpoint::{Endpoint, Origin};
use super::error::{Attempt, UpstreamError};
use super::exchange::{Answer, Call, Success, document, field, quoted};
use super::headers;
use super::options::Operation;
use crate::oci::RepositoryName;

/// How many entries we ask for at once; registries may send fewer. distribution 2.8 sends all tags, and refuses to send
/// more repositories.
const PAGE: &str = "n=1000";
/// How many pages are followed.
const PAGES_MAX: usize = 1000;
/// How long all pages together may be, in bytes.
const BYTES_MAX: usize = 32 << 20;
/// How long all pages together may take.
const LIST_TIMEOUT: Duration = Duration::from_mins(5);

/// A list to be asked for.
pub(super) struct List<'a> {
    pub(super) operation: Operation,
    /// Whose tags; `None`: the repositories.
    pub(super) repository: Option<&'a RepositoryName>,
    /// Below the endpoint's base.
    pub(super) path: String,
    /// For messages.
    pub(super) subject: &'a str,
}

impl Upstream {
    /// The entries of all pages at one endpoint, sorted, each once.
    ///
    /// Pages (`Link: …; rel="next"`, OCI distribution spec, "Listing Tags") are followed at the same endpoint only.
    /// Bounded by 1,000 pages, 32 MiB and five minutes. Cancel-safe.
    pub(super) async fn pages<T: Ord, Entries: IntoIterator<Item = T>>(
        &self,
        endpoint: &Endpoint,
        list: &List<'_>,
        parse: impl Fn(&Bytes, &Attempt) -> Result<Entries, UpstreamError>,
    ) -> Result<Vec<T>, UpstreamError> {
        let deadline = Instant::now() + LIST_TIMEOUT;
        let mut url = endpoint.url(&list.path, Some(PAGE));
        let mut entries = BTreeSet::new();
        let mut bytes_left = BYTES_MAX;
        for _ in 0..PAGES_MAX {
            let Answer { response, attempt } = self.exchange(endpoint, &list.call(url.clone())).await?;
            let next = next_page(endpoint, &url, response.headers())
                .map_err(|what| UpstreamError::Malformed { attempt: attempt.clone(), what })?;
            let left = deadline.saturating_duration_since(Instant::now());
            let text = document(response, bytes_left, self.stall_timeout, left, &attempt).await?;
            bytes_left -= text.len();
            entries.extend(parse(&text, &attempt)?);
            match next {
                Some(next) => url = next,
                None => return Ok(entries.into_iter().collect()),
            }
        }
        let attempt = Attempt::new(&endpoint.label, list.operation, list.subject);
        Err(UpstreamError::Unexpected { attempt, what: format!("more than {PAGES_MAX} pages") })
    }
}

impl List<'_> {
    fn call(&self, url: Url) -> Call<'_> {
        let mut fields = HeaderMap::new();
        fields.insert(header::ACCEPT, field("application/json"));
        fields.insert(header::ACCEPT_ENCODING, field("identity"));
        Call {
            operation: self.operation,
            repository: self.repository,
            method: Method::GET,
            url,
            headers: fields,
            body: Bytes::new(),
            success: Success::Content,
            subject: self.subject.to_owned(),
        }
    }
}

/// The next page's URL: below the same origin, and not the page it stands on.
pub(super) fn next_page(endpoint: &Endpoint, page: &Url, fields: &HeaderMap) -> Result<Option<Url>, String> {
    let Some(link) = headers::next_link(fields) else { return Ok(None) };
    let next = page.join(&link).map_err(|error| format!("next page {}: {error}", quoted(&link)))?;
    if Origin::of(&next).as_ref() != Some(&endpoint.origin) {
        return Err(format!("next page {} is not at {}", quoted(&link), endpoint.label));
    }
    if next == *page {
        return Err(format!("next page {} is the page itself", quoted(&link)));
    }
    Ok(Some(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_stays_at_its_endpoint() {
        let endpoint = Endpoint::parse(0, "http://r.example:5000").unwrap();
        let page = endpoint.url("a/tags/list", Some(PAGE));
        let next = |link: &str| {
            let link = format!("<{link}>; rel=\"next\"").parse().unwrap();
            next_page(&endpoint, &page, &HeaderMap::from_iter([(header::LINK, link)]))
                .map(|url| url.map(String::from))
        };
        let expected = Ok(Some("http://r.example:5000/v2/a/tags/list?last=x&n=2".to_owned()));
        assert_eq!(next("/v2/a/tags/list?last=x&n=2"), expected);
        assert_eq!(next("?last=x&n=2"), expected);
        assert_eq!(next("http://R.example:5000/v2/a/tags/list?last=x&n=2"), expected);
        assert!(next("http://r.example:5001/v2/a/tags/list?last=x&n=2").is_err());
        assert!(next("https://r.example:5000/v2/a/tags/list?last=x&n=2").is_err());
        assert!(next("/v2/a/tags/list?n=1000").is_err(), "a loop");
        assert_eq!(next_page(&endpoint, &page, &HeaderMap::new()), Ok(None));
    }
}
