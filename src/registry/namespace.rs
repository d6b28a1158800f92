//! Which repository is meant: the rules by which a name and `ns=` lead to a tree and an upstream.
//!
//! `ns=` names an upstream or one of its aliases (anything else is unknown: this is no open proxy); else the first
//! component of the name may be an upstream's name; else the default upstream is meant. What is fetched is stored as
//! `<upstream's directory>/<canonical repository>`, so equal names of two upstreams never mix.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use ring::hmac;
use tokio::sync::Semaphore;

use super::access::{Access, Gate};
use super::manifests::TagAnswer;
use super::respond::ApiError;
use super::tags::TagList;
use super::v1::Mirror;
use crate::fill::Fills;
use crate::fill::coalesce::Coalesce;
use crate::fill::fetch::Source;
use crate::maintain::repair::{Sources, Supplier};
use crate::metrics::Metrics;
use crate::oci::{Digest, Manifest, Reference, RepositoryName, Tag};
use crate::store::upload::UploadLimits;
use crate::store::{LinkKind, Store, StoredRepository};
use crate::upstream::{BlobHead, FetchedManifest, Upstream, UpstreamError};

/// Absences remembered at most.
const NEGATIVES_MAX: usize = 10_000;
/// For how long an upstream that failed is not asked about tags that are held, at most.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// Tag lists remembered at most.
const LISTS_MAX: usize = 64;

/// What a registry needs to know.
#[derive(Clone, Copy, Debug)]
pub struct RegistryOptions {
    /// A range that begins further ahead of a fill than this many bytes is asked of upstream by itself.
    pub far_range: u64,
    /// More ranges in one request than this are answered by the whole blob.
    pub ranges_max: usize,
    /// The largest manifest, in bytes.
    pub manifest_bytes_max: usize,
    /// The bounds of uploads.
    pub uploads: UploadLimits,
}

/// An upstream as a registry uses it.
pub struct RegistryUpstream {
    /// The client.
    pub upstream: Arc<Upstream>,
    /// The name as in a path and in `ns=`.
    pub name: String,
    /// Further values of `ns=`.
    pub aliases: Vec<String>,
    /// The component under which its repositories are stored.
    pub directory: String,
    /// Whether it is meant where none is named.
    pub default: bool,
    /// How long a tag is served without asking again.
    pub tag_ttl: Duration,
    /// How long an absence is remembered.
    pub negative_ttl: Duration,
    /// Failures in a row that a download overcomes.
    pub retries: u32,
    /// A permit for each fetch that may be under way ([`crate::fill::fetch::TURNS`]).
    pub turns: Arc<Semaphore>,
    /// Asks it whether a client may have its content, with the client's own login.
    pub gate: Option<Gate>,
    /// When asking it about a tag failed the last time: for a moment it is not asked again by those who have an answer.
    pub failed: Mutex<Option<(Instant, UpstreamError)>>,
}

/// One isolated namespace: its trees, its upstreams, and what it remembers.
pub struct Registry {
    /// What clients pushed.
    pub local: Arc<Store>,
    /// What was fetched.
    pub cache: Arc<Store>,
    /// The fills into `cache`.
    pub fills: Arc<Fills>,
    /// Who may do what.
    pub(super) access: Access,
    pub(super) options: RegistryOptions,
    pub(super) metrics: Metrics,
    /// What distribution signs the state of an upload with, if it is to be able to go on with ours.
    pub(super) http_secret: Option<hmac::Key>,
    upstreams: Vec<Arc<RegistryUpstream>>,
    /// The Docker v1 protocol, if it is spoken.
    pub(super) mirror: Option<Arc<Mirror>>,
    pub(super) manifests_asked:
        Coalesce<(StoredRepository, Digest), Result<Arc<FetchedManifest>, UpstreamError>>,
    pub(super) tags_asked: Coalesce<(StoredRepository, Tag), TagAnswer>,
    pub(super) lists_asked: Coalesce<StoredRepository, Result<TagList, UpstreamError>>,
    pub(super) blobs_asked: Coalesce<(StoredRepository, Digest), Result<BlobHead, UpstreamError>>,
    pub(super) links_asked: Coalesce<(StoredRepository, Digest), Result<(), ApiError>>,
    negatives: Mutex<LruCache<(StoredRepository, LinkKind, Reference), Instant>>,
    lists: Mutex<LruCache<StoredRepository, (TagList, Instant)>>,
}

