"""Workloads of programs that copy a registry to another one.

All of it runs on both cores, as it would where they are used: what copies is asleep most of the time, and two registries
that had one core between them would be all that is measured.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench import Bench
from content import Content
from copiers import Copier, Route
from figures import COPY, Figure
from measure import kibibytes, touch_free_memory
from peer import Role
from processes import LOG_BYTES_KEPT, Cores, ProcessError, bare_environment, pinned
from records import CopyRound, Costs, FailureRecord, Record, ServerRecord
from shelf import Shelf
from workload import FAILURES

COPY_SECONDS_MAX = 300
# Between two looks at a program's memory.
LOOK_SECONDS = 0.01
# Of what has not arrived, named in the report.
MISSING_MAX = 3


@dataclass(frozen=True, kw_only=True)
class Replication:
    """A registry copied to one that is new in each turn."""

    name: str
    title: str
    # Makes what is copied, in a new directory.
    images: Callable[[Path, Content], Shelf]
    # Whether it is all there already: a first copy that is not measured has brought it.
    again: bool = False

    figures: ClassVar[Sequence[Figure[Any]]] = COPY
    programs: ClassVar[Mapping[str, str]] = {"docker-registry": "docker-registry"}

    def run(self, bench: Bench) -> Iterator[Record]:
        with bench.fresh_directory("shelf") as directory:
            directory.mkdir()
            shelf = self.images(directory, bench.content)
            os.sync()
            with bench.registry(shelf.root) as source:
                for number in range(1, bench.rounds + 1):
                    for copier in bench.copiers():
                        try:
                            yield from self._turn(bench, copier, shelf, source.port, number)
                        except FAILURES as error:
                            yield FailureRecord(self.name, copier.label(Role.COPY), str(error))
                        # What one leaves to be written must not slow the next one.
                        os.sync()

    def _turn(self, bench: Bench, copier: Copier, shelf: Shelf, source_port: int, number: int) -> Iterator[Record]:
        with bench.registry() as target, bench.fresh_directory(copier.name) as directory:
            directory.mkdir()
            route = Route(source_port, target.port, shelf.tags, directory)
            command = copier.copy_command(route)
            if number == 1:
                yield ServerRecord(self.name, copier.label(Role.COPY), list(map(bench.shortened, command)), "")
            touch_free_memory()
            if self.again:
                run_copy(command, bench.cores, directory)
            found = run_copy(command, bench.cores, directory)
            missing = list(shelf.missing_at(target.root, every_byte=number == 1))
            yield CopyRound(
                workload=self.name,
                server=copier.label(Role.COPY),
                round=number,
                costs=found.costs,
                errors=missing[:MISSING_MAX] + [f"{len(missing)} things are missing"] * (len(missing) > MISSING_MAX),
                wall_s=found.wall_s,
            )


@dataclass(frozen=True)
class CopyResult:
    """What a program that has ended spent."""

    wall_s: float
    costs: Costs


def run_copy(command: Sequence[str], cores: Cores, directory: Path) -> CopyResult:
    """Runs a program to its end; raises `ProcessError` if it fails."""
    load_average = os.getloadavg()[0]
    log_path = directory / "output.log"
    began = time.monotonic_ns()
    with log_path.open("wb") as log:
        popen = subprocess.Popen(
            [*pinned(cores), *command],
            cwd=directory,
            env=bare_environment(directory),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    peak_kib = _wait(popen)
    _, status, usage = os.wait4(popen.pid, 0)
    elapsed = time.monotonic_ns() - began
    popen.returncode = os.waitstatus_to_exitcode(status)
    if popen.returncode != 0:
        said = log_path.read_bytes()[-LOG_BYTES_KEPT:].decode(errors="replace").strip()
        raise ProcessError(f"{command[0]} ended with status {popen.returncode}: {said}")
    cpu_ns = round((usage.ru_utime + usage.ru_stime) * 1e9)
    costs = Costs(
        elapsed_ns=elapsed,
        cpu_ns=cpu_ns,
        cpu_live_threads_ns=cpu_ns,
        core_taken_ns=0,
        peak_memory_bytes=peak_kib * 1024,
        origin_gets=0,
        origin_heads=0,
        origin_bytes=0,
        load_average=load_average,
    )
    return CopyResult(elapsed / 1e9, costs)


def _wait(popen: subprocess.Popen[bytes]) -> int:
    """Returns when a program has ended, which is left to be waited for: the most that was resident, in KiB.

    As last seen, a hundredth of a second before the end: what the kernel keeps longer (`ru_maxrss`) counts the memory of
    this process, from which the program was started.
    """
    deadline = time.monotonic() + COPY_SECONDS_MAX
    status = Path(f"/proc/{popen.pid}/status")
    handle = os.pidfd_open(popen.pid)
    try:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        peak = 0
        while not ended.poll(LOOK_SECONDS * 1e3):
            peak = max(peak, kibibytes(status, "VmHWM:"))
            if time.monotonic() > deadline:
                popen.kill()
                popen.wait()
                raise ProcessError(f"not done after {COPY_SECONDS_MAX} s")
        return peak
    finally:
        os.close(handle)
