"""What has to be known about the machine and the programs to judge a figure. Nothing that names the machine's owner."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import REPOSITORY_ROOT
from peer import Contestant
from processes import Cores, first_line
from records import MachineRecord


def describe(directory: Path, cores: Cores, peers: Sequence[Contestant], binary: Path) -> MachineRecord:
    """The facts of a run whose files lie in `directory`."""
    return MachineRecord(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        server_core=cores.server,
        client_core=cores.client,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release()}",
        system=platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        filesystem=first_line("findmnt", "-n", "-o", "FSTYPE", "-T", str(directory)),
        congestion_control=Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        python=platform.python_version(),
        command=["loadtest/run", *sys.argv[1:]],
        commit=_commit(),
        binary_sha256=hashlib.sha256(binary.read_bytes()).hexdigest() if binary.exists() else "",
        versions={peer.name: peer.version() for peer in peers}
        | {"wrk": _wrk_version(), "oha": first_line("oha", "--version")},
    )


def directory_name(machine: MachineRecord) -> str:
    """The name of a run's directory: date and machine."""
    model = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", machine.cpu.lower())).strip("-")
    return f"{machine.date[:10]}-{model}-{machine.cores}-cores"


def _cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _wrk_version() -> str:
    return first_line("wrk", "--version").partition(" Copyright")[0]


def _commit() -> str:
    """The commit of this checkout; "-dirty" if files were changed since."""
    found = first_line("git", "-C", str(REPOSITORY_ROOT), "describe", "--always", "--dirty", "--exclude=*")
    return found if re.fullmatch(r"[0-9a-f]+(-dirty)?", found) else "unknown"
