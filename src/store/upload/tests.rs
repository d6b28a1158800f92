use std::fs::FileTimes;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

const LIMITS: UploadLimits =
    UploadLimits { sessions_max: 3, expiry: Duration::from_hours(1), bytes_max: u64::MAX };

struct Fixture {
    layout: Layout,
    repository: StoredRepository,
    _home: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let home = TempDir::new().expect("a directory");
        let repository = StoredRepository::local(&"team/app".parse().expect("valid"));
        Self { layout: Layout::new(home.path()), repository, _home: home }
    }

    fn begin(&self) -> Box<Upload> {
        let begun = Upload::begin(&self.layout, &self.repository, Algorithm::Sha256, &LIMITS);
        begun.expect("a disk").expect("room")
    }

    fn open(&self, id: &UploadId) -> Box<Upload> {
        match self.look(id) {
            Opened::Open(upload) => upload,
            other => panic!("{other:?}"),
        }
    }

    fn look(&self, id: &UploadId) -> Opened {
        Upload::open(&self.layout, &self.repository, id, &LIMITS).expect("a disk")
    }

    /// A session with chunks of these lengths, each with its checkpoint; and what it received.
    fn with_chunks(&self, lens: &[usize]) -> (UploadId, Vec<u8>) {
        let mut upload = self.begin();
        let content = content(lens.iter().sum());
        let mut at = 0;
        for len in lens {
            upload.append(&[Bytes::copy_from_slice(&content[at..at + len])]).expect("written");
            upload.checkpoint().expect("noted");
            at += len;
        }
        (upload.id().clone(), content)
    }

    fn state(&self, id: &UploadId, offset: u64) -> PathBuf {
        self.layout.upload_state(&self.repository, id, Algorithm::Sha256, offset)
    }

    fn published(&self, digest: &Digest) -> Vec<u8> {
        assert!(refs::is_linked(&self.layout, &self.repository, LinkKind::Layer, digest));
        fs::read(self.layout.blob(digest)).expect("a blob")
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..=250u8).cycle().step_by(31).take(len).collect()
}

/// As if the file were of before the machine was started.
fn age(path: &Path) {
    let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
    File::options().write(true).open(path).expect("a file").set_times(times).expect("its times");
}

#[test]
fn chunks_become_a_blob_in_whatever_process() {
    let fixture = Fixture::new();
    let (id, content) = fixture.with_chunks(&[10, 0, 100_000, 1]);
    let mut upload = fixture.open(&id);
    assert_eq!(upload.size(), 100_011);
    assert!(upload.believed, "nothing is read again");
    upload.append(&[Bytes::from_static(b"end")]).expect("written");
    let content = [&content[..], b"end"].concat();
    let digest = Digest::of(Algorithm::Sha256, &content);
    assert_eq!(upload.finish(&digest).expect("published"), content.len() as u64);
    assert_eq!(fixture.published(&digest), content);
    assert!(matches!(fixture.look(&id), Opened::Absent));
    assert!(!fixture.layout.upload(&fixture.repository, &id).exists());
}

#[test]
fn states_are_distributions() {
    let fixture = Fixture::new();
    let (id, content) = fixture.with_chunks(&[10, 100]);
    let state = |offset| fs::read(fixture.state(&id, offset));
    for offset in [0, 110] {
        let hasher = Hasher::from_hashstate(Algorithm::Sha256, &state(offset).expect("a state"));
        let end = usize::try_from(offset).expect("small");
        assert_eq!(
            hasher.expect("Go's form").finish(),
            Digest::of(Algorithm::Sha256, &content[..end]),
            "{offset}"
        );
        assert_eq!(state(offset).expect("a state").len(), 108);
    }
    let started =
        fs::read_to_string(fixture.layout.upload_started(&fixture.repository, &id)).expect("a time");
    assert!(started.ends_with('Z') && started.len() == "2026-11-21T10:57:08Z".len(), "{started}");
}

