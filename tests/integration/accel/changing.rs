//! Files that change while they are sent: what was announced is what comes, or the connection breaks.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use super::backend::{Backend, Told};
use super::front::{Files, Front, location};
use super::wire::{Wire, field, peak_memory_bytes};
use crate::support::client::{Connection, End, Exchange, Request, get};
use crate::support::{MIB, eventually, noise};

/// More than the buffers of a connection take at once.
const LEN: usize = 24 * MIB + 11;
/// What the process may grow by while it sends what is no size for it.
const MEMORY_BYTES_MAX: u64 = 24 << 20;

struct Fixture {
    files: Files,
    _backend: Backend,
    front: Front,
}

impl Fixture {
    fn start() -> Self {
        let (files, backend) = (Files::new(), Backend::start());
        let front = Front::before(&backend.url(), &location("/protected/", &files.root()));
        Self { files, _backend: backend, front }
    }

    fn addr(&self) -> SocketAddr {
        self.front.addr()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.root().join(name)
    }

    /// Asks for a file and reads its head and some bytes; more than the buffers between take is still to be sent.
    fn begin(&self, name: &str, range: Option<&str>) -> Exchange {
        let mut request = Request::get(target(name));
        if let Some(range) = range {
            request = request.range(range);
        }
        let mut connection = Connection::open_narrow(self.addr());
        connection.write(&request.bytes(self.addr())).expect("a request is written");
        let mut exchange = connection.exchange("GET").expect("a head");
        assert_eq!(exchange.status(), if range.is_some() { 206 } else { 200 });
        exchange.next(1).expect("a byte");
        exchange
    }
}

fn target(name: &str) -> String {
    Told::redirect(&format!("/protected/{name}")).target()
}

#[test]
fn a_file_that_is_truncated_breaks_the_connection_and_nothing_else() {
    let fixture = Fixture::start();
    for (round, (range, kept)) in
        (0..).zip([(None, 0), (None, LEN as u64 / 2 + 5), (Some("5-"), 4096), (Some("0-99,5000-"), 7000)])
    {
        let name = format!("truncated{round}.bin");
        fixture.files.write(&name, &noise(round, LEN));
        let exchange = fixture.begin(&name, range);
        File::options()
            .write(true)
            .open(fixture.path(&name))
            .and_then(|file| file.set_len(kept))
            .expect("our own");
        let answer = exchange.collect();
        assert!(matches!(answer.end, End::Cut | End::Reset), "{range:?} {kept}: {answer}");
        assert!(answer.body.len() < LEN, "{range:?} {kept}: {answer}");
        get(fixture.addr(), &target("hello.txt")).expect(200).expect_body(b"hello, world\n");
        // What is left of it is a file like others, as soon as the old length is no longer believed.
        eventually("the new length", || {
            let answer = Request::get(target(&name)).try_send(fixture.addr())?;
            (answer.end == End::Complete && answer.body.len() as u64 == kept).then_some(())
        });
    }
}

#[test]
fn a_file_that_grows_is_sent_as_it_was_announced() {
    let fixture = Fixture::start();
    let bytes = noise(1, LEN);
    fixture.files.write("growing.bin", &bytes);
    let exchange = fixture.begin("growing.bin", None);
    let mut file = File::options().append(true).open(fixture.path("growing.bin")).expect("our own file");
    file.write_all(&noise(2, MIB)).expect("our own file");
    let answer = exchange.collect();
    assert_eq!((answer.end, answer.body.len() + 1), (End::Complete, LEN));
    assert!(answer.body == bytes[1..]);
    eventually("the new length", || {
        (get(fixture.addr(), &target("growing.bin")).body.len() == LEN + MIB).then_some(())
    });
}

