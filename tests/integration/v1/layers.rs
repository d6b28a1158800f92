//! Layers: filled once, streamed on the way, whole or not at all.

use std::thread;

use crate::support::client::{End, Request, get};
use crate::support::plan::{Gate, Plan};
use crate::support::process::entries;
use crate::support::{KIB, MIB, eventually};

use super::{Image, asked, mirror, mirror_with, source_of};

const LEN: usize = 3 * MIB + 5;

#[test]
fn many_clients_of_a_cold_layer_cause_one_fetch() {
    let image = Image::new(1, LEN);
    let source = source_of(&image);
    let spliceway = mirror_with(&source, |_, v1| drop(v1.insert("stall_timeout".into(), "60s".into())));
    let gate = Gate::new();
    source.script("GET", &image.layer_path(), [Plan::stall(2 * MIB as u64, &gate)]);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let mut exchange = Request::get(image.layer_path()).open(spliceway.addr());
                    let mut body = Vec::new();
                    // What is there so far comes before the rest is there.
                    exchange.read_to(MIB as u64, &mut body).expect("the first part");
                    gate.open();
                    exchange.read_to(image.len(), &mut body).expect("the rest");
                    body
                })
            })
            .collect();
        for client in clients {
            assert!(client.join().expect("no panic") == *image.layer);
        }
    });
    assert_eq!(asked(&source, &image.layer_path()), 1);
    assert_eq!(asked(&source, &image.path("json")), 1);
    image.wait_stored(&spliceway);
    get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
    assert_eq!(asked(&source, &image.layer_path()), 1, "a hit needs no source");
}

#[test]
fn a_client_that_leaves_does_not_stop_the_fill() {
    let image = Image::new(2, LEN);
    let mut source = source_of(&image);
    let spliceway = mirror(&source);
    let gate = Gate::new();
    source.script("GET", &image.layer_path(), [Plan::stall(MIB as u64, &gate)]);
    let mut exchange = Request::get(image.layer_path()).open(spliceway.addr());
    exchange.next(100).expect("some bytes");
    drop(exchange);
    gate.open();
    image.wait_stored(&spliceway);
    source.stop();
    get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
    assert!(entries(&spliceway.data().join("cache/fills/v1")).is_empty(), "nothing is left of the fill");
}

#[test]
fn ranges_are_right_during_the_fill_and_after_and_never_reach_the_source() {
    let image = Image::new(3, LEN);
    let source = source_of(&image);
    let spliceway = mirror(&source);
    let gate = Gate::new();
    source.script("GET", &image.layer_path(), [Plan::stall(MIB as u64, &gate)]);
    let first = Request::get(image.layer_path()).range("1-1").open(spliceway.addr());
    gate.wait_reached();
    let first = first.collect().expect(206).expect_body(&image.layer[1..2]);
    assert_eq!(first.header("content-range"), Some(&*format!("bytes 1-1/{LEN}")));
    for is_held in [false, true] {
        let len = image.layer.len();
        for (spec, start, end) in [
            ("0-0", 0, 1),
            ("0-99", 0, 100),
            (&format!("{}-", len - 10), len - 10, len),
            ("-1", len - 1, len),
            (&format!("{}-{}", len - 1, len + 50), len - 1, len),
        ] {
            let exchange = Request::get(image.layer_path()).range(spec).open(spliceway.addr());
            if end == len {
                gate.open();
            }
            let answer = exchange.collect().expect(206).expect_body(&image.layer[start..end]);
            let expected = format!("bytes {start}-{}/{len}", end - 1);
            assert_eq!(answer.header("content-range"), Some(&*expected), "{spec}");
            assert_eq!(answer.header("accept-ranges"), Some("bytes"));
        }
        let answer = Request::get(image.layer_path()).range(&format!("{len}-")).send(spliceway.addr());
        let answer = answer.expect(416);
        assert_eq!(answer.header("content-range"), Some(&*format!("bytes */{len}")));
        assert!(answer.json()["error"].is_string());
        if !is_held {
            image.wait_stored(&spliceway);
        }
    }
    assert_eq!(asked(&source, &image.layer_path()), 1);
    for seen in source.all_seen() {
        assert_eq!(seen.header("range"), None, "a client's range is not what the cache is filled with");
    }
}

