"""Servers, channels, deadlines, the one retry."""

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from elasticdl.errors import Retryable
from elasticdl.wire import elasticdl_pb2_grpc

DEADLINE_S = 10.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.1
_LOOK_S = 0.1  # a call that waits sees within that time that there is another master

# The same call may succeed, at the same master or the next one.
_PASSING = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
)

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


@dataclass(frozen=True)
class _Master:
    """One master, and the way to it."""

    address: str
    term: int
    channel: grpc.Channel
    stub: Any

    @classmethod
    def at(cls, address: str, term: int) -> "_Master":
        channel = grpc.insecure_channel(address, options=_OPTIONS)
        return cls(address, term, channel, elasticdl_pb2_grpc.MasterStub(channel))


class Client:
    """Calls the master, and the next one as soon as there is one.

    Every call has a deadline; a call that could not be delivered, or that an earlier master has not
    answered, is repeated until then, so every method of the master must bear arriving twice.
    Safe for use by several threads.

    Args:
        where: the master's address, host:port; or the path of a locator, a file that each new
            master replaces (see `write_locator`).
    """

    def __init__(self, where: str) -> None:
        self._locator = where if os.sep in where else ""
        self._lock = threading.Lock()
        self._closed = False
        self._master = None if self._locator else _Master.at(where, 0)
        self._look()

    @property
    def address(self) -> str:
        """The present master's; empty while none is known."""
        return self._master.address if self._master else ""

    @property
    def term(self) -> int:
        """The present master's number; a master of a lower one is never gone back to."""
        return self._master.term if self._master else 0

    def call(self, method: str, request: Any, *, deadline_s: float = DEADLINE_S) -> Any:
        """The reply of the master's `method`.

        Raises:
            Unreachable: there was none within `deadline_s` seconds, or the client is closed.
            grpc.RpcError: the master failed at it.
        """
        end = time.monotonic() + deadline_s
        pause = _FIRST_PAUSE_S
        error = None
        while True:
            master = self._master
            if master is not None:
                try:
                    return self._answer(master, method, request, end)
                except grpc.RpcError as failed:
                    if failed.code() not in _PASSING:
                        raise
                    error = failed
                except _Moot:
                    pass
            left = end - time.monotonic()
            if self._closed or left <= 0:
                raise self._unreachable(method) from error
            if self._moved_from(master):
                pause = _FIRST_PAUSE_S
            else:
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def follow(self, method: str, request: Any) -> "Stream":
        """The messages of the master's streaming `method`, as they come.

        Raises:
            Unreachable: no master is known, or the client is closed.
        """
        self._look()
        if self._master is None:
            raise self._unreachable(method)
        try:
            stream = getattr(self._master.stub, method)(request)
        except ValueError as error:
            raise self._unreachable(method) from error
        return Stream(stream, self._unreachable(method))

    def close(self) -> None:
        """Ends all calls."""
        with self._lock:
            self._closed = True
            if self._master is not None:
                self._master.channel.close()

    def _answer(self, master: _Master, method: str, request: Any, end: float) -> Any:
        """One attempt.

        Raises:
            _Moot: there is another master, or the client is closed.
            grpc.RpcError
        """
        try:
            call = getattr(master.stub, method).future(
                request, timeout=max(end - time.monotonic(), 0.001)
            )
        except ValueError as error:
            raise _Moot from error
        while True:
            try:
                return call.result(timeout=_LOOK_S)
            except grpc.FutureTimeoutError:
                # A master that hangs breaks no connection.
                if self._moved_from(master):
                    call.cancel()
                    raise _Moot from None
            except grpc.FutureCancelledError as error:
                raise _Moot from error

    def _unreachable(self, method: str) -> Unreachable:
        return Unreachable(f"{method}: no answer from {self.address or 'any master'}")

    def _moved_from(self, master: _Master | None) -> bool:
        self._look()
        return self._master is not master

    def _look(self) -> None:
        """Reads the locator, and turns to the master that it names unless that is an older one."""
        if not self._locator:
            return
        try:
            with open(self._locator, encoding="utf-8") as file:
                content = json.load(file)
            address, term = str(content["address"]), int(content["term"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        with self._lock:
            another = (address, term) != (self.address, self.term)
            if another and term >= self.term and not self._closed:
                # The old channel is left to the calls that still run on it.
                self._master = _Master.at(address, term)


class _Moot(Exception):
    """Nobody waits for this attempt any more."""


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


async def serve(servicer: Any, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, str]:
    """A running server of `servicer`'s methods, and its address (host:port)."""
    server = grpc.aio.server(options=(*_OPTIONS, ("grpc.so_reuseport", 0)))
    elasticdl_pb2_grpc.add_MasterServicer_to_server(servicer, server)
    host = address.rpartition(":")[0]
    port = server.add_insecure_port(address)
    await server.start()
    return server, f"{host}:{port}"
