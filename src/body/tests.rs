use std::task::Waker;

use futures_util::stream;

use super::*;

/// Takes what is there; the bodies of these tests never wait.
fn collect(mut body: Body) -> Vec<Result<Chunk, String>> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut chunks = Vec::new();
    while let Poll::Ready(Some(chunk)) = body.poll_chunk(&mut cx) {
        chunks.push(chunk.map_err(|error| error.to_string()));
    }
    assert!(body.is_end() && body.size() == Some(0), "{body:?}");
    chunks
}

#[allow(clippy::unnecessary_wraps)] // an item of a stream
fn chunk(bytes: &'static [u8]) -> Result<Chunk, BodyError> {
    Ok(Chunk::Bytes(Bytes::from_static(bytes)))
}

fn lengths(chunks: &[Result<Chunk, String>]) -> Vec<Result<usize, ()>> {
    chunks.iter().map(|chunk| chunk.as_ref().map(Chunk::len).map_err(|_| ())).collect()
}

fn any_file() -> Arc<File> {
    Arc::new(tempfile::tempfile().unwrap())
}

#[test]
fn empty_bodies_are_over_at_once() {
    for body in
        [Body::empty(), Body::bytes(""), Body::file(any_file(), 7, 0), Body::multipart(vec![], Bytes::new())]
    {
        assert_eq!(body.size(), Some(0));
        assert!(body.is_end());
        assert!(collect(body).is_empty());
    }
}

#[test]
fn bytes_are_one_chunk() {
    let body = Body::bytes("spliceway");
    assert_eq!((body.size(), body.is_end()), (Some(9), false));
    assert_eq!(lengths(&collect(body)), [Ok(9)]);
}

#[test]
fn a_file_is_cut_at_the_longest_region() {
    let max = MAX_REGION as u64;
    for (start, len, regions) in [
        (5, 1, 1),
        (5, max - 5, 1),
        (5, max - 4, 2),
        (5, max + 1, 2),
        (5, 3 * max, 4),
        (0, max, 1),
        (max, 3 * max, 3),
    ] {
        let body = Body::file(any_file(), start, len);
        assert_eq!(body.size(), Some(len));
        let chunks = collect(body);
        assert_eq!(chunks.len(), regions, "{len} bytes");
        let mut next = start;
        for chunk in chunks {
            let Ok(Chunk::Region(region)) = chunk else { panic!("{chunk:?} is no region") };
            assert_eq!(region.offset, next);
            assert!((1..=MAX_REGION).contains(&region.len));
            next += region.len as u64;
            assert!(next == start + len || next % max == 0, "regions end where those of others do");
        }
        assert_eq!(next, start + len);
    }
}

#[test]
fn a_run_beyond_64_bits_fails() {
    assert_eq!(lengths(&collect(Body::file(any_file(), u64::MAX, 2))), [Err(())]);
}

#[test]
fn a_stream_is_held_to_its_length() {
    let of =
        |items: Vec<Result<Chunk, BodyError>>, len| lengths(&collect(Body::stream(stream::iter(items), len)));
    assert_eq!(of(vec![chunk(b"ab"), chunk(b"c")], Some(3)), [Ok(2), Ok(1)]);
    assert_eq!(of(vec![chunk(b"ab"), chunk(b"c")], None), [Ok(2), Ok(1)]);
    assert_eq!(of(vec![], Some(0)), []);
    assert_eq!(of(vec![chunk(b"ab")], Some(3)), [Ok(2), Err(())], "too short");
    assert_eq!(of(vec![chunk(b"ab"), chunk(b"cd")], Some(3)), [Ok(2), Err(())], "too long");
    assert_eq!(of(vec![chunk(b"ab"), chunk(b"c")], Some(2)), [Err(())], "a chunk too many");
    assert_eq!(of(vec![chunk(b"ab"), chunk(b"")], Some(2)), [Ok(2)], "an empty chunk at the end");
    assert_eq!(of(vec![chunk(b"ab"), Err(BodyError::new("late"))], Some(2)), [Err(())], "a late error");
    assert_eq!(of(vec![chunk(b"ab"), Err(BodyError::new("x")), chunk(b"c")], None), [Ok(2), Err(())]);
}

#[test]
fn a_multipart_body_is_its_parts_in_order() {
    let parts = vec![
        (Bytes::from_static(b"one"), Body::file(any_file(), 0, MAX_REGION as u64 + 1)),
        (Bytes::from_static(b"two"), Body::empty()),
        (Bytes::new(), Body::stream(stream::iter([chunk(b"xy")]), Some(2))),
    ];
    let body = Body::multipart(parts, Bytes::from_static(b"--end"));
    assert_eq!(body.size(), Some(3 + MAX_REGION as u64 + 1 + 3 + 2 + 5));
    assert_eq!(lengths(&collect(body)), [Ok(3), Ok(MAX_REGION), Ok(1), Ok(3), Ok(2), Ok(5)]);
}

#[test]
fn a_multipart_body_fails_with_its_part() {
    let parts = vec![
        (Bytes::from_static(b"one"), Body::stream(stream::iter([chunk(b"x")]), Some(2))),
        (Bytes::from_static(b"two"), Body::bytes("never")),
    ];
    assert_eq!(lengths(&collect(Body::multipart(parts, Bytes::new()))), [Ok(3), Ok(1), Err(())]);
    let unknown = Body::multipart(vec![(Bytes::new(), Body::stream(stream::empty(), None))], Bytes::new());
    assert_eq!(unknown.size(), None);
}

#[test]
fn an_error_tells_its_cause_once() {
    let error = BodyError::new(std::io::Error::other("disk gone"));
    assert_eq!(error.to_string(), "disk gone");
    assert!(error.source().is_none());
}
