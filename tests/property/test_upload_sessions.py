"""Upload sessions against a model: whatever clients do to two sessions of one blob, the store holds only what is true.

The receiving half of the wire runs as it is, over the reference store in memory; the model is a few lines.
"""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import DigestMismatch, InvalidRequest
from millpond.names.memory import MemoryNames
from millpond.services.cache import Cache
from millpond.services.writing import Writer
from millpond.store.memory import MemoryStore
from millpond.wire.calling import Caller
from millpond.wire.layout import WriteMessage
from millpond.wire.receiving import Receiver

BLOB = bytes(range(256)) * 4096 * 2 + b"the end"
DIGEST = Digest.of(BLOB)
CUTS = [0, 1, 1000, limits.MIB - 1, limits.MIB, limits.MIB + 1, len(BLOB) - 1, len(BLOB)]
assert len(BLOB) > limits.IN_MEMORY_UPLOAD_BYTES

sessions = st.sampled_from(["uploads/one", "uploads/two"])
cuts = st.sampled_from(CUTS)


class Stream:
    """An open Write, and what the model knows of it."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.begun = False
        self.sent = b""


class Uploads(RuleBasedStateMachine):
    """At most one open stream per session, as long as clients are sane; they say anything."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(10**9)
        cache = Cache(blobs=self.store, closures=self.store, names=MemoryNames(), clock=lambda: 0)
        self.writer = Writer(cache, "", "")
        self.caller = Caller()
        self.loop = asyncio.new_event_loop()
        self.streams: dict[str, Stream] = {}
        self.kept: dict[str, bytes] = {}
        self.stored = False

    def teardown(self) -> None:
        self.caller.close()
        self.loop.close()

    @rule(session=sessions)
    def open(self, session: str) -> None:
        """A new Write; one that was open under this name has lost its connection."""
        self.suspend(session)
        self.streams[session] = Stream(Receiver(self.writer, DIGEST, session, self.caller))

    @rule(session=sessions)
    def suspend(self, session: str) -> None:
        """The connection breaks."""
        stream = self.streams.pop(session, None)
        if stream is not None:
            self.loop.run_until_complete(stream.receiver.suspend())
            if stream.begun:
                self.kept[session] = stream.sent

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), truthful=st.booleans(), finish=st.booleans(), length=cuts, lie=st.sampled_from([b"", b"!"]))
    def send(self, data: st.DataObject, truthful: bool, finish: bool, length: int, lie: bytes) -> None:
        """A message, right or wrong."""
        session = data.draw(st.sampled_from(sorted(self.streams)))
        stream = self.streams[session]
        at = len(stream.sent) if stream.begun else self.store.upload_offset(session)
        offset = at if truthful else data.draw(cuts)
        named = data.draw(st.sampled_from(["", session] if truthful else ["", session, "uploads/three"]))
        bytes_ = BLOB[at : at + length] + lie
        before = stream.sent if stream.begun else (self.kept.get(session, b"") if offset else b"")

        fits = offset == len(before) and (not stream.begun or named in ("", session))
        whole = before + bytes_
        expected: object = False
        if not fits:
            expected = InvalidRequest
        elif len(whole) > len(BLOB) or (finish and whole != BLOB):
            expected = DigestMismatch
        elif finish:
            expected = True

        message = WriteMessage(named, offset, finish, bytes_)
        try:
            outcome: object = self.loop.run_until_complete(stream.receiver.accept(message))
        except InvalidRequest as refusal:
            outcome = type(refusal)
            self.loop.run_until_complete(stream.receiver.abandon())
        assert outcome is expected

        if fits and not stream.begun:
            stream.begun, self.kept[session] = True, b""
        if outcome is False:
            stream.sent = whole
        else:
            del self.streams[session]
            self.stored = self.stored or outcome is True
            if offset == 0 and fits:
                self.kept.pop(session, None)

    @invariant()
    def only_the_true_blob_is_held(self) -> None:
        assert self.store.find_missing([DIGEST]) == ([] if self.stored else [DIGEST])
        assert self.store.read_many([DIGEST]) == [BLOB if self.stored else None]

    @invariant()
    def where_an_upload_goes_on_is_where_it_broke(self) -> None:
        for session, kept in self.kept.items():
            if session not in self.streams or not self.streams[session].begun:
                assert self.store.upload_offset(session) == len(kept)


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
