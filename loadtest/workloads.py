"""What is measured. A workload starts the servers that it compares and lets them take turns: A B A B …

To add one: a line in `all_workloads`, or a class with what `Workload` asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from bench import Bench
from checks import SendfileCheck
from content import KIB, MIB, Blob, ContentError
from figures import COLD, PER_GIGABYTE, PER_REQUEST, Figure
from measure import Meter, run_fan_out, run_wrk, wait_until_idle
from origin import Origin
from peers import Peer, Role, Server
from processes import Process, ProcessError
from records import ColdRound, FailureRecord, HitRound, NotesRecord, Record, ServerRecord

# What can go wrong with a server and leaves the others to be measured.
FAILURES = (ProcessError, ContentError, OSError)
# An origin that is asked without a cache in front.
DIRECT = "(the origin itself, 1 client)"


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


@dataclass(frozen=True)
class HitWorkload:
    """One blob that the server holds, asked for again and again by wrk."""

    name: str
    title: str
    size: int
    connections: int
    figures: tuple[Figure[HitRound], ...]
    # Large bodies need longer rounds for as many answers.
    times_seconds: int = 1

    programs: ClassVar[Mapping[str, str]] = {"wrk": "wrk"}

    def run(self, bench: Bench) -> Iterator[Record]:
        blob = bench.content.blob(self.size)
        with ExitStack() as stack:
            origin = stack.enter_context(bench.origin())
            servers = []
            for peer in bench.peers_for(Role.HIT):
                try:
                    server = stack.enter_context(bench.server(peer, Role.HIT, origin, blob))
                    server.warm()
                except FAILURES as error:
                    yield FailureRecord(self.name, peer.label(Role.HIT), str(error))
                    continue
                servers.append(server)
                yield _server_record(self.name, bench, server)
            for number in range(1, bench.rounds + 1):
                for server in servers:
                    try:
                        yield self._round(bench, server, number)
                    except FAILURES as error:
                        yield FailureRecord(self.name, server.label, str(error))
            for server in servers:
                yield from _notes(self.name, server)

    def _round(self, bench: Bench, server: Server, number: int) -> HitRound:
        meter = Meter(server.process, server.site.origin, server.site.blob)
        found = run_wrk(server.url, self.connections, bench.seconds * self.times_seconds, bench.cores.client)
        costs = meter.read()
        errors = [f"{count} {kind} errors" for kind, count in found.errors.items() if count]
        if found.requests == 0:
            errors.append("not one whole answer")
        if costs.origin_gets or costs.origin_heads:
            errors.append("the origin was asked for what the server holds")
        return HitRound(
            workload=self.name,
            server=server.label,
            round=number,
            costs=costs,
            errors=errors,
            **{key: value for key, value in asdict(found).items() if key != "errors"},
        )


@dataclass(frozen=True)
class ColdWorkload:
    """One blob that no server holds, asked for by many clients at once. Every round starts with nothing stored."""

    name: str
    title: str
    size: int
    clients: int
    # What the origin sends to one request; None is as fast as it can.
    origin_bytes_per_second: int | None = None

    figures: ClassVar[tuple[Figure[ColdRound], ...]] = COLD
    programs: ClassVar[Mapping[str, str]] = {}

    def run(self, bench: Bench) -> Iterator[Record]:
        blob = bench.content.blob(self.size)
        with bench.origin(self.origin_bytes_per_second) as origin:
            blob.check(origin.port)
            for number in range(1, bench.rounds + 1):
                yield self._round(bench, Contestant.direct(origin, blob), number)
                for peer in bench.peers_for(Role.COLD):
                    try:
                        yield from self._turn(bench, peer, origin, blob, number)
                    except FAILURES as error:
                        yield FailureRecord(self.name, peer.label(Role.COLD), str(error))
                    # What one server leaves to be written must not slow the next one.
                    os.sync()

    def _turn(self, bench: Bench, peer: Peer, origin: Origin, blob: Blob, number: int) -> Iterator[Record]:
        with bench.server(peer, Role.COLD, origin, blob) as server:
            if number == 1:
                yield _server_record(self.name, bench, server)
            wait_until_idle(server.process)
            yield self._round(bench, Contestant.cache(server, self.clients), number)
            if number == 1:
                blob.check(server.site.port)
            yield from _notes(self.name, server)

    def _round(self, bench: Bench, contestant: Contestant, number: int) -> ColdRound:
        process, blob = contestant.process, contestant.blob
        meter = Meter(process, contestant.origin, blob)
        found = run_fan_out(contestant.port, blob.target, contestant.clients, bench.cores.client)
        busy_after = wait_until_idle(process)
        return ColdRound(
            workload=self.name,
            server=contestant.label,
            round=number,
            costs=meter.read(),
            errors=found.errors,
            wall_s=found.wall_s,
            last_first_byte_s=found.last_first_byte_s,
            busy_after_s=busy_after,
        )


@dataclass(frozen=True)
class Contestant:
    """Whom the clients of a cold round ask."""

    label: str
    process: Process
    port: int
    origin: Origin
    blob: Blob
    clients: int

    @classmethod
    def cache(cls, server: Server, clients: int) -> Contestant:
        """A cache in front of the origin."""
        site = server.site
        return cls(server.label, server.process, site.port, site.origin, site.blob, clients)

    @classmethod
    def direct(cls, origin: Origin, blob: Blob) -> Contestant:
        """The origin without a cache in front, for one client: what no cache can be faster than."""
        return cls(DIRECT, origin.process, origin.port, origin, blob, 1)


def all_workloads() -> list[Workload]:
    """Every workload, in the order of the report."""
    return [
        HitWorkload("hit_4kib_c32", "4 KiB held, 32 connections", 4 * KIB, 32, PER_REQUEST),
        HitWorkload("hit_64kib_c32", "64 KiB held, 32 connections", 64 * KIB, 32, PER_REQUEST),
        HitWorkload("hit_1mib_c32", "1 MiB held, 32 connections", MIB, 32, PER_REQUEST),
        HitWorkload("hit_256mib_c4", "256 MiB held, 4 connections", 256 * MIB, 4, PER_GIGABYTE, times_seconds=2),
        ColdWorkload("cold_512mib_c16", "512 MiB not held, 16 clients at once", 512 * MIB, 16),
        ColdWorkload(
            "cold_512mib_c16_200mbs",
            "512 MiB not held, 16 clients at once, an origin of 200 MB/s",
            512 * MIB,
            16,
            origin_bytes_per_second=200_000_000,
        ),
        SendfileCheck("hit_is_sendfile", "1 MiB held: what leaves by sendfile", MIB),
    ]


def _server_record(workload: str, bench: Bench, server: Server) -> ServerRecord:
    return ServerRecord(
        workload=workload,
        server=server.label,
        command=[bench.shortened(argument) for argument in server.process.arguments],
        configuration=bench.shortened(server.configuration()),
    )


def _notes(workload: str, server: Server) -> Iterator[Record]:
    try:
        notes = server.notes()
        yield NotesRecord(workload, server.label, notes, server.warnings(notes), server.process.log())
    except FAILURES as error:
        yield FailureRecord(workload, server.label, f"asking it how it fared: {error}")
