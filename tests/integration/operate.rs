//! What an operator does to it and sees of it: signals, health, metrics, access log, system calls.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::client::{Connection, End, Request, get};
use crate::support::images::Image;
use crate::support::origin::Origin;
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;
use crate::support::{MIB, eventually, tools};

#[test]
fn sigterm_lets_a_transfer_end_and_refuses_new_ones() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, 4 * MIB);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(2 * MIB as u64, &gate)]);
    let reader = Request::get(&blob.path).open(spliceway.addr());
    gate.wait_reached();
    let addr = spliceway.addr();
    spliceway.signal(Signal::TERM);
    eventually("the listener to close", || std::net::TcpStream::connect(addr).is_err().then_some(()));
    gate.open();
    reader.collect().expect_body(&blob.bytes);
    spliceway.wait_stopped();
}

#[test]
fn registry_with_an_address_of_its_own_answers_there_whatever_the_host() {
    let (ours, theirs) = (Origin::start(), Origin::start());
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&ours);
        setup.more(&format!(
            "\n[[registry]]\nname = \"own\"\nlisten = \"127.0.0.1:0\"\n\
             [[registry.upstream]]\nname = \"theirs\"\ndefault = true\nurl = \"{}\"\n",
            theirs.url()
        ));
    });
    let listening = |line: &str| line.strip_prefix("listening on http://").map(str::to_owned);
    let addresses: Vec<_> = spliceway.log().lines().filter_map(listening).collect();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let own: SocketAddr = addresses[1].parse().expect("an address");
    let (blob, other) = (ours.random_blob(1, 1000), theirs.random_blob(2, 1000));
    // The same words, again and again: what was answered at one address is not given again at the other.
    for _ in 0..3 {
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
        get(own, &blob.path).expect(404);
        get(own, &other.path).expect(200).expect_body(&other.bytes);
        get(spliceway.addr(), &other.path).expect(404);
    }
}

#[test]
fn idle_connections_do_not_hold_sigterm_up() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::before(&origin);
    let idle = Connection::open(spliceway.addr());
    let used = Request::get("/v2/").open(spliceway.addr());
    let used = used.into_connection();
    spliceway.stop();
    drop((idle, used));
}

#[test]
fn drain_has_an_end() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.server("drain_timeout", "1s").origin(&origin).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, 4 * MIB);
    origin.script("GET", &blob.path, [Plan::stall(2 * MIB as u64, &Gate::new())]);
    let mut reader = Request::get(&blob.path).open(spliceway.addr());
    reader.next(1).expect("a beginning");
    spliceway.signal(Signal::TERM);
    let answer = reader.collect();
    assert_ne!(answer.end, End::Complete);
    spliceway.wait_stopped();
}

#[test]
fn body_of_unknown_length_that_a_drain_cuts_does_not_look_whole() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.server("drain_timeout", "1s").origin(&origin).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, 4 * MIB);
    origin.script("GET", &blob.path, [Plan::stall(2 * MIB as u64, &Gate::new()).chunked()]);
    let mut readers: Vec<_> = (0..8).map(|_| Request::get(&blob.path).open(spliceway.addr())).collect();
    for reader in &mut readers {
        reader.read_to(MIB as u64, &mut Vec::new()).expect("a beginning");
    }
    spliceway.signal(Signal::TERM);
    for reader in readers {
        let answer = reader.collect();
        assert_ne!(answer.end, End::Complete, "{answer}");
    }
    spliceway.wait_stopped();
}

#[test]
fn second_signal_ends_it_at_once() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.server("drain_timeout", "1h").origin(&origin).set("stall_timeout", "1h");
    });
    let blob = origin.random_blob(1, 4 * MIB);
    origin.script("GET", &blob.path, [Plan::stall(2 * MIB as u64, &Gate::new())]);
    let mut reader = Request::get(&blob.path).open(spliceway.addr());
    reader.next(1).expect("a beginning");
    let (addr, admin) = (spliceway.addr(), spliceway.admin());
    spliceway.signal(Signal::TERM);
    eventually("the listener to close", || std::net::TcpStream::connect(addr).is_err().then_some(()));
    // Until then it says that it is on its way out.
    assert_eq!(get(admin, "/readyz").status(), 503);
    assert_eq!(get(admin, "/healthz").status(), 200);
    spliceway.signal(Signal::INT);
    spliceway.wait_stopped();
    let answer = reader.collect();
    assert_ne!(answer.end, End::Complete, "{answer}");
    // What was received is not lost.
    origin.heal();
    origin.forget_seen();
    spliceway.restart(|_| ());
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
    let resumed = origin.seen("GET", &blob.path)[0].header("range").map(str::to_owned);
    assert!(resumed.is_some_and(|range| range.starts_with("bytes=") && range != "bytes=0-"));
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.server("connections", 4).origin(&origin);
    });
    let addr = spliceway.addr();
    let mut open: Vec<_> = (0..4).map(|_| Request::get("/v2/").open(addr).into_connection()).collect();
    let mut waiting = Connection::open(addr);
    waiting.write(&Request::get("/v2/").bytes(addr)).expect("the kernel's queue takes it");
    assert!(!waiting.is_answered_within(Duration::from_millis(500)), "a fifth connection is served");
    // Those that are open are served meanwhile, and the operator is let in.
    let used = open.pop().expect("four are open").request(addr, &Request::get("/v2/")).expect("an answer");
    assert_eq!(used.status(), 200);
    get(spliceway.admin(), "/metrics").expect(200);
    drop(used);
    assert_eq!(waiting.exchange("GET").expect("a connection was given up for it").status(), 200);
    drop(open);
}

