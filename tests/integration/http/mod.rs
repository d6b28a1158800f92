//! HTTP on blobs, stored and being filled alike: headers, ranges, conditions, errors.

mod again;
mod blobs;
mod conditions;
mod ranges;
mod routes;

use std::thread;

use crate::support::MIB;
use crate::support::client::{Answer, Request, get};
use crate::support::origin::{Blob, Origin};
use crate::support::plan::{Gate, Plan};
use crate::support::process::Spliceway;

/// Not a multiple of anything, and several times what is held back from readers.
const LEN: usize = 3 * MIB + 12_345;
/// Where the origin waits while a blob is asked for that is being filled.
const GATE: u64 = 1_800_000;

/// A blob in one of the two states in which HTTP must be the same.
struct Fixture {
    origin: Origin,
    spliceway: Spliceway,
    blob: Blob,
    gate: Gate,
}

impl Fixture {
    fn stored() -> Self {
        let origin = Origin::start();
        let spliceway = Spliceway::before(&origin);
        let blob = origin.random_blob(1, LEN);
        get(spliceway.addr(), &blob.path).expect(200);
        spliceway.wait_published(&blob.digest);
        Self { origin, spliceway, blob, gate: Gate::new() }
    }

    /// Filled up to [`GATE`] and no further until the gate opens; a first reader is under way.
    fn growing() -> Self {
        let origin = Origin::start();
        let spliceway = Spliceway::start(|setup| {
            setup.origin(&origin).set("stall_timeout", "60s");
        });
        let blob = origin.random_blob(1, LEN);
        let gate = Gate::new();
        origin.script("GET", &blob.path, [Plan::stall(GATE, &gate)]);
        let mut first = Request::get(&blob.path).open(spliceway.addr());
        first.read_to(GATE - MIB as u64, &mut Vec::new()).expect("what is not the tail");
        thread::spawn(move || first.collect());
        gate.wait_reached();
        Self { origin, spliceway, blob, gate }
    }

    fn get(&self) -> Request {
        Request::get(&self.blob.path)
    }

    fn send(&self, request: &Request) -> Answer {
        request.send(self.spliceway.addr())
    }

    fn etag(&self) -> String {
        format!("\"{}\"", self.blob.digest)
    }
}