#[test]
fn what_does_not_come_whole_is_neither_stored_nor_passed_off_as_whole() {
    let (cut, whole) = (2 * MIB as u64, LEN as u64);
    let failures = [
        ("cut", Plan::cut(cut)),
        ("reset", Plan::reset(cut)),
        ("cut at the last byte", Plan::cut(whole - 1)),
        ("shorter than announced", Plan::healthy().claim_length(whole + 1)),
        ("cut between chunks", Plan::cut(cut).chunked()),
        ("cut before the last chunk", Plan::cut(whole).chunked()),
        ("without an end", Plan::healthy().until_close()),
        ("encoded", Plan::healthy().header("Content-Encoding", "gzip")),
        ("cut, in a transfer coding", Plan::cut(cut).until_close().header("Transfer-Encoding", "gzip")),
        (
            "in a transfer coding beside chunks",
            Plan::healthy().chunked().header("Transfer-Encoding", "gzip, chunked"),
        ),
    ];
    let image = Image::new(4, LEN);
    let source = source_of(&image);
    let spliceway = mirror(&source);
    for (name, failure) in failures {
        source.always("GET", &image.layer_path(), failure);
        let answer = get(spliceway.addr(), &image.layer_path());
        assert!(answer.end != End::Complete || answer.status() >= 400, "{name}: {answer}");
        assert!(answer.body.len() < LEN, "{name}: the last bytes wait for the verdict");
        assert!(!image.is_stored(&spliceway), "{name}");
    }
    source.heal();
    get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
    image.wait_stored(&spliceway);
}

#[test]
fn a_source_that_refuses_is_not_found_and_one_that_stumbled_is_asked_again() {
    let image = Image::new(5, LEN);
    let source = source_of(&image);
    let spliceway = mirror(&source);
    for status in [404, 410, 500, 503] {
        source.always("GET", &image.layer_path(), Plan::status(status));
        get(spliceway.addr(), &image.layer_path()).expect(404);
    }
    source.heal();
    source.script("GET", &image.layer_path(), [Plan::status(502)]);
    get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
    let unknown = Image::new(6, 1);
    for part in ["layer", "json", "ancestry"] {
        let answer = get(spliceway.addr(), &unknown.path(part)).expect(404);
        assert_eq!(answer.json()["error"], "Image not found");
    }
}

#[test]
fn a_source_that_stalls_breaks_the_answer() {
    let image = Image::new(7, LEN);
    let source = source_of(&image);
    let spliceway = mirror_with(&source, |_, v1| drop(v1.insert("stall_timeout".into(), "1s".into())));
    let gate = Gate::new();
    source.script("GET", &image.layer_path(), [Plan::stall(MIB as u64, &gate)]);
    let answer = get(spliceway.addr(), &image.layer_path());
    assert_ne!(answer.end, End::Complete);
    assert!(!image.is_stored(&spliceway));
    get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
}

#[test]
fn a_layer_without_a_length_is_stored_when_its_last_chunk_came() {
    let image = Image::new(8, LEN);
    let source = source_of(&image);
    let spliceway = mirror(&source);
    source.script("GET", &image.layer_path(), [Plan::healthy().chunked()]);
    get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
    image.wait_stored(&spliceway);
}

