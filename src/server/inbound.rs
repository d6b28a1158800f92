//! What a connection has read: which of it may be handed to the HTTP library, and what stands in for what may not.
//!
//! Part of `transport`, whose doc says what the library gets to see and why. One per connection; nothing of
//! it survives that.

use std::io;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use hyper::rt::ReadBufCursor;

use super::encore::Repertoire;
use super::framing::{Framing, Step};
use super::head::{self, BodyLength, Head, Limits};
use super::refusal::HeadError;
use super::shared::{Arrival, Shared};

const SUBSTITUTE_GET: &[u8] = b"GET / HTTP/1.1\r\nHost: invalid\r\nConnection: close\r\n\r\n";
/// So that the answer to a refused HEAD has no body.
const SUBSTITUTE_HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nHost: invalid\r\nConnection: close\r\n\r\n";

/// The reading side's bytes.
pub(super) struct Inbound {
    pub(super) framing: Framing,
    /// Bytes that may be handed over, before anything else.
    pub(super) cleared: Bytes,
    /// Bytes read behind those, not yet looked at, or a head that is not whole.
    pub(super) held: BytesMut,
    /// When the first byte of the head under way was there.
    pub(super) head_began: Option<Instant>,
    /// The last head asked for another protocol: until it is answered, nobody knows what the bytes behind it are.
    pub(super) awaits_switch: bool,
}

/// What became of some bytes.
pub(super) enum Passed {
    /// Something was handed over, or is cleared to be.
    Some,
    /// More is needed.
    Nothing,
}

impl Inbound {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            framing: Framing::new(limits),
            cleared: Bytes::new(),
            held: BytesMut::new(),
            head_began: None,
            awaits_switch: false,
        }
    }

    /// Takes bytes apart until something is handed over or more is needed; returns how many were used up.
    pub(super) fn pass(
        &mut self,
        shared: &Shared,
        repertoire: &Repertoire,
        all: &[u8],
        out: &mut ReadBufCursor<'_>,
    ) -> io::Result<(usize, Passed)> {
        let mut used = 0;
        loop {
            let data = &all[used..];
            // Of a body only as much is taken as can be handed over at once.
            let seen = if self.framing.in_body() { &data[..data.len().min(out.remaining())] } else { data };
            match self.framing.step(seen) {
                Step::More => {
                    if !data.is_empty() && !self.framing.is_lost() {
                        self.head_began.get_or_insert_with(Instant::now);
                    }
                    return Ok((used, Passed::Nothing));
                }
                Step::Skip(len) => {
                    // An empty line begins no head.
                    self.head_began = None;
                    used += len;
                }
                Step::Body(len) => {
                    out.put_slice(&data[..len]);
                    return Ok((used + len, Passed::Some));
                }
                Step::Head(len, head) => {
                    let received = self.head_began.take().unwrap_or_else(Instant::now);
                    // Only what came alone and at once can be met again in the same form.
                    let alone = len == all.len() && head.body == BodyLength::Known(0) && !head.upgrade;
                    let bytes = (alone && repertoire.is_wanted(all)).then(|| Box::from(all));
                    self.awaits_switch |= head.upgrade && head.body == BodyLength::Known(0);
                    shared.arrived(Arrival { received, refused: None, bytes, upgrade: head.upgrade });
                    self.clear_head(&data[..len], head, out);
                    return Ok((used + len, Passed::Some));
                }
                Step::Refused(error) => {
                    self.refuse(shared, error, data);
                    return Ok((used + data.len(), Passed::Some));
                }
                Step::Malformed(reason) => return Err(io::Error::new(io::ErrorKind::InvalidData, reason)),
            }
        }
    }

    /// [`pass`](Self::pass) with the bytes that are held.
    pub(super) fn pass_held(
        &mut self,
        shared: &Shared,
        repertoire: &Repertoire,
        out: &mut ReadBufCursor<'_>,
    ) -> io::Result<Passed> {
        let mut held = std::mem::take(&mut self.held);
        let (used, passed) = self.pass(shared, repertoire, &held, out)?;
        if used < held.len() {
            held.advance(used);
            self.held = held;
        }
        Ok(passed)
    }

    /// Hands over a head that passed, at once as far as there is room.
    fn clear_head(&mut self, bytes: &[u8], head: Head, out: &mut ReadBufCursor<'_>) {
        if head.upgrade {
            let mut masked = BytesMut::from(bytes);
            head::mask_upgrade(&mut masked);
            self.cleared = masked.freeze();
            return;
        }
        let (now, later) = bytes.split_at(bytes.len().min(out.remaining()));
        out.put_slice(now);
        if !later.is_empty() {
            self.cleared = Bytes::copy_from_slice(later);
        }
    }

    /// Clears the substitute for a refused head, of which `data` may show the beginning.
    pub(super) fn refuse(&mut self, shared: &Shared, error: HeadError, data: &[u8]) {
        let received = self.head_began.take().unwrap_or_else(Instant::now);
        let data = if data.is_empty() { &self.held[..] } else { data };
        let substitute = if data.starts_with(b"HEAD ") { SUBSTITUTE_HEAD } else { SUBSTITUTE_GET };
        self.cleared = Bytes::from_static(substitute);
        self.held = BytesMut::new();
        shared.arrived(Arrival { received, refused: Some(error), bytes: None, upgrade: false });
    }
}
