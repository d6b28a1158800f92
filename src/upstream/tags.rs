//! The list of a repository's tags.

use bytes::Bytes;
use serde::Deserialize;

use super::Upstream;
use super::endpoint::EndpointChoice;
use super::error::{Attempt, UpstreamError};
use super::options::Operation;
use super::pages::List;
use crate::oci::{RepositoryName, Tag};

impl Upstream {
    /// All tags of a repository, sorted by bytes, each once. Tags that the specification does not allow are left out.
    ///
    /// Pages are followed at the same endpoint only; an endpoint that fails in between counts as failed, and the next is
    /// asked from the first page on. Bounded by 1,000 pages, 32 MiB and five minutes per endpoint. Cancel-safe.
    pub async fn tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, UpstreamError> {
        let repository = self.canonical(repository);
        let list = List {
            operation: Operation::Tags,
            repository: Some(&repository),
            path: format!("{repository}/tags/list"),
            subject: repository.as_str(),
        };
        let mut walk = self.endpoints.walk(EndpointChoice::First);
        loop {
            match self.pages(walk.endpoint(), &list, parse_page).await {
                Ok(tags) => return Ok(tags),
                Err(error) => walk.next(error)?,
            }
        }
    }
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
