//! `gc` and `rm` while clients push, as fast as both can: a manifest that was answered with 201 is whole, and stays whole.
//!
//! Pushers share their layers, so that what one deletes is garbage until the next one needs it again: whether it is sent,
//! mounted, or found by HEAD. All have the same few images, and each a repository of its own, where it knows what must
//! be there.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use tempfile::TempDir;

use super::reference::Tree;
use super::{assert_exit, command, temporary};
use crate::support::client::{Answer, Connection, Request};
use crate::support::images::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, descriptor};
use crate::support::process::{Spliceway, entries};
use crate::support::push::{OCTETS, Repository, blob_path, location};
use crate::support::{noise, sha256, tools};

/// What bounds a test: so many manifests, or so long.
const PUSHES: usize = 3000;
const SECONDS_MAX: u64 = 30;
/// Pushers at once.
const PUSHERS: usize = 4;
/// Different layers, and images of three of them.
const LAYERS: u64 = 7;
const IMAGES: u64 = 9;
/// How often a push is begun again before the server is blamed. With no grace at all a collection may take what was pushed
/// for a manifest that has not come yet.
const ATTEMPTS: usize = 200;

/// A manifest and what has to be pushed before it.
#[derive(Clone)]
struct Image {
    blobs: Vec<Vec<u8>>,
    children: Vec<Image>,
    manifest: Vec<u8>,
    media_type: &'static str,
}

impl Image {
    /// One of the images that all pushers have. `note` makes its manifest another one.
    fn new(number: u64, note: u64) -> Self {
        let layer = |step| noise((number + step) % LAYERS, 400 + 100 * usize::try_from(step).expect("small"));
        let layers: Vec<_> = (0..3).map(|step| layer(step * step)).collect();
        let config =
            json!({"architecture": "amd64", "os": "linux", "number": number}).to_string().into_bytes();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "annotations": {"note": note.to_string()},
            "config": descriptor(OCI_CONFIG, &config),
            "layers": layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect::<Vec<_>>()});
        let mut blobs = vec![config];
        blobs.extend(layers);
        let manifest = manifest.to_string().into_bytes();
        Self { blobs, children: Vec::new(), manifest, media_type: OCI_MANIFEST }
    }

    /// An index of two of them.
    fn index(number: u64, note: u64) -> Self {
        let children = vec![Self::new(number, note), Self::new(number + 1, note)];
        let entries: Vec<_> =
            children.iter().map(|child| descriptor(OCI_MANIFEST, &child.manifest)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        let manifest = manifest.to_string().into_bytes();
        Self { blobs: Vec::new(), children, manifest, media_type: OCI_INDEX }
    }

    fn digest(&self) -> String {
        sha256(&self.manifest)
    }

    /// Every file that it needs below `local`: the blobs, and the links of `repository`.
    fn files(&self, local: &Path, repository: &str) -> Vec<PathBuf> {
        let home = local.join("docker/registry/v2/repositories").join(repository);
        let link = |kind: &str, digest: &str| home.join(kind).join(digest.replace(':', "/")).join("link");
        let digest = self.digest();
        let mut files = vec![blob_path(local, &digest), link("_manifests/revisions", &digest)];
        for blob in self.blobs.iter().map(|blob| sha256(blob)) {
            files.extend([blob_path(local, &blob), link("_layers", &blob)]);
        }
        files.extend(self.children.iter().flat_map(|child| child.files(local, repository)));
        files
    }
}

/// How a client comes to know that a blob is there.
#[derive(Clone, Copy, Debug)]
enum Way {
    Sent,
    SentAtOnce,
    Mounted,
    Asked,
}

const WAYS: [Way; 4] = [Way::Sent, Way::SentAtOnce, Way::Mounted, Way::Asked];

/// A client with a connection that it keeps.
struct Client {
    addr: SocketAddr,
    connection: Option<Connection>,
}

impl Client {
    fn new(addr: SocketAddr) -> Self {
        Self { addr, connection: None }
    }

