//! Killed at any instant, or cut from power: what is served afterwards is right or an error, and right on retry.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::support::client::{End, Request, get};
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{MIB, eventually, noise};

fn start(origin: &Origin, io_uring: Option<&str>) -> Spliceway {
    Spliceway::start(|setup| {
        setup.origin(origin).set("stall_timeout", "60s");
        if let Some(mode) = io_uring {
            setup.io_uring(mode);
        }
    })
}

/// Fills `blob` up to `offset`, then kills the process with the fill under way and a client reading.
fn kill_at(spliceway: &mut Spliceway, origin: &Origin, blob: &Blob, offset: u64) {
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(offset, &gate)]);
    let (addr, path) = (spliceway.addr(), blob.path.clone());
    let client = thread::spawn(move || {
        let mut connection = crate::support::client::Connection::open(addr);
        connection.write(&Request::get(path).bytes(addr)).expect("a request is written");
        connection.exchange("GET").map_or(End::Cut, |exchange| exchange.collect().end)
    });
    gate.wait_reached();
    let data = spliceway.fill_path(&blob.digest).join("data");
    eventually("the data that was sent", || {
        (offset == 0 || fs::metadata(&data).is_ok_and(|data| data.len() == offset)).then_some(())
    });
    spliceway.kill9();
    assert_ne!(client.join().expect("the client does not panic"), End::Complete);
    origin.heal();
}

/// After a restart: never a complete body of wrong bytes, and a right one within three tries.
#[track_caller]
fn assert_recovers(spliceway: &Spliceway, blob: &Blob) {
    spliceway.assert_store_is_right();
    for _ in 0..3 {
        let answer = get(spliceway.addr(), &blob.path);
        if answer.status() == 200 && answer.end == End::Complete {
            answer.expect_body(&blob.bytes);
            spliceway.wait_published(&blob.digest);
            spliceway.assert_store_is_right();
            return;
        }
        answer.expect_failure();
    }
    panic!("it does not recover within three tries");
}

fn killed_fill_is_resumed(io_uring: Option<&str>) {
    let origin = Origin::start();
    let mut spliceway = start(&origin, io_uring);
    let len = 3 * MIB + 777;
    let offsets = [0, 1, 4096, 65_537, MIB, 2 * MIB, 2 * MIB + 777, len - 1];
    for (seed, offset) in (0..).zip(offsets) {
        let blob = origin.random_blob(seed, len);
        kill_at(&mut spliceway, &origin, &blob, offset as u64);
        assert!(!spliceway.is_published(&blob.digest));
        origin.forget_seen();
        spliceway.restart(|_| ());
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
        spliceway.wait_published(&blob.digest);
        let seen = origin.seen("GET", &blob.path);
        assert_eq!(seen.len(), 1);
        if offset > 0 {
            assert_eq!(
                seen[0].header("range"),
                Some(format!("bytes={offset}-").as_str()),
                "killed at {offset}"
            );
            assert_eq!(seen[0].header("if-range"), Some(format!("\"{}\"", blob.digest).as_str()));
        }
    }
    spliceway.assert_store_is_right();
}

#[test]
fn killed_fill_is_resumed_where_it_stood() {
    killed_fill_is_resumed(None);
}

#[test]
fn killed_fill_is_resumed_where_it_stood_without_io_uring() {
    killed_fill_is_resumed(Some("off"));
}

#[test]
fn range_of_a_killed_fill_is_right() {
    let origin = Origin::start();
    let mut spliceway = start(&origin, None);
    let blob = origin.random_blob(1, 4 * MIB);
    kill_at(&mut spliceway, &origin, &blob, 2 * MIB as u64);
    spliceway.restart(|_| ());
    let answer = Request::get(&blob.path).range("1048570-3145733").send(spliceway.addr()).expect(206);
    answer.expect_body(&blob.bytes[1_048_570..=3_145_733]);
    let answer = Request::get(&blob.path).range("-7").send(spliceway.addr()).expect(206);
    answer.expect_body(&blob.bytes[4 * MIB - 7..]);
}