#[test]
fn who_comes_second_is_turned_away_until_the_first_is_done() {
    let fixture = Fixture::new();
    let upload = fixture.begin();
    let id = upload.id().clone();
    assert!(matches!(fixture.look(&id), Opened::Busy(0)));
    drop(upload);
    fixture.open(&id).cancel().expect("removed");
    assert!(matches!(fixture.look(&id), Opened::Absent));
}

#[test]
fn a_state_that_is_missing_or_wrong_costs_a_second_reading_and_no_more() {
    type Damage = fn(&Path);
    let damages: [Damage; 4] = [
        |state| fs::remove_file(state).expect("removed"),
        |state| fs::write(state, b"").expect("emptied"),
        |state| fs::write(state, vec![7; 108]).expect("overwritten"),
        // A state in the right form, of something else.
        |state| {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&vec![9; 100_010]);
            fs::write(state, hasher.hashstate()).expect("overwritten");
        },
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        let fixture = Fixture::new();
        let (id, content) = fixture.with_chunks(&[10, 100_000]);
        damage(&fixture.state(&id, 100_010));
        let digest = Digest::of(Algorithm::Sha256, &content);
        fixture.open(&id).finish(&digest).unwrap_or_else(|error| panic!("damage {index}: {error:?}"));
        assert_eq!(fixture.published(&digest), content);
    }
}

#[test]
fn data_without_a_state_of_its_end_is_hashed_to_the_end() {
    let fixture = Fixture::new();
    let (id, mut content) = fixture.with_chunks(&[1000]);
    // Killed in the middle of a chunk.
    let data = fixture.layout.upload_data(&fixture.repository, &id);
    content.extend_from_slice(b"more");
    fs::write(data, &content).expect("written");
    let upload = fixture.open(&id);
    assert_eq!(upload.size(), 1004);
    let digest = Digest::of(Algorithm::Sha256, &content);
    upload.finish(&digest).expect("published");
}

#[test]
fn after_a_restart_of_the_machine_states_say_only_where_data_was_synced() {
    let fixture = Fixture::new();
    let (id, content) = fixture.with_chunks(&[1000]);
    let data = fixture.layout.upload_data(&fixture.repository, &id);
    let unsynced = [&content[..], &[0; 500]].concat();
    fs::write(data, unsynced).expect("written");
    // Right in form, and not what the data is: it must not be believed.
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(&[1; 1000]);
    fs::write(fixture.state(&id, 1000), hasher.hashstate()).expect("overwritten");
    age(&fixture.state(&id, 0));
    age(&fixture.state(&id, 1000));
    let upload = fixture.open(&id);
    assert_eq!(upload.size(), 1000, "what was not synced is gone");
    assert!(!upload.believed);
    upload.finish(&Digest::of(Algorithm::Sha256, &content)).expect("published");
}

#[test]
fn a_wrong_digest_keeps_the_session() {
    let fixture = Fixture::new();
    let (id, content) = fixture.with_chunks(&[10]);
    let wrong = Digest::of(Algorithm::Sha256, b"else");
    let right = Digest::of(Algorithm::Sha256, &content);
    match fixture.open(&id).finish(&wrong) {
        Err(Unfinished::Digest(actual)) => assert_eq!(actual, right),
        other => panic!("{other:?}"),
    }
    assert!(!fixture.layout.blob(&wrong).exists());
    fixture.open(&id).finish(&right).expect("published");
}

#[test]
fn sha512_from_the_start_or_at_the_end() {
    let fixture = Fixture::new();
    let (id, content) = fixture.with_chunks(&[300]);
    let digest = Digest::of(Algorithm::Sha512, &content);
    fixture.open(&id).finish(&digest).expect("published");
    assert_eq!(fixture.published(&digest), content);

    let begun = Upload::begin(&fixture.layout, &fixture.repository, Algorithm::Sha512, &LIMITS);
    let mut upload = begun.expect("a disk").expect("room");
    upload.append(&[Bytes::from(content.clone())]).expect("written");
    upload.checkpoint().expect("noted");
    let id = upload.id().clone();
    drop(upload);
    let upload = fixture.open(&id);
    assert!(upload.believed);
    assert_eq!(upload.finish(&digest).expect("published"), 0, "it was there");
}

