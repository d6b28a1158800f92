//! Bodies on their way through the relay, in the framing that they came in.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::listener::RequestHead;
use super::super::plan::Gate;
use super::{Fault, Place};

/// Passed on at once.
const PIECE: u64 = 16 * 1024;

/// Where a body ends (RFC 9112 §6.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

impl Framing {
    pub(super) fn of_request(head: &RequestHead) -> Self {
        if head.header("transfer-encoding").is_some() {
            return Self::Chunked;
        }
        head.header("content-length").and_then(|length| length.parse().ok()).map_or(Self::None, Self::Length)
    }
}

/// What happens to a body on its way.
#[derive(Clone, Default)]
pub(super) struct BodyFault {
    cut: Option<u64>,
    flip: Option<u64>,
    hold: Option<(u64, Gate)>,
}

impl BodyFault {
    pub(super) fn of_request(fault: &Fault) -> Self {
        match fault {
            Fault::CutRequest(at) => Self { cut: Some(*at), ..Self::default() },
            Fault::HoldRequest(at, gate) => Self { hold: Some((*at, gate.clone())), ..Self::default() },
            _ => Self::default(),
        }
    }

    pub(super) fn of_answer(fault: &Fault) -> Self {
        match fault {
            Fault::CutAnswer(at) => Self { cut: Some(*at), ..Self::default() },
            Fault::Flip(at) => Self { flip: Some(*at), ..Self::default() },
            Fault::HoldAnswer(at, gate) => Self { hold: Some((*at, gate.clone())), ..Self::default() },
            _ => Self::default(),
        }
    }
}

/// Which end of a body's way broke.
pub(super) enum Broken {
    Source(io::Error),
    Target(io::Error),
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Source(error) | Broken::Target(error) => error,
        }
    }
}

/// A body on its way.
pub(super) struct Body<'a> {
    pub(super) framing: Framing,
    pub(super) fault: BodyFault,
    pub(super) count: &'a AtomicU64,
    /// Left with the last piece of a known length.
    pub(super) place: Option<&'a Place<'a>>,
}

impl Body<'_> {
    /// Passes the body on in its framing.
    pub(super) fn pass(
        &self,
        from: &mut BufReader<TcpStream>,
        to: &mut impl io::Write,
    ) -> Result<(), Broken> {
        match self.framing {
            Framing::None => Ok(()),
            Framing::Length(length) => self.bytes(from, to, length).map(drop),
            Framing::UntilClose => self.bytes(from, to, u64::MAX).map(drop),
            Framing::Chunked => loop {
                let line = line(from)?;
                to.write_all(&line).map_err(Broken::Target)?;
                let text = String::from_utf8_lossy(&line);
                let size = text.split(';').next().unwrap_or_default().trim();
                let size =
                    u64::from_str_radix(size, 16).map_err(|error| Broken::Source(io::Error::other(error)))?;
                if size > 0 {
                    self.bytes(from, to, size)?;
                    to.write_all(&self::line(from)?).map_err(Broken::Target)?;
                    continue;
                }
                loop {
                    let trailer = self::line(from)?;
                    to.write_all(&trailer).map_err(Broken::Target)?;
                    if trailer == b"\r\n" {
                        return Ok(());
                    }
                }
            },
        }
    }

    /// Passes `len` bytes on, or all until the end if that comes first and is one.
    fn bytes(
        &self,
        from: &mut BufReader<TcpStream>,
        to: &mut impl io::Write,
        len: u64,
    ) -> Result<(), Broken> {
        let mut left = len;
        let mut held = false;
        let mut piece = vec![0; usize::try_from(PIECE).expect("small")];
        while left > 0 {
            let at = self.count.load(Ordering::SeqCst);
            if self.fault.cut.is_some_and(|cut| at >= cut) {
                return Err(Broken::Source(io::Error::other("cut as planned")));
            }
            let mut most = left.min(PIECE);
            if let Some(cut) = self.fault.cut {
                most = most.min(cut - at);
            }
            match &self.fault.hold {
                Some((hold, gate)) if at >= *hold && !held => {
                    gate.pass();
                    held = true;
                }
                Some((hold, _)) if at < *hold => most = most.min(hold - at),
                _ => {}
            }
            let piece = &mut piece[..usize::try_from(most).expect("a piece is small")];
            let read = from.read(piece).map_err(Broken::Source)?;
            if read == 0 {
                if len == u64::MAX {
                    return Ok(());
                }
                return Err(Broken::Source(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Some(flip) = self.fault.flip
                && (at..at + read as u64).contains(&flip)
            {
                piece[usize::try_from(flip - at).expect("within the piece")] ^= 0xff;
            }
            if left == read as u64
                && let Some(place) = self.place
            {
                place.leave();
            }
            to.write_all(&piece[..read]).map_err(Broken::Target)?;
            self.count.fetch_add(read as u64, Ordering::SeqCst);
            left -= read as u64;
        }
        Ok(())
    }
}

fn line(from: &mut BufReader<TcpStream>) -> Result<Vec<u8>, Broken> {
    let mut line = Vec::new();
    match from.read_until(b'\n', &mut line) {
        Ok(0) => Err(Broken::Source(io::ErrorKind::UnexpectedEof.into())),
        Ok(_) => Ok(line),
        Err(error) => Err(Broken::Source(error)),
    }
}
