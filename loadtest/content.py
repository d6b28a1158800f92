"""The blobs that are served: files of random bytes, named by their digests."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
REPOSITORY = "bench/blob"
FETCH_SECONDS_MAX = 120


class ContentError(Exception):
    """An answer that is not what was asked for."""


@dataclass(frozen=True)
class Blob:
    """A blob, and where its bytes lie."""

    hex: str
    size: int
    path: Path

    @property
    def target(self) -> str:
        """The path that registries serve it at."""
        return blob_target(self.hex)

    def check(self, port: int) -> None:
        """Fetches the blob from a port of this machine; raises `ContentError` unless every byte is right."""
        check_all([self], port)


def check_all(blobs: Sequence[Blob], port: int) -> None:
    """Fetches blobs over one connection; raises `ContentError` unless every byte of them is right."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=FETCH_SECONDS_MAX)
    try:
        for blob in blobs:
            _check(blob, connection)
    except (OSError, http.client.HTTPException) as error:
        raise ContentError(f"fetching a blob: {error!r}") from error
    finally:
        connection.close()


def _check(blob: Blob, connection: http.client.HTTPConnection) -> None:
    found = hashlib.sha256()
    connection.request("GET", blob.target)
    answer = connection.getresponse()
    if answer.status != 200:
        raise ContentError(f"status {answer.status}: {answer.read(500)!r}")
    while chunk := answer.read(MIB):
        found.update(chunk)
    if found.hexdigest() != blob.hex:
        raise ContentError(f"the body has digest sha256:{found.hexdigest()}, not sha256:{blob.hex}")


@dataclass(frozen=True)
class Content:
    """A directory that a plain file server can serve as if it were a registry, filled on demand."""

    root: Path
    _blobs: dict[int, list[Blob]] = field(default_factory=dict)

    def blob(self, size: int) -> Blob:
        """A blob of `size` bytes."""
        return self.blobs(size, 1)[0]

    def blobs(self, size: int, count: int) -> Sequence[Blob]:
        """Different blobs of `size` bytes; the same ones whenever they are asked for."""
        made = self._blobs.setdefault(size, [])
        if len(made) < count:
            made += [self._make(size) for _ in range(count - len(made))]
            # So that no server's disk is busy with them, and they can be evicted from the page cache.
            os.sync()
        return made[:count]

    def _make(self, size: int) -> Blob:
        self.root.mkdir(exist_ok=True)
        temporary = self.root / "new"
        digest = hashlib.sha256()
        with temporary.open("wb") as file:
            for chunk in _random_chunks(size):
                digest.update(chunk)
                file.write(chunk)
        path = self.root / blob_target(digest.hexdigest()).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return Blob(digest.hexdigest(), size, temporary.rename(path))


def blob_target(hex_digest: str) -> str:
    """The path that registries serve a blob at."""
    return f"/v2/{REPOSITORY}/blobs/sha256:{hex_digest}"


def write_distribution_layout(root: Path, blob: Blob) -> None:
    """Puts a blob into docker-registry's directory, without a copy."""
    registry = root / "docker/registry/v2"
    data = registry / "blobs/sha256" / blob.hex[:2] / blob.hex / "data"
    data.parent.mkdir(parents=True)
    data.hardlink_to(blob.path)
    link = registry / "repositories" / REPOSITORY / "_layers/sha256" / blob.hex / "link"
    link.parent.mkdir(parents=True)
    link.write_text(f"sha256:{blob.hex}")


def _random_chunks(size: int) -> Iterator[bytes]:
    for offset in range(0, size, MIB):
        yield os.urandom(min(MIB, size - offset))