    /// A connection that was closed meanwhile is replaced once.
    fn send(&mut self, request: &Request) -> Answer {
        if let Some(connection) = self.connection.take()
            && let Ok(exchange) = connection.request(self.addr, request)
        {
            return self.keep(exchange.finish());
        }
        let exchange = Connection::open(self.addr).request(self.addr, request).expect("an answer");
        self.keep(exchange.finish())
    }

    fn keep(&mut self, (answer, connection): (Answer, Connection)) -> Answer {
        if answer.header("connection") != Some("close") {
            self.connection = Some(connection);
        }
        answer
    }
}

/// What all threads of a test share.
struct Course<'a> {
    servers: &'a [SocketAddr],
    local: &'a Path,
    deadline: Instant,
    over: AtomicBool,
    pushed: AtomicUsize,
    refused: AtomicUsize,
}

impl<'a> Course<'a> {
    fn new(servers: &'a [SocketAddr], local: &'a Path) -> Self {
        Self {
            servers,
            local,
            deadline: Instant::now() + Duration::from_secs(SECONDS_MAX),
            over: AtomicBool::new(false),
            pushed: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
            || self.pushed.load(Ordering::Relaxed) >= PUSHES
            || Instant::now() >= self.deadline
    }
}

/// Ends a test for all threads when one of them fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// One client that pushes into a repository of its own.
struct Pusher<'a> {
    course: &'a Course<'a>,
    repository: String,
    clients: Vec<Client>,
    random: fastrand::Rng,
    /// Tags and what they point at.
    holds: Vec<(String, Image)>,
}

impl<'a> Pusher<'a> {
    fn new(course: &'a Course<'a>, repository: &str, seed: u64) -> Self {
        Self {
            course,
            repository: repository.into(),
            clients: course.servers.iter().map(|&addr| Client::new(addr)).collect(),
            random: fastrand::Rng::with_seed(seed),
            holds: Vec::new(),
        }
    }

    /// A request to any of the servers.
    fn ask(&mut self, request: &Request) -> Answer {
        let server = self.random.usize(..self.clients.len());
        self.clients[server].send(request)
    }

    fn at(&self, path: &str) -> Repository {
        Repository::new(self.course.servers[0], &self.repository.clone()).named(path)
    }

    fn request(&self, method: &'static str, path: &str) -> Request {
        self.at(&self.repository).request(method, path)
    }

    fn blob(&mut self, bytes: &[u8], way: Way) {
        let digest = sha256(bytes);
        let answer = match way {
            Way::Sent => self.ask(&self.request("POST", "blobs/uploads/").body([])),
            Way::SentAtOnce => {
                let path = format!("blobs/uploads/?digest={digest}");
                self.ask(&self.request("POST", &path).header("Content-Type", OCTETS).body(bytes))
            }
            Way::Mounted => {
                let from = format!("push/{}", self.random.usize(..PUSHERS));
                let path = format!("blobs/uploads/?mount={digest}&from={from}");
                self.ask(&self.request("POST", &path).body([]))
            }
            Way::Asked => {
                let answer = self.ask(&self.request("HEAD", &format!("blobs/{digest}")));
                match answer.status() {
                    200 => return,
                    404 => self.ask(&self.request("POST", "blobs/uploads/").body([])),
                    _ => panic!("{answer}"),
                }
            }
        };
        match answer.status() {
            201 => {}
            202 => {
                let target = location(&answer);
                let joint = if target.contains('?') { '&' } else { '?' };
                let put = Request::new("PUT", format!("{target}{joint}digest={digest}"));
                self.ask(&put.header("Content-Type", OCTETS).body(bytes)).expect(201);
            }
            _ => panic!("{way:?}: {answer}"),
        }
    }

