use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;

use super::*;
use crate::store::ingest::publish_small;
use crate::store::{Layout, StoreOptions};
use crate::sys::uncached::PIECE;

const OPTIONS: ScrubOptions = ScrubOptions { rate: NonZeroU64::MAX, run: Run::Foreground };
const BACKGROUND: ScrubOptions = ScrubOptions { run: Run::Background, ..OPTIONS };

struct Fixture {
    root: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = StoreOptions { handles_max: NonZeroUsize::MIN, evictable: false };
        let store = Store::over(Layout::new(root.path()), options);
        Self { root, store }
    }

    fn hold(&self, algorithm: Algorithm, content: &[u8]) -> Digest {
        let digest = Digest::of(algorithm, content);
        publish_small(self.store.layout(), &digest, content).unwrap();
        digest
    }

    /// Blobs of these many bytes, in the order of their digests.
    fn hold_some(&self, lens: &[usize]) -> Vec<Digest> {
        let content = |(seed, len): (usize, &usize)| {
            let mut content = vec![0; *len];
            fastrand::Rng::with_seed(seed as u64).fill(&mut content);
            content
        };
        let mut all: Vec<_> =
            lens.iter().enumerate().map(content).map(|one| self.hold(Algorithm::Sha256, &one)).collect();
        all.sort_unstable();
        all
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.store.layout().blob(digest)
    }

    /// Changes what is stored under a digest, an hour ago.
    fn rot(&self, digest: &Digest, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path(digest);
        let mut content = fs::read(&path).unwrap();
        change(&mut content);
        fs::write(&path, content).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
    }

    fn run(&self, options: ScrubOptions) -> (Scrubbed, Vec<Event>) {
        let mut events = Vec::new();
        let done = run(&self.store, &options, &Stop::new(), &mut |event| events.push(event)).unwrap();
        (done, events)
    }
}

/// Digests that were found, and what became of them.
fn found(events: &[Event]) -> BTreeMap<Digest, &Finding> {
    let mut found = BTreeMap::new();
    for event in events {
        if let Event::Found(finding) = event {
            found.insert(finding.digest, finding);
        }
    }
    found
}

#[test]
fn what_is_right_stays_and_nothing_is_written() {
    let fixture = Fixture::new();
    let all = fixture.hold_some(&[0, 1, 70_000, PIECE, PIECE + 1]);
    fixture.hold(Algorithm::Sha512, b"long");
    let entries = || fs::read_dir(fixture.root.path()).unwrap().count();
    fs::remove_dir_all(fixture.store.layout().locks()).unwrap();
    let before = entries();
    let (done, events) = fixture.run(OPTIONS);
    let bytes = 1 + 70_000 + PIECE as u64 + PIECE as u64 + 1 + 4;
    assert_eq!(done, Scrubbed { blobs: 6, bytes, complete: true, ..Scrubbed::default() });
    let [Event::Reached(first), .., Event::Reached(last)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*first, Reached::default());
    assert_eq!(*last, Reached { blobs: 6, bytes, share: 1.0 });
    assert_eq!(entries(), before);
    assert!(all.iter().all(|digest| fixture.path(digest).exists()));
}

#[test]
fn one_changed_bit_a_missing_byte_and_one_too_many_are_found() {
    type Change = fn(&mut Vec<u8>);
    for change in [
        |bytes| bytes[2 * PIECE] ^= 1,
        |bytes| bytes.truncate(bytes.len() - 1),
        |bytes| bytes.push(0),
        Vec::clear,
    ] as [Change; 4]
    {
        let fixture = Fixture::new();
        let all = fixture.hold_some(&[100, 2 * PIECE + 7, 5000]);
        let large =
            *all.iter().max_by_key(|digest| fs::metadata(fixture.path(digest)).unwrap().len()).unwrap();
        fixture.rot(&large, change);
        let rotten = fs::read(fixture.path(&large)).unwrap();
        let (done, events) = fixture.run(OPTIONS);
        assert_eq!((done.blobs, done.wrong, done.left, done.unchecked), (3, 1, 0, 0));
        let found = found(&events);
        let Finding { len, cause: Cause::Content(actual), outcome: Outcome::SetAside(path), .. } =
            found[&large]
        else {
            panic!("{found:?}")
        };
        assert_eq!(**actual, Digest::of(Algorithm::Sha256, &rotten));
        assert_eq!((*len, fs::read(path).unwrap()), (rotten.len() as u64, rotten));
        assert!(!fixture.path(&large).exists());
        assert_eq!(all.iter().filter(|digest| fixture.path(digest).exists()).count(), 2);
        assert_eq!(fixture.run(OPTIONS).0.wrong, 0, "once");
    }
}

