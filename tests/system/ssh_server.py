"""Debian's ``sshd`` on a high port of this machine, with a configuration and keys of its own. The system's is not touched."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from system.parts import require
from system.server_process import STOP_SECONDS, free_port

SSHD = "/usr/sbin/sshd"
_START_SECONDS = 30
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # where Debian's sshd, run as root, insists on an empty directory

_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host_key
PidFile {directory}/sshd.pid
AuthorizedKeysFile {directory}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
ExposeAuthInfo yes
PermitRootLogin prohibit-password
MaxStartups 100
SetEnv HOME={home} PATH={path}
{rest}
"""
_CLIENT_CONFIG = """\
Host *
  IdentityFile {directory}/client_key
  IdentitiesOnly yes
  UserKnownHostsFile {directory}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
"""


def make_key(path: Path) -> Path:
    """A key pair as users make one."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path


class SshServer:
    """A running ``sshd`` into which the user of these tests, and no other, can log in with ``client_key``."""

    def __init__(self, directory: Path, rest: str, *, home: Path, bin_directory: Path) -> None:
        """``rest``: what an administrator adds to sshd_config. ``home``: where sessions begin."""
        require("sshd")
        directory.mkdir()
        self.directory, self.home, self.user = directory, home, getpass.getuser()
        self.port = free_port()
        host_key = make_key(directory / "host_key")
        client_key = make_key(directory / "client_key")
        self.authorized_keys = directory / "authorized_keys"
        self.authorized_keys.write_text(client_key.with_suffix(".pub").read_text())
        host = host_key.with_suffix(".pub").read_text()
        (directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host}")
        path = f"{bin_directory}:/usr/bin:/bin"
        config = _CONFIG.format(port=self.port, directory=directory, home=home, path=path, rest=rest)
        (directory / "sshd_config").write_text(config)
        self.client_config = directory / "ssh_config"
        self.client_config.write_text(_CLIENT_CONFIG.format(directory=directory))
        if os.geteuid() == 0:
            _PRIVILEGE_SEPARATION.mkdir(exist_ok=True)
        self._log = directory / "sshd.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", directory / "sshd_config"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._await_ready()

    def url(self, path: str) -> str:
        """What a client writes into its configuration."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}{path}"

    def command(self, *words: str, before: Sequence[str] = (), after: Sequence[str] = ()) -> list[str]:
        """How a client starts ``words`` there. BuildStream's options come after the host."""
        ssh = ["ssh", "-F", str(self.client_config), "-l", self.user, "-p", str(self.port)]
        return [*ssh, *before, "127.0.0.1", *after, *words]

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(STOP_SECONDS)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while "Server listening on" not in self.log:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise AssertionError(f"sshd did not get ready\n{self.log}")
            time.sleep(0.02)
