//! `/v1/repositories/<namespace>/<name>/{images,tags,tags/<tag>,json}`.
//!
//! What `local` has is served as it is; for the rest the source is asked, the index for lists of images. Those lists, and a
//! repository's json, come with tokens and cookies of the client's own: they are passed on and never kept.
//!
//! **Tags are kept on disk** if the source gives them to somebody without credentials, in the answer's own words
//! (`repositories/<namespace>/<name>/_tags.json`, `_tag_<tag>.json`; the time of the last change is when the source said
//! so), and for everybody: without asking again for `tags_cache_ttl`, and longer while the source fails. So they are
//! bounded by what the source has. Tags of private repositories are kept in memory, for the client that was given them
//! and for [`BELIEVED_FOR`](super::BELIEVED_FOR) at most.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::Response;
use http::header::{HeaderMap, HeaderValue, WARNING};

use super::admission::Audience;
use super::headers::{ENDPOINTS, passed_on};
use super::route::{Resource, V1Name, is_name};
use super::{BELIEVED_FOR, Context, LIST_BYTES_MAX, Mirror, Refused, disk_error, documents, lock, read};
use crate::body::Body;
use crate::registry::access::Trace;
use crate::registry::access_log::{CacheState, Record};
use crate::registry::respond::ApiError;
use crate::store::Layout;
use crate::store::images::{self, ImageId};
use crate::upstream::Relay;

/// Largest answer about tags that is kept, in bytes.
const TAGS_BYTES_MAX: usize = 4 << 20;
/// Largest private one, which is kept in memory, in bytes.
const PRIVATE_TAGS_BYTES_MAX: usize = 64 << 10;
/// Tags of a repository in `local` that are listed at most.
const TAGS_MAX: usize = 100_000;
/// Largest document of a repository in `local` that is read, in bytes.
const LOCAL_BYTES_MAX: u64 = 16 << 20;
/// A file that holds an id is not longer, in bytes.
const TAG_BYTES_MAX: u64 = 256;
/// For how long a source that failed is not asked by those who have an answer.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// RFC 7234 section 5.5.1.
const STALE: HeaderValue = HeaderValue::from_static("110 - \"Response is Stale\"");

/// An answer of the source that was kept.
pub(super) struct Kept {
    content: Bytes,
    /// When the source said so.
    at: SystemTime,
}

impl Mirror {
    pub(super) async fn repository(
        self: &Arc<Self>,
        context: &Context<'_>,
        name: &V1Name,
        resource: &Resource,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        if let Some(content) = self.local_resource(name, resource).await? {
            record.cache = CacheState::Hit;
            let mut fields = HeaderMap::new();
            if *resource == Resource::Images
                && let Some(host) = context.host()
            {
                fields.insert(ENDPOINTS, host.clone());
            }
            return context.document(content.into(), fields);
        }
        let path = name.path(resource);
        match resource {
            Resource::Images => self.pass(context, &self.index, &path, record).await,
            Resource::Json => self.pass(context, &self.source, &path, record).await,
            Resource::Tags | Resource::Tag(_) => {
                let kept = kept_path(self.cache.layout(), name, resource);
                self.tags(context, Tags { path, kept, resource }, record).await
            }
        }
    }

    /// What `local` says, if it says something.
    async fn local_resource(&self, name: &V1Name, resource: &Resource) -> Result<Option<Vec<u8>>, ApiError> {
        let (directory, resource) = (directory(self.local.layout(), name), resource.clone());
        let reading = self.local.blocking(move |_| match &resource {
            Resource::Images => read_json(&directory.join("_index_images")),
            Resource::Json => read_json(&directory.join("json")),
            Resource::Tags => Ok(read_tags(&directory)?.map(|tags| documents::tags(&tags))),
            Resource::Tag(tag) => {
                let image = read_tag(&directory.join(format!("tag_{tag}")))?;
                Ok(image.map(|image| format!("\"{image}\"").into_bytes()))
            }
        });
        reading.await.map_err(|error| disk_error("read a repository", &error))
    }

    /// Passes the source's answer on, with what is the client's own in it.
    async fn pass(
        &self,
        context: &Context<'_>,
        relay: &Relay,
        path: &str,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        record.cache = CacheState::Pass;
        let asker = &context.asker;
        let absent = ApiError::v1_repository_unknown;
        let relayed = relay.get(path, asker.query.as_deref(), asker.fields.clone()).await;
        let relayed = relayed.map_err(|refusal| ApiError::source(&refusal, absent))?;
        let fields = passed_on(relayed.headers(), context.host());
        let document = read(relayed, LIST_BYTES_MAX).await.map_err(|refused| refused.into_error(absent))?;
        self.metrics.fetched(relay.name(), document.len() as u64);
        context.document(document, fields)
    }

