//! Where in a connection's bytes one request ends and the next head begins.
//!
//! The HTTP library decodes bodies; this only follows them, so that the next head can be found and checked before the
//! library sees it. It must therefore agree with hyper on every boundary, and it does by being stricter: what it
//! follows hyper follows the same way, and what it does not follow ends the connection.
//!
//! Pure: bytes in, steps out. The steps do not depend on how the bytes were cut, except that a body may come in more or
//! fewer pieces.

use super::head::{self, BodyLength, Head, Limits, Scan};
use super::refusal::{HeadError, Refusal};

/// The most empty lines that may stand before a request line (RFC 9112 section 2.2 asks for at least one).
const BLANK_LINES_MAX: u8 = 4;
/// The longest chunk extension, in bytes. hyper bounds what they sum up to.
const EXTENSION_BYTES_MAX: u16 = 256;
/// The longest trailer section, in bytes; less than hyper takes.
const TRAILER_BYTES_MAX: u16 = 8 * 1024;
/// The most digits of a chunk's size: what fits 64 bits.
const SIZE_DIGITS_MAX: u8 = 16;

/// What the bytes at the front are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed to tell; the same bytes are shown again with more behind them.
    More,
    /// So many bytes mean nothing and are dropped.
    Skip(usize),
    /// So many bytes are a head that passed the check.
    Head(usize, Head),
    /// So many bytes, at least one, belong to the body of the last head.
    Body(usize),
    /// This is no head. Nothing can be told about the bytes behind it any more.
    Refused(HeadError),
    /// The body's framing is broken. Nothing can be told about the bytes behind it any more.
    Malformed(&'static str),
}

/// Follows the requests of one connection.
#[derive(Clone, Debug)]
pub struct Framing {
    limits: Limits,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between requests, behind so many empty lines.
    Start {
        blank_lines: u8,
    },
    /// In a head, of which so many bytes were looked at.
    Head {
        scanned: usize,
    },
    /// In a body of which so many bytes are left; at least one.
    Length(u64),
    Chunked(Chunked),
    /// After [`Step::Refused`] or [`Step::Malformed`].
    Lost,
}

/// Where in a chunked body (RFC 9112 section 7.1) the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunked {
    Size { digits: u8, value: u64 },
    Extension { len: u16, value: u64 },
    SizeLineFeed { value: u64 },
    Data { left: u64 },
    DataCarriageReturn,
    DataLineFeed,
    TrailerStart { len: u16 },
    TrailerName { len: u16 },
    TrailerValue { len: u16 },
    TrailerLineFeed { len: u16 },
    LastLineFeed,
}

/// What a byte of a chunked body led to.
enum Next {
    State(Chunked),
    End,
    Malformed(&'static str),
}

impl Framing {
    /// At the start of a connection.
    pub const fn new(limits: Limits) -> Self {
        Self { limits, state: State::Start { blank_lines: 0 } }
    }

    /// Whether the next byte belongs to the body of a request whose head was passed on.
    pub const fn in_body(&self) -> bool {
        matches!(self.state, State::Length(_) | State::Chunked(_))
    }

    /// Whether the next byte begins a request, as far as can be told.
    pub const fn is_at_start(&self) -> bool {
        matches!(self.state, State::Start { .. })
    }

