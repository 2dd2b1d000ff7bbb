"""Servers, channels, deadlines, the one retry."""

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio

from elasticdl.errors import Retryable
from elasticdl.wire import elasticdl_pb2_grpc

DEADLINE_S = 10.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.1  # a new master's locator is seen within that time
_LATE = grpc.StatusCode.DEADLINE_EXCEEDED

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
    """Calls the master, and the next one where that one is gone.

    Every call has a deadline; a call that could not be delivered is repeated until then, so every
    method of the master must bear arriving twice. Safe for use by several threads.

    Args:
        where: the master's address, host:port; or the path of a locator, a file that each new
            master replaces (see `write_locator`).

    Attributes:
        address: of the master that is called; empty while none is known.
        term: its number; a master of a lower one is never gone back to.
    """

    def __init__(self, where: str) -> None:
        self._locator = where if os.sep in where else ""
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self.address = ""
        self.term = 0
        if self._locator:
            self._look()
        else:
            self._connect(where, 0)

    def call(self, method: str, request: Any, *, deadline_s: float = DEADLINE_S) -> Any:
        """The reply of the master's `method`.

        Raises:
            Unreachable: there was none within `deadline_s` seconds.
            grpc.RpcError: the master failed at it.
        """
        end = time.monotonic() + deadline_s
        pause = _FIRST_PAUSE_S
        while True:
            left = end - time.monotonic()
            stub = self._stub
            if stub is not None:
                try:
                    return getattr(stub, method)(request, timeout=max(left, 0.001))
                except (grpc.RpcError, ValueError) as error:
                    # A channel that another thread has closed says so by ValueError.
                    late = not isinstance(error, ValueError) and error.code() == _LATE
                    if not _is_passing(error):
                        raise
                    if late or left <= pause:
                        raise self._unreachable(method) from error
            elif left <= pause:
                raise self._unreachable(method)
            if self._look():
                pause = _FIRST_PAUSE_S
                continue
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def follow(self, method: str, request: Any) -> "Stream":
        """The messages of the master's streaming `method`, as they come.

        Raises:
            Unreachable: there is no master.
        """
        self._look()
        stub = self._stub
        if stub is None:
            raise self._unreachable(method)
        return Stream(getattr(stub, method)(request), self._unreachable(method))

    def close(self) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.close()

    def _unreachable(self, method: str) -> Unreachable:
        return Unreachable(f"{method}: no answer from {self.address or 'any master'}")

    def _look(self) -> bool:
        """Reads the locator; whether there is another master than before."""
        if not self._locator:
            return False
        try:
            with open(self._locator, encoding="utf-8") as file:
                content = json.load(file)
            address, term = str(content["address"]), int(content["term"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        with self._lock:
            if address == self.address or term < self.term:
                return False
            self._connect(address, term)
            return True

    def _connect(self, address: str, term: int) -> None:
        # The old channel is left to calls that still run on it; they fail by themselves.
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = elasticdl_pb2_grpc.MasterStub(self._channel)
        self.address, self.term = address, term


class Stream:
    """The messages of one streaming call; ends when the master has no more.

    Iterating raises `Unreachable` when the stream breaks, or was cancelled.
    """

    def __init__(self, call: Any, broken: Unreachable) -> None:
        self._call = call
        self._broken = broken

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise self._broken from error

    def cancel(self) -> None:
        """Ends it, from any thread."""
        self._call.cancel()


def write_locator(path: str, address: str, term: int) -> None:
    """Says where the master is: in place of an older one, whole.

    Raises:
        OSError: the system refuses.
    """
    aside = f"{path}.{os.getpid()}"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump({"address": address, "term": term}, file)
    os.replace(aside, path)


def _is_passing(error: Exception) -> bool:
    """Whether the same call may succeed, at the same master or the next one."""
    return isinstance(error, ValueError) or error.code() in (  # type: ignore[attr-defined]
        _LATE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
    )


async def serve(servicer: Any, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, str]:
    """A running server of `servicer`'s methods, and its address (host:port)."""
    server = grpc.aio.server(options=(*_OPTIONS, ("grpc.so_reuseport", 0)))
    elasticdl_pb2_grpc.add_MasterServicer_to_server(servicer, server)
    host = address.rpartition(":")[0]
    port = server.add_insecure_port(address)
    await server.start()
    return server, f"{host}:{port}"