    async fn tags(
        self: &Arc<Self>,
        context: &Context<'_>,
        tags: Tags<'_>,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let kept = read_kept(context, &tags.kept).await;
        let kept = kept.map_err(|error| disk_error("read tags that were kept", &error))?;
        let is_current = |kept: &Kept| kept.at.elapsed().unwrap_or_default() < self.tags_cache_ttl;
        if let Some(kept) = kept.as_ref().filter(|kept| is_current(kept)) {
            record.cache = CacheState::Hit;
            return context.document(kept.content.clone(), HeaderMap::new());
        }
        if let Some(kept) = kept.as_ref().filter(|_| self.just_failed()) {
            return self.stale(context, kept, record);
        }
        let trace = context.asker.trace;
        if let Some(content) = trace.and_then(|trace| self.known_private_tags(trace, &tags.path)) {
            record.cache = CacheState::Hit;
            return context.document(content, HeaderMap::new());
        }
        record.cache = CacheState::Miss;
        if let Some(trace) = trace.filter(|_| self.is_private(&tags.path)) {
            return self.private_tags(context, &tags, trace).await;
        }
        let refused = match self.ask_for_tags(context, &tags, None).await {
            Ok(content) => return context.document(content, HeaderMap::new()),
            Err(refused) => refused,
        };
        if refused.is_passing() {
            if let Some(kept) = kept {
                *lock(&self.failed) = Some(Instant::now());
                return self.stale(context, &kept, record);
            }
            return match trace.filter(|_| refused.is_for_nobody()) {
                Some(trace) => self.private_tags(context, &tags, trace).await,
                None => Err(tags.error(refused)),
            };
        }
        // Not for nobody any more, if it ever was.
        if kept.is_some() {
            self.forget(&tags.kept).await;
        }
        let Some(trace) = trace else { return Err(tags.error(refused)) };
        self.remember_private(&tags.path);
        self.private_tags(context, &tags, trace).await
    }

    /// The source's answer to the client itself.
    async fn private_tags(
        self: &Arc<Self>,
        context: &Context<'_>,
        tags: &Tags<'_>,
        trace: Trace,
    ) -> Result<Response<Body>, ApiError> {
        let content = self.ask_for_tags(context, tags, Some(trace)).await;
        let content = content.map_err(|refused| tags.error(refused))?;
        self.remember_private_tags(trace, &tags.path, &content);
        context.document(content, HeaderMap::new())
    }

    /// Serves what was kept although it is old, because the source cannot be asked.
    fn stale(
        &self,
        context: &Context<'_>,
        kept: &Kept,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        record.cache = CacheState::Stale;
        self.metrics.stale_served();
        context.document(kept.content.clone(), HeaderMap::from_iter([(WARNING, STALE)]))
    }

    /// Asks the source, as the client or as nobody, once for all who ask alike; what nobody is given is kept.
    async fn ask_for_tags(
        self: &Arc<Self>,
        context: &Context<'_>,
        tags: &Tags<'_>,
        trace: Option<Trace>,
    ) -> Result<Bytes, Refused> {
        let ask = || {
            let asker = &context.asker;
            let audience = trace.map_or(Audience::Everybody, Audience::Client);
            let (query, fields) = (audience.query(asker), audience.fields(asker));
            let (mirror, path) = (Arc::clone(self), tags.path.clone());
            let kept = trace.is_none().then(|| tags.kept.clone());
            let is_right =
                if *tags.resource == Resource::Tags { documents::is_tags } else { documents::is_tag };
            async move {
                // The same question may have been answered since we looked.
                if let Some(kept) = kept.clone()
                    && let Ok(Some(content)) = mirror.current(kept).await
                {
                    return Ok(content);
                }
                let relayed = mirror.source.get(&path, query.as_deref(), fields).await;
                let content = read(relayed.map_err(Refused::Source)?, TAGS_BYTES_MAX).await?;
                if !is_right(&content) {
                    tracing::warn!(path, "the source sends something else than tags");
                    return Err(Refused::Senseless("something else than tags"));
                }
                mirror.metrics.fetched(mirror.source.name(), content.len() as u64);
                if let Some(kept) = kept {
                    mirror.keep(kept, content.clone()).await;
                }
                Ok(content)
            }
        };
        let (answer, _) = self.asked.answer((tags.path.clone(), trace), ask).await;
        answer.unwrap_or(Err(Refused::Abandoned))
    }

