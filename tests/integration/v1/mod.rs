//! The Docker v1 mirror in front of a source that misbehaves on demand.

mod existing;
mod layers;
mod private;
mod repositories;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use toml::Table;

use crate::support::client::get;
use crate::support::origin::{Document, Origin};
use crate::support::process::{Setup, Spliceway};
use crate::support::{eventually, hex, noise, sha256};

/// An image that a source has.
struct Image {
    id: String,
    json: String,
    ancestry: String,
    layer: Arc<Vec<u8>>,
}

impl Image {
    /// Different for every seed, with a layer of `len` bytes.
    fn new(seed: u64, len: usize) -> Self {
        let layer = Arc::new(noise(seed, len));
        let id = hex(&sha256(format!("image {seed}").as_bytes())).to_owned();
        let parent = hex(&sha256(b"parent")).to_owned();
        let json = json!({ "id": id, "parent": parent, "os": "linux" }).to_string();
        let ancestry = json!([id, parent]).to_string();
        Self { id, json, ancestry, layer }
    }

    fn path(&self, part: &str) -> String {
        format!("/v1/images/{}/{part}", self.id)
    }

    fn layer_path(&self) -> String {
        self.path("layer")
    }

    fn len(&self) -> u64 {
        self.layer.len() as u64
    }

    /// As docker-registry computes it.
    fn checksum(&self) -> String {
        sha256(&[self.json.as_bytes(), b"\n", &self.layer].concat())
    }

    /// The documents that a source has of it, changed by `change`.
    fn put(&self, source: &Origin, change: impl Fn(Document) -> Document) {
        let json = Document::new(self.json.clone()).header("X-Docker-Size", &self.len().to_string());
        source.document(&self.path("json"), change(json));
        source.document(&self.path("ancestry"), change(Document::new(self.ancestry.clone())));
        let layer = Document { bytes: self.layer.clone(), ..Document::new("") };
        source.document(&self.layer_path(), change(layer));
    }

    /// Where a mirror keeps a file of it.
    fn kept(&self, spliceway: &Spliceway, file: &str) -> PathBuf {
        spliceway.data().join("cache/images").join(&self.id).join(file)
    }

    fn is_stored(&self, spliceway: &Spliceway) -> bool {
        self.kept(spliceway, "layer").exists()
    }

    #[track_caller]
    fn wait_stored(&self, spliceway: &Spliceway) {
        eventually("publication", || self.is_stored(spliceway).then_some(()));
        let stored = std::fs::read(self.kept(spliceway, "layer")).expect("it is there");
        assert!(stored == *self.layer, "a stored layer is not the source's");
    }
}

/// A source with one public image.
fn source_of(image: &Image) -> Origin {
    let source = Origin::start();
    image.put(&source, |document| document);
    source
}

fn mirror(source: &Origin) -> Spliceway {
    mirror_with(source, |_, _| ())
}

/// A mirror of `source`, configured further by `change`.
fn mirror_with(source: &Origin, change: impl FnOnce(&mut Setup, &mut Table)) -> Spliceway {
    Spliceway::start(|setup| {
        let mut v1 = Table::new();
        v1.insert("source".into(), source.url().into());
        for (key, value) in [("connect_timeout", "2s"), ("header_timeout", "5s"), ("stall_timeout", "2s")] {
            v1.insert(key.into(), value.into());
        }
        change(setup, &mut v1);
        setup.registry("v1", v1);
    })
}

/// How often the source was asked for `path`.
fn asked(source: &Origin, path: &str) -> usize {
    source.seen("GET", path).len()
}

#[test]
fn it_says_that_it_is_a_mirror_and_takes_no_pushes() {
    let image = Image::new(1, 10);
    let source = source_of(&image);
    let spliceway = mirror(&source);
    for path in ["/_ping", "/v1/_ping"] {
        let answer = get(spliceway.addr(), path).expect(200);
        assert_eq!(answer.header("x-docker-registry-standalone"), Some("mirror"));
    }
    for (method, path) in [("PUT", image.layer_path()), ("PUT", "/v1/repositories/a/b/".into())] {
        let answer = crate::support::client::Request::new(method, path).body("x").send(spliceway.addr());
        let answer = answer.expect(405);
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        assert!(answer.json()["error"].is_string(), "{answer}");
    }
    for path in ["/v1/images/0123/layer", "/v1/images/ABCDEF0123456789/json", "/v1/other"] {
        assert!(get(spliceway.addr(), path).expect(404).json()["error"].is_string());
    }
    assert!(source.all_seen().is_empty(), "none of that is the source's business");
}

#[test]
fn without_v1_the_protocol_is_not_spoken() {
    let spliceway = Spliceway::start(|_| ());
    get(spliceway.addr(), "/v1/_ping").expect(404);
    get(spliceway.addr(), "/_ping").expect(404);
}