    /// Pushes until it is accepted, and says how often it was refused.
    fn push(&mut self, reference: &str, image: &Image, way: Way) {
        for attempt in 0..ATTEMPTS {
            // Who was refused looks no more, and sends.
            let way = if attempt == 0 { way } else { Way::SentAtOnce };
            for blob in &image.blobs {
                self.blob(blob, way);
            }
            for child in &image.children {
                self.push(&child.digest(), child, way);
            }
            let request = self.at(&self.repository).put_request(reference, image.media_type, &image.manifest);
            let answer = self.ask(&request);
            if answer.status() == 201 {
                return;
            }
            let code = answer.error_code();
            let is_missing = ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"].contains(&code.as_str());
            assert!(matches!(answer.status(), 400 | 404) && is_missing, "{answer}");
            self.course.refused.fetch_add(1, Ordering::Relaxed);
        }
        panic!("{ATTEMPTS} pushes of {reference} were refused, one after the other");
    }

    /// Everything that was promised is on the disk.
    #[track_caller]
    fn assert_there(&self, tag: &str, image: &Image, when: &str) {
        for file in image.files(self.course.local, &self.repository) {
            assert!(file.exists(), "{}:{tag} {when}: {} is gone", self.repository, file.display());
        }
    }

    /// Everything that was promised can be pulled, wherever it is asked for.
    #[track_caller]
    fn assert_pulled(&mut self, tag: &str, image: &Image) {
        for server in 0..self.clients.len() {
            let accept =
                |request: Request| request.header("Accept", OCI_MANIFEST).header("Accept", OCI_INDEX);
            let get = accept(self.request("GET", &format!("manifests/{tag}")));
            // What another process knew of the tag may be half a second old.
            if self.clients.len() == 1 {
                self.clients[server].send(&get).expect(200).expect_body(&image.manifest);
            }
            for image in image.children.iter().chain([image]) {
                let get = accept(self.request("GET", &format!("manifests/{}", image.digest())));
                self.clients[server].send(&get).expect(200).expect_body(&image.manifest);
                for blob in &image.blobs {
                    let get = self.request("GET", &format!("blobs/{}", sha256(blob)));
                    self.clients[server].send(&get).expect(200).expect_body(blob);
                }
            }
        }
    }

    fn turn(&mut self, number: u64) {
        let way = WAYS[self.random.usize(..WAYS.len())];
        let (which, note) = (self.random.u64(..IMAGES), self.random.u64(..3));
        let image =
            if number.is_multiple_of(5) { Image::index(which, note) } else { Image::new(which, note) };
        let tag = format!("t{}", self.random.u64(..3));
        self.push(&tag, &image, way);
        self.course.pushed.fetch_add(1, Ordering::Relaxed);
        self.assert_there(&tag, &image, "when 201 was answered");
        self.holds.retain(|(known, _)| *known != tag);
        self.holds.push((tag.clone(), image.clone()));
        if number.is_multiple_of(3) {
            self.assert_pulled(&tag, &image);
        }
        thread::sleep(Duration::from_micros(self.random.u64(..3000)));
        for (tag, image) in &self.holds {
            self.assert_there(tag, image, "some time later");
        }
        // Most go again, so that most of what is pushed is garbage.
        if self.random.u8(..4) > 0 {
            self.delete(&image);
        }
    }

    /// Whether an index that is to stay needs it.
    fn is_child(&self, digest: &str) -> bool {
        self.holds.iter().any(|(_, held)| held.children.iter().any(|child| child.digest() == digest))
    }

    /// By digest, with the tags that point at it and the children, as far as nothing else here needs them.
    fn delete(&mut self, image: &Image) {
        let digest = image.digest();
        if self.is_child(&digest) {
            return;
        }
        self.holds.retain(|(_, held)| held.digest() != digest);
        self.ask(&self.request("DELETE", &format!("manifests/{digest}"))).expect(202);
        let children: Vec<String> = image.children.iter().map(Image::digest).collect();
        for child in children {
            let is_held = self.holds.iter().any(|(_, held)| held.digest() == child);
            if !is_held && !self.is_child(&child) {
                let answer = self.ask(&self.request("DELETE", &format!("manifests/{child}")));
                assert!(matches!(answer.status(), 202 | 404), "{answer}");
            }
        }
    }

