//! What is under way, and what was found on the way: one thing at a time per digest, and where the target has which blob.

use std::cell::{Cell, RefCell};
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

/// Where the target has blobs. What was seen in this run is believed: it need not be asked for. What was seen in an earlier
/// one may have been removed since, and is only where to mount from.
#[derive(Debug, Default)]
pub(super) struct Places {
    known: RefCell<HashMap<Digest, Vec<Place>>>,
    run: Cell<u64>,
}

/// A repository that had a blob, and the run in which it was seen to.
#[derive(Debug)]
struct Place {
    repository: Rc<RepositoryName>,
    run: u64,
}

impl Places {
    /// What was noted until now is of an earlier run.
    pub(super) fn begin_run(&self) {
        self.run.set(self.run.get() + 1);
    }

    /// Takes note that a repository has a blob.
    pub(super) fn note(&self, digest: &Digest, repository: &Rc<RepositoryName>) {
        let mut places = self.known.borrow_mut();
        if places.len() >= PLACES_MAX && !places.contains_key(digest) {
            return;
        }
        let (known, run) = (places.entry(*digest).or_default(), self.run.get());
        if let Some(place) = known.iter_mut().find(|place| place.repository == *repository) {
            place.run = run;
        } else if known.len() < REPOSITORIES_MAX {
            known.push(Place { repository: Rc::clone(repository), run });
        }
    }

    /// Forgets where a blob is: it was not there.
    pub(super) fn forget(&self, digest: &Digest) {
        self.known.borrow_mut().remove(digest);
    }

    /// Whether this repository was seen to have it in this run.
    pub(super) fn is_in(&self, digest: &Digest, repository: &RepositoryName) -> bool {
        self.place(digest, repository) == Some(self.run.get())
    }

    /// Another repository that had it, to mount it from; `None` too if this one had it in an earlier run, and is to be
    /// asked whether it still has.
    pub(super) fn to_mount_from(
        &self,
        digest: &Digest,
        repository: &RepositoryName,
    ) -> Option<Rc<RepositoryName>> {
        if self.place(digest, repository).is_some() {
            return None;
        }
        let known = self.known.borrow();
        let newest = known.get(digest)?.iter().max_by_key(|place| place.run)?;
        Some(Rc::clone(&newest.repository))
    }

    /// The last run in which a repository was seen to have it.
    fn place(&self, digest: &Digest, repository: &RepositoryName) -> Option<u64> {
        let known = self.known.borrow();
        known.get(digest)?.iter().find(|place| *place.repository == *repository).map(|place| place.run)
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

    #[test]
    fn what_an_earlier_run_saw_is_only_where_to_mount_from() {
        let places = Places::default();
        let digest = Digest::of(Algorithm::Sha256, b"");
        let [first, second]: [Rc<RepositoryName>; 2] =
            ["first", "second"].map(|name| Rc::new(name.parse().expect("a name")));
        places.begin_run();
        places.note(&digest, &first);
        assert!(places.is_in(&digest, &first) && !places.is_in(&digest, &second));
        assert_eq!(places.to_mount_from(&digest, &second), Some(Rc::clone(&first)));
        places.begin_run();
        assert!(!places.is_in(&digest, &first), "it may be gone");
        assert_eq!(places.to_mount_from(&digest, &first), None, "it is asked first");
        assert_eq!(places.to_mount_from(&digest, &second), Some(Rc::clone(&first)));
        places.note(&digest, &first);
        assert!(places.is_in(&digest, &first));
    }
}