#[test]
fn a_checksum_that_the_source_tells_must_be_right() {
    for (number, of_json) in [true, false].into_iter().enumerate() {
        let image = Image::new(9 + number as u64, LEN);
        let source = source_of(&image);
        let spliceway = mirror(&source);
        let checksum = image.checksum();
        let told = if of_json { image.path("json") } else { image.layer_path() };
        source.always("GET", &told, Plan::healthy().header("X-Docker-Checksum-Payload", &checksum));
        if of_json {
            source.always("GET", &image.layer_path(), Plan::corrupt(LEN as u64 / 2));
        } else {
            let corrupt = Plan::corrupt(5).header("X-Docker-Checksum-Payload", &checksum);
            source.always("GET", &image.layer_path(), corrupt);
        }
        let answer = get(spliceway.addr(), &image.layer_path());
        assert_ne!(answer.end, End::Complete, "{answer}");
        assert!(answer.body.len() <= LEN - 64 * KIB, "the last bytes wait for the verdict");
        assert!(!image.is_stored(&spliceway));
        spliceway.wait_metric("spliceway_fill_failures_total", &["reason=\"digest\""], |count| count > 0.5);
        // Right, it is told to clients as well; and a source whose body has no end may be believed for it.
        let healthy = Plan::healthy().header("X-Docker-Checksum-Payload", &checksum);
        source.always("GET", &image.layer_path(), healthy.until_close());
        get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
        image.wait_stored(&spliceway);
        let json = get(spliceway.addr(), &image.path("json")).expect(200).expect_body(image.json.as_bytes());
        assert_eq!(json.header("x-docker-checksum-payload"), Some(&*checksum));
        assert_eq!(json.header("x-docker-size"), Some(&*LEN.to_string()));
    }
}

#[test]
fn a_fill_that_was_killed_is_begun_anew() {
    let image = Image::new(12, LEN);
    let source = source_of(&image);
    let mut spliceway = mirror(&source);
    let gate = Gate::new();
    source.script("GET", &image.layer_path(), [Plan::stall(2 * MIB as u64, &gate)]);
    let mut exchange = Request::get(image.layer_path()).open(spliceway.addr());
    let mut body = Vec::new();
    exchange.read_to(MIB as u64, &mut body).expect("the first part");
    spliceway.kill9();
    gate.open();
    assert!(exchange.compare(&image.layer).end != End::Complete);
    assert!(!image.is_stored(&spliceway));
    assert_eq!(entries(&spliceway.data().join("cache/fills/v1")).len(), 1, "the leftover");
    spliceway.restart(|_| ());
    // Dropped at start, without anybody asking for it.
    eventually("the sweep", || entries(&spliceway.data().join("cache/fills/v1")).is_empty().then_some(()));
    get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
    image.wait_stored(&spliceway);
}

#[test]
fn two_processes_fetch_a_layer_once() {
    let image = Image::new(13, LEN);
    let source = source_of(&image);
    let first = mirror_with(&source, |_, v1| drop(v1.insert("stall_timeout".into(), "60s".into())));
    let second = first.sibling(|_| ());
    let gate = Gate::new();
    source.script("GET", &image.layer_path(), [Plan::stall(2 * MIB as u64, &gate)]);
    let of_first = Request::get(image.layer_path()).open(first.addr());
    gate.wait_reached();
    let mut of_second = Request::get(image.layer_path()).open(second.addr());
    let mut body = Vec::new();
    of_second.read_to(MIB as u64, &mut body).expect("what the other has so far");
    gate.open();
    of_second.read_to(image.len(), &mut body).expect("the rest");
    assert!(body == *image.layer);
    of_first.collect().expect(200).expect_body(&image.layer);
    assert_eq!(asked(&source, &image.layer_path()), 1);
    image.wait_stored(&first);
}

