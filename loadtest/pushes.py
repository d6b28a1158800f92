"""Workloads of clients that push what the server does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bench import Bench
from clients import run_hash_and_write, run_push
from fanouts import FanOut
from figures import WARM, Figure
from measure import touch_free_memory
from origin import Origin
from peer import Role, Server
from records import Costs, FanOutRound, Record
from workload import FreshTurns

# What no registry can do for less: the same bytes hashed and written by one process that has them in memory.
REFERENCE = "hashing and writing it (sha256 of OpenSSL, fdatasync)"


@dataclass(frozen=True, kw_only=True)
class Push(FreshTurns):
    """One blob that a client pushes: POST, one PATCH with a length, PUT."""

    role: ClassVar[Role] = Role.PUSH
    figures: ClassVar[Sequence[Figure[Any]]] = WARM

    def reference(self, bench: Bench, origin: Origin, number: int) -> Iterator[Record]:
        blob = self.blobs(bench)[0]
        touch_free_memory()
        found = run_hash_and_write(blob.path, bench.cores.server)
        costs = Costs(
            elapsed_ns=round(found["wall_s"] * 1e9),
            cpu_ns=found["cpu_ns"],
            cpu_live_threads_ns=found["cpu_ns"],
            core_taken_ns=0,
            peak_memory_bytes=0,
            origin_gets=0,
            origin_heads=0,
            origin_bytes=0,
            load_average=0.0,
        )
        yield FanOutRound(
            workload=self.name,
            server=REFERENCE,
            round=number,
            costs=costs,
            errors=[],
            wall_s=found["wall_s"],
            last_first_byte_s=0.0,
            busy_after_s=0.0,
        )

    def round(self, bench: Bench, server: Server, number: int) -> FanOutRound:
        site = server.site
        touch_free_memory()
        pushing = FanOut.begin(server.process, site.origin)
        found = run_push(site.port, site.blobs[0], bench.cores.client)
        return pushing.end(self.name, server.label, number, found)
