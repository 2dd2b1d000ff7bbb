"""Collectives among the members of one generation."""

import datetime
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

from elasticdl.core import membership
from elasticdl.errors import ElasticDLError

_SLICE = datetime.timedelta(milliseconds=100)
_CONNECT = datetime.timedelta(seconds=30)
# Members wait for each other as long as the master counts on them all: one may have more to do.
_PATIENCE = datetime.timedelta(days=30)

# Groups with an operation that will not finish: to destroy one would wait for it.
_abandoned: list[Any] = []

SUM = torch.distributed.ReduceOp.SUM
MAX = torch.distributed.ReduceOp.MAX


class Broken(ElasticDLError):
    """A collective failed or was given up: members are gone, and a new generation is needed."""


class Meeting:
    """Where other workers find this one when it has rank 0; open as long as the process lives."""

    def __init__(self, host: str) -> None:
        self._store = torch.distributed.TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=_CONNECT
        )
        self.address = f"{host}:{self._store.port}"


class Group:
    """The members of one generation, connected.

    A collective that cannot finish raises `Broken`: at once where a connection breaks, otherwise
    soon after `given_up` says so. The buffer of such an operation must not be used again.

    Args:
        generation: the membership; all its members make a `Group` of it.
        rank: this worker's place in it.
        host: the address of this machine that the others reach.
        given_up: asked while a collective waits.
    """

    def __init__(
        self,
        generation: membership.Generation,
        rank: int,
        host: str,
        given_up: Callable[[], bool],
    ) -> None:
        self.rank = rank
        self.size = len(generation.members)
        self._given_up = given_up
        meeting, _, port = generation.rendezvous.rpartition(":")
        try:
            store = torch.distributed.TCPStore(
                meeting, int(port), is_master=False, wait_for_workers=False, timeout=_CONNECT
            )
            options = torch.distributed.ProcessGroupGloo._Options()
            options._devices = [
                torch.distributed.ProcessGroupGloo.create_device(hostname=host, lazy_init=False)
            ]
            options._timeout = _CONNECT
            self._gloo = torch.distributed.ProcessGroupGloo(
                torch.distributed.PrefixStore(f"generation-{generation.number}", store),
                rank,
                self.size,
                options,
            )
        except RuntimeError as error:
            raise Broken(f"generation {generation.number}: {error}") from error

    def all_reduce(self, buffer: torch.Tensor, operation: Any = SUM) -> None:
        """Replaces the buffer, in all members, by the sum (or maximum) over all members."""
        options = torch.distributed.AllreduceOptions()
        options.reduceOp = operation
        options.timeout = _PATIENCE
        self._finish(lambda: self._gloo.allreduce([buffer], options))

    def broadcast(self, content: bytes | None, source: int) -> bytes:
        """The source's `content`, in all members; the others pass None."""
        length = torch.tensor([len(content) if content is not None else 0], dtype=torch.int64)
        options = torch.distributed.BroadcastOptions()
        options.rootRank = source
        options.timeout = _PATIENCE
        self._finish(lambda: self._gloo.broadcast([length], options))
        if content is not None:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        else:
            buffer = torch.empty(int(length), dtype=torch.uint8)
        self._finish(lambda: self._gloo.broadcast([buffer], options))
        return buffer.numpy().tobytes() if content is None else content

    def _finish(self, begin: Callable[[], Any]) -> None:
        try:
            work = begin()
            while True:
                try:
                    work.wait(_SLICE)
                    return
                except RuntimeError as error:
                    if work.is_completed():
                        work.wait()  # raises, unless it was completed just after the slice
                        return
                    if self._given_up():
                        _abandoned.append(self._gloo)
                        raise Broken("the generation was given up") from error
        except RuntimeError as error:
            raise Broken(str(error).splitlines()[0]) from error
