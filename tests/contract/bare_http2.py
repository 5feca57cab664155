"""A peer that speaks HTTP/2 as a test likes it: by ``ngh2``, without what a gRPC client would do by itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import ngh2

Fields = list[tuple[bytes, bytes]]
_SECONDS = 20.0


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4) + message


class BarePeer:
    """A connection and what came on it. Windows are opened by hand: ``peer.h2.acknowledge_received_data``."""

    def __init__(self, port: int, *, auto_window_update: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
        self.h2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=auto_window_update))
        self.h2.initiate_connection()
        self.events: list[ngh2.Event] = []
        self.flush()

    def __enter__(self) -> BarePeer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def begin(self, path: str, *, end: bool = False, method: bytes = b"POST", fields: Sequence[tuple[bytes, bytes]] = (),
              content_type: bytes = b"application/grpc") -> int:  # fmt: skip
        """Open a call; its stream."""
        headers: Fields = [(b":method", method), (b":scheme", b"http"), (b":authority", b"pond")]
        headers += [(b":path", path.encode()), (b"content-type", content_type), (b"te", b"trailers"), *fields]
        stream = self.h2.send_request(headers, end_stream=end)
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def call(self, path: str, message: bytes = b"", **more: object) -> int:
        """A whole request with one message; its stream."""
        stream = self.begin(path, **more)  # type: ignore[arg-type]
        self.send(stream, framed(message), end=True)
        return stream

    def until(self, what: Callable[[], bool], seconds: float = _SECONDS) -> bool:
        """Receive until ``what``; False when the server hung up or the time is over before."""
        deadline = time.monotonic() + seconds
        while not what():
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self.socket.recv(65536)
            except (TimeoutError, ConnectionResetError):
                return what()
            if not data:
                return what()
            self.h2.receive_data(data)
            self.events += self.h2.events()
            self.flush()
        return True

    def of(self, stream: int, kind: type[ngh2.Event]) -> list[ngh2.Event]:
        return [event for event in self.events if isinstance(event, kind) and event.stream_id == stream]  # type: ignore[attr-defined]

    def fields(self, stream: int) -> dict[bytes, bytes]:
        """All header fields of an answer, those at its end included."""
        self.until(lambda: bool(self.of(stream, ngh2.StreamClosed)))
        told: dict[bytes, bytes] = {}
        for event in [*self.of(stream, ngh2.ResponseReceived), *self.of(stream, ngh2.TrailersReceived)]:
            told |= dict(event.headers)  # type: ignore[attr-defined]
        return told

    def data(self, stream: int) -> bytes:
        return b"".join(event.data for event in self.of(stream, ngh2.DataReceived))  # type: ignore[attr-defined]

    def is_cut(self, seconds: float = _SECONDS) -> bool:
        """Whether the server hangs up."""
        deadline = time.monotonic() + seconds
        self.socket.settimeout(seconds)
        try:
            while time.monotonic() < deadline:
                if not self.socket.recv(65536):
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        return False
