"""The real server in this process: every part as ``millpond.app`` stacks them, one worker, a free port on loopback."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from millpond import app
from millpond.config.settings import Settings
from millpond.config.sizes import Quota
from millpond.services.access import Admission
from millpond.services.cache import Cache
from millpond.sockets.places import Place
from millpond.wire.gate import Gate
from millpond.wire.server import EdgeServer

QUOTA_BYTES = 2_000_000_000
INSTANCE = "team/a"
"""Served beside the empty one."""
_SECONDS = 30


class LoopbackServer:
    """Serves ``repo`` from a thread until it is stopped. ``cache`` is what stands behind the wire."""

    cache: Cache
    port: int

    def __init__(
        self,
        repo: Path,
        *,
        push: bool = True,
        index_only: bool = False,
        foreign: bool = True,
        instances: tuple[str, ...] = ("", INSTANCE),
        quota_bytes: int = QUOTA_BYTES,
    ) -> None:
        self.repo = repo
        self._settings = Settings(
            repo=repo,
            listeners=(),
            instances=instances,
            enable_push=push,
            index_only=index_only,
            foreign=foreign,
            quota=Quota(quota_bytes),
        )
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._ready = threading.Event()
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loopback-server", daemon=True)
        self._thread.start()
        assert self._ready.wait(_SECONDS)
        if self._trouble is not None:
            raise self._trouble

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive()
        if self._trouble is not None:
            raise self._trouble

    def __enter__(self) -> LoopbackServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as trouble:
            self._trouble = trouble
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        with ExitStack() as opened:
            self.cache = app._open(self._settings, opened)
            gate = Gate()
            gate.open(Admission(self.cache, instances=self._settings.instances, push=self._settings.enable_push))
            server = self._edge = EdgeServer(gate, index_only=self._settings.index_only)
            (self.port,) = server.start([Place("127.0.0.1", 0, None)])
            await server.set_ready()
            self._ready.set()
            await self._stop.wait()
            await server.stop(0.2)

    def connections(self) -> list[Any]:
        """The connections of this moment."""
        return list(self._edge._shared.connections)

    def look(self) -> None:
        """As if ``limits.UPLOAD_STALL_SECONDS`` / 2 had passed."""

        async def look() -> None:
            for connection in self.connections():
                connection.look()

        asyncio.run_coroutine_threadsafe(look(), self._loop).result(_SECONDS)
