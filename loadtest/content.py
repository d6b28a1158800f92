"""The blobs that are served: files of random bytes, named by their digests."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
REPOSITORY = "bench/blob"
FETCH_SECONDS_MAX = 120


class ContentError(Exception):
    """An answer that is not the blob that was asked for."""


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
        found = hashlib.sha256()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=FETCH_SECONDS_MAX)
        try:
            connection.request("GET", self.target)
            answer = connection.getresponse()
            if answer.status != 200:
                raise ContentError(f"status {answer.status}: {answer.read(500)!r}")
            while chunk := answer.read(MIB):
                found.update(chunk)
        except (OSError, http.client.HTTPException) as error:
            raise ContentError(f"fetching the blob: {error!r}") from error
        finally:
            connection.close()
        if found.hexdigest() != self.hex:
            raise ContentError(f"the body has digest sha256:{found.hexdigest()}, not sha256:{self.hex}")


@dataclass(frozen=True)
class Content:
    """A directory that a plain file server can serve as if it were a registry, filled on demand: a blob per size."""

    root: Path
    _blobs: dict[int, Blob] = field(default_factory=dict)

    def blob(self, size: int) -> Blob:
        """The blob of `size` bytes."""
        if size not in self._blobs:
            self._blobs[size] = self._make(size)
        return self._blobs[size]

    def _make(self, size: int) -> Blob:
        self.root.mkdir(exist_ok=True)
        temporary = self.root / "new"
        digest = hashlib.sha256()
        with temporary.open("wb") as file:
            for chunk in _random_chunks(size):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
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
