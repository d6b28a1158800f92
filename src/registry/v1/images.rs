//! `GET` and `HEAD /v1/images/<id>/{layer,json,ancestry}`.
//!
//! What `local` has is served as it is, unless docker-registry is writing it (`_inprogress`). Everything else needs the
//! source's leave (`admission`), which comes before any other answer, 304 included. What is held is a hit; a layer that is
//! not is filled, and the answer follows the fill. An image never changes under its id.

use std::fs::File;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, LAST_MODIFIED, LOCATION};
use http::{Method, Response, StatusCode, Version};

use super::admission::Audience;
use super::route::ImagePart;
use super::{Context, JSON, Mirror, Refused, disk_error, documents, read};
use crate::body::Body;
use crate::fill::Role;
use crate::fill::body::Wanted;
use crate::fill::layer::{self, LayerFlight, LayerSource};
use crate::http::conditional::{self, Precondition, Validators};
use crate::oci::{Digest, media_type};
use crate::registry::access_log::{CacheState, Record};
use crate::registry::deliver::{Part, Plain, deliver_plain};
use crate::registry::respond::ApiError;
use crate::store::images::{self, CHECKSUM_PAYLOAD, ImageFile, ImageId, SIZE};
use crate::store::{Store, on_store_thread};
use crate::sys::files::{Files, Stat};
use crate::watermark::{HELD_BACK, Progress};

/// A year.
const PUBLIC: HeaderValue = HeaderValue::from_static("public, max-age=31536000");
/// As long, but not in a cache that others share.
const PRIVATE: HeaderValue = HeaderValue::from_static("private, max-age=31536000");
/// It never changed.
const VALIDATORS: Validators<'static> =
    Validators { etag: None, last_modified: Some(SystemTime::UNIX_EPOCH) };
const EPOCH: HeaderValue = HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT");
/// Largest ancestry, in bytes.
const ANCESTRY_BYTES_MAX: usize = 1 << 20;
/// A file that says one thing about an image is not longer, in bytes.
const NOTE_BYTES_MAX: usize = 4 << 10;
/// Largest json of an image that is read for its checksum, in bytes: docker-registry in `local` sets no bound.
const JSON_BYTES_MAX: u64 = 16 << 20;

/// An image that the client may have.
struct Admitted<'a> {
    context: &'a Context<'a>,
    image: &'a ImageId,
    part: ImagePart,
    audience: Audience,
    /// The tree that it belongs to.
    store: &'a Arc<Store>,
}

impl Mirror {
    pub(super) async fn image(
        self: &Arc<Self>,
        context: &Context<'_>,
        image: &ImageId,
        part: ImagePart,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let files = &context.worker.files;
        let looked_at = Instant::now();
        let local = self.local.layout();
        let in_progress = images::exists(files, &local.image(image, ImageFile::InProgress)).await;
        if in_progress.map_err(|error| disk_error("look for an image", &error))? {
            return Err(ApiError::image_in_progress());
        }
        let mut admitted =
            Admitted { context, image, part, audience: Audience::Everybody, store: &self.local };
        if let Some(found) = admitted.look().await? {
            record.hit(looked_at);
            return self.send(&admitted, found).await;
        }
        admitted.audience = self.admit(files, &context.asker, image).await?;
        admitted.store = &self.cache;
        if let Some(found) = admitted.look().await? {
            record.cache = CacheState::Hit;
            if admitted.audience == Audience::Everybody {
                record.hit(looked_at);
            }
            return self.send(&admitted, found).await;
        }
        if admitted.is_settled() {
            return admitted.deliver(None, |_| Body::empty()).await;
        }
        match part {
            ImagePart::Layer => self.absent_layer(&admitted, record).await,
            ImagePart::Json => {
                record.cache = CacheState::Miss;
                let json = self.json(&admitted).await?;
                admitted.document(json).await
            }
            ImagePart::Ancestry => {
                record.cache = CacheState::Miss;
                let ancestry = self.ask_for_ancestry(&admitted).await;
                let ancestry = ancestry.map_err(|refused| refused.into_error(ApiError::image_unknown))?;
                admitted.document(ancestry).await
            }
        }
    }

    /// Answers with a file that is held.
    async fn send(
        &self,
        admitted: &Admitted<'_>,
        found: (Arc<File>, Stat),
    ) -> Result<Response<Body>, ApiError> {
        let (file, stat) = found;
        if admitted.part == ImagePart::Layer {
            if let Some(redirect) = self.redirect(admitted) {
                return Ok(redirect);
            }
            if Arc::ptr_eq(admitted.store, &self.cache) {
                images::touch(&file, &stat);
            }
        }
        admitted
            .deliver(Some(stat.len), |part| {
                let (start, len) = match part {
                    Part::Whole => (0, stat.len),
                    Part::Range(range) => (range.start, range.len),
                };
                Body::file(Arc::clone(&file), start, len)
            })
            .await
    }