/// A repository as a request means it.
#[derive(Clone)]
pub(super) struct Target {
    /// The name as requested.
    pub(super) name: RepositoryName,
    /// Its place in `local`, unless another registry's repository is meant.
    pub(super) local: Option<StoredRepository>,
    /// Where it comes from.
    pub(super) remote: Option<Remote>,
    /// Why nothing can be pushed to it, if so.
    closed: Option<&'static str>,
}

impl Target {
    /// The place in `local` that a push goes to, and a removal.
    ///
    /// # Errors
    /// It is another registry's repository (403).
    pub(super) fn pushed_to(&self) -> Result<&StoredRepository, ApiError> {
        match (&self.local, self.closed) {
            (Some(local), None) => Ok(local),
            (_, why) => Err(ApiError::push_denied(why.unwrap_or("this repository takes no pushes"))),
        }
    }
}

/// A repository of an upstream.
#[derive(Clone)]
pub(super) struct Remote {
    pub(super) via: Arc<RegistryUpstream>,
    /// Its name there.
    pub(super) name: RepositoryName,
    /// Its place in `cache`.
    pub(super) stored: StoredRepository,
}

impl Registry {
    /// A registry over its trees and upstreams.
    pub fn new(
        options: RegistryOptions,
        access: Access,
        local: Arc<Store>,
        fills: Arc<Fills>,
        upstreams: Vec<RegistryUpstream>,
        http_secret: Option<&str>,
        metrics: Metrics,
    ) -> Self {
        Self {
            local,
            cache: Arc::clone(fills.store()),
            fills,
            access,
            options,
            metrics,
            http_secret: http_secret.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())),
            upstreams: upstreams.into_iter().map(Arc::new).collect(),
            mirror: None,
            manifests_asked: Coalesce::default(),
            tags_asked: Coalesce::default(),
            lists_asked: Coalesce::default(),
            blobs_asked: Coalesce::default(),
            links_asked: Coalesce::default(),
            negatives: Mutex::new(LruCache::new(nonzero(NEGATIVES_MAX))),
            lists: Mutex::new(LruCache::new(nonzero(LISTS_MAX))),
        }
    }

    /// The same, speaking the Docker v1 protocol as well.
    #[must_use]
    pub fn with_mirror(mut self, mirror: Option<Mirror>) -> Self {
        self.mirror = mirror.map(Arc::new);
        self
    }

    /// Where the content of its trees can be had again.
    pub fn sources(&self) -> Sources {
        let suppliers = self.upstreams.iter().map(|via| via.supplier()).collect();
        let (local, fills) = (Arc::clone(&self.local), Arc::clone(&self.fills));
        Sources::new(local, Some(fills), suppliers, self.metrics.clone())
    }

    /// What a repository is called where access to it is decided: with `ns=`, the upstream's name stands before its own,
    /// as it does in a path, since it may be another repository than the one that has the name here.
    pub(super) fn known_as<'a>(
        &self,
        name: &'a RepositoryName,
        namespace: Option<&str>,
    ) -> Result<Cow<'a, RepositoryName>, ApiError> {
        let via = namespace.and_then(|namespace| self.upstreams.iter().find(|via| via.is_called(namespace)));
        // Nothing is found under an unknown namespace.
        let Some(via) = via else { return Ok(Cow::Borrowed(name)) };
        let whole = format!("{}/{name}", via.directory).parse();
        whole.map(Cow::Owned).map_err(|error| ApiError::name_invalid(&error))
    }

    /// What `name` means, with `ns=` if it was given.
    pub(super) fn target(&self, name: &RepositoryName, namespace: Option<&str>) -> Result<Target, ApiError> {
        if let Some(namespace) = namespace {
            let via = self.upstreams.iter().find(|via| via.is_called(namespace));
            let via = via.ok_or_else(|| ApiError::namespace_unknown(namespace))?;
            let closed = Some("what `ns=` names is another registry's: push without it");
            return Ok(Target {
                name: name.clone(),
                local: None,
                remote: Some(Remote::new(via, name)),
                closed,
            });
        }
        let local = Some(StoredRepository::local(name));
        if let Some((first, rest)) = name.as_str().split_once('/')
            && let Some(via) = self.upstreams.iter().find(|via| via.name == first || via.directory == first)
            && let Ok(rest) = rest.parse()
        {
            let closed = Some("names that begin with an upstream's name are the upstream's");
            return Ok(Target { name: name.clone(), local, remote: Some(Remote::new(via, &rest)), closed });
        }
        let via = self.upstreams.iter().find(|via| via.default);
        Ok(Target { name: name.clone(), local, remote: via.map(|via| Remote::new(via, name)), closed: None })
    }

    /// The directories of `cache` that hold what clients can ask for.
    pub(super) fn directories(&self) -> impl Iterator<Item = &str> {
        self.upstreams.iter().map(|via| via.directory.as_str())
    }

    /// The directory of `cache` that holds what clients can ask for with `ns=`.
    pub(super) fn directory(&self, namespace: &str) -> Result<&str, ApiError> {
        let via = self.upstreams.iter().find(|via| via.is_called(namespace));
        via.map(|via| via.directory.as_str()).ok_or_else(|| ApiError::namespace_unknown(namespace))
    }

    /// Whether upstream said lately that it does not have this.
    pub(super) fn is_known_absent(&self, remote: &Remote, kind: LinkKind, reference: &Reference) -> bool {
        let mut negatives = self.negatives.lock().unwrap_or_else(PoisonError::into_inner);
        let said = negatives.get(&(remote.stored.clone(), kind, reference.clone()));
        said.is_some_and(|said| said.elapsed() < remote.via.negative_ttl)
    }

    /// Upstream says that it does not have this.
    pub(super) fn remember_absent(&self, remote: &Remote, kind: LinkKind, reference: &Reference) {
        let mut negatives = self.negatives.lock().unwrap_or_else(PoisonError::into_inner);
        negatives.put((remote.stored.clone(), kind, reference.clone()), Instant::now());
    }

    /// Remembers what a manifest says about the sizes of its repository's blobs.
    pub(super) fn remember_sizes(&self, repository: &StoredRepository, manifest: &Manifest) {
        let sizes = manifest.blobs().filter_map(|blob| Some((blob.digest, blob.size?)));
        self.fills.remember_sizes(repository, sizes);
    }

    /// A tag list that was fetched at most `ttl` ago.
    pub(super) fn known_list(&self, remote: &Remote) -> Option<TagList> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let (list, fetched) = lists.get(&remote.stored)?;
        (fetched.elapsed() < remote.via.tag_ttl).then(|| Arc::clone(list))
    }

    /// Remembers a tag list.
    pub(super) fn remember_list(&self, remote: &Remote, list: TagList) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.put(remote.stored.clone(), (list, Instant::now()));
    }
}

