"""Workloads of clients that ask at once, or stay for long: few answers, and what the server is like while they last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from bench import Bench
from clients import FanOutResult, companion, run_fan_out
from figures import COLD, IDLE, WARM, Figure
from measure import Meter, resident_memory, touch_free_memory, wait_until_idle
from origin import Origin
from peer import Role, Server
from processes import Process
from records import FanOutRound, IdleRound, Record
from workload import FreshTurns, HeldTurns

# An origin that is asked without a cache in front.
DIRECT = "origin (without a cache, a client for each blob)"


@dataclass(frozen=True, kw_only=True)
class ColdFanOut(FreshTurns):
    """What no server holds, asked for by many clients at once."""

    # Of each blob.
    clients: int
    # One more client asks before all others, for the first blob, and takes so many bytes of it a second.
    slow_bytes_per_second: int | None = None

    role: ClassVar[Role] = Role.COLD
    figures: ClassVar[Sequence[Figure[Any]]] = COLD

    def reference(self, bench: Bench, origin: Origin, number: int) -> Iterator[Record]:
        """The origin without a cache in front, for one client a blob: what no cache can be faster than."""
        targets = [blob.target for blob in self.blobs(bench)]
        touch_free_memory()
        fan_out = FanOut.begin(origin.process, origin)
        found = run_fan_out(origin.port, targets, bench.cores.client)
        yield fan_out.end(self.name, DIRECT, number, found)

    def round(self, bench: Bench, server: Server, number: int) -> FanOutRound:
        site, core = server.site, bench.cores.client
        targets = [blob.target for blob in site.blobs for _ in range(self.clients)]
        touch_free_memory()
        fan_out = FanOut.begin(server.process, site.origin)
        with ExitStack() as stack:
            slow = None
            if self.slow_bytes_per_second is not None:
                pace = str(self.slow_bytes_per_second)
                slow = stack.enter_context(companion(core, "slow.py", str(site.port), targets[0], pace))
            found = run_fan_out(site.port, targets, core)
        if slow:
            found.errors.extend(slow.errors)
        return fan_out.end(self.name, server.label, number, found)


@dataclass(frozen=True, kw_only=True)
class WarmFanOut(HeldTurns):
    """One blob that the server holds, asked for by many clients at once."""

    clients: int

    figures: ClassVar[Sequence[Figure[Any]]] = WARM

    def round(self, bench: Bench, server: Server, number: int) -> FanOutRound:
        targets = [server.site.blobs[0].target] * self.clients
        fan_out = FanOut.begin(server.process, server.site.origin)
        found = run_fan_out(server.site.port, targets, bench.cores.client)
        record = fan_out.end(self.name, server.label, number, found)
        if record.costs.origin_gets:
            record.errors.append("the origin was asked for what the server holds")
        return record


@dataclass(frozen=True, kw_only=True)
class IdleConnections(FreshTurns):
    """Connections that made one request each, and what they take of the server's memory."""

    connections: int

    role: ClassVar[Role] = Role.HIT
    figures: ClassVar[Sequence[Figure[Any]]] = IDLE

    def round(self, bench: Bench, server: Server, number: int) -> IdleRound:
        site = server.site
        server.warm()
        meter = Meter(server.process, site.origin)
        before = resident_memory(server.process)
        with companion(
            bench.cores.client, "idle.py", str(site.port), site.blobs[0].target, str(self.connections)
        ) as idle:
            wait_until_idle(server.process)
            after = resident_memory(server.process)
            costs = meter.read()
        return IdleRound(
            workload=self.name,
            server=server.label,
            round=number,
            costs=costs,
            errors=idle.errors,
            connections=self.connections,
            resident_before_bytes=before,
            resident_after_bytes=after,
            open_s=idle.began["open_s"],
        )


@dataclass(frozen=True)
class FanOut:
    """A fan-out that is under way."""

    process: Process
    meter: Meter

    @classmethod
    def begin(cls, process: Process, origin: Origin) -> FanOut:
        return cls(process, Meter(process, origin))

    def end(self, workload: str, server: str, number: int, found: FanOutResult) -> FanOutRound:
        """Its record, when what the server does behind its clients' backs is done too."""
        busy_after = wait_until_idle(self.process)
        return FanOutRound(
            workload=workload,
            server=server,
            round=number,
            costs=self.meter.read(),
            errors=found.errors,
            wall_s=found.wall_s,
            last_first_byte_s=found.last_first_byte_s,
            busy_after_s=busy_after,
        )
