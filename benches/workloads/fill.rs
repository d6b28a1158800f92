//! Joining a fill that is under way, and following it. The origin holds the second half back, so nobody comes to the end.
//!
//! Each further reader should cost the same however many there are, and a step of the fill should cost what its readers
//! cost.

use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use futures_util::future::join_all;
use http::HeaderMap;
use spliceway::fill::{FillError, Flight, Role};
use spliceway::oci::{Algorithm, Digest};
use spliceway::store::StoredRepository;
use spliceway::watermark::{self, Progress};

use crate::worker::{UPSTREAM, Worker, get, next_chunk, repository};
use crate::{MIB, origin};

const LEN: usize = 8 * MIB;

/// A worker that leads a fill of which half is there.
fn filling() -> (Worker, Arc<Flight>) {
    let worker = Worker::before(origin::start(LEN));
    let (flight, role) =
        worker.block_on(async { worker.fills.join(digest(), stored(), worker.source.clone()) });
    assert_eq!(role, Role::Leader);
    worker.block_on(async {
        while flight.progress().readable() < LEN as u64 / 2 {
            assert!(!flight.progress().is_final(), "{:?}", flight.progress());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    (worker, flight)
}

fn stored() -> StoredRepository {
    StoredRepository::cached(UPSTREAM, &repository())
}

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"never reached")
}

/// Finding the fill.
#[divan::bench]
fn join_flight(bencher: Bencher) {
    let (worker, _flight) = filling();
    let (digest, repository) = (digest(), stored());
    worker.block_on(async {
        bencher.bench_local(|| {
            let (flight, role) = worker.fills.join(digest, repository.clone(), worker.source.clone());
            assert_eq!(role, Role::Joined);
            flight
        });
    });
}

/// A request for the blob, up to the first piece of the body, while so many others wait for the rest.
#[divan::bench(args = [0, 1000], min_time = 0.2)]
fn join_and_read(bencher: Bencher, others: usize) {
    let (worker, _flight) = filling();
    let head = get(&digest(), HeaderMap::new());
    worker.block_on(async {
        for _ in 0..others {
            let mut body = worker.respond(head.clone()).await.into_body();
            tokio::task::spawn_local(async move { while next_chunk(&mut body).await.is_some() {} });
        }
        // Each of them has come to where the origin stands still.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
    bencher.with_inputs(|| head.clone()).bench_local_values(|head| {
        worker.block_on(async {
            let mut body = worker.respond(head).await.into_body();
            let first = next_chunk(&mut body).await;
            assert!(first.is_some_and(|first| first.is_ok_and(|chunk| !chunk.is_empty())));
            body
        })
    });
}

/// One step of a fill, until all who wait for it have seen it.
#[divan::bench(args = [1, 16, 256])]
fn tell_readers(bencher: Bencher, readers: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (writer, reader) = watermark::channel::<FillError>();
    let length = Some(u64::MAX);
    let mut written = 0;
    bencher.bench_local(|| {
        let wait = |reader: &watermark::Reader<FillError>| {
            let mut reader = reader.clone();
            async move {
                let enough = |progress: &Progress<FillError>| progress.readable() > written;
                reader.wait_until(enough).await
            }
        };
        let waiting = join_all((0..readers).map(|_| wait(&reader)));
        runtime.block_on(async {
            let advance = async { writer.advance(written + 1, length, None) };
            tokio::join!(waiting, advance)
        });
        written += 1;
    });
}
