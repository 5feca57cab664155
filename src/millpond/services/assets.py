"""Remote assets: names of blobs and of directories, and when they are true.

The rule: a name is the commit point of an artifact. It is written only when its closure is held and durable (I2), and
answered only while it is whole; a broken one is a miss. One exception: a *foreign* name, none of whose blobs is held
here, is kept without a check, because a full server may serve as somebody's index only (their blobs live elsewhere).
It is not an exception for whoever was told "no room" a moment ago: the store remembers what it refused. Nor is it one for
BuildStream 1, whose clients keep names and blobs in one place only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import (
    BlobNotFound,
    IncompleteClosure,
    InvalidRequest,
    NameNotFound,
    TooMuch,
    WouldBlock,
)
from millpond.core.names import ARTIFACT_URN, REFERENCE_URN, Name, Namespace, asset_key
from millpond.core.outcome import Outcome
from millpond.names.binding import Binding
from millpond.services import closure
from millpond.services.cache import Cache
from millpond.services.joint_promises import LatePromise
from millpond.store.interface import Footprint, KnownClosure

Qualifiers = Sequence[tuple[str, str]]

_TRIES = 3
"""How often a push looks again when eviction took a blob between its walk and its last look."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A fetched asset: the URI that matched and what it is bound to."""

    uri: str
    binding: Binding


class AssetPush(NamedTuple):
    """What a push says."""

    uris: Sequence[str]
    digest: Digest
    qualifiers: Qualifiers = ()
    blobs: Sequence[Digest] = ()
    directories: Sequence[Digest] = ()
    expires_at_ms: int | None = None
    message: bytes = b""
    """What to keep beside the digest: see ``Binding``."""
    foreign: bool = True
    """Whether its blobs may live elsewhere."""
    overwrite: bool = True
    """Whether a name that is bound already is bound anew."""


def check_request(uris: Sequence[str], qualifiers: Qualifiers) -> None:
    """Refuse what can never be a name.

    Raises:
        InvalidRequest: no URI, or one that is empty, too long or there twice; qualifiers likewise.
    """
    if not uris:
        raise InvalidRequest("name at least one URI")
    if len(uris) > limits.URIS or len(qualifiers) > limits.QUALIFIERS:
        raise InvalidRequest(f"at most {limits.URIS} URIs and {limits.QUALIFIERS} qualifiers in one request")
    if any(not uri or len(uri) > limits.URI_CHARS or "\0" in uri for uri in uris):
        raise InvalidRequest(f"a URI has 1 to {limits.URI_CHARS} characters, none of them NUL")
    names = [name for name, _ in qualifiers]
    if len(set(names)) != len(names):
        raise InvalidRequest("a qualifier is named twice")
    if any(not name or len(name) + len(value) > limits.URI_CHARS or "\0" in name + value for name, value in qualifiers):
        raise InvalidRequest(f"a qualifier has a name and at most {limits.URI_CHARS} characters, none of them NUL")


def fetch(
    cache: Cache,
    instance: str,
    namespace: Namespace,
    uris: Sequence[str],
    qualifiers: Qualifiers,
    *,
    oldest_ms: int | None,
    wait: bool,
) -> Asset:
    """The first of ``uris`` that is bound, fresh and whole; all that it needs is promised.

    What was pushed before ``oldest_ms`` is not acceptable (``oldest_content_accepted``).

    Raises:
        NameNotFound: none is.
        WouldBlock: ``wait`` is False and a closure must be walked.
    """
    check_request(uris, qualifiers)
    now = cache.clock()
    for uri in uris:
        name = Name(instance, namespace, asset_key(uri, qualifiers))
        try:
            binding = cache.names.resolve(name)
        except NameNotFound:
            continue
        expired = binding.expires_at_ms is not None and binding.expires_at_ms <= now
        too_old = oldest_ms is not None and binding.pushed_at_ms < oldest_ms
        if not expired and not too_old and _whole(cache, name, binding, now, wait=wait):
            return Asset(uri, binding)
    raise NameNotFound("this cache does not have what was asked for, or no longer all of it")


def _whole(cache: Cache, name: Name, binding: Binding, now_ms: int, *, wait: bool) -> bool:
    if cache.index_only or binding.foreign:
        return True
    if cache.closures.intact(name.row, binding.stamp, wait=wait):
        return True
    try:
        # Not leased: no push would end that, and half of a small cache could not go for an hour.
        _, footprint = _held_and_durable(cache, name.namespace, name.key, binding, leases=False, wait=wait)
    except (IncompleteClosure, BlobNotFound, InvalidRequest, TooMuch):
        return False
    cache.closures.remember([KnownClosure(name.row, binding.stamp, footprint, now_ms)])
    return True


class PendingPush:
    """A push whose names are on their way to the disk. Hold it until :attr:`bound` is done, then :func:`finish` it."""

    def __init__(
        self,
        cache: Cache,
        names: Sequence[Name],
        binding: Binding,
        footprint: Footprint | None = None,
        *,
        late: LatePromise | None = None,
        overwrite: bool = True,
    ) -> None:
        """``footprint``: where its closure lies, which is promised and durable. ``late``: instead, what is to be promised."""
        self.cache = cache
        self._names = names
        self._binding = binding
        self._footprint = footprint
        self._late = late
        self.bound: Outcome[None] = cache.names.bind_later(
            [(name, binding) for name in names], overwrite=overwrite, first=None if late is None else late.make
        )

    @property
    def known(self) -> list[KnownClosure]:
        """Where the closure of each of its names lies, if it is here."""
        footprint = self._footprint if self._late is None else self._late.footprint
        if footprint is None:
            return []
        # The clock was looked at before the closure was walked.
        stamp, promised_ms = self._binding.stamp, self._binding.pushed_at_ms
        return [KnownClosure(name.row, stamp, footprint, promised_ms) for name in self._names]