    /// Whether the framing is lost, so that nothing more can be passed on.
    pub const fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost)
    }

    /// Gives up on the connection's bytes, as after a refused head.
    pub const fn lose(&mut self) {
        self.state = State::Lost;
    }

    /// How many bytes of body are certain to follow; `None` outside a body of known length.
    pub const fn body_left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// So many bytes of a body of known length went by without being shown: at most [`body_left`](Self::body_left).
    pub fn pass_body(&mut self, len: usize) {
        if let State::Length(left) = self.state {
            self.state = body_of_length(left.saturating_sub(len as u64));
        }
    }

    /// Says what the bytes at the front of `data` are. The caller takes as many as the step says, and shows what is
    /// behind them the next time.
    pub fn step(&mut self, data: &[u8]) -> Step {
        if data.is_empty() {
            return Step::More;
        }
        match self.state {
            State::Start { blank_lines } => match self.blank_line(data, blank_lines) {
                Some(step) => step,
                None => self.head(data, 0),
            },
            State::Head { scanned } => self.head(data, scanned),
            State::Length(left) => {
                let taken = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
                self.state = body_of_length(left - taken as u64);
                Step::Body(taken)
            }
            State::Chunked(state) => self.chunked(data, state),
            State::Lost => Step::More,
        }
    }

    /// Drops one empty line; `None` if `data` begins with something else.
    fn blank_line(&mut self, data: &[u8], blank_lines: u8) -> Option<Step> {
        match data {
            [b'\r'] => Some(Step::More),
            [b'\r', b'\n', ..] if blank_lines < BLANK_LINES_MAX => {
                self.state = State::Start { blank_lines: blank_lines + 1 };
                Some(Step::Skip(2))
            }
            [b'\r', b'\n', ..] => Some(
                self.refuse(HeadError::new(Refusal::RequestLine, "empty lines where a request should begin")),
            ),
            [b'\r' | b'\n', ..] => Some(
                self.refuse(HeadError::new(Refusal::LineEnd, "a bare CR or LF where a request should begin")),
            ),
            _ => None,
        }
    }

    fn head(&mut self, data: &[u8], scanned: usize) -> Step {
        match head::scan(data, scanned, self.limits) {
            Scan::Partial { scanned } => {
                self.state = State::Head { scanned };
                Step::More
            }
            Scan::Refused(error) => self.refuse(error),
            Scan::Complete { len } => match head::check(&data[..len], self.limits) {
                Ok(head) => {
                    self.state = match head.body {
                        BodyLength::Known(len) => body_of_length(len),
                        BodyLength::Chunked => State::Chunked(Chunked::Size { digits: 0, value: 0 }),
                    };
                    Step::Head(len, head)
                }
                Err(error) => self.refuse(error),
            },
        }
    }

    fn refuse(&mut self, error: HeadError) -> Step {
        self.state = State::Lost;
        Step::Refused(error)
    }

    fn chunked(&mut self, data: &[u8], mut state: Chunked) -> Step {
        let mut taken = 0;
        while taken < data.len() {
            if let Chunked::Data { left } = state {
                let skipped = usize::try_from(left).map_or(usize::MAX, |left| left).min(data.len() - taken);
                taken += skipped;
                let left = left - skipped as u64;
                state = if left == 0 { Chunked::DataCarriageReturn } else { Chunked::Data { left } };
                continue;
            }
            match state.next(data[taken]) {
                Next::State(next) => state = next,
                Next::End => {
                    self.state = State::Start { blank_lines: 0 };
                    return Step::Body(taken + 1);
                }
                // What came before the broken byte is passed on first; the byte is then shown again.
                Next::Malformed(_) if taken > 0 => break,
                Next::Malformed(reason) => {
                    self.state = State::Lost;
                    return Step::Malformed(reason);
                }
            }
            taken += 1;
        }
        self.state = State::Chunked(state);
        Step::Body(taken)
    }
}

const fn body_of_length(left: u64) -> State {
    if left == 0 { State::Start { blank_lines: 0 } } else { State::Length(left) }
}

