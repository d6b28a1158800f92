//! What another process or a person does to the files is noticed, whatever is remembered of them.

use std::fs::{self, File};
use std::path::PathBuf;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::oci::Algorithm;
use crate::store::blob::{REVALIDATE_AFTER, SMALL};

/// A tree with one repository.
struct Tree {
    _folder: TempDir,
    layout: Layout,
    repository: StoredRepository,
    files: Files,
}

impl Tree {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(folder.path());
        let repository = StoredRepository::local(&"a/b".parse().expect("a name"));
        Self { _folder: folder, layout, repository, files: Files::new(false).expect("the pool") }
    }

    fn put(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, content);
        write(&self.layout.blob(&digest), content);
        write(&self.link(&digest), digest.to_string().as_bytes());
        digest
    }

    fn link(&self, digest: &Digest) -> PathBuf {
        self.layout.link(&self.repository, LinkKind::Layer, digest)
    }

    async fn find(&self, handles: &Handles, digest: &Digest) -> Option<Arc<Blob>> {
        if let Some(known) = handles.known(&self.repository, LinkKind::Layer, digest) {
            return known.value;
        }
        let found = handles.linked(&self.files, &self.layout, &self.repository, LinkKind::Layer, digest);
        found.await.expect("found or not").value
    }

    fn is_known(&self, handles: &Handles, digest: &Digest) -> bool {
        handles.known(&self.repository, LinkKind::Layer, digest).is_some()
    }

    async fn content(&self, blob: &Blob) -> Bytes {
        blob.content(&self.files, u64::MAX).await.expect("readable")
    }
}

fn write(path: &std::path::Path, content: &[u8]) {
    fs::create_dir_all(path.parent().expect("one")).expect("made");
    fs::write(path, content).expect("written");
}

/// As a registry or a person puts a file into another's place.
fn replace(path: &std::path::Path, content: &[u8]) {
    let beside = path.with_extension("new");
    fs::write(&beside, content).expect("written");
    fs::rename(&beside, path).expect("renamed");
}

fn handles(max: usize, content_bytes_max: u64) -> Handles {
    Handles::new(NonZeroUsize::new(max).expect("not zero"), content_bytes_max)
}

fn is_in_memory(blob: &Blob) -> bool {
    matches!(blob.held, Held::Memory(_))
}

async fn until_doubted() {
    tokio::time::sleep(REVALIDATE_AFTER + Duration::from_millis(10)).await;
}

/// How many descriptors of this process lead below `path`.
fn descriptors(path: &std::path::Path) -> usize {
    let open = fs::read_dir("/proc/self/fd")
        .expect("there")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    open.filter(|target| target.starts_with(path)).count()
}

/// Both ways to hold a small blob: by its content, and, without room for any, by its file.
const ROOMS: [u64; 2] = [1 << 20, 0];

#[tokio::test]
async fn a_small_blob_is_held_without_a_descriptor_while_there_is_room() {
    let tree = Tree::new();
    let (small, large) = (tree.put(b"small"), tree.put(&vec![7; usize::try_from(SMALL).expect("small") + 1]));
    let handles = handles(10, ROOMS[0]);
    for (digest, in_memory) in [(small, true), (large, false)] {
        let blob = tree.find(&handles, &digest).await.expect("held");
        assert_eq!(is_in_memory(&blob), in_memory);
        assert_eq!(Digest::of(Algorithm::Sha256, &tree.content(&blob).await), digest);
        assert_eq!(blob.labels.etag.to_str().ok(), Some(&*format!("\"{digest}\"")));
        assert_eq!(blob.labels.digest.to_str().ok(), Some(&*digest.to_string()));
    }
    assert_eq!(descriptors(tree.layout.root()), 1);
}

#[tokio::test]
async fn contents_that_are_in_use_stay_and_the_next_ones_get_descriptors() {
    let tree = Tree::new();
    let digests: Vec<Digest> = (0..10_u8).map(|n| tree.put(&[n; 100])).collect();
    let handles = handles(2, 3 * (100 + OVERHEAD));
    for _ in 0..3 {
        for (n, digest) in digests.iter().enumerate() {
            let blob = tree.find(&handles, digest).await.expect("held");
            assert_eq!(is_in_memory(&blob), n < 3, "{n}");
        }
        assert_eq!(descriptors(tree.layout.root()), 2);
    }
    let mut held = lock(&handles.held);
    assert_eq!((held.contents.len(), held.open.len()), (3, 2));
    assert!(!held.make_room(100, Instant::now()));
    assert!(held.make_room(100, Instant::now() + IDLE_AFTER), "nobody wants the oldest any more");
    assert_eq!((held.contents.len(), held.content_bytes), (2, 2 * (100 + OVERHEAD)));
}

