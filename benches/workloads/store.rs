//! What a fill does with the bytes that come. Files are made below `$TMPDIR`: publishing shows that disk's syncs.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use spliceway::oci::{Algorithm, Digest, Hasher};
use spliceway::store::Layout;
use spliceway::store::ingest::{self, Claim, Ingest};
use spliceway::store::pump::Sink as _;
use tempfile::TempDir;

use crate::{KIB, MIB, Size, noise};

/// What the fill receives at a time, about.
const RECEIVED: usize = 128 * KIB;
/// The most that one file grows to.
const FILE_MAX: u64 = 64 * MIB as u64;

#[divan::bench(args = [Algorithm::Sha256, Algorithm::Sha512])]
fn hash_1mib(bencher: Bencher, algorithm: Algorithm) {
    let bytes = noise(MIB);
    let mut hasher = Hasher::new(algorithm);
    bencher.counter(BytesCount::new(MIB)).bench_local(|| hasher.update(&bytes));
}

/// Hashing what was received and writing it to the growing file: what goes to a store thread at once.
#[divan::bench(args = [Size(128 * KIB), Size(2 * MIB)], min_time = 0.2)]
fn write_and_hash(bencher: Bencher, size: Size) {
    let home = TempDir::with_prefix("spliceway-bench-").expect("a temporary directory");
    let layout = Layout::new(home.path());
    let digest = Digest::of(Algorithm::Sha256, b"never reached");
    let chunk = Bytes::from(noise(RECEIVED));
    let batch = vec![chunk; size.0 / RECEIVED];
    let fill = RefCell::new(Some(claim(&layout, &digest)));
    let begin_anew_if_long = || {
        let mut fill = fill.borrow_mut();
        if fill.as_ref().is_some_and(|fill| fill.written() >= FILE_MAX) {
            // Before the next claim, which would take it up where it stopped.
            fill.take().map(Ingest::discard);
            *fill = Some(claim(&layout, &digest));
        }
    };
    bencher.counter(BytesCount::new(size.0)).with_inputs(begin_anew_if_long).bench_local_values(|()| {
        let mut fill = fill.borrow_mut();
        fill.as_mut().expect("it is claimed").append(&batch).expect("our own directory");
    });
}

/// A whole blob from its claim to its durable name.
#[divan::bench(args = [Size(4 * KIB), Size(MIB)], max_time = 2)]
fn publish(bencher: Bencher, size: Size) {
    let home = TempDir::with_prefix("spliceway-bench-").expect("a temporary directory");
    let layout = Layout::new(home.path());
    let count = Cell::new(0_u64);
    let next = || {
        let mut bytes = noise(size.0);
        bytes[..8].copy_from_slice(&count.replace(count.get() + 1).to_le_bytes());
        (Digest::of(Algorithm::Sha256, &bytes), Bytes::from(bytes))
    };
    bencher.counter(BytesCount::new(size.0)).with_inputs(next).bench_local_values(|(digest, bytes)| {
        let mut fill = claim(&layout, &digest);
        fill.append(&[bytes]).expect("our own directory");
        fill.publish().expect("our own directory")
    });
}

fn claim(layout: &Layout, digest: &Digest) -> Ingest {
    match ingest::claim(layout, digest) {
        Ok(Claim::Leader(fill)) => *fill,
        other => panic!("nobody else claims {digest}: {other:?}"),
    }
}
