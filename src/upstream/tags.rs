//! The list of a repository's tags, page by page.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use serde::Deserialize;
use tokio::time::{Duration, Instant};
use url::Url;

use super::Upstream;
use super::endpoint::{Endpoint, EndpointChoice, Origin};
use super::error::{Attempt, UpstreamError};
use super::exchange::{Answer, Call, document, field, quoted};
use super::headers;
use super::options::Operation;
use crate::oci::{RepositoryName, Tag};

/// How many tags we ask for at once; registries may send fewer, and distribution 2.8 sends all.
const PAGE: &str = "n=1000";
/// How many pages are followed.
const PAGES_MAX: usize = 1000;
/// How long all pages together may be, in bytes.
const BYTES_MAX: usize = 32 << 20;
/// How long all pages together may take.
const LIST_TIMEOUT: Duration = Duration::from_mins(5);

impl Upstream {
    /// All tags of a repository, sorted by bytes, each once. Tags that the specification does not allow are left out.
    ///
    /// Pages (`Link: …; rel="next"`, OCI distribution spec, "Listing Tags") are followed at the same endpoint only; an
    /// endpoint that fails in between counts as failed, and the next is asked from the first page on. Bounded by 1,000
    /// pages, 32 MiB and five minutes per endpoint. Cancel-safe.
    pub async fn tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, UpstreamError> {
        let repository = self.canonical(repository);
        let mut walk = self.endpoints.walk(EndpointChoice::First);
        loop {
            match self.tags_from(walk.endpoint(), &repository).await {
                Ok(tags) => return Ok(tags),
                Err(error) => walk.next(error)?,
            }
        }
    }

    async fn tags_from(
        &self,
        endpoint: &Endpoint,
        repository: &RepositoryName,
    ) -> Result<Vec<Tag>, UpstreamError> {
        let deadline = Instant::now() + LIST_TIMEOUT;
        let mut url = endpoint.url(&format!("{repository}/tags/list"), Some(PAGE));
        let mut tags = BTreeSet::new();
        let mut bytes_left = BYTES_MAX;
        for _ in 0..PAGES_MAX {
            let call = page_call(repository, url.clone());
            let Answer { response, attempt } = self.exchange(endpoint, &call).await?;
            let next = next_page(endpoint, &url, response.headers())
                .map_err(|what| UpstreamError::Malformed { attempt: attempt.clone(), what })?;
            let left = deadline.saturating_duration_since(Instant::now());
            let text = document(response, bytes_left, self.stall_timeout, left, &attempt).await?;
            bytes_left -= text.len();
            tags.extend(parse_page(&text, &attempt)?);
            match next {
                Some(next) => url = next,
                None => return Ok(tags.into_iter().collect()),
            }
        }
        let attempt = Attempt::new(&endpoint.label, Operation::Tags, repository.as_str());
        Err(UpstreamError::Unexpected { attempt, what: format!("more than {PAGES_MAX} pages of tags") })
    }
}

fn page_call(repository: &RepositoryName, url: Url) -> Call<'_> {
    let mut fields = HeaderMap::new();
    fields.insert(header::ACCEPT, field("application/json"));
    fields.insert(header::ACCEPT_ENCODING, field("identity"));
    Call {
        operation: Operation::Tags,
        repository,
        method: Method::GET,
        url,
        headers: fields,
        subject: repository.to_string(),
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

fn parse_page(text: &Bytes, attempt: &Attempt) -> Result<impl Iterator<Item = Tag> + use<>, UpstreamError> {
    #[derive(Deserialize)]
    struct Page {
        tags: Option<Vec<String>>,
    }
    let page: Page = serde_json::from_slice(text).map_err(|error| UpstreamError::Malformed {
        attempt: attempt.clone(),
        what: format!("not a list of tags: {error}"),
    })?;
    Ok(page.tags.unwrap_or_default().into_iter().filter_map(|tag| match tag.parse() {
        Ok(tag) => Some(tag),
        Err(error) => {
            tracing::debug!(%error, "leaving out a tag");
            None
        }
    }))
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

    #[test]
    fn pages() {
        let attempt = Attempt::new("r.example", Operation::Tags, "a");
        let parse = |text: &'static str| {
            parse_page(&Bytes::from(text), &attempt)
                .map(|tags| tags.map(|tag| tag.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(parse(r#"{"name":"a","tags":["b","a","-bad"]}"#).unwrap(), ["b", "a"]);
        assert!(parse(r#"{"name":"a","tags":null}"#).unwrap().is_empty());
        assert!(parse(r#"{"name":"a"}"#).unwrap().is_empty());
        assert!(parse("[]").is_err());
    }
}
