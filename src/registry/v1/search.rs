//! `/v1/search?q=`: what the source's index finds, and what `local` has, merged by name.
//!
//! The source is asked with the client's own header fields and query, and its answer is for that client alone: nothing is
//! kept. While it cannot be asked, or finds nothing to say, what is here is the answer.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, Response};

use super::headers::passed_on;
use super::route::is_name;
use super::{Context, LIST_BYTES_MAX, Mirror, Refused, disk_error, documents, read};
use crate::body::Body;
use crate::registry::access_log::{CacheState, Record};
use crate::registry::respond::ApiError;

/// Repositories of `local` that are found at most.
const FOUND_MAX: usize = 1000;
/// Repositories of `local` that are looked at, at most.
const LOOKED_AT_MAX: usize = 100_000;

impl Mirror {
    pub(super) async fn search(
        self: &Arc<Self>,
        context: &Context<'_>,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        record.cache = CacheState::Pass;
        let asker = &context.asker;
        let given = url::form_urlencoded::parse(asker.query.as_deref().unwrap_or_default().as_bytes())
            .find_map(|(key, value)| (key == "q").then(|| value.into_owned()));
        let query = given.unwrap_or_default();
        let (wanted, directory) = (query.to_ascii_lowercase(), self.local.layout().v1_repositories());
        let here = self.local.blocking(move |_| Ok(find(&directory, &wanted)));
        let theirs = async {
            let relayed = self.index.get("/v1/search", asker.query.as_deref(), asker.fields.clone()).await;
            let relayed = relayed.map_err(Refused::Source)?;
            let fields = passed_on(relayed.headers(), context.host());
            let document = read(relayed, LIST_BYTES_MAX).await?;
            self.metrics.fetched(self.index.name(), document.len() as u64);
            Ok::<_, Refused>((fields, document))
        };
        let (here, theirs) = tokio::join!(here, theirs);
        let here = here.map_err(|error| disk_error("search the repositories", &error))?;
        let (mut fields, document) = match theirs {
            Ok((fields, document)) => (fields, Some(document)),
            Err(refused) => {
                tracing::debug!(
                    reason = refused.reason(),
                    "the source does not search: what is here is the answer"
                );
                (HeaderMap::new(), None)
            }
        };
        fields.insert(http::header::CONTENT_TYPE, super::JSON);
        let merged = documents::search(&query, document.as_deref(), &here);
        context.document(merged.into(), fields)
    }
}

/// The repositories whose names contain `wanted`, in order. What cannot be read is not found.
fn find(directory: &Path, wanted: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = LOOKED_AT_MAX;
    'looking: for namespace in names(directory) {
        for name in names(&directory.join(&namespace)) {
            let Some(less) = left.checked_sub(1) else { break 'looking };
            left = less;
            let name = format!("{namespace}/{name}");
            if name.to_ascii_lowercase().contains(wanted) {
                found.push(name);
            }
        }
    }
    found.sort();
    found.truncate(FOUND_MAX);
    found
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().take(LOOKED_AT_MAX).flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_name(name))
        .collect()
}
