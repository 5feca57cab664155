"""How the event loop calls blocking services (I11).

Short work is done on the loop with ``wait=False``; what would block, or is too much, goes to a bounded pool of threads.
Readers and writers have a pool each, so that pushes which wait for a disk never stall a pull. Work that is all
computation has a pool of one: Python threads that compute at the same time only take the interpreter from each other,
and together they take longer than in turn.
"""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from google.protobuf.message import DecodeError, Message

from millpond.core.errors import InvalidRequest, WouldBlock
from millpond.services import assets
from millpond.services.assets import PendingPush
from millpond.wire.prompt import Prompt

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Message)

_READERS = 16
_STORERS = 2
"""Batches that are verified and stored at once: hashing lets go of the interpreter, the rest does not."""
_WRITERS = 32
"""Pushes spend their time waiting for a disk's sync, which many of them then share."""


class _Finishing:
    """Finishes pushes on the loop, all that one transaction made durable at once.

    A caller that goes away leaves the transaction to those who share it, and its push is finished all the same.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._durable: list[tuple[PendingPush, Prompt]] = []

    async def through(self, push: PendingPush) -> None:
        """Wait until it is durable and finished.

        Raises:
            NoSpace, NotReady: it was not written.
        """
        # asyncio.wrap_future would wake the loop for each of them.
        loop = asyncio.get_running_loop()
        bound = Prompt(loop=loop)

        def tell() -> None:
            with self._guard:
                self._durable.append((push, bound))
                is_first = len(self._durable) == 1
            if is_first:
                with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                    loop.call_soon_threadsafe(self._finish)

        push.bound.when_done(tell)
        await bound
        push.bound.result()

    def _finish(self) -> None:
        with self._guard:
            durable, self._durable = self._durable, []
        try:
            assets.finish([push for push, _ in durable if push.bound.exception() is None])
        finally:
            for _, bound in durable:
                bound.happen()


class Caller:
    """Runs service methods for handlers."""

    def __init__(self) -> None:
        self._finishing = _Finishing()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._thinker = ThreadPoolExecutor(1, thread_name_prefix="think")
        self._storers = ThreadPoolExecutor(_STORERS, thread_name_prefix="store")
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")

    async def reading(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``call`` in a reader thread."""
        work = functools.partial(call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def computing(self, call: Callable[..., T], *args: Any) -> T:
        """``call`` where much is computed, one at a time; in a reader thread if it must block after all."""
        work = functools.partial(call, *args, wait=False)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thinker, work)
        except WouldBlock:
            return await self.reading(functools.partial(call, *args, wait=True))

    async def storing(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``call`` in one of the few threads that verify and store batches."""
        work = functools.partial(call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._storers, work)

    async def writing(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``call`` in a writer thread.

        A caller that is cancelled waits for it as well: a thread cannot be stopped in the middle of a file, and what
        the caller does to that file next must not meet it there.
        """
        work = functools.partial(call, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(self._writers, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # has been looked at
            raise

    async def briefly(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``call`` on the loop if it does not block, else in a reader thread."""
        try:
            return call(*args, **kwargs, wait=False)
        except WouldBlock:
            return await self.reading(call, *args, **kwargs, wait=True)

    async def pushing(self, begin: Callable[..., PendingPush], *args: Any) -> None:
        """Begin a push, in a writer thread if that must block, and see it through until it is durable.

        Raises:
            NoSpace, NotReady: it was not written; and whatever ``begin`` raises.
        """
        try:
            await self._finishing.through(begin(*args, wait=False))
        except WouldBlock:
            await self._finishing.through(await self.writing(begin, *args, wait=True))

    def close(self) -> None:
        """Let running calls end; start no more."""
        for pool in (self._readers, self._thinker, self._storers, self._writers):
            pool.shutdown(wait=False, cancel_futures=True)


def decode(message: type[M], raw: bytes) -> M:
    """``raw`` as a message.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        return message.FromString(raw)
    except DecodeError:
        raise InvalidRequest(f"the request is not a {message.DESCRIPTOR.full_name}") from None
