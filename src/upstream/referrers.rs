//! The manifests that have another one as their subject (OCI distribution spec 1.1, "Listing Referrers").

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use tokio::time::{Duration, Instant};
use url::Url;

use super::Upstream;
use super::endpoint::{Endpoint, EndpointChoice};
use super::error::{Attempt, UpstreamError};
use super::exchange::{Answer, Call, Success, document, field};
use super::options::Operation;
use super::pages::next_page;
use crate::oci::{Algorithm, Descriptor, Digest, Manifest, RepositoryName, media_type};

/// How many pages are followed.
const PAGES_MAX: usize = 100;
/// How long all pages together may be, in bytes.
const BYTES_MAX: usize = 8 << 20;
/// How long all pages together may take.
const LIST_TIMEOUT: Duration = Duration::from_mins(1);

impl Upstream {
    /// The descriptors of all manifests whose subject is `subject`, as upstream lists them. [`UpstreamError::NotFound`] from
    /// an upstream that has no such list, as distribution has none, also if it says so by 400, 405 or 501. Bounded by 100 pages, 8 MiB and a minute per endpoint.
    /// Cancel-safe.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, UpstreamError> {
        let repository = self.canonical(repository);
        let mut walk = self.endpoints.walk(EndpointChoice::First);
        loop {
            match self.referrers_from(walk.endpoint(), &repository, subject).await {
                Ok(found) => return Ok(found),
                Err(error) => walk.next(error)?,
            }
        }
    }

    async fn referrers_from(
        &self,
        endpoint: &Endpoint,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, UpstreamError> {
        let deadline = Instant::now() + LIST_TIMEOUT;
        let mut url = endpoint.url(&format!("{repository}/referrers/{subject}"), None);
        let mut found = Vec::new();
        let mut bytes_left = BYTES_MAX;
        for _ in 0..PAGES_MAX {
            let call = page_call(repository, subject, url.clone());
            let is_first = found.is_empty() && bytes_left == BYTES_MAX;
            let answer = self.exchange(endpoint, &call).await;
            let answer = answer.map_err(|error| if is_first { without_route(error, subject) } else { error });
            let Answer { response, attempt } = answer?;
            let status = response.status();
            if status != StatusCode::OK {
                let what = format!("status {}", status.as_u16());
                return Err(UpstreamError::Unexpected { attempt, what });
            }
            let malformed = |what: String| UpstreamError::Malformed { attempt: attempt.clone(), what };
            let next = next_page(endpoint, &url, response.headers()).map_err(malformed)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let text = document(response, bytes_left, self.stall_timeout, left, &attempt).await?;
            bytes_left -= text.len();
            let index = Manifest::parse(&text, Some(media_type::OCI_INDEX));
            let index = index.map_err(|error| malformed(format!("not a list of referrers: {error}")))?;
            found.extend(index.manifests);
            match next {
                Some(next) => url = next,
                None => return Ok(found),
            }
        }
        let attempt = Attempt::new(&endpoint.label, Operation::Referrers, repository.as_str());
        Err(UpstreamError::Unexpected { attempt, what: format!("more than {PAGES_MAX} pages of referrers") })
    }
}

/// What has no such route may say so in other ways than by 404: 405, since paths below a repository are there for pushes,
/// 400, since it takes the path for something else, or 501. To a digest of an algorithm that it does not know it may say 400
/// too.
fn without_route(error: UpstreamError, subject: &Digest) -> UpstreamError {
    match error {
        UpstreamError::Refused { status: 400, .. } if subject.algorithm() != Algorithm::Sha256 => error,
        UpstreamError::Refused { attempt, status: 400 | 405, detail }
        | UpstreamError::ServerError { attempt, status: 501, detail, .. } => {
            UpstreamError::NotFound { attempt, detail }
        }
        error => error,
    }
}

fn page_call<'a>(repository: &'a RepositoryName, subject: &Digest, url: Url) -> Call<'a> {
    let mut fields = HeaderMap::new();
    fields.insert(header::ACCEPT, field(media_type::OCI_INDEX));
    fields.insert(header::ACCEPT_ENCODING, field("identity"));
    Call {
        operation: Operation::Referrers,
        repository: Some(repository),
        method: Method::GET,
        url,
        headers: fields,
        body: Bytes::new(),
        // So that a refusal says its status.
        success: Success::Done,
        subject: subject.to_string(),
    }
}
