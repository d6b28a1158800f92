"""A network namespace for one run, with nothing in it but a loopback device and a congestion control of its own.

What paces its packets (bbr) has a timer send them, whose time the kernel charges to nobody or to whoever runs just
then; what does not (cubic, reno) has the server itself send them, and shows what that costs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Tells the program that was started again in the namespace that it is.
MARK = "SPLICEWAY_LOADTEST_NETWORK"
SETTING = Path("/proc/sys/net/ipv4/tcp_congestion_control")


class NetworkError(Exception):
    """A network that could not be made as it was asked for."""


def enter_own_network(congestion_control: str) -> None:
    """Starts this program again in a network of its own; in there, sets it up and returns. Raises `NetworkError`."""
    if os.geteuid() != 0:
        raise NetworkError("only root may")
    if MARK not in os.environ:
        os.environ[MARK] = "1"
        os.execvp("unshare", ["unshare", "--net", "--", sys.executable, "-B", *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    try:
        SETTING.write_text(congestion_control)
    except OSError as error:
        allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().strip()
        raise NetworkError(f"{error.strerror}: {congestion_control}; allowed: {allowed}") from error