#[tokio::test]
async fn what_is_remembered_needs_no_look_until_it_is_old() {
    for room in ROOMS {
        let (tree, handles) = (Tree::new(), handles(10, room));
        let (digest, absent) = (tree.put(b"content"), Digest::of(Algorithm::Sha256, b"absent"));
        assert!(!tree.is_known(&handles, &digest) && !tree.is_known(&handles, &absent));
        assert!(tree.find(&handles, &digest).await.is_some() && tree.find(&handles, &absent).await.is_none());
        assert!(tree.is_known(&handles, &digest) && tree.is_known(&handles, &absent));
        until_doubted().await;
        assert!(!tree.is_known(&handles, &digest) && !tree.is_known(&handles, &absent));
        let before = tree.find(&handles, &digest).await.expect("held");
        assert!(tree.is_known(&handles, &digest));
        until_doubted().await;
        let after = tree.find(&handles, &digest).await.expect("held");
        assert!(Arc::ptr_eq(&before, &after), "the file is the same, and so is what is held of it");
    }
}

#[tokio::test]
async fn a_blob_that_is_removed_or_replaced_is_noticed() {
    for room in ROOMS {
        let (tree, handles) = (Tree::new(), handles(10, room));
        let (digest, path) = {
            let digest = tree.put(b"content");
            (digest, tree.layout.blob(&digest))
        };
        let before = tree.find(&handles, &digest).await.expect("held");
        replace(&path, b"CONTENT");
        until_doubted().await;
        let after = tree.find(&handles, &digest).await.expect("held");
        assert_eq!(tree.content(&after).await, "CONTENT");
        assert_eq!(tree.content(&before).await, "content");

        fs::remove_file(&path).expect("removed");
        until_doubted().await;
        assert!(tree.find(&handles, &digest).await.is_none());

        write(&path, b"content");
        let again = tree.find(&handles, &digest).await.expect("an absent blob is not remembered");
        assert_eq!(tree.content(&again).await, "content");
    }
}

/// The file's number and length may be the same again.
#[tokio::test]
async fn a_file_that_is_written_anew_is_read_anew() {
    for room in ROOMS {
        let (tree, handles) = (Tree::new(), handles(10, room));
        let digest = tree.put(b"content");
        assert!(tree.find(&handles, &digest).await.is_some());
        tokio::time::sleep(Duration::from_millis(20)).await;
        fs::write(tree.layout.blob(&digest), b"CONTENT").expect("written");
        until_doubted().await;
        let after = tree.find(&handles, &digest).await.expect("held");
        assert_eq!(tree.content(&after).await, "CONTENT");
    }
}

#[tokio::test]
async fn a_forgotten_blob_is_not_found_through_a_link() {
    for room in ROOMS {
        let (tree, handles) = (Tree::new(), handles(10, room));
        let digest = tree.put(b"content");
        let sending = tree.find(&handles, &digest).await.expect("held");
        assert!(handles.is_in_use(&digest));
        fs::remove_file(tree.layout.blob(&digest)).expect("removed");
        handles.forget(&digest);
        assert!(!tree.is_known(&handles, &digest), "although somebody has it");
        assert!(tree.find(&handles, &digest).await.is_none());
        assert_eq!(tree.content(&sending).await, "content");
    }
}

#[tokio::test]
async fn a_blob_is_in_use_while_it_or_its_file_is_held() {
    for room in ROOMS {
        let (tree, handles) = (Tree::new(), handles(10, room));
        let digest = tree.put(b"content");
        assert!(!handles.is_in_use(&digest));
        let blob = tree.find(&handles, &digest).await.expect("held");
        let file = match &blob.held {
            Held::File(file) => Some(Arc::clone(file)),
            Held::Memory(_) => None,
        };
        assert!(handles.is_in_use(&digest));
        drop(blob);
        assert_eq!(handles.is_in_use(&digest), file.is_some());
        drop(file);
        assert!(!handles.is_in_use(&digest));
    }
}

