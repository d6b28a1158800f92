//! The body of a response, before it meets a transport.
//!
//! A body yields [`Chunk`]s: bytes in memory, or a [`Region`] of a file that the transport may send without the bytes
//! ever entering user space. What a body promises it keeps or breaks loudly: once a length is known, a stream that ends
//! before it or runs past it ends in an error and never in a clean end, because a clean end is what makes a reader
//! believe that it has the whole.
//!
//! Nothing here does I/O or knows HTTP. A body may be `!Send`: it lives and dies on the worker that made it. Dropping
//! one drops its stream and its file handles and nothing else.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderMap;

/// The longest region that one chunk carries, in bytes.
///
/// Long enough that the per-chunk work vanishes beside `sendfile`, short enough that several connections on one thread
/// take turns and that one window of read-ahead stays a small piece of the page cache.
pub const MAX_REGION: usize = 4 << 20;

/// A piece of a body.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// Bytes in memory. May be empty; an empty chunk is not the end.
    Bytes(Bytes),
    /// Bytes that are in a file.
    Region(Region),
    /// Fields that follow the body (RFC 9110 section 6.5); nothing comes after them. Only of use where the length was not
    /// announced, as only then there is a place for them.
    Trailers(Box<HeaderMap>),
}

impl Chunk {
    /// The chunk's length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Region(region) => region.len,
            Self::Trailers(_) => 0,
        }
    }

    /// Whether the chunk carries no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Region> for Chunk {
    fn from(region: Region) -> Self {
        Self::Region(region)
    }
}

/// A run of bytes of a file: `1 <= len <= MAX_REGION`.
///
/// The bytes must be there when the region is yielded: a file that turns out shorter fails the connection.
#[derive(Clone, Debug)]
pub struct Region {
    /// The file, open for reading.
    pub file: Arc<File>,
    /// Where the run begins, in bytes from the file's start.
    pub offset: u64,
    /// How many bytes it has.
    pub len: usize,
    /// They were written a moment ago, so they are in the page cache: there is no need to look.
    pub recent: bool,
}

impl Region {
    /// The longest region of `file` that begins at `offset` and has at most `available` bytes; `None` if that is 0.
    ///
    /// Regions end at multiples of [`MAX_REGION`], so that readers who began at different places come to send the same
    /// ones, and what was learnt about one of them serves all.
    pub fn at(file: &Arc<File>, offset: u64, available: u64) -> Option<Self> {
        let longest = MAX_REGION as u64 - offset % MAX_REGION as u64;
        let len = usize::try_from(available.min(longest)).ok().filter(|len| *len > 0)?;
        Some(Self { file: Arc::clone(file), offset, len, recent: false })
    }
}

/// Why a body could not be produced to its end. The peer sees a reset connection, never a clean end.
pub struct BodyError(Box<dyn Error + Send + Sync>);

impl BodyError {
    /// Wraps the cause; a `&str` or a `String` will do.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }

    /// The cause, for a caller that can act on a particular one.
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl fmt::Debug for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BodyError").field(&self.0).finish()
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The wrapper says what its cause says, so the chain goes on below the cause.
        self.0.source()
    }
}

/// What [`Body::constant`] found.
#[derive(Clone, Debug)]
pub enum Constant {
    /// Bytes in memory, maybe none.
    Bytes(Bytes),
    /// `len` bytes of a file, at least one.
    File {
        /// The file, open for reading.
        file: Arc<File>,
        /// Where they begin, in bytes from the file's start.
        offset: u64,
        /// How many there are.
        len: u64,
    },
}

/// The stream behind [`Body::stream`].
type ChunkStream = Pin<Box<dyn Stream<Item = Result<Chunk, BodyError>>>>;

/// The body of a response. See the module's doc for what it promises.
pub struct Body(Inner);

enum Inner {
    Empty,
    Bytes(Bytes),
    /// Invariant: `remaining >= 1`, and `offset + remaining` fits `u64`.
    File {
        file: Arc<File>,
        offset: u64,
        remaining: u64,
    },
    /// `remaining` counts down if the length was announced. `last` is the chunk that made it 0, which waits for the
    /// stream to end well.
    Stream {
        stream: ChunkStream,
        remaining: Option<u64>,
        last: Option<Chunk>,
    },
    /// The parts that are left, the one under way first.
    Multi(VecDeque<Body>),
}

