//! Pull: blobs, their ranges, manifests by tag and digest, and what is not there.

use super::registry;
use crate::support::client::get;
use crate::support::images::{Image, OCI_MANIFEST};
use crate::support::{noise, sha256, sha512};

#[test]
fn the_base_says_which_api_this_is() {
    let (spliceway, _) = registry();
    for path in ["/v2/", "/v2"] {
        let answer = get(spliceway.addr(), path).expect(200);
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
    }
}

#[test]
fn what_is_not_there_is_404() {
    let (_spliceway, repository) = registry();
    let (digest, long) = (sha256(b"nothing"), sha512(b"nothing"));
    for _ in 0..2 {
        for digest in [&digest, &long] {
            let answer = repository.blob(digest).expect(404);
            assert!(matches!(answer.error_code().as_str(), "BLOB_UNKNOWN" | "NAME_UNKNOWN"), "{answer}");
            assert!(repository.head_blob(digest).expect(404).body.is_empty());
            let answer = repository.manifest(digest).expect(404);
            assert!(matches!(answer.error_code().as_str(), "MANIFEST_UNKNOWN" | "NAME_UNKNOWN"), "{answer}");
            repository.head_manifest(digest).expect(404);
        }
        let answer = repository.manifest("missing-tag").expect(404);
        assert!(matches!(answer.error_code().as_str(), "MANIFEST_UNKNOWN" | "NAME_UNKNOWN"), "{answer}");
        // What could not even be a tag is not there either, as the suite has it; nothing but 404 is right.
        repository.head_manifest(".INVALID_MANIFEST_NAME").expect(404);
        repository.manifest(".INVALID_MANIFEST_NAME").expect(404);
        // The same in a repository that exists.
        repository.push_image("v1", &Image::new(1, "amd64", &[100]));
    }
    repository.manifest("missing-tag").expect_error(404, "MANIFEST_UNKNOWN");
    repository.manifest(&digest).expect_error(404, "MANIFEST_UNKNOWN");
    repository.blob(&digest).expect_error(404, "BLOB_UNKNOWN");
    // A manifest is none of the repository's blobs by name, nor a blob a manifest.
    repository.manifest(&repository.push(b"some bytes")).expect_error(404, "MANIFEST_UNKNOWN");
}

#[test]
fn a_malformed_digest_is_refused_in_ocis_form() {
    let (_spliceway, repository) = registry();
    for digest in ["sha256:totallywrong", "sha256:baddigeststring", "sha512:00"] {
        repository.manifest(digest).expect_error(400, "DIGEST_INVALID");
        repository.blob(digest).expect_error(400, "DIGEST_INVALID");
        let image = Image::new(1, "amd64", &[]);
        repository.put(digest, OCI_MANIFEST, &image.manifest).expect_error(400, "DIGEST_INVALID");
    }
}

#[test]
fn a_pushed_blob_has_ranges() {
    let (_spliceway, repository) = registry();
    let bytes = noise(1, 2048);
    for digest in [sha256(&bytes), sha512(&bytes)] {
        repository.push_as(&bytes, &digest);
        let request = repository.request("GET", &format!("blobs/{digest}"));
        let range = |spec: &str| repository.send(&request.clone().range(spec));
        for (spec, first, last) in
            [("500-1499", 500, 1499), ("500-", 500, 2047), ("-500", 1548, 2047), ("2000-5000", 2000, 2047)]
        {
            let answer = range(spec).expect(206).expect_body(&bytes[first..=last]);
            let content_range = format!("bytes {first}-{last}/2048");
            assert_eq!(answer.header("content-range"), Some(content_range.as_str()), "{spec}");
            let length = (last - first + 1).to_string();
            assert_eq!(answer.header("content-length"), Some(length.as_str()), "{spec}");
        }
        let beyond = range("5000-10000").expect(416);
        assert_eq!(beyond.header("content-range"), Some("bytes */2048"));
        // RFC 9110 section 14.1.1: a range whose ends are the wrong way round is invalid, and ignored.
        let reversed = range("500-0");
        assert!(matches!(reversed.status(), 200 | 416), "{reversed}");
    }
}

#[test]
fn a_pushed_blob_has_its_headers() {
    let (_spliceway, repository) = registry();
    let bytes = noise(1, 100_000);
    let digest = repository.push(&bytes);
    let etag = format!("\"{digest}\"");
    for answer in [repository.blob(&digest).expect(200), repository.head_blob(&digest).expect(200)] {
        for (name, value) in [
            ("docker-content-digest", digest.as_str()),
            ("etag", &etag),
            ("cache-control", "max-age=31536000"),
            ("accept-ranges", "bytes"),
            ("content-type", "application/octet-stream"),
            ("content-length", "100000"),
            ("docker-distribution-api-version", "registry/2.0"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{name}: {answer}");
        }
    }
    let request = repository.request("GET", &format!("blobs/{digest}"));
    repository.send(&request.clone().header("If-None-Match", &etag)).expect(304);
    let encoded = repository.send(&request.header("Accept-Encoding", "gzip, zstd")).expect(200);
    encoded.expect_body(&bytes);
}
