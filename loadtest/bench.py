"""What a run lends to its workloads: directories, cores, content, servers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

from application import Application, running_application
from content import Blob, Content
from copiers import Copier
from origin import Origin, running_origin
from peer import Contestant, Peer, Role, Server, running_server
from processes import Cores
from registry import Registry, running_registry

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Bench:
    """The settings of a run, and a place for what it starts."""

    directory: Path
    content: Content
    cores: Cores
    peers: Sequence[Contestant]
    rounds: int
    seconds: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def origin(self, bytes_per_second: int | None = None) -> Iterator[Origin]:
        """Runs an origin on the clients' core."""
        with (
            self.fresh_directory("origin") as directory,
            running_origin(directory, self.content, self.cores.client, bytes_per_second) as origin,
        ):
            yield origin

    @contextmanager
    def application(self) -> Iterator[Application]:
        """Runs an application on the clients' core."""
        with (
            self.fresh_directory("application") as directory,
            running_application(directory, self.content, self.cores.client) as application,
        ):
            yield application

    @contextmanager
    def server(
        self,
        peer: Peer,
        role: Role,
        origin: Origin,
        blobs: Sequence[Blob],
        application: Application | None = None,
    ) -> Iterator[Server]:
        """Runs a server on its core; what it stored is gone when the block ends."""
        with (
            self.fresh_directory(peer.name) as directory,
            running_server(peer, role, directory, origin, blobs, self.cores.server, application) as server,
        ):
            yield server

    @contextmanager
    def registry(self, root: Path | None = None) -> Iterator[Registry]:
        """Runs a registry, on both cores: over what is there, or over nothing, to be gone when the block ends."""
        with (
            self.fresh_directory("registry") as directory,
            running_registry(directory, root or directory / "data", self.cores) as registry,
        ):
            yield registry

    def peers_for(self, role: Role, names: frozenset[str]) -> list[Peer]:
        """Those among the named servers that can do it."""
        return [peer for peer in self.peers if isinstance(peer, Peer) and role in peer.setups and peer.name in names]

    def copiers(self) -> list[Copier]:
        """Those that copy registries."""
        return [peer for peer in self.peers if isinstance(peer, Copier) and Role.COPY in peer.setups]

    def shortened(self, text: str) -> str:
        """A text for the raw data, without the paths of this run and of this checkout."""
        return text.replace(str(self.directory), "DIR").replace(f"{REPOSITORY_ROOT}/", "")

    def fresh_directory(self, name: str) -> AbstractContextManager[Path]:
        """A directory that nobody has made yet; it is gone when the block ends."""
        return _removed_afterwards(self.directory / f"{name}-{next(self._numbers)}")


@contextmanager
def _removed_afterwards(directory: Path) -> Iterator[Path]:
    try:
        yield directory
    finally:
        rmtree(directory, ignore_errors=True)