impl Body {
    /// A body of no bytes.
    pub const fn empty() -> Self {
        Self(Inner::Empty)
    }

    /// A body that is in memory and goes out as one chunk.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self(Inner::Bytes(bytes)) }
    }

    /// The `len` bytes of `file` from `offset` on, yielded as regions of at most [`MAX_REGION`] bytes.
    ///
    /// The caller has made sure that the file has them. A `len` of 0 is the empty body. A run that would pass the end
    /// of what 64 bits can address is a body that fails at its first poll.
    pub fn file(file: Arc<File>, offset: u64, len: u64) -> Self {
        if len == 0 {
            return Self::empty();
        }
        if offset.checked_add(len).is_none() {
            let error = BodyError::new(format!("{len} bytes from offset {offset} pass the end of any file"));
            return Self::stream(futures_util::stream::once(async { Err(error) }), Some(len));
        }
        Self(Inner::File { file, offset, remaining: len })
    }

    /// A body that a stream produces: a growing file, bytes passed through from upstream.
    ///
    /// With `Some(len)` the stream must yield exactly `len` bytes and then end: ending early is an error, and so is a
    /// chunk that would go past `len`. The chunk that completes `len` is yielded only when the stream has ended, so a
    /// stream that fails at its very end never leaves a body behind that looks whole. With `None` the length is unknown
    /// and the stream's own end is the end.
    pub fn stream<S>(stream: S, len: Option<u64>) -> Self
    where
        S: Stream<Item = Result<Chunk, BodyError>> + 'static,
    {
        Self(Inner::Stream { stream: Box::pin(stream), remaining: len, last: None })
    }

    /// The body's content, if all of it is there and the same to everybody: in memory, or one run of a file.
    pub fn constant(&self) -> Option<Constant> {
        match &self.0 {
            Inner::Empty => Some(Constant::Bytes(Bytes::new())),
            Inner::Bytes(bytes) => Some(Constant::Bytes(bytes.clone())),
            Inner::File { file, offset, remaining } => {
                Some(Constant::File { file: Arc::clone(file), offset: *offset, len: *remaining })
            }
            Inner::Stream { .. } | Inner::Multi(_) => None,
        }
    }

    /// The same body, held to `len` bytes as [`stream`](Self::stream) does it.
    #[must_use]
    pub fn with_size(mut self, len: u64) -> Self {
        Self::stream(futures_util::stream::poll_fn(move |cx| self.poll_chunk(cx)), Some(len))
    }

    /// Bodies one after the other, each behind bytes of its own (a part's header in `multipart/byteranges`, RFC 9110
    /// section 14.6), and `trailer` at the end.
    pub fn multipart(parts: Vec<(Bytes, Body)>, trailer: Bytes) -> Self {
        let mut bodies = VecDeque::with_capacity(parts.len() * 2 + 1);
        for (header, body) in parts {
            bodies.push_back(Self::bytes(header));
            bodies.push_back(body);
        }
        bodies.push_back(Self::bytes(trailer));
        Self(Inner::Multi(bodies))
    }

    /// The next chunk, or `None` after the last.
    ///
    /// After `None` or an error the body is over: what follows is `None`, so the caller must remember an error that it
    /// took. A region that was yielded is the caller's: the body keeps no track of it.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        loop {
            match &mut self.0 {
                Inner::Empty => return Poll::Ready(None),
                Inner::Bytes(bytes) => {
                    let bytes = std::mem::take(bytes);
                    self.0 = Inner::Empty;
                    return Poll::Ready(Some(Ok(Chunk::Bytes(bytes))));
                }
                Inner::File { .. } => return Poll::Ready(self.take_region().map(|region| Ok(region.into()))),
                Inner::Stream { stream, remaining, last } => {
                    let taken = ready!(poll_stream(stream, remaining, last, cx));
                    let over = remaining.is_some_and(|left| left == 0) || !matches!(taken, Some(Ok(_)));
                    if over {
                        self.0 = Inner::Empty;
                    }
                    return Poll::Ready(taken);
                }
                Inner::Multi(bodies) => {
                    let Some(first) = bodies.front_mut() else {
                        self.0 = Inner::Empty;
                        continue;
                    };
                    match ready!(first.poll_chunk(cx)) {
                        Some(Ok(chunk)) => return Poll::Ready(Some(Ok(chunk))),
                        Some(Err(error)) => {
                            self.0 = Inner::Empty;
                            return Poll::Ready(Some(Err(error)));
                        }
                        None => drop(bodies.pop_front()),
                    }
                }
            }
        }
    }

    /// Takes the next chunk if it is a region that is there without waiting; `None` says nothing about what comes.
    ///
    /// For a transport that reads ahead in the file while it sends what it took before.
    pub fn take_region(&mut self) -> Option<Region> {
        match &mut self.0 {
            Inner::File { file, offset, remaining } => {
                let region = Region::at(file, *offset, *remaining)?;
                *offset += region.len as u64;
                *remaining -= region.len as u64;
                if *remaining == 0 {
                    self.0 = Inner::Empty;
                }
                Some(region)
            }
            Inner::Multi(bodies) => bodies.front_mut().and_then(Self::take_region),
            Inner::Empty | Inner::Bytes(_) | Inner::Stream { .. } => None,
        }
    }

    /// How many bytes are still to come, if that is known exactly.
    pub fn size(&self) -> Option<u64> {
        match &self.0 {
            Inner::Empty => Some(0),
            Inner::Bytes(bytes) => Some(bytes.len() as u64),
            Inner::File { remaining, .. } => Some(*remaining),
            Inner::Stream { remaining, last, .. } => {
                let held = last.as_ref().map_or(0, |chunk| chunk.len() as u64);
                remaining.map(|left| left + held)
            }
            Inner::Multi(bodies) => {
                bodies.iter().try_fold(0_u64, |sum, body| body.size().and_then(|size| sum.checked_add(size)))
            }
        }
    }

    /// Whether nothing follows any more, no error either. `false` is no promise that something does.
    pub fn is_end(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Bytes(_) | Inner::File { .. } | Inner::Stream { .. } => false,
            Inner::Multi(bodies) => bodies.iter().all(Self::is_end),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::bytes(bytes)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = match &self.0 {
            Inner::Empty => "Empty",
            Inner::Bytes(_) => "Bytes",
            Inner::File { .. } => "File",
            Inner::Stream { .. } => "Stream",
            Inner::Multi(_) => "Multi",
        };
        f.debug_struct("Body").field("kind", &variant).field("size", &self.size()).finish()
    }
}

