//! The check of a request's head, before the HTTP library sees it.
//!
//! hyper is lenient where leniency lets two parties on one path disagree about where a request ends (request
//! smuggling): it takes a Content-Length beside a Transfer-Encoding, equal duplicates, a bare LF, `gzip, chunked`, no
//! Host or two. Here a head is taken as RFC 9112 writes it or it is refused, with a reason that quotes what was wrong.
//! What passes is a subset of what hyper takes, so a head that passed is never refused behind us.
//!
//! Pure: no I/O, no clock, no state. [`scan`] finds a head's end, [`check`] judges the whole head; the verdict does not
//! depend on how the bytes were cut into reads.

use super::refusal::{HeadError, Refusal};
use super::target::{is_host, is_target};

/// What a head may grow to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest head, in bytes, from the request line to the empty line, both included.
    pub bytes: usize,
    /// The most header fields.
    pub fields: usize,
}

/// How a request's body is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// Exactly so many bytes; 0 where nothing announced a body.
    Known(u64),
    /// Chunked transfer coding.
    Chunked,
}

/// What the transport needs to know of a head that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How the body that follows is delimited.
    pub body: BodyLength,
    /// Whether there is an Upgrade field, which [`mask_upgrade`] is for.
    pub upgrade: bool,
}

/// What [`scan`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// The head goes on behind `data`; scan again from here when there is more.
    Partial {
        /// How many bytes need no second look.
        scanned: usize,
    },
    /// The head is `data[..len]`.
    Complete {
        /// The head's length in bytes, empty line included.
        len: usize,
    },
    /// This cannot become a head.
    Refused(HeadError),
}

/// Looks for the end of the head that begins at `data[0]`; the first `scanned` bytes were looked at before.
///
/// What can be refused early is: a first byte that begins no method (TLS spoken to the plain port), a bare LF, a head
/// that outgrows its limit.
pub fn scan(data: &[u8], scanned: usize, limits: Limits) -> Scan {
    let window = &data[..data.len().min(limits.bytes)];
    if let Some(first) = window.first()
        && !is_token_byte(*first)
    {
        let reason = format!("a request begins with a method, not with \"{}\"", quote(&[*first]));
        return Scan::Refused(HeadError::new(Refusal::RequestLine, reason));
    }
    let mut from = scanned.min(window.len());
    while let Some(at) = window[from..].iter().position(|byte| *byte == b'\n') {
        let line_feed = from + at;
        if line_feed == 0 || window[line_feed - 1] != b'\r' {
            let line = line_before(window, line_feed);
            let reason = format!("a line ends in CR LF, not in a bare LF: \"{}\"", quote(line));
            return Scan::Refused(HeadError::new(Refusal::LineEnd, reason));
        }
        if line_feed >= 2 && window[line_feed - 2] == b'\n' {
            return Scan::Complete { len: line_feed + 1 };
        }
        from = line_feed + 1;
    }
    if data.len() >= limits.bytes {
        let reason = format!("the request's head is longer than {} bytes", limits.bytes);
        return Scan::Refused(HeadError::new(Refusal::TooLarge, reason));
    }
    Scan::Partial { scanned: window.len() }
}

/// Judges a whole head as [`scan`] delimits it, the empty line included.
pub fn check(head: &[u8], limits: Limits) -> Result<Head, HeadError> {
    let mut lines = Lines { rest: head };
    let request_line = lines.next().unwrap_or_default();
    let version = check_request_line(request_line)?;

    let mut hosts = 0_usize;
    let mut length = None;
    let mut chunked = false;
    let mut upgrade = false;
    let mut fields = 0_usize;
    for line in lines {
        if line.is_empty() {
            break;
        }
        fields += 1;
        if fields > limits.fields {
            let reason = format!("the request has more than {} header fields", limits.fields);
            return Err(HeadError::new(Refusal::TooMany, reason));
        }
        let (name, value) = split_field(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                hosts += 1;
                check_host(value)?;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if length.is_some() {
                    return Err(HeadError::new(
                        Refusal::ContentLength,
                        "Content-Length is given more than once",
                    ));
                }
                length = Some(parse_length(value)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    let reason =
                        format!("Transfer-Encoding may only be \"chunked\", once, not \"{}\"", quote(value));
                    return Err(HeadError::new(Refusal::TransferEncoding, reason));
                }
                chunked = true;
            }
            _ => {}
        }
    }

    // RFC 9112 section 6.1: a sender of HTTP/1.0 cannot know the transfer coding, so something in between is wrong.
    if chunked && version == Version::Http10 {
        return Err(HeadError::new(Refusal::TransferEncoding, "HTTP/1.0 has no Transfer-Encoding"));
    }
    // Section 6.3, item 3: "ought to be handled as an error".
    if chunked && length.is_some() {
        let reason = "Content-Length and Transfer-Encoding exclude each other";
        return Err(HeadError::new(Refusal::ContentLength, reason));
    }
    // Section 3.2: a server MUST answer 400 to a request of HTTP/1.1 without Host and to any with several.
    if hosts > 1 || (hosts == 0 && version == Version::Http11) {
        let reason = format!("a request of HTTP/1.1 has exactly one Host, this one has {hosts}");
        return Err(HeadError::new(Refusal::Host, reason));
    }
    let body = if chunked { BodyLength::Chunked } else { BodyLength::Known(length.unwrap_or(0)) };
    Ok(Head { body, upgrade })
}

