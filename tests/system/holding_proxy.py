"""A gRPC proxy that can hold calls of one method back: a client that is slow at just the wrong moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

HOLD_SECONDS = 600
"""For this long at most, so that a test which failed does not hang."""
_THREADS = 64


class HoldingProxy(grpc.GenericRpcHandler):
    """Forwards every call to ``target``; those of ``held`` that follow one of ``after`` wait until :meth:`release`."""

    def __init__(self, target: str, *, held: str, after: str) -> None:
        self._held = held
        self._after = after
        self._released = threading.Event()
        self.holding = threading.Event()
        """Set as soon as a call waits."""
        self.seen: list[str] = []
        """The names of all methods that were called, in order."""
        self._channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
        unbounded = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(futures.ThreadPoolExecutor(_THREADS), handlers=[self], options=unbounded)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method

        def forward(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self.seen.append(method.rpartition("/")[2])
            if self.seen[-1] == self._held and self._after in self.seen and not self._released.is_set():
                self.holding.set()
                self._released.wait(HOLD_SECONDS)
            call = self._channel.stream_stream(method)(requests, metadata=context.invocation_metadata())
            context.add_callback(call.cancel)
            try:
                yield from call
            except grpc.RpcError as why:
                context.set_trailing_metadata(call.trailing_metadata() or ())
                context.abort(why.code(), why.details() or "")

        return grpc.stream_stream_rpc_method_handler(forward)

    def release(self) -> None:
        """Let go on what waits, and hold nothing back any more."""
        self._released.set()

    def close(self) -> None:
        self.release()
        self._server.stop(1).wait()
        self._channel.close()
