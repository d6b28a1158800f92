//! How a region of a file travels through an HTTP library that only knows slices of memory.
//!
//! hyper queues what a body yields and hands it to the transport as slices, without looking into them (its vectored write
//! strategy). So a region is queued as a **token**: a slice of one read-only anonymous mapping of the process, as long as
//! the longest region, that holds nothing and is never read. The transport tells a token from bytes by its address, and
//! sends the region in its place.
//!
//! *Which* region a token stands for follows from order alone. A connection's body yields regions in the order in which
//! they go out, hyper keeps that order, and every token that hyper still has is in the list of slices that it hands to
//! the transport: it queues at most 16 buffers of at most three slices each and hands over at most 64. So the n-th token
//! of the list is the n-th region of the connection's [`Outbox`], and all tokens may share the same addresses. The
//! alternative, a mapping per file, would name the file by address, and would cost a mapping (and its locks) per open
//! file, a promise that nobody truncates it, and a table to look addresses up in. This costs one mapping for the life of
//! the process and no lookup.
//!
//! Nothing is taken on trust: before a byte is sent, the number of tokens must be the number of regions in the outbox,
//! and every token must begin and end where its region does ([`Outbox::matches`]). If it does not, the library did
//! something that this module does not know of: that is a bug, it is counted ([`unmatched_regions`]), and the connection
//! fails. The mapping's zeros are never sent.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, MmapOptions};

use crate::body::{MAX_REGION, Region};

/// Times that slices and regions did not match.
static UNMATCHED: AtomicU64 = AtomicU64::new(0);

/// How often, since the process began, what the HTTP library handed to a transport did not match the regions under way.
/// Each cost its connection. Anything but 0 is a bug.
pub fn unmatched_regions() -> u64 {
    UNMATCHED.load(Ordering::Relaxed)
}

/// Makes the mapping that tokens point into, if it is not there yet. To be called once before the first connection;
/// fails when the process may not map [`MAX_REGION`] bytes of address space.
pub(super) fn token_space() -> io::Result<&'static [u8]> {
    static SPACE: OnceLock<Mmap> = OnceLock::new();
    if let Some(space) = SPACE.get() {
        return Ok(space);
    }
    // Never written, so no page of it is ever allocated.
    let made = MmapOptions::new().len(MAX_REGION).map_anon()?.make_read_only()?;
    Ok(SPACE.get_or_init(|| made))
}

/// The regions that were yielded to the library and are not wholly sent, in the order in which they go out.
#[derive(Debug)]
pub(super) struct Outbox {
    space: &'static [u8],
    regions: VecDeque<Underway>,
}

/// Invariant: `sent < region.len`.
#[derive(Debug)]
struct Underway {
    region: Region,
    sent: usize,
}

impl Outbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { space: token_space()?, regions: VecDeque::new() })
    }

    /// Appends a region; returns its token, which the caller must hand to the library before anything else.
    pub(super) fn push(&mut self, region: Region) -> &'static [u8] {
        let token = &self.space[..region.len];
        self.regions.push_back(Underway { region, sent: 0 });
        token
    }

    /// Whether a slice is a token or a part of one. An empty slice is not.
    pub(super) fn is_token(&self, slice: &[u8]) -> bool {
        // Addresses only: the comparison must not read what it compares.
        !slice.is_empty() && self.space.as_ptr_range().contains(&slice.as_ptr())
    }

    /// Whether the tokens among `slices` are exactly the regions in here. Counts it if not.
    pub(super) fn matches(&self, slices: &[IoSlice<'_>]) -> bool {
        let mut tokens = slices.iter().filter(|slice| self.is_token(slice));
        let matched = self.regions.iter().all(|underway| {
            tokens.next().is_some_and(|token| {
                let expected = &self.space[underway.sent..underway.region.len];
                std::ptr::eq(token.as_ptr_range().start, expected.as_ptr()) && token.len() == expected.len()
            })
        }) && tokens.next().is_none();
        if !matched {
            UNMATCHED.fetch_add(1, Ordering::Relaxed);
        }
        matched
    }

    /// The first region, as it was pushed.
    pub(super) fn first(&self) -> Option<&Region> {
        self.regions.front().map(|underway| &underway.region)
    }

    /// What is left to send of the first region.
    pub(super) fn front(&self) -> Option<Region> {
        self.regions.front().map(|Underway { region, sent }| Region {
            file: region.file.clone(),
            offset: region.offset + *sent as u64,
            len: region.len - sent,
            recent: region.recent,
        })
    }

    /// Takes note that `len` more bytes of the first region went out.
    pub(super) fn advance(&mut self, len: usize) {
        if let Some(front) = self.regions.front_mut() {
            front.sent += len;
            if front.sent >= front.region.len {
                self.regions.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn region(len: usize) -> Region {
        Region { file: Arc::new(tempfile::tempfile().unwrap()), offset: 100, len, recent: false }
    }

    #[test]
    fn tokens_match_regions_in_order_and_part_by_part() {
        let mut outbox = Outbox::new().unwrap();
        let first = outbox.push(region(10));
        let second = outbox.push(region(MAX_REGION));
        assert!(
            outbox.is_token(first)
                && outbox.is_token(&first[9..])
                && outbox.is_token(&second[MAX_REGION - 1..])
        );
        assert!(!outbox.is_token(b"plain"));
        assert!(outbox.matches(&[IoSlice::new(b"head"), IoSlice::new(first), IoSlice::new(second)]));

        outbox.advance(4);
        assert!(outbox.matches(&[IoSlice::new(&first[4..]), IoSlice::new(b"\r\n"), IoSlice::new(second)]));
        assert_eq!(outbox.front().map(|region| (region.offset, region.len)), Some((104, 6)));

        outbox.advance(6);
        assert!(outbox.matches(&[IoSlice::new(second)]));
        outbox.advance(MAX_REGION);
        assert!(outbox.matches(&[IoSlice::new(b"tail")]) && outbox.front().is_none());
    }

    #[test]
    fn whatever_does_not_match_is_counted() {
        let before = unmatched_regions();
        let mut outbox = Outbox::new().unwrap();
        let token = outbox.push(region(10));
        assert!(!outbox.matches(&[]), "a region without a token");
        assert!(!outbox.matches(&[IoSlice::new(&token[..9])]), "a token cut short");
        assert!(!outbox.matches(&[IoSlice::new(&token[1..])]), "a token that went ahead");
        assert!(!outbox.matches(&[IoSlice::new(token), IoSlice::new(token)]), "a token without a region");
        assert_eq!(unmatched_regions() - before, 4);
    }
}
