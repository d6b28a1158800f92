//! The registry that is copied to is never a source, however it is spelled.

use std::fs;
use std::net::{SocketAddr, UdpSocket};

use super::command::{directory, replicate};
use super::content::{catalog, small, temporary};
use crate::support::push::Repository;
use crate::support::registry::Registry;
use crate::support::relay::Relay;

/// Names of this machine, and addresses that lead to it.
fn spellings() -> Vec<String> {
    let mut hosts: Vec<String> = [
        "127.0.0.1",
        "127.0.0.2",
        "127.1",
        "0x7f.0.0.1",
        "localhost",
        "LocalHost",
        "localhost.",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "[::]",
    ]
    .map(str::to_owned)
    .into();
    hosts.push(rustix::system::uname().nodename().to_string_lossy().into_owned());
    // An address on a network, if the machine has one; nothing is sent.
    let outside = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    hosts.extend(outside.map(|addr| addr.ip().to_string()));
    hosts
}

fn lines(port: u16) -> Vec<String> {
    let mut lines: Vec<String> = spellings().iter().map(|host| format!("{host}:{port}")).collect();
    lines.extend([format!("http://127.0.0.1:{port}/"), format!("HTTP://LOCALHOST:{port}")]);
    lines
}

/// Every spelling beside one real source: one that were asked would fail, or be seen at the target.
fn excluded(target: &Relay, to: &str, more: &[&str]) {
    let from = Registry::plain();
    let image = small(from.addr(), "team/app", "1", 701);
    let home = temporary();
    let file = home.path().join("masters");
    let port = target.addr().port();
    fs::write(&file, lines(port).join("\n") + &format!("\n{}\n", from.addr())).expect("our own directory");
    let finder = format!("file:{}", file.display());
    target.forget();
    let arguments = ["--from", &finder, "--to", to, "--scheme", "http"];
    replicate(arguments.iter().chain(more)).succeeded();
    let asked = target.seen("GET", "/v2/_catalog");
    assert!(asked.is_empty(), "the target is asked as a source:\n{}", target.lines());
    if to.starts_with("http") {
        Repository::new(target.addr(), "team/app").assert_holds("1", &image);
    }
}

#[test]
fn by_any_name_of_the_target() {
    let to = Registry::plain();
    let target = Relay::before(to.addr());
    let port = target.addr().port();
    excluded(&target, &format!("http://127.0.0.1:{port}"), &[]);
    excluded(&target, &format!("http://localhost:{port}"), &[]);
}

/// Of a directory it has to be said where its server is.
#[test]
fn by_an_address_that_is_said_to_be_local() {
    let home = temporary();
    let to = Registry::plain();
    let server = Relay::before(to.addr());
    let local = format!("127.0.0.1:{}", server.addr().port());
    excluded(&server, &directory(&home.path().join("data")), &["--local-addr", &local]);
}

/// Another port is another registry, on whatever address.
#[test]
fn another_port_is_another_registry() {
    let (from, to) = (Registry::plain(), Registry::plain());
    let image = small(from.addr(), "team/app", "1", 711);
    let at = |addr: SocketAddr| format!("http://localhost:{}", addr.port());
    replicate(["--from", &at(from.addr()), "--to", &at(to.addr())]).succeeded();
    Repository::new(to.addr(), "team/app").assert_holds("1", &image);
    assert_eq!(catalog(to.addr()), ["team/app"]);
}
