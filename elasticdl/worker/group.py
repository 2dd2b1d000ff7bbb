"""Collectives among the members of one generation."""

import concurrent.futures
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

from elasticdl.core import membership
from elasticdl.errors import ElasticDLError
from elasticdl.worker import meeting, transport

Meeting = meeting.Meeting

_PIECE = 64 << 20  # bytes
_ENDING = "end of a group"

SUM = torch.distributed.ReduceOp.SUM
MAX = torch.distributed.ReduceOp.MAX


class Broken(ElasticDLError):
    """A collective failed or was given up: members are gone, and a new generation is needed."""


class Group:
    """The members of one generation, connected.

    What cannot finish raises `Broken`: at once where a connection breaks, otherwise soon after
    `given_up` says so. The group is closed then, which breaks it for its other members too. The
    buffer of such an operation must not be used again.

    Args:
        generation: the membership; all its members make a `Group` of it.
        rank: this worker's place in it.
        host: the address of this machine that the others reach.
        given_up: asked while something is waited for.
        term: of the master that has formed the generation; it forms no two of the same number.
        connect: connects those that have met.

    Raises:
        Broken
    """

    def __init__(
        self,
        generation: membership.Generation,
        rank: int,
        host: str,
        given_up: Callable[[], bool],
        *,
        term: int = 0,
        connect: transport.Connect = transport.Gloo,
    ) -> None:
        self.name = f"t{term}-g{generation.number}"
        self.rank = rank
        self.size = len(generation.members)
        self._given_up = given_up
        self._transport: transport.Transport | None = None
        self._transport, self._visit = self._connected(
            _Connecting(self.name, generation.rendezvous, rank, self.size, host, connect)
        )

    def all_reduce(self, buffer: torch.Tensor, operation: Any = SUM) -> None:
        """Replaces the buffer, in all members, by the sum (or maximum) over all members."""
        self._finish(lambda connected: connected.all_reduce(buffer, operation))

    def broadcast(self, content: bytes | None, source: int) -> bytes:
        """The source's `content`, in all members; the others pass None. For small things."""
        length = torch.tensor([0 if content is None else len(content)], dtype=torch.int64)
        self._broadcast(length, source)
        buffer = torch.empty(int(length), dtype=torch.uint8)
        if content is not None:
            buffer.numpy()[:] = memoryview(content)
        self.broadcast_into(buffer, source)
        received: bytes = buffer.numpy().tobytes()
        return received

    def broadcast_into(self, buffer: torch.Tensor, source: int) -> None:
        """Replaces the buffer, in all members, by the source's.

        Args:
            buffer: uint8 [n], the same n in all members.
            source: a rank.
        """
        for piece in buffer.split(_PIECE) if len(buffer) else ():
            self._broadcast(piece, source)

    def close(self) -> None:
        """Leaves; what others still wait for from here breaks, but nothing else does."""
        if self._transport is None:
            return
        self._visit.leave()
        doomed = [self._transport]
        self._transport = None
        _in_background(doomed.clear)

    def __del__(self) -> None:
        self.close()

    def _broadcast(self, buffer: torch.Tensor, source: int) -> None:
        self._finish(lambda connected: connected.broadcast(buffer, source))

    def _connected(self, connecting: "_Connecting") -> tuple[transport.Transport, meeting.Visit]:
        while True:
            concurrent.futures.wait([connecting.outcome], transport.SLICE_S)
            if connecting.outcome.done():
                return connecting.outcome.result()
            if self._given_up():
                connecting.abandon()
                raise Broken(f"{self.name} was given up")
            if connecting.dispersed:
                connecting.abandon()
                raise Broken(f"{self.name}: a member is lost")

    def _finish(self, begin: Callable[[transport.Transport], Any]) -> None:
        if self._transport is None:
            raise Broken(f"{self.name} is closed")
        work = None
        try:
            work = begin(self._transport)
            while not self._transport.finished(work):
                if self._given_up():
                    raise Broken(f"{self.name} was given up")
                if self._visit.dispersed:
                    raise Broken(f"{self.name}: a member is lost")
        except (RuntimeError, Broken) as error:
            self._visit.disperse()
            self._visit.close()
            doomed = [self._transport, work]
            self._transport = work = None
            # What is being raised refers to the operation, too, and that to the group.
            traceback.clear_frames(error.__traceback__)
            _in_background(lambda: _break(doomed))
            if isinstance(error, Broken):
                raise
            raise Broken(f"{self.name}: {str(error).splitlines()[0]}") from error


def _in_background(end: Callable[[], None]) -> None:
    # Gloo takes 10 ms for each connection that it closes.
    threading.Thread(target=end, name=_ENDING, daemon=True).start()


def _break(doomed: list[Any]) -> None:
    """Ends a group and the operation in it.

    Args:
        doomed: both, and the only references to them; empty afterwards.
    """
    connected, work = doomed
    doomed.clear()
    connected.end(work)


class _Connecting:
    """Connects a group in a thread of its own: nothing is said until it is, or cannot be.

    Attributes:
        outcome: the group and the meeting that stands behind it, or Broken.
    """

    def __init__(
        self,
        name: str,
        rendezvous: str,
        rank: int,
        size: int,
        host: str,
        connect: transport.Connect,
    ) -> None:
        self._name = name
        self._rendezvous = rendezvous
        self._rank = rank
        self._size = size
        self._host = host
        self._connect = connect
        self._visit: meeting.Visit | None = None
        self._abandoned = False
        self.outcome: concurrent.futures.Future[tuple[transport.Transport, meeting.Visit]] = (
            concurrent.futures.Future()
        )
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def dispersed(self) -> bool:
        """Whether a member was lost since they have met."""
        return self._visit is not None and self._visit.dispersed

    def abandon(self) -> None:
        """Nobody waits for the group any more: it is closed as soon as Gloo lets it go."""
        self._abandoned = True
        if self._visit is not None:
            self._visit.disperse()
        self.outcome.add_done_callback(lambda _: self._close())

    def _run(self) -> None:
        try:
            self._visit = meeting.Visit(self._rendezvous, self._name, self._size)
            self.outcome.set_result((self._connected(self._visit), self._visit))
        except (OSError, RuntimeError, meeting.Dispersed) as error:
            self._close()
            broken = Broken(f"{self._name}: {str(error).splitlines()[0]}")
            broken.__cause__ = error
            self.outcome.set_exception(broken)
        except Exception as error:  # the thread's outermost frame
            self._close()
            self.outcome.set_exception(error)

    def _close(self) -> None:
        if self._visit is not None:
            self._visit.close()

    def _connected(self, visit: meeting.Visit) -> transport.Transport:
        if self._abandoned:
            raise Broken(f"{self._name} was given up")
        return self._connect(visit, self._rank, self._size, self._host)
