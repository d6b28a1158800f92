"""How things are measured: CPU time and memory of a server's processes."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

from origin import Origin
from processes import Process, ProcessError
from records import Costs

# A server is idle when it used no more than 1 % of a core for this long.
IDLE_WINDOW_S = 0.3
IDLE_SECONDS_MAX = 20
# More than a cold round takes in.
TOUCHED_BYTES = 2 << 30


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

    def __init__(self, process: Process, origin: Origin) -> None:
        self._process = process
        self._origin = origin
        self._load_average = os.getloadavg()[0]
        self._mark = origin.mark()
        self._core = min(os.sched_getaffinity(process.popen.pid))
        self._core_busy = core_busy(self._core)
        self._began = time.monotonic_ns()
        self._before = CpuTime.of(process)

    def read(self) -> Costs:
        """What was spent since; raises `ProcessError` if the server has ended."""
        after = CpuTime.of(self._process)
        elapsed = time.monotonic_ns() - self._began
        busy = core_busy(self._core) - self._core_busy
        self._process.check_alive()
        tally = self._origin.since(self._mark)
        used = after.used_since(self._before)
        return Costs(
            elapsed_ns=elapsed,
            cpu_ns=used,
            cpu_live_threads_ns=after.threads_ns - self._before.threads_ns,
            core_taken_ns=max(0, busy - used),
            peak_memory_bytes=peak_memory(self._process),
            origin_gets=tally.gets,
            origin_heads=tally.heads,
            origin_bytes=tally.body_bytes,
            load_average=self._load_average,
        )


def peak_memory(process: Process) -> int:
    """The most that was ever resident, in bytes: VmHWM of all processes together, so what they share counts twice."""
    return sum(peak_memory_of(pid) for pid in process.tree())


def peak_memory_of(pid: int) -> int:
    """The same of one process; 0 if it has ended."""
    return kibibytes(Path(f"/proc/{pid}/status"), "VmHWM:") * 1024


def resident_memory(process: Process) -> int:
    """What is resident now, in bytes: counted page by page, as the sums in `status` lag behind."""
    return sum(kibibytes(Path(f"/proc/{pid}/smaps_rollup"), "Rss:") for pid in process.tree()) * 1024


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


def _on_core(schedstat: Path) -> int:
    """How long a thread has run, in ns."""
    try:
        return int(schedstat.read_text().split()[0])
    except OSError:
        return 0


def core_busy(core: int) -> int:
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


def kibibytes(path: Path, name: str) -> int:
    """The value of a line in one of a process's files; 0 if the process has ended."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def touch_free_memory() -> None:
    """Has the hypervisor, if there is one that takes free memory back, give it again.

    The first use of such memory costs far more than a later one. Without this, who happened to get what the server
    before it had just freed was up to twice as fast in a cold round.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, TOUCHED_BYTES, flags=flags).close()
