//! A directory of docker-registry is served as it is.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::MIB;
use crate::support::client::{Request, get};

use super::{Image, mirror_with, source_of};

/// What docker-registry 0.9 leaves on disk.
fn write_tree(local: &Path, image: &Image) {
    let directory = local.join("images").join(&image.id);
    fs::create_dir_all(&directory).expect("our own directory");
    let checksums = json!(["tarsum+sha256:00", image.checksum()]).to_string();
    let files: [(&str, &[u8]); 4] = [
        ("layer", &image.layer),
        ("json", image.json.as_bytes()),
        ("ancestry", image.ancestry.as_bytes()),
        ("_checksum", checksums.as_bytes()),
    ];
    for (name, content) in files {
        fs::write(directory.join(name), content).expect("our own directory");
    }
    let repository = local.join("repositories/library/app");
    fs::create_dir_all(&repository).expect("our own directory");
    fs::write(repository.join("tag_latest"), &image.id).expect("our own directory");
    fs::write(repository.join("tag_1.0"), &image.id).expect("our own directory");
    fs::write(repository.join("taglatest_json"), "{}").expect("our own directory");
    fs::write(repository.join("json"), r#"{"os":"linux"}"#).expect("our own directory");
    let list = json!([{ "id": image.id }]).to_string();
    fs::write(repository.join("_index_images"), list).expect("our own directory");
}

#[test]
fn all_of_it_is_served_and_the_source_not_asked() {
    let (image, other) = (Image::new(1, MIB), Image::new(2, 10));
    let source = source_of(&other);
    let spliceway = mirror_with(&source, |_, _| ());
    write_tree(&spliceway.data().join("local"), &image);
    let addr = spliceway.addr();
    get(addr, &image.layer_path()).expect(200).expect_body(&image.layer);
    let part = Request::get(image.layer_path()).range("-7").send(addr).expect(206);
    part.expect_body(&image.layer[MIB - 7..]);
    let answer = get(addr, &image.path("json")).expect(200).expect_body(image.json.as_bytes());
    assert_eq!(answer.header("x-docker-size"), Some(&*MIB.to_string()));
    assert_eq!(answer.header("x-docker-checksum-payload"), Some(&*image.checksum()));
    get(addr, &image.path("ancestry")).expect(200).expect_body(image.ancestry.as_bytes());
    let tags = get(addr, "/v1/repositories/app/tags").expect(200).json();
    assert_eq!(tags, json!({ "1.0": image.id, "latest": image.id }));
    assert_eq!(get(addr, "/v1/repositories/library/app/tags/latest").expect(200).json(), json!(image.id));
    let images = Request::get("/v1/repositories/app/images").host("here.example").send(addr).expect(200);
    assert_eq!(images.json(), json!([{ "id": image.id }]));
    assert_eq!(images.header("x-docker-endpoints"), Some("here.example"));
    assert_eq!(get(addr, "/v1/repositories/app/json").expect(200).json(), json!({ "os": "linux" }));
    assert!(source.all_seen().is_empty());
    // What is not there is the source's.
    get(addr, &other.layer_path()).expect(200).expect_body(&other.layer);
    get(addr, "/v1/repositories/app/tags/none").expect(404);
}

#[test]
fn an_image_that_is_being_written_is_to_be_asked_for_later() {
    let image = Image::new(3, MIB);
    let source = source_of(&image);
    let spliceway = mirror_with(&source, |_, _| ());
    let local = spliceway.data().join("local");
    write_tree(&local, &image);
    let mark = local.join("images").join(&image.id).join("_inprogress");
    fs::write(&mark, "true").expect("our own directory");
    for part in ["layer", "json", "ancestry"] {
        let answer = get(spliceway.addr(), &image.path(part)).expect(400);
        assert_eq!(answer.json(), json!({ "error": "Image is being uploaded, retry later" }));
    }
    fs::remove_file(&mark).expect("our own directory");
    get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
    assert!(source.all_seen().is_empty());
}

#[test]
fn clients_are_sent_elsewhere_for_layers_that_are_held_and_public() {
    let (held, fetched, private) = (Image::new(4, 100), Image::new(5, 100), Image::new(6, 100));
    let source = source_of(&fetched);
    private.put(&source, |document| document.requires("cookie", "a=b"));
    let spliceway = mirror_with(&source, |_, v1| {
        v1.insert("storage_redirect".into(), "https://cdn.example.org/v1-store".into());
    });
    write_tree(&spliceway.data().join("local"), &held);
    let addr = spliceway.addr();
    // Not before it is held.
    get(addr, &fetched.layer_path()).expect(200).expect_body(&fetched.layer);
    fetched.wait_stored(&spliceway);
    for image in [&held, &fetched] {
        let answer = get(addr, &image.layer_path()).expect(302);
        let elsewhere = format!("https://cdn.example.org/v1-store/images/{}/layer", image.id);
        assert_eq!(answer.header("location"), Some(&*elsewhere));
        get(addr, &image.path("json")).expect(200);
    }
    for _ in 0..2 {
        let request = Request::get(private.layer_path()).header("Cookie", "a=b");
        request.send(addr).expect(200).expect_body(&private.layer);
        private.wait_stored(&spliceway);
    }
}