#[test]
fn killed_around_publication_leaves_nothing_or_the_whole() {
    let origin = Origin::start();
    let mut spliceway = start(&origin, None);
    let (mut before, mut after) = (0, 0);
    for round in 0..16 {
        let blob = origin.random_blob(round, 2 * MIB);
        let gate = Gate::new();
        // The last byte is held until the killer is ready.
        origin.script("GET", &blob.path, [Plan::stall(blob.len() - 1, &gate)]);
        let (addr, path) = (spliceway.addr(), blob.path.clone());
        let client = thread::spawn(move || {
            let mut connection = crate::support::client::Connection::open(addr);
            let _ = connection.write(&Request::get(path).bytes(addr));
            connection.exchange("GET").ok().map(crate::support::client::Exchange::collect)
        });
        gate.wait_reached();
        gate.open();
        thread::sleep(Duration::from_micros(round * 150));
        spliceway.kill9();
        if let Some(answer) = client.join().expect("the client does not panic")
            && answer.end == End::Complete
        {
            answer.expect_body(&blob.bytes);
        }
        if spliceway.is_published(&blob.digest) {
            after += 1;
        } else {
            before += 1;
        }
        spliceway.assert_store_is_right();
        spliceway.restart(|_| ());
        assert_recovers(&spliceway, &blob);
    }
    eprintln!("killed {before} times before publication, {after} times after");
}

#[test]
fn failed_fill_is_resumed_by_the_next_request() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("retries", 0);
    });
    let blob = origin.random_blob(1, 4 * MIB);
    origin.script("GET", &blob.path, [Plan::cut(2 * MIB as u64)]);
    get(spliceway.addr(), &blob.path).expect_failure();
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    let seen = origin.seen("GET", &blob.path);
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].header("range"), Some(format!("bytes={}-", 2 * MIB).as_str()));
}

/// A blob large enough that its fill has stored a hash state that covers data, and where it is killed.
const LARGE: usize = 44 * MIB;
const LARGE_AT: u64 = 40 * MIB as u64;

/// Kills a large fill, lets `damage` at its directory, restarts and expects recovery.
fn damaged(damage: impl Fn(&Path)) {
    let origin = Origin::start();
    let mut spliceway = start(&origin, None);
    let blob = origin.random_blob(1, LARGE);
    kill_at(&mut spliceway, &origin, &blob, LARGE_AT);
    let fill = spliceway.fill_path(&blob.digest);
    assert!(fill.join("state.json").exists(), "a fill of {LARGE_AT} bytes has a state");
    damage(&fill);
    spliceway.restart(|_| ());
    assert_recovers(&spliceway, &blob);
}

fn rewrite_state(fill: &Path, change: impl Fn(String) -> String) {
    let path = fill.join("state.json");
    let text = fs::read_to_string(&path).expect("a state");
    let changed = change(text.clone());
    assert_ne!(text, changed, "nothing to change in {text}");
    fs::write(path, changed).expect("our own directory");
}

/// As if the machine had been started again since.
fn another_boot(fill: &Path) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    rewrite_state(fill, |text| text.replace(boot.trim(), "00000000-0000-4000-8000-000000000000"));
}

fn write_at(fill: &Path, offset: u64, bytes: &[u8]) {
    let data = OpenOptions::new().write(true).open(fill.join("data")).expect("the data");
    data.write_all_at(bytes, offset).expect("the data is written");
}

#[test]
fn power_cut_that_lost_pages_under_a_right_state() {
    damaged(|fill| {
        write_at(fill, MIB as u64, &vec![0; 2 * MIB]);
        another_boot(fill);
    });
}

#[test]
fn power_cut_that_lost_the_end_of_the_data() {
    damaged(|fill| {
        let data = OpenOptions::new().write(true).open(fill.join("data")).expect("the data");
        data.set_len(MIB as u64).expect("the data is cut");
        another_boot(fill);
    });
}

