//! The replication engine by itself: registries copied to registries and to trees, through connections that break.

use std::cell::RefCell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use spliceway::replicate::{
    BlobOutcome, Event, Options, Replicator, Selection, Source, Stop, Summary, Target,
};
use spliceway::store::{Store, StoreOptions};
use spliceway::upstream::{Credentials, UpstreamOptions};
use tempfile::TempDir;

use crate::support::images::{self, Image, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, descriptor};
use crate::support::listener::Listener;
use crate::support::process::Spliceway;
use crate::support::push::Repository;
use crate::support::registry::{PASSWORD, Registry, USERNAME};
use crate::support::token::TokenServer;
use crate::support::{MIB, PATIENCE, hex, noise, sha256};

/// A run from `sources` to `target`, with what it told.
struct Ran {
    summary: Summary,
    events: Vec<Event>,
}

fn replicate(sources: &[SocketAddr], target: Target, options: Options) -> Ran {
    Replication::new(sources, target, options).run()
}

/// Runs that remember each other.
struct Replication {
    replicator: Replicator,
    sources: Vec<Arc<Source>>,
}

impl Replication {
    fn new(sources: &[SocketAddr], target: Target, options: Options) -> Self {
        let source = |addr| Arc::new(Source::new(format!("{addr}"), client(addr)).expect("a valid URL"));
        Self {
            replicator: Replicator::new(target, Selection::default(), options),
            sources: sources.iter().map(source).collect(),
        }
    }

    fn run(&self) -> Ran {
        self.run_until(&Stop::new(), |_| ())
    }

    fn run_until(&self, stop: &Stop, told: impl Fn(&Event)) -> Ran {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let events = RefCell::default();
        let tell = |event| {
            let events: &RefCell<Vec<Event>> = &events;
            told(&event);
            events.borrow_mut().push(event);
        };
        let run = self.replicator.run(&self.sources, &[], stop, &tell);
        let summary = runtime.block_on(async { tokio::time::timeout(PATIENCE, run).await });
        Ran { summary: summary.expect("a run that ends"), events: events.into_inner() }
    }
}

impl Ran {
    #[track_caller]
    fn complete(self) -> Self {
        assert!(self.summary.is_complete(), "{:#?}", self.summary);
        self
    }
}

fn client(addr: &SocketAddr) -> UpstreamOptions {
    let mut options = UpstreamOptions::new("registry", format!("http://{addr}"));
    options.stall_timeout = Duration::from_secs(20);
    options
}

fn registry(addr: SocketAddr) -> Target {
    Target::registry(addr.to_string(), client(&addr)).expect("a valid URL")
}

fn tree(root: &Path) -> Target {
    let options = StoreOptions { handles_max: 64.try_into().expect("not zero"), evictable: false };
    Target::tree("dir", Arc::new(Store::open(root, options).expect("a directory of our own")))
}

/// Two platforms with an attestation, in `repository` under `tag`; the bytes of the index.
fn push_multi_arch(repository: &Repository, tag: &str, seed: u64) -> Vec<u8> {
    let images: Vec<_> = ["amd64", "arm64"]
        .iter()
        .zip(seed..)
        .map(|(name, seed)| Image::new(seed, name, &[3 * MIB, 5000]))
        .collect();
    for image in &images {
        repository.push_image(&image.digest(), image);
    }
    let index = images::index(&images);
    repository.put(tag, OCI_INDEX, &index).expect(201);
    index
}

/// A signature of `subject`; its bytes.
fn push_referrer(repository: &Repository, subject: &[u8], note: &str) -> Vec<u8> {
    let (config, layer) = (b"{}".to_vec(), note.as_bytes().to_vec());
    repository.push(&config);
    repository.push(&layer);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.signature",
        "config": descriptor(OCI_CONFIG, &config),
        "layers": [descriptor(OCI_LAYER, &layer)],
        "subject": descriptor(OCI_MANIFEST, subject),
    });
    let manifest = manifest.to_string().into_bytes();
    repository.put(&sha256(&manifest), OCI_MANIFEST, &manifest).expect(201);
    manifest
}

/// The digests in a list of referrers.
fn listed(list: &[u8]) -> Vec<String> {
    let list: serde_json::Value = serde_json::from_slice(list).expect("JSON");
    let found = list["manifests"].as_array().expect("a list").iter();
    found.map(|entry| entry["digest"].as_str().expect("a digest").to_owned()).collect()
}