#[test]
fn sighup_takes_over_what_changed_and_refuses_what_is_wrong() {
    let (origin, other) = (Origin::start(), Origin::start());
    let image = Image::new(1, "amd64", &[100]);
    image.hold(&other, "app", "v1");
    let mut spliceway = Spliceway::before(&origin);
    let target = "/v2/app/manifests/v1?ns=other";
    get(spliceway.addr(), target).expect(404);

    spliceway.reload_text("[server]\nworkerz = 1\n");
    spliceway.wait_log(&["workerz"]);
    get(spliceway.addr(), "/v2/").expect(200);

    let (addr, admin) = (spliceway.addr(), spliceway.admin());
    spliceway.reload(|setup| {
        setup.upstream("other", &other.url());
    });
    eventually("the new upstream", || (get(addr, target).status() == 200).then_some(()));
    get(addr, target).expect(200).expect_body(&image.manifest);
    get(admin, "/healthz").expect(200);
}

#[test]
fn sighup_does_not_disturb_a_transfer() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("stall_timeout", "60s");
    });
    let blob = origin.random_blob(1, 4 * MIB);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(2 * MIB as u64, &gate)]);
    let early = Request::get(&blob.path).open(spliceway.addr());
    gate.wait_reached();
    let other = Origin::start();
    let addr = spliceway.addr();
    spliceway.reload(|setup| {
        setup.upstream("other", &other.url());
    });
    eventually("the new upstream", || {
        get(addr, "/v2/app/manifests/v1?ns=other");
        (!other.all_seen().is_empty()).then_some(())
    });
    // Who comes after the reload joins the fill that was begun before it.
    let late = Request::get(&blob.path).open(addr);
    gate.open();
    early.collect().expect_body(&blob.bytes);
    late.collect().expect_body(&blob.bytes);
    assert_eq!(origin.seen("GET", &blob.path).len(), 1);
}

#[test]
fn it_starts_and_serves_without_any_upstream_up() {
    let mut origin = Origin::start();
    let mut spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, 2 * MIB);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    spliceway.stop();
    origin.stop();
    spliceway.restart(|_| ());
    get(spliceway.admin(), "/healthz").expect(200);
    get(spliceway.addr(), "/v2/").expect(200);
    get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
}

#[test]
fn serve_without_flags_but_addresses_works() {
    let spliceway = Spliceway::start(|_| ());
    get(spliceway.addr(), "/v2/").expect(200);
    get(spliceway.addr(), "/v2/app/manifests/v1").expect(404);
}

#[test]
fn metrics_count_what_happened() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let len = f64::from(2u32 << 20);
    let blob = origin.random_blob(1, 2 << 20);
    for _ in 0..3 {
        get(spliceway.addr(), &blob.path).expect(200);
        spliceway.wait_published(&blob.digest);
    }
    get(spliceway.addr(), "/v2/UPPER/tags/list").expect(400);
    let bad = origin.random_blob(2, 2 * MIB);
    origin.always("GET", &bad.path, Plan::corrupt(0));
    get(spliceway.addr(), &bad.path).expect_failure();

    let blob_requests = |cache: &'static str| {
        move |spliceway: &Spliceway| {
            spliceway.metric("spliceway_requests_total", &["route=\"blob\"", "status=\"200\"", cache])
        }
    };
    // A response is counted when its last byte has left, which may be after the client has it.
    eventually("the count of hits", || (blob_requests("cache=\"hit\"")(&spliceway) >= 2.0).then_some(()));
    assert!(blob_requests("cache=\"miss\"")(&spliceway) >= 1.0);
    spliceway.wait_metric("spliceway_requests_total", &["status=\"400\""], |count| count >= 1.0);
    spliceway.wait_metric("spliceway_served_bytes_total", &["cache=\"hit\""], |bytes| bytes >= 2.0 * len);
    spliceway.wait_metric("spliceway_fetched_bytes_total", &["origin"], |bytes| bytes >= 2.0 * len);
    spliceway.wait_metric("spliceway_fill_failures_total", &["reason=\"digest\""], |count| count >= 1.0);
    spliceway.wait_metric("spliceway_fills_in_flight", &[], |count| count < 0.5);
    spliceway.wait_metric("spliceway_stored_bytes", &["tree=\"cache\""], |bytes| bytes >= len);
    spliceway.wait_metric("spliceway_upstream_seconds_count", &["origin"], |count| count >= 1.0);
    assert!(spliceway.metric("process_resident_memory_bytes", &[]) > 0.0);
    assert!(
        spliceway.metric("spliceway_unmatched_regions_total", &[]) < 0.5,
        "the transport met a foreign slice"
    );
    assert!(get(spliceway.addr(), "/metrics").status() == 404, "metrics are not for the public");
}

