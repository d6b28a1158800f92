//! Registries of one process, chosen by Host: no blob of one is seen, mounted or inferred from another.

use serde_json::json;

use crate::support::images::{Image, OCI_CONFIG, OCI_MANIFEST, descriptor};
use crate::support::process::Spliceway;
use crate::support::push::{Repository, assert_tree_is_right};
use crate::support::sha256;

#[test]
fn registries_chosen_by_host_share_nothing() {
    let spliceway = Spliceway::start(|setup| {
        setup.more(
            "[[registry]]\nname = \"second\"\nhosts = [\"second.example\"]\n\
             [[registry]]\nname = \"third\"\nhosts = [\"third.example:5000\"]\n",
        );
    });
    let first = Repository::new(spliceway.addr(), "team/app");
    let image = Image::new(1, "amd64", &[100, 70_000]);
    first.push_image("v1", &image);
    let subject = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, &image.blobs[0]),
        "layers": [], "subject": descriptor(OCI_MANIFEST, &image.manifest),
    });
    first.put("referrer", OCI_MANIFEST, subject.to_string().as_bytes()).expect(201);
    let mut session = first.begin();
    session.follow(&session.patch(b"first half").expect(202));

    for host in ["second.example", "SECOND.example:1234", "third.example:5000"] {
        let other = first.at_host(host);
        for digest in image.blobs.iter().map(|blob| sha256(blob)).chain([image.digest()]) {
            other.head_blob(&digest).expect(404);
            other.blob(&digest).expect(404);
            other.manifest(&digest).expect(404);
            other.delete_blob(&digest).expect(404);
            other.delete_manifest(&digest).expect(404);
            for name in ["team/app", "new/app"] {
                for query in [format!("?mount={digest}&from=team/app"), format!("?mount={digest}")] {
                    let answer = other.named(name).post(&query);
                    assert_eq!(answer.status(), 202, "{host} {name} {query}: {answer}");
                }
            }
        }
        other.manifest("v1").expect(404);
        other.tags("").expect_error(404, "NAME_UNKNOWN");
        let referrers = other.referrers(&image.digest(), "").expect(200).json();
        assert_eq!(referrers["manifests"], json!([]));
        other.put("v1", OCI_MANIFEST, &image.manifest).expect_error(400, "MANIFEST_BLOB_UNKNOWN");
        // A session is the registry's own.
        let elsewhere = session.at_host(host);
        elsewhere.status().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        elsewhere.patch(b"x").expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        elsewhere.finish(&sha256(b"first half"), &[]).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        elsewhere.cancel().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        // A digest alone gets nothing: who pushes needs the bytes.
        other.begin().finish(&sha256(&image.blobs[1]), &[]).expect_error(400, "DIGEST_INVALID");
        other.head_blob(&sha256(&image.blobs[1])).expect(404);
    }
    // What the others are given is theirs.
    let second = first.at_host("second.example");
    let other = Image::new(5, "arm64", &[3000]);
    second.push_image("v1", &other);
    second.assert_holds("v1", &other);
    first.assert_holds("v1", &image);
    first.at_host("third.example:5000").manifest("v1").expect(404);
    first.head_blob(&sha256(other.layer(0))).expect(404);
    // The same blob pushed to both is two, and deleted from one stays in the other.
    second.push_image("same", &image);
    second.delete_manifest(&image.digest()).expect(202);
    for blob in &image.blobs {
        second.delete_blob(&sha256(blob)).expect(202);
    }
    first.assert_holds("v1", &image);
    session.finish(&sha256(b"first half"), &[]).expect(201);
    second.head_blob(&sha256(b"first half")).expect(404);
    for root in ["local", "second/local", "third/local"] {
        assert_tree_is_right(&spliceway.data().join(root));
    }
}

#[test]
fn a_registry_with_an_address_of_its_own_shares_nothing_either() {
    let spliceway = Spliceway::start(|setup| {
        setup.more("[[registry]]\nname = \"own\"\nlisten = \"127.0.0.1:0\"\n");
    });
    let listening = |line: &str| line.strip_prefix("listening on http://").map(str::to_owned);
    let addresses: Vec<String> = spliceway.log().lines().filter_map(listening).collect();
    let own = addresses[1].parse().expect("an address");
    let first = Repository::new(spliceway.addr(), "team/app");
    let second = first.at(own);
    let image = Image::new(1, "amd64", &[100, 70_000]);
    first.push_image("v1", &image);
    let session = first.begin();
    session.patch(b"content").expect(202);
    for digest in image.blobs.iter().map(|blob| sha256(blob)).chain([image.digest()]) {
        second.head_blob(&digest).expect(404);
        second.manifest(&digest).expect(404);
        second.delete_blob(&digest).expect(404);
        assert_eq!(second.post(&format!("?mount={digest}&from=team/app")).status(), 202);
    }
    second.manifest("v1").expect(404);
    second.put("v1", OCI_MANIFEST, &image.manifest).expect_error(400, "MANIFEST_BLOB_UNKNOWN");
    session.at(own).status().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    session.at(own).finish(&sha256(b"content"), &[]).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    second.push_image("v1", &image);
    first.delete_manifest(&image.digest()).expect(202);
    second.assert_holds("v1", &image);
    // Whatever the Host says, the address decides.
    let disguised = first.at_host("second.example").at(own);
    disguised.assert_holds("v1", &image);
    session.finish(&sha256(b"content"), &[]).expect(201);
    // A reload that takes it away does not show another one to those who reach its address.
    spliceway.reload_text("");
    spliceway.wait_log(&["configuration reloaded"]);
    second.assert_holds("v1", &image);
    second.head_blob(&sha256(b"content")).expect(404);
}
