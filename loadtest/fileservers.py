"""Servers of files, each set up as a careful operator would for one core. The blobs lie in a directory of theirs."""

from __future__ import annotations

import os
from typing import ClassVar

from application import INTERNAL, Application
from nginx import main_configuration, static_locations
from peer import Peer, Role, Site


class Nginx(Peer):
    name = "nginx"
    programs = {"nginx": "nginx"}
    setups = {Role.HIT: "static", Role.COLD: "proxy_cache", Role.ACCEL: "X-Accel-Redirect"}
    version_command = ("nginx", "-v")
    configuration_file = "nginx.conf"

    _nopush: ClassVar[bool] = True
    # Inside the static server's block.
    _static_options: ClassVar[str] = ""

    def prepare(self, site: Site) -> list[str]:
        if site.application:
            serve = _accel(site, site.application)
        else:
            serve = self._static(site) if site.role is Role.HIT else _proxy_cache(site)
        path = site.directory / self.configuration_file
        path.write_text(main_configuration(site.directory, f"    access_log off;\n{serve}", nopush=self._nopush))
        return ["nginx", "-p", str(site.directory), "-c", str(path)]

    def _static(self, site: Site) -> str:
        return f"""
    server {{
        listen 127.0.0.1:{site.port} reuseport backlog=4096;
        {self._static_options}
        {static_locations(site.origin.content.root)}
    }}"""


class NginxPush(Nginx):
    """nginx without `tcp_nopush`, which is what most people switch on, and costs it much on this kind of machine."""

    name = "nginx-push"
    setups = {
        Role.HIT: "static, tcp_nopush off",
        Role.COLD: "proxy_cache, tcp_nopush off",
        Role.ACCEL: "X-Accel-Redirect, tcp_nopush off",
    }

    _nopush = False


class NginxThreads(NginxPush):
    """nginx that has its threads call sendfile, so that a file on a slow disk does not stop its event loop."""

    name = "nginx-threads"
    setups = {Role.HIT: "static, tcp_nopush off, aio threads"}

    _static_options = "aio threads;"


def _proxy_cache(site: Site) -> str:
    return f"""
    proxy_cache_path {site.directory}/cache levels=1:2 keys_zone=blobs:10m inactive=1d max_size=16g use_temp_path=off;
    upstream origin {{
        server 127.0.0.1:{site.origin.port};
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{site.port} reuseport backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffers 16 64k;
            proxy_buffer_size 64k;
            proxy_busy_buffers_size 256k;
            proxy_cache blobs;
            proxy_cache_key $uri;
            proxy_cache_valid 200 1d;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
        }}
    }}"""


def _accel(site: Site, application: Application) -> str:
    # A connection to the application is kept behind a redirect whose answer has no body, as here.
    return f"""
    upstream application {{
        server 127.0.0.1:{application.accel_port};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{site.port} reuseport backlog=4096;
        location / {{
            proxy_pass http://application;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
        location {INTERNAL}/ {{
            internal;
            alias {site.origin.content.root}/;
        }}
    }}"""


class Lighttpd(Peer):
    name = "lighttpd"
    programs = {"lighttpd": "lighttpd"}
    setups = {Role.HIT: "static", Role.ACCEL: "X-Sendfile"}
    version_command = ("lighttpd", "-v")
    configuration_file = "lighttpd.conf"

    def prepare(self, site: Site) -> list[str]:
        path = site.directory / self.configuration_file
        application = ""
        if site.application:
            # It asks the application over a new connection each time, and cannot be told otherwise.
            application = f"""server.modules += ("mod_proxy")
proxy.server = ("" => ((
    "host" => "127.0.0.1",
    "port" => {site.application.sendfile_port},
    "x-sendfile" => "enable",
    "x-sendfile-docroot" => ("{site.origin.content.root}")
)))
"""
        # 65535 is the most requests that it allows a connection.
        path.write_text(f"""server.modules = ()
server.document-root = "{site.origin.content.root}"
server.bind = "127.0.0.1"
server.port = {site.port}
server.network-backend = "sendfile"
server.stat-cache-engine = "inotify"
server.max-fds = 16384
server.max-connections = 8192
server.max-keep-alive-requests = 65535
server.max-keep-alive-idle = 75
server.listen-backlog = 4096
mimetype.assign = ("" => "application/octet-stream")
{application}""")
        return ["lighttpd", "-D", "-f", str(path)]


class H2o(Peer):
    name = "h2o"
    programs = {"h2o": "h2o"}
    setups = {Role.HIT: "static"}
    version_command = ("h2o", "--version")
    configuration_file = "h2o.yml"

    def prepare(self, site: Site) -> list[str]:
        # Started by root, it would look for a user `nobody` that could not enter the directory.
        user = "user: root\n" if os.geteuid() == 0 else ""
        path = site.directory / self.configuration_file
        path.write_text(f"""{user}num-threads: 1
max-connections: 16384
http1-request-timeout: 75
listen:
  host: 127.0.0.1
  port: {site.port}
hosts:
  default:
    paths:
      /:
        file.dir: {site.origin.content.root}
        file.mime.setdefaulttype: application/octet-stream
""")
        return ["h2o", "--conf", str(path)]


class Caddy(Peer):
    name = "caddy"
    programs = {"caddy": "caddy"}
    setups = {Role.HIT: "file_server"}
    version_command = ("caddy", "version")
    configuration_file = "Caddyfile"

    def prepare(self, site: Site) -> list[str]:
        path = site.directory / self.configuration_file
        path.write_text(f"""{{
	admin off
	auto_https off
	log {{
		level ERROR
	}}
}}
http://127.0.0.1:{site.port} {{
	root * {site.origin.content.root}
	file_server
}}
""")
        return ["env", "GOMAXPROCS=1", "caddy", "run", "--config", str(path), "--adapter", "caddyfile"]