#[test]
fn a_registry_is_copied_and_kept_equal() {
    let (from, to) = (Registry::plain(), Registry::plain());
    let master = Repository::new(from.addr(), "team/app");
    let index = push_multi_arch(&master, "1.0", 1);
    let single = Image::new(9, "amd64", &[10, 2 * MIB]);
    master.push_image("2.0", &single);
    // The same content in another repository is mounted there.
    master.named("other").push_image("2.0", &single);

    let replication = Replication::new(&[from.addr()], registry(to.addr()), Options::default());
    let first = replication.run().complete().summary;
    let copy = master.at(to.addr());
    assert_eq!(copy.manifest("1.0").expect(200).body, index);
    copy.assert_holds("2.0", &single);
    copy.named("other").assert_holds("2.0", &single);
    assert_eq!((first.repositories, first.images_copied, first.manifests_copied), (2, 3, 5));
    assert_eq!((first.blobs_copied, first.blobs_mounted), (9, 3), "{first:?}");

    let log = to.log().len();
    let second = replication.run().complete().summary;
    assert_eq!((second.images_present, second.images_copied), (3, 0));
    assert_eq!((second.bytes_copied, second.blobs_copied, second.manifests_copied), (0, 0, 0));
    assert_eq!(second.requests_target, 2 + 3, "a list for each repository, a HEAD for each tag");
    assert!(!to.log()[log..].contains("/blobs/"), "no blob is asked about");

    let moved = push_multi_arch(&master, "1.0", 5);
    let third = replication.run().complete().summary;
    assert_eq!((third.images_updated, third.images_present), (1, 2));
    assert_eq!(copy.manifest("1.0").expect(200).body, moved);
}

#[test]
fn a_registry_is_copied_into_a_directory_that_registries_serve() {
    let from = Registry::plain();
    let master = Repository::new(from.addr(), "team/app");
    let index = push_multi_arch(&master, "1.0", 1);
    let home = TempDir::new().expect("a directory");
    let ran = replicate(&[from.addr()], tree(home.path()), Options::default()).complete();
    assert_eq!(ran.summary.blobs_copied, 6);
    let again = replicate(&[from.addr()], tree(home.path()), Options::default()).complete();
    assert_eq!((again.summary.images_present, again.summary.bytes_copied), (1, 0));

    let served = Registry::on(home.path(), "of this test");
    let copy = master.at(served.addr());
    assert_eq!(copy.manifest("1.0").expect(200).body, index);
    for child in listed(&index) {
        let manifest = copy.manifest(&child).expect(200).body;
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        let layers = manifest["layers"].as_array().expect("a list");
        for blob in layers.iter().chain([&manifest["config"]]) {
            let digest = blob["digest"].as_str().expect("a digest");
            assert_eq!(sha256(&copy.blob(digest).expect(200).body), digest);
        }
    }
}

#[test]
fn a_dry_run_writes_nothing_and_counts_the_bytes() {
    let (from, to) = (Registry::plain(), Registry::plain());
    let image = Image::new(3, "amd64", &[2 * MIB, 100]);
    Repository::new(from.addr(), "app").push_image("1", &image);
    let options = Options { dry_run: true, ..Options::default() };
    let summary = replicate(&[from.addr()], registry(to.addr()), options).complete().summary;
    assert_eq!(summary.bytes_copied, image.blobs.iter().map(|blob| blob.len() as u64).sum::<u64>());
    assert_eq!((summary.images_copied, summary.blobs_copied), (1, 3));
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        assert!(!to.log().contains(&format!("http.request.method={method}")), "{}", to.log());
    }
}