#[tokio::test]
async fn a_link_that_is_removed_replaced_or_made_is_noticed() {
    let (tree, handles) = (Tree::new(), handles(10, ROOMS[0]));
    let (one, other) = (tree.put(b"one"), tree.put(b"other"));
    assert_eq!(tree.find(&handles, &one).await.map(|blob| blob.digest), Some(one));
    replace(&tree.link(&one), other.to_string().as_bytes());
    until_doubted().await;
    assert_eq!(tree.find(&handles, &one).await.map(|blob| blob.digest), Some(other));

    fs::remove_file(tree.link(&one)).expect("removed");
    until_doubted().await;
    assert!(tree.find(&handles, &one).await.is_none());

    write(&tree.link(&one), one.to_string().as_bytes());
    assert!(tree.find(&handles, &one).await.is_none(), "an absent link is remembered");
    handles.forget_link(&tree.repository, LinkKind::Layer, &one);
    assert!(tree.find(&handles, &one).await.is_some(), "until this process writes it");
}

/// A link that is older than the ticks of the filesystem's clock is not read again, and a change is noticed all the same.
#[tokio::test]
async fn an_old_link_is_read_again_when_its_file_changes() {
    let (tree, handles) = (Tree::new(), handles(10, ROOMS[0]));
    let (one, other) = (tree.put(b"one"), tree.put(b"other"));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(tree.find(&handles, &one).await.is_some());
    let is_trusted = |handles: &Handles| match lock(&handles.links).known(
        &tree.repository,
        &(tree.repository.clone(), LinkKind::Layer, one),
        Instant::now() + REVALIDATE_AFTER,
    ) {
        Known::Unknown(unknown) => unknown.reads_only_changes(),
        _ => false,
    };
    assert!(is_trusted(&handles));
    until_doubted().await;
    assert!(tree.find(&handles, &one).await.is_some());
    assert!(is_trusted(&handles));
    // In place, with the time of the last change set back: only the inode's own time tells.
    let link = File::options().write(true).open(tree.link(&one)).expect("there");
    let mtime = link.metadata().and_then(|stat| stat.modified()).expect("known");
    fs::write(tree.link(&one), other.to_string()).expect("written");
    link.set_modified(mtime).expect("set");
    until_doubted().await;
    assert_eq!(tree.find(&handles, &one).await.map(|blob| blob.digest), Some(other));
    assert!(!is_trusted(&handles), "it may change again within the tick");
}

#[tokio::test]
async fn a_repository_that_is_not_there_is_remembered_once_for_all_its_links() {
    let (tree, handles) = (Tree::new(), handles(10, ROOMS[0]));
    let digests = [b"a", b"b"].map(|content| Digest::of(Algorithm::Sha256, content));
    assert!(tree.find(&handles, &digests[0]).await.is_none());
    assert!(tree.is_known(&handles, &digests[1]), "no link of it can be there");
    tree.put(b"b");
    until_doubted().await;
    assert!(tree.find(&handles, &digests[1]).await.is_some());
    assert!(tree.find(&handles, &digests[0]).await.is_none());

    fs::remove_dir_all(tree.layout.repository(&tree.repository)).expect("removed");
    until_doubted().await;
    assert!(tree.find(&handles, &digests[1]).await.is_none());
    tree.put(b"b");
    handles.forget_link(&tree.repository, LinkKind::Layer, &digests[1]);
    assert!(tree.find(&handles, &digests[1]).await.is_some(), "this process made it");
}

/// The last use is on disk for the evictor of another process, and not written more often than it tells something.
#[tokio::test]
async fn a_use_is_recorded_unless_one_was_lately() {
    for room in ROOMS {
        let (tree, handles) = (Tree::new(), handles(10, room));
        let digest = tree.put(b"content");
        let path = tree.layout.blob(&digest);
        let accessed = || fs::metadata(&path).and_then(|stat| stat.accessed()).expect("known");
        let set = |at| {
            let file = File::options().write(true).open(&path).expect("there");
            file.set_times(fs::FileTimes::new().set_accessed(at)).expect("set");
        };
        let now = std::time::SystemTime::now();
        let lately = now - Duration::from_secs(100);
        set(lately);
        tree.find(&handles, &digest).await.expect("held").touch(&tree.layout);
        // What was spawned before is done before what is spawned later is waited for, or soon after: no write at all comes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(accessed(), lately);
        assert!(handles.last_use_ms(&digest) > 0);

        for long_ago in [now - Duration::from_secs(1000), now + Duration::from_secs(1000)] {
            set(long_ago);
            handles.forget(&digest);
            tree.find(&handles, &digest).await.expect("held").touch(&tree.layout);
            while accessed() == long_ago {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(accessed() >= now - Duration::from_secs(1) && accessed() < now + Duration::from_mins(15));
        }
    }
}
