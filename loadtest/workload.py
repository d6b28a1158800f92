"""What every workload has in common: it starts the servers that it compares and lets them take turns, A B A B …"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from bench import Bench
from content import Blob, ContentError
from figures import Figure
from measure import wait_until_idle
from origin import Origin
from peer import Peer, Role, Server
from processes import ProcessError
from records import FailureRecord, NotesRecord, Record, Round, ServerRecord

# What can go wrong with a server and leaves the others to be measured.
FAILURES = (ProcessError, ContentError, OSError)


class Workload(Protocol):
    """One table of the report, or one check."""

    @property
    def name(self) -> str:
        """As in --workloads."""

    @property
    def title(self) -> str:
        """As in the report."""

    @property
    def figures(self) -> Sequence[Figure[Any]]:
        """The columns of its table."""

    @property
    def programs(self) -> Mapping[str, str]:
        """What it needs beside the servers, with the Debian packages."""

    def run(self, bench: Bench) -> Iterator[Record]:
        """Measures, and yields what it finds as it finds it."""


@dataclass(frozen=True, kw_only=True)
class Turns(ABC):
    """A workload in which every server does the same, one after the other, round after round."""

    name: str
    title: str
    # Of each blob.
    size: int
    # Names of the peers that take part.
    peers: frozenset[str]
    # Different blobs.
    count: int = 1

    role: ClassVar[Role]
    figures: ClassVar[Sequence[Figure[Any]]]
    programs: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def run(self, bench: Bench) -> Iterator[Record]:
        """Measures, and yields what it finds as it finds it."""

    def blobs(self, bench: Bench) -> Sequence[Blob]:
        """What is asked for."""
        return bench.content.blobs(self.size, self.count)

    def contestants(self, bench: Bench) -> Sequence[Peer]:
        """Those that were chosen, take part and can do it."""
        return bench.peers_for(self.role, self.peers)

    def failure(self, peer: Peer, error: Exception) -> FailureRecord:
        return FailureRecord(self.name, peer.label(self.role), str(error))

    def server_record(self, bench: Bench, server: Server) -> ServerRecord:
        """How a server was started."""
        return ServerRecord(
            workload=self.name,
            server=server.label,
            command=[bench.shortened(argument) for argument in server.process.arguments],
            configuration=bench.shortened(server.configuration()),
        )

    def notes(self, server: Server) -> Iterator[Record]:
        """What a server says of itself when it was measured."""
        try:
            notes = server.notes()
            yield NotesRecord(self.name, server.label, notes, server.warnings(notes), server.process.log())
        except FAILURES as error:
            yield FailureRecord(self.name, server.label, f"asking it how it fared: {error}")


@dataclass(frozen=True, kw_only=True)
class HeldTurns(Turns):
    """The servers hold what is asked for, and stay up from the first round to the last."""

    role: ClassVar[Role] = Role.HIT

    def prepare(self, server: Server) -> None:
        """Has a server hold everything, and checks that it answers as it must."""
        server.warm()

    @abstractmethod
    def round(self, bench: Bench, server: Server, number: int) -> Round:
        """One turn of a server."""

    def run(self, bench: Bench) -> Iterator[Record]:
        blobs = self.blobs(bench)
        with ExitStack() as stack:
            origin = stack.enter_context(bench.origin())
            application = stack.enter_context(bench.application()) if self.role is Role.ACCEL else None
            servers = []
            for peer in self.contestants(bench):
                try:
                    server = stack.enter_context(bench.server(peer, self.role, origin, blobs, application))
                    self.prepare(server)
                except FAILURES as error:
                    yield self.failure(peer, error)
                    continue
                servers.append(server)
                yield self.server_record(bench, server)
            for number in range(1, bench.rounds + 1):
                for server in servers:
                    try:
                        yield self.round(bench, server, number)
                    except FAILURES as error:
                        yield self.failure(server.peer, error)
            for server in servers:
                yield from self.notes(server)


@dataclass(frozen=True, kw_only=True)
class FreshTurns(Turns):
    """Every turn is of a server that was just started."""

    # What the origin sends to one request; None is as fast as it can.
    origin_bytes_per_second: int | None = None

    @abstractmethod
    def round(self, bench: Bench, server: Server, number: int) -> Round:
        """One turn of a server."""

    def reference(self, bench: Bench, origin: Origin, number: int) -> Iterator[Record]:
        """What is measured before each round to compare all servers with."""
        yield from ()

    def check(self, server: Server) -> None:
        """Checks after the first round that a server answers as it must."""
        for blob in server.site.blobs:
            blob.check(server.site.port)

    def run(self, bench: Bench) -> Iterator[Record]:
        blobs = self.blobs(bench)
        with bench.origin(self.origin_bytes_per_second) as origin:
            for blob in blobs:
                blob.check(origin.port)
            for number in range(1, bench.rounds + 1):
                yield from self.reference(bench, origin, number)
                for peer in self.contestants(bench):
                    try:
                        yield from self._turn(bench, peer, origin, blobs, number)
                    except FAILURES as error:
                        yield self.failure(peer, error)
                    # What one server leaves to be written must not slow the next one.
                    os.sync()

    def _turn(self, bench: Bench, peer: Peer, origin: Origin, blobs: Sequence[Blob], number: int) -> Iterator[Record]:
        with bench.server(peer, self.role, origin, blobs) as server:
            if number == 1:
                yield self.server_record(bench, server)
            wait_until_idle(server.process)
            yield self.round(bench, server, number)
            if number == 1:
                self.check(server)
            yield from self.notes(server)