impl Chunked {
    /// Takes one byte; `Data` is skipped by the caller.
    fn next(self, byte: u8) -> Next {
        match (self, byte) {
            (Self::Size { digits, value }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Next::Malformed("a chunk's size has more than 16 digits");
                }
                Next::State(Self::Size { digits: digits + 1, value: value << 4 | u64::from(hex_value(byte)) })
            }
            (Self::Size { digits: 1.., value } | Self::Extension { value, .. }, b'\r') => {
                Next::State(Self::SizeLineFeed { value })
            }
            (Self::Size { digits: 1.., value }, b';') => Next::State(Self::Extension { len: 0, value }),
            (Self::Size { .. }, _) => Next::Malformed("a chunk begins with its size in hexadecimal digits"),
            (Self::Extension { len, value }, _) if head::is_value_byte(byte) => {
                if len == EXTENSION_BYTES_MAX {
                    return Next::Malformed("a chunk extension is longer than 256 bytes");
                }
                Next::State(Self::Extension { len: len + 1, value })
            }
            (Self::Extension { .. }, _) => Next::Malformed("a chunk extension has a control character"),
            (Self::SizeLineFeed { value: 0 }, b'\n') => Next::State(Self::TrailerStart { len: 0 }),
            (Self::SizeLineFeed { value }, b'\n') => Next::State(Self::Data { left: value }),
            (Self::SizeLineFeed { .. }, _) => Next::Malformed("a chunk's size ends in CR LF"),
            (Self::Data { left }, _) => Next::State(Self::Data { left }),
            (Self::DataCarriageReturn, b'\r') => Next::State(Self::DataLineFeed),
            (Self::DataLineFeed, b'\n') => Next::State(Self::Size { digits: 0, value: 0 }),
            (Self::DataCarriageReturn | Self::DataLineFeed, _) => {
                Next::Malformed("a chunk's data ends in CR LF, after as many bytes as its size says")
            }
            (Self::TrailerStart { .. }, b'\r') => Next::State(Self::LastLineFeed),
            (Self::LastLineFeed, b'\n') => Next::End,
            (Self::LastLineFeed, _) => Next::Malformed("the body ends in CR LF"),
            (Self::TrailerLineFeed { len }, b'\n') => Next::State(Self::TrailerStart { len }),
            (Self::TrailerLineFeed { .. }, _) => Next::Malformed("a trailer line ends in CR LF"),
            (Self::TrailerValue { len }, b'\r') => Next::State(Self::TrailerLineFeed { len }),
            (
                Self::TrailerStart { len: TRAILER_BYTES_MAX.. }
                | Self::TrailerName { len: TRAILER_BYTES_MAX.. }
                | Self::TrailerValue { len: TRAILER_BYTES_MAX.. },
                _,
            ) => Next::Malformed("the trailers are longer than 8 KiB"),
            (Self::TrailerStart { len } | Self::TrailerName { len }, _) if head::is_token_byte(byte) => {
                Next::State(Self::TrailerName { len: len + 1 })
            }
            (Self::TrailerName { len }, b':') => Next::State(Self::TrailerValue { len: len + 1 }),
            (Self::TrailerStart { .. } | Self::TrailerName { .. }, _) => {
                Next::Malformed("a trailer line is \"name: value\"")
            }
            (Self::TrailerValue { len }, _) if head::is_value_byte(byte) => {
                Next::State(Self::TrailerValue { len: len + 1 })
            }
            (Self::TrailerValue { .. }, _) => {
                Next::Malformed("a trailer has a control character in its value")
            }
        }
    }
}

fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

/// What fuzzing calls with anything at all: the same bytes, whole and one by one, must be taken the same way. Panics if
/// they are not.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    let limits = Limits { bytes: 512, fields: 8 };
    assert_eq!(trace(data, &[], limits), trace(data, &(1..data.len()).collect::<Vec<_>>(), limits));
}

/// A step and where it ended, adjacent pieces of one body taken together.
type Trace = Vec<(usize, Step)>;

