"""Starting and ending the programs under test, and no others.

A program runs in a directory and session of its own, pinned to one core, with a bare environment, and ends with this
process even when that is killed (`setpriv --pdeathsig`). Ports are chosen where nothing listens: a stale server on a
port that is shared (SO_REUSEPORT) would take half of the connections, and half of the CPU time measured.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which

START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 10
# Below the ports that the kernel gives to clients, so that none of theirs is in the way.
PORTS = range(20_000, 32_000)
# Where Debian keeps programs of administrators, and cargo those that it installs.
SEARCH_PATH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", str(Path.home() / ".cargo/bin")],
)
LOG_BYTES_KEPT = 4_000
NOT_INSTALLED = "not installed"


class ProcessError(Exception):
    """A program that did not start, answer or stay."""


@dataclass(frozen=True)
class Cores:
    """The core of the server under test, and that of everything else."""

    server: int
    client: int

    @classmethod
    def choose(cls) -> Cores:
        """The first two cores that this process may use, or the only one."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(server=allowed[0], client=allowed[min(1, len(allowed) - 1)])


@dataclass(frozen=True)
class Process:
    """A program that was started here, with the processes that it starts itself."""

    name: str
    arguments: tuple[str, ...]
    popen: subprocess.Popen[bytes]
    log_path: Path

    def tree(self) -> list[int]:
        """The process and all its descendants."""
        children: dict[int, list[int]] = {}
        for pid, parent in _parents():
            children.setdefault(parent, []).append(pid)
        found = [self.popen.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def check_alive(self) -> None:
        """Raises `ProcessError` with the end of the log if the program has ended."""
        status = self.popen.poll()
        if status is not None:
            raise ProcessError(f"{self.name} ended with status {status}: {self.log()}")

    def log(self) -> str:
        """The end of what the program wrote to standard output and standard error."""
        return self.log_path.read_bytes()[-LOG_BYTES_KEPT:].decode(errors="replace").strip()

    def wait_for_port(self, port: int) -> None:
        """Returns when something answers on `port`."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            self.check_alive()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        raise ProcessError(f"{self.name} does not listen after {START_SECONDS_MAX} s: {self.log()}")

    def stop(self) -> None:
        """Asks the program to end, and ends what is left of its tree after `STOP_SECONDS_MAX`."""
        tree = {pid: _start_time(pid) for pid in self.tree()}
        self.popen.terminate()
        try:
            self.popen.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            print(f"{self.name} did not end within {STOP_SECONDS_MAX} s and is killed", file=sys.stderr)
            self.popen.kill()
            self.popen.wait()
        for pid, started in tree.items():
            # The same start time: not another process that was given the number since.
            if started is not None and _start_time(pid) == started:
                _kill(pid)


@contextmanager
def running(name: str, arguments: Sequence[str], core: int | Cores, directory: Path) -> Iterator[Process]:
    """Runs a program until the block ends; its output goes to `directory`/output.log."""
    log_path = directory / "output.log"
    with log_path.open("wb") as log:
        popen = subprocess.Popen(
            [*pinned(core), *arguments],
            cwd=directory,
            env=bare_environment(directory),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    process = Process(name, tuple(arguments), popen, log_path)
    try:
        yield process
    finally:
        process.stop()


def pinned(core: int | Cores) -> list[str]:
    """The beginning of a command that runs on a core, or on any of several, and ends when this process does."""
    allowed = f"{core.server},{core.client}" if isinstance(core, Cores) else str(core)
    return ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", allowed]


def bare_environment(home: Path) -> dict[str, str]:
    """No proxy, locale or setting of the user's reaches a program under test."""
    return {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "HOME": str(home)}


def find_program(program: str) -> str | None:
    """The path of an installed program."""
    return which(program, path=SEARCH_PATH)


def first_line(*command: str) -> str:
    """The first line that a program prints, on whichever output."""
    program = find_program(command[0])
    if program is None:
        return NOT_INSTALLED
    found = subprocess.run(
        [program, *command[1:]],
        env=bare_environment(Path("/")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=STOP_SECONDS_MAX,
        check=False,
    )
    return found.stdout.decode(errors="replace").partition("\n")[0].strip()


def free_port() -> int:
    """A random port of the loopback address on which nothing listens."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                # Without SO_REUSEPORT and SO_REUSEADDR: fails beside any listener.
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ProcessError(f"no free port in {PORTS.start}-{PORTS.stop - 1}")


def _parents() -> Iterator[tuple[int, int]]:
    """Every process of the machine with its parent."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = _stat_fields(int(entry.name))
            if fields:
                yield int(entry.name), int(fields[1])


def _start_time(pid: int) -> str | None:
    fields = _stat_fields(pid)
    return fields[19] if fields else None


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name in parentheses, which may contain anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