#[test]
fn what_is_corrupt_at_the_source_does_not_arrive() {
    let (from, to) = (Registry::plain(), Registry::plain());
    let master = Repository::new(from.addr(), "app");
    let whole = Image::new(1, "amd64", &[2 * MIB]);
    master.push_image("whole", &whole);
    for (tag, size) in [("small", 1000), ("large", 2 * MIB)] {
        let bad = Image::new(7 + size as u64, "amd64", &[size]);
        master.push_image(tag, &bad);
        let digest = sha256(bad.layer(0));
        let path = format!("docker/registry/v2/blobs/sha256/{}/{}/data", &hex(&digest)[..2], hex(&digest));
        let path = from.data().join(path);
        let mut bytes = fs::read(&path).expect("the blob");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&path, bytes).expect("the registry's own file");
    }
    let home = TempDir::new().expect("a directory");
    for target in [registry(to.addr()), tree(home.path())] {
        let summary = replicate(&[from.addr()], target, Options::default()).summary;
        assert_eq!((summary.images_copied, summary.images_failed), (1, 2), "{summary:#?}");
        for failure in &summary.failures {
            assert!(failure.why.contains("digest mismatch"), "{failure:?}");
        }
    }
    let copy = master.at(to.addr());
    copy.assert_holds("whole", &whole);
    for tag in ["small", "large"] {
        copy.manifest(tag).expect(404);
    }
}

#[test]
fn another_source_gives_what_one_has_corrupt() {
    let (bad, good, to) = (Registry::plain(), Registry::plain(), Registry::plain());
    let image = Image::new(1, "amd64", &[2 * MIB, 100]);
    for from in [&bad, &good] {
        Repository::new(from.addr(), "app").push_image("1", &image);
    }
    for layer in [0, 1] {
        let digest = sha256(image.layer(layer));
        let path = format!("docker/registry/v2/blobs/sha256/{}/{}/data", &hex(&digest)[..2], hex(&digest));
        let path = bad.data().join(path);
        let mut bytes = fs::read(&path).expect("the blob");
        bytes[0] ^= 1;
        fs::write(&path, bytes).expect("the registry's own file");
    }
    replicate(&[bad.addr(), good.addr()], registry(to.addr()), Options::default()).complete();
    Repository::new(to.addr(), "app").assert_holds("1", &image);
}

