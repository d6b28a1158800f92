"""Workloads of programs that collect garbage in a whole tree and end."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench import Bench
from figures import COLLECT, Figure
from measure import peak_memory_of
from peer import Peer, Role
from processes import ProcessError, bare_environment, pinned
from records import CollectRound, Costs, FailureRecord, Record, ServerRecord
from trees import Tree, TreeSize
from workload import FAILURES

# The small tree that tells what memory does not depend on the number of digests.
SMALL_SHARE = 20
COLLECT_SECONDS_MAX = 1200
PEAK_INTERVAL_S = 0.001


@dataclass(frozen=True)
class Collected:
    """What one run of a program took."""

    wall_s: float
    cpu_ns: int
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Everything that no manifest names is removed from a tree; before each turn it is put back."""

    name: str
    title: str
    size: TreeSize
    peers: frozenset[str]

    figures: ClassVar[Sequence[Figure[Any]]] = COLLECT
    programs: ClassVar[Mapping[str, str]] = {}

    def run(self, bench: Bench) -> Iterator[Record]:
        peers = bench.peers_for(Role.COLLECT, self.peers)
        part = TreeSize(
            max(1, self.size.images // SMALL_SHARE), max(1, self.size.repositories // SMALL_SHARE), self.size.garbage_share
        )
        with bench.fresh_directory(self.name) as directory:
            directory.mkdir()
            small = Tree.write(directory / "small", part)
            large = Tree.write(directory / "large", self.size)
            for number in range(1, bench.rounds + 1):
                for peer in peers:
                    try:
                        if number == 1:
                            yield self._server_record(bench, peer, directory, large)
                        yield self._round(bench, peer, directory, small, large, number)
                    except FAILURES as error:
                        yield FailureRecord(self.name, peer.label(Role.COLLECT), str(error))
                    # The next one finds the same, even if this one broke off.
                    small.restore()
                    large.restore()

    def _server_record(self, bench: Bench, peer: Peer, directory: Path, tree: Tree) -> ServerRecord:
        command = peer.collect_command(directory, tree.root)
        configuration = directory / peer.configuration_file
        return ServerRecord(
            workload=self.name,
            server=peer.label(Role.COLLECT),
            command=[bench.shortened(argument) for argument in command],
            configuration=bench.shortened(configuration.read_text()) if configuration.exists() else "",
        )

    def _round(
        self, bench: Bench, peer: Peer, directory: Path, small: Tree, large: Tree, number: int
    ) -> CollectRound:
        core = bench.cores.server
        of_small = _collect(peer.collect_command(directory, small.root), core, directory)
        load_average = os.getloadavg()[0]
        of_large = _collect(peer.collect_command(directory, large.root), core, directory)
        errors = [
            f"{tree.count()} blobs are left of a tree in which {tree.kept} are named"
            for tree in (small, large)
            if tree.count() != tree.kept
        ]
        costs = Costs(
            elapsed_ns=round(of_large.wall_s * 1e9),
            cpu_ns=of_large.cpu_ns,
            cpu_live_threads_ns=of_large.cpu_ns,
            core_taken_ns=0,
            peak_memory_bytes=of_large.peak_memory_bytes,
            origin_gets=0,
            origin_heads=0,
            origin_bytes=0,
            load_average=load_average,
        )
        return CollectRound(
            workload=self.name,
            server=peer.label(Role.COLLECT),
            round=number,
            costs=costs,
            errors=errors,
            wall_s=of_large.wall_s,
            digests=large.digests,
            small_digests=small.digests,
            small_peak_memory_bytes=of_small.peak_memory_bytes,
        )


def _collect(command: Sequence[str], core: int, directory: Path) -> Collected:
    """Runs a program to its end; raises `ProcessError` if it fails."""
    with (directory / "output.log").open("wb") as log:
        began = time.monotonic()
        popen = subprocess.Popen(
            [*pinned(core), *command],
            env=bare_environment(directory),
            stdin=subprocess.DEVNULL,
            # A line for each digest: nobody would keep them.
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        peak = 0
        while True:
            # What the kernel knows of a process that has ended counts the program that started it, too.
            peak = max(peak, peak_memory_of(popen.pid))
            pid, status, usage = os.wait4(popen.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - began > COLLECT_SECONDS_MAX:
                popen.kill()
                popen.wait()
                raise ProcessError(f"{command[0]} did not end within {COLLECT_SECONDS_MAX} s")
            time.sleep(PEAK_INTERVAL_S)
        wall_s = time.monotonic() - began
    popen.returncode = os.waitstatus_to_exitcode(status)
    if popen.returncode:
        said = (directory / "output.log").read_bytes()[-2000:].decode(errors="replace")
        raise ProcessError(f"{command[0]} failed with status {popen.returncode}: {said}")
    return Collected(wall_s, round((usage.ru_utime + usage.ru_stime) * 1e9), peak)
