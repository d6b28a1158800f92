//! What a request carries: nothing or a few bytes, which can be sent again, or a stream, which cannot.
//!
//! A stream ends by saying so. A feeder that vanishes without it makes the body fail, never end: over a connection of known
//! length, and over a chunked one too, the server then sees a break and not a short body that looks whole.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, timeout};

/// Pieces that wait for the socket; a piece has at most a few hundred KiB, what one read of a source gives.
const PIECES_WAITING: usize = 3;

/// The body of a request.
pub(super) enum Payload {
    /// At hand; `None` once it is on its way.
    Whole(Option<Bytes>),
    /// As it comes.
    Stream(Box<PieceStream>),
}

impl Payload {
    pub(super) fn whole(bytes: &Bytes) -> Self {
        Self::Whole((!bytes.is_empty()).then(|| bytes.clone()))
    }
}

/// The end of a stream into which pieces are put.
#[derive(Debug)]
pub struct PieceSender {
    pieces: mpsc::Sender<Piece>,
    stall_timeout: Duration,
}

/// The end of a stream that [`Upstream::append`](super::Upstream::append) sends.
#[derive(Debug)]
pub struct PieceStream {
    pieces: mpsc::Receiver<Piece>,
    /// Bytes to come, if that is known from the start.
    left: Option<u64>,
    is_over: bool,
    /// Bytes taken.
    sent: Arc<AtomicU64>,
    /// Told when all of it was taken.
    taken: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    End,
}

/// Why a piece was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The request has its answer, or failed: that says why.
    #[error("the request is over")]
    Over,
    /// The server takes nothing more.
    #[error("the server took nothing for {0:?}")]
    Stalled(Duration),
}

/// A stream of `length` bytes, if that is known. Putting a piece in waits at most `stall_timeout` for the ones before it.
pub(super) fn stream(length: Option<u64>, stall_timeout: Duration) -> (PieceSender, PieceStream) {
    let (sender, pieces) = mpsc::channel(PIECES_WAITING);
    let (sent, is_over) = (Arc::default(), length == Some(0));
    let stream = PieceStream { pieces, left: length, is_over, sent, taken: None };
    (PieceSender { pieces: sender, stall_timeout }, stream)
}

impl PieceSender {
    /// Puts the next bytes in, once there is room. A dropped call may have put them in or not.
    pub async fn send(&self, bytes: Bytes) -> Result<(), NotTaken> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.put(Piece::Bytes(bytes)).await
    }

    /// Says that there is no more, and waits until all of it was taken: what still waits in here would be nobody's to
    /// watch. Without it the body breaks off. [`NotTaken::Over`] if it had ended by itself, at the length announced.
    pub async fn end(self) -> Result<(), NotTaken> {
        self.put(Piece::End).await?;
        // Whoever has all the room knows that nothing is in it.
        let mut room = Vec::with_capacity(PIECES_WAITING);
        while room.len() < PIECES_WAITING {
            match timeout(self.stall_timeout, self.pieces.reserve()).await {
                Ok(Ok(one)) => room.push(one),
                // The last byte was taken, or the request says what went wrong.
                Ok(Err(_)) => break,
                Err(_) => return Err(NotTaken::Stalled(self.stall_timeout)),
            }
        }
        Ok(())
    }

    async fn put(&self, piece: Piece) -> Result<(), NotTaken> {
        match timeout(self.stall_timeout, self.pieces.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(NotTaken::Over),
            Err(_) => Err(NotTaken::Stalled(self.stall_timeout)),
        }
    }
}

impl PieceStream {
    /// Tells when all of it was taken by the connection, and never if it broke off.
    pub(super) fn on_taken(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        if self.is_over {
            let _ = sender.send(());
        } else {
            self.taken = Some(sender);
        }
        receiver
    }

    /// Counts the bytes that the connection has taken.
    pub(super) fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    fn over(&mut self) {
        self.is_over = true;
        self.pieces.close();
        if let Some(taken) = self.taken.take() {
            let _ = taken.send(());
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let broken = |why: &str| Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))));
        match ready!(self.pieces.poll_recv(cx)) {
            Some(Piece::Bytes(bytes)) => {
                if let Some(left) = self.left {
                    let Some(rest) = left.checked_sub(bytes.len() as u64) else {
                        return broken("more bytes than announced");
                    };
                    self.left = Some(rest);
                    // hyper does not ask for more than it announced.
                    if rest == 0 {
                        self.over();
                    }
                }
                self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Poll::Ready(Some(Ok(bytes)))
            }
            Some(Piece::End) if self.left.is_some_and(|left| left > 0) => {
                broken("fewer bytes than announced")
            }
            Some(Piece::End) => {
                self.over();
                Poll::Ready(None)
            }
            None => broken("what was to be sent broke off"),
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => {
                stream.poll_piece(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(stream) => stream.is_over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(stream) => stream.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const STALL: Duration = Duration::from_mins(1);

    async fn read(stream: PieceStream) -> io::Result<Vec<u8>> {
        let body = Payload::Stream(Box::new(stream));
        body.collect().await.map(|body| body.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn a_stream_ends_only_if_it_says_so() {
        for length in [None, Some(5)] {
            let (sender, stream) = stream(length, STALL);
            sender.send(Bytes::from_static(b"hel")).await.unwrap();
            sender.send(Bytes::from_static(b"lo")).await.unwrap();
            let (ended, read) = tokio::join!(sender.end(), read(stream));
            ended.unwrap();
            assert_eq!(read.unwrap(), b"hello");
        }
        for length in [None, Some(5)] {
            let (sender, stream) = stream(length, STALL);
            sender.send(Bytes::from_static(b"hel")).await.unwrap();
            drop(sender);
            assert!(read(stream).await.is_err(), "{length:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_of_another_length_is_broken() {
        for length in [4, 6] {
            let (sender, stream) = stream(Some(length), STALL);
            sender.send(Bytes::from_static(b"hello")).await.unwrap();
            let (_, read) = tokio::join!(sender.end(), read(stream));
            assert!(read.is_err(), "{length}");
        }
        let (_sender, stream) = stream(Some(0), STALL);
        assert_eq!(read(stream).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn an_end_that_is_not_taken_is_noticed_and_one_that_came_by_itself_too() {
        for (length, waiting) in [(None, 2), (Some(2), 2), (None, 0), (Some(3), 3)] {
            let (sender, _stream) = stream(length, Duration::from_millis(10));
            for _ in 0..waiting {
                sender.send(Bytes::from_static(b"x")).await.unwrap();
            }
            let stalled = NotTaken::Stalled(Duration::from_millis(10));
            assert_eq!(sender.end().await, Err(stalled), "{length:?}, {waiting}");
        }
        let (sender, stream) = stream(Some(1), STALL);
        sender.send(Bytes::from_static(b"x")).await.unwrap();
        let sent = stream.sent();
        assert_eq!(read(stream).await.unwrap(), b"x");
        assert_eq!(sent.load(Ordering::Relaxed), 1);
        assert_eq!(sender.end().await, Err(NotTaken::Over));
    }

    #[tokio::test]
    async fn who_sends_learns_that_nobody_takes() {
        let (sender, stream) = stream(None, Duration::from_millis(10));
        for _ in 0..PIECES_WAITING {
            sender.send(Bytes::from_static(b"x")).await.unwrap();
        }
        assert_eq!(
            sender.send(Bytes::from_static(b"x")).await,
            Err(NotTaken::Stalled(Duration::from_millis(10)))
        );
        drop(stream);
        assert_eq!(sender.send(Bytes::from_static(b"x")).await, Err(NotTaken::Over));
    }
}
