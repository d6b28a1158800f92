"""Requests that are more than the same GET again: what wrk sends in turn, and what must come back.

Every kind of ask is made for one server, because validators (ETag) are the server's own, and one of its kind is checked
byte by byte before anything is measured.
"""

from __future__ import annotations

import http.client
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from content import KIB, Blob, ContentError
from peer import Server

# Different requests that are sent in turn.
VARIETY = 10_000
RANGE_BYTES = 64 * KIB
PART_BYTES = 16 * KIB
PARTS = 3
# Random, and the same in every run and for every server.
SEED = 1


@dataclass(frozen=True)
class Ask:
    """One request."""

    method: str
    blob: Blob
    # One header at most.
    header: tuple[str, str] | None = None
    status: int = 200
    # Of the blob: what the body must consist of.
    pieces: tuple[range, ...] = ()

    def line(self) -> str:
        """As in the file that `wrk.lua` reads."""
        return " ".join([self.method, self.blob.target, *(self.header or ())])

    def check(self, port: int) -> None:
        """Sends it once; raises `ContentError` unless the answer is what it must be."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request(self.method, self.blob.target, headers=dict([self.header] if self.header else []))
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ContentError(f"{self.line()}: {error!r}") from error
        finally:
            connection.close()
        if answer.status != self.status:
            raise ContentError(f"{self.line()}: status {answer.status}, not {self.status}")
        found = _parts(answer.msg, body) if len(self.pieces) > 1 else [body]
        if found != ([self._bytes(piece) for piece in self.pieces] or [b""]):
            raise ContentError(f"{self.line()}: wrong bytes, {len(body)} of them")

    def _bytes(self, piece: range) -> bytes:
        with self.blob.path.open("rb") as file:
            file.seek(piece.start)
            return file.read(len(piece))


# Makes the requests for a server that holds its blobs.
Asks = Callable[[Server], Sequence[Ask]]


def revalidations(server: Server) -> Sequence[Ask]:
    """GET of what the client has already."""
    blob = server.site.blobs[0]
    return [Ask("GET", blob, ("If-None-Match", _etag(server, blob)), status=304)]


def ranges(server: Server) -> Sequence[Ask]:
    """GET of one range at a random place."""
    blob, places = server.site.blobs[0], random.Random(SEED)
    return [_range_ask(blob, [places.randrange(blob.size - RANGE_BYTES)], RANGE_BYTES) for _ in range(VARIETY)]


def multiple_ranges(server: Server) -> Sequence[Ask]:
    """GET of some ranges at random places that do not touch, in their order."""
    blob, places = server.site.blobs[0], random.Random(SEED)
    slot = blob.size // PARTS
    return [
        _range_ask(blob, [slot * part + places.randrange(slot - PART_BYTES) for part in range(PARTS)], PART_BYTES)
        for _ in range(VARIETY)
    ]


def every_blob(server: Server) -> Sequence[Ask]:
    """GET of one blob after the other, in a random order."""
    blobs = list(server.site.blobs)
    random.Random(SEED).shuffle(blobs)
    return [Ask("GET", blob, pieces=(range(blob.size),)) for blob in blobs]


def write_requests(asks: Sequence[Ask], path: Path) -> None:
    """Writes the file that `wrk.lua` reads."""
    path.write_text("".join(f"{ask.line()}\n" for ask in asks))


def _range_ask(blob: Blob, starts: Sequence[int], length: int) -> Ask:
    pieces = tuple(range(start, start + length) for start in starts)
    value = ",".join(f"{piece.start}-{piece.stop - 1}" for piece in pieces)
    return Ask("GET", blob, ("Range", f"bytes={value}"), status=206, pieces=pieces)


def _etag(server: Server, blob: Blob) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.site.port, timeout=30)
    try:
        connection.request("HEAD", blob.target)
        found = connection.getresponse().getheader("ETag")
    except (OSError, http.client.HTTPException) as error:
        raise ContentError(f"HEAD: {error!r}") from error
    finally:
        connection.close()
    if not found or " " in found:
        raise ContentError(f"ETag {found!r}")
    return found


def _parts(headers: Message, body: bytes) -> list[bytes]:
    """The bodies of an answer of many parts (RFC 9110, section 14.6)."""
    boundary = headers.get_param("boundary")
    if headers.get_content_type() != "multipart/byteranges" or not isinstance(boundary, str):
        raise ContentError(f"Content-Type {headers.get('Content-Type')!r} where parts were asked for")
    # Random bytes are as good as certain not to contain a delimiter.
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    return [piece.partition(b"\r\n\r\n")[2] for piece in pieces[1:-1]]