/// Follows `data`, of which at first only what lies before the first of `cuts` is there, then before the next, and so on.
fn trace(data: &[u8], cuts: &[usize], limits: Limits) -> Trace {
    let mut framing = Framing::new(limits);
    let mut steps: Trace = Vec::new();
    let mut taken = 0;
    for there in cuts.iter().copied().chain([data.len()]) {
        loop {
            let step = framing.step(&data[taken..there]);
            match step {
                Step::More => break,
                Step::Skip(len) | Step::Head(len, _) | Step::Body(len) => taken += len,
                Step::Refused(_) | Step::Malformed(_) => {
                    steps.push((taken, step));
                    return steps;
                }
            }
            match (steps.last_mut(), &step) {
                (Some((end, Step::Body(_))), Step::Body(_)) => *end = taken,
                (_, Step::Body(_)) => steps.push((taken, Step::Body(0))),
                _ => steps.push((taken, step)),
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { bytes: 512, fields: 8 };

    /// Pieces that requests, and what is nearly a request, are made of.
    const PIECES: &[&[u8]] = &[
        b"GET ",
        b"POST ",
        b"CONNECT a:1",
        b"/",
        b"/a?b",
        b"*",
        b"http://a/",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b" HTTP/2.0\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n",
        b"Host: a\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: ",
        b"5, 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: ",
        b"Upgrade: h2c\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b"\n\n",
        b" ",
        b"\t",
        b":",
        b";",
        b"0\r\n\r\n",
        b"0\r\n",
        b"5\r\nhello\r\n",
        b"5;a=b\r\nhello\r\n",
        b"FFFFFFFFFFFFFFFF\r\n",
        b"hello",
        b"X: y\r\n",
        b"\x16\x03",
        b"\xff",
        b"\0",
    ];

    fn soup() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => prop::sample::select(PIECES).prop_map(<[u8]>::to_vec),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn steps_do_not_depend_on_how_the_bytes_were_cut(data in soup(), seed in any::<u64>()) {
            let whole = trace(&data, &[], LIMITS);
            let each = trace(&data, &(1..data.len()).collect::<Vec<_>>(), LIMITS);
            prop_assert_eq!(&whole, &each);
            let some: Vec<usize> = (1..data.len()).filter(|at| seed >> (at % 64) & 1 == 1).collect();
            prop_assert_eq!(&whole, &trace(&data, &some, LIMITS));
        }

        #[test]
        fn a_step_never_takes_more_than_there_is(data in soup()) {
            let mut framing = Framing::new(LIMITS);
            let mut rest = &data[..];
            while let Step::Skip(len) | Step::Head(len, _) | Step::Body(len) = framing.step(rest) {
                prop_assert!((1..=rest.len()).contains(&len));
                rest = &rest[len..];
            }
        }
    }

    #[test]
    fn requests_are_told_apart() {
        let data = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\
                     POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
                     POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                     5\r\nhello\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nX: y\r\n\r\n\
                     PUT /\x01 HTTP/1.1\r\nHost: a\r\n\r\n";
        let steps = trace(data, &[], LIMITS);
        let kinds: Vec<&str> = steps
            .iter()
            .map(|(_, step)| match step {
                Step::Skip(_) => "skip",
                Step::Head(..) => "head",
                Step::Body(_) => "body",
                Step::Refused(_) => "refused",
                Step::Malformed(_) | Step::More => "broken",
            })
            .collect();
        assert_eq!(kinds, ["skip", "head", "head", "body", "head", "body", "refused"]);
        let refused_at = data.windows(4).position(|window| window == b"PUT ").unwrap();
        assert_eq!(steps.last().map(|(at, _)| *at), Some(refused_at));
    }

    #[test]
    fn a_chunked_body_is_exact() {
        // What is broken, and how much of the body is taken before.
        for (body, taken) in [
            ("5\n", 1),
            ("5\rx", 2),
            ("5 \r\n", 1),
            (";x\r\n", 0),
            ("\r\n", 0),
            ("g\r\n", 0),
            ("-5\r\n", 0),
            ("0x5\r\n", 1),
            ("11111111111111111\r\n", 16),
            ("1;a\0\r\n", 3),
            ("1\r\naa\r\n", 4),
            ("1\r\na\rx", 5),
            ("0\r\nx\r\n", 4),
            ("0\r\n: y\r\n", 3),
            ("0\r\n x: y\r\n", 3),
            ("0\r\nx : y\r\n", 4),
            ("0\r\nx: \x7f\r\n", 6),
            ("0\r\nx: y\rz", 8),
            ("0\r\n\rx", 4),
        ] {
            let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            let data = [head, body.as_bytes()].concat();
            let steps = trace(&data, &[], LIMITS);
            let last = steps.last().map(|(at, step)| (*at - head.len(), matches!(step, Step::Malformed(_))));
            assert_eq!(last, Some((taken, true)), "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let whole = |body: String| {
            let data = [head, &body].concat();
            trace(data.as_bytes(), &[], LIMITS).last() == Some(&(data.len(), Step::Body(0)))
        };
        let extended = |len: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(len));
        assert!(whole(extended(256)) && !whole(extended(257)));
        let trailed = |len: usize| format!("0\r\nx:{}\r\n\r\n", "y".repeat(len - 2));
        assert!(whole(trailed(8192)) && !whole(trailed(8193)));
        let many = |count: usize| format!("0\r\n{}\r\n", "x:yy\r\n".repeat(count));
        assert!(whole(many(2048)) && !whole(many(2049)));
        assert!(whole("ffff\r\n".to_owned() + &"a".repeat(0xffff) + "\r\n0\r\n\r\n"));
    }

    #[test]
    fn nothing_is_taken_behind_a_refusal() {
        let mut framing = Framing::new(LIMITS);
        assert!(matches!(framing.step(b"GET / HTTP/1.1\r\n\r\n"), Step::Refused(_)));
        assert!(framing.is_lost());
        assert_eq!(framing.step(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Step::More);
    }
}
