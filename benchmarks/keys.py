"""Keys for servers and clients that speak TLS: made by the command that BuildStream's documentation has its users type."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

# RSA with 4096 bits for both sides. How long a handshake takes is mostly the two signatures, whoever serves.
_COMMAND = "openssl req -new -newkey rsa:4096 -x509 -sha256 -days 30 -nodes -batch"


@dataclass(frozen=True, slots=True)
class Keys:
    """One pair for the server, which is ``localhost``, and one for the client, whom the server knows by its certificate."""

    directory: Path

    @property
    def server_key(self) -> Path:
        return self.directory / "server.key"

    @property
    def server_cert(self) -> Path:
        return self.directory / "server.crt"

    @property
    def client_key(self) -> Path:
        return self.directory / "client.key"

    @property
    def client_cert(self) -> Path:
        return self.directory / "client.crt"

    @property
    def flags(self) -> list[str]:
        """What every server of the family calls them."""
        named = {"server-key": self.server_key, "server-cert": self.server_cert, "client-certs": self.client_cert}
        return [word for name, path in named.items() for word in (f"--{name}", str(path))]

    @classmethod
    def below(cls, scratch: Path) -> Keys:
        """The keys of this run; made when they are wanted for the first time."""
        keys = cls(scratch / "keys")
        if not keys.directory.exists():
            keys.directory.mkdir()
            for name, common_name in (("server", "localhost"), ("client", "client")):
                files = ["-out", f"{keys.directory / name}.crt", "-keyout", f"{keys.directory / name}.key"]
                command = [*_COMMAND.split(), "-subj", f"/CN={common_name}", *files]
                subprocess.run(command, check=True, capture_output=True)
        return keys
