use super::*;
use crate::oci::Algorithm;

const LEN: usize = 100_000;

struct Tree {
    _directory: tempfile::TempDir,
    layout: Layout,
    image: ImageId,
}

impl Tree {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(directory.path());
        fs::create_dir_all(layout.locks()).expect("our own directory");
        Self { _directory: directory, layout, image: "0123456789abcdef".parse().expect("an id") }
    }

    fn claim(&self) -> LayerClaim {
        let mut before = Hasher::new(Algorithm::Sha256);
        before.update(b"{}\n");
        claim(&self.layout, &self.image, &before).expect("no error")
    }

    fn lead(&self) -> Box<LayerIngest> {
        match self.claim() {
            LayerClaim::Leader(ingest) => ingest,
            other => panic!("{other:?}"),
        }
    }

    /// As another process does, whose handle is another one.
    fn follow(&self) -> LayerFollower {
        match self.claim() {
            LayerClaim::Follower(follower) => follower,
            other => panic!("{other:?}"),
        }
    }

    fn layer(&self) -> Option<Vec<u8>> {
        fs::read(self.layout.image(&self.image, ImageFile::Layer)).ok()
    }

    fn has_fill(&self) -> bool {
        self.layout.layer_fill(&self.image).exists()
    }
}

fn content() -> Bytes {
    Bytes::from(vec![7; LEN])
}

#[test]
fn an_id_is_16_or_64_digits() {
    for id in ["0123456789abcdef", &"0123456789abcdef".repeat(4)] {
        assert_eq!(id.parse::<ImageId>().expect("an id").as_str(), id);
    }
    for id in
        ["", "0123456789abcde", "0123456789abcdeg", "0123456789ABCDEF", &"0".repeat(63), "../etc/passwd/.."]
    {
        assert!(id.parse::<ImageId>().is_err(), "{id}");
    }
}

#[test]
fn the_checksum_of_json_and_layer_is_found_in_what_registries_write() {
    let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let digest: Digest = format!("sha256:{hex}").parse().expect("a digest");
    for text in [
        format!("sha256:{hex}"),
        format!("[\"tarsum+sha256:00\", \"sha256:{hex}\"]"),
        format!("['sha256:{hex}']\n"),
    ] {
        assert_eq!(checksum_of(text.as_bytes()), Some(digest), "{text}");
    }
    for text in [&format!("tarsum+sha256:{hex}"), "sha256:00", "[]", ""] {
        assert_eq!(checksum_of(text.as_bytes()), None, "{text}");
    }
    let mut headers = HeaderMap::new();
    assert_eq!(checksum_in(&headers), None);
    headers.append(PAYLOAD_CHECKSUM, http::HeaderValue::from_static("tarsum+sha256:00"));
    headers.append(PAYLOAD_CHECKSUM, format!("sha256:{hex}").parse().expect("a value"));
    assert_eq!(checksum_in(&headers), Some(digest));
}

#[test]
fn a_layer_is_published_whole_and_its_digest_begins_with_the_json() {
    let tree = Tree::new();
    let mut ingest = tree.lead();
    ingest.append(&[content()]).expect("no error");
    assert_eq!(ingest.written(), LEN as u64);
    let whole = [b"{}\n", &content()[..]].concat();
    assert_eq!(ingest.digest(), Digest::of(Algorithm::Sha256, &whole));
    assert_eq!(tree.layer(), None);
    assert_eq!(ingest.publish().expect("no error"), LEN as u64);
    assert!(tree.layer().as_deref() == Some(&content()[..]) && !tree.has_fill());
    assert!(matches!(tree.claim(), LayerClaim::Stored));
    assert!(!tree.has_fill());
}

#[test]
fn an_interrupted_fill_is_dropped_and_its_file_not_written_again() {
    let tree = Tree::new();
    let mut ingest = tree.lead();
    ingest.append(&[content()]).expect("no error");
    ingest.note_length(Some(LEN as u64)).expect("no error");
    let file = ingest.file();
    drop(ingest);
    let mut again = tree.lead();
    again.append(&[Bytes::from_static(b"other")]).expect("no error");
    assert_eq!(file.metadata().expect("an open file").len(), LEN as u64, "its readers see no change");
    again.discard().expect("no error");
    assert!(!tree.has_fill() && tree.layer().is_none());
}

#[test]
fn a_follower_sees_how_far_the_owner_is_and_how_it_ended() {
    let tree = Tree::new();
    let mut ingest = tree.lead();
    let follower = tree.follow();
    let look = || follower.look().expect("no error");
    assert_eq!(look(), LayerFollowed::Waiting);
    ingest.note_length(Some(LEN as u64)).expect("no error");
    ingest.append(&[content().slice(..5)]).expect("no error");
    assert_eq!(look(), LayerFollowed::Growing { written: 5, length: Some(LEN as u64) });
    ingest.append(&[content().slice(5..)]).expect("no error");
    ingest.publish().expect("no error");
    assert_eq!(look(), LayerFollowed::Published { len: LEN as u64 });
    fs::remove_file(tree.layout.image(&tree.image, ImageFile::Layer)).expect("our own file");
    assert_eq!(look(), LayerFollowed::Gone, "evicted before it was seen");

    let mut ingest = tree.lead();
    ingest.append(&[content()]).expect("no error");
    let follower = tree.follow();
    drop(ingest);
    assert_eq!(follower.look().expect("no error"), LayerFollowed::Gone);
}