#[test]
fn a_chunk_that_is_taken_back_leaves_what_was_before_it() {
    let fixture = Fixture::new();
    let (id, content) = fixture.with_chunks(&[1000]);
    let mut upload = fixture.open(&id);
    upload.append(&[Bytes::from_static(b"too much")]).expect("written");
    upload.rewind(1000).expect("taken back");
    assert_eq!(upload.size(), 1000);
    upload.finish(&Digest::of(Algorithm::Sha256, &content)).expect("published");
}

#[test]
fn a_state_of_data_that_was_taken_back_is_gone_with_it() {
    let fixture = Fixture::new();
    let mut upload = fixture.begin();
    let id = upload.id().clone();
    let append = |upload: &mut Upload, byte: u8, len: usize| {
        upload.append(&[Bytes::from(vec![byte; len])]).expect("written");
        upload.checkpoint().expect("noted");
    };
    append(&mut upload, 1, 1000);
    assert!(fixture.state(&id, 1000).exists());
    upload.rewind(0).expect("taken back");
    assert!(!fixture.state(&id, 1000).exists());
    append(&mut upload, 2, 1000);
    append(&mut upload, 2, 500);
    drop(upload);
    // What a chunk left that was cut off in a crash.
    let mut other = Hasher::new(Algorithm::Sha256);
    other.update(&[1; 2000]);
    fs::write(fixture.state(&id, 2000), other.hashstate()).expect("written");
    let mut upload = fixture.open(&id);
    append(&mut upload, 2, 500);
    append(&mut upload, 2, 1);
    drop(upload);
    let poisoned = Digest::of(Algorithm::Sha256, &[&[1; 2000][..], &[2]].concat());
    assert!(matches!(fixture.open(&id).finish(&poisoned), Err(Unfinished::Digest(_))));
    fixture.open(&id).finish(&Digest::of(Algorithm::Sha256, &[2; 2001])).expect("published");
}

#[test]
fn a_repository_has_only_so_many_sessions_and_old_ones_make_room() {
    let fixture = Fixture::new();
    let ids: Vec<_> = (0..LIMITS.sessions_max).map(|_| fixture.begin().id().clone()).collect();
    let begin =
        || Upload::begin(&fixture.layout, &fixture.repository, Algorithm::Sha256, &LIMITS).expect("a disk");
    assert!(begin().is_none());
    age(&fixture.layout.upload_data(&fixture.repository, &ids[1]));
    assert!(matches!(fixture.look(&ids[1]), Opened::Absent), "it is over");
    assert!(begin().is_some());
    assert!(begin().is_none());
    age(&fixture.layout.upload_data(&fixture.repository, &ids[0]));
    assert!(begin().is_some(), "an old one went");
    assert!(matches!(fixture.look(&ids[2]), Opened::Open(_)));
}

#[test]
fn names_of_sessions() {
    let id = UploadId::random().expect("random numbers");
    assert_eq!(id.as_str().parse(), Ok(id.clone()));
    assert_ne!(UploadId::random().expect("random numbers"), id);
    assert_eq!(id.as_str().as_bytes()[14], b'4', "{id}");
    for wrong in [
        "",
        "..",
        "a",
        "../../../../../../../../../../../../..",
        &id.as_str().to_uppercase(),
        &id.as_str()[1..],
    ] {
        // Digits alone have no other case.
        assert!(wrong.parse::<UploadId>().is_err() || *wrong == *id.as_str(), "{wrong}");
    }
}