impl RegistryUpstream {
    /// The same for repair, with the same connections, tokens and turns.
    pub fn supplier(&self) -> Supplier {
        Supplier {
            upstream: Arc::clone(&self.upstream),
            directory: self.directory.clone(),
            default: self.default,
            retries: self.retries,
            turns: Arc::clone(&self.turns),
        }
    }

    /// Notes how it answered about a tag. What only concerns one repository is no failure of the upstream.
    pub(super) fn note(&self, error: Option<&UpstreamError>) {
        let failure = error.filter(|error| {
            matches!(
                error,
                UpstreamError::Connect { .. }
                    | UpstreamError::Timeout { .. }
                    | UpstreamError::Broken { .. }
                    | UpstreamError::ServerError { .. }
            )
        });
        let failed = failure.map(|error| (Instant::now(), error.clone()));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }

    /// With what it failed a moment ago, if it did.
    pub(super) fn just_failed(&self) -> Option<UpstreamError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, error) = failed.as_ref()?;
        (at.elapsed() < self.tag_ttl.min(FAILURE_PAUSE)).then(|| error.clone())
    }

    fn is_called(&self, namespace: &str) -> bool {
        self.name == namespace || self.aliases.iter().any(|alias| alias == namespace)
    }
}

impl Remote {
    fn new(via: &Arc<RegistryUpstream>, name: &RepositoryName) -> Self {
        let name = via.upstream.canonical(name);
        let stored = StoredRepository::cached(&via.directory, &name);
        Self { via: Arc::clone(via), name, stored }
    }

    /// Where its blobs are fetched from.
    pub(super) fn source(&self, metrics: &Metrics) -> Source {
        Source {
            upstream: Arc::clone(&self.via.upstream),
            repository: self.name.clone(),
            retries: self.via.retries,
            turns: Arc::clone(&self.via.turns),
            metrics: metrics.clone(),
        }
    }
}

fn nonzero(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN)
}
