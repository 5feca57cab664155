"""The one place that knows every part: opens a repository, stacks the parts and serves them."""

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import grpc

from millpond.config.principals import AuthorizedClients
from millpond.config.settings import Listener, Settings, TlsFiles
from millpond.config.sizes import explicit_quota_bytes, format_size
from millpond.config.tls import IdentityWatcher, ServerIdentity
from millpond.core import limits
from millpond.core.clock import wall_clock
from millpond.core.errors import RefusedToStart
from millpond.names.lmdb_names import LmdbNames
from millpond.opening_names import open_names
from millpond.services.access import Admission
from millpond.services.cache import Cache
from millpond.store.read_only import ReadOnlyStore
from millpond.store.repository import filesystem
from millpond.store.repository.opening import OpenRepository, open_repository
from millpond.store.segment_store import SegmentStore
from millpond.wire.gate import Gate
from millpond.wire.server import Address, EdgeServer

log = logging.getLogger(__name__)


async def serve(settings: Settings, *, worker: int, ready: Callable[[str], None], stop: asyncio.Event) -> None:  # noqa: ARG001
    """Serve until ``stop`` is set, then drain.

    Listens first and answers UNAVAILABLE while the repository is opened, which may take a rebuild.

    Raises:
        RefusedToStart: the repository or an address cannot be used.
    """
    listeners = settings.listeners
    watchers = {files: IdentityWatcher(files) for files in {one.tls for one in listeners} if files is not None}
    gate = Gate(_identify(listeners, watchers))
    server = EdgeServer(gate, index_only=settings.index_only)
    try:
        await server.start([_address(listener, watchers) for listener in listeners])
    except RuntimeError:
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


def _identify(
    listeners: Sequence[Listener], watchers: Mapping[TlsFiles, IdentityWatcher]
) -> Callable[[bytes], str] | None:
    """Who gets in by which certificates; None when no listener asks for any."""
    asking = {files.client_certs: watcher for files, watcher in watchers.items() if files.client_certs is not None}
    if not asking:
        return None
    if len(asking) > 1:  # an RPC does not say by which listener it came
        raise RefusedToStart("the addresses that ask for client certificates must share one file of them")
    (watcher,) = asking.values()
    anonymous = any(one.tls is None or one.tls.client_certs is None for one in listeners)
    return AuthorizedClients(watcher.current, anonymous=anonymous).identify


def _address(listener: Listener, watchers: Mapping[TlsFiles, IdentityWatcher]) -> Address:
    """Where to listen. Keys are looked at again at every handshake, so that a new or revoked one counts at once."""
    if listener.tls is None:
        return Address(listener.address, None)
    watcher = watchers[listener.tls]
    given = watcher.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # None: nothing new. Whatever gRPC is given it parses, which is the better part of a millisecond per connection.
        nonlocal given
        if (newest := watcher.current()) is given:
            return None
        given = newest
        return _configuration(newest)

    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(given), changed, require_client_authentication=listener.tls.client_certs is not None
    )
    return Address(listener.address, credentials)


def _configuration(identity: ServerIdentity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.private_key_pem, identity.certificate_chain_pem)], root_certificates=identity.client_roots_pem
    )
