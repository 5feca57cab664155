"""The one place that knows every part: opens a repository, stacks the parts and serves them."""

import asyncio
import functools
import logging
from collections.abc import Callable
from contextlib import ExitStack

from millpond.config.principals import AuthorizedClients
from millpond.config.settings import Settings, TlsFiles
from millpond.config.sizes import explicit_quota_bytes, format_size
from millpond.config.tls import IdentityWatcher
from millpond.config.tls_contexts import context_of
from millpond.core import limits
from millpond.core.clock import wall_clock
from millpond.core.errors import RefusedToStart
from millpond.names.lmdb_names import LmdbNames
from millpond.opening_names import open_names
from millpond.services.access import Admission
from millpond.services.cache import Cache
from millpond.sockets.places import Place, Tls
from millpond.store.read_only import ReadOnlyStore
from millpond.store.repository import filesystem
from millpond.store.repository.opening import OpenRepository, open_repository
from millpond.store.segment_store import SegmentStore
from millpond.wire.gate import Gate
from millpond.wire.server import EdgeServer

log = logging.getLogger(__name__)


async def serve(settings: Settings, *, worker: int, ready: Callable[[str], None], stop: asyncio.Event) -> None:  # noqa: ARG001
    """Serve until ``stop`` is set, then drain.

    Listens first and answers UNAVAILABLE while the repository is opened, which may take a rebuild.

    Raises:
        RefusedToStart: the repository or an address cannot be used.
    """
    tls = {files: _tls(files) for files in {one.tls for one in settings.listeners} if files is not None}
    gate = Gate()
    server = EdgeServer(gate, index_only=settings.index_only)
    try:
        server.start([Place(one.host, one.port, tls[one.tls] if one.tls else None) for one in settings.listeners])
    except OSError:
        raise RefusedToStart("an address to listen on is in use or not one of this machine") from None
    quota: list[str] = []
    with ExitStack() as opened:
        cache = await asyncio.to_thread(_open, settings, opened, quota.append)
        gate.open(Admission(cache, instances=settings.instances, push=settings.enable_push))
        await server.set_ready()
        ready(*quota)
        await stop.wait()
        await server.stop(settings.drain_seconds)
        await asyncio.to_thread(opened.close)


def _open(settings: Settings, opened: ExitStack, tell_quota: Callable[[str], None] = lambda _: None) -> Cache:
    """The parts of a cache, stacked; ``opened`` takes them apart again. ``tell_quota`` hears it in words."""
    repository = open_repository(settings.repo, quota_bytes=functools.partial(explicit_quota_bytes, settings.quota))
    opened.callback(repository.close)
    if repository.read_only and settings.enable_push:
        raise RefusedToStart(f"{settings.repo} can only be read here: serve it without push")
    names = open_names(repository.layout, read_only=repository.read_only)
    opened.callback(names.close)
    store = _store(settings, repository, names, tell_quota)
    opened.callback(store.close)
    return Cache(
        blobs=store,
        closures=store,
        names=names,
        clock=wall_clock,
        index_only=settings.index_only,
        foreign=settings.foreign,
        counts=store.counts,
    )


def _store(
    settings: Settings, repository: OpenRepository, names: LmdbNames, tell_quota: Callable[[str], None]
) -> SegmentStore | ReadOnlyStore:
    if repository.read_only:
        tell_quota("none (it can only be read here)")
        return ReadOnlyStore(repository.layout, repository.index)
    quota_bytes = repository.quota_bytes  # asked once: without a stored quota it is measured
    kept = "kept from before" if "quota_bytes" in repository.marker else "nine tenths of the free space"
    tell_quota(f"{format_size(quota_bytes)} ({kept if settings.quota is None else 'set here'})")
    return SegmentStore(
        repository.layout,
        repository.index,
        reserve_bytes=settings.reserve_bytes(filesystem.size_bytes(repository.layout.root)),
        head_room_max_bytes=settings.head_room_max_bytes,
        upkeep_seconds=limits.UPKEEP_SECONDS,
        take_numbers=names.take_numbers,
        clock=wall_clock,
    )


def _tls(files: TlsFiles) -> Tls:
    """How listeners with these keys encrypt, by the keys of the moment, and whom they let in."""
    watcher = IdentityWatcher(files)
    context = functools.lru_cache(maxsize=2)(functools.partial(context_of, protocol="h2"))
    identify = AuthorizedClients(watcher.current).identify if files.client_certs is not None else None
    return Tls(lambda: context(watcher.current()), identify)