#[test]
fn a_file_that_is_replaced_or_removed_arrives_whole_and_old() {
    let fixture = Fixture::start();
    for (round, range) in (0..).zip([None, Some("1000000-"), Some("0-99,5000-")]) {
        let (old, new) = (noise(round, LEN), noise(100 + round, LEN / 2));
        fixture.files.write("replaced.bin", &old);
        // Not the length that was believed for the round before.
        eventually("the first", || {
            (Request::head(target("replaced.bin")).send(fixture.addr()).header("content-length")
                == Some(&LEN.to_string()))
            .then_some(())
        });
        let exchange = fixture.begin("replaced.bin", range);
        fixture.files.write("new.bin", &new);
        fs::rename(fixture.path("new.bin"), fixture.path("replaced.bin")).expect("our own file");
        let answer = exchange.collect();
        assert_eq!(answer.end, End::Complete, "{range:?}: {answer}");
        match range {
            None => assert!(answer.body == old[1..], "{answer}"),
            Some("1000000-") => assert!(answer.body == old[1_000_001..], "{answer}"),
            Some(_) => {
                let tail = &old[5000..];
                assert!(answer.body.windows(64).any(|window| window == &tail[..64]), "{answer}");
                let end = answer.body.len() - 200..;
                assert!(
                    answer.body[end].windows(64).any(|window| window == &tail[tail.len() - 64..]),
                    "{answer}"
                );
            }
        }
        eventually("the new file", || {
            (get(fixture.addr(), &target("replaced.bin")).body == new).then_some(())
        });
        fs::remove_file(fixture.path("replaced.bin")).expect("our own file");
        eventually("the file to be gone", || {
            (get(fixture.addr(), &target("replaced.bin")).status() == 404).then_some(())
        });
    }
    fixture.files.write("removed.bin", &noise(50, LEN));
    let exchange = fixture.begin("removed.bin", None);
    fs::remove_file(fixture.path("removed.bin")).expect("our own file");
    let answer = exchange.collect();
    assert_eq!((answer.end, answer.body.len() + 1), (End::Complete, LEN));
}

#[test]
fn validators_and_content_belong_together_while_files_are_replaced() {
    let fixture = Fixture::start();
    // Each version's length and content say which one it is.
    let version = |number: usize| vec![b'a' + u8::try_from(number % 26).expect("a letter"); 1000 + number];
    fixture.files.write("versions.bin", &version(0));
    for number in 1..200 {
        fixture.files.write("next.bin", &version(number));
        fs::rename(fixture.path("next.bin"), fixture.path("versions.bin")).expect("our own file");
        let answer = get(fixture.addr(), &target("versions.bin")).expect(200);
        let found = answer.body.len() - 1000;
        assert!(found <= number && answer.body == version(found), "{answer}");
        let etag = format!("-{:x}\"", answer.body.len());
        assert!(answer.header("etag").is_some_and(|value| value.ends_with(&etag)), "{answer}");
    }
}

#[test]
fn four_gibibytes_cost_no_memory() {
    const GIGANTIC: u64 = 4 << 30;
    let fixture = Fixture::start();
    let mut file = File::create(fixture.path("gigantic.bin")).expect("our own directory");
    file.seek(SeekFrom::Start(GIGANTIC)).and_then(|_| file.write_all(b"end")).expect("a sparse file");
    get(fixture.addr(), &target("hello.txt")).expect(200);
    let before = peak_memory_bytes(&fixture.front.spliceway);
    let mut wire = Wire::connect(fixture.addr());
    wire.send(format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", target("gigantic.bin")))
        .expect("sent");
    let head = wire.head().expect("a head");
    assert_eq!(field(&head, "content-length"), Some(&*(GIGANTIC + 3).to_string()), "{head:?}");
    assert_eq!(wire.count(), GIGANTIC + 3);
    let grown = peak_memory_bytes(&fixture.front.spliceway) - before;
    assert!(grown < MEMORY_BYTES_MAX, "{grown} bytes more");
    let range = format!("{}-", GIGANTIC - 2);
    Request::get(target("gigantic.bin"))
        .range(&range)
        .send(fixture.addr())
        .expect(206)
        .expect_body(b"\0\0end");
}