#[test]
fn what_the_disk_does_not_give_is_set_aside_too() {
    let fixture = Fixture::new();
    let digest = fixture.hold_some(&[10])[0];
    // A file of this process whose first bytes are an I/O error.
    fs::remove_file(fixture.path(&digest)).unwrap();
    symlink(format!("/proc/{}/mem", std::process::id()), fixture.path(&digest)).unwrap();
    let (done, events) = fixture.run(OPTIONS);
    assert_eq!((done.wrong, done.left, done.unchecked), (1, 0, 0), "{events:?}");
    assert!(matches!(found(&events)[&digest].cause, Cause::Unreadable { offset: 0, .. }), "{events:?}");
    assert!(fs::symlink_metadata(fixture.path(&digest)).is_err());
}

#[test]
fn what_cannot_be_looked_at_is_told_and_the_rest_is_looked_at() {
    let fixture = Fixture::new();
    let all = fixture.hold_some(&[10, 20, 30]);
    let prefix = fixture.path(&all[1]).ancestors().nth(2).unwrap().to_owned();
    fs::remove_dir_all(&prefix).unwrap();
    symlink(&prefix, &prefix).unwrap(); // leads in a circle
    fs::remove_file(fixture.path(&all[2])).unwrap();
    fs::create_dir(fixture.path(&all[2])).unwrap();
    let (done, events) = fixture.run(OPTIONS);
    assert_eq!((done.wrong, done.unchecked, done.complete), (0, 2, true));
    let paths: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Unchecked { path, .. } => Some(path.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(paths, [prefix, fixture.path(&all[2])]);
    assert!(fixture.path(&all[2]).exists(), "and let alone");
}

#[test]
fn what_vanishes_meanwhile_and_what_is_no_blob_is_nothing() {
    let fixture = Fixture::new();
    let all = fixture.hold_some(&[10, 20, 30]);
    fs::remove_file(fixture.path(&all[1])).unwrap();
    let blobs = fixture.store.layout().blobs();
    fs::create_dir_all(blobs.join("md5/ab/abcdef")).unwrap();
    fs::create_dir_all(blobs.join("sha256/lost+found/x")).unwrap();
    fs::create_dir_all(blobs.join("sha256/ff").join("0".repeat(64))).unwrap();
    let (done, _) = fixture.run(OPTIONS);
    assert_eq!(done, Scrubbed { blobs: 2, bytes: 40, complete: true, ..Scrubbed::default() });
    let empty = Fixture::new();
    assert_eq!(empty.run(OPTIONS).0, Scrubbed { complete: true, ..Scrubbed::default() });
}

#[test]
fn a_signed_manifest_is_named_by_its_payload() {
    let fixture = Fixture::new();
    let encode = |text: &[u8]| data_encoding::BASE64URL_NOPAD.encode(text);
    let payload = b"{\n   \"schemaVersion\": 1\n}";
    let protected = format!(r#"{{"formatLength":{},"formatTail":"{}"}}"#, payload.len() - 2, encode(b"\n}"));
    let signed = format!(
        r#"{},"signatures":[{{"protected":"{}"}}]}}"#,
        std::str::from_utf8(&payload[..payload.len() - 2]).unwrap(),
        encode(protected.as_bytes())
    );
    let digest = Digest::of(Algorithm::Sha256, payload);
    publish_small(fixture.store.layout(), &digest, signed.as_bytes()).unwrap();
    assert_eq!(fixture.run(OPTIONS).0.wrong, 0);
    assert!(is_right(&fixture.store, &digest).unwrap().unwrap().0);
    fixture.rot(&digest, |bytes| bytes[5] ^= 1);
    assert!(!is_right(&fixture.store, &digest).unwrap().unwrap().0);
    assert_eq!(fixture.run(OPTIONS).0.wrong, 1);
    assert!(is_right(&fixture.store, &digest).unwrap().is_none());
}

#[test]
fn a_hundred_in_a_row_are_not_the_blobs() {
    let fixture = Fixture::new();
    let all = fixture.hold_some(&vec![9; 102]);
    for digest in &all {
        fixture.rot(digest, |bytes| bytes[0] ^= 1);
    }
    let mut wrong = 0;
    let mut count = |event| wrong += u32::from(matches!(event, Event::Found(_)));
    let error = run(&fixture.store, &OPTIONS, &Stop::new(), &mut count).unwrap_err();
    assert!(matches!(error, ScrubError::TooMany(last) if last == all[99]), "{error}");
    assert_eq!(wrong, WRONG_IN_A_ROW_MAX);
    assert!(fixture.path(&all[100]).exists());
}

#[test]
fn a_scrub_in_the_background_goes_on_where_it_was_interrupted() {
    let fixture = Fixture::new();
    let all = fixture.hold_some(&[1; 20]);
    // What lies before the tenth is not looked at again; that is how it shows where a scrub went on.
    let mut progress = Progress::beginning();
    (progress.last, progress.blobs, progress.bytes) = (Some(all[9]), 10, 10);
    progress.save(fixture.store.layout()).unwrap();
    fixture.rot(&all[3], |bytes| bytes[0] ^= 1);
    fixture.rot(&all[15], |bytes| bytes[0] ^= 1);
    let (done, events) = fixture.run(BACKGROUND);
    assert_eq!((done.blobs, done.wrong, done.complete), (20, 1, true));
    assert!(found(&events).contains_key(&all[15]));
    assert!(!fixture.store.layout().scrub_progress().exists(), "it is complete");
    let (done, events) = fixture.run(BACKGROUND);
    assert_eq!((done.blobs, done.wrong), (19, 1), "from the beginning");
    assert!(found(&events).contains_key(&all[3]));
}

#[test]
fn a_scrub_ends_between_two_pieces_and_notes_how_far_it_came() {
    let fixture = Fixture::new();
    let all = fixture.hold_some(&[1; 20]);
    fixture.rot(&all[7], |bytes| bytes[0] ^= 1);
    let stop = Stop::new();
    let mut stopping = |event| {
        if matches!(event, Event::Found(_)) {
            stop.stop();
        }
    };
    let done = run(&fixture.store, &BACKGROUND, &stop, &mut stopping).unwrap();
    assert_eq!((done.blobs, done.complete), (8, false));
    let noted = Progress::load(fixture.store.layout()).unwrap();
    assert_eq!((noted.last, noted.blobs, noted.bytes), (Some(all[7]), 8, done.bytes));
    assert_eq!(fixture.run(BACKGROUND).0.blobs, 20);

    // One that waits for its turn ends as well, without having looked.
    let slow = ScrubOptions { rate: NonZeroU64::MIN, run: Run::Background };
    let (stop, waiting) = (Stop::new(), Fixture::new());
    let digests = waiting.hold_some(&[1, 1]);
    let ended = thread::scope(|scope| {
        let ended = scope.spawn(|| run(&waiting.store, &slow, &stop, &mut drop).unwrap());
        stop.stop();
        ended.join().unwrap()
    });
    assert!(!ended.complete && ended.blobs < digests.len() as u64);
}

#[test]
fn one_scrub_in_the_background_and_as_many_as_are_asked_for() {
    let fixture = Fixture::new();
    fixture.hold_some(&[1]);
    let lock = lock(&fixture.store).unwrap();
    let busy = run(&fixture.store, &BACKGROUND, &Stop::new(), &mut drop);
    assert!(matches!(busy, Err(ScrubError::Busy(root)) if root == fixture.root.path()));
    assert!(fixture.run(OPTIONS).0.complete);
    drop(lock);
    assert!(fixture.run(BACKGROUND).0.complete);
}