/// Takes chunks and holds them against the announced length.
///
/// The chunk that completes it is kept back until the stream has ended: the stream may still have an error to tell (a
/// digest that did not match), or bytes too many. With a length of 0 left, what comes out is the last.
fn poll_stream(
    stream: &mut ChunkStream,
    remaining: &mut Option<u64>,
    last: &mut Option<Chunk>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Chunk, BodyError>>> {
    loop {
        let item = ready!(stream.as_mut().poll_next(cx));
        let Some(left) = remaining.as_mut() else { return Poll::Ready(item) };
        match item {
            Some(Ok(chunk)) if chunk.is_empty() => {}
            Some(Ok(chunk)) => match left.checked_sub(chunk.len() as u64) {
                Some(0) => {
                    *left = 0;
                    *last = Some(chunk);
                }
                Some(rest) => {
                    *left = rest;
                    return Poll::Ready(Some(Ok(chunk)));
                }
                None => {
                    let error = format!(
                        "the body goes on for {} bytes where its announced length leaves room for {left}",
                        chunk.len()
                    );
                    return Poll::Ready(Some(Err(BodyError::new(error))));
                }
            },
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None if *left > 0 => {
                let error = format!("the body ended {left} bytes before its announced length");
                return Poll::Ready(Some(Err(BodyError::new(error))));
            }
            None => return Poll::Ready(last.take().map(Ok)),
        }
    }
}

#[cfg(test)]
mod tests;
