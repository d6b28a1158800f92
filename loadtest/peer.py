"""What a server under test is to the rest of the benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from application import Application
from content import Blob, check_all
from measure import wait_until_idle
from origin import Origin
from processes import Process, first_line, free_port, running


class Role(Enum):
    """What a server is asked to do."""

    # Serve what it holds.
    HIT = "hit"
    # Fetch from the origin what it does not hold.
    COLD = "cold"
    # Take what clients push.
    PUSH = "push"
    # Be the front of an application that answers with where the file is.
    ACCEL = "accel"
    # Remove garbage from a tree, and end.
    COLLECT = "collect"
    # Copy what one registry holds to another.
    COPY = "copy"


@dataclass(frozen=True)
class Site:
    """What one server is started for and with."""

    role: Role
    directory: Path
    port: int
    origin: Origin
    blobs: Sequence[Blob]
    # For the fronts of one.
    application: Application | None = None


class Contestant(ABC):
    """What is compared with others of its kind."""

    # One word, by which --peers, targets and the picture know it.
    name: ClassVar[str]
    # Program to Debian package.
    programs: ClassVar[Mapping[str, str]]
    # How it is set up for what it can do, in the words of the report.
    setups: ClassVar[Mapping[Role, str]]
    # What has the program say which version it is.
    version_command: Sequence[str]

    def label(self, role: Role) -> str:
        """The name in the report."""
        return f"{self.name} ({self.setups[role]})" if self.setups[role] else self.name

    def version(self) -> str:
        """What the program says of itself."""
        return first_line(*self.version_command)


class Peer(Contestant):
    """A kind of server."""

    # In the site's directory.
    configuration_file: ClassVar[str]

    @abstractmethod
    def prepare(self, site: Site) -> list[str]:
        """Writes configuration and content, and returns the command."""

    def collect_command(self, directory: Path, root: Path) -> list[str]:
        """The command that collects garbage in a tree, for those that can; what it needs is written to `directory`."""
        raise NotImplementedError(f"{self.name} collects no garbage")

    def stored_at(self, site: Site, blob: Blob) -> Path:
        """The file whose bytes the server sends for a blob that it holds."""
        return blob.path

    def notes(self, site: Site) -> dict[str, float]:
        """What the server says of itself after a workload."""
        return {}

    def warnings(self, notes: Mapping[str, float]) -> list[str]:
        """What among the notes must not be."""
        return []


def kind_of(label: str) -> str:
    """The name of the peer behind a name in the report."""
    return label.partition(" (")[0]


@dataclass(frozen=True)
class Server:
    """A server under test."""

    peer: Peer
    site: Site
    process: Process

    @property
    def label(self) -> str:
        return self.peer.label(self.site.role)

    def url(self, blob: Blob) -> str:
        """Where it serves a blob."""
        return f"http://127.0.0.1:{self.site.port}{blob.target}"

    def stored_at(self, blob: Blob) -> Path:
        """The file whose bytes it sends."""
        return self.peer.stored_at(self.site, blob)

    def configuration(self) -> str:
        """What it was started with."""
        return (self.site.directory / self.peer.configuration_file).read_text()

    def warm(self) -> None:
        """Has it fetch what it does not hold yet, then checks what it answers from then on."""
        check_all(self.site.blobs, self.site.port)
        wait_until_idle(self.process)
        check_all(self.site.blobs, self.site.port)

    def notes(self) -> dict[str, float]:
        """What it says of itself."""
        return self.peer.notes(self.site)

    def warnings(self, notes: Mapping[str, float]) -> list[str]:
        """What of that must not be."""
        return self.peer.warnings(notes)


@contextmanager
def running_server(
    peer: Peer,
    role: Role,
    directory: Path,
    origin: Origin,
    blobs: Sequence[Blob],
    core: int,
    application: Application | None = None,
) -> Iterator[Server]:
    """Runs a server that holds nothing but what its set-up gives it, until the block ends."""
    directory.mkdir()
    site = Site(role, directory, free_port(), origin, blobs, application)
    with running(peer.label(role), peer.prepare(site), core, directory) as process:
        process.wait_for_port(site.port)
        yield Server(peer, site, process)