/// The name that [`mask_upgrade`] gives to an Upgrade field; as long as the field's own.
pub const MASKED_UPGRADE: &str = "ignored";

/// Renames every Upgrade field of a head that passed, in place, so that hyper does not see it.
///
/// Most services upgrade to nothing, and RFC 9110 section 7.8 lets a server ignore the field. hyper does not quite: the
/// connection of a request that carries one, and that closes after its response, it gives back without having flushed
/// it; and what it hands over of a connection that was upgraded can only be had from a socket that may change threads. So
/// upgrades pass hyper by: see `switch.rs`.
pub fn mask_upgrade(head: &mut [u8]) {
    const MASKED: &[u8] = MASKED_UPGRADE.as_bytes();
    let mut start = 0;
    while let Some(at) = head[start..].iter().position(|byte| *byte == b'\n') {
        let line = &mut head[start..start + at];
        if line.len() > MASKED.len()
            && line[MASKED.len()] == b':'
            && line[..MASKED.len()].eq_ignore_ascii_case(b"upgrade")
        {
            line[..MASKED.len()].copy_from_slice(MASKED);
        }
        start += at + 1;
    }
}

/// `token` of RFC 9110 section 5.6.2: what methods and field names are made of.
pub(super) const fn is_token_byte(byte: u8) -> bool {
    matches!(byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z')
}

/// What a field's value is made of (RFC 9110 section 5.5): no control characters but HTAB.
pub(super) const fn is_value_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// The lines of a head, without their CRLF.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let line_feed = self.rest.iter().position(|byte| *byte == b'\n')?;
        let line = &self.rest[..line_feed];
        self.rest = &self.rest[line_feed + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

fn check_request_line(line: &[u8]) -> Result<Version, HeadError> {
    let bad = || {
        let reason = format!("a request line is \"METHOD target HTTP/1.1\", not \"{}\"", quote(line));
        HeadError::new(Refusal::RequestLine, reason)
    };
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad());
    };
    if method.is_empty() || !method.iter().copied().all(is_token_byte) {
        return Err(bad());
    }
    let version = match version {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        [b'H', b'T', b'T', b'P', b'/', major, rest @ ..]
            if major.is_ascii_digit() && matches!(rest, [] | [b'.', b'0'..=b'9']) =>
        {
            let reason = format!("the HTTP version is 1.0 or 1.1 here, not \"{}\"", quote(version));
            return Err(HeadError::new(Refusal::Version, reason));
        }
        _ => return Err(bad()),
    };
    if is_target(method, target) {
        Ok(version)
    } else {
        let reason = format!("\"{}\" is no target of {}", quote(target), quote(method));
        Err(HeadError::new(Refusal::Target, reason))
    }
}

fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), HeadError> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        let reason = format!("a field line must not begin with white space: \"{}\"", quote(line));
        return Err(HeadError::new(Refusal::Fold, reason));
    }
    let colon = line.iter().position(|byte| *byte == b':');
    let name = &line[..colon.unwrap_or(line.len())];
    let Some(colon) = colon.filter(|_| !name.is_empty() && name.iter().copied().all(is_token_byte)) else {
        let reason = format!("a field line is \"name: value\", not \"{}\"", quote(line));
        return Err(HeadError::new(Refusal::FieldName, reason));
    };
    let value = &line[colon + 1..];
    if let Some(bad) = value.iter().find(|byte| !is_value_byte(**byte)) {
        let (refusal, what) = match bad {
            b'\r' => (Refusal::LineEnd, "a bare CR"),
            _ => (Refusal::FieldValue, "a control character"),
        };
        let reason = format!("the field {} has {what} in its value: \"{}\"", quote(name), quote(value));
        return Err(HeadError::new(refusal, reason));
    }
    Ok((name, trim(value)))
}