#[test]
fn admin_tells_health_and_readiness() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    for target in ["/healthz", "/readyz"] {
        get(spliceway.admin(), target).expect(200);
        assert_eq!(Request::head(target).send(spliceway.admin()).status(), 200);
    }
    assert_eq!(get(spliceway.admin(), "/nothing").status(), 404);
    assert_eq!(Request::new("DELETE", "/metrics").send(spliceway.admin()).status(), 405);
    let metrics = get(spliceway.admin(), "/metrics").expect(200);
    assert!(metrics.header("content-type").is_some_and(|kind| kind.contains("text")), "{metrics}");
}

#[test]
fn access_log_has_one_line_a_request_with_its_facts() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, 2 * MIB);
    get(spliceway.addr(), &blob.path).expect(200);
    spliceway.wait_published(&blob.digest);
    get(spliceway.addr(), &blob.path).expect(200);
    Request::get(&blob.path).range("0-9").send(spliceway.addr()).expect(206);
    get(spliceway.addr(), "/v2/UPPER/tags/list").expect(400);
    let lines = eventually("four lines", || {
        let log = spliceway.log();
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.contains("GET") && line.contains("/v2/"))
            .map(str::to_owned)
            .collect();
        (lines.len() >= 4).then_some(lines)
    });
    assert_eq!(lines.len(), 4, "{lines:#?}");
    let len = blob.bytes.len().to_string();
    // A line is written when its answer is over: those of different connections may change places.
    for words in [
        vec!["\"miss\"", "status=200", &len, &blob.path, "127.0.0.1"],
        vec!["\"hit\"", "status=200", &len, &blob.path],
        vec!["\"hit\"", "status=206", "bytes=10 ", &blob.path],
        vec!["status=400", "/v2/UPPER/tags/list"],
    ] {
        let says_all = |line: &&String| words.iter().all(|word| line.contains(word));
        assert_eq!(lines.iter().filter(says_all).count(), 1, "{words:?} in {lines:#?}");
    }
}

#[test]
fn access_log_names_every_cache_state_and_what_came_from_upstream() {
    let mut origin = Origin::start();
    let image = Image::new(1, "amd64", &[]);
    image.hold(&origin, "team/app", "v1");
    let spliceway = Spliceway::start(|setup| {
        setup.registry("far_range", "1MiB");
        setup.origin(&origin).set("tag_ttl", "100ms").set("stall_timeout", "60s").set("retries", 0);
    });
    let addr = spliceway.addr();
    let blob = origin.random_blob(1, 8 * MIB);
    let gate = Gate::new();
    origin.script("GET", &blob.path, [Plan::stall(MIB as u64, &gate)]);
    Request::head(&blob.path).send(addr).expect(200);
    let miss = Request::get(&blob.path).open(addr);
    gate.wait_reached();
    let join = Request::get(&blob.path).open(addr);
    Request::get(&blob.path).range("5000000-5000999").send(addr).expect(206);
    gate.open();
    miss.collect().expect_body(&blob.bytes);
    join.collect().expect_body(&blob.bytes);
    spliceway.wait_published(&blob.digest);
    get(addr, &blob.path).expect(200);
    let tagged = "/v2/team/app/manifests/v1";
    get(addr, tagged).expect(200);
    let config = format!("/v2/team/app/blobs/{}", crate::support::sha256(&image.blobs[0]));
    get(addr, &config).expect(200);
    spliceway.wait_published(&crate::support::sha256(&image.blobs[0]));
    origin.stop();
    thread::sleep(Duration::from_millis(200));
    get(addr, tagged).expect(200);
    let line = |words: &[&str]| {
        let mut all = vec!["access"];
        all.extend(words);
        spliceway.wait_log(&all)
    };
    let len = blob.bytes.len();
    line(&["HEAD", &blob.path, "pass", "bytes=0"]);
    line(&["\"miss\"", &blob.path, &format!("bytes={len}"), &format!("upstream_bytes={len}")]);
    line(&["\"join\"", &blob.path, &format!("bytes={len}"), "upstream_bytes=0"]);
    let far = line(&["206", &blob.path, "bytes=1000"]);
    assert!(far.contains("upstream_bytes=") && !far.contains("upstream_bytes=0"), "{far}");
    line(&["\"hit\"", &blob.path, &format!("bytes={len}"), "upstream_bytes=0"]);
    line(&["\"stale\"", tagged, "status=200"]);
}

