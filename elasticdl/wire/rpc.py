"""Servers, channels, deadlines, the one retry."""

import hmac
import json
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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
    # A machine that is lost breaks no connection.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    # Control never leaves for a proxy that the user's environment names.
    ("grpc.enable_http_proxy", 0),
)

# The name in the master's certificate, wherever it is reached.
MASTER_NAME = "elasticdl-master"


class Unreachable(Retryable):
    """The master did not answer in time."""


@dataclass(frozen=True)
class Security:
    """What one side shows the other, in PEM, and what both know.

    Args:
        authority: the certificate that has signed both sides' ones.
        token: a secret of the job.
    """

    authority: bytes
    certificate: bytes
    key: bytes
    token: str

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> "Security":
        """Raises OSError: a file of the four is not there."""
        names = ("ca.crt", "tls.crt", "tls.key", "token")
        return cls.of({name: Path(directory, name).read_bytes() for name in names})

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> "Security":
        """The same from the files' contents."""
        token = files["token"].decode("ascii").strip()
        return cls(files["ca.crt"], files["tls.crt"], files["tls.key"], token)

    def channel(self) -> grpc.ChannelCredentials:
        sides = grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)
        return grpc.composite_channel_credentials(
            sides, grpc.access_token_call_credentials(self.token)
        )

    def server(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], self.authority, require_client_auth=True
        )


@dataclass(frozen=True)
class _Master:
    """One master, and the way to it."""

    address: str
    term: int
    channel: grpc.Channel
    stub: Any

    @classmethod
    def at(cls, address: str, term: int, security: Security | None) -> "_Master":
        if security is None:
            channel = grpc.insecure_channel(address, options=_OPTIONS)
        else:
            named = ("grpc.ssl_target_name_override", MASTER_NAME)
            channel = grpc.secure_channel(address, security.channel(), options=(*_OPTIONS, named))
        return cls(address, term, channel, elasticdl_pb2_grpc.MasterStub(channel))


class Client:
    """Calls the master, and the next one as soon as there is one.

    Every call has a deadline; a call that could not be delivered, or that an earlier master has not
    answered, is repeated until then, so every method of the master must bear arriving twice.
    Safe for use by several threads.

    Args:
        where: the master's address, host:port, at which the next one will be, too; or the path of a
            locator, a file that each new master replaces (see `write_locator`).
        security: None: whoever is there is believed, and may listen.
    """

    def __init__(self, where: str, security: Security | None = None) -> None:
        self._locator = where if os.sep in where else ""
        self._security = security
        self._lock = threading.Lock()
        self._closed = False
        self._told_term = 0
        self._master = None if self._locator else _Master.at(where, 0, security)
        self._look()

    @property
    def address(self) -> str:
        """The present master's; empty while none is known."""
        return self._master.address if self._master else ""

    @property
    def term(self) -> int:
        """The present master's number; a master of a lower one is never gone back to."""
        return max(self._told_term, self._master.term if self._master else 0)

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
                    reply = self._answer(master, method, request, end)
                    if self._is_current(reply):
                        return reply
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
        master = self._master
        if master is None:
            raise self._unreachable(method)
        try:
            stream = getattr(master.stub, method)(request)
        except ValueError as error:
            raise self._unreachable(method) from error
        return Stream(stream, self._unreachable(method), master)

    def leads_to(self, stream: "Stream") -> bool:
        """Whether this stream comes from the present master."""
        return stream.master is self._master

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

    def _is_current(self, reply: Any) -> bool:
        """Whether no later master has answered before; those at one address say who they are."""
        term = getattr(reply, "term", 0)
        if term:
            self._told_term = max(self._told_term, term)
        return not term or term == self._told_term

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
                self._master = _Master.at(address, term, self._security)


class _Moot(Exception):
    """Nobody waits for this attempt any more."""


class Stream:
    """The messages of one streaming call; ends when the master has no more.

    Iterating raises `Unreachable` when the stream breaks, or was cancelled.

    Args:
        master: that is called.
    """

    def __init__(self, call: Any, broken: Unreachable, master: object = None) -> None:
        self._call = call
        self._broken = broken
        self.master = master
        # A call that meets a server's end may never come to its own, not even if it is cancelled:
        # nobody but this thread waits for gRPC.
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        while True:
            message = self._messages.get()
            if isinstance(message, _Over):
                if message.cause is None:
                    return
                raise self._broken from message.cause
            yield message

    def cancel(self) -> None:
        """Ends it, from any thread."""
        self._call.cancel()
        self._messages.put(_Over(self._broken))

    def _receive(self) -> None:
        try:
            for message in self._call:
                self._messages.put(message)
        except grpc.RpcError as error:
            self._messages.put(_Over(error))
        else:
            self._messages.put(_Over(None))


@dataclass(frozen=True)
class _Over:
    """No more messages come; `cause` None: as the master has no more."""

    cause: Exception | None


def write_locator(path: str, address: str, term: int) -> None:
    """Says where the master is: in place of an older one, whole.

    Raises:
        OSError: the system refuses.
    """
    aside = f"{path}.{os.getpid()}"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump({"address": address, "term": term}, file)
    os.replace(aside, path)


class _Doorkeeper(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets in who knows the token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}"

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        given = dict(details.invocation_metadata).get("authorization", "")
        if hmac.compare_digest(str(given), self._expected):
            return await continuation(details)

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "expected the job's token")

        return grpc.unary_unary_rpc_method_handler(refuse)


async def serve(
    servicer: Any, address: str = "127.0.0.1:0", security: Security | None = None
) -> tuple[grpc.aio.Server, str]:
    """A running server of `servicer`'s methods, and its address (host:port)."""
    keepers = [_Doorkeeper(security.token)] if security is not None else []
    options = (*_OPTIONS, ("grpc.so_reuseport", 0))
    server = grpc.aio.server(options=options, interceptors=keepers)
    elasticdl_pb2_grpc.add_MasterServicer_to_server(servicer, server)
    host = address.rpartition(":")[0]
    port = (
        server.add_insecure_port(address)
        if security is None
        else server.add_secure_port(address, security.server())
    )
    await server.start()
    return server, f"{host}:{port}"
