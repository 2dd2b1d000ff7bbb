"""Collectives among the members of one generation."""

import concurrent.futures
import contextlib
import datetime
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

from elasticdl.core import membership
from elasticdl.errors import ElasticDLError
from elasticdl.worker import meeting

Meeting = meeting.Meeting

# How soon it is noticed that a generation was given up; to look costs 0.2 ms.
_SLICE_S = 0.01
_SLICE = datetime.timedelta(seconds=_SLICE_S)
# Once all have met, they are connected in milliseconds.
_CONNECT = datetime.timedelta(seconds=10)
# Members wait for each other as long as the master counts on them all: one may have more to do.
_PATIENCE = datetime.timedelta(days=30)
# For what follows at once when all have come.
_TRANSFER = datetime.timedelta(minutes=10)
_PIECE = 64 << 20  # bytes

# An operation that has this number is waited for by nobody.
_NOBODYS_TAG = 0x7FFF0001
_ENDING = "end of a group"
_MOMENT = datetime.timedelta(milliseconds=1)

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
    ) -> None:
        self.name = f"t{term}-g{generation.number}"
        self.rank = rank
        self.size = len(generation.members)
        self._given_up = given_up
        self._gloo: Any = None
        self._gloo, self._visit = self._connected(
            _Connecting(self.name, generation.rendezvous, rank, self.size, host)
        )

    def all_reduce(self, buffer: torch.Tensor, operation: Any = SUM) -> None:
        """Replaces the buffer, in all members, by the sum (or maximum) over all members."""
        options = torch.distributed.AllreduceOptions()
        options.reduceOp = operation
        options.timeout = _PATIENCE
        self._finish(lambda gloo: gloo.allreduce([buffer], options))

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
        if self._gloo is None:
            return
        self._visit.leave()
        doomed = [self._gloo]
        self._gloo = None
        _in_background(doomed.clear)

    def __del__(self) -> None:
        self.close()

    def _broadcast(self, buffer: torch.Tensor, source: int) -> None:
        options = torch.distributed.BroadcastOptions()
        options.rootRank = source
        options.timeout = _TRANSFER
        self._finish(lambda gloo: gloo.broadcast([buffer], options))

    def _connected(self, connecting: "_Connecting") -> tuple[Any, meeting.Visit]:
        while True:
            concurrent.futures.wait([connecting.outcome], _SLICE_S)
            if connecting.outcome.done():
                return connecting.outcome.result()
            if self._given_up():
                connecting.abandon()
                raise Broken(f"{self.name} was given up")
            if connecting.dispersed:
                connecting.abandon()
                raise Broken(f"{self.name}: a member is lost")

    def _finish(self, begin: Callable[[Any], Any]) -> None:
        if self._gloo is None:
            raise Broken(f"{self.name} is closed")
        work = None
        try:
            work = begin(self._gloo)
            while not self._finished(work):
                if self._given_up():
                    raise Broken(f"{self.name} was given up")
                if self._visit.dispersed:
                    raise Broken(f"{self.name}: a member is lost")
        except (RuntimeError, Broken) as error:
            self._visit.disperse()
            self._visit.close()
            doomed = [self._gloo, work]
            self._gloo = work = None
            # What is being raised refers to the operation, too, and that to the group.
            traceback.clear_frames(error.__traceback__)
            others = [rank for rank in range(self.size) if rank != self.rank]
            _in_background(lambda: _break(doomed, others))
            if isinstance(error, Broken):
                raise
            raise Broken(f"{self.name}: {str(error).splitlines()[0]}") from error

    def _finished(self, work: Any) -> bool:
        """Whether the operation has, after one slice.

        Raises:
            RuntimeError: it has failed.
        """
        try:
            work.wait(_SLICE)
        except RuntimeError:
            if not work.is_completed():
                return False
            work.wait()  # raises, unless it was completed just after the slice
        return True


def _in_background(end: Callable[[], None]) -> None:
    # Gloo takes 10 ms for each connection that it closes.
    threading.Thread(target=end, name=_ENDING, daemon=True).start()


def _break(doomed: list[Any], others: list[int]) -> None:
    """Ends a group and the operation in it, which may never finish by itself.

    Args:
        doomed: both, and the only references to them; empty afterwards.
        others: the ranks of the other members.
    """
    gloo, work = doomed
    doomed.clear()
    # Gloo closes all connections, and so ends all operations, when anything takes too long.
    for rank in others:
        with contextlib.suppress(RuntimeError):
            gloo.recv([torch.empty(1)], rank, _NOBODYS_TAG).wait(_MOMENT)
    if work is not None:
        # All but a send under way: that lasts for as long as it may. To destroy the group earlier
        # would wait for it.
        with contextlib.suppress(RuntimeError):
            work.wait(_PATIENCE)


class _Connecting:
    """Connects a group in a thread of its own: Gloo says nothing until it has, or cannot.

    Attributes:
        outcome: the group and the meeting that stands behind it, or Broken.
    """

    def __init__(self, name: str, rendezvous: str, rank: int, size: int, host: str) -> None:
        self._name = name
        self._rendezvous = rendezvous
        self._rank = rank
        self._size = size
        self._host = host
        self._visit: meeting.Visit | None = None
        self._abandoned = False
        self.outcome: concurrent.futures.Future[tuple[Any, meeting.Visit]] = (
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
            self.outcome.set_result((self._connect(self._visit), self._visit))
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

    def _connect(self, visit: meeting.Visit) -> Any:
        if self._abandoned:
            raise Broken(f"{self._name} was given up")
        gloo = torch.distributed.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=self._host, lazy_init=False)]
        options._timeout = _CONNECT
        return gloo(_Exchange(visit), self._rank, self._size, options)


class _Exchange(torch.distributed.Store):  # type: ignore[misc]
    """A meeting as Gloo asks for it: each member sets one key and waits for those of all."""

    def __init__(self, visit: meeting.Visit) -> None:
        super().__init__()
        self._visit = visit
        self._said: dict[str, bytes] | None = None

    def set(self, key: str, value: bytes) -> None:
        self._visit.say(key, value)

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        del keys, timeout
        if self._said is None:
            self._said = self._visit.hear()

    def get(self, key: str) -> bytes:
        self.wait([key])
        assert self._said is not None
        return self._said[key]
