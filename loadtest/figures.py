"""What the rounds of one server come to: the columns of the report.

CPU time is the smallest of the rounds, because a busy neighbour only adds to it; times and rates are medians; memory
and what the origin was asked for are the largest, because they are bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Generic, TypeVar

from content import KIB, MIB
from records import CollectRound, ColdStreamRound, CopyRound, FanOutRound, HitRound, IdleRound, Round

R = TypeVar("R", bound=Round)


@dataclass(frozen=True)
class Figure(Generic[R]):
    """A column."""

    title: str
    # From all rounds of a server.
    of: Callable[[Sequence[R]], float]
    digits: int
    # Whether a column with the ratio to the best peer follows; the smaller figure is the better one.
    compared: bool = False


Columns = tuple[Figure[Any], ...]


def smallest(value: Callable[[R], float]) -> Callable[[Sequence[R]], float]:
    return lambda rounds: min(map(value, rounds))


def largest(value: Callable[[R], float]) -> Callable[[Sequence[R]], float]:
    return lambda rounds: max(map(value, rounds))


def middle(value: Callable[[R], float]) -> Callable[[Sequence[R]], float]:
    return lambda rounds: median(map(value, rounds))


def _us_per_request(found: HitRound) -> float:
    return found.costs.cpu_ns / 1e3 / max(1, found.requests)


def _s_per_gigabyte(found: HitRound) -> float:
    return found.costs.cpu_ns / max(1, found.bytes)


CPU_PER_REQUEST: Figure[HitRound] = Figure("CPU µs/request", smallest(_us_per_request), 1, compared=True)
# Counts what arrived of answers that the end of the round cut short.
CPU_PER_GIGABYTE: Figure[HitRound] = Figure("CPU s/GB", smallest(_s_per_gigabyte), 3, compared=True)
P99: Figure[HitRound] = Figure("p99 ms", middle(lambda found: found.p99_us / 1e3), 2, compared=True)
COLD_RATE: Figure[ColdStreamRound] = Figure("cold GB/s", middle(lambda found: found.cold_bytes / found.cold_s / 1e9), 2)
WALL: Figure[FanOutRound | CopyRound] = Figure("wall s", middle(lambda found: found.wall_s), 2, compared=True)
CPU: Figure[FanOutRound | CopyRound] = Figure(
    "CPU s", smallest(lambda found: found.costs.cpu_ns / 1e9), 2, compared=True
)
PER_CONNECTION: Figure[IdleRound] = Figure(
    "KiB/connection",
    largest(lambda found: (found.resident_after_bytes - found.resident_before_bytes) / KIB / found.connections),
    1,
    compared=True,
)
COLLECT_WALL: Figure[CollectRound] = Figure("wall s", middle(lambda found: found.wall_s), 2, compared=True)
COLLECT_CPU: Figure[CollectRound] = Figure("CPU s", smallest(lambda found: found.costs.cpu_ns / 1e9), 2, compared=True)
# By what a tree with more digests takes more.
PER_DIGEST: Figure[CollectRound] = Figure(
    "bytes/digest",
    largest(
        lambda found: (found.costs.peak_memory_bytes - found.small_peak_memory_bytes)
        / max(1, found.digests - found.small_digests)
    ),
    0,
    compared=True,
)
PEAK_MEMORY: Figure[Round] = Figure("peak MiB", largest(lambda found: found.costs.peak_memory_bytes / MIB), 0)

_CPU_WORST: Figure[FanOutRound | CopyRound] = Figure("worst", largest(lambda found: found.costs.cpu_ns / 1e9), 2)
_REQUESTS: Figure[HitRound] = Figure("requests/s", middle(lambda found: found.requests / found.duration_us * 1e6), 0)
_RATE: Figure[HitRound] = Figure("GB/s", middle(lambda found: found.bytes / found.duration_us / 1e3), 2)
_P50: Figure[HitRound] = Figure("p50 ms", middle(lambda found: found.p50_us / 1e3), 2)
_P99: Figure[HitRound] = replace(P99, compared=False)
_P999: Figure[HitRound] = Figure("p99.9 ms", middle(lambda found: found.p999_us / 1e3), 2)

# The tables.
PER_REQUEST: Columns = (
    CPU_PER_REQUEST,
    Figure("worst", largest(_us_per_request), 1),
    *(_REQUESTS, _RATE, _P50, _P99, PEAK_MEMORY),
)
PER_GIGABYTE: Columns = (
    CPU_PER_GIGABYTE,
    Figure("worst", largest(_s_per_gigabyte), 3),
    *(_REQUESTS, _RATE, _P50, _P99, PEAK_MEMORY),
)
LATENCY: Columns = (_REQUESTS, _P50, P99, _P999, CPU_PER_REQUEST, PEAK_MEMORY)
COLD_STREAM: Columns = (
    *(_P50, P99, _P999, _REQUESTS, COLD_RATE),
    Figure("core %", middle(lambda found: found.costs.cpu_ns / found.costs.elapsed_ns * 100), 0),
    PEAK_MEMORY,
)
COLD: Columns = (
    WALL,
    Figure("last first byte s", middle(lambda found: found.last_first_byte_s), 2),
    Figure("origin GETs", largest(lambda found: found.costs.origin_gets), 0),
    Figure("origin MiB", largest(lambda found: found.costs.origin_bytes / MIB), 0),
    *(CPU, _CPU_WORST, PEAK_MEMORY),
)
WARM: Columns = (WALL, CPU, _CPU_WORST, PEAK_MEMORY)
COLLECT: Columns = (
    *(COLLECT_WALL, COLLECT_CPU, PER_DIGEST),
    Figure("digests", largest(lambda found: found.digests), 0),
    PEAK_MEMORY,
)
MAINTAINED: Columns = (_P50, _P99, _P999, _REQUESTS, CPU_PER_REQUEST, PEAK_MEMORY)
COPY: Columns = (
    WALL,
    Figure("worst", largest(lambda found: found.wall_s), 2),
    *(CPU, _CPU_WORST, PEAK_MEMORY),
)
IDLE: Columns = (
    PER_CONNECTION,
    Figure("before MiB", middle(lambda found: found.resident_before_bytes / MIB), 0),
    Figure("after MiB", middle(lambda found: found.resident_after_bytes / MIB), 0),
    Figure("seconds to open", middle(lambda found: found.open_s), 2),
    PEAK_MEMORY,
)
