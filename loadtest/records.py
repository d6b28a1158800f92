"""What a run keeps: one line of JSON for each of these, in the order in which they were measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Record:
    """A line of the raw data; `kind` says which."""

    kind: ClassVar[str]

    def to_json(self) -> str:
        return json.dumps({"record": self.kind} | asdict(self))


@dataclass(frozen=True)
class MachineRecord(Record):
    """Where, when and with what a run was made; the first line."""

    kind = "machine"

    date: str
    cpu: str
    cores: int
    server_core: int
    client_core: int
    memory_bytes: int
    kernel: str
    system: str
    filesystem: str
    congestion_control: str
    python: str
    command: list[str]
    commit: str
    binary_sha256: str
    versions: dict[str, str]


@dataclass(frozen=True)
class ServerRecord(Record):
    """How a server was started for a workload."""

    kind = "server"

    workload: str
    server: str
    command: list[str]
    configuration: str


@dataclass(frozen=True)
class Costs:
    """What a server and its origin spent in a round."""

    elapsed_ns: int
    # Of all the server's processes, in ns.
    cpu_ns: int
    # The same without threads that ended within the round: smaller by their share, equal if there were none.
    cpu_live_threads_ns: int
    # How long others had the server's core: a large share of the round is a reason to measure again.
    core_taken_ns: int
    # Since the server was started.
    peak_memory_bytes: int
    origin_gets: int
    origin_heads: int
    origin_bytes: int
    # Of the machine, when the round began.
    load_average: float


@dataclass(frozen=True)
class Round(Record):
    """What rounds of every workload have."""

    workload: str
    server: str
    round: int
    costs: Costs
    # Everything that was not as it must be, in words.
    errors: list[str]


@dataclass(frozen=True)
class HitRound(Round):
    """Requests for what a server holds, one after the other on each of a number of connections."""

    kind = "hit"

    # "wrk" and "heads.py" ask as fast as they can, "oha" keeps to a rate.
    client: str
    duration_us: int
    requests: int
    # Everything received, answers that the end of the round cut short included.
    bytes: int
    p50_us: int
    p99_us: int
    p999_us: int


@dataclass(frozen=True)
class ColdStreamRound(HitRound):
    """The same beside one client that takes a large file whose pages are not in memory, again and again."""

    kind = "cold stream"

    cold_bytes: int
    cold_s: float


@dataclass(frozen=True)
class FanOutRound(Round):
    """Clients that asked at once."""

    kind = "fan-out"

    wall_s: float
    last_first_byte_s: float
    # What the server went on doing when the last client had everything.
    busy_after_s: float


@dataclass(frozen=True)
class CollectRound(Round):
    """A program that collected garbage in a tree, and before that in a small one."""

    kind = "collect"

    wall_s: float
    # Blobs that were there, garbage included.
    digests: int
    small_digests: int
    small_peak_memory_bytes: int


@dataclass(frozen=True)
class IdleRound(Round):
    """Connections that made one request each and stay open."""

    kind = "idle"

    connections: int
    # Of all the server's processes, before the first connection and when all had their answers.
    resident_before_bytes: int
    resident_after_bytes: int
    # Until all had their answers.
    open_s: float


@dataclass(frozen=True)
class CopyRound(Round):
    """A program that copied one registry to another."""

    kind = "copy"

    wall_s: float


@dataclass(frozen=True)
class NotesRecord(Record):
    """What a server said of itself after a workload."""

    kind = "notes"

    workload: str
    server: str
    notes: dict[str, float]
    # What among the notes must not be.
    warnings: list[str]
    # The end of what it wrote.
    log: str


@dataclass(frozen=True)
class CheckRecord(Record):
    """A question with an answer of yes or no, and the figures behind it."""

    kind = "check"

    check: str
    server: str
    passed: bool
    summary: str
    details: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class FailureRecord(Record):
    """A server that could not be measured, and why."""

    kind = "failure"

    workload: str
    server: str
    reason: str
