"""Receiving the objects of one push into a staging directory, and storing them."""

from __future__ import annotations

from millpond.core.errors import InvalidRequest
from millpond.protocol.ostree.names import parse_object
from millpond.protocol.ostree.tar import BLOCK_BYTES, RECORD_BYTES, padding, parse_member, parse_pax
from millpond.store.ostree.refs import check_room_for
from millpond.store.ostree.room import Room
from millpond.store.ostree.staging import Staging
from millpond.store.ostree.storing import Push

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from millpond.core.clock import Clock
    from millpond.ssh.incoming import Incoming
    from millpond.store.ostree.repository import Repository

_ZEROS = bytes(BLOCK_BYTES)


class Receiver:
    """What one push brings, for these refs and their commits.

    Raises:
        InvalidRequest: one of the refs cannot be.
        MillpondError: nothing can be received now.
    """

    def __init__(
        self, repository: Repository, commits: dict[str, str], clock: Clock, say: Callable[[str], None]
    ) -> None:
        check_room_for(repository.path, list(commits))
        self._room = Room(repository, clock, say)
        self._room.keep_refs = tuple(commits)
        self._room.grow(0)
        self.staging = Staging(repository.path, self._room.grow)
        self._push = Push(repository, commits, self.staging, self._room, clock=clock, say=say)

    def receive(self, incoming: Incoming) -> None:
        """Take in a tar stream, to its last block.

        Raises:
            InvalidRequest: it, or an object in it, is not what it should be.
            MillpondError: there is no room, or nothing came for long.
            OSError: the disk is full, or fails.
        """
        taken, extended_size = 0, None
        while True:
            member = parse_member(incoming.take(BLOCK_BYTES))
            taken += BLOCK_BYTES
            if member is None:
                break
            if member.is_pax:
                if extended_size is not None:
                    raise InvalidRequest("two extended headers for one member of the tar stream")
                extended = parse_pax(incoming.take(member.size))
                incoming.take(padding(member.size))
                taken += member.size + padding(member.size)
                extended_size = -1 if extended is None else extended
                continue
            size = member.size if extended_size in (None, -1) else extended_size
            assert size is not None
            extended_size = None
            checksum, kind = parse_object(member.name)
            self.staging.add(checksum, kind, size, incoming.pieces(size))
            incoming.take(padding(size))
            taken += size + padding(size)
        if extended_size is not None:
            raise InvalidRequest("the tar stream ends after an extended header")
        if incoming.take(BLOCK_BYTES) != _ZEROS:
            raise InvalidRequest("the tar stream has no end")
        incoming.take(-(taken + BLOCK_BYTES) % RECORD_BYTES)

    def store(self) -> None:
        """Store it; see ``store/ostree/storing.py``.

        Raises:
            MillpondError: it cannot be.
            OSError: the disk is full, or fails.
        """
        self._push.store()

    def close(self) -> None:
        """Leave nothing behind but what was stored."""
        self.staging.close()
