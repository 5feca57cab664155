"""The one place that knows every part: opens a repository, stacks the parts and serves them."""

import asyncio
from collections.abc import Callable

import grpc

from millpond.config.settings import Listener, Settings
from millpond.config.tls import IdentityWatcher
from millpond.core.clock import wall_clock
from millpond.core.errors import RefusedToStart
from millpond.names.memory import MemoryNames
from millpond.services.access import Admission
from millpond.services.cache import Cache
from millpond.store.memory import MemoryStore
from millpond.wire.gate import Gate
from millpond.wire.server import Address, EdgeServer


async def serve(settings: Settings, *, worker: int, ready: Callable[[], None], stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set, then drain.

    Raises:
        RefusedToStart: the repository or an address cannot be used.
    """
    gate = Gate(lambda pem: "")
    server = EdgeServer(gate, index_only=settings.index_only)
    try:
        await server.start([_address(listener) for listener in settings.listeners])
    except RuntimeError:
        raise RefusedToStart("an address to listen on is in use or not of this machine") from None
    cache = Cache(MemoryStore(10**10), MemoryStore(10**10), MemoryNames(), wall_clock, index_only=settings.index_only)
    gate.open(Admission(cache, instances=settings.instances, push=settings.enable_push))
    await server.set_ready()
    ready()
    await stop.wait()
    await server.stop(settings.drain_seconds)


def _address(listener: Listener) -> Address:
    return Address(listener.address, None)
