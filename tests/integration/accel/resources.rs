//! What a front holds: a bounded number of files and connections, and next to nothing for a transfer that waits.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::backend::{Backend, Told};
use super::front::{Files, Front, location};
use super::wire::{application, peak_memory_bytes};
use crate::support::client::{Connection, Request, get};
use crate::support::{PATIENCE, eventually};

/// Open files of the process.
fn descriptors(front: &Front) -> usize {
    let listed = fs::read_dir(format!("/proc/{}/fd", front.spliceway.pid())).expect("it is running");
    listed.count()
}

#[test]
fn files_that_were_served_are_not_kept_open_for_ever() {
    const MANY: usize = 3000;
    let (files, backend) = (Files::new(), Backend::start());
    for number in 0..MANY {
        files.write(&format!("many/{number}"), number.to_string().as_bytes());
    }
    let front = Front::before(&backend.url(), &location("/protected/", &files.root()));
    let before = descriptors(&front);
    let mut connection = Connection::open(front.addr());
    for number in 0..MANY {
        let request = Request::get(Told::redirect(&format!("/protected/many/{number}")).target());
        let (answer, kept) = connection.request(front.addr(), &request).expect("an answer").finish();
        answer.expect(200).expect_body(number.to_string().as_bytes());
        connection = kept;
    }
    let after = descriptors(&front);
    assert!(after < before + 1000, "{after} open files after {MANY}, {before} before");
    // A file that is gone does not take space for long.
    fs::remove_dir_all(files.root().join("many")).expect("our own directory");
    let open = || {
        let listed = fs::read_dir(format!("/proc/{}/fd", front.spliceway.pid())).expect("it is running");
        let links = listed.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().ends_with("(deleted)")).count()
    };
    eventually("removed files to be closed", || {
        // Whatever looks after them may do so when there is something to do.
        get(front.addr(), &Told::redirect("/protected/hello.txt").target()).expect(200);
        (open() < 10).then_some(())
    });
}

#[test]
fn idle_connections_to_the_application_are_limited() {
    const CLIENTS: usize = 24;
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counting, highest) = (open.clone(), most.clone());
    let backend = application(move |mut wire| {
        let now = counting.fetch_add(1, Ordering::SeqCst) + 1;
        highest.fetch_max(now, Ordering::SeqCst);
        while wire.head().is_some() {
            // All of them are under way at once.
            let together = || highest.load(Ordering::SeqCst) >= CLIENTS;
            let deadline = std::time::Instant::now() + PATIENCE;
            while !together() && std::time::Instant::now() < deadline {
                thread::sleep(std::time::Duration::from_millis(1));
            }
            if wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                break;
            }
        }
        counting.fetch_sub(1, Ordering::SeqCst);
    });
    let front = Front::before(&format!("http://{}", backend.addr()), "keep_alive = 3");
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| get(front.addr(), "/").expect(200).expect_body(b"ok"));
        }
    });
    assert_eq!(most.load(Ordering::SeqCst), CLIENTS, "a connection for each request under way");
    eventually("the others to be closed", || (open.load(Ordering::SeqCst) <= 3).then_some(()));
    // Those that are kept are used.
    for _ in 0..10 {
        get(front.addr(), "/").expect(200);
    }
    assert_eq!(most.load(Ordering::SeqCst), CLIENTS);
    assert!((1..=3).contains(&open.load(Ordering::SeqCst)));
}

#[test]
fn transfers_that_wait_for_their_rate_hold_next_to_nothing() {
    const CLIENTS: usize = 400;
    // Of each connection, with everything that belongs to it.
    const BYTES_MAX: u64 = 64 * 1024;
    let (files, backend) = (Files::new(), Backend::start());
    let front = Front::before(&backend.url(), &location("/protected/", &files.root()));
    let told = Told::redirect("/protected/large.bin").header("X-Accel-Limit-Rate", "5000");
    let request = Request::get(told.target());
    let ask = || {
        let mut connection = Connection::open(front.addr());
        connection.write(&request.bytes(front.addr())).expect("a request is written");
        let mut exchange = connection.exchange("GET").expect("a head");
        exchange.next(1).expect("a byte");
        exchange
    };
    drop(ask());
    let before = peak_memory_bytes(&front.spliceway);
    let mut waiting: Vec<_> = (0..CLIENTS).map(|_| ask()).collect();
    // Each of them goes on.
    for exchange in &mut waiting {
        let known = exchange.received();
        exchange.read_to(known + 1, &mut Vec::new()).expect("more of it");
    }
    let grown = peak_memory_bytes(&front.spliceway) - before;
    assert!(grown < CLIENTS as u64 * BYTES_MAX, "{} bytes for each of {CLIENTS}", grown / CLIENTS as u64);
    // Others are not held up by them, and one that leaves is noticed.
    get(front.addr(), &Told::redirect("/protected/large.bin").target()).expect(200);
    let descriptors_before = descriptors(&front);
    drop(waiting);
    eventually("the connections to be closed", || {
        (descriptors(&front) + CLIENTS / 2 < descriptors_before).then_some(())
    });
}

#[test]
fn clients_that_connect_and_say_nothing_useful_hold_no_connection_to_the_application() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counting = connections.clone();
    let backend = application(move |mut wire| {
        counting.fetch_add(1, Ordering::SeqCst);
        wire.head();
    });
    let front = Front::before(&format!("http://{}", backend.addr()), "");
    let _held: Vec<_> = ["", "GET / HT", "GET / HTTP/1.1\r\nHost: x\r\nX-Half", "\r\n\r\n"]
        .into_iter()
        .map(|text| {
            let mut stream = TcpStream::connect(front.addr()).expect("the server accepts");
            stream.write_all(text.as_bytes()).expect("sent");
            stream
        })
        .collect();
    // Something that comes after them is answered first.
    assert_eq!(get(front.addr(), "/").status(), 502);
    assert_eq!(connections.load(Ordering::SeqCst), 1, "the application is asked when a request is there");
}
