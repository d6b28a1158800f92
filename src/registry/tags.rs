//! `GET /v2/<name>/tags/list`: upstream's tags and ours, sorted, in pages.
//!
//! Upstream is asked for its whole list (some registries ignore `n` and `last`), and the answer kept for its `tag_ttl`.
//! When upstream fails, the list is what is held.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LINK};
use http::{Method, Response, request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::access_log::{CacheState, Record};
use super::blobs::disk_error;
use super::namespace::{Registry, Remote, Target};
use super::respond::ApiError;
use super::route::Query;
use crate::body::Body;
use crate::oci::Tag;
use crate::upstream::UpstreamError;

/// A repository's tags.
pub(super) type TagList = Arc<Vec<Tag>>;

/// What need not be escaped in a query's value.
pub(super) const QUERY_VALUE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Registry {
    pub(super) async fn tags(
        self: &Arc<Self>,
        head: &request::Parts,
        target: &Target,
        query: &Query,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let tags = self.all_tags(target, record).await?;
        let (page, is_last) = page(&tags, query);
        let body = serde_json::to_vec(&json!({ "name": target.name.as_str(), "tags": page }))
            .map_err(|_| ApiError::internal())?;
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        if !is_last && let (Some(count), Some(last)) = (query.count, page.last()) {
            let escaped = |text: &str| utf8_percent_encode(text, QUERY_VALUE).to_string();
            let namespace =
                query.namespace.as_deref().map(|ns| format!("&ns={}", escaped(ns))).unwrap_or_default();
            let link = format!(
                "</v2/{}/tags/list?last={}&n={count}{namespace}>; rel=\"next\"",
                target.name,
                escaped(last)
            );
            if let Ok(link) = HeaderValue::try_from(link) {
                headers.insert(LINK, link);
            }
        }
        if head.method == Method::GET {
            *response.body_mut() = Body::bytes(body);
        }
        Ok(response)
    }

    async fn all_tags(self: &Arc<Self>, target: &Target, record: &mut Record) -> Result<Vec<Tag>, ApiError> {
        let mut tags = BTreeSet::new();
        let mut known = false;
        if let Some(local) = &target.local {
            let held = self.local.tags(local).await.map_err(|error| disk_error("list tags", &error))?;
            known |= held.is_some();
            tags.extend(held.into_iter().flatten());
        }
        let Some(remote) = &target.remote else {
            return if known {
                Ok(tags.into_iter().collect())
            } else {
                Err(ApiError::name_unknown(&target.name))
            };
        };
        match self.upstream_tags(remote, record).await {
            Ok(list) => tags.extend(list.iter().cloned()),
            Err(error) if error.is_absence() && known => {}
            Err(error) if error.is_absence() => return Err(ApiError::name_unknown(&target.name)),
            Err(error) => {
                let held = self.cache.tags(&remote.stored).await;
                let held = held.map_err(|error| disk_error("list tags", &error))?;
                if held.is_none() && !known {
                    return Err(ApiError::upstream(&error, || ApiError::name_unknown(&target.name)));
                }
                tracing::warn!(
                    repository = %remote.stored, reason = error.reason(), %error,
                    "upstream does not list its tags: listing what is held"
                );
                record.cache = CacheState::Stale;
                tags.extend(held.into_iter().flatten());
            }
        }
        Ok(tags.into_iter().collect())
    }

    async fn upstream_tags(
        self: &Arc<Self>,
        remote: &Remote,
        record: &mut Record,
    ) -> Result<TagList, UpstreamError> {
        if let Some(list) = self.known_list(remote) {
            record.cache = CacheState::Hit;
            return Ok(list);
        }
        let (registry, asked) = (Arc::clone(self), remote.clone());
        let ask = || async move {
            let list = Arc::new(asked.via.upstream.tags(&asked.name).await?);
            registry.remember_list(&asked, Arc::clone(&list));
            Ok(list)
        };
        let (answer, joined) = self.lists_asked.answer(remote.stored.clone(), ask).await;
        record.cache = if joined { CacheState::Join } else { CacheState::Miss };
        answer.unwrap_or_else(|| Err(super::manifests::gave_up(remote)))
    }
}

/// The page that the query asks for, and whether it is the last one.
fn page<'a>(tags: &'a [Tag], query: &Query) -> (Vec<&'a str>, bool) {
    let start = query.last.as_deref().map_or(0, |last| tags.partition_point(|tag| tag.as_str() <= last));
    let count = query.count.unwrap_or(usize::MAX).min(tags.len() - start);
    let page = &tags[start..start + count];
    (page.iter().map(Tag::as_str).collect(), start + count == tags.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_on_after_the_last_entry_whether_it_exists_or_not() {
        let tags: Vec<Tag> =
            ["a", "b", "c", "d"].into_iter().map(|tag| tag.parse().expect("valid")).collect();
        let query =
            |count, last: Option<&str>| Query { count, last: last.map(str::to_owned), ..Query::default() };
        let cases = [
            (query(None, None), vec!["a", "b", "c", "d"], true),
            (query(Some(2), None), vec!["a", "b"], false),
            (query(Some(2), Some("b")), vec!["c", "d"], true),
            (query(Some(9), Some("bb")), vec!["c", "d"], true),
            (query(Some(0), None), vec![], false),
            (query(None, Some("d")), vec![], true),
        ];
        for (query, expected, is_last) in cases {
            assert_eq!(page(&tags, &query), (expected, is_last), "{query:?}");
        }
    }
}
