//! An upstream that decides itself who gets its content: `client_credentials`.
//!
//! What is held of it is served to a client only if the upstream gives the repository to that client: it is asked by a
//! HEAD, with the client's login and not with ours, or as nobody if the client has none. A yes is remembered for
//! [`ADMITTED_FOR`], by a keyed hash of the login (see [`super::logins`]); a no is not. While the upstream cannot be
//! asked, only those are served who were admitted a moment ago. Who is refused still gets what was pushed here, and hears
//! of a blob that he only looks for that it is not there, as clients do before they push one.
//!
//! Shared by all workers; its locks are held for map operations only. Nothing is kept on disk.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::request;
use lru::LruCache;

use super::challenge::Complaint;
use super::credentials::{Login, Presented};
use super::logins::{Trace, Tracer};
use super::{Access, AccessError, Action, Wish, too_many};
use crate::oci::{Digest, Reference};
use crate::registry::namespace::{Registry, Remote, Target};
use crate::registry::respond::ApiError;
use crate::store::StoredRepository;
use crate::upstream::{Upstream, UpstreamError};

/// How long a client is served after the upstream's yes.
const ADMITTED_FOR: Duration = Duration::from_mins(1);
/// How many yeses are remembered.
const ADMITTED_MAX: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");
/// How many logins the upstream's tokens are kept for.
const CLIENTS_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// What a client wants of a repository.
#[derive(Clone, Copy)]
pub(in crate::registry) enum Wanted<'a> {
    Manifest(&'a Reference),
    Blob(&'a Digest),
    Tags,
}

/// Asks one upstream.
pub struct Gate {
    tracer: Tracer,
    admitted: Mutex<LruCache<(Trace, StoredRepository), Instant>>,
    clients: Mutex<LruCache<Trace, Arc<Upstream>>>,
}

impl Gate {
    /// A gate that has admitted nobody.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new() -> Result<Self, AccessError> {
        Ok(Self {
            tracer: Tracer::new(Path::new("/dev/urandom"))?,
            admitted: Mutex::new(LruCache::new(ADMITTED_MAX)),
            clients: Mutex::new(LruCache::new(CLIENTS_MAX)),
        })
    }

    async fn admit(
        &self,
        access: &Access,
        head: &request::Parts,
        peer: SocketAddr,
        (target, remote): (&Target, &Remote),
        wanted: Wanted<'_>,
    ) -> Result<(), ApiError> {
        let wishes = [Wish { repository: Some(&target.name), action: Action::Pull }];
        let refused = |complaint| access.unauthorized(&head.headers, &wishes, complaint);
        let login = match Presented::read(&head.headers) {
            Presented::Nobody => None,
            Presented::Login(login) => Some(login),
            Presented::Token(_) | Presented::Unreadable => return Err(refused(Complaint::InvalidToken)),
        };
        let trace = self.tracer.trace(login.as_ref());
        if self.is_admitted(&trace, &remote.stored) {
            return Ok(());
        }
        let place = access.throttle.enter(peer).ok_or_else(too_many)?;
        let client = self.client(trace, login.as_ref(), &remote.via.upstream);
        let client = client.ok_or_else(|| refused(Complaint::InvalidToken))?;
        let asked = match wanted {
            Wanted::Manifest(reference) => client.manifest_head(&remote.name, reference).await.map(drop),
            Wanted::Blob(digest) => client.blob_head(&remote.name, digest).await.map(drop),
            Wanted::Tags => client.tags(&remote.name).await.map(drop),
        };
        drop(place);
        match (asked, login) {
            (Ok(()), _) => {
                self.remember(trace, remote.stored.clone());
                Ok(())
            }
            (Err(UpstreamError::Unauthorized { .. } | UpstreamError::Denied { .. }), None) => {
                Err(refused(Complaint::of_nobody(&head.headers)))
            }
            (Err(UpstreamError::Denied { .. }), Some(login)) => {
                let text = format!("upstream denies repository {} to user {:?}", target.name, login.shown());
                Err(ApiError::denied(&text))
            }
            (Err(UpstreamError::Unauthorized { .. }), Some(login)) => {
                tracing::warn!(client = %peer, user = login.shown(), "upstream does not accept a login");
                access.pause(peer).await?;
                Err(refused(Complaint::InvalidToken))
            }
            (Err(error), _) => Err(ApiError::upstream(&error, || match wanted {
                Wanted::Manifest(reference) => ApiError::manifest_unknown(reference),
                Wanted::Blob(digest) => ApiError::blob_unknown(digest),
                Wanted::Tags => ApiError::name_unknown(&target.name),
            })),
        }
    }

    fn is_admitted(&self, trace: &Trace, repository: &StoredRepository) -> bool {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.get(&(*trace, repository.clone())).is_some_and(|at| at.elapsed() < ADMITTED_FOR)
    }

    fn remember(&self, trace: Trace, repository: StoredRepository) {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.put((trace, repository), Instant::now());
    }

    /// The upstream as this client sees it; `None` for a login that cannot be sent.
    fn client(&self, trace: Trace, login: Option<&Login>, upstream: &Upstream) -> Option<Arc<Upstream>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&trace) {
            return Some(Arc::clone(client));
        }
        let login = match login {
            Some(login) => Some((login.user.as_str(), std::str::from_utf8(&login.password).ok()?)),
            None => None,
        };
        let client = Arc::new(upstream.as_seen_by(login)?);
        clients.put(trace, Arc::clone(&client));
        Some(client)
    }
}

impl Registry {
    /// Whether a client may have what is held, or is to be fetched, of the target's upstream; costs nothing unless that
    /// decides itself.
    ///
    /// # Errors
    /// It does not give it to the client (401, 403, 404), or cannot be asked.
    pub(in crate::registry) async fn admit(
        &self,
        head: &request::Parts,
        peer: SocketAddr,
        target: &Target,
        wanted: Wanted<'_>,
    ) -> Result<(), ApiError> {
        let Some(remote) = &target.remote else { return Ok(()) };
        match &remote.via.gate {
            None => Ok(()),
            // In a box, because it is large and rare.
            Some(gate) => Box::pin(gate.admit(&self.access, head, peer, (target, remote), wanted)).await,
        }
    }
}

impl Target {
    /// As it is for those who write: what an upstream gives to some only is not taken over for all.
    pub(in crate::registry) fn for_writing(mut self) -> Self {
        self.remote = self.remote.filter(|remote| remote.via.gate.is_none());
        self
    }
}
