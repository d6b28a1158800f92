"""What Spliceway has to reach: ratios to its peers within one run, and bounds on memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fanouts import DIRECT
from figures import (
    COLD_RATE,
    COLLECT_CPU,
    COLLECT_WALL,
    CPU,
    CPU_PER_GIGABYTE,
    CPU_PER_REQUEST,
    P99,
    PEAK_MEMORY,
    PER_CONNECTION,
    WALL,
    Figure,
)
from peer import kind_of
from pushes import REFERENCE
from records import Record, Round

# What the targets are for.
SUBJECT = "spliceway"
# The same while it looks after its trees, compared with itself at rest.
MAINTAINED = "spliceway-maintained"
GIGABYTES_OF_512_MIB = 0.537
# What verifying costs: sha256 at 1 GB/s.
HASHING_S = 1.0 * GIGABYTES_OF_512_MIB

# As a careful operator sets it up; `nginx-push` is in the tables beside it.
NGINX = ("nginx",)


@dataclass(frozen=True)
class Bound:
    """What a figure is compared with: a factor on the best of some servers' figures, and something on top."""

    factor: float
    peers: tuple[str, ...] = ()
    plus: float = 0.0
    # Whether the figure must be at least so much, not at most.
    least: bool = False

    def of(self, theirs: Sequence[float]) -> float:
        """The bound, from the figures of `peers`."""
        best = (max if self.least else min)(theirs) if theirs else 0.0
        return self.factor * best + self.plus

    def words(self) -> str:
        sign = "≥" if self.least else "≤"
        if not self.peers:
            return f"{sign} {self.plus:g}"
        who = self.peers[0] if len(self.peers) == 1 else f"the best of {', '.join(self.peers)}"
        return f"{sign} {self.factor:.2f} × {who}" + (f" + {self.plus:.2f}" if self.plus else "")


@dataclass(frozen=True)
class Target:
    """One row."""

    # The workload, or none for all of them together.
    workload: str | None
    figure: Figure[Any]
    bound: Bound
    # Whose figure.
    subject: str = SUBJECT


@dataclass(frozen=True)
class Finding:
    """What a run says to a target."""

    target: Target
    bound: float
    found: float

    @property
    def reached(self) -> bool:
        return self.found >= self.bound if self.target.bound.least else self.found <= self.bound


def below(workload: str, figure: Figure[Any], factor: float, *peers: str, plus: float = 0.0) -> Target:
    """At most a factor of what the best of `peers` has."""
    return Target(workload, figure, Bound(factor, peers, plus))


TARGETS = (
    below("hit_4kib_c32", CPU_PER_REQUEST, 0.95, *NGINX),
    below("hit_4kib_c32", CPU_PER_REQUEST, 1.05, "lighttpd"),
    below("hit_64kib_c32", CPU_PER_REQUEST, 0.75, *NGINX),
    below("hit_64kib_c32", CPU_PER_REQUEST, 1.00, "lighttpd"),
    below("hit_1mib_c32", CPU_PER_REQUEST, 0.90, *NGINX),
    below("hit_1mib_c32", CPU_PER_REQUEST, 0.95, "lighttpd"),
    below("hit_256mib_c4", CPU_PER_GIGABYTE, 1.00, *NGINX, "lighttpd"),
    below("accel_4kib", CPU_PER_REQUEST, 0.90, *NGINX),
    below("accel_4kib", CPU_PER_REQUEST, 1.00, "lighttpd"),
    below("accel_1mib", CPU_PER_REQUEST, 0.90, *NGINX),
    below("accel_1mib", CPU_PER_REQUEST, 1.00, "lighttpd"),
    below("accel_256mib", CPU_PER_GIGABYTE, 0.90, *NGINX),
    below("accel_256mib", CPU_PER_GIGABYTE, 1.00, "lighttpd"),
    below("cold_stream_c32", P99, 1.00, "nginx-threads"),
    Target("cold_stream_c32", COLD_RATE, Bound(1.00, NGINX, least=True)),
    below("cold_stream_rate_2000", P99, 1.00, "nginx-threads"),
    Target("cold_stream_rate_2000", COLD_RATE, Bound(1.00, NGINX, least=True)),
    below("cold_512mib_c16", WALL, 1.00, "varnish"),
    below("cold_512mib_c16", CPU, 1.00, *NGINX, plus=HASHING_S),
    below("cold_512mib_c16_200mbs", WALL, 1.05, kind_of(DIRECT)),
    below("push_512mib", CPU, 1.30, kind_of(REFERENCE)),
    below("warm_512mib_c16", CPU, 1.00, *NGINX),
    below("replicate_small", WALL, 0.50, "skopeo"),
    below("replicate_large", WALL, 1.00, "skopeo"),
    Target("replicate_small", PEAK_MEMORY, Bound(0.0, plus=100.0)),
    Target("replicate_large", PEAK_MEMORY, Bound(0.0, plus=100.0)),
    Target("idle_5000", PER_CONNECTION, Bound(0.0, plus=12.0)),
    Target("gc_10000x10", COLLECT_WALL, Bound(0.0, plus=60.0)),
    below("gc_10000x10", COLLECT_WALL, 1.00, "docker-registry"),
    below("gc_10000x10", COLLECT_CPU, 1.00, "docker-registry"),
    below("gc_10000x10", PEAK_MEMORY, 1.00, "docker-registry"),
    Target("maintenance_p99_4kib", P99, Bound(1.20, (SUBJECT,)), subject=MAINTAINED),
    Target("maintenance_p99_1mib", P99, Bound(1.20, (SUBJECT,)), subject=MAINTAINED),
    Target(None, PEAK_MEMORY, Bound(0.0, plus=100.0)),
)
WORKLOADS = tuple(dict.fromkeys(target.workload for target in TARGETS if target.workload))


def findings(records: Sequence[Record]) -> list[Finding]:
    """What a run says to those targets that it measured."""
    rounds = [record for record in records if isinstance(record, Round)]
    return [found for target in TARGETS if (found := _finding(target, rounds))]


def figure_of(rounds: Sequence[Round], workload: str | None, peer: str, figure: Figure[Any]) -> float | None:
    """A server's figure in a workload, or in all of them; None if it was not measured."""
    its_rounds = [found for found in rounds if kind_of(found.server) == peer and workload in (None, found.workload)]
    return figure.of(its_rounds) if its_rounds else None


def _finding(target: Target, rounds: Sequence[Round]) -> Finding | None:
    found = figure_of(rounds, target.workload, target.subject, target.figure)
    theirs = [figure_of(rounds, target.workload, peer, target.figure) for peer in target.bound.peers]
    if found is None or None in theirs:
        return None
    return Finding(target, target.bound.of([value for value in theirs if value is not None]), found)