    /// The answer that sends clients elsewhere for a layer that is held and that everybody may have.
    fn redirect(&self, admitted: &Admitted<'_>) -> Option<Response<Body>> {
        if admitted.audience != Audience::Everybody || !admitted.context.is_open {
            return None;
        }
        let location = self.storage_redirect.as_ref()?;
        let location = format!("{location}images/{}/layer", admitted.image);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::FOUND;
        response.headers_mut().insert(LOCATION, HeaderValue::try_from(location).ok()?);
        Some(response)
    }

    /// A layer that is not held: the answer follows its fill.
    async fn absent_layer(
        self: &Arc<Self>,
        admitted: &Admitted<'_>,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let (context, image) = (admitted.context, admitted.image);
        if context.head.method == Method::HEAD {
            record.cache = CacheState::Pass;
            let current = self.fills.current_layer(image).and_then(|flight| flight.progress().length());
            let len = match current {
                Some(len) => Some(len),
                None => admitted.noted_size().await,
            };
            return admitted.deliver(len, |_| Body::empty()).await;
        }
        let json = self.json(admitted).await?;
        let checksum = admitted.checksum().await;
        let (flight, role) = self.fills.join_layer(image, || LayerSource {
            relay: Arc::clone(&self.source),
            query: admitted.audience.query(&context.asker),
            headers: admitted.audience.fields(&context.asker),
            json,
            checksum,
            turns: Arc::clone(&self.turns),
        });
        match role {
            Role::Leader => {
                record.cache = CacheState::Miss;
                record.received = Some(Arc::clone(&flight.received));
            }
            Role::Joined => record.cache = CacheState::Join,
        }
        follow(admitted, &flight).await
    }

    /// The json of an image that the client may have: it is held as a rule.
    async fn json(self: &Arc<Self>, admitted: &Admitted<'_>) -> Result<Bytes, ApiError> {
        if let Some(json) = admitted.note(ImageFile::Json, JSON_BYTES_MAX).await? {
            return Ok(json);
        }
        let asked = self.ask_for_json(admitted.image, &admitted.context.asker, admitted.audience).await;
        asked.map_err(|refused| refused.into_error(ApiError::image_unknown))
    }

    /// Asks the source for an image's ancestry, once for all who ask alike at the same time, and keeps it.
    async fn ask_for_ancestry(self: &Arc<Self>, admitted: &Admitted<'_>) -> Result<Bytes, Refused> {
        let (audience, asker) = (admitted.audience, &admitted.context.asker);
        let path = format!("/v1/images/{}/ancestry", admitted.image);
        let ask = || {
            let (mirror, image, path) = (Arc::clone(self), admitted.image.clone(), path.clone());
            let (query, fields) = (audience.query(asker), audience.fields(asker));
            async move {
                // The same question may have been answered since we looked.
                let held = mirror.cache.layout().image(&image, ImageFile::Ancestry);
                if let Ok(ancestry) = on_store_thread(move || std::fs::read(held)).await {
                    return Ok(ancestry.into());
                }
                let relayed = mirror.source.get(&path, query.as_deref(), fields).await;
                let ancestry = read(relayed.map_err(Refused::Source)?, ANCESTRY_BYTES_MAX).await?;
                if !documents::is_ancestry_of(&image, &ancestry) {
                    tracing::warn!(%image, "the source sends something else than the image's ancestry");
                    return Err(Refused::Senseless("something else than the image's ancestry"));
                }
                mirror.metrics.fetched(mirror.source.name(), ancestry.len() as u64);
                let content = ancestry.clone();
                let keeping = mirror.cache.blocking(move |store| {
                    images::put(store.layout(), &image, ImageFile::Ancestry, &content)
                });
                if let Err(error) = keeping.await {
                    tracing::error!(%error, "cannot keep an image's ancestry: it is served all the same");
                }
                Ok(ancestry)
            }
        };
        let (answer, _) = self.asked.answer((path.clone(), audience.trace()), ask).await;
        answer.unwrap_or(Err(Refused::Abandoned))
    }
}

