"""Where the members of a generation find each other before they are connected."""

import asyncio
import contextlib
import json
import socket
import threading
from typing import Any

from elasticdl.errors import ElasticDLError

_LONGEST = 16 << 20  # bytes of what is said
_REMEMBERED = 100  # generations
_CONNECT_S = 10.0


class Dispersed(ElasticDLError):
    """The members are not, or will not be, all there: one is lost, or the place is no more."""


class Meeting:
    """Others meet here when this worker has rank 0; open as long as the process lives.

    Each says one thing, and hears what all have said as soon as all have. When one is lost, before
    or after that, all are sent away, those that come later too.
    """

    # torch's TCPStore would do, but asks for the name of each address that it connects to: it takes
    # as long as the name server does, which is seconds where an answer is lost.

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=1024)
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._circles: dict[str, _Circle] = {}
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._receive, sock=self._listener, limit=_LONGEST)
        await server.serve_forever()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                message = json.loads(await reader.readline())
                circle = self._circle(str(message["name"]), int(message["size"]))
                circle.add(str(message["key"]), str(message["content"]))
            except (OSError, ValueError, TypeError, KeyError):
                return  # no member
            left = asyncio.ensure_future(_in_order(reader))
            await _first(left, circle.complete, circle.dispersed)
            if circle.complete.done() and not circle.dispersed.done():
                writer.write(json.dumps(circle.said).encode() + b"\n")
                await _first(left, circle.dispersed)
            if not left.done():
                left.cancel()
            elif not left.result():
                circle.disperse()

    def _circle(self, name: str, size: int) -> "_Circle":
        circle = self._circles.setdefault(name, _Circle(size))
        while len(self._circles) > _REMEMBERED:
            del self._circles[next(iter(self._circles))]
        return circle


async def _in_order(reader: asyncio.StreamReader) -> bool:
    """Whether the member has said that it leaves; returns when it has left."""
    try:
        return bool(await reader.read(1))
    except OSError:
        return False


async def _first(*events: asyncio.Future[Any]) -> None:
    await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)


class _Circle:
    """Those of one generation that have come."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.said: dict[str, str] = {}
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.dispersed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add(self, key: str, content: str) -> None:
        self.said[key] = content
        if len(self.said) == self._size and not self.complete.done():
            self.complete.set_result(None)

    def disperse(self) -> None:
        if not self.dispersed.done():
            self.dispersed.set_result(None)


class Visit:
    """One member's part in a meeting.

    Args:
        address: of the meeting.
        name: of what the members meet for.
        size: how many they are.

    Raises:
        OSError: there is no meeting.
    """

    def __init__(self, address: str, name: str, size: int) -> None:
        host, _, port = address.rpartition(":")
        self._about = {"name": name, "size": size}
        self._socket = socket.create_connection((host, int(port)), timeout=_CONNECT_S)
        # The others may come as late as they like.
        self._socket.settimeout(None)

    def say(self, key: str, content: bytes) -> None:
        """Raises Dispersed."""
        message: dict[str, Any] = {**self._about, "key": key, "content": content.hex()}
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Dispersed(f"the meeting is no more: {error}") from error

    def hear(self) -> dict[str, bytes]:
        """What all have said, by key, when all have.

        Raises:
            Dispersed
        """
        try:
            with self._socket.makefile("rb") as reader:
                line = reader.readline()
        except OSError as error:
            raise Dispersed(f"the meeting is no more: {error}") from error
        if not line.endswith(b"\n"):
            raise Dispersed("a member has left before all had come")
        return {key: bytes.fromhex(content) for key, content in json.loads(line).items()}

    @property
    def dispersed(self) -> bool:
        """Whether a member was lost since."""
        try:
            return not self._socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def leave(self) -> None:
        """Leaves in order: the others may stay."""
        with contextlib.suppress(OSError), self._socket:
            self._socket.sendall(b"\n")

    def disperse(self) -> None:
        """Sends all away, from any thread; `hear` raises Dispersed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
