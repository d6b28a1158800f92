use std::fs;
use std::io::{PipeWriter, Write};
use std::pin::pin;
use std::task::Waker;
use std::thread;

use futures_util::future::join_all;
use rustix::fs::{Advice, fadvise};

use super::*;
use crate::sys::{is_window_resident, probe};

/// Runs a test with a ring on a fresh runtime, if this machine lets us have one.
fn with_ring<F: Future<Output = ()>>(test: impl FnOnce(Ring) -> F) {
    if let Err(reason) = probe() {
        eprintln!("not tested: {reason}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { test(Ring::new().unwrap()).await });
}

fn file_of(len: usize) -> (tempfile::NamedTempFile, Arc<File>) {
    let named = tempfile::NamedTempFile::new().unwrap();
    fs::write(named.path(), vec![7; len]).unwrap();
    let file = Arc::new(File::open(named.path()).unwrap());
    (named, file)
}

/// What tokio-uring 0.5 did not do. An advice always goes to a kernel worker, so its completion comes later and
/// has to be noticed by the driver, whose turn comes although the run queue is never empty.
#[test]
fn ring_completes_while_tasks_are_busy() {
    const MEDIAN_MAX: Duration = Duration::from_millis(20);
    with_ring(|ring| async move {
        let busy = (0..4).map(|_| {
            tokio::spawn(async {
                loop {
                    tokio::task::yield_now().await;
                }
            })
        });
        let busy: Vec<_> = busy.collect();
        let (_named, file) = file_of(1 << 20);
        let mut latencies = Vec::new();
        for _ in 0..101 {
            let begun = Instant::now();
            ring.populate(&file, 0, 1 << 20, 1 << 20).await.unwrap();
            assert_eq!(ring.read(&file, Vec::with_capacity(9), 9, 0).await.unwrap(), [7; 9]);
            latencies.push(begun.elapsed());
        }
        latencies.sort();
        assert!(busy.iter().all(|task| !task.is_finished()));
        busy.iter().for_each(tokio::task::JoinHandle::abort);
        assert!(latencies[50] <= MEDIAN_MAX, "median {:?}, longest {:?}", latencies[50], latencies[100]);
    });
}

/// The ends of a pipe: reading from it is under way until something is written.
fn pipe() -> (Arc<File>, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    (Arc::new(File::from(OwnedFd::from(reader))), writer)
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn an_operation_outlives_its_future_and_keeps_its_permit() {
    with_ring(|ring| async move {
        let (reader, mut writer) = pipe();
        let free = || ring.0.capacity.available_permits();
        assert_eq!(free(), 256);
        {
            let read = pin!(ring.read(&reader, Vec::with_capacity(9), 9, 0));
            assert!(poll_once(read).is_pending());
            assert_eq!(free(), 255);
        }
        assert_eq!(free(), 255, "the future is gone, the operation is not");
        assert_eq!(Arc::strong_count(&reader), 2);
        let mut drained = pin!(ring.drain());
        assert!(poll_once(drained.as_mut()).is_pending());
        writer.write_all(b"x").unwrap();
        drained.await;
        assert_eq!((free(), Arc::strong_count(&reader)), (256, 1));
        assert_eq!(ring.0.state.borrow().slots.entries(), 0);
    });
}

/// A short read is followed by another until there is enough; a future that is not polled meanwhile misses nothing.
#[test]
fn a_future_that_is_kept_aside_finds_its_result() {
    with_ring(|ring| async move {
        let (reader, mut writer) = pipe();
        let mut read = pin!(ring.read(&reader, Vec::with_capacity(9), 5, 0));
        assert!(poll_once(read.as_mut()).is_pending());
        writer.write_all(b"abc").unwrap();
        let (_named, file) = file_of(1 << 20);
        ring.populate(&file, 0, 1 << 20, 1 << 20).await.unwrap();
        writer.write_all(b"defg").unwrap();
        assert_eq!(read.await.unwrap(), b"abcde");
    });
}

#[test]
fn operations_beyond_the_bound_wait_for_their_turn() {
    with_ring(|ring| async move {
        let (reader, mut writer) = pipe();
        // Without the runtime's bound on what one task does at a time.
        let read = || Box::pin(tokio::task::unconstrained(ring.read(&reader, Vec::with_capacity(1), 1, 0)));
        let mut reads: Vec<_> = (0..300).map(|_| read()).collect();
        for read in &mut reads {
            assert!(poll_once(read.as_mut()).is_pending());
        }
        assert_eq!(ring.0.state.borrow().slots.entries(), 256);
        writer.write_all(&[7; 300]).unwrap();
        for result in join_all(reads).await {
            assert_eq!(result.unwrap(), [7]);
        }
    });
}

#[test]
fn dropping_the_ring_waits_for_what_is_under_way() {
    with_ring(|ring| async move {
        let (reader, mut writer) = pipe();
        assert!(poll_once(pin!(ring.read(&reader, Vec::with_capacity(1), 1, 0))).is_pending());
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            writer.write_all(b"x")
        });
        drop(ring);
        assert_eq!(Arc::strong_count(&reader), 1);
        late.join().unwrap().unwrap();
    });
}

#[test]
fn what_never_completes_is_leaked() {
    with_ring(|ring| async move {
        let (reader, _writer) = pipe();
        assert!(poll_once(pin!(ring.read(&reader, Vec::with_capacity(1), 1, 0))).is_pending());
        drop(ring);
        assert_eq!(Arc::strong_count(&reader), 2, "the kernel may still write to the buffer beside it");
    });
}

/// Chains of 32 pieces: the longest has 33 entries, and 3 MiB in pieces of a page need 24 of them.
#[test]
fn a_window_longer_than_a_chain_takes_several() {
    with_ring(|ring| async move {
        let (named, file) = file_of(3 << 20);
        File::open(named.path()).unwrap().sync_all().unwrap();
        fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
        let all = (0..20).map(|_| ring.populate(&file, 1, (3 << 20) - 1, 4096));
        for result in join_all(all).await {
            result.unwrap();
        }
        assert_ne!(is_window_resident(&file, 0, 3 << 20), Some(false));
        assert_eq!(ring.0.capacity.available_permits(), 256);
    });
}

#[test]
fn each_ring_has_a_driver_until_it_is_dropped() {
    with_ring(|first| async move {
        let (_named, file) = file_of(1 << 20);
        let second = Ring::new().unwrap();
        assert_ne!(first.0.id, second.0.id);
        let rings = || RINGS.with_borrow(Vec::len);
        assert_eq!(rings(), 2);
        let driver = first.0.driver.clone();
        drop(first);
        assert_eq!(rings(), 1);
        while !driver.is_finished() {
            tokio::task::yield_now().await;
        }
        second.populate(&file, 0, 1 << 20, 4096).await.unwrap();
    });
}

#[test]
fn a_ring_may_outlive_its_runtime() {
    if probe().is_err() {
        return;
    }
    let (_named, file) = file_of(1 << 20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ring = runtime.block_on(async {
        let ring = Ring::new().unwrap();
        let _ = poll_once(pin!(ring.populate(&file, 0, 1 << 20, 1 << 20)));
        ring
    });
    drop(runtime);
    drop(ring);
    assert_eq!(Arc::strong_count(&file), 1, "dropping waited for the operation");
}