#[test]
fn power_cut_that_lost_nothing_is_resumed_after_hashing_again() {
    let origin = Origin::start();
    let mut spliceway = start(&origin, None);
    let blob = origin.random_blob(1, LARGE);
    kill_at(&mut spliceway, &origin, &blob, LARGE_AT);
    let fill = spliceway.fill_path(&blob.digest);
    another_boot(&fill);
    let state = fs::read(fill.join("state.json")).expect("a state");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("a state");
    let proven = state["offset"].as_u64().expect("an offset");
    assert!(proven > 0 && proven <= LARGE_AT);
    origin.forget_seen();
    spliceway.restart(|_| ());
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    // What lies behind the last state cannot be checked before the end, and is fetched again.
    let seen = origin.seen("GET", &blob.path);
    assert_eq!(seen[0].header("range"), Some(format!("bytes={proven}-").as_str()));
}

#[test]
fn data_replaced_by_another_file_under_a_right_state() {
    damaged(|fill| {
        let mut bytes = fs::read(fill.join("data")).expect("the data");
        bytes[MIB..3 * MIB].fill(0);
        fs::write(fill.join("restored"), bytes).expect("our own directory");
        fs::rename(fill.join("restored"), fill.join("data")).expect("our own directory");
    });
}

#[test]
fn data_shorter_than_its_state() {
    damaged(|fill| {
        let data = OpenOptions::new().write(true).open(fill.join("data")).expect("the data");
        data.set_len(5 * MIB as u64).expect("the data is cut");
    });
}

#[test]
fn data_longer_than_its_state_and_wrong_there() {
    damaged(|fill| write_at(fill, LARGE_AT, &noise(77, MIB)));
}

#[test]
fn data_longer_than_the_blob() {
    damaged(|fill| write_at(fill, LARGE_AT, &noise(77, 8 * MIB)));
}

#[test]
fn data_whole_when_killed_needs_no_transfer() {
    let origin = Origin::start();
    let mut spliceway = start(&origin, None);
    let blob = origin.random_blob(1, 4 * MIB);
    kill_at(&mut spliceway, &origin, &blob, 3 * MIB as u64);
    write_at(&spliceway.fill_path(&blob.digest), 0, &blob.bytes);
    origin.forget_seen();
    spliceway.restart(|_| ());
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    let sent: u64 = origin.seen("GET", &blob.path).iter().map(crate::support::origin::Seen::sent).sum();
    assert!(sent <= 1, "{sent} bytes are fetched again");
}

#[test]
fn states_that_are_garbage() {
    let texts = [
        String::new(),
        "{}".into(),
        "null".into(),
        "\0\0\0\0".into(),
        "[".repeat(100_000),
        r#"{"version":1,"digest":"sha256:00","offset":-1,"hash":"","inode":0,"boot":""}"#.into(),
    ];
    let origin = Origin::start();
    let mut spliceway = start(&origin, None);
    for (seed, text) in (0..).zip(texts) {
        let blob = origin.random_blob(seed, 3 * MIB);
        kill_at(&mut spliceway, &origin, &blob, 2 * MIB as u64);
        fs::write(spliceway.fill_path(&blob.digest).join("state.json"), &text).expect("our own directory");
        spliceway.restart(|_| ());
        assert_recovers(&spliceway, &blob);
    }
    assert!(!spliceway.log().contains("panicked"));
}

#[test]
fn states_with_impossible_numbers() {
    let changes: [fn(String) -> String; 3] = [
        |text| text.replace("\"offset\":", "\"offset\":1").replace("\"offset\": ", "\"offset\": 1"),
        |text| text.replace("\"length\":", "\"length\":9").replace("\"length\": ", "\"length\": 9"),
        |text| text.replace("\"hash\":\"", "\"hash\":\"AAAA").replace("\"hash\": \"", "\"hash\": \"AAAA"),
    ];
    for change in changes {
        damaged(|fill| rewrite_state(fill, change));
    }
}

#[test]
fn files_where_directories_belong() {
    let origin = Origin::start();
    let mut spliceway = start(&origin, None);
    let blob = origin.random_blob(1, 3 * MIB);
    spliceway.stop();
    let fill = spliceway.fill_path(&blob.digest);
    fs::create_dir_all(fill.join("state.json")).expect("our own directory");
    fs::write(fill.join("data"), noise(5, MIB)).expect("our own directory");
    spliceway.restart(|_| ());
    assert_recovers(&spliceway, &blob);
}
