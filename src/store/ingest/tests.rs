use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::oci::Algorithm;
use crate::sys::as_another;

struct Fixture {
    _root: TempDir,
    layout: Layout,
    content: Vec<u8>,
    digest: Digest,
}

/// A tree, and content of `len` bytes that is not in it.
fn fixture(len: usize) -> Fixture {
    let root = TempDir::new().expect("a directory");
    let layout = Layout::new(root.path());
    let content: Vec<u8> = (0..len).map(|_| fastrand::u8(..)).collect();
    let digest = Digest::of(Algorithm::Sha256, &content);
    Fixture { _root: root, layout, content, digest }
}

impl Fixture {
    fn lead(&self) -> Box<Ingest> {
        match claim(&self.layout, &self.digest).expect("a claim") {
            Claim::Leader(ingest) => ingest,
            other => panic!("not the leader: {other:?}"),
        }
    }

    fn append(&self, ingest: &mut Ingest, to: usize) {
        let from = usize::try_from(ingest.written()).expect("small");
        ingest.append(&[Bytes::copy_from_slice(&self.content[from..to])]).expect("an append");
    }

    fn rewrite_state(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.layout.fill(&self.digest).join("state.json");
        let mut state = serde_json::from_slice(&fs::read(&path).expect("a state")).expect("a state");
        change(&mut state);
        fs::write(path, state.to_string()).expect("a state");
    }

    fn assert_published(&self) {
        assert_eq!(fs::read(self.layout.blob(&self.digest)).expect("a blob"), self.content);
        assert!(!self.layout.fill(&self.digest).exists(), "the fill is gone");
    }
}

#[test]
fn a_fill_is_published_whole_and_leaves_nothing_behind() {
    for len in [0, 1, 64 * 1024, 3 << 20] {
        let fixture = fixture(len);
        let mut ingest = fixture.lead();
        fixture.append(&mut ingest, len);
        assert_eq!(ingest.verify(), Ok(()));
        assert_eq!(ingest.publish().expect("published"), len as u64);
        fixture.assert_published();
        assert!(matches!(claim(&fixture.layout, &fixture.digest), Ok(Claim::Stored)));
    }
}

#[test]
fn what_does_not_have_the_digest_is_not_published() {
    let fixture = fixture(1000);
    let mut ingest = fixture.lead();
    fixture.append(&mut ingest, 999);
    let actual = Digest::of(Algorithm::Sha256, &fixture.content[..999]);
    assert_eq!(ingest.verify(), Err(actual));
    ingest.publish().expect_err("it is not the blob");
    assert!(!fixture.layout.blob(&fixture.digest).exists());
}

#[test]
fn a_fill_goes_on_where_it_was_dropped() {
    let fixture = fixture(100_000);
    let mut ingest = fixture.lead();
    fixture.append(&mut ingest, 40_000);
    ingest.set_origin(Origin { length: Some(100_000), etag: Some("\"x\"".to_owned()) });
    fixture.append(&mut ingest, 70_001);
    drop(ingest);

    let mut resumed = fixture.lead();
    assert_eq!(resumed.written(), 70_001, "what lies behind the state counts too");
    assert_eq!(resumed.origin().length, Some(100_000));
    fixture.append(&mut resumed, 100_000);
    resumed.publish().expect("published");
    fixture.assert_published();
}

/// A fill of which 50,000 bytes were written, 40,000 of them before its state, as another boot finds it.
fn of_another_boot() -> Fixture {
    let fixture = fixture(100_000);
    let mut ingest = fixture.lead();
    fixture.append(&mut ingest, 40_000);
    ingest.save_state();
    fixture.append(&mut ingest, 50_000);
    drop(ingest);
    fixture.rewrite_state(|state| state["boot"] = "another boot".into());
    fixture
}

fn data(fixture: &Fixture) -> File {
    let path = fixture.layout.fill(&fixture.digest).join("data");
    OpenOptions::new().write(true).open(path).expect("the fill's data")
}

#[test]
fn after_a_reboot_what_leads_to_the_state_is_kept_and_what_lies_behind_it_goes() {
    let fixture = of_another_boot();
    data(&fixture).write_all_at(&[0; 4096], 45_000).expect("pages behind the state are lost");
    let mut resumed = fixture.lead();
    assert_eq!(resumed.written(), 40_000);
    assert_eq!(resumed.file().metadata().expect("a file").len(), 40_000);
    fixture.append(&mut resumed, 100_000);
    resumed.publish().expect("published");
    fixture.assert_published();
}

/// After a power cut the state may be right and the pages before it zeros.
#[test]
fn after_a_reboot_data_that_does_not_lead_to_the_state_goes() {
    let fixture = of_another_boot();
    data(&fixture).write_all_at(&[0; 4096], 8192).expect("pages before the state are lost");
    assert_eq!(fixture.lead().written(), 0);
}

