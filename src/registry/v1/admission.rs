//! Who may have an image that is held, or is being filled.
//!
//! An image has no repository, and what one client may have is not for another. So the source decides: whoever is given
//! an image's `json` by it may have the image.
//!
//! - **Public** is what the source gives to somebody without credentials, or anything that may be one (see `headers`). That is remembered with the image (the marker
//!   `_public`), for as long as it is held, and ends the matter: it is served to everybody, also while the source is down.
//! - Anything else is served only to a client whose own credentials the source accepts, asked once a minute for each
//!   image and client ([`BELIEVED_FOR`]). While the source cannot be asked, only those are served who were admitted a
//!   moment ago.
//!
//! A client with credentials may ask for what is public, and most do (docker sends a token always): so the source is
//! asked as by nobody first, unless it refused that a moment ago.
//!
//! The question is a GET, because its answer is needed: the json is kept, with what the source says about the layer.
//! Credentials are remembered as a keyed hash, and never logged.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;

use super::headers::Asker;
use super::{BELIEVED_FOR, Mirror, Refused, disk_error, documents, lock, read};
use crate::registry::access::Trace;
use crate::registry::respond::ApiError;
use crate::store::images::{self, ImageFile, ImageId};
use crate::sys::files::Files;

/// Largest json of an image, in bytes.
const JSON_BYTES_MAX: usize = 4 << 20;

/// Who may have an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    Everybody,
    /// The client, and not everybody.
    Client(Trace),
}

impl Audience {
    /// Who asks the source for what belongs to the image: somebody who is sure to get it.
    pub(super) fn fields(self, asker: &Asker) -> HeaderMap {
        match self {
            Self::Everybody => asker.fields_of_nobody(),
            Self::Client(_) => asker.fields.clone(),
        }
    }

    /// The query that is sent with them.
    pub(super) fn query(self, asker: &Asker) -> Option<String> {
        match self {
            Self::Everybody => None,
            Self::Client(_) => asker.query.clone(),
        }
    }

    /// Which askers are alike.
    pub(super) fn trace(self) -> Option<Trace> {
        match self {
            Self::Everybody => None,
            Self::Client(trace) => Some(trace),
        }
    }
}

impl Mirror {
    /// Finds out whether the client may have `image`.
    ///
    /// # Errors
    /// The source refuses it, has no such image, or cannot be asked.
    pub(super) async fn admit(
        self: &Arc<Self>,
        files: &Files,
        asker: &Asker,
        image: &ImageId,
    ) -> Result<Audience, ApiError> {
        let marker = self.cache.layout().image(image, ImageFile::Public);
        let is_public = images::exists(files, &marker).await;
        if is_public.map_err(|error| disk_error("look for an image", &error))? {
            return Ok(Audience::Everybody);
        }
        let path = json_path(image);
        let Some(trace) = asker.trace else {
            let asked = self.ask_for_json(image, asker, Audience::Everybody).await;
            asked.map_err(|refused| refused.into_error(ApiError::image_unknown))?;
            return Ok(Audience::Everybody);
        };
        if self.was_admitted(image, trace) {
            return Ok(Audience::Client(trace));
        }
        if !self.is_private(&path) {
            match self.ask_for_json(image, asker, Audience::Everybody).await {
                Ok(_) => return Ok(Audience::Everybody),
                Err(refused) if !refused.is_for_nobody() => {
                    return Err(refused.into_error(ApiError::image_unknown));
                }
                // Nobody is asked for again next time.
                Err(refused) if refused.is_passing() => {}
                Err(_) => self.remember_private(&path),
            }
        }
        let asked = self.ask_for_json(image, asker, Audience::Client(trace)).await;
        asked.map_err(|refused| refused.into_error(ApiError::image_unknown))?;
        Ok(Audience::Client(trace))
    }

    fn was_admitted(&self, image: &ImageId, trace: Trace) -> bool {
        let mut admitted = lock(&self.admitted);
        admitted.get(&(image.clone(), trace)).is_some_and(|at| at.elapsed() < BELIEVED_FOR)
    }

    /// Asks the source for the json of an image, once for all who ask alike at the same time, and keeps what it says.
    pub(super) async fn ask_for_json(
        self: &Arc<Self>,
        image: &ImageId,
        asker: &Asker,
        audience: Audience,
    ) -> Result<Bytes, Refused> {
        let path = json_path(image);
        let ask = || {
            let (mirror, image, path) = (Arc::clone(self), image.clone(), path.clone());
            let (query, fields) = (audience.query(asker), audience.fields(asker));
            async move { mirror.fetch_json(image, &path, query.as_deref(), fields, audience).await }
        };
        let (answer, _) = self.asked.answer((path.clone(), audience.trace()), ask).await;
        answer.unwrap_or(Err(Refused::Abandoned))
    }

    async fn fetch_json(
        &self,
        image: ImageId,
        path: &str,
        query: Option<&str>,
        fields: HeaderMap,
        audience: Audience,
    ) -> Result<Bytes, Refused> {
        // The same question may have been answered since we looked.
        if let Some(json) = self.settled(&image, audience).await {
            return Ok(json);
        }
        let relayed = self.source.get(path, query, fields).await.map_err(Refused::Source)?;
        let checksum = images::checksum_in(relayed.headers());
        let size = images::size_in(relayed.headers());
        let json = read(relayed, JSON_BYTES_MAX).await?;
        if !documents::is_json_of(&image, &json) {
            tracing::warn!(%image, "the source sends something else than the image's json");
            return Err(Refused::Senseless("something else than the image's json"));
        }
        self.metrics.fetched(self.source.name(), json.len() as u64);
        let (kept, content) = (image.clone(), json.clone());
        let keeping = self.cache.blocking(move |store| {
            let (layout, image) = (store.layout(), kept);
            if !layout.image(&image, ImageFile::Json).try_exists()? {
                if let Some(size) = size {
                    images::put(layout, &image, ImageFile::Size, size.to_string().as_bytes())?;
                }
                if let Some(checksum) = checksum {
                    images::put_checksum(layout, &image, &checksum)?;
                }
                // Last: what is known of an image is known once its json is held.
                images::put(layout, &image, ImageFile::Json, &content)?;
            }
            if audience == Audience::Everybody {
                images::put(layout, &image, ImageFile::Public, b"")?;
            }
            Ok(())
        });
        keeping.await.map_err(|error| {
            disk_error("keep an image's json", &error);
            Refused::Disk
        })?;
        if let Audience::Client(trace) = audience {
            lock(&self.admitted).put((image, trace), Instant::now());
        }
        Ok(json)
    }

    /// The json of an image that is held, if it is known already that the audience may have it.
    async fn settled(&self, image: &ImageId, audience: Audience) -> Option<Bytes> {
        let is_admitted = match audience {
            Audience::Everybody => None,
            Audience::Client(trace) => Some(self.was_admitted(image, trace)),
        };
        let image = image.clone();
        let reading = self.cache.blocking(move |store| {
            let layout = store.layout();
            let is_admitted = match is_admitted {
                Some(is_admitted) => is_admitted,
                None => layout.image(&image, ImageFile::Public).try_exists()?,
            };
            if is_admitted {
                std::fs::read(layout.image(&image, ImageFile::Json)).map(Some)
            } else {
                Ok(None)
            }
        });
        // Whatever is wrong, the source can still be asked.
        reading.await.ok().flatten().map(Bytes::from)
    }
}

fn json_path(image: &ImageId) -> String {
    format!("/v1/images/{image}/json")
}