    /// What was kept, if it need not be asked for again.
    async fn current(&self, path: PathBuf) -> io::Result<Option<Bytes>> {
        let ttl = self.tags_cache_ttl;
        let reading = self.cache.blocking(move |_| {
            let is_current = fs::metadata(&path)?.modified()?.elapsed().unwrap_or_default() < ttl;
            if is_current { fs::read(path).map(Some) } else { Ok(None) }
        });
        Ok(reading.await?.map(Bytes::from))
    }

    async fn keep(&self, path: PathBuf, content: Bytes) {
        let keeping = self.cache.blocking(move |store| images::keep_answer(store.layout(), &path, &content));
        if let Err(error) = keeping.await {
            tracing::warn!(%error, "cannot keep tags: they will be asked for again");
        }
    }

    async fn forget(&self, path: &Path) {
        let path = path.to_owned();
        if let Err(error) = self.cache.blocking(move |_| images::forget_answer(&path)).await {
            tracing::warn!(%error, "cannot forget tags that are gone");
        }
    }

    fn known_private_tags(&self, trace: Trace, path: &str) -> Option<Bytes> {
        let mut known = lock(&self.private_tags);
        let (content, at) = known.get(&(trace, path.to_owned()))?;
        (at.elapsed() < self.tags_cache_ttl.min(BELIEVED_FOR)).then(|| content.clone())
    }

    fn remember_private_tags(&self, trace: Trace, path: &str, content: &Bytes) {
        if content.len() <= PRIVATE_TAGS_BYTES_MAX {
            let answer = (Bytes::copy_from_slice(content), Instant::now());
            lock(&self.private_tags).put((trace, path.to_owned()), answer);
        }
    }

    fn just_failed(&self) -> bool {
        lock(&self.failed).is_some_and(|at| at.elapsed() < self.tags_cache_ttl.min(FAILURE_PAUSE))
    }
}

/// Tags, or one, that are asked for.
struct Tags<'a> {
    /// Where the source has them.
    path: String,
    /// Where they are kept.
    kept: PathBuf,
    resource: &'a Resource,
}

impl Tags<'_> {
    fn error(&self, refused: Refused) -> ApiError {
        refused.into_error(if *self.resource == Resource::Tags {
            ApiError::v1_repository_unknown
        } else {
            ApiError::v1_tag_unknown
        })
    }
}

async fn read_kept(context: &Context<'_>, path: &Path) -> io::Result<Option<Kept>> {
    let files = &context.worker.files;
    let Some((file, stat)) = images::look(files, path).await? else { return Ok(None) };
    let Ok(len) = usize::try_from(stat.len) else { return Ok(None) };
    let content = files.read_small(&file, len.min(TAGS_BYTES_MAX)).await?;
    Ok((content.len() == len).then_some(Kept { content, at: stat.mtime }))
}

fn directory(layout: &Layout, name: &V1Name) -> PathBuf {
    let mut path = layout.v1_repositories();
    path.extend([&name.namespace, &name.name]);
    path
}

fn kept_path(layout: &Layout, name: &V1Name, resource: &Resource) -> PathBuf {
    let file = match resource {
        Resource::Tag(tag) => format!("_tag_{tag}.json"),
        _ => "_tags.json".to_owned(),
    };
    directory(layout, name).join(file)
}

/// The tags in a repository of docker-registry; `None` if there are none.
fn read_tags(directory: &Path) -> io::Result<Option<BTreeMap<String, ImageId>>> {
    let Some(entries) = absent(fs::read_dir(directory))? else { return Ok(None) };
    let mut tags = BTreeMap::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(tag) = name.to_str().and_then(|name| name.strip_prefix("tag_")) else { continue };
        if is_name(tag)
            && tags.len() < TAGS_MAX
            && let Some(image) = read_tag(&directory.join(&name))?
        {
            tags.insert(tag.to_owned(), image);
        }
    }
    Ok((!tags.is_empty()).then_some(tags))
}

fn read_tag(path: &Path) -> io::Result<Option<ImageId>> {
    let content = read_file(path, TAG_BYTES_MAX)?;
    Ok(content.and_then(|content| String::from_utf8(content).ok()?.trim().parse().ok()))
}

/// A file that is JSON, as far as its first byte says.
fn read_json(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let content = read_file(path, LOCAL_BYTES_MAX)?;
    Ok(content.filter(|content| matches!(content.trim_ascii_start().first(), Some(b'{' | b'['))))
}

/// A regular file's content; `None` if there is none, or it is longer than `limit` bytes.
fn read_file(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(meta) = absent(fs::metadata(path))? else { return Ok(None) };
    if !meta.is_file() || meta.len() > limit {
        return Ok(None);
    }
    let Some(file) = absent(fs::File::open(path))? else { return Ok(None) };
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content)?;
    Ok(Some(content))
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        result => result.map(Some),
    }
}
