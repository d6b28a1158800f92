"""Images as docker-registry lays them out on disk: what is copied, and whether it has arrived."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from content import GIB, KIB, MIB, Content

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"

SMALL_REPOSITORIES = 20
SMALL_TAGS = 10
# Of an image of its own, beside two that it shares with others.
SMALL_LAYERS = (KIB, 8 * KIB, 32 * KIB)
SHARED_LAYERS = (64 * KIB, 128 * KIB)
# Pairs of shared layers, of which each image has one.
SHARED_PAIRS = 10


@dataclass
class Shelf:
    """A directory that docker-registry serves."""

    root: Path
    # By repository.
    tags: dict[str, list[str]] = field(default_factory=dict)

    @property
    def _registry(self) -> Path:
        return self.root / "docker/registry/v2"

    def put_blob(self, content: bytes) -> dict[str, object]:
        """Stores a blob, of no repository yet; the descriptor without its type."""
        hex_digest = hashlib.sha256(content).hexdigest()
        path = self._data(hex_digest)
        if not path.exists():
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        return {"digest": f"sha256:{hex_digest}", "size": len(content)}

    def adopt_blob(self, hex_digest: str, path: Path) -> dict[str, object]:
        """The same of a file that is there, without a copy."""
        data = self._data(hex_digest)
        data.parent.mkdir(parents=True)
        data.hardlink_to(path)
        return {"digest": f"sha256:{hex_digest}", "size": path.stat().st_size}

    def put_image(self, repository: str, tag: str, layers: Sequence[Mapping[str, object]]) -> None:
        """Stores an image of layers that are stored."""
        config = self.put_blob(
            json.dumps({"architecture": "amd64", "os": "linux", "name": f"{repository}:{tag}"}).encode()
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, **config},
            "layers": [{"mediaType": LAYER_TYPE, **layer} for layer in layers],
        }
        digest = str(self.put_blob(json.dumps(manifest).encode())["digest"])
        for blob in (config, *layers):
            self._link(repository, "_layers", str(blob["digest"]))
        self._link(repository, "_manifests/revisions", digest)
        self._link(repository, f"_manifests/tags/{tag}/index", digest)
        current = self._registry / "repositories" / repository / f"_manifests/tags/{tag}/current/link"
        current.parent.mkdir(parents=True)
        current.write_text(digest)
        self.tags.setdefault(repository, []).append(tag)

    def missing_at(self, root: Path, *, every_byte: bool) -> Iterator[str]:
        """What of this is not below another registry's root, in words."""
        theirs = root / "docker/registry/v2"
        for link in sorted(self._registry.glob("repositories/*/_manifests/tags/*/current/link")):
            place = link.relative_to(self._registry)
            found = theirs / place
            if not found.exists() or found.read_text() != link.read_text():
                yield f"{place} is not what it is at the source"
        for data in sorted(self._registry.glob("blobs/sha256/*/*/data")):
            place = data.relative_to(self._registry)
            found = theirs / place
            if not found.exists() or found.stat().st_size != data.stat().st_size:
                yield f"{place} has not arrived"
            elif every_byte and _hex_digest(found) != place.parent.name:
                yield f"{place} is not what its name says"

    def _data(self, hex_digest: str) -> Path:
        return self._registry / "blobs/sha256" / hex_digest[:2] / hex_digest / "data"

    def _link(self, repository: str, kind: str, digest: str) -> None:
        link = self._registry / "repositories" / repository / kind / digest.replace(":", "/") / "link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)


def small_images(root: Path, _: Content) -> Shelf:
    """200 images in 20 repositories, of five layers each; two of these are in 19 other images too."""
    shelf = Shelf(root)
    shared = [[shelf.put_blob(os.urandom(size)) for size in SHARED_LAYERS] for _ in range(SHARED_PAIRS)]
    for number in range(SMALL_REPOSITORIES):
        for tag in range(SMALL_TAGS):
            own = [shelf.put_blob(os.urandom(size)) for size in SMALL_LAYERS]
            shelf.put_image(f"app{number:02}", f"1.{tag}.0", [*shared[tag % SHARED_PAIRS], *own])
    return shelf


def large_image(root: Path, content: Content) -> Shelf:
    """One image with a layer of 1 GiB."""
    shelf = Shelf(root)
    blob = content.blob(GIB)
    shelf.put_image("large", "1.0.0", [shelf.adopt_blob(blob.hex, blob.path)])
    return shelf


def _hex_digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            found.update(chunk)
    return found.hexdigest()
