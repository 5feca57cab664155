"""Listen addresses: read, resolved, and claimed for as long as the server runs.

The rule: who shares a port with us is who we started. SO_REUSEPORT lets every process of the same user onto a port
that its workers share, so a second server started by mistake would silently get half of the clients. Therefore one
process claims each address, in this order: a lock that only one claimant of a port can have; a bind *without*
SO_REUSEPORT, which fails if anybody else is there; a bind *with* it, kept and never listening, which makes the next
claimant's first bind fail even while all of our workers are dead.
"""

import errno
import ipaddress
import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from millpond.config.settings import DEFAULT_PORT, Listener
from millpond.core.errors import RefusedToStart

EVERY_ADDRESS = frozenset({"*", "::", "0.0.0.0"})  # noqa: S104 — recognised here, chosen only by the user
_LISTEN = re.compile(r"(?:\[(?P<ipv6>[^\s/@\[\]]+)\]|(?P<name>[^\s/@\[\]:]+))(?::(?P<port>\d{1,5}))?", re.ASCII)
_PATH = re.compile(r"/(?:[A-Za-z0-9_][-._~A-Za-z0-9]*/)*(?:[A-Za-z0-9_][-._~A-Za-z0-9]*)?", re.ASCII)
_PATH_CHARS = 1024
_LOCK_SECONDS = 5.0  # another claimant needs a millisecond
_FREE_PORT_ATTEMPTS = 10


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[IPv6]:PORT`` or ``HOST`` alone; every way to say every address is ``::``.

    Raises:
        ValueError: none of these; the message is for the user.
    """
    match = _LISTEN.fullmatch(text.strip())
    if match is None or (match["name"] or "").isdecimal() or int(match["port"] or 0) > 65535:
        raise ValueError(
            f"{text!r} is not an address to listen on: "
            "write HOST:PORT, such as 127.0.0.1:11001, [::1]:11001 or 0.0.0.0:11001"
        )
    host = match["name"] or match["ipv6"]
    port = DEFAULT_PORT if match["port"] is None else int(match["port"])
    return ("::" if host in EVERY_ADDRESS else host), port


def parse_prefix(text: str) -> str:
    """A path of plain names to serve below, without a slash at its end; ``/`` for none.

    Raises:
        ValueError: it is none; the message is for the user.
    """
    if len(text) > _PATH_CHARS or not _PATH.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a path to serve below: write something like /artifacts, or / for none")
    return text.rstrip("/") or "/"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Claim:
    """An address that is ours. ``listeners`` are what to serve, numeric; ``shown`` is what to tell people."""

    shown: Listener
    listeners: tuple[Listener, ...]
    held: tuple[socket.socket, ...]

    def release(self) -> None:
        """Let the next server have the address."""
        for one in self.held:
            one.close()


def claim(listener: Listener) -> Claim:
    """Make sure that nobody else serves this address, now and until :meth:`Claim.release`.

    Port 0 becomes a free port. A name that stands for several addresses (``localhost``) becomes several listeners.

    Raises:
        RefusedToStart: in use, not an address of this machine, or not permitted.
    """
    addresses = _resolve(listener)
    if listener.port:
        return _claim_port(listener, addresses, listener.port)
    for attempt in range(_FREE_PORT_ATTEMPTS):
        try:
            return _claim_port(listener, addresses, _free_port(listener, addresses[0]))
        except RefusedToStart:
            if attempt == _FREE_PORT_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _claim_port(listener: Listener, addresses: Sequence[tuple[socket.AddressFamily, str]], port: int) -> Claim:
    listener = replace(listener, port=port)
    with ExitStack() as undo:
        undo.enter_context(closing(_lock(listener)))
        held: list[socket.socket] = []
        served: list[Listener] = []
        with ExitStack() as release:
            for family, host in addresses:
                try:
                    _bind(family, host, port, shared=False).close()
                    held.append(release.enter_context(_bind(family, host, port, shared=True)))
                except OSError as error:
                    # "localhost" may name ::1 on a machine that has no IPv6: the other address will do.
                    if error.errno == errno.EADDRNOTAVAIL and len(addresses) > 1:
                        continue
                    raise _refused(listener, error) from None
                served.append(replace(listener, host=host))
            if not served:
                raise _refused(listener, OSError(errno.EADDRNOTAVAIL, ""))
            release.pop_all()
    shown = served[0] if listener.host == "::" else listener
    return Claim(shown, tuple(served), tuple(held))


def _resolve(listener: Listener) -> list[tuple[socket.AddressFamily, str]]:
    if listener.host == "::":
        # One dual-stack socket; where there is no IPv6, every IPv4 address.
        return [(socket.AF_INET6, "::")] if _has_ipv6() else [(socket.AF_INET, "0.0.0.0")]  # noqa: S104 — asked for
    try:
        found = socket.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise RefusedToStart(
            f"{listener.address}: nothing is known of a host {listener.host!r}: choose another address"
        ) from None
    # Without duplicates, in the order of the resolver.
    return list({(family, str(address[0])): None for family, _, _, _, address in found})


def _has_ipv6() -> bool:
    try:
        _bind(socket.AF_INET6, "::", 0, shared=False).close()
    except OSError:
        return False
    return True


def _bind(family: socket.AddressFamily, host: str, port: int, *, shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Alone, it must not stumble over connections that the server before us left in TIME_WAIT (tcp(7)).
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _free_port(listener: Listener, address: tuple[socket.AddressFamily, str]) -> int:
    try:
        with _bind(*address, 0, shared=False) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise _refused(listener, error) from None


def _lock(listener: Listener) -> socket.socket:
    """An abstract unix socket: it has one owner and goes with it (unix(7)); it lives as close to the port as can be."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            lock.bind(f"\0millpond/claim/{listener.port}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                lock.close()
                raise _refused(listener, error) from None
            time.sleep(0.01)
        else:
            return lock


def _refused(listener: Listener, error: OSError) -> RefusedToStart:
    match error.errno:
        case errno.EADDRINUSE:
            sentence = "is already in use by another program: stop it or choose another port"
        case errno.EADDRNOTAVAIL:
            sentence = "is not an address of this machine: choose another address"
        case errno.EACCES | errno.EPERM:
            sentence = "may not be used by this user: choose a port of 1024 or more"
        case _:
            sentence = f"cannot be listened on ({os.strerror(error.errno or 0)}): choose another address"
    return RefusedToStart(f"{listener.address} {sentence}")