    fn run(mut self) -> Vec<(String, String, Image)> {
        let _ends = Ends(&self.course.over);
        let mut number = 0;
        while !self.course.is_over() {
            self.turn(number);
            number += 1;
        }
        let held = std::mem::take(&mut self.holds);
        held.into_iter().map(|(tag, image)| (self.repository.clone(), tag, image)).collect()
    }
}

/// Runs collections one after the other; how many there were, and how many blobs they took.
fn collector(course: &Course<'_>, data: &Path, more: &[&str]) -> [usize; 2] {
    let _ends = Ends(&course.over);
    let [mut runs, mut blobs] = [0, 0];
    while !course.is_over() {
        let finished = tools::run(&mut gc(data, more));
        assert_exit(&finished, 0);
        blobs += finished.stdout.matches("removed blob").count();
        runs += 1;
    }
    [runs, blobs]
}

/// Pushes what the others push, and removes it by `rm` in one of its forms; how often.
fn remover(course: &Course<'_>, data: &Path) -> usize {
    let _ends = Ends(&course.over);
    let mut pusher = Pusher::new(course, "victim/app", 77);
    let mut runs = 0;
    while !course.is_over() {
        let number = runs as u64;
        let image =
            if number.is_multiple_of(3) { Image::index(number, number) } else { Image::new(number, number) };
        pusher.push("v", &image, WAYS[runs % WAYS.len()]);
        pusher.assert_there("v", &image, "when 201 was answered");
        let what = match runs % 3 {
            0 => "victim/app:v".to_owned(),
            1 => "victim/app".to_owned(),
            _ => format!("victim/app@{}", image.digest()),
        };
        let finished = tools::run(command(&["rm", &what, "--data"]).arg(data));
        assert_exit(&finished, 0);
        let link = &image.files(course.local, "victim/app")[1];
        assert!(!link.exists(), "{what} is still there: {}", finished.stdout);
        runs += 1;
    }
    runs
}

/// By how much everything is made older between two collections: they spare what was written a moment ago, and nothing
/// would ever be collected here.
const AGED: Duration = Duration::from_secs(10);

/// Makes all blobs and their links older. No collection is under way meanwhile, as it would have the right to be misled.
fn make_older(local: &Path) {
    fs::create_dir_all(local.join("locks")).expect("our own directory");
    // Its time says when a collection was last done: it is left alone.
    let lock = File::options().write(true).create(true).truncate(false).open(local.join("locks/gc"));
    let lock = lock.expect("our own directory");
    lock.lock().expect("a lock");
    let registry = local.join("docker/registry/v2");
    let young = SystemTime::now() - AGED / 2;
    let mut open = vec![registry.join("blobs"), registry.join("repositories")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(entries(&path));
        } else if path.ends_with("data") || path.components().any(|part| part.as_os_str() == "_layers") {
            // It may be gone since it was listed.
            let Ok(file) = File::open(&path) else { continue };
            let modified = file.metadata().and_then(|meta| meta.modified()).expect("a time");
            if modified > young {
                file.set_modified(modified - AGED).expect("our own directory");
            }
        }
    }
}

/// A collection that takes whatever was not written, mounted or asked for since the last one.
fn gc(data: &Path, more: &[&str]) -> Command {
    make_older(&data.join("local"));
    let mut command = command(&["gc", "--grace", "0s"]);
    command.args(more).arg("--data").arg(data);
    command
}

