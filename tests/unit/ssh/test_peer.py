"""Who pushes: as far as sshd says, and in one line whatever it says."""

from __future__ import annotations

import os
from pathlib import Path

from millpond.ssh.peer import who


def test_address_and_fingerprints_are_told(tmp_path: Path) -> None:
    auth = tmp_path / "auth"
    auth.write_text("publickey ssh-ed25519 AAAA\npassword\npublickey broken\npublickey ssh-rsa ****\n")
    said = who({"SSH_CONNECTION": "2001:db8::7 50022 2001:db8::1 22", "SSH_USER_AUTH": str(auth)})
    assert said == "2001:db8::7 port 50022 SHA256:cJ6AyISHokEeHuTfufIqhhSS0gxHZRUMDHlKvXD4FHw"


def test_without_sshd_it_is_a_user_of_this_machine() -> None:
    assert who({}) == who({"SSH_CONNECTION": "x", "SSH_USER_AUTH": "/nowhere"}) == f"local user {os.getuid()}"


def test_nobody_adds_a_line_to_the_log() -> None:
    said = who({"SSH_CONNECTION": "1.2.3.4\n2026-01-01T00:00:00Z forged\x1b[31m " + "x" * 5000 + " 3 4"})
    assert said.isprintable()
    assert len(said) <= 200
