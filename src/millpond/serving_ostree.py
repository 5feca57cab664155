"""Puts together what serves an OSTree repository over HTTP: a process of its own beside the workers, or alone.

The rule: no gRPC, no LMDB, and nothing of the cache. What is served here is a directory that nginx and ``ostree`` could
serve as well; a failure on either side does not touch the other.
"""

import asyncio
import functools
import logging
from collections.abc import Callable

from millpond.config.principals import AuthorizedClients
from millpond.config.settings import Listener, Settings
from millpond.config.tls import IdentityWatcher
from millpond.config.tls_contexts import context_of
from millpond.core.clock import wall_clock
from millpond.core.errors import RefusedToStart
from millpond.sockets.places import Place, Tls
from millpond.store.ostree.published import Published
from millpond.store.ostree.repository import open_repository
from millpond.store.ostree.uses import Uses

log = logging.getLogger(__name__)

NEEDS_THE_EXTRA = "an OSTree repository is served with the package h11: install it with pip install 'millpond[web]'"


async def serve(settings: Settings, *, worker: int, ready: Callable[[str], None], stop: asyncio.Event) -> None:  # noqa: ARG001
    """Serve until ``stop`` is set, then drain.

    Raises:
        RefusedToStart: the repository or an address cannot be used, or h11 is not installed.
    """
    try:
        from millpond.web.http_server import HttpServer
        from millpond.web.ostree import OstreeHandler
        from millpond.web.pulls import Pulls
    except ModuleNotFoundError:
        raise RefusedToStart(NEEDS_THE_EXTRA) from None

    def place(listener: Listener) -> Place:
        if listener.tls is None:
            return Place(listener.host, listener.port, None)
        watcher = IdentityWatcher(listener.tls)
        context = functools.lru_cache(maxsize=2)(functools.partial(context_of, protocol="http/1.1"))
        identify = AuthorizedClients(watcher.current).identify if listener.tls.client_certs else None
        return Place(listener.host, listener.port, Tls(lambda: context(watcher.current()), identify))

    assert settings.ostree is not None
    root = str(settings.ostree.repo)
    published = await asyncio.to_thread(Published, root)
    repository = await asyncio.to_thread(open_repository, root)
    await asyncio.to_thread(repository.heal)
    uses = Uses(root)
    handler = OstreeHandler(
        published,
        settings.ostree.prefix,
        pulls=Pulls(lambda commit: uses.note(commit, wall_clock())),
        before_summary=repository.heal,
    )
    server = HttpServer(handler)
    try:
        server.start([place(listener) for listener in settings.ostree.listeners])
    except OSError:
        raise RefusedToStart("an address to listen on is in use or not one of this machine") from None
    ready("")
    await stop.wait()
    await server.stop(settings.drain_seconds)
