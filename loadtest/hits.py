"""Workloads of requests for what the servers hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from asks import Ask, Asks, write_requests
from bench import Bench
from clients import LoadResult, companion, run_heads, run_oha, run_wrk
from coldstream import evict
from content import KIB, MIB, Blob
from figures import COLD_STREAM, LATENCY, PER_GIGABYTE, PER_REQUEST, Figure
from measure import Meter
from peer import Role, Server
from processes import ProcessError, find_program, first_line
from records import ColdStreamRound, Costs, HitRound
from workload import HeldTurns

# With larger blobs, or more under way at once, what counts is CPU time per byte: whole answers are few in a round, and
# many are cut short at its end.
PER_REQUEST_BLOB_BYTES_MAX = MIB
PER_REQUEST_UNDER_WAY_BYTES_MAX = 128 * MIB
HOT_BYTES = 4 * KIB
# Of a file that was evicted.
RESIDENT_BYTES_MAX = 16 * MIB


@dataclass(frozen=True, kw_only=True)
class HitWorkload(HeldTurns):
    """Requests that wrk sends again and again."""

    connections: int
    # What is sent, if it is not the same GET every time.
    asks: Asks | None = None
    # Large bodies need longer rounds for as many answers.
    times_seconds: int = 1

    programs: ClassVar[Mapping[str, str]] = {"wrk": "wrk"}

    @property
    def figures(self) -> Sequence[Figure[Any]]:  # type: ignore[override]
        under_way = self.size * self.connections
        large = self.size > PER_REQUEST_BLOB_BYTES_MAX or under_way > PER_REQUEST_UNDER_WAY_BYTES_MAX
        return PER_GIGABYTE if large and self.asks is None else PER_REQUEST

    def prepare(self, server: Server) -> None:
        super().prepare(server)
        if self.asks:
            asks = self.asks(server)
            asks[0].check(server.site.port)
            write_requests(asks, server.site.directory / "requests")

    def round(self, bench: Bench, server: Server, number: int) -> HitRound:
        meter = Meter(server.process, server.site.origin)
        found = run_wrk(
            server.url(server.site.blobs[0]),
            self.connections,
            bench.seconds * self.times_seconds,
            bench.cores.client,
            server.site.directory / "requests" if self.asks else None,
        )
        return HitRound(**_hit_fields(self, server, number, meter.read(), found))


@dataclass(frozen=True, kw_only=True)
class AccelWorkload(HitWorkload):
    """The same through the front of an application that says for each request which file it is."""

    role: ClassVar[Role] = Role.ACCEL


@dataclass(frozen=True, kw_only=True)
class HeadWorkload(HeldTurns):
    """HEAD of one blob again and again."""

    connections: int

    figures: ClassVar[Sequence[Figure[Any]]] = PER_REQUEST

    def prepare(self, server: Server) -> None:
        super().prepare(server)
        Ask("HEAD", server.site.blobs[0]).check(server.site.port)

    def round(self, bench: Bench, server: Server, number: int) -> HitRound:
        site = server.site
        meter = Meter(server.process, site.origin)
        found = run_heads(site.port, site.blobs[0].target, self.connections, bench.seconds, bench.cores.client)
        return HitRound(**_hit_fields(self, server, number, meter.read(), found))


@dataclass(frozen=True, kw_only=True)
class RateWorkload(HeldTurns):
    """One blob asked for at a fixed rate by oha; where that is not installed, by wrk as fast as it can."""

    connections: int
    # Requests a second.
    rate: int

    figures: ClassVar[Sequence[Figure[Any]]] = LATENCY
    programs: ClassVar[Mapping[str, str]] = {"wrk": "wrk"}

    def round(self, bench: Bench, server: Server, number: int) -> HitRound:
        meter = Meter(server.process, server.site.origin)
        url = server.url(server.site.blobs[0])
        found = load_at_rate(url, self.connections, bench.seconds * 2, self.rate, bench.cores.client)
        return HitRound(**_hit_fields(self, server, number, meter.read(), found))


@dataclass(frozen=True, kw_only=True)
class ColdStreamWorkload(HeldTurns):
    """A small blob asked for again and again while another client takes a large one that is not in the page cache."""

    connections: int
    # Requests a second for the small blob; None is as fast as wrk can.
    rate: int | None = None

    figures: ClassVar[Sequence[Figure[Any]]] = COLD_STREAM
    programs: ClassVar[Mapping[str, str]] = {"wrk": "wrk", "fincore": "util-linux"}

    def blobs(self, bench: Bench) -> Sequence[Blob]:
        return [bench.content.blob(HOT_BYTES), bench.content.blob(self.size)]

    def round(self, bench: Bench, server: Server, number: int) -> ColdStreamRound:
        hot, cold = server.site.blobs
        path = server.stored_at(cold)
        evict(path)
        resident = int(first_line("fincore", "--bytes", "--noheadings", "--output", "RES", str(path)) or "0")
        if resident > RESIDENT_BYTES_MAX:
            raise ProcessError(f"{resident} bytes of the large file stay in memory")
        seconds, core = bench.seconds * 2, bench.cores.client
        meter = Meter(server.process, server.site.origin)
        with companion(core, "coldstream.py", str(server.site.port), cold.target, str(path)) as stream:
            if self.rate is None:
                found = run_wrk(server.url(hot), self.connections, seconds, core)
            else:
                found = load_at_rate(server.url(hot), self.connections, seconds, self.rate, core)
        fields = _hit_fields(self, server, number, meter.read(), found)
        fields["errors"] += stream.errors
        return ColdStreamRound(**fields, cold_bytes=stream.result["bytes"], cold_s=stream.result["seconds"])


def load_at_rate(url: str, connections: int, seconds: int, rate: int, core: int) -> LoadResult:
    """oha at a rate, or wrk as fast as it can."""
    if find_program("oha") is None:
        return run_wrk(url, connections, seconds, core)
    return run_oha(url, connections, seconds, rate, core)


def _hit_fields(workload: HeldTurns, server: Server, number: int, costs: Costs, found: LoadResult) -> dict[str, Any]:
    """What every round of hits keeps."""
    fields = asdict(found)
    errors = fields["errors"]
    if found.bytes == 0:
        errors.append("not one answer")
    if costs.origin_gets or costs.origin_heads:
        errors.append("the origin was asked for what the server holds")
    return {"workload": workload.name, "server": server.label, "round": number, "costs": costs} | fields
