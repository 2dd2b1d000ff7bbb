"""Servers, channels, deadlines, the one retry."""

import time
from typing import Any

import grpc
import grpc.aio

from elasticdl.errors import Retryable
from elasticdl.wire import elasticdl_pb2_grpc

DEADLINE_S = 10.0

_OPTIONS = (
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 256 << 20),
    # A peer that is gone is noticed, and one that is back is found, within a fraction of a second.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Control never leaves for a proxy that the user's environment names.
    ("grpc.enable_http_proxy", 0),
)


class Unreachable(Retryable):
    """The master did not answer in time."""


class Client:
    """Calls the master. Every call has a deadline; a call that could not be delivered is retried
    until then, so every method of the master must bear arriving twice.

    Safe for use by several threads.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = elasticdl_pb2_grpc.MasterStub(self._channel)

    def call(self, method: str, request: Any, *, deadline_s: float = DEADLINE_S) -> Any:
        """The reply of the master's `method`.

        Raises:
            Unreachable: there was none within `deadline_s` seconds.
            grpc.RpcError: the master failed at it.
        """
        end = time.monotonic() + deadline_s
        pause = 0.05
        while True:
            left = end - time.monotonic()
            try:
                return getattr(self._stub, method)(request, timeout=max(left, 0.001))
            except grpc.RpcError as error:
                code = error.code()
                if code not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                    raise
                if code == grpc.StatusCode.DEADLINE_EXCEEDED or left <= pause:
                    raise Unreachable(f"{method}: no answer from {self.address}") from error
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def close(self) -> None:
        self._channel.close()


async def serve(servicer: Any, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, str]:
    """A running server of `servicer`'s methods, and its address (host:port)."""
    server = grpc.aio.server(options=(*_OPTIONS, ("grpc.so_reuseport", 0)))
    elasticdl_pb2_grpc.add_MasterServicer_to_server(servicer, server)
    host = address.rpartition(":")[0]
    port = server.add_insecure_port(address)
    await server.start()
    return server, f"{host}:{port}"
