//! A client that pushes, request by request, and a look at the tree that a push leaves.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Answer, Request};
use super::images::{DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_INDEX, OCI_MANIFEST};
use super::process::entries;
use super::registry::skopeo_copy;
use super::{PATIENCE, eventually, hex, sha256, sha512, tools};

/// The media types that a client knows, as it says so.
const ACCEPT: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
/// The type of a blob's bytes.
pub(crate) const OCTETS: &str = "application/octet-stream";

/// A repository of a server.
#[derive(Clone)]
pub(crate) struct Repository {
    addr: SocketAddr,
    host: Option<String>,
    name: String,
}

impl Repository {
    pub(crate) fn new(addr: SocketAddr, name: &str) -> Self {
        Self { addr, host: None, name: name.into() }
    }

    /// At the same server, asked for by another Host.
    pub(crate) fn at_host(&self, host: &str) -> Self {
        Self { host: Some(host.into()), ..self.clone() }
    }

    /// The same at another server.
    pub(crate) fn at(&self, addr: SocketAddr) -> Self {
        Self { addr, ..self.clone() }
    }

    /// Another of the same server.
    pub(crate) fn named(&self, name: &str) -> Self {
        Self { name: name.into(), ..self.clone() }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn request(&self, method: &'static str, path: &str) -> Request {
        let request = Request::new(method, format!("/v2/{}/{path}", self.name));
        match &self.host {
            Some(host) => request.host(host),
            None => request,
        }
    }

    #[track_caller]
    pub(crate) fn send(&self, request: &Request) -> Answer {
        request.send(self.addr)
    }

    /// POST that begins an upload, with a query such as `?mount=…`.
    #[track_caller]
    pub(crate) fn post(&self, query: &str) -> Answer {
        self.send(&self.request("POST", &format!("blobs/uploads/{query}")).body([]))
    }

    /// Begins an upload.
    #[track_caller]
    pub(crate) fn begin(&self) -> Session {
        self.begin_by("")
    }

    /// Begins an upload with a query such as `?digest-algorithm=sha512`.
    #[track_caller]
    pub(crate) fn begin_by(&self, query: &str) -> Session {
        self.session(&self.post(query))
    }

    /// The session that an answer of 202 speaks of.
    #[track_caller]
    pub(crate) fn session(&self, answer: &Answer) -> Session {
        assert_eq!(answer.status(), 202, "{answer}");
        Session { addr: self.addr, host: self.host.clone(), location: location(answer) }
    }

    /// Pushes a blob with POST and PUT; its digest.
    #[track_caller]
    pub(crate) fn push(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        self.push_as(bytes, &digest);
        digest
    }

    /// Pushes a blob under a digest of the caller's choice of algorithm.
    #[track_caller]
    pub(crate) fn push_as(&self, bytes: &[u8], digest: &str) {
        self.begin().finish(digest, bytes).expect(201);
    }

    /// Pushes all blobs of an image and its manifest as `reference`.
    #[track_caller]
    pub(crate) fn push_image(&self, reference: &str, image: &Image) {
        self.push_blobs(image);
        self.put(reference, OCI_MANIFEST, &image.manifest).expect(201);
    }

    #[track_caller]
    pub(crate) fn push_blobs(&self, image: &Image) {
        for blob in &image.blobs {
            self.push(blob);
        }
    }

    #[track_caller]
    pub(crate) fn blob(&self, digest: &str) -> Answer {
        self.send(&self.request("GET", &format!("blobs/{digest}")))
    }

    #[track_caller]
    pub(crate) fn head_blob(&self, digest: &str) -> Answer {
        self.send(&self.request("HEAD", &format!("blobs/{digest}")))
    }

    #[track_caller]
    pub(crate) fn delete_blob(&self, digest: &str) -> Answer {
        self.send(&self.request("DELETE", &format!("blobs/{digest}")))
    }

    pub(crate) fn put_request(&self, reference: &str, media_type: &str, bytes: &[u8]) -> Request {
        let path = format!("manifests/{reference}");
        self.request("PUT", &path).header("Content-Type", media_type).body(bytes)
    }

    /// PUT of a manifest; `reference` may have a query.
    #[track_caller]
    pub(crate) fn put(&self, reference: &str, media_type: &str, bytes: &[u8]) -> Answer {
        self.send(&self.put_request(reference, media_type, bytes))
    }

    #[track_caller]
    pub(crate) fn manifest(&self, reference: &str) -> Answer {
        self.send(&accepting(self.request("GET", &format!("manifests/{reference}"))))
    }

    #[track_caller]
    pub(crate) fn head_manifest(&self, reference: &str) -> Answer {
        self.send(&accepting(self.request("HEAD", &format!("manifests/{reference}"))))
    }

    #[track_caller]
    pub(crate) fn delete_manifest(&self, reference: &str) -> Answer {
        self.send(&self.request("DELETE", &format!("manifests/{reference}")))
    }

    #[track_caller]
    pub(crate) fn tags(&self, query: &str) -> Answer {
        self.send(&self.request("GET", &format!("tags/list{query}")))
    }

    /// The names in the tag list.
    #[track_caller]
    pub(crate) fn tag_names(&self, query: &str) -> Vec<String> {
        strings(&self.tags(query).expect(200).json()["tags"])
    }

    #[track_caller]
    pub(crate) fn referrers(&self, digest: &str, query: &str) -> Answer {
        self.send(&self.request("GET", &format!("referrers/{digest}{query}")))
    }

    /// What was pushed as `reference` comes back whole.
    #[track_caller]
    pub(crate) fn assert_holds(&self, reference: &str, image: &Image) {
        self.manifest(reference).expect(200).expect_body(&image.manifest);
        for blob in &image.blobs {
            self.blob(&sha256(blob)).expect(200).expect_body(blob);
        }
    }

    /// The answer's Location leads to `bytes`.
    #[track_caller]
    pub(crate) fn assert_location(&self, answer: &Answer, bytes: &[u8]) {
        let request = Request::get(location(answer));
        let request = match &self.host {
            Some(host) => request.host(host),
            None => request,
        };
        accepting(request).send(self.addr).expect(200).expect_body(bytes);
    }
}

fn accepting(request: Request) -> Request {
    ACCEPT.iter().fold(request, |request, kind| request.header("Accept", kind))
}

/// Where the answer sends its client: path and query, whether it was written absolute or relative.
#[track_caller]
pub(crate) fn location(answer: &Answer) -> String {
    let location = answer.header("location").unwrap_or_else(|| panic!("no Location: {answer}"));
    let absolute = location.strip_prefix("http://").or_else(|| location.strip_prefix("https://"));
    let path = absolute.map_or(location, |rest| &rest[rest.find('/').unwrap_or(rest.len())..]);
    assert!(path.starts_with("/v2/"), "{answer}");
    path.into()
}

/// The strings of a JSON list; null is an empty one.
pub(crate) fn strings(list: &serde_json::Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .map(|value| value.as_str().expect("a list of strings").to_owned())
        .collect()
}

/// An upload under way.
#[derive(Clone)]
pub(crate) struct Session {
    addr: SocketAddr,
    host: Option<String>,
    location: String,
}

impl Session {
    /// The same at another server on the same directory.
    pub(crate) fn at(&self, addr: SocketAddr) -> Self {
        Self { addr, ..self.clone() }
    }

