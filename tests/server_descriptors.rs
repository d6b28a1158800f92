//! A server that has run out of file descriptors. Alone in its process, because the limit is the process's.

#[path = "server/client.rs"]
#[expect(dead_code, reason = "shared with the tests in `server/`, which use all of it")]
mod client;
#[path = "server/harness.rs"]
#[expect(dead_code, reason = "shared with the tests in `server/`, which use all of it")]
mod harness;

use std::fs::File;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use client::Client;
use harness::Server;

#[test]
fn accepting_goes_on_when_descriptors_are_there_again() {
    let server = Server::start();
    // Something that was served before, so that nothing is opened lazily later.
    assert_eq!(Client::connect(server.address).get("/file/0/1").status, 200);
    harness::eventually(|| (server.doors.open_connections() == 0).then_some(()));
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), maximum }).unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    // What is left is three clients and two of their server's ends.
    taken.truncate(taken.len() - 5);
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(server.address)).collect();
    let mut last = clients.pop().unwrap();
    for client in &mut clients {
        assert_eq!(client.get("/describe").status, 200);
    }
    last.send("GET /describe?last HTTP/1.1\r\nHost: a\r\n\r\n");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.seen.targets().len(), 3, "the last cannot have been accepted");
    clients.pop();
    assert_eq!(last.response().text(), "GET /describe?last a");
    drop(taken);
}
