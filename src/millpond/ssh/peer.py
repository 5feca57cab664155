"""Who pushes: what sshd says of the connection.

The rule: it is told and decides nothing. ``SSH_ORIGINAL_COMMAND``, which is the client's to choose, is not even looked at.
"""

from __future__ import annotations

import os

_AUTH_BYTES = 65_536
_SHOWN_CHARS = 200


def who(environment: dict[str, str]) -> str:
    """The client's address and port, and the fingerprint of its key where sshd exposes it (``ExposeAuthInfo``)."""
    address = environment.get("SSH_CONNECTION", "").split(" ")[:2]
    words = [" port ".join(address)] if len(address) == 2 else []
    words += _fingerprints(environment.get("SSH_USER_AUTH", ""))
    said = " ".join(words) or f"local user {os.getuid()}"
    return "".join(char for char in said if char.isprintable())[:_SHOWN_CHARS]


def _fingerprints(path: str) -> list[str]:
    if not path:
        return []
    try:
        with open(path, "rb") as file:
            lines = file.read(_AUTH_BYTES).decode("ascii", "replace").splitlines()
    except OSError:
        return []
    return [one for line in lines if line.startswith("publickey ") for one in [_fingerprint(line.split(" "))] if one]


def _fingerprint(fields: list[str]) -> str:
    """As ``ssh-keygen -l`` prints it."""
    from base64 import b64decode, b64encode
    from hashlib import sha256

    try:
        key = b64decode(fields[2], validate=True)
    except (IndexError, ValueError):
        return ""
    return f"SHA256:{b64encode(sha256(key).digest()).decode().rstrip('=')}"