    /// The same asked for by another Host.
    pub(crate) fn at_host(&self, host: &str) -> Self {
        Self { host: Some(host.into()), ..self.clone() }
    }

    /// The same by its path alone.
    pub(crate) fn without_query(&self) -> Self {
        Self { location: self.path().to_owned(), ..self.clone() }
    }

    /// In another repository.
    pub(crate) fn in_repository(&self, name: &str) -> Self {
        Self { location: format!("/v2/{name}/blobs/uploads/{}", self.uuid()), ..self.clone() }
    }

    pub(crate) fn path(&self) -> &str {
        self.location.split('?').next().unwrap_or_default()
    }

    /// What distribution signed, or would have.
    pub(crate) fn state(&self) -> Option<&str> {
        self.location.split_once("_state=").map(|(_, state)| state)
    }

    pub(crate) fn uuid(&self) -> &str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    /// Where a server with this tree keeps the session.
    pub(crate) fn directory(&self, root: &Path) -> PathBuf {
        let name = self.path().strip_prefix("/v2/").and_then(|rest| rest.split_once("/blobs/uploads/"));
        let (name, uuid) = name.expect("an upload's path");
        repositories(root).join(name).join("_uploads").join(uuid)
    }

    /// Goes on where the answer says.
    #[track_caller]
    pub(crate) fn follow(&mut self, answer: &Answer) {
        self.location = location(answer);
    }

