"""Registry trees of many small images, written file by file: what has to be looked at by who collects garbage."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
# Of one image: layers that few base images have, that all images of a repository have, and that only it has.
BASE_LAYERS, REPOSITORY_LAYERS, OWN_LAYERS = 3, 2, 5
BASES_PER_REPOSITORY = 10
# Everything is so old that no grace protects it.
AGE_S = 2 * 24 * 3600
LAYER_BYTES = 64


@dataclass(frozen=True)
class TreeSize:
    """How much there is in a tree."""

    images: int
    repositories: int
    # Blobs that no manifest names, as a share of those that some do.
    garbage_share: float = 0.1


@dataclass
class Tree:
    """A directory in the layout of distribution (its `docker/registry/v2` included)."""

    root: Path
    size: TreeSize
    # Digests of blobs that manifests name, the manifests' own among them.
    kept: int = 0
    # What no manifest names, with the repository that links it.
    _garbage: list[tuple[str, bytes]] = field(default_factory=list)

    @classmethod
    def write(cls, root: Path, size: TreeSize, seed: int = 1) -> Tree:
        """Writes a tree; equal arguments give equal trees."""
        tree = cls(root, size)
        made = random.Random(seed)
        bases = [
            [made.randbytes(LAYER_BYTES) for _ in range(BASE_LAYERS)]
            for _ in range(max(1, size.repositories // BASES_PER_REPOSITORY))
        ]
        kept: set[str] = set()
        names = [f"team{number % 20:02}/app{number:04}" for number in range(size.repositories)]
        for number, name in enumerate(names):
            common = bases[number % len(bases)] + [made.randbytes(LAYER_BYTES) for _ in range(REPOSITORY_LAYERS)]
            for image in range(number, size.images, size.repositories):
                layers = common + [made.randbytes(LAYER_BYTES) for _ in range(OWN_LAYERS)]
                kept.update(tree._image(name, f"v{image}", layers))
        tree.kept = len(kept)
        tree._garbage = [
            (made.choice(names), made.randbytes(LAYER_BYTES)) for _ in range(int(tree.kept * size.garbage_share))
        ]
        tree.restore()
        return tree

    @property
    def digests(self) -> int:
        """All blobs, before anything is collected."""
        return self.kept + len(self._garbage)

    def restore(self) -> None:
        """Puts the garbage back that was collected, and has everything on the disk."""
        for name, content in self._garbage:
            self._layer(name, content)
        os.sync()

    def count(self) -> int:
        """The blobs that are there."""
        return sum(1 for _ in self._registry.glob("blobs/sha256/*/*/data"))

    @property
    def _registry(self) -> Path:
        return self.root / "docker/registry/v2"

    def _image(self, repository: str, tag: str, layers: Iterable[bytes]) -> list[str]:
        """Writes an image; the digests of all its blobs."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "name": f"{repository}:{tag}"}).encode()
        descriptors = [_descriptor(LAYER, layer) for layer in layers]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _descriptor(CONFIG, config),
                "layers": descriptors,
            }
        ).encode()
        for blob in (config, *layers):
            self._layer(repository, blob)
        digest = self._blob(manifest)
        manifests = f"repositories/{repository}/_manifests"
        self._link(f"{manifests}/revisions/sha256/{digest}", digest)
        self._link(f"{manifests}/tags/{tag}/current", digest)
        self._link(f"{manifests}/tags/{tag}/index/sha256/{digest}", digest)
        return [digest, *(_hex(blob) for blob in (config, *layers))]

    def _layer(self, repository: str, content: bytes) -> None:
        digest = self._blob(content)
        self._link(f"repositories/{repository}/_layers/sha256/{digest}", digest)

    def _blob(self, content: bytes) -> str:
        digest = _hex(content)
        self._file(self._registry / "blobs/sha256" / digest[:2] / digest / "data", content)
        return digest

    def _link(self, directory: str, digest: str) -> None:
        self._file(self._registry / directory / "link", f"sha256:{digest}".encode())

    def _file(self, path: Path, content: bytes) -> None:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        then = time.time() - AGE_S
        os.utime(path, (then, then))


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{_hex(content)}", "size": len(content)}