/// The answer that follows a fill.
async fn follow(admitted: &Admitted<'_>, flight: &Arc<LayerFlight>) -> Result<Response<Body>, ApiError> {
    let mut progress = flight.started().await;
    let nothing_before_the_verdict = match &progress {
        // A reader would only wait; and an empty body has no byte that could be held back.
        Progress::Growing { length: Some(length), .. } => *length <= HELD_BACK,
        // The end of the connection would be the only end: it must not be mistaken for one before the verdict.
        Progress::Growing { length: None, .. } => admitted.context.head.version < Version::HTTP_11,
        _ => false,
    };
    if nothing_before_the_verdict {
        progress = flight.ended().await;
    }
    if let Progress::Failed(error) = &progress {
        return Err(ApiError::layer(error));
    }
    admitted.deliver(progress.length(), |part| layer::growing(flight, wanted(part))).await
}

impl Admitted<'_> {
    fn files(&self) -> &Files {
        &self.context.worker.files
    }

    /// The part that is asked for, if the tree has it.
    async fn look(&self) -> Result<Option<(Arc<File>, Stat)>, ApiError> {
        let path = self.store.layout().image(self.image, self.part.file());
        let found = images::look(self.files(), &path).await;
        found.map_err(|error| disk_error("open an image", &error))
    }

    /// A small file of the image, if there is one of at most `limit` bytes.
    async fn note(&self, file: ImageFile, limit: u64) -> Result<Option<Bytes>, ApiError> {
        let path = self.store.layout().image(self.image, file);
        let read = async {
            let Some((file, stat)) = images::look(self.files(), &path).await? else { return Ok(None) };
            let Some(len) = usize::try_from(stat.len).ok().filter(|_| stat.len <= limit) else {
                return Ok(None);
            };
            self.files().read_small(&file, len).await.map(Some)
        };
        read.await.map_err(|error| disk_error("read an image", &error))
    }

    /// What is noted of the image beside its parts; what cannot be read is not known.
    async fn known(&self, file: ImageFile) -> Option<Bytes> {
        self.note(file, NOTE_BYTES_MAX as u64).await.ok().flatten()
    }

    async fn checksum(&self) -> Option<Digest> {
        images::checksum_of(&self.known(ImageFile::Checksum).await?)
    }

    /// What the source said that the layer has.
    async fn noted_size(&self) -> Option<u64> {
        std::str::from_utf8(&self.known(ImageFile::Size).await?).ok()?.trim().parse().ok()
    }

    /// How many bytes the layer has.
    async fn size(&self) -> Option<u64> {
        let path = self.store.layout().image(self.image, ImageFile::Layer);
        match self.files().stat(&path).await {
            Ok(stat) => Some(stat.len),
            Err(_) => self.noted_size().await,
        }
    }

    /// The header fields of every part, and those of the json.
    async fn fields(&self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        let is_shared = self.audience == Audience::Everybody && self.context.is_open;
        fields.insert(CACHE_CONTROL, if is_shared { PUBLIC } else { PRIVATE });
        fields.insert(LAST_MODIFIED, EPOCH);
        if self.part == ImagePart::Json {
            if let Some(size) = self.size().await {
                fields.insert(SIZE, HeaderValue::from(size));
            }
            if let Some(checksum) = self.checksum().await
                && let Ok(value) = HeaderValue::try_from(checksum.to_string())
            {
                fields.insert(CHECKSUM_PAYLOAD, value);
            }
        }
        fields
    }

    /// Whether the request's preconditions are the answer, whatever the image has: it never changes.
    fn is_settled(&self) -> bool {
        let outcome = conditional::evaluate(true, &self.context.head.headers, &VALIDATORS, SystemTime::now());
        outcome != Precondition::Proceed
    }

    async fn document(&self, mut content: Bytes) -> Result<Response<Body>, ApiError> {
        self.deliver(Some(content.len() as u64), |_| Body::bytes(std::mem::take(&mut content))).await
    }

    async fn deliver(
        &self,
        len: Option<u64>,
        mut body: impl FnMut(Part) -> Body,
    ) -> Result<Response<Body>, ApiError> {
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = self.fields().await;
        let (media_type, ranges_max) = match self.part {
            ImagePart::Layer => (HeaderValue::from_static(media_type::OCTET_STREAM), self.context.ranges_max),
            ImagePart::Json | ImagePart::Ancestry => (JSON, 0),
        };
        let plain = Plain { validators: VALIDATORS, media_type: &media_type, len, ranges_max };
        deliver_plain(self.context.head, response, &plain, |part| Ok(body(part)))
    }
}

fn wanted(part: Part) -> Wanted {
    match part {
        Part::Whole => Wanted::Whole,
        Part::Range(range) => Wanted::Part(range),
    }
}