/// Lets pushers and whatever `beside` starts run against each other, then looks at what is left.
fn race(servers: &[&Spliceway], beside: impl Fn(&Course<'_>, &Path) -> Vec<usize> + Sync) {
    let data = servers[0].data();
    let local = data.join("local");
    let addrs: Vec<_> = servers.iter().map(|server| server.addr()).collect();
    let course = Course::new(&addrs, &local);
    let (held, runs) = thread::scope(|scope| {
        let beside = scope.spawn(|| beside(&course, &data));
        let pushers: Vec<_> = (0..PUSHERS)
            .map(|number| {
                let pusher = Pusher::new(&course, &format!("push/{number}"), number as u64);
                scope.spawn(move || pusher.run())
            })
            .collect();
        let held: Vec<_> = pushers.into_iter().flat_map(|pusher| pusher.join().expect("a pusher")).collect();
        course.over.store(true, Ordering::Relaxed);
        (held, beside.join().expect("what runs beside"))
    });
    let (pushed, refused) = (course.pushed.into_inner(), course.refused.into_inner());
    eprintln!("{pushed} pushes, {refused} refused; removals, collections, blobs that these took: {runs:?}");
    assert!(pushed > 0 && runs.iter().all(|&runs| runs > 0));

    assert_exit(&tools::run(&mut gc(&data, &[])), 0);
    let left = Tree::read(&local);
    left.assert_whole(&Tree::default());
    left.assert_is(&left.collected(), "after the last collection");
    for (name, tag, image) in held {
        for server in servers {
            let repository = Repository::new(server.addr(), &name);
            repository.manifest(&tag).expect(200).expect_body(&image.manifest);
            for blob in image.children.iter().chain([&image]).flat_map(|image| &image.blobs) {
                repository.blob(&sha256(blob)).expect(200).expect_body(blob);
            }
        }
    }
}

/// Nothing is collected but what a test collects.
const BY_HAND: &str = "[maintenance]\ngc = \"off\"\n";
/// As often as can be asked for.
const BY_ITSELF: &str = "[maintenance]\ngc = \"1s\"\ngc_grace = \"0s\"\ngc_untagged = \"on\"\n";

/// A server whose data is in memory where that is possible: what is raced for here are locks, not the disk.
fn start(more: &str) -> (TempDir, Spliceway) {
    let home = temporary();
    let spliceway = Spliceway::start(|setup| {
        setup.data(home.path()).more(more);
    });
    (home, spliceway)
}

#[test]
fn pushes_win_against_collections() {
    let (_home, spliceway) = start(BY_HAND);
    race(&[&spliceway], |course, data| collector(course, data, &[]).into());
}

#[test]
fn pushes_win_against_collections_of_what_has_no_tag() {
    let (_home, spliceway) = start(BY_HAND);
    race(&[&spliceway], |course, data| collector(course, data, &["--untagged"]).into());
}

/// Collections and removals at once.
fn both(course: &Course<'_>, data: &Path) -> Vec<usize> {
    thread::scope(|scope| {
        let collector = scope.spawn(|| collector(course, data, &[]));
        let removals = remover(course, data);
        [&[removals], &collector.join().expect("collections")[..]].concat()
    })
}

#[test]
fn pushes_win_against_removals() {
    let (_home, spliceway) = start(BY_HAND);
    race(&[&spliceway], both);
}

#[test]
fn pushes_win_through_two_processes() {
    let (_home, first) = start(BY_HAND);
    let second = first.sibling(|_| ());
    race(&[&first, &second], both);
}

#[test]
fn pushes_win_against_what_servers_collect_of_their_own_accord() {
    let (_home, first) = start(BY_ITSELF);
    let second = first.sibling(|_| ());
    race(&[&first, &second], |course, data| {
        let _ends = Ends(&course.over);
        let local = data.join("local");
        while !course.is_over() {
            make_older(&local);
            thread::sleep(Duration::from_millis(200));
        }
        let sum = |name: &str, label: &str| {
            [&first, &second].map(|server| server.metric(name, &[label])).iter().sum::<f64>()
        };
        let failures = sum("spliceway_maintenance_runs_total", "outcome=\"failed\"");
        assert!(failures == 0.0, "{failures} collections failed");
        let done = sum("spliceway_maintenance_runs_total", "job=\"gc\"");
        let blobs = sum("spliceway_maintenance_removed_total", "job=\"gc\"");
        assert!(done > 0.0 && blobs > 0.0, "{done} collections took {blobs} blobs");
        Vec::new()
    });
}