def begin_push(
    cache: Cache, instance: str, namespace: Namespace, request: AssetPush, *, pushed_by: str, wait: bool = True
) -> PendingPush:
    """Bind all URIs of ``request``, or none. Durable when the result is bound, with everything that they need (I2).

    Without ``wait`` what they need is promised with that of others, just before they are written together. Then WouldBlock
    is also what may come of it: something is missing, perhaps, or not durable yet. Begin again, and wait.

    Raises:
        InvalidRequest: a malformed request, or a blob that is not what its place in the closure says.
        IncompleteClosure: something it needs is not held.
        NoSpace: names hold their share of the quota, or the disk is full.
        WouldBlock: ``wait`` is False, and there is a tree to walk or a disk to wait for.
    """
    check_request(request.uris, request.qualifiers)
    if len(request.blobs) + len(request.directories) > limits.REFERENCES:
        raise InvalidRequest(f"at most {limits.REFERENCES} references in one push")
    now = cache.clock()
    names = [Name(instance, namespace, asset_key(uri, request.qualifiers)) for uri in dict.fromkeys(request.uris)]
    closure_bytes, footprint, late, foreign = 0, None, None, False
    if not cache.index_only and not wait:
        found = _unsettled(cache, names, request)
        closure_bytes, late = found.size_bytes, cache.promises.later(found.digests)
    elif not cache.index_only:
        try:
            found, footprint = _settled(cache, names, request)
            closure_bytes = found.size_bytes
        except IncompleteClosure:
            if not request.foreign or not _is_foreign(cache, names, request):
                raise
            foreign = True
    binding = Binding(
        digest=request.digest,
        pushed_at_ms=now,
        pushed_by=pushed_by,
        blobs=tuple(dict.fromkeys(request.blobs)),
        directories=tuple(dict.fromkeys(request.directories)),
        expires_at_ms=request.expires_at_ms,
        closure_bytes=closure_bytes,
        foreign=foreign,
        message=request.message,
    )
    return PendingPush(cache, names, binding, footprint, late=late, overwrite=request.overwrite)


def finish(pushes: Sequence[PendingPush]) -> None:
    """The names of these, all of one cache, are durable: note where their closures lie and end their blobs' leases."""
    known = [closure for push in pushes for closure in push.known]
    if known:
        pushes[0].cache.closures.remember(known, ends_leases=True)


def push(cache: Cache, instance: str, namespace: Namespace, request: AssetPush, *, pushed_by: str) -> None:
    """:func:`begin_push`, waited for."""
    pending = begin_push(cache, instance, namespace, request, pushed_by=pushed_by)
    pending.bound.result()
    finish([pending])


def _is_foreign(cache: Cache, names: Sequence[Name], request: AssetPush) -> bool:
    named = [digest for digest in (request.digest, *request.blobs, *request.directories) if digest != EMPTY]
    if not cache.foreign or not named or any(name.key.startswith(REFERENCE_URN) for name in names):
        return False
    return not cache.closures.holds_any(named) and not cache.closures.was_refused(named)


def _strictest(names: Sequence[Name]) -> str:
    """The key whose rule counts: artifacts alone may have holes in their optional trees."""
    return next((name.key for name in names if not name.key.startswith(ARTIFACT_URN)), names[0].key)


def _unsettled(cache: Cache, names: Sequence[Name], request: AssetPush) -> closure.Closure:
    """The closure, if it is known without a walk. Nobody knows yet whether it is held.

    Raises:
        WouldBlock: it is not.
    """
    try:
        return closure.without_trees(cache.blobs, names[0].namespace, _strictest(names), request)
    except IncompleteClosure:  # whether it is foreign then is no question for an event loop
        raise WouldBlock from None


def _settled(cache: Cache, names: Sequence[Name], request: AssetPush) -> tuple[closure.Closure, Footprint]:
    """The closure, held and durable; looked for anew when eviction took a blob between the walk and the last look."""
    for _ in range(_TRIES):
        try:
            return _held_and_durable(cache, names[0].namespace, _strictest(names), request, leases=True, wait=True)
        except BlobNotFound as gone:
            why = str(gone)
    raise IncompleteClosure(why)


def _held_and_durable(
    cache: Cache, namespace: Namespace, key: str, referring: closure.Referring, *, leases: bool, wait: bool
) -> tuple[closure.Closure, Footprint]:
    """Walk, promise and settle.

    Raises:
        BlobNotFound: eviction took a blob between the walk and the last look. And what both of these raise.
    """
    footprints: list[Footprint | None] = []

    def promise(digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:
        (promised,) = cache.closures.promise([digests], leases=leases, wait=wait)
        footprints.append(promised.footprint)
        return promised.missing

    found = closure.walk(cache.blobs, namespace, key, referring, promise=promise, wait=wait)
    if len(footprints) == 1 and footprints[0] is not None:
        return found, footprints[0]  # the look that promised all of it found it durable
    return found, cache.closures.settle(found.digests, wait=wait)