#[test]
fn a_state_that_does_not_fit_the_file_is_not_believed() {
    let changes: [fn(&mut serde_json::Value); 4] = [
        |state| state["inode"] = 1.into(),
        |state| state["version"] = 99.into(),
        |state| state["offset"] = 39_999.into(),
        |state| state["hash"] = "AAAA".into(),
    ];
    for change in changes {
        let fixture = fixture(100_000);
        let mut ingest = fixture.lead();
        fixture.append(&mut ingest, 40_000);
        ingest.save_state();
        drop(ingest);
        fixture.rewrite_state(change);
        assert_eq!(fixture.lead().written(), 0);
    }
}

#[test]
fn a_state_ahead_of_its_data_is_not_believed() {
    let fixture = fixture(100_000);
    let mut ingest = fixture.lead();
    fixture.append(&mut ingest, 40_000);
    ingest.save_state();
    drop(ingest);
    data(&fixture).set_len(30_000).expect("the end is lost");
    assert_eq!(fixture.lead().written(), 0);
}

#[test]
fn data_longer_than_the_blob_is_dropped() {
    let fixture = fixture(1000);
    let mut ingest = fixture.lead();
    fixture.append(&mut ingest, 1000);
    ingest.set_origin(Origin { length: Some(1000), etag: None });
    ingest.file().write_all_at(b"more", 1000).expect("written");
    drop(ingest);
    assert_eq!(fixture.lead().written(), 0);
}

#[test]
fn only_one_leads_and_the_other_sees_it_grow_and_publish() {
    let fixture = fixture(10_000);
    let mut ingest = fixture.lead();
    let Ok(Claim::Follower(follower)) = claim(&fixture.layout, &fixture.digest) else {
        panic!("two leaders")
    };
    assert!(matches!(follower.look(), Ok(Followed::Growing { written: 0, origin: None })));
    ingest.set_origin(Origin { length: Some(10_000), etag: None });
    fixture.append(&mut ingest, 6000);
    match follower.look().expect("a look") {
        Followed::Growing { written: 6000, origin: Some(origin) } => assert_eq!(origin.length, Some(10_000)),
        other => panic!("{other:?}"),
    }
    fixture.append(&mut ingest, 10_000);
    ingest.publish().expect("published");
    assert!(matches!(follower.look(), Ok(Followed::Published { len: 10_000 })));
}

#[test]
fn a_follower_takes_over_the_same_file_when_the_leader_is_gone_even_if_readers_keep_it_open() {
    let fixture = fixture(10_000);
    let mut ingest = fixture.lead();
    let Ok(Claim::Follower(follower)) = claim(&fixture.layout, &fixture.digest) else {
        panic!("two leaders")
    };
    ingest.set_origin(Origin { length: Some(10_000), etag: None });
    fixture.append(&mut ingest, 6000);
    let _reader = ingest.file();
    drop(ingest);
    let Ok(Followed::TakenOver(mut ingest)) = follower.look() else { panic!("not taken over") };
    assert_eq!(ingest.written(), 6000);
    fixture.append(&mut ingest, 10_000);
    ingest.publish().expect("published");
    fixture.assert_published();
}

#[test]
fn a_follower_of_a_leader_that_gives_up_learns_it() {
    let fixture = fixture(10_000);
    let ingest = fixture.lead();
    let Ok(Claim::Follower(follower)) = claim(&fixture.layout, &fixture.digest) else {
        panic!("two leaders")
    };
    ingest.discard().expect("discarded");
    assert!(matches!(follower.look(), Ok(Followed::Removed)));
    assert_eq!(fixture.lead().written(), 0);
}

#[test]
fn a_small_file_is_published_once() {
    let fixture = fixture(500);
    assert_eq!(publish_small(&fixture.layout, &fixture.digest, &fixture.content).expect("published"), 500);
    assert_eq!(publish_small(&fixture.layout, &fixture.digest, &fixture.content).expect("there already"), 0);
    assert_eq!(fs::read(fixture.layout.blob(&fixture.digest)).expect("a blob"), fixture.content);
    let left = fs::read_dir(fixture.layout.temporary()).expect("a directory").count();
    assert_eq!(left, 0, "temporary files are gone");
}

#[test]
fn lock_that_another_user_made_can_be_taken() {
    let Fixture { _root: root, layout, digest, .. } = fixture(1);
    drop(lock_shard(&layout, &digest).unwrap());
    for (path, mode) in [(root.path(), 0o755), (&layout.locks(), 0o755), (&layout.lock(&digest), 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    as_another(54_321, 54_321, || drop(lock_shard(&layout, &digest).unwrap()));
}
