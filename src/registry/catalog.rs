//! `GET /v2/_catalog`: the repositories that are held, in the order of their bytes, in pages.
//!
//! Each name is one that can be pulled as it stands here. What was pushed has its own name. What was fetched is shown
//! as `<upstream>/<repository>`, the way it is stored, which names that upstream whichever one is the default; the
//! default one's plain names would work too, but mean something else once another upstream is the default or something
//! is pushed under the same name. Of an upstream that is no longer configured nothing is shown: its first component would
//! be taken for a part of a name at the default one. With `ns=` the catalog is that upstream's, under its own names.
//!
//! Upstreams' own catalogs are not asked: the large ones have none, and what is there but was never pulled is not ours
//! to list.

use http::{Response, request};
use serde_json::json;

use super::blobs::disk_error;
use super::namespace::Registry;
use super::paging;
use super::respond::ApiError;
use super::route::Query;
use crate::body::Body;
use crate::store::Page;

/// Repositories in a page unless the client says otherwise: as many as distribution ever gives.
const COUNT_DEFAULT: usize = 1000;
/// Repositories in a page at most: each costs a few looks at the disk.
const COUNT_MAX: usize = 10_000;

impl Registry {
    pub(super) async fn catalog(
        &self,
        head: &request::Parts,
        query: &Query,
    ) -> Result<Response<Body>, ApiError> {
        let count = query.count.unwrap_or(COUNT_DEFAULT).min(COUNT_MAX);
        let held = self.held(query, count).await?;
        let last = held.entries.last().filter(|_| held.more).map(String::as_str);
        paging::page(head, "/v2/_catalog", &json!({ "repositories": held.entries }), query, count, last)
    }

    async fn held(&self, query: &Query, count: usize) -> Result<Page<String>, ApiError> {
        let failed = |error| disk_error("list repositories", &error);
        let last = query.last.as_deref();
        if let Some(namespace) = &query.namespace {
            let directory = self.directory(namespace)?;
            let last = last.map(|last| format!("{directory}/{last}"));
            let page = self.cache.repositories(Some(directory), last.as_deref(), count).await;
            let mut page = page.map_err(failed)?;
            for name in &mut page.entries {
                name.drain(..=directory.len());
            }
            return Ok(page);
        }
        let mut page = self.local.repositories(None, last, count).await.map_err(failed)?;
        for directory in self.directories() {
            let fetched = self.cache.repositories(Some(directory), last, count).await.map_err(failed)?;
            page = page.union(fetched, count);
        }
        Ok(page)
    }
}
