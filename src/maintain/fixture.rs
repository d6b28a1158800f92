//! A tree of one process, pushed to as clients would, for the tests of this room.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{self, Runtime};

use super::gc::{self, GcOptions};
use super::remove::{self, RemoveError, RemoveOptions};
use super::{Collected, Event, GcError, Removed, Stop};
use crate::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use crate::oci::{Algorithm, Digest, Manifest, Tag};
use crate::store::pump::Sink as _;
use crate::store::upload::UploadLimits;
use crate::store::{Layout, LinkKind, PushedManifest, Store, StoreOptions, StoredRepository};

/// Longer ago than any grace of these tests.
pub(super) const LONG_AGO: Duration = Duration::from_hours(10 * 24);

pub(super) struct Tree {
    pub(super) store: Arc<Store>,
    runtime: Runtime,
    _home: TempDir,
}

pub(super) fn repository(name: &str) -> StoredRepository {
    StoredRepository::local(&name.parse().expect("a name"))
}

pub(super) fn digest(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

/// Collects without a grace.
pub(super) fn at_once() -> GcOptions {
    GcOptions { grace: Duration::ZERO, ..GcOptions::default() }
}

impl Tree {
    pub(super) fn new() -> Self {
        // In memory where that is possible: none of these tests is about what a disk does, and all of them sync.
        let home = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory");
        let store = Arc::new(Store::open(home.path(), StoreOptions::without_handles()).expect("a tree"));
        let runtime = runtime::Builder::new_current_thread().build().expect("a runtime");
        Self { store, runtime, _home: home }
    }

    pub(super) fn layout(&self) -> &Layout {
        self.store.layout()
    }

    /// Uploads a blob.
    pub(super) fn blob(&self, name: &str, content: &str) -> Digest {
        let (name, digest) = (repository(name), digest(content.as_bytes()));
        let limits = UploadLimits { sessions_max: 100, expiry: LONG_AGO, bytes_max: u64::MAX };
        self.runtime.block_on(async {
            let begun = self.store.begin_upload(&name, Algorithm::Sha256, limits).await;
            let mut upload = begun.expect("a disk").expect("room");
            upload.append(&[Bytes::copy_from_slice(content.as_bytes())]).expect("written");
            self.store.finish_upload(&name, upload, &digest).await.expect("finished");
        });
        digest
    }

    /// Promises a blob, as the answer to HEAD does. `false`: it is not there.
    pub(super) fn promise(&self, name: &str, digest: &Digest) -> bool {
        self.runtime.block_on(self.store.promise(&repository(name), digest)).expect("a disk")
    }

    pub(super) fn mount(&self, name: &str, digest: &Digest) -> bool {
        let (name, kind) = (repository(name), LinkKind::Layer);
        self.runtime.block_on(self.store.link_held(&name, kind, digest)).expect("a disk")
    }

    /// Puts a manifest. `Err`: so much of what it needs is not there.
    pub(super) fn put(&self, name: &str, tag: Option<&str>, manifest: &Value) -> Result<Digest, Vec<Digest>> {
        let content = manifest.to_string();
        let parsed = Manifest::parse(content.as_bytes(), None).expect("a manifest");
        let blobs = parsed.blobs().map(|blob| (LinkKind::Layer, blob.digest));
        let children = parsed.manifests.iter().map(|child| (LinkKind::Manifest, child.digest));
        let pushed = PushedManifest {
            digest: digest(content.as_bytes()),
            needed: blobs.chain(children).collect(),
            content: content.into(),
            subject: parsed.subject.as_ref().map(|subject| subject.digest),
            tags: tag.map(|tag| tag.parse().expect("a tag")).into_iter().collect(),
        };
        let digest = pushed.digest;
        let stored = self.runtime.block_on(self.store.push_manifest(&repository(name), pushed));
        stored.expect("a disk").map(|()| digest)
    }

    /// Pushes an image of a config and layers.
    pub(super) fn image(&self, name: &str, tag: Option<&str>, blobs: &[&str]) -> Digest {
        for blob in blobs {
            self.blob(name, blob);
        }
        self.put(name, tag, &image(blobs)).expect("all is there")
    }

    /// Pushes an image that refers to another.
    pub(super) fn referrer(&self, name: &str, tag: Option<&str>, blob: &str, subject: &Digest) -> Digest {
        self.blob(name, blob);
        let mut manifest = image(&[blob]);
        manifest["subject"] = json!({ "mediaType": OCI_MANIFEST, "digest": subject, "size": 1 });
        self.put(name, tag, &manifest).expect("all is there")
    }

    /// Pushes an index.
    pub(super) fn index(&self, name: &str, tag: Option<&str>, children: &[Digest]) -> Digest {
        self.put(name, tag, &index(children)).expect("all is there")
    }

    /// Makes all that is there look as if it were from long ago.
    pub(super) fn age(&self) {
        let then = SystemTime::now() - LONG_AGO;
        for path in self.files() {
            set_modified(&path, then);
        }
    }

    pub(super) fn set_age(&self, digest: &Digest, age: Duration) {
        set_modified(&self.layout().blob(digest), SystemTime::now() - age);
    }

    /// Every file and directory of the tree but locks.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![self.layout().root().to_owned()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(&directory).expect("our own directory") {
                let path = entry.expect("our own directory").path();
                if path == self.layout().locks() {
                    continue;
                }
                if path.is_dir() {
                    todo.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }

    /// What no dry run may change: every name with its times and its size, a line each.
    pub(super) fn snapshot(&self) -> BTreeSet<String> {
        let state = |path: PathBuf| {
            let meta = fs::metadata(&path).expect("there");
            let modified = (meta.mtime(), meta.mtime_nsec());
            let used = (meta.atime(), meta.atime_nsec());
            format!("{} {modified:?} {used:?} {}", path.display(), meta.len())
        };
        self.files().into_iter().map(state).collect()
    }

    #[track_caller]
    pub(super) fn assert_unchanged(&self, before: &BTreeSet<String>) {
        let now = self.snapshot();
        let changed: Vec<_> = now.symmetric_difference(before).collect();
        assert!(changed.is_empty(), "something changed: {changed:#?}");
    }

    /// The blobs that are there.
    pub(super) fn held(&self) -> BTreeSet<Digest> {
        let parsed = |path: PathBuf| {
            let directory = path.strip_suffix_name("data")?;
            directory.file_name()?.to_str().map(|hex| format!("sha256:{hex}").parse().expect("a digest"))
        };
        self.files()
            .into_iter()
            .filter(|path| path.starts_with(self.layout().blobs()))
            .filter_map(parsed)
            .collect()
    }

    /// What the tags and manifests that are linked name, all of which must be there; found without the code under test.
    pub(super) fn referred_to(&self) -> BTreeSet<Digest> {
        let mut named = BTreeSet::new();
        for link in self.files() {
            let text = link.to_string_lossy().into_owned();
            let is_reference = text.contains("/revisions/") || text.ends_with("/current/link");
            if !is_reference || !link.is_file() {
                continue;
            }
            let digest: Digest = fs::read_to_string(&link).expect("a link").parse().expect("a digest");
            let content = fs::read(self.layout().blob(&digest));
            let content = content.unwrap_or_else(|error| panic!("{text} leads to nothing: {error}"));
            named.insert(digest);
            let manifest = Manifest::parse(&content, None).expect("a manifest");
            named.extend(manifest.blobs().map(|blob| blob.digest));
            named.extend(manifest.manifests.iter().map(|child| child.digest));
            named.extend(manifest.subject.iter().map(|subject| subject.digest));
        }
        named
    }

    /// All that a tag or a manifest names is there.
    #[track_caller]
    pub(super) fn assert_whole(&self) {
        let broken: Vec<_> = self.referred_to().difference(&self.held()).copied().collect();
        assert!(broken.is_empty(), "gone, though something refers to it: {broken:?}");
    }

    /// And nothing else is.
    #[track_caller]
    pub(super) fn assert_exact(&self) {
        assert_eq!(self.held(), self.referred_to());
    }

    pub(super) fn tags(&self, name: &str) -> BTreeSet<String> {
        let tags = fs::read_dir(self.layout().tags(&repository(name)));
        let tags = tags.into_iter().flatten().map(|entry| entry.expect("a tag").file_name());
        tags.map(|tag| tag.into_string().expect("UTF-8")).collect()
    }

    pub(super) fn has_manifest(&self, name: &str, digest: &Digest) -> bool {
        self.layout().link(&repository(name), LinkKind::Manifest, digest).exists()
    }

    pub(super) fn has_link(&self, name: &str, digest: &Digest) -> bool {
        self.layout().link(&repository(name), LinkKind::Layer, digest).exists()
    }

    /// Collects; what went, in order.
    #[track_caller]
    pub(super) fn gc(&self, options: &GcOptions) -> Vec<Removed> {
        let mut removed = Vec::new();
        let collected = self.gc_with(options, |event| removed.extend(thing(event)));
        let collected = collected.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(collected.failures, 0);
        removed
    }

    /// Collects; `hook` hears of all that happens, and may push meanwhile.
    pub(super) fn gc_with(
        &self,
        options: &GcOptions,
        mut hook: impl FnMut(Event),
    ) -> Result<Collected, GcError> {
        gc::run(&self.store, options, &Stop::new(), &mut hook)
    }

    /// Removes; what went, in order. A dry run before says the same and changes nothing.
    #[track_caller]
    pub(super) fn rm(&self, image: &str) -> Vec<Removed> {
        let options = removing(image);
        let before = self.snapshot();
        let mut would = Vec::new();
        let dry = RemoveOptions { dry_run: true, ..options.clone() };
        self.rm_with(&dry, |event| would.extend(thing(event))).unwrap_or_else(|error| panic!("{error}"));
        self.assert_unchanged(&before);
        let mut removed = Vec::new();
        let done = self.rm_with(&options, |event| removed.extend(thing(event)));
        let done = done.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((done.failures, &removed), (0, &would));
        removed
    }

    pub(super) fn rm_with(
        &self,
        options: &RemoveOptions,
        mut hook: impl FnMut(Event),
    ) -> Result<Collected, RemoveError> {
        remove::run(&self.store, options, &Stop::new(), &mut hook)
    }
}

pub(super) fn removing(image: &str) -> RemoveOptions {
    let (untagged, image) = match image.strip_suffix(" untagged") {
        Some(image) => (true, image),
        None => (false, image),
    };
    let image = image.parse().expect("an image");
    RemoveOptions { image, untagged, prune: true, dry_run: false, cache: None }
}

pub(super) fn thing(event: Event) -> Option<Removed> {
    match event {
        Event::Removed(removed) => Some(removed),
        Event::Phase(_) => None,
        Event::Failed { what, error } => panic!("{what:?}: {error}"),
    }
}

pub(super) fn image(blobs: &[&str]) -> Value {
    let descriptor =
        |content: &&str| json!({ "mediaType": "x/y", "digest": digest(content.as_bytes()), "size": 1 });
    let layers: Vec<_> = blobs[1..].iter().map(descriptor).collect();
    json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(&blobs[0]), "layers": layers })
}

pub(super) fn index(children: &[Digest]) -> Value {
    let descriptor = |child: &Digest| json!({ "mediaType": OCI_MANIFEST, "digest": child, "size": 1 });
    let children: Vec<_> = children.iter().map(descriptor).collect();
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children })
}

/// The tag that clients without a list of referrers keep them in.
pub(super) fn fallback(digest: &Digest) -> Tag {
    format!("sha256-{}", digest.hex()).parse().expect("a tag")
}

pub(super) fn set_modified(path: &Path, to: SystemTime) {
    let file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.set_modified(to).expect("our own file");
}

trait StripName {
    /// The directory of a file that has this name.
    fn strip_suffix_name(&self, name: &str) -> Option<&Path>;
}

impl StripName for PathBuf {
    fn strip_suffix_name(&self, name: &str) -> Option<&Path> {
        self.parent().filter(|_| self.file_name().is_some_and(|own| own == name))
    }
}
