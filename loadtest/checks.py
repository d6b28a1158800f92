"""Questions about Spliceway that are answered by yes or no rather than by a comparison."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench import Bench
from caches import Spliceway
from content import ContentError
from peer import Role, Server
from processes import Process, ProcessError, bare_environment, pinned
from records import CheckRecord, FailureRecord, Record

# Line of strace: process, call, (arguments,) result. A call that another thread interrupts has two; the second counts.
CALL = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed>).* = (-?\d+)")
# Calls that could carry a body to a socket.
SENDING = ("sendfile", "splice", "write", "writev", "sendto", "sendmsg", "io_uring_enter")
ATTACH_SECONDS_MAX = 10


@dataclass(frozen=True)
class SendfileCheck:
    """Whether the bytes of a hit leave from the page cache, as strace sees it: by sendfile, or by splice from a pipe."""

    name: str
    title: str
    size: int
    hits: int = 8

    # A check has no table.
    figures: ClassVar[tuple[()]] = ()
    programs: ClassVar[Mapping[str, str]] = {"strace": "strace"}

    def run(self, bench: Bench) -> Iterator[Record]:
        blob = bench.content.blob(self.size)
        for peer in bench.peers_for(Role.HIT, frozenset({Spliceway.name})):
            try:
                with bench.origin() as origin, bench.server(peer, Role.HIT, origin, [blob]) as server:
                    server.warm()
                    yield self._check(server, bench.cores.client)
            except (ProcessError, ContentError, OSError) as error:
                yield FailureRecord(self.name, peer.label(Role.HIT), str(error))

    def _check(self, server: Server, core: int) -> CheckRecord:
        trace = server.site.directory / "strace.txt"
        with _traced(server.process, trace, core):
            for _ in range(self.hits):
                server.site.blobs[0].check(server.site.port)
        calls = summarise(trace.read_text(errors="replace"))
        wanted = self.hits * self.size
        sent = sum(calls.get(name, {}).get("bytes", 0) for name in ("sendfile", "splice"))
        return CheckRecord(
            check=self.name,
            server=server.label,
            passed=sent == wanted,
            summary=f"{sent} of {wanted} bytes of bodies by sendfile or splice",
            details=calls,
        )


def summarise(trace: str) -> dict[str, dict[str, int]]:
    """How often each system call was made, and for those that send, the sum of what they returned."""
    calls: dict[str, dict[str, int]] = {}
    for line in trace.splitlines():
        found = CALL.match(line)
        if not found:
            continue
        name, result = found[1], int(found[2])
        # Out of a file into a pipe: neither end of what sends has an offset.
        if name == "splice" and line.count("NULL") < 2:
            name = "splice (file to pipe)"
        entry = calls.setdefault(name, {"calls": 0, "errors": 0})
        entry["calls"] += 1
        entry["errors"] += result < 0
        if name in SENDING:
            entry["bytes"] = entry.get("bytes", 0) + max(0, result)
    return dict(sorted(calls.items()))


@contextmanager
def _traced(process: Process, trace: Path, core: int) -> Iterator[None]:
    """Writes every system call of a program to a file until the block ends."""
    strace = subprocess.Popen(
        [*pinned(core), "strace", "-f", "-o", str(trace), "-p", str(process.popen.pid)],
        env=bare_environment(trace.parent),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for_tracer(process.popen.pid, strace)
        yield
    finally:
        # strace then lets the program go on.
        strace.send_signal(signal.SIGINT)
        try:
            strace.communicate(timeout=ATTACH_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            strace.kill()
            strace.communicate()


def _wait_for_tracer(pid: int, strace: subprocess.Popen[str]) -> None:
    """Returns when every thread has a tracer."""
    deadline = time.monotonic() + ATTACH_SECONDS_MAX
    while time.monotonic() < deadline:
        if strace.poll() is not None:
            raise ProcessError(f"strace cannot attach: {strace.communicate()[1].strip()}")
        if all("TracerPid:\t0\n" not in path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")):
            return
        time.sleep(0.02)
    raise ProcessError(f"strace did not attach within {ATTACH_SECONDS_MAX} s")
