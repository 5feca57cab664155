"""Debian's ``nginx`` as the web server of an OSTree repository, with a configuration of its own."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from system.parts import require
from system.server_process import STOP_SECONDS, accepts, free_port
from system.tls_keys import KeyPair

NGINX = "/usr/sbin/nginx"
_START_SECONDS = 30

_CONFIG = """\
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port}{tls};
{rest}
    }}
}}
"""


class Nginx:
    """A running nginx with one ``server``; ``rest`` are the lines that an administrator writes into it."""

    def __init__(self, directory: Path, rest: str, *, keys: KeyPair | None = None) -> None:
        require("nginx")
        directory.mkdir()
        self.port = free_port()
        self.url = f"{'https' if keys else 'http'}://127.0.0.1:{self.port}"
        if keys:
            rest += f"\n        ssl_certificate {keys.cert};\n        ssl_certificate_key {keys.key};"
        user = "user root;" if os.geteuid() == 0 else ""  # the tests' directories are closed to others
        tls = " ssl" if keys else ""
        config = _CONFIG.format(user=user, directory=directory, port=self.port, tls=tls, rest=rest)
        (directory / "nginx.conf").write_text(config)
        self._log = directory / "nginx.log"
        with self._log.open("wb") as log:
            command = [NGINX, "-p", directory, "-e", "stderr", "-c", directory / "nginx.conf"]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise AssertionError(f"nginx did not get ready\n{self._log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(STOP_SECONDS)


def repository_below(path: str, repo: Path) -> str:
    """The lines that serve ``repo`` below ``path``."""
    return f"        location {path}/ {{\n            alias {repo}/;\n        }}"
