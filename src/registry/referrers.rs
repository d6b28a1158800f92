//! `GET /v2/<name>/referrers/<digest>`: the manifests whose subject this is (OCI distribution spec 1.1, "Listing
//! Referrers").
//!
//! The union of three: those that were pushed here, which a directory beside the revisions remembers; those that upstream
//! lists, asked each time; and those that the fallback tag `sha256-<hex>` lists, ours or upstream's, which clients keep
//! where a registry has no such list, as distribution has none. When upstream fails, the list is what is known without.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LINK};
use http::{Method, Response, request};
use serde_json::json;

use super::access_log::Record;
use super::blobs::disk_error;
use super::handler::Worker;
use super::manifests::Found;
use super::namespace::{Registry, Target};
use super::paging::QUERY_VALUE;
use super::respond::ApiError;
use super::route::Query;

use crate::body::Body;
use crate::oci::{Descriptor, Digest, Manifest, Tag, media_type};
use crate::store::{LinkKind, Looked};

const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Referrers of one subject that are considered.
const REFERRERS_MAX: usize = 10_000;
/// Referrers in one answer; more come in pages.
const PAGE_MAX: usize = 500;
/// How long upstream may take for its list.
const PATIENCE: Duration = Duration::from_secs(10);

impl Registry {
    pub(super) async fn referrers(
        self: &Arc<Self>,
        worker: &Worker,
        head: &request::Parts,
        target: &Target,
        subject: &Digest,
        query: &Query,
        record: &mut Record,
    ) -> Result<Response<Body>, ApiError> {
        let mut found = BTreeMap::new();
        if let Some(local) = &target.local {
            let digests = self.local.referrers(local, subject, REFERRERS_MAX).await;
            for digest in digests.map_err(|error| disk_error("list referrers", &error))? {
                let blob = self.local.find(&worker.files, local, LinkKind::Manifest, &digest).await;
                let blob = blob.map_err(|error| disk_error("read a referrer", &error))?.value;
                if let Some(blob) = blob
                    && let Some(manifest) = self.parsed(worker, &blob).await
                    && manifest.subject.as_ref().is_some_and(|named| named.digest == *subject)
                {
                    found.insert(digest.to_string(), described(digest, blob.len, &manifest));
                }
            }
        }
        if let Some(remote) = &target.remote {
            let asking = remote.via.upstream.referrers(&remote.name, subject);
            match tokio::time::timeout(PATIENCE, asking).await {
                Ok(Ok(listed)) => {
                    for descriptor in listed {
                        found.entry(descriptor.digest.to_string()).or_insert(descriptor);
                    }
                }
                Ok(Err(error)) if error.is_absence() => {}
                Ok(Err(error)) => tracing::warn!(
                    repository = %remote.stored, %subject, reason = error.reason(), %error,
                    "upstream does not list referrers: listing what is known without"
                ),
                Err(_) => tracing::warn!(
                    repository = %remote.stored, %subject,
                    "upstream takes too long to list referrers: listing what is known without"
                ),
            }
        }
        for descriptor in self.fallback(worker, target, subject, record).await {
            if self.may_refer(worker, target, &descriptor.digest, subject).await {
                found.entry(descriptor.digest.to_string()).or_insert(descriptor);
            }
        }
        let wanted: HashSet<_> = query.artifact_types.iter().map(String::as_str).collect();
        let matches = |descriptor: &&Descriptor| {
            wanted.is_empty() || descriptor.artifact_type.as_deref().is_some_and(|own| wanted.contains(own))
        };
        let after = query.last.as_deref().unwrap_or_default();
        let mut rest = found.iter().filter(|(digest, _)| digest.as_str() > after);
        let count = query.count.unwrap_or(PAGE_MAX).min(PAGE_MAX);
        let page: Vec<_> =
            rest.by_ref().map(|(_, descriptor)| descriptor).filter(matches).take(count).collect();
        let more = count > 0 && rest.any(|(_, descriptor)| matches(&descriptor));
        let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": page });
        let body = serde_json::to_vec(&index).map_err(|_| ApiError::internal())?;
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        if !wanted.is_empty() {
            headers.insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        if more && let Some(last) = page.last() {
            let escaped = |text: &str| percent_encoding::utf8_percent_encode(text, QUERY_VALUE).to_string();
            let types =
                query.artifact_types.iter().map(|wanted| format!("&artifactType={}", escaped(wanted)));
            let link = format!(
                "</v2/{}/referrers/{subject}?last={}&n={count}{}>; rel=\"next\"",
                target.name,
                escaped(&last.digest.to_string()),
                types.collect::<String>(),
            );
            headers.insert(LINK, HeaderValue::try_from(link).map_err(|_| ApiError::internal())?);
        }
        if head.method == Method::GET {
            *response.body_mut() = Body::bytes(body);
        }
        Ok(response)
    }

    /// Whether a manifest that the fallback tag lists has the subject, or may have it: of one that only upstream holds
    /// there is nothing but the list's word.
    async fn may_refer(&self, worker: &Worker, target: &Target, digest: &Digest, subject: &Digest) -> bool {
        let places = [
            target.local.as_ref().map(|repository| (&self.local, repository)),
            target.remote.as_ref().map(|remote| (&self.cache, &remote.stored)),
        ];
        for (store, repository) in places.into_iter().flatten() {
            let held = store.find(&worker.files, repository, LinkKind::Manifest, digest).await;
            if let Ok(Looked { value: Some(blob), .. }) = held {
                let manifest = self.parsed(worker, &blob).await;
                return manifest
                    .and_then(|manifest| manifest.subject)
                    .is_some_and(|own| own.digest == *subject);
            }
        }
        target.remote.is_some()
    }

    /// What the index behind the fallback tag lists; nothing if there is none.
    async fn fallback(
        self: &Arc<Self>,
        worker: &Worker,
        target: &Target,
        subject: &Digest,
        record: &mut Record,
    ) -> Vec<Descriptor> {
        // A longer digest is cut (OCI distribution spec 1.1, "Referrers Tag Schema").
        let hex = subject.hex();
        let tag = format!("{}-{}", subject.algorithm(), &hex[..hex.len().min(64)]);
        let Ok(tag) = tag.parse::<Tag>() else { return Vec::new() };
        let Ok(tagged) = self.manifest_by_tag(worker, target, &tag, record).await else { return Vec::new() };
        let manifest = match &tagged.found {
            Found::Stored(blob) => self.parsed(worker, blob).await,
            Found::Fetched(fetched) => Manifest::parse(&fetched.bytes, fetched.media_type.as_deref()).ok(),
        };
        manifest.map(|manifest| manifest.manifests).unwrap_or_default()
    }
}

/// The descriptor by which a list of referrers shows a manifest.
fn described(digest: Digest, len: u64, manifest: &Manifest) -> Descriptor {
    Descriptor {
        media_type: Some(manifest.media_type.clone()),
        size: Some(len),
        artifact_type: manifest.referrer_type().map(str::to_owned),
        annotations: manifest.annotations.clone(),
        ..Descriptor::new(digest)
    }
}
