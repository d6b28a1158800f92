//! `GET /v2/<name>/tags/list`: upstream's tags and ours, in the order of their bytes, in pages.
//!
//! Of what is held only the page is read. Upstream is asked for its whole list (some registries ignore `n` and `last`),
//! and the answer kept for its `tag_ttl`. When upstream fails, the list is what is held.

use std::sync::Arc;

use http::{Response, request};
use serde_json::json;

use super::access_log::{CacheState, Record};
use super::blobs::disk_error;
use super::namespace::{Registry, Remote, Target};
use super::paging;
use super::respond::ApiError;
use super::route::Query;
use crate::body::Body;
use crate::oci::Tag;
use crate::store::Page;
use crate::upstream::UpstreamError;

/// A repository's tags.
pub(super) type TagList = Arc<Vec<Tag>>;

/// Tags in a page at most, whatever the client says, so that an answer stays within a few megabytes. Without `n` the
/// whole list is meant; should it be longer than this, it comes in pages too.
const COUNT_MAX: usize = 100_000;

impl Registry {
    pub(super) async fn tags(
        self: &Arc<Self>,
        head: &request::Parts,
        target: &Target,
        query: &Query,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let count = query.count.unwrap_or(COUNT_MAX).min(COUNT_MAX);
        let tags = self.tag_page(target, query.last.as_deref(), count, record).await?;
        let list = json!({ "name": target.name.as_str(), "tags": tags.entries });
        let last = tags.entries.last().filter(|_| tags.more).map(Tag::as_str);
        paging::page(head, &format!("/v2/{}/tags/list", target.name), &list, query, count, last)
    }

    async fn tag_page(
        self: &Arc<Self>,
        target: &Target,
        last: Option<&str>,
        count: usize,
        record: &mut Record,
    ) -> Result<Page<Tag>, ApiError> {
        let failed = |error| disk_error("list tags", &error);
        let pushed = match &target.local {
            Some(local) => self.local.tags(local, last, count).await.map_err(failed)?,
            None => None,
        };
        let Some(remote) = &target.remote else {
            return pushed.ok_or_else(|| ApiError::name_unknown(&target.name));
        };
        let fetched = match self.upstream_tags(remote, record).await {
            Ok(list) => Some(Page::of(&list, last, count)),
            Err(error) if error.is_absence() => None,
            Err(error) => {
                let held = self.cache.tags(&remote.stored, last, count).await.map_err(failed)?;
                if held.is_none() && pushed.is_none() {
                    return Err(ApiError::upstream(&error, || ApiError::name_unknown(&target.name)));
                }
                tracing::warn!(
                    repository = %remote.stored, reason = error.reason(), %error,
                    "upstream does not list its tags: listing what is held"
                );
                record.cache = CacheState::Stale;
                held
            }
        };
        match (pushed, fetched) {
            (Some(pushed), Some(fetched)) => Ok(pushed.union(fetched, count)),
            (Some(page), None) | (None, Some(page)) => Ok(page),
            (None, None) => Err(ApiError::name_unknown(&target.name)),
        }
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