#[test]
fn who_follows_a_process_that_is_killed_is_not_given_a_whole() {
    let image = Image::new(14, LEN);
    let source = source_of(&image);
    let mut first = mirror_with(&source, |_, v1| drop(v1.insert("stall_timeout".into(), "60s".into())));
    let second = first.sibling(|_| ());
    let gate = Gate::new();
    source.script("GET", &image.layer_path(), [Plan::stall(2 * MIB as u64, &gate)]);
    let _of_first = Request::get(image.layer_path()).open(first.addr());
    gate.wait_reached();
    let mut of_second = Request::get(image.layer_path()).open(second.addr());
    of_second.next(1).expect("a byte that the other has");
    first.kill9();
    gate.open();
    let compared = of_second.compare(&image.layer);
    assert!(compared.same && compared.end != End::Complete, "{compared:?}");
    get(second.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
    image.wait_stored(&second);
}

#[test]
fn json_and_ancestry_are_kept_and_a_head_starts_no_fill() {
    let image = Image::new(15, LEN);
    let mut source = source_of(&image);
    let spliceway = mirror(&source);
    let head = Request::head(image.layer_path()).send(spliceway.addr()).expect(200);
    assert_eq!(head.header("content-length"), Some(&*LEN.to_string()), "by X-Docker-Size");
    assert_eq!(asked(&source, &image.layer_path()), 0);
    for part in ["json", "ancestry"] {
        get(spliceway.addr(), &image.path(part)).expect(200);
    }
    source.stop();
    for (part, content) in [("json", &image.json), ("ancestry", &image.ancestry)] {
        let answer = get(spliceway.addr(), &image.path(part)).expect(200).expect_body(content.as_bytes());
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("public, max-age=31536000"));
        assert_eq!(answer.header("last-modified"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
        let since =
            Request::get(image.path(part)).header("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT");
        since.send(spliceway.addr()).expect(304);
    }
    let json = get(spliceway.addr(), &image.path("json")).expect(200);
    assert_eq!(json.header("x-docker-size"), Some(&*LEN.to_string()));
    let unreachable = get(spliceway.addr(), &image.layer_path());
    assert_eq!(unreachable.status(), 502, "{unreachable}");
}

#[test]
fn documents_of_another_image_are_not_kept() {
    let (image, other) = (Image::new(16, 100), Image::new(17, 100));
    let source = source_of(&image);
    let spliceway = mirror(&source);
    source.always("GET", &image.path("ancestry"), Plan::instead(other.ancestry.clone().into_bytes()));
    get(spliceway.addr(), &image.path("ancestry")).expect(502);
    assert!(!image.kept(&spliceway, "ancestry").exists());
    source.always("GET", &other.path("json"), Plan::instead(image.json.clone().into_bytes()));
    other.put(&source, |document| document);
    get(spliceway.addr(), &other.path("json")).expect(502);
    get(spliceway.addr(), &other.layer_path()).expect(502);
    assert!(!other.kept(&spliceway, "json").exists() && !other.is_stored(&spliceway));
    source.heal();
    get(spliceway.addr(), &image.path("ancestry")).expect(200).expect_body(image.ancestry.as_bytes());
    get(spliceway.addr(), &other.layer_path()).expect(200).expect_body(&other.layer);
}

#[test]
fn an_empty_layer_is_a_layer() {
    let image = Image::new(18, 0);
    let source = source_of(&image);
    let spliceway = mirror(&source);
    for _ in 0..2 {
        get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(b"");
        image.wait_stored(&spliceway);
    }
    Request::get(image.layer_path()).range("0-").send(spliceway.addr()).expect(416);
}

#[test]
fn layers_count_for_the_bounds_of_the_cache_and_go_when_used_longest_ago() {
    let images = [30, 31, 32].map(|seed| Image::new(seed, 2 * MIB));
    let source = source_of(&images[0]);
    for image in &images[1..] {
        image.put(&source, |document| document);
    }
    let spliceway = mirror_with(&source, |setup, _| {
        setup.registry("max_size", "5MiB").registry("min_free", 0);
    });
    for image in &images {
        get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
        eventually("publication or eviction", || {
            let seen = spliceway.metric("spliceway_fills_in_flight", &[]) < 0.5;
            seen.then_some(())
        });
    }
    eventually("eviction", || (!images[0].is_stored(&spliceway)).then_some(()));
    images[2].wait_stored(&spliceway);
    spliceway.wait_metric("spliceway_stored_bytes", &["tree=\"cache\""], |bytes| {
        bytes > 1e6 && bytes <= f64::from(5 << 20)
    });
    // What is known of the image stays.
    assert!(images[0].kept(&spliceway, "json").exists());
    get(spliceway.addr(), &images[0].layer_path()).expect(200).expect_body(&images[0].layer);
    let six = Image::new(33, 6 * MIB);
    six.put(&source, |document| document);
    assert!(get(spliceway.addr(), &six.layer_path()).status() >= 500, "larger than the cache may become");
    assert!(!six.is_stored(&spliceway));
    source.always("GET", &six.layer_path(), Plan::healthy().chunked());
    let answer = get(spliceway.addr(), &six.layer_path());
    assert!(answer.end != End::Complete || answer.status() >= 500, "unannounced, it is as large: {answer}");
    assert!(!six.is_stored(&spliceway));
}
