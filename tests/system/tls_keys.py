"""Keys and certificates of every kind that users bring along, made by the ``openssl`` command as they make theirs.

The first three come from exactly the commands of the old documentation: no key usage, no alternative names, and
every client is called ``/CN=client``. The rest is what certificate authorities and careful people make.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CLASSIC = shlex.split("openssl req -new -newkey rsa:4096 -x509 -sha256 -days 3650 -nodes -batch")
_CLASSIC_NAMES = {"server": "localhost", "client": "client", "second-client": "client"}
_EC = shlex.split("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -sha256 -days 30 -nodes -batch")
_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"
_AUTHORITY = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
_FOR_SERVERS = ("basicConstraints=critical,CA:FALSE", "extendedKeyUsage=serverAuth", _NAMES)
_FOR_CLIENTS = ("basicConstraints=critical,CA:FALSE", "extendedKeyUsage=clientAuth")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate file and the file of its private key."""

    cert: Path
    key: Path


class Keys:
    """One of each kind. Nobody is authorized yet: that is for ``authorize`` to say."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "openssl.cnf").write_text("[req]\ndistinguished_name=names\n[names]\n")
        classic = {name: [*_CLASSIC, "-subj", f"/CN={cn}", *self._outputs(name)] for name, cn in _CLASSIC_NAMES.items()}
        running = [(subprocess.Popen(command, stderr=subprocess.DEVNULL), command) for command in classic.values()]

        self.server_with_names = self._issue("names", "Anything at all", _FOR_SERVERS)
        self.authority = self._issue("authority", "Authority", _AUTHORITY)
        intermediate = self._issue("intermediate", "Intermediate", _AUTHORITY, issuer=self.authority)
        leaf = self._issue("leaf", "Leaf", _FOR_SERVERS, issuer=intermediate)
        self.server_with_chain = KeyPair(self._join("chain.crt", leaf.cert, intermediate.cert), leaf.key)
        both = self._join("both.pem", self.server_with_names.key, self.server_with_names.cert)
        self.server_in_one_file = KeyPair(both, both)
        self.client_of_authority = self._issue("issued-client", "somebody", _FOR_CLIENTS, issuer=self.authority)
        self.ec_client = self._issue("ec-client", "client")
        self.stranger = self._issue("stranger", "client")

        for process, command in running:
            assert process.wait() == 0, f"{' '.join(command)} failed"
        self.server, self.client, self.second_client = (self._pair(name) for name in _CLASSIC_NAMES)

    def authorize(self, *certificates: Path | str, into: Path) -> Path:
        """An ``authorized.crt`` as the documentation has it made: by appending certificates (or what passes for one)."""
        texts = [item if isinstance(item, str) else item.read_text() for item in certificates]
        into.write_text("".join(texts))
        return into

    def _issue(self, name: str, cn: str, extensions: Sequence[str] = (), issuer: KeyPair | None = None) -> KeyPair:
        """A fresh EC key and its certificate, signed by itself or by ``issuer``."""
        command = [*_EC, "-config", str(self._directory / "openssl.cnf"), "-subj", f"/CN={cn}", *self._outputs(name)]
        for extension in extensions:
            command += ["-addext", extension]
        if issuer:
            command += ["-CA", str(issuer.cert), "-CAkey", str(issuer.key)]
        subprocess.run(command, check=True, capture_output=True)
        return self._pair(name)

    def _pair(self, name: str) -> KeyPair:
        return KeyPair(self._directory / f"{name}.crt", self._directory / f"{name}.key")

    def _outputs(self, name: str) -> list[str]:
        pair = self._pair(name)
        return ["-out", str(pair.cert), "-keyout", str(pair.key)]

    def _join(self, name: str, *parts: Path) -> Path:
        path = self._directory / name
        path.write_text("".join(part.read_text() for part in parts))
        return path
