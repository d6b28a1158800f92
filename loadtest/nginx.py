"""Configuration that every nginx of the benchmark shares: the peers' and the origin's."""

from __future__ import annotations

import os
from pathlib import Path


def main_configuration(directory: Path, http: str, *, nopush: bool) -> str:
    """A whole configuration around the inside of its `http` block; everything that is written lies in `directory`.

    `tcp_nopush` joins the head of an answer to its body. It may also hold back the end of the body until the client's
    kernel acknowledges the rest, which on the loopback address takes 40 ms.
    """
    # Started by root, workers would give up the right to read the directory.
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    default_type application/octet-stream;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush {"on" if nopush else "off"};
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    open_file_cache max=20000 inactive=10m;
    open_file_cache_valid 10m;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{http}
}}
"""


def static_locations(root: Path) -> str:
    """Serves a directory of files."""
    return f"location / {{ root {root}; }}"