/// Passes connections on, and cuts the first `cuts` that carry more than `after` bytes towards the client (`down`), or the
/// server, before they end.
fn cutting(to: SocketAddr, cuts: usize, after: usize, down: bool) -> (Listener, Arc<AtomicUsize>) {
    let (left, done) = (Arc::new(Mutex::new(cuts)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&done);
    let listener = Listener::start(Arc::new(move |client: TcpStream| {
        let Ok(server) = TcpStream::connect(to) else { return };
        let pass = |mut from: TcpStream, mut into: TcpStream, is_cut: bool| {
            let (left, done) = (Arc::clone(&left), Arc::clone(&done));
            std::thread::spawn(move || {
                let (mut passed, mut buffer) = (0, vec![0; 64 * 1024]);
                while let Ok(read) = from.read(&mut buffer) {
                    if read == 0 || into.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                    passed += read;
                    let mut left = left.lock().expect("not poisoned");
                    if is_cut && passed > after && *left > 0 {
                        *left -= 1;
                        done.fetch_add(1, Ordering::SeqCst);
                        let _ = from.shutdown(Shutdown::Both);
                        break;
                    }
                }
                let _ = into.shutdown(Shutdown::Both);
            })
        };
        let clone = |stream: &TcpStream| stream.try_clone().expect("a second handle");
        let up = pass(clone(&client), clone(&server), !down);
        let back = pass(server, client, down);
        let _ = (up.join(), back.join());
    }));
    (listener, count)
}

#[test]
fn a_source_that_breaks_off_is_asked_for_the_rest() {
    let from = Registry::plain();
    let image = Image::new(1, "amd64", &[20 * MIB]);
    Repository::new(from.addr(), "app").push_image("1", &image);
    let home = TempDir::new().expect("a directory");
    let to = Registry::plain();
    for target in [registry(to.addr()), tree(home.path())] {
        let (proxy, cuts) = cutting(from.addr(), 2, 7 * MIB, true);
        let summary = replicate(&[proxy.addr()], target, Options::default()).complete().summary;
        assert_eq!((cuts.load(Ordering::SeqCst), summary.retries), (2, 2));
        let size = image.blobs.iter().map(|blob| blob.len() as u64).sum::<u64>();
        assert_eq!(summary.bytes_copied, size, "nothing is sent twice");
    }
    Repository::new(to.addr(), "app").assert_holds("1", &image);
}

#[test]
fn a_target_that_breaks_off_gets_the_rest() {
    let from = Registry::plain();
    let image = Image::new(1, "amd64", &[40 * MIB]);
    Repository::new(from.addr(), "app").push_image("1", &image);
    let size = image.blobs.iter().map(|blob| blob.len() as u64).sum::<u64>();
    // docker-registry 2.8 forgets an upload that broke off; each attempt sends all of it at most.
    let (plain, spliceway) = (Registry::plain(), Spliceway::start(|_| ()));
    for (to, lost_max) in [(plain.addr(), 90 * MIB), (spliceway.addr(), 25 * MIB)] {
        let (proxy, cuts) = cutting(to, 2, 15 * MIB, false);
        let ran = replicate(&[from.addr()], registry(proxy.addr()), Options::default()).complete();
        assert_eq!(cuts.load(Ordering::SeqCst), 2);
        assert!(ran.summary.bytes_copied < size + lost_max as u64, "{:?}", ran.summary);
        Repository::new(to, "app").assert_holds("1", &image);
    }
}

#[test]
fn referrers_come_with_their_images() {
    let from = Spliceway::start(|_| ());
    let master = Repository::new(from.addr(), "app");
    let image = Image::new(1, "amd64", &[100]);
    master.push_image("1", &image);
    let signature = push_referrer(&master, &image.manifest, "signed");
    let countersignature = push_referrer(&master, &signature, "signed again");

    // A target that lists them itself, and one where the fallback tag does.
    let (spliceway, plain) = (Spliceway::start(|_| ()), Registry::plain());
    for to in [spliceway.addr(), plain.addr()] {
        let replication = Replication::new(&[from.addr()], registry(to), Options::default());
        let first = replication.run().complete().summary;
        assert_eq!((first.images_copied, first.referrers_copied), (1, 2));
        let second = replication.run().complete().summary;
        assert_eq!((second.manifests_copied, second.requests_target), (0, 2), "{second:?}");
        let copy = master.at(to);
        for manifest in [&signature, &countersignature] {
            assert_eq!(copy.manifest(&sha256(manifest)).expect(200).body, *manifest);
        }
    }
    let copy = master.at(spliceway.addr());
    assert_eq!(listed(&copy.referrers(&image.digest(), "").expect(200).body), [sha256(&signature)]);
    let copy = master.at(plain.addr());
    let fallback = |subject: &str| copy.manifest(&subject.replace(':', "-")).expect(200).body;
    assert_eq!(listed(&fallback(&image.digest())), [sha256(&signature)]);
    assert_eq!(listed(&fallback(&sha256(&signature))), [sha256(&countersignature)]);

    // And on from the fallback tags to a target that lists them itself.
    let last = Spliceway::start(|_| ());
    replicate(&[plain.addr()], registry(last.addr()), Options::default()).complete();
    let copy = master.at(last.addr());
    assert_eq!(listed(&copy.referrers(&image.digest(), "").expect(200).body), [sha256(&signature)]);
}

#[test]
fn tags_that_the_source_lost_are_removed_within_the_limit() {
    let (from, to) = (Registry::plain(), Registry::plain());
    let (master, copy) = (Repository::new(from.addr(), "app"), Repository::new(to.addr(), "app"));
    let (kept, lost) = (Image::new(1, "amd64", &[100]), Image::new(2, "amd64", &[100]));
    master.push_image("kept", &kept);
    copy.push_image("lost", &lost);
    copy.push_image("kept", &kept);
    // What another tag needs stays: directly, and as a child.
    copy.push_image("alias", &kept);
    let child = Image::new(3, "arm64", &[100]);
    copy.push_image("child", &child);
    master.push_image(&child.digest(), &child);
    let index = images::index(&[child]);
    for repository in [&copy, &master] {
        repository.put("index", OCI_INDEX, &index).expect(201);
    }
    let run = |delete_max| {
        let options = Options { delete_max, ..Options::default() };
        replicate(&[from.addr()], registry(to.addr()), options)
    };
    run(None).complete();
    copy.manifest("lost").expect(200);
    let refused = run(Some(2)).summary;
    assert_eq!((refused.tags_deleted, refused.failures_total), (0, 1), "{refused:?}");
    let removed = run(Some(3));
    assert!(
        removed
            .events
            .iter()
            .any(|event| matches!(event, Event::Deleted { image } if image.to_string() == "app:lost"))
    );
    // docker-registry removes manifests only, and two of these are needed.
    assert_eq!(
        (removed.summary.tags_deleted, removed.summary.failures_total),
        (1, 2),
        "{:?}",
        removed.summary
    );
    copy.manifest("lost").expect(404);
    copy.assert_holds("kept", &kept);
    for tag in ["alias", "child", "index"] {
        copy.manifest(tag).expect(200);
    }
}

#[test]
fn registries_that_want_logins_are_copied_from_and_to() {
    let tokens = TokenServer::start(Duration::from_mins(5));
    let image = Image::new(1, "amd64", &[100, 2 * MIB]);
    let login = |addr: &SocketAddr| UpstreamOptions {
        credentials: Credentials::Basic { username: USERNAME.into(), password: PASSWORD.into() },
        ..client(addr)
    };
    let plain = Registry::plain();
    for name in ["app", "other"] {
        Repository::new(plain.addr(), name).push_image("1", &image);
    }
    let (by_token, by_password) = (Registry::token(&tokens), Registry::htpasswd());
    let mut from = plain.addr();
    for to in [by_token.addr(), by_password.addr()] {
        let source = Arc::new(Source::new("source", login(&from)).expect("a valid URL"));
        let target = Target::registry("target", login(&to)).expect("a valid URL");
        let replicator = Replicator::new(target, Selection::default(), Options::default());
        let summary = Replication { replicator, sources: vec![source] }.run().complete().summary;
        assert_eq!(summary.images_copied, 2);
        from = to;
    }
    // To push and later to pull: for each repository its own, beside those of the catalog and of mounts.
    assert!(tokens.seen().len() <= 8, "{} tokens", tokens.seen().len());
}

#[test]
fn who_is_told_to_stop_lets_arrive_what_is_in_flight() {
    let (from, to) = (Registry::plain(), Registry::plain());
    let image = Image::new(1, "amd64", &[3 * MIB, 3 * MIB, 3 * MIB]);
    Repository::new(from.addr(), "app").push_image("1", &image);
    let options = Options { blobs_at_once: 1, ..Options::default() };
    let replication = Replication::new(&[from.addr()], registry(to.addr()), options);
    let stop = Stop::new();
    let first = replication.run_until(&stop, |event| {
        if matches!(event, Event::BlobProgress { size: Some(size), .. } if *size > MIB as u64) {
            stop.after_blobs();
        }
    });
    assert!(first.summary.stopped && first.summary.failures_total == 0, "{:?}", first.summary);
    let large = |ran: &Ran| {
        let is_large = |event: &&Event| matches!(event, Event::BlobDone { size: Some(size), how: BlobOutcome::Copied, .. } if *size > MIB as u64);
        ran.events.iter().filter(is_large).count()
    };
    assert_eq!((large(&first), first.summary.images_copied), (1, 0));
    Repository::new(to.addr(), "app").manifest("1").expect(404);

    let cut = replication.run_until(&Stop::new(), |_| ());
    assert_eq!(large(&cut.complete()), 2, "what arrived is not sent again");

    let stop = Stop::new();
    stop.at_once();
    assert!(replication.run_until(&stop, |_| ()).summary.stopped);
}

#[test]
fn a_blob_that_many_images_need_is_copied_once() {
    let (from, to) = (Registry::plain(), Registry::plain());
    let shared = noise(1, 3 * MIB);
    for n in 0..6 {
        let repository = Repository::new(from.addr(), &format!("app{n}"));
        let config = format!("{{\"n\":{n}}}").into_bytes();
        repository.push(&shared);
        repository.push(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config),
            "layers": [descriptor(OCI_LAYER, &shared)],
        });
        repository.put("1", OCI_MANIFEST, manifest.to_string().as_bytes()).expect(201);
    }
    let ran = replicate(&[from.addr()], registry(to.addr()), Options::default()).complete();
    let of_shared: Vec<_> = ran
        .events
        .iter()
        .filter_map(|event| match event {
            Event::BlobDone { digest, how, .. } if digest.to_string() == sha256(&shared) => Some(*how),
            _ => None,
        })
        .collect();
    assert_eq!(of_shared.iter().filter(|how| **how == BlobOutcome::Copied).count(), 1);
    assert_eq!(of_shared.iter().filter(|how| **how == BlobOutcome::Mounted).count(), 5);
}