#[test]
fn log_can_be_json() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.argument("--log-format").argument("json").origin(&origin);
    });
    get(spliceway.addr(), "/v2/none/tags/list").expect(404);
    let line = spliceway.wait_log(&["/v2/none/tags/list", "404", "access"]);
    let value: serde_json::Value = serde_json::from_str(&line).expect("a line is an object");
    assert_eq!(value["fields"]["status"].as_u64().or(value["status"].as_u64()), Some(404), "{line}");
    for line in
        spliceway.log().lines().filter(|line| !line.contains("listening on") && !line.contains("admin on"))
    {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}

#[test]
fn access_log_cannot_be_forged() {
    let origin = Origin::start();
    let spliceway = Spliceway::before(&origin);
    get(spliceway.addr(), "/v2/app%0aGET%20/v2/forged/tags/list");
    get(spliceway.addr(), "/v2/app/tags/list?last=%1b%5b31mforged%0d%0a");
    Request::get("/v2/app/tags/list").header("User-Agent", "\u{1b}[31mforged").send(spliceway.addr());
    spliceway.wait_log(&["/v2/app/tags/list"]);
    get(spliceway.addr(), "/v2/").expect(200);
    let log = spliceway.log();
    assert!(!log.lines().any(|line| line.starts_with("GET ")), "{log}");
    assert!(!log.contains("\u{1b}[31mforged"), "{log}");
}

/// Attaches strace to `spliceway` while `work` is done; the calls that it saw which send from the page cache: `sendfile`,
/// and `splice` from a pipe (where neither end has an offset), with the bytes that each sent.
fn page_cache_calls(spliceway: &Spliceway, work: impl FnOnce()) -> Vec<(u64, String)> {
    let trace = spliceway.home().join("strace");
    let mut strace = Command::new("strace")
        .args(["-f", "-e", "trace=sendfile,splice", "-o"])
        .arg(&trace)
        .args(["-p", &spliceway.pid().to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace (Debian's package of that name) starts");
    let mut stderr = BufReader::new(strace.stderr.take().expect("piped"));
    let mut line = String::new();
    stderr.read_line(&mut line).expect("strace says something");
    assert!(line.contains("attached"), "{line}");
    thread::spawn(move || while stderr.read_line(&mut String::new()).is_ok_and(|len| len > 0) {});
    work();
    let interrupted = rustix::process::kill_process(rustix::process::Pid::from_child(&strace), Signal::INT);
    interrupted.expect("our own child");
    tools::wait(&mut strace, crate::support::PATIENCE).expect("strace ends");
    let text = std::fs::read_to_string(trace).expect("strace wrote it");
    text.lines()
        .filter(|line| {
            line.contains("sendfile(") || line.contains(", NULL, ") && line.matches("NULL").count() == 2
        })
        .filter_map(|line| {
            Some((line.rsplit_once("= ")?.1.split(' ').next()?.parse().ok()?, line.to_owned()))
        })
        .collect()
}

#[test]
fn hit_leaves_from_the_page_cache() {
    let origin = Origin::start();
    for mode in ["auto", "off"] {
        let spliceway = Spliceway::start(|setup| {
            setup.io_uring(mode).origin(&origin);
        });
        let blob = origin.random_blob(1, 8 * MIB);
        get(spliceway.addr(), &blob.path).expect(200);
        spliceway.wait_published(&blob.digest);
        let calls = page_cache_calls(&spliceway, || {
            get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
        });
        let sent: u64 = calls.iter().map(|(sent, _)| sent).sum();
        assert_eq!(sent, blob.len(), "all of the body, and nothing else, leaves without a copy: {calls:#?}");
    }
}

#[test]
fn it_runs_where_io_uring_is_forbidden_and_says_so_once() {
    let origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.io_uring("off").origin(&origin);
    });
    let blob = origin.random_blob(1, 2 * MIB);
    for _ in 0..2 {
        get(spliceway.addr(), &blob.path).expect(200).expect_body(&blob.bytes);
        spliceway.wait_published(&blob.digest);
    }
}
