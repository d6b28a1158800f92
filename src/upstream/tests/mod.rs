//! An upstream against servers on the loopback address.

mod auth;
mod blobs;
mod documents;
mod endpoints;
mod push;
mod server;
mod tls;

use std::time::Duration;

use server::{Reply, Seen, Server};

use super::{BlobRequest, Upstream, UpstreamOptions};
use crate::oci::{Algorithm, Digest, Reference, RepositoryName};

/// Long enough for a busy machine, short enough to notice a hang.
fn options(url: &str) -> UpstreamOptions {
    let mut options = UpstreamOptions::new("test", url);
    options.header_timeout = Duration::from_secs(20);
    options.stall_timeout = Duration::from_secs(20);
    options
}

fn upstream(url: &str) -> Upstream {
    Upstream::new(options(url)).unwrap()
}

fn with_mirror(mirror: &str, url: &str) -> Upstream {
    let mut options = options(url);
    options.mirrors = vec![mirror.to_owned()];
    Upstream::new(options).unwrap()
}

/// Fills run as tasks of their own.
#[test]
fn requests_can_be_spawned() {
    fn is_send(_: impl Send) {}
    let upstream = upstream("http://registry.example");
    let (repository, tag, digest) = (repository(), tag(), digest_of(b""));
    is_send(upstream.blob(&repository, &digest, BlobRequest::default()));
    is_send(upstream.blob_head(&repository, &digest));
    is_send(upstream.manifest(&repository, &tag));
    is_send(upstream.manifest_head(&repository, &tag));
    is_send(upstream.tags(&repository));
}

fn repository() -> RepositoryName {
    "team/app".parse().unwrap()
}

fn digest_of(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

fn tag() -> Reference {
    "1.0".parse().unwrap()
}
