"""How things are measured: CPU time and memory of a server's processes, and the two kinds of clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from content import Blob
from origin import Origin
from processes import Process, ProcessError, bare_environment, pinned
from records import Costs

HERE = Path(__file__).resolve().parent
CLIENT_SECONDS_MARGIN = 60
FAN_OUT_SECONDS_MAX = 150
# A server is idle when it used no more than 1 % of a core for this long.
IDLE_WINDOW_S = 0.3
IDLE_SECONDS_MAX = 20


@dataclass(frozen=True)
class CpuTime:
    """CPU time of a tree of processes, in ns."""

    # Of the threads that live, the kernel's workers for io_uring among them: /proc/PID/task/*/schedstat, first field.
    threads_ns: int
    # The same by the processes' clocks, which also know threads that have ended.
    processes_ns: int

    @classmethod
    def of(cls, process: Process) -> CpuTime:
        pids = process.tree()
        threads = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        return cls(
            threads_ns=sum(_on_core(path) for path in threads),
            processes_ns=sum(_process_clock(pid) for pid in pids),
        )

    def used_since(self, before: CpuTime) -> int:
        """What was used between two readings. The sums differ only by threads that ended in between."""
        return max(self.threads_ns - before.threads_ns, self.processes_ns - before.processes_ns)


class Meter:
    """Reads what a server and its origin spend from now on."""

    def __init__(self, process: Process, origin: Origin, blob: Blob) -> None:
        self._process = process
        self._origin = origin
        self._blob = blob
        self._load_average = os.getloadavg()[0]
        self._mark = origin.mark()
        self._core = min(os.sched_getaffinity(process.popen.pid))
        self._core_busy = _core_busy(self._core)
        self._began = time.monotonic_ns()
        self._before = CpuTime.of(process)

    def read(self) -> Costs:
        """What was spent since; raises `ProcessError` if the server has ended."""
        after = CpuTime.of(self._process)
        elapsed = time.monotonic_ns() - self._began
        core_busy = _core_busy(self._core) - self._core_busy
        self._process.check_alive()
        tally = self._origin.since(self._mark, self._blob)
        used = after.used_since(self._before)
        return Costs(
            elapsed_ns=elapsed,
            cpu_ns=used,
            cpu_live_threads_ns=after.threads_ns - self._before.threads_ns,
            core_taken_ns=max(0, core_busy - used),
            peak_memory_bytes=peak_memory(self._process),
            origin_gets=tally.gets,
            origin_heads=tally.heads,
            origin_bytes=tally.body_bytes,
            load_average=self._load_average,
        )


def peak_memory(process: Process) -> int:
    """The most that was ever resident, in bytes: VmHWM of all processes together, so what they share counts twice."""
    return sum(_peak_of(pid) for pid in process.tree())


def wait_until_idle(process: Process) -> float:
    """Waits until a server has finished what it does after its last answer; returns for how many seconds it did."""
    began = time.monotonic()
    before = CpuTime.of(process)
    while time.monotonic() - began < IDLE_SECONDS_MAX:
        time.sleep(IDLE_WINDOW_S)
        now = CpuTime.of(process)
        if now.used_since(before) < IDLE_WINDOW_S * 1e9 / 100:
            return max(0.0, time.monotonic() - began - IDLE_WINDOW_S)
        before = now
    raise ProcessError(f"{process.name} is busy {IDLE_SECONDS_MAX} s after its last answer")


@dataclass(frozen=True)
class WrkResult:
    """What wrk counted."""

    duration_us: int
    requests: int
    # Everything received, answers that the end cut short included.
    bytes: int
    p50_us: int
    p99_us: int
    errors: dict[str, int]


def run_wrk(url: str, connections: int, seconds: int, core: int) -> WrkResult:
    """Asks for one URL again and again, over a number of connections."""
    output = _run_client(
        [
            *("wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"),
            *("--timeout", "30s", "--latency", "--script", str(HERE / "wrk.lua"), url),
        ],
        core,
        seconds + CLIENT_SECONDS_MARGIN,
    )
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise ProcessError(f"wrk printed no result: {output}")
    return WrkResult(**json.loads(lines[-1]))


@dataclass(frozen=True)
class FanOutResult:
    """What clients that asked at the same time saw."""

    wall_s: float
    last_first_byte_s: float
    errors: list[str]


def run_fan_out(port: int, target: str, clients: int, core: int) -> FanOutResult:
    """Asks for one thing from many clients at once."""
    command = [sys.executable, str(HERE / "fanout.py"), str(port), target, str(clients)]
    result = json.loads(_run_client(command, core, FAN_OUT_SECONDS_MAX))
    seen = result["clients"]
    return FanOutResult(
        wall_s=result["wall_s"],
        last_first_byte_s=max(client["first_byte_s"] or result["wall_s"] for client in seen),
        errors=[client["error"] for client in seen if client["error"]],
    )


def _run_client(command: Iterable[str], core: int, seconds_max: float) -> str:
    try:
        done = subprocess.run(
            [*pinned(core), *command],
            env=bare_environment(Path("/")),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProcessError(f"the client did not end: {error}") from error
    if done.returncode != 0:
        raise ProcessError(f"the client failed with status {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode()


def _on_core(schedstat: Path) -> int:
    """How long a thread has run, in ns."""
    try:
        return int(schedstat.read_text().split()[0])
    except OSError:
        return 0


def _core_busy(core: int) -> int:
    """How long a core has not been idle, in ns: in the kernel's ticks, what the hypervisor took from it included."""
    lines = Path("/proc/stat").read_text().splitlines()
    user, nice, system, _idle, _iowait, *interrupts_and_stolen = next(
        [int(ticks) for ticks in line.split()[1:9]] for line in lines if line.startswith(f"cpu{core} ")
    )
    ticks = user + nice + system + sum(interrupts_and_stolen)
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _process_clock(pid: int) -> int:
    # The kernel's number for the CPU clock of another process; the libc function that makes it is not in Python.
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        return 0


def _peak_of(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0
