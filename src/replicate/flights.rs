//! What is under way, and what was found on the way: one thing at a time per digest, and where the target has which blob.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::oci::{Digest, RepositoryName};

/// Blobs of which it is remembered where they are: 100,000 take about 20 MiB.
const PLACES_MAX: usize = 100_000;
/// Repositories remembered per blob.
const REPOSITORIES_MAX: usize = 8;

/// One undertaking per digest at a time; the others wait, and then find what the first one left.
#[derive(Debug, Default)]
pub(super) struct Flights(RefCell<HashMap<Digest, std::sync::Arc<Mutex<()>>>>);

/// The right to be the one. Given back by dropping it.
pub(super) struct Flight<'a> {
    flights: &'a Flights,
    digest: Digest,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    /// Waits until nobody else is at it.
    pub(super) async fn enter(&self, digest: &Digest) -> Flight<'_> {
        let lock = std::sync::Arc::clone(self.0.borrow_mut().entry(*digest).or_default());
        let guard = lock.lock_owned().await;
        Flight { flights: self, digest: *digest, guard: Some(guard) }
    }
}

impl Flights {
    /// Waits until nobody else is at any of them. They are entered in their order, so that those who need several never
    /// wait for each other in a circle; who has entered some enters no more.
    pub(super) async fn enter_all(&self, digests: impl Iterator<Item = Digest>) -> Vec<Flight<'_>> {
        let ordered: BTreeSet<Digest> = digests.collect();
        let mut entered = Vec::with_capacity(ordered.len());
        for digest in &ordered {
            entered.push(self.enter(digest).await);
        }
        entered
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut flights = self.flights.0.borrow_mut();
        // Ours is gone: whoever else holds it waits for it.
        if flights.get(&self.digest).is_some_and(|lock| std::sync::Arc::strong_count(lock) == 1) {
            flights.remove(&self.digest);
        }
    }
}

/// Where the target is known to have blobs: what is there need not be asked for, and can be mounted from there.
#[derive(Debug, Default)]
pub(super) struct Places(RefCell<HashMap<Digest, Vec<Rc<RepositoryName>>>>);

impl Places {
    /// Takes note that a repository has a blob.
    pub(super) fn note(&self, digest: &Digest, repository: &Rc<RepositoryName>) {
        let mut places = self.0.borrow_mut();
        if places.len() >= PLACES_MAX && !places.contains_key(digest) {
            return;
        }
        let known = places.entry(*digest).or_default();
        if known.len() < REPOSITORIES_MAX && !known.contains(repository) {
            known.push(Rc::clone(repository));
        }
    }

    /// Forgets where a blob is: it was not there.
    pub(super) fn forget(&self, digest: &Digest) {
        self.0.borrow_mut().remove(digest);
    }

    /// Whether this repository is known to have it.
    pub(super) fn is_in(&self, digest: &Digest, repository: &RepositoryName) -> bool {
        self.0.borrow().get(digest).is_some_and(|known| known.iter().any(|known| **known == *repository))
    }

    /// A repository that is known to have it.
    pub(super) fn of(&self, digest: &Digest) -> Option<Rc<RepositoryName>> {
        self.0.borrow().get(digest)?.first().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left() {
        let flights = Flights::default();
        let digest = Digest::of(Algorithm::Sha256, b"");
        let first = flights.enter(&digest).await;
        let second = flights.enter(&digest);
        tokio::pin!(second);
        tokio::select! {
            biased;
            _ = &mut second => panic!("two at a time"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        drop(second.await);
        assert!(flights.0.borrow().is_empty());
    }
}