/// RFC 9110 section 8.6: decimal digits and nothing else. A list of equal numbers, which a recipient may take, is refused.
fn parse_length(value: &[u8]) -> Result<u64, HeadError> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let parsed = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    // hyper marks special lengths with the two largest numbers; no body comes near.
    parsed.filter(|len| *len <= u64::MAX / 2).ok_or_else(|| {
        let reason = format!("Content-Length is one decimal number, not \"{}\"", quote(value));
        HeadError::new(Refusal::ContentLength, reason)
    })
}

fn check_host(value: &[u8]) -> Result<(), HeadError> {
    if is_host(value) {
        return Ok(());
    }
    Err(HeadError::new(Refusal::Host, format!("Host is host[:port], not \"{}\"", quote(value))))
}

/// Without optional white space (RFC 9110 section 5.6.3) around it.
fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
    &value[start..end]
}

fn line_before(data: &[u8], line_feed: usize) -> &[u8] {
    let start = data[..line_feed].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    &data[start..line_feed]
}

/// Bytes of a peer as they may stand in an answer or a log line: escaped, and cut short.
fn quote(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 60;
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let ellipsis = if shown.len() < bytes.len() { "…" } else { "" };
    format!("{}{ellipsis}", shown.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bytes: 100, fields: 3 };

    #[test]
    fn a_head_ends_at_its_empty_line() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for len in 0..head.len() {
            assert_eq!(scan(&head[..len], 0, LIMITS), Scan::Partial { scanned: len });
            assert_eq!(scan(head, len, LIMITS), Scan::Complete { len: head.len() }, "scanned {len}");
        }
        let more = [&head[..], b"GET /"].concat();
        assert_eq!(scan(&more, 0, LIMITS), Scan::Complete { len: head.len() });
    }

    #[test]
    fn a_head_as_long_as_the_limit_is_not_too_long() {
        let limits = |bytes| Limits { bytes, fields: 3 };
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(scan(head, 0, limits(head.len())), Scan::Complete { len: head.len() });
        let Scan::Refused(error) = scan(head, 0, limits(head.len() - 1)) else { panic!("taken") };
        assert_eq!(error.refusal, Refusal::TooLarge);
    }

    #[test]
    fn the_body_is_what_the_fields_say() {
        let body = |fields: &str| {
            let head = format!("PUT / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            check(head.as_bytes(), LIMITS).map(|head| head.body)
        };
        assert_eq!(body(""), Ok(BodyLength::Known(0)));
        assert_eq!(body("content-length:\t007 \r\n"), Ok(BodyLength::Known(7)));
        assert_eq!(body("TRANSFER-ENCODING: Chunked\r\n"), Ok(BodyLength::Chunked));
        let largest = u64::MAX / 2;
        assert_eq!(body(&format!("Content-Length: {largest}\r\n")), Ok(BodyLength::Known(largest)));
        assert!(body(&format!("Content-Length: {}\r\n", largest + 1)).is_err());
    }

    #[test]
    fn a_reason_quotes_what_was_wrong_and_not_too_much_of_it() {
        let head = format!("GET / HTTP/1.1\r\nHost: a\x7f{}\r\n\r\n", "b".repeat(500));
        let error = check(head.as_bytes(), LIMITS).unwrap_err();
        assert!(error.reason.contains("Host") && error.reason.contains("a\\x7fbbb"), "{error}");
        assert!(error.reason.len() < 200 && error.reason.is_ascii() || error.reason.contains('…'), "{error}");
    }

    #[test]
    fn only_the_upgrade_field_is_masked() {
        let mut head =
            b"GET /Upgrade: HTTP/1.1\r\nHost: a\r\nUPGRADE: h2c\r\nX: Upgrade: b\r\nUpgrade-Insecure: 1\r\n\r\n".to_vec();
        mask_upgrade(&mut head);
        assert_eq!(
            head.escape_ascii().to_string(),
            r"GET /Upgrade: HTTP/1.1\r\nHost: a\r\nignored: h2c\r\nX: Upgrade: b\r\nUpgrade-Insecure: 1\r\n\r\n"
        );
    }
}