    pub(crate) fn request(&self, method: &'static str) -> Request {
        let request = Request::new(method, self.location.clone()).header("Content-Type", OCTETS);
        match &self.host {
            Some(host) => request.host(host),
            None => request,
        }
    }

    #[track_caller]
    pub(crate) fn send(&self, request: &Request) -> Answer {
        request.send(self.addr)
    }

    /// A chunk of known length that says nothing about its place.
    #[track_caller]
    pub(crate) fn patch(&self, bytes: &[u8]) -> Answer {
        self.send(&self.request("PATCH").body(bytes))
    }

    /// A chunk whose length and place are not said, as docker sends a layer.
    #[track_caller]
    pub(crate) fn stream(&self, bytes: &[u8]) -> Answer {
        self.send(&self.request("PATCH").chunked(bytes, 32 * 1024 + 7))
    }

    pub(crate) fn patch_request(&self, first: usize, bytes: &[u8]) -> Request {
        let range = format!("{first}-{}", first + bytes.len() - 1);
        self.request("PATCH").header("Content-Range", &range).body(bytes)
    }

    /// A chunk that says where it belongs.
    #[track_caller]
    pub(crate) fn patch_at(&self, first: usize, bytes: &[u8]) -> Answer {
        self.send(&self.patch_request(first, bytes))
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Answer {
        self.send(&self.request("GET"))
    }

    pub(crate) fn finish_request(&self, digest: &str, rest: &[u8]) -> Request {
        let joint = if self.location.contains('?') { '&' } else { '?' };
        let location = format!("{}{joint}digest={}", self.location, digest.replace(':', "%3A"));
        let request = Request::new("PUT", location).header("Content-Type", OCTETS);
        let request = match &self.host {
            Some(host) => request.host(host),
            None => request,
        };
        request.body(rest)
    }

    /// PUT with the bytes that are left, none included.
    #[track_caller]
    pub(crate) fn finish(&self, digest: &str, rest: &[u8]) -> Answer {
        self.send(&self.finish_request(digest, rest))
    }

    #[track_caller]
    pub(crate) fn cancel(&self) -> Answer {
        self.send(&self.request("DELETE"))
    }

    /// Asks where to go on, goes on there with what is missing of `bytes`, and finishes; the answer to that.
    ///
    /// A 416 is answered by asking again, as a client does: the server may not have noticed yet that an earlier one is
    /// gone. `Range: 0-0` is said of nothing and of one byte alike: the other is tried if one is refused.
    #[track_caller]
    pub(crate) fn resume(&mut self, bytes: &[u8]) -> Answer {
        let digest = sha256(bytes);
        eventually("the session to be free", || {
            let status = self.status().expect(204);
            self.follow(&status);
            let at = received(&status);
            assert!(at <= bytes.len(), "more is said to be there than was ever sent: {status}");
            if at < bytes.len() {
                let mut answer = self.patch_at(at, &bytes[at..]);
                if answer.status() == 416 && at == 0 {
                    answer = self.patch_at(1, &bytes[1..]);
                }
                if answer.status() == 416 {
                    return None;
                }
                assert_range(&answer.expect(202), bytes.len());
            }
            let answer = self.finish(&digest, &[]);
            (answer.status() != 416).then_some(answer)
        })
    }
}

/// How many bytes the Range of an upload's answer says are there; `0-0` is taken for none.
#[track_caller]
pub(crate) fn received(answer: &Answer) -> usize {
    let range = answer.header("range").unwrap_or_else(|| panic!("no Range: {answer}"));
    let last = range.strip_prefix("0-").and_then(|last| last.parse::<usize>().ok());
    match last.unwrap_or_else(|| panic!("a Range of an upload is 0-<last>: {answer}")) {
        0 => 0,
        last => last + 1,
    }
}

/// The answer's Range says that `len` bytes are there.
#[track_caller]
pub(crate) fn assert_range(answer: &Answer, len: usize) {
    let expected = format!("0-{}", len.saturating_sub(1));
    assert_eq!(answer.header("range"), Some(expected.as_str()), "{answer}");
}

/// Everything that an upload's answer carries: where to go on, how far it is, which one it is.
#[track_caller]
pub(crate) fn assert_upload(answer: &Answer, len: usize) {
    assert_range(answer, len);
    let path = location(answer);
    let uuid = path.split('?').next().and_then(|path| path.rsplit('/').next());
    assert_eq!(answer.header("docker-upload-uuid"), uuid, "{answer}");
    assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"), "{answer}");
}

/// skopeo's push of all that the OCI layout at `layout` holds.
pub(crate) fn push_layout(layout: &Path, addr: SocketAddr, name: &str) {
    let mut command = skopeo_copy();
    command.arg("--dest-tls-verify=false").arg(format!("oci:{}", layout.display()));
    tools::succeed(command.arg(format!("docker://{addr}/{name}")));
}

/// skopeo's copy between two servers.
pub(crate) fn copy(from: SocketAddr, to: SocketAddr, name: &str) {
    let mut command = skopeo_copy();
    command.args(["--src-tls-verify=false", "--dest-tls-verify=false"]);
    tools::succeed(command.arg(format!("docker://{from}/{name}")).arg(format!("docker://{to}/{name}")));
}

/// skopeo's pull into the directory `to`.
pub(crate) fn pull(addr: SocketAddr, name: &str, to: &Path) {
    fs::create_dir_all(to).expect("our own directory");
    let mut command = skopeo_copy();
    command.arg("--src-tls-verify=false").arg(format!("docker://{addr}/{name}"));
    tools::succeed(command.arg(format!("dir:{}", to.display())));
}

/// The two directories hold the same files.
#[track_caller]
pub(crate) fn assert_same_directory(left: &Path, right: &Path) {
    tools::succeed(Command::new("diff").arg("-r").arg(left).arg(right));
    assert!(!entries(left).is_empty(), "{} is empty", left.display());
}

fn repositories(root: &Path) -> PathBuf {
    root.join("docker/registry/v2/repositories")
}

/// Where the tree at `root` keeps the content of `digest`.
pub(crate) fn blob_path(root: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').expect("a digest");
    root.join("docker/registry/v2/blobs").join(algorithm).join(&hex[..2]).join(hex).join("data")
}

/// What is under a digest's name is what its name says, and no tag, manifest or link leads to nothing.
///
/// For a tree in which no blob was deleted: a blob's deletion may leave manifests that name it.
#[track_caller]
pub(crate) fn assert_tree_is_right(root: &Path) {
    if let Err(wrong) = check_tree(root) {
        panic!("{wrong}");
    }
}

/// The same of a tree that a docker-registry writes, as soon as it rests.
///
/// It writes manifests and links in place: while it works on what a client that is gone has asked for, they are there
/// without their content.
#[track_caller]
pub(crate) fn assert_comes_to_be_right(root: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(wrong) = check_tree(root) {
        assert!(Instant::now() < deadline, "{wrong}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn check_tree(root: &Path) -> Result<(), String> {
    for algorithm in ["sha256", "sha512"] {
        for shard in entries(&root.join("docker/registry/v2/blobs").join(algorithm)) {
            for blob in entries(&shard) {
                let name = blob.file_name().expect("a listed name").to_string_lossy().into_owned();
                let Ok(bytes) = fs::read(blob.join("data")) else { continue };
                let digest = if algorithm == "sha256" { sha256(&bytes) } else { sha512(&bytes) };
                if hex(&digest) != name {
                    return Err(format!("{} is not what its name says, but {digest}", blob.display()));
                }
            }
        }
    }
    check_links(root, &repositories(root))
}

fn check_links(root: &Path, directory: &Path) -> Result<(), String> {
    for entry in entries(directory) {
        if entry.ends_with("_uploads") {
            continue;
        }
        if entry.is_dir() {
            check_links(root, &entry)?;
        } else if entry.ends_with("link") {
            let link = fs::read_to_string(&entry).expect("a link");
            let digest = link.trim();
            if !digest.contains(':') {
                return Err(format!("{} holds {link:?}", entry.display()));
            }
            if !blob_path(root, digest).exists() {
                return Err(format!("{} leads to {digest}, which is not there", entry.display()));
            }
            if entry.ends_with("current/link") {
                let manifests = entry.ancestors().nth(4).expect("the directory of a repository's manifests");
                let revision = manifests.join("revisions").join(digest.replace(':', "/")).join("link");
                if !revision.exists() {
                    return Err(format!("{} has no {}", entry.display(), revision.display()));
                }
            }
        }
    }
    Ok(())
}
