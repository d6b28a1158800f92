"""What the rounds of one server come to: the columns of the report.

CPU time is the smallest of the rounds, because a busy neighbour only adds to it; times and rates are medians; memory
and what the origin was asked for are the largest, because they are bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from content import MIB
from records import ColdRound, HitRound, Round

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


_HIT: tuple[Figure[HitRound], ...] = (
    Figure("requests/s", middle(lambda found: found.requests / found.duration_us * 1e6), 0),
    Figure("GB/s", middle(lambda found: found.bytes / found.duration_us / 1e3), 2),
    Figure("p50 ms", middle(lambda found: found.p50_us / 1e3), 2),
    Figure("p99 ms", middle(lambda found: found.p99_us / 1e3), 2),
    Figure("peak MiB", largest(lambda found: found.costs.peak_memory_bytes / MIB), 0),
)

PER_REQUEST: tuple[Figure[HitRound], ...] = (
    Figure("CPU µs/request", smallest(_us_per_request), 1, compared=True),
    Figure("worst", largest(_us_per_request), 1),
    *_HIT,
)

# Counts what arrived of answers that the end of the round cut short.
PER_GIGABYTE: tuple[Figure[HitRound], ...] = (
    Figure("CPU s/GB", smallest(_s_per_gigabyte), 3, compared=True),
    Figure("worst", largest(_s_per_gigabyte), 3),
    *_HIT,
)

COLD: tuple[Figure[ColdRound], ...] = (
    Figure("wall s", middle(lambda found: found.wall_s), 2, compared=True),
    Figure("last first byte s", middle(lambda found: found.last_first_byte_s), 2),
    Figure("origin GETs", largest(lambda found: found.costs.origin_gets), 0),
    Figure("origin MiB", largest(lambda found: found.costs.origin_bytes / MIB), 0),
    Figure("CPU s", smallest(lambda found: found.costs.cpu_ns / 1e9), 2, compared=True),
    Figure("worst", largest(lambda found: found.costs.cpu_ns / 1e9), 2),
    Figure("peak MiB", largest(lambda found: found.costs.peak_memory_bytes / MIB), 0),
)
