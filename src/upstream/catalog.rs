//! The list of a registry's repositories (`/v2/_catalog`, which is distribution's and many others', not the OCI
//! specification's).

use bytes::Bytes;
use serde::Deserialize;

use super::Upstream;
use super::error::{Attempt, UpstreamError};
use super::options::Operation;
use super::pages::List;
use crate::oci::RepositoryName;

impl Upstream {
    /// All repositories that the registry lists, sorted by bytes (registries have other orders), each once. Names that the
    /// specification does not allow are left out.
    ///
    /// Asked of the registry itself and not of its mirrors, whose catalogs are what they happen to hold. Bounded by 1,000
    /// pages, 32 MiB and five minutes. Cancel-safe.
    pub async fn catalog(&self) -> Result<Vec<RepositoryName>, UpstreamError> {
        let list = List {
            operation: Operation::Catalog,
            repository: None,
            path: "_catalog".to_owned(),
            subject: "of the registry",
        };
        self.pages(self.endpoints.own(), &list, parse_page).await
    }
}

fn parse_page(
    text: &Bytes,
    attempt: &Attempt,
) -> Result<impl Iterator<Item = RepositoryName> + use<>, UpstreamError> {
    #[derive(Deserialize)]
    struct Page {
        repositories: Option<Vec<String>>,
    }
    let page: Page = serde_json::from_slice(text).map_err(|error| UpstreamError::Malformed {
        attempt: attempt.clone(),
        what: format!("not a list of repositories: {error}"),
    })?;
    Ok(page.repositories.unwrap_or_default().into_iter().filter_map(|name| match name.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            tracing::debug!(%error, "leaving out a repository");
            None
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let attempt = Attempt::new("r.example", Operation::Catalog, "of the registry");
        let parse = |text: &'static str| {
            parse_page(&Bytes::from(text), &attempt)
                .map(|names| names.map(|name| name.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(parse(r#"{"repositories":["b/c","a","_bad","A"]}"#).unwrap(), ["b/c", "a"]);
        assert!(parse(r#"{"repositories":null}"#).unwrap().is_empty());
        assert!(parse("[]").is_err());
    }
}
